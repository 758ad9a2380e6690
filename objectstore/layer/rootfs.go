package layer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

const (
	rootfsImage  = "image"
	rootfsDigest = "digest"
)

// RootfsName returns the name below the root of the directory for the rootfs image of a chain, lowest layer first. It
// depends only on the chain and on whether the image has digests of its files.
func (s *Store) RootfsName(chain []objectstore.Checksum) string {
	var key objectstore.Checksum
	if s.repo.Verity() {
		key = sha256.Sum256([]byte("fs-verity"))
	}
	for _, id := range chain {
		key = sha256.Sum256(append(key[:], id[:]...))
	}
	return path.Join(RootfsDir, key.String())
}

// RootfsTree returns the tree that a chain of layers, lowest first, shows together. Its regular files name their
// objects below the repository's objects/. If [objectstore.Repo.Verity] reports that these have fs-verity, the files
// have their digests too.
//
// Errors are those of [Store.Flatten].
func (s *Store) RootfsTree(ctx context.Context, chain []objectstore.Checksum) (*composefs.Inode, error) {
	return s.rootfsTree(ctx, chain, s.verityDigest)
}

// rootfsTree is RootfsTree with a function that returns the digest of an object.
func (s *Store) rootfsTree(ctx context.Context, chain []objectstore.Checksum, digestOf digestFunc) (*composefs.Inode, error) {
	root, err := s.Flatten(ctx, chain)
	if err == nil && s.repo.Verity() {
		err = s.addDigests(ctx, root, digestOf)
	}
	return root, err
}

// MarshalRootfs returns the composefs image of [Store.RootfsTree], as mkcomposefs makes it of the same tree, and its
// fs-verity digest.
func (s *Store) MarshalRootfs(ctx context.Context, chain []objectstore.Checksum) (image []byte, digest objectstore.Checksum, err error) {
	return s.marshalRootfs(ctx, chain, s.verityDigest)
}

func (s *Store) marshalRootfs(
	ctx context.Context, chain []objectstore.Checksum, digestOf digestFunc,
) (image []byte, digest objectstore.Checksum, err error) {
	root, err := s.rootfsTree(ctx, chain, digestOf)
	if err != nil {
		return nil, digest, err
	}
	if image, err = marshalImage(root, "rootfs image"); err != nil {
		return nil, digest, err
	}
	digest, err = composefs.VerityDigest(bytes.NewReader(image))
	return image, digest, err
}

// A digestFunc returns the fs-verity digest of an object. Several goroutines may call it at once.
type digestFunc func(objectstore.Checksum) (objectstore.Checksum, error)

