package layer

import (
	"errors"
	"fmt"
)

// ErrNotExist reports a layer that the store does not have.
var ErrNotExist = notFoundError("no such layer")

type notFoundError string

func (e notFoundError) Error() string { return string(e) }

// NotFound marks the error for errdefs.
func (notFoundError) NotFound() {}

// ErrNoTar reports a layer whose tar cannot be written again: it was made of a directory, or of other layers.
var ErrNoTar = errors.New("layer was not made from a tar")

// ErrInvalid marks errors in a layer's bytes: errors.Is(err, ErrInvalid) tells a bad layer from a bad disk.
var ErrInvalid = invalidError("invalid layer")

type invalidError string

func (e invalidError) Error() string { return string(e) }

// InvalidParameter marks the error for errdefs.
func (invalidError) InvalidParameter() {}

// EntryError reports an error in one entry of a layer. It is an ErrInvalid.
type EntryError struct {
	Name string // the entry, as the layer spells it
	Err  error
}

func (e *EntryError) Error() string { return fmt.Sprintf("layer entry %q: %v", e.Name, e.Err) }

// Unwrap returns the cause and ErrInvalid.
func (e *EntryError) Unwrap() []error { return []error{e.Err, ErrInvalid} }

var (
	errNameLong     = errors.New("name is too long")
	errName         = errors.New("name is not a valid file name")
	errNotDir       = errors.New("parent is not a directory")
	errLinkLoop     = errors.New("too many symbolic links")
	errLinkDir      = errors.New("hard link to a directory")
	errLinkWhiteout = errors.New("hard link to a whiteout")
	errWhiteout     = errors.New("whiteout without a name")
	errType         = errors.New("entry type is not supported")
	errDevice       = errors.New("device number is out of range")
	errXattr        = errors.New("extended attributes are longer than the kernel allows")
	errTooMany      = errors.New("layer has more entries than max_entries allows")
	errTooMuch      = errors.New("names, link targets and extended attributes of the layer take more than max_entries allows")
	errOwner        = errors.New("owner is out of range")
	errSymlink      = errors.New("symbolic link target is empty or too long")
)
