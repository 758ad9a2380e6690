package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer/recipe"
)

// Verify checks that a layer is complete: its commit, trees and image can be read, the commit keeps every object that
// the image names, and all of them exist. It does not read the objects' content, which Repo.Fsck does. The error is the
// first fault found: an ErrCorrupt or an ErrNotExist.
func (s *Store) Verify(ctx context.Context, id objectstore.Checksum) error {
	root, err := s.Image(ctx, id)
	if err != nil {
		return err
	}
	if err := s.Whole(id); err != nil {
		return err
	}
	list, err := s.Objects(ctx, id)
	if err != nil {
		return err
	}
	kept := make(map[objectstore.Checksum]struct{}, len(list))
	for _, sum := range list {
		kept[sum] = struct{}{}
	}
	return eachFile(root, "", func(name string, n *composefs.Inode) error {
		if n.Payload == "" {
			return nil
		}
		sum, err := PayloadSum(n.Payload)
		if err != nil {
			return fmt.Errorf("file %q: %w", name, err)
		}
		if _, ok := kept[sum]; !ok {
			return fmt.Errorf("file %q: layer commit does not keep object %s: %w", name, sum, objectstore.ErrCorrupt)
		}
		return context.Cause(ctx)
	})
}

// eachFile calls f for every entry of a tree, directories before their entries.
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

// VerifyCheckout compares the checkout name, as returned by Checkout, with its specification, the last layer of a
// chain: every entry exists and no other, with its type, owner, mode, times, attributes and target; every file with
// content is its object's inode, or equal to it byte for byte; a file with several names is one inode. The error is the
// first difference, an ErrCorrupt or fs.ErrNotExist.
//
// The time of a file that is its object's inode is not compared: with MtimeCanonical it may differ. The content of the
// objects is not read: Repo.Fsck does that. The checkout's directory names the layer.
func (s *Store) VerifyCheckout(ctx context.Context, name string, chain []objectstore.Checksum) error {
	if len(chain) == 0 {
		return errors.New("verify checkout: empty chain")
	}
	if err := s.verifyFiles(ctx, name, chain); err != nil {
		return err
	}
	return s.checkOwner(chain[len(chain)-1])
}

