package differ

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// lowers is a directory of the tree below an overlay's upper directory, as the list of the layers' directories that a
// mount would merge, topmost first. An empty list is a directory that does not exist.
type lowers []*atfs.Dir

// find returns a file and the layer directory that has it, or nil if it does not exist.
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

// sub returns a subdirectory. The caller closes it, also after an error.
func (l lowers) sub(base string) (sub lowers, err error) {
	for _, layer := range l {
		f, err := stat(layer, base)
		if err != nil {
			return sub, err
		}
		if f == nil {
			continue
		}
		if !f.is(unix.S_IFDIR) { // a whiteout, or a file that hides the directories below it
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

// names returns the names in the directory, in any order, with duplicates and with hidden names, which find does not
// find.
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
