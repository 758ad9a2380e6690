package sysroot

import (
	"errors"
	"fmt"
)

// Kinds of errors, for errors.Is.
var (
	// ErrNotSysroot reports a directory that is not an ostree sysroot.
	ErrNotSysroot = errors.New("not an ostree sysroot")
	// ErrExists reports a sysroot or stateroot that exists already.
	ErrExists = errors.New("exists already")
	// ErrNotExist reports a stateroot or deployment that does not exist.
	ErrNotExist = errors.New("does not exist")
	// ErrUnsupported reports a sysroot or commit that this package would harm, or whose system it would break.
	ErrUnsupported = errors.New("not supported")
	// ErrSELinux reports a commit whose files need labels and have none. It is an ErrUnsupported.
	ErrSELinux = fmt.Errorf("%w: SELinux policy", ErrUnsupported)
	// ErrInvalid reports a request that cannot be met, or a commit that cannot be deployed.
	ErrInvalid = errors.New("cannot be deployed")
	// ErrInUse reports a deployment that is booted, or needed otherwise.
	ErrInUse = errors.New("is in use")
	// ErrNoSpace reports that there is no room for the files to write.
	ErrNoSpace = errors.New("not enough space")
	// ErrCorrupt reports a sysroot in a state that libostree does not leave behind, not even when killed.
	ErrCorrupt = errors.New("sysroot is corrupt")
	// ErrChanged reports that the sysroot has changed since the plan was made.
	ErrChanged = errors.New("sysroot has changed since the plan was made")
	// ErrReadOnly reports that this process cannot change the sysroot.
	ErrReadOnly = errors.New("sysroot cannot be changed")
	// ErrLocked reports that another process works on the sysroot.
	ErrLocked = errors.New("sysroot is locked by another process")
)

// An indexError reports an index without a deployment.
type indexError struct{ index, n int }

func (e *indexError) Error() string {
	return fmt.Sprintf("deployment %d does not exist: there are %d, counted from 0", e.index, e.n)
}

func (e *indexError) Is(target error) bool { return target == ErrNotExist }