// addDigests gives each regular file of a tree the digest of its object.
func (s *Store) addDigests(ctx context.Context, root *composefs.Inode, digestOf digestFunc) error {
	files := make(map[string][]*composefs.Inode) // by payload
	err := eachFile(root, "", func(_ string, n *composefs.Inode) error {
		if n.Payload != "" {
			files[n.Payload] = append(files[n.Payload], n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	group, groupCtx := panics.WithContext(ctx)
	group.SetLimit(s.opts.Workers)
	for payload, inodes := range files {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			sum, err := PayloadSum(payload)
			if err != nil {
				return err
			}
			digest, err := digestOf(sum)
			if err != nil {
				return err
			}
			for _, n := range inodes {
				n.Verity = digest[:]
			}
			return nil
		})
	}
	return errors.Join(group.Wait(), ctx.Err())
}

// verityDigest returns the fs-verity digest of an object, whether or not fs-verity is enabled for it.
func (s *Store) verityDigest(sum objectstore.Checksum) (objectstore.Checksum, error) {
	digest, ok, err := s.repo.MeasureVerity(sum)
	if err != nil || ok {
		return digest, err
	}
	f, err := s.repo.OpenFile(sum)
	if err != nil {
		return digest, err
	}
	digest, err = composefs.VerityDigest(f)
	return digest, errors.Join(err, f.Close())
}

// enabledDigest returns the fs-verity digest of an object, or an error if fs-verity is not enabled for it.
func (s *Store) enabledDigest(sum objectstore.Checksum) (objectstore.Checksum, error) {
	digest, ok, err := s.repo.MeasureVerity(sum)
	if err == nil && !ok {
		err = fmt.Errorf("%w: it does not have fs-verity", objectstore.ErrCorrupt)
		err = &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: sum, Err: err}
	}
	return digest, err
}

// OpenRootfs opens the rootfs image of a chain of layers, lowest first, for reading. It makes the image if needed, and
// reports what that added to the store. Concurrent calls make it once. The caller, or something else that is live, must
// hold the layers.
//
// The image matches the digest in the file beside it: an image damaged by a power failure or the disk is rebuilt, like
// a missing one. It is not synced if there is a journal: Recover removes images that a power failure has damaged. If it
// is to have the digests of its files, it and all of them have fs-verity.
func (s *Store) OpenRootfs(ctx context.Context, chain []objectstore.Checksum) (_ *atfs.File, added Usage, err error) {
	name := s.RootfsName(chain)
	f, err := s.openRootfs(name)
	if err != nil || f != nil {
		return f, Usage{}, err
	}
	added, err = s.checkoutOnce(ctx, name, func() (Usage, error) {
		// Another call may have ended since the check above.
		if f, err := s.openRootfs(name); err != nil || f != nil {
			return Usage{}, errors.Join(err, closeFile(f))
		}
		return s.makeRootfs(ctx, name, chain)
	})
	if err == nil {
		f, err = s.openRootfs(name)
	}
	if err == nil && f == nil {
		err = fmt.Errorf("%s: %w", name, fs.ErrNotExist) // removed meanwhile
	}
	if err != nil {
		return nil, Usage{}, fmt.Errorf("make rootfs image: %w", err)
	}
	return f, added, nil
}

func closeFile(f *atfs.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// openRootfs opens a rootfs image if it exists and matches the digest beside it; otherwise it returns nil.
func (s *Store) openRootfs(name string) (_ *atfs.File, err error) {
	want, err := s.rootfsDigest(name)
	if err != nil || want.IsZero() {
		return nil, err
	}
	f, got, err := s.measureRootfs(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EIO) { // or unreadable, like a file that fs-verity finds damaged
		return nil, nil
	}
	if err != nil || got == want {
		return f, err
	}
	return nil, f.Close()
}

// measureRootfs opens a rootfs image and computes its fs-verity digest.
func (s *Store) measureRootfs(name string) (_ *atfs.File, digest objectstore.Checksum, err error) {
	f, err := s.root.Open(path.Join(name, rootfsImage))
	if err != nil {
		return nil, digest, err
	}
	st, err := f.Stat()
	if err == nil {
		digest, err = composefs.VerityDigest(io.NewSectionReader(f, 0, st.Size))
	}
	if err != nil {
		return nil, digest, errors.Join(err, f.Close())
	}
	return f, digest, nil
}

// rootfsDigest returns the expected fs-verity digest of the rootfs image in the directory name; zero if there is no
// such image, or if the digest is lost.
func (s *Store) rootfsDigest(name string) (sum objectstore.Checksum, err error) {
	b, err := s.root.ReadFile(path.Join(name, rootfsDigest), 128)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EFBIG) {
		return sum, nil
	}
	if err != nil {
		return sum, err
	}
	if sum, err = objectstore.ParseChecksum(strings.TrimSuffix(string(b), "\n")); err != nil {
		return objectstore.Checksum{}, nil //nolint:nilerr // it is lost
	}
	return sum, nil
}

// makeRootfs makes a rootfs image. It replaces a damaged one: existing mounts keep the old file.
func (s *Store) makeRootfs(ctx context.Context, name string, chain []objectstore.Checksum) (_ Usage, err error) {
	image, digest, err := s.marshalRootfs(ctx, chain, s.repo.EnableVerity)
	if err != nil {
		return Usage{}, err
	}
	// While a power failure may take the image, the journal has an entry, and then Recover looks at all images.
	entry, err := s.journal.hold(chain[len(chain)-1])
	if err != nil {
		return Usage{}, err
	}
	defer s.journal.end(entry)
	tmp := checkoutTmpPrefix + rand.Text()
	if err := s.tmp.Mkdir(tmp, 0o700); err != nil {
		return Usage{}, err
	}
	defer func() { err = errors.Join(err, s.tmp.RemoveAll(tmp)) }()
	if err := s.writeImage(path.Join(tmp, rootfsImage), image); err != nil {
		return Usage{}, err
	}
	if err := s.tmp.WriteFile(path.Join(tmp, rootfsDigest), []byte(digest.String()+"\n"), 0o600, !s.journal.on); err != nil {
		return Usage{}, err
	}
	var added Usage
	err = s.tmp.Walk(tmp, func(st *unix.Stat_t) error {
		added.Bytes += atfs.Allocated(st)
		added.Inodes++
		return nil
	})
	if err != nil {
		return Usage{}, err
	}
	if err := s.root.MkdirAll(RootfsDir, dirMode); err != nil {
		return Usage{}, err
	}
	err = s.tmp.Rename(tmp, s.root, name, unix.RENAME_NOREPLACE)
	if !errors.Is(err, fs.ErrExist) {
		return added, err
	}
	for _, file := range []string{rootfsDigest, rootfsImage} {
		if err := s.tmp.Rename(path.Join(tmp, file), s.root, path.Join(name, file), 0); err != nil {
			return Usage{}, err
		}
	}
	return added, nil
}

// writeImage writes a rootfs image below tmp/.
func (s *Store) writeImage(name string, image []byte) error {
	err := s.tmp.WriteFile(name, image, 0o600, !s.journal.on)
	if err != nil || !s.repo.Verity() {
		return err
	}
	f, err := s.tmp.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.EnableVerity(), f.Close())
}

