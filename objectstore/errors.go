package objectstore

import (
	"errors"
	"fmt"
	"io/fs"
)

// The classes of errors, for errors.Is. Each also has the method by which containerd's errdefs recognizes its class, so
// that it becomes the right gRPC code although this package does not know containerd.
var (
	// ErrNotExist reports that an object or a ref is absent. It is also fs.ErrNotExist.
	ErrNotExist error = notExistError{}
	// ErrNoEntry reports that a tree has no entry of a name. It is neither ErrNotExist nor fs.ErrNotExist: a name may
	// be absent, but an absent object is damage.
	ErrNoEntry error = noEntryError{}
	// ErrCorrupt reports that something in the repository does not match its name or its format.
	ErrCorrupt error = corruptError{}
	// ErrLocked reports that a lock of the repository was not obtained in time.
	ErrLocked error = lockedError{}
	// ErrNoRepo reports that a directory is not an ostree repository.
	ErrNoRepo error = noRepoError{}
	// ErrNotRemoved reports that all is done, except that some files could not be removed. The error names them.
	ErrNotRemoved error = notRemovedError{}
	// ErrInvalid reports a value that cannot be stored in an ostree repository: a bad name, type, mode or ref.
	ErrInvalid error = invalidError{}
)

type notExistError struct{}

func (notExistError) Error() string        { return "does not exist" }
func (notExistError) NotFound()            {}
func (notExistError) Is(target error) bool { return target == fs.ErrNotExist }

type notRemovedError struct{}

func (notRemovedError) Error() string       { return "some files could not be removed" }
func (notRemovedError) FailedPrecondition() {}

type noEntryError struct{ name string }

func (e noEntryError) Error() string      { return "the tree has no /" + e.name }
func (noEntryError) Is(target error) bool { return target == ErrNoEntry }

type corruptError struct{}

func (corruptError) Error() string { return "corrupt" }
func (corruptError) DataLoss()     {}

type lockedError struct{}

func (lockedError) Error() string { return "the repository is locked by another process" }
func (lockedError) Unavailable()  {}

type noRepoError struct{}

func (noRepoError) Error() string       { return "not an ostree repository" }
func (noRepoError) FailedPrecondition() {}

type invalidError struct{}

func (invalidError) Error() string     { return "not allowed in an ostree repository" }
func (invalidError) InvalidParameter() {}

// ObjectError is an error about one object.
type ObjectError struct {
	Type     ObjectType
	Checksum Checksum
	Err      error
}

// Error names the object and the problem.
func (e *ObjectError) Error() string {
	return fmt.Sprintf("object %s.%s: %v", e.Checksum, e.Type.Ext(), e.Err)
}

// Unwrap returns the cause.
func (e *ObjectError) Unwrap() error { return e.Err }

// objectError wraps err. A missing file becomes ErrNotExist.
func objectError(t ObjectType, sum Checksum, err error) error {
	if err == nil {
		return nil
	}
	var already *ObjectError
	if errors.As(err, &already) && already.Type == t && already.Checksum == sum {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotExist
	}
	return &ObjectError{Type: t, Checksum: sum, Err: err}
}

// RefError is an error about one ref.
type RefError struct {
	Ref string
	Err error
}

// Error names the ref and the problem.
func (e *RefError) Error() string { return fmt.Sprintf("ref %q: %v", e.Ref, e.Err) }

// Unwrap returns the cause.
func (e *RefError) Unwrap() error { return e.Err }

// UnsupportedModeError reports a repository of a mode that this package does not support.
type UnsupportedModeError struct {
	Path string
	Mode string // value of the mode key
}

// Error names the mode and a way out.
func (e *UnsupportedModeError) Error() string {
	const bare = `only mode "bare" keeps owners, modes and extended attributes on the files themselves`
	switch e.Mode {
	case "archive", "archive-z2", "bare-user", "bare-user-only":
		return fmt.Sprintf("ostree repository %s has mode %q: %s; make one with \"ostree init --mode=bare\" and copy the "+
			"commits with \"ostree pull-local\"", e.Path, e.Mode, bare)
	case "bare-split-xattrs":
		return fmt.Sprintf("ostree repository %s has mode %q, which exists only inside container layers: %s; copy the "+
			"commits into one with \"ostree pull-local\"", e.Path, e.Mode, bare)
	}
	return fmt.Sprintf("ostree repository %s has unknown mode %q: %s", e.Path, e.Mode, bare)
}

// NotImplemented marks the class of the error.
func (e *UnsupportedModeError) NotImplemented() {}

// UnsupportedConfigError reports a repository setting under which this package would do the wrong thing.
type UnsupportedConfigError struct {
	Path, Key, Value string
	Hint             string // the reason and a way out
}

// Error names the setting and a way out.
func (e *UnsupportedConfigError) Error() string {
	return fmt.Sprintf("ostree repository %s has %s=%s: %s", e.Path, e.Key, e.Value, e.Hint)
}

// NotImplemented marks the class of the error.
func (e *UnsupportedConfigError) NotImplemented() {}

// corruptf returns an ErrCorrupt with a description.
func corruptf(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrCorrupt)
}

// invalidf returns an ErrInvalid with a description.
func invalidf(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrInvalid)
}

// NotRemoved returns an ErrNotRemoved of errors that name files which could not be removed, nil if all errors are nil.
func NotRemoved(errs ...error) error {
	err := errors.Join(errs...)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNotRemoved, err)
	}
	return err
}
