package differ

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// lowers are the directories of an overlay, topmost first. They show what a mount of them would, without one.
type lowers []*atfs.Dir

// find returns a file and the directory that has it, nil if there is none.
func (l lowers) find(name string) (*file, *atfs.Dir, error) {
	for _, layer := range l {
		f, ends, err := within(layer, name)
		if f != nil || ends || err != nil {
			return f, layer, err
		}
	}
	return nil, nil, nil
}

// within returns a file of one directory, nil if it has none. If ends, then no directory below it shows one either.
func within(layer *atfs.Dir, name string) (f *file, ends bool, err error) {
	if name == "." {
		f, err = stat(layer, name)
		return f, false, err // the kernel does not look whether a root is opaque
	}
	for i := 0; i < len(name); {
		i += strings.IndexByte(name[i:]+"/", '/')
		if f, err = stat(layer, name[:i]); err != nil || f == nil {
			return nil, ends, err
		}
		if f.whiteout() {
			return nil, true, nil
		}
		if i < len(name) && !f.is(unix.S_IFDIR) {
			return nil, true, nil
		}
		ends = ends || f.opaque()
		i++
	}
	return f, ends, nil
}

// names returns the names in a directory, in any order and perhaps more than once. Some may be hidden: find tells.
func (l lowers) names(dir string) (names []string, err error) {
	for _, layer := range l {
		f, ends, err := within(layer, path.Clean(dir))
		if err != nil {
			return nil, err
		}
		if f != nil && !f.is(unix.S_IFDIR) {
			return names, nil
		}
		if f != nil {
			more, err := readNames(layer, dir)
			if err != nil {
				return nil, err
			}
			names = append(names, more...)
		}
		if ends {
			return names, nil
		}
	}
	return names, nil
}