// RemakeRootfs rebuilds the rootfs image of a chain, lowest layer first, whether or not it exists.
func (s *Store) RemakeRootfs(ctx context.Context, chain []objectstore.Checksum) error {
	name := s.RootfsName(chain)
	_, err := s.checkoutOnce(ctx, name, func() (Usage, error) { return s.makeRootfs(ctx, name, chain) })
	return err
}

// RootfsNames returns the names of the directories with rootfs images.
func (s *Store) RootfsNames() ([]string, error) {
	dir, err := s.root.OpenDir(RootfsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := dir.ReadNames()
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	for i, name := range names {
		names[i] = path.Join(RootfsDir, name)
	}
	return names, nil
}

// DiscardRootfs moves the rootfs image in the directory name away, and returns a function that removes it. After a
// crash before that, SweepTmp or a prune removes it.
func (s *Store) DiscardRootfs(name string) (remove func() error, err error) {
	tmp, err := s.discard(s.root, name)
	if err != nil {
		return nil, fmt.Errorf("remove rootfs image: %w", err)
	}
	return func() error { return s.tmp.RemoveAll(tmp) }, nil
}

// discardDamagedRootfses moves away the rootfs images that do not match their digests, and returns functions that remove
// them.
func (s *Store) discardDamagedRootfses(ctx context.Context) (removals []func() error, err error) {
	names, err := s.RootfsNames()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f, err := s.openRootfs(name)
		if err = errors.Join(err, closeFile(f)); err != nil {
			return nil, err
		}
		if f != nil {
			continue
		}
		remove, err := s.DiscardRootfs(name)
		if err != nil {
			return nil, err
		}
		removals = append(removals, remove)
	}
	return removals, nil
}

// VerifyRootfs compares the rootfs image of a chain, lowest layer first, with the tree that its layers show together.
// The error is an ErrCorrupt if the image is damaged, or if a file's object lacks the fs-verity it must have, and
// fs.ErrNotExist if the image is absent.
func (s *Store) VerifyRootfs(ctx context.Context, chain []objectstore.Checksum) error {
	name := s.RootfsName(chain)
	f, got, err := s.measureRootfs(name)
	if errors.Is(err, unix.EIO) {
		err = fmt.Errorf("%w: %w", objectstore.ErrCorrupt, err)
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	_, want, err := s.marshalRootfs(ctx, chain, s.enabledDigest)
	if err != nil {
		return err
	}
	if got != want {
		return differs(name, "fs-verity digest", got, want)
	}
	return nil
}
