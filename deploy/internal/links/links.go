// Package links follows symbolic links in trees that are not the root of the running system.
package links

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// limit is the number of symbolic links that Resolve follows, as the kernel does.
const limit = 40

// Resolve returns the entry at a path in the tree of a commit. It follows symbolic links as if the tree were the root of
// a system that runs it: what is below /usr/etc is below /etc too. More than 40 links are ELOOP.
//
// look returns the entry at a path without following links; "." is the root. If the entry is a symbolic link, its
// target comes with it. An absent entry is an [objectstore.ErrNoEntry]; Resolve returns errors as they are.
func Resolve[E any](name string, look func(name string) (entry E, target string, err error)) (E, error) {
	var none E
	done := "."
	rest := strings.Split(name, "/")
	for followed := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		if part == "etc" && done == "." {
			if _, _, err := look(part); errors.Is(err, objectstore.ErrNoEntry) {
				done = "usr"
			}
		}
		here := path.Join(done, part)
		_, target, err := look(here)
		if err != nil {
			return none, err
		}
		if target == "" {
			done = here
			continue
		}
		if followed++; followed > limit {
			return none, &fs.PathError{Op: "resolve", Path: "/" + name, Err: unix.ELOOP}
		}
		if path.IsAbs(target) {
			done = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	entry, _, err := look(done)
	return entry, err
}
