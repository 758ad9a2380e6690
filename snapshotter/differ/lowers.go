package differ

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// lowers are one directory of the tree below an overlay's upper one, as the directories of the layers that it is merged of,
// topmost first. They show what a mount would, without one. None of them is no directory.
type lowers []*atfs.Dir

// find returns a file and the directory that has it, nil if there is none.
func (l lowers) find(base string) (*file, *atfs.Dir, error) {
	for _, layer := range l {
		f, err := stat(layer, base)
		switch {
		case err != nil:
			return nil, nil, err
		case f == nil:
			continue
		case f.whiteout():
			return nil, nil, nil
		}
		return f, layer, nil
	}
	return nil, nil, nil
}

// sub returns a directory in it, for the caller to close, also with an error.
func (l lowers) sub(base string) (sub lowers, err error) {
	for _, layer := range l {
		f, err := stat(layer, base)
		if err != nil {
			return sub, err
		}
		if f == nil {
			continue
		}
		if !f.is(unix.S_IFDIR) { // a whiteout, or a file that hides what is below it
			return sub, nil
		}
		dir, err := layer.OpenDir(base)
		if err != nil {
			return sub, err
		}
		if sub = append(sub, dir); f.opaque() {
			return sub, nil
		}
	}
	return sub, nil
}

// names returns the names in it, in any order and perhaps more than once. Some may be hidden: find tells.
func (l lowers) names() (names []string, err error) {
	for _, layer := range l {
		more, err := layer.ReadNames()
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	return names, nil
}

func (l lowers) close() error {
	var errs []error
	for _, layer := range l {
		errs = append(errs, layer.Close())
	}
	return errors.Join(errs...)
}
