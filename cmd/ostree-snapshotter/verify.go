package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// parsePayload is the inverse of objectstore.LoosePath for the payload of a file in a layer image.
func parsePayload(payload string) (objectstore.Checksum, error) {
	obj, ok := parseLoosePath("objects/" + payload)
	if !ok || obj.typ != objectstore.TypeFile {
		return objectstore.Checksum{}, fmt.Errorf("payload %q names no object: %w", payload, objectstore.ErrCorrupt)
	}
	return obj.sum, nil
}

// verifyLayer checks that a layer's image can be read, and that every object it names is there and is one that the
// layer commit keeps. It does not read the objects.
func (s *store) verifyLayer(ctx context.Context, id objectstore.Checksum) (*composefs.Inode, error) {
	root, err := s.layers.Image(ctx, id)
	if err != nil {
		return nil, err
	}
	list, err := s.layers.Objects(ctx, id)
	if err != nil {
		return nil, err
	}
	kept := make(map[objectstore.Checksum]struct{}, len(list))
	for _, sum := range list {
		kept[sum] = struct{}{}
		ok, err := s.repo.Has(objectstore.TypeFile, sum)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: sum, Err: objectstore.ErrNotExist}
		}
	}
	return root, eachFile(root, "", func(name string, n *composefs.Inode) error {
		if n.Payload == "" {
			return nil
		}
		sum, err := parsePayload(n.Payload)
		if err != nil {
			return fmt.Errorf("file %q: %w", name, err)
		}
		if _, ok := kept[sum]; !ok {
			return fmt.Errorf("file %q: layer commit does not name object %s: %w", name, sum, objectstore.ErrCorrupt)
		}
		return ctx.Err()
	})
}

// eachFile calls f for every entry of a layer image, directories before what is in them.
func eachFile(dir *composefs.Inode, prefix string, f func(name string, n *composefs.Inode) error) error {
	for _, e := range dir.Entries {
		name := path.Join(prefix, e.Name)
		if err := f(name, e.Inode); err != nil {
			return err
		}
		if err := eachFile(e.Inode, name, f); err != nil {
			return err
		}
	}
	return nil
}

// xattrHardlink marks an entry of a layer image that is a hard link into a layer below; see package layer.
const xattrHardlink = "trusted.ostree.hardlink"

// verifyCheckout compares a checkout with the image of its layer: every entry is there and of its type, symbolic links
// lead where they should, and every file with content has its object's, by being the same inode or byte for byte. What
// is linked from a layer below is there; of which type and content the layer itself does not say.
func (s *store) verifyCheckout(ctx context.Context, checkout string, image *composefs.Inode) (err error) {
	dir, err := s.root.OpenDir(checkout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return eachFile(image, "", func(name string, n *composefs.Inode) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return s.verifyFile(dir, name, n)
	})
}

func (s *store) verifyFile(dir *atfs.Dir, name string, n *composefs.Inode) error {
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(n.Xattrs, func(x composefs.Xattr) bool { return x.Name == xattrHardlink }) {
		return nil
	}
	if got, want := st.Mode&unix.S_IFMT, n.Mode&unix.S_IFMT; got != want {
		return fmt.Errorf("%s: file type is %#o, not %#o: %w", name, got, want, objectstore.ErrCorrupt)
	}
	switch {
	case n.Mode&unix.S_IFMT == unix.S_IFLNK:
		target, err := dir.Readlink(name)
		if err != nil {
			return err
		}
		if target != n.Target {
			return fmt.Errorf("%s: symbolic link to %q, not %q: %w", name, target, n.Target, objectstore.ErrCorrupt)
		}
	case n.Payload != "":
		sum, err := parsePayload(n.Payload)
		if err != nil {
			return err
		}
		return s.verifyContent(dir, name, st, sum)
	}
	return nil
}

// verifyContent compares a file with an object. The same inode needs no look: the object is checked as such.
func (s *store) verifyContent(dir *atfs.Dir, name string, st unix.Stat_t, sum objectstore.Checksum) (err error) {
	obj, err := s.repo.Stat(sum)
	if err != nil {
		return err
	}
	if obj.Dev == st.Dev && obj.Ino == st.Ino {
		return nil
	}
	meta, err := s.repo.FileMeta(sum)
	if err != nil {
		return err
	}
	if st.Uid != meta.UID || st.Gid != meta.GID || st.Mode != meta.Mode {
		return fmt.Errorf("%s: owner or mode is not that of object %s: %w", name, sum, objectstore.ErrCorrupt)
	}
	h, err := objectstore.NewContentHash(meta)
	if err != nil {
		return err
	}
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := objectstore.Checksum(h.Sum(nil)); got != sum {
		return fmt.Errorf("%s: content is not that of object %s: %w", name, sum, objectstore.ErrCorrupt)
	}
	return nil
}
