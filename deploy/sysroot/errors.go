package sysroot

import (
	"errors"
	"fmt"
)

// The classes of errors, for errors.Is.
var (
	// ErrNotSysroot says that a directory is no ostree sysroot.
	ErrNotSysroot = errors.New("not an ostree sysroot")
	// ErrExists says that a sysroot or stateroot is there already.
	ErrExists = errors.New("exists already")
	// ErrNotExist says that there is no such stateroot or deployment.
	ErrNotExist = errors.New("does not exist")
	// ErrUnsupported says that a sysroot or a commit is one that this package would do harm to, or none of the system it
	// was made for.
	ErrUnsupported = errors.New("not supported")
	// ErrSELinux says that files of a commit would need labels, which they do not get. It is an ErrUnsupported.
	ErrSELinux = fmt.Errorf("%w: SELinux policy", ErrUnsupported)
	// ErrInvalid says that a request cannot be done, or that a commit cannot be deployed.
	ErrInvalid = errors.New("cannot be deployed")
	// ErrInUse says that a deployment is booted, or else needed.
	ErrInUse = errors.New("is in use")
	// ErrNoSpace says that what is to be written does not fit.
	ErrNoSpace = errors.New("not enough space")
	// ErrCorrupt says that a sysroot is not what libostree leaves behind, not even when it is killed.
	ErrCorrupt = errors.New("sysroot is corrupt")
	// ErrChanged says that a sysroot is not as it was when the plan was made.
	ErrChanged = errors.New("sysroot has changed since the plan was made")
	// ErrReadOnly says that this process cannot change a sysroot.
	ErrReadOnly = errors.New("sysroot cannot be changed")
	// ErrLocked says that another process works on the sysroot.
	ErrLocked = errors.New("sysroot is locked by another process")
)

// An indexError is about a number that no deployment has.
type indexError struct{ index, n int }

func (e *indexError) Error() string {
	return fmt.Sprintf("deployment %d does not exist: there are %d, counted from 0", e.index, e.n)
}

func (e *indexError) Is(target error) bool { return target == ErrNotExist }