// verifyFiles is VerifyCheckout without the name of the layer.
func (s *Store) verifyFiles(ctx context.Context, name string, chain []objectstore.Checksum) (err error) {
	root, err := s.checkoutTree(ctx, name, chain)
	if err != nil {
		return err
	}
	dir, err := s.root.OpenDir(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	v := checkoutVerifier{ctx: ctx, repo: s.repo, groups: linkGroups(root), inodes: make(map[*composefs.Inode]atfs.Inode)}
	return v.dir(dir, "", root)
}

type checkoutVerifier struct {
	ctx    context.Context //nolint:containedctx // of one call
	repo   *objectstore.Repo
	groups map[*composefs.Inode]*linkGroup
	inodes map[*composefs.Inode]atfs.Inode // of the files with several names seen so far
}

// differs returns the error for a difference from the layer.
func differs(name, what string, got, want any) error {
	return fmt.Errorf("%s: %s is %v, not %v: %w", name, what, got, want, objectstore.ErrCorrupt)
}

func (v *checkoutVerifier) dir(d *atfs.Dir, name string, n *composefs.Inode) error {
	if v.ctx.Err() != nil {
		return context.Cause(v.ctx)
	}
	st, err := d.Lstat(".")
	if err != nil {
		return err
	}
	if err := v.attributes(d, ".", path.Join("/", name), st, n); err != nil {
		return err
	}
	names, err := d.ReadNames()
	if err != nil {
		return err
	}
	for _, have := range names {
		if child(n, have) == nil {
			return fmt.Errorf("%s: layer has no such entry: %w", path.Join("/", name, have), objectstore.ErrCorrupt)
		}
	}
	for _, e := range n.Entries {
		if err := v.entry(d, path.Join(name, e.Name), e); err != nil {
			return err
		}
	}
	return nil
}

func (v *checkoutVerifier) entry(d *atfs.Dir, name string, e composefs.Entry) error {
	st, err := d.Lstat(e.Name)
	if err != nil {
		return err
	}
	shown := path.Join("/", name)
	if got, want := st.Mode&unix.S_IFMT, e.Inode.Mode&unix.S_IFMT; got != want {
		return differs(shown, "file type", fmt.Sprintf("%#o", got), fmt.Sprintf("%#o", want))
	}
	if e.Inode.IsDir() {
		sub, err := d.OpenDir(e.Name)
		if err != nil {
			return err
		}
		return errors.Join(v.dir(sub, name, e.Inode), sub.Close())
	}
	if v.groups[e.Inode] != nil {
		id := atfs.InodeOf(&st)
		if first, ok := v.inodes[e.Inode]; ok && first != id {
			return differs(shown, "inode", id.Ino, first.Ino)
		}
		v.inodes[e.Inode] = id
	}
	return v.file(d, e.Name, shown, st, e.Inode)
}

func (v *checkoutVerifier) file(d *atfs.Dir, base, shown string, st unix.Stat_t, n *composefs.Inode) error {
	var sum objectstore.Checksum
	if n.Payload != "" {
		var err error
		if sum, err = PayloadSum(n.Payload); err != nil {
			return fmt.Errorf("%s: %w", shown, err)
		}
		obj, err := v.repo.Stat(sum)
		if err != nil && !errors.Is(err, objectstore.ErrNotExist) {
			return err
		}
		if err == nil && obj.Dev == st.Dev && obj.Ino == st.Ino && !hasEmptyXattr(n) {
			return nil
		}
	}
	if err := v.attributes(d, base, shown, st, n); err != nil {
		return err
	}
	switch {
	case n.Mode&unix.S_IFMT == unix.S_IFLNK:
		target, err := d.Readlink(base)
		if err == nil && target != n.Target {
			err = differs(shown, "target", fmt.Sprintf("%q", target), fmt.Sprintf("%q", n.Target))
		}
		return err
	case st.Size != n.Size && n.Mode&unix.S_IFMT == unix.S_IFREG:
		return differs(shown, "size", st.Size, n.Size)
	case n.Payload != "":
		return v.content(d, base, shown, sum, n)
	}
	return nil
}

// attributes compares the attributes common to all types of files.
func (v *checkoutVerifier) attributes(d *atfs.Dir, base, shown string, st unix.Stat_t, n *composefs.Inode) error {
	switch {
	case st.Mode != n.Mode:
		return differs(shown, "mode", fmt.Sprintf("%#o", st.Mode), fmt.Sprintf("%#o", n.Mode))
	case st.Uid != n.UID || st.Gid != n.GID:
		return differs(shown, "owner", fmt.Sprintf("%d:%d", st.Uid, st.Gid), fmt.Sprintf("%d:%d", n.UID, n.GID))
	case st.Mtim != n.Mtime:
		return differs(shown, "modification time", st.Mtim, n.Mtime)
	case isDevice(n.Mode) && st.Rdev != n.Rdev:
		return differs(shown, "device number", st.Rdev, n.Rdev)
	}
	got, err := d.Xattrs(base)
	if err != nil {
		return err
	}
	delete(got, atfs.XattrSELinux) // the host's, whatever the layer has
	for _, x := range n.Xattrs {
		if value, ok := got[x.Name]; !ok || !bytes.Equal(value, x.Value) {
			return differs(shown, "extended attribute "+x.Name, fmt.Sprintf("%q", value), fmt.Sprintf("%q", x.Value))
		}
		delete(got, x.Name)
	}
	for name := range got {
		return fmt.Errorf("%s: layer has no extended attribute %s: %w", shown, name, objectstore.ErrCorrupt)
	}
	return nil
}

func isDevice(mode uint32) bool {
	return slices.Contains([]uint32{unix.S_IFCHR, unix.S_IFBLK}, mode&unix.S_IFMT)
}

// content compares a file that has its own inode with the object it is a copy of.
func (v *checkoutVerifier) content(d *atfs.Dir, base, shown string, sum objectstore.Checksum, n *composefs.Inode) (err error) {
	meta := FileMeta(n)
	h, err := objectstore.NewContentHash(&meta)
	if err != nil {
		return err
	}
	f, err := d.Open(base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := objectstore.Checksum(h.Sum(nil)); got != sum {
		return fmt.Errorf("%s: content is not that of object %s: %w", shown, sum, objectstore.ErrCorrupt)
	}
	return nil
}

// WriteTar writes the tar that a layer was made from, byte for byte, from its recipe and its objects. It takes little
// memory. A layer without a recipe is ErrNoTar; damage is an ErrCorrupt or an ErrNotExist.
func (s *Store) WriteTar(ctx context.Context, id objectstore.Checksum, w io.Writer) error {
	l, err := s.Layer(ctx, id)
	if err == nil {
		err = s.writeTar(ctx, l, w)
	}
	if err != nil {
		return fmt.Errorf("write tar of layer %s: %w", id, err)
	}
	return nil
}

func (s *Store) writeTar(ctx context.Context, l *Layer, w io.Writer) (err error) {
	if l.Recipe.IsZero() {
		return ErrNoTar
	}
	objects, err := s.Objects(ctx, l.ID)
	if err != nil {
		return err
	}
	f, err := s.repo.OpenFile(l.Recipe)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	err = recipe.Cook(f, st.Size, w, func(index int, size int64, w io.Writer) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if index >= len(objects) {
			return recipe.ErrMalformed
		}
		return s.copyObject(w, objects[index], size)
	})
	if errors.Is(err, recipe.ErrMalformed) {
		err = fmt.Errorf("%w: %w", err, objectstore.ErrCorrupt)
	}
	return err
}

// copyObject writes the content of an object, which must have size bytes.
func (s *Store) copyObject(w io.Writer, sum objectstore.Checksum, size int64) (err error) {
	f, err := s.repo.OpenFile(sum)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(w, f)
	if err == nil && n != size {
		err = fmt.Errorf("size is %d, not %d: %w", n, size, objectstore.ErrCorrupt)
		err = &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: sum, Err: err}
	}
	return err
}

// Prove writes a layer's tar again and compares its digest with the layer's diff ID: it proves recipe and objects to be
// those of the pulled tar, down to the last byte. Errors are those of WriteTar, and ErrCorrupt for another digest.
func (s *Store) Prove(ctx context.Context, id objectstore.Checksum) error {
	l, err := s.Layer(ctx, id)
	if err != nil {
		return err
	}
	h := digest.SHA256.Digester()
	if err := s.WriteTar(ctx, id, h.Hash()); err != nil {
		return err
	}
	if got := h.Digest(); got != l.DiffID {
		return fmt.Errorf("layer %s: tar has digest %s, not %s: %w", id, got, l.DiffID, objectstore.ErrCorrupt)
	}
	return nil
}
