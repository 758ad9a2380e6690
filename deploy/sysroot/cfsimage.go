package sysroot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/prepareroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// A cfsPlan tells where the composefs image of a new deployment comes from, which ostree-prepare-root mounts as the root.
// The zero cfsPlan is none.
type cfsPlan struct {
	from   *Deployment           // whose image is linked; nil: none
	write  bool                  // it is made from the tree
	verity bool                  // the boot demands fs-verity of the image and of the files in it
	digest *objectstore.Checksum // that it must have then; nil: any
}

// planCfs decides on the image of a deployment. A tree that would not boot for lack of fs-verity or of a signature is an
// ErrUnsupported.
func (s *Sysroot) planCfs(st *State, p *Plan, r *Request) (c cfsPlan, err error) {
	config, err := p.tree.bootConfig(p.New.Kargs)
	if err != nil {
		return c, err
	}
	if config.Verity {
		c.write, c.verity = true, true
		c.digest, err = s.planVerity(p.tree, r, config)
		return c, err
	}
	if c.from, err = s.cfsSource(st, r); c.from != nil || err != nil {
		return c, err
	}
	c.write = s.config.composefs || config.Composefs == prepareroot.Maybe || config.Composefs == prepareroot.Yes
	return c, nil
}

// NeedsVerity reports whether the new deployment boots only from a file system with fs-verity.
func (p *Plan) NeedsVerity() bool { return p.cfs.verity }

// bootConfig returns the configuration by which a deployment of the tree boots with these kernel arguments.
func (t *osTree) bootConfig(args kargs.List) (*prepareroot.Config, error) {
	config, err := t.prepareRoot()
	if err != nil {
		return nil, err
	}
	value, ok := args.Value(prepareroot.Argument)
	if !ok {
		return config, nil
	}
	if config, err = config.Override(value); err != nil {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return config, err
}

// planVerity checks what a boot that demands fs-verity needs, and returns the digest that the commit states for its
// image, or nil.
func (s *Sysroot) planVerity(t *osTree, r *Request, config *prepareroot.Config) (*objectstore.Checksum, error) {
	c := t.commit
	if config.Signed {
		var err error
		if c, err = t.signedCommit(r.Commit); err != nil {
			return nil, err
		}
	}
	digest, err := cfsDigest(c)
	if err != nil {
		return nil, err
	}
	if config.Signed && digest == nil {
		return nil, fmt.Errorf("%w: the tree demands a signed composefs image as its root, and the commit has no %s", ErrUnsupported, cfs.DigestKey)
	}
	if r.Rehearsal {
		return digest, nil
	}
	has, err := s.repo.HasVerity()
	if err == nil && !has {
		err = fmt.Errorf("%w: the tree demands fs-verity of its root, and %s, or the kernel, does not have it; ext4 has it after \"tune2fs -O verity\"",
			ErrUnsupported, s.dir.Path())
	}
	return digest, err
}

// signatureKey is the key of the signatures that ostree-prepare-root verifies in the detached metadata of a commit.
const signatureKey = "ostree.sign.ed25519"

// signedCommit returns the commit whose signature ostree-prepare-root verifies: this one, or its parent if it is that of
// a container image and has no signatures. The signature itself is verified at boot, by a key in the initramfs.
func (t *osTree) signedCommit(sum objectstore.Checksum) (*objectstore.Commit, error) {
	signed, err := t.isSigned(sum)
	if err != nil || signed {
		return t.commit, err
	}
	if _, ok := t.commit.Lookup(prepareroot.ImageConfig); ok && t.commit.Parent != nil {
		if signed, err = t.isSigned(*t.commit.Parent); err != nil {
			return nil, err
		}
		if signed {
			return t.signedParent(*t.commit.Parent)
		}
	}
	return nil, fmt.Errorf("%w: the tree demands a signed composefs image as its root, and the commit has no signature", ErrUnsupported)
}

// signedParent returns a parent whose signature, and with it the digest of its image, is for the same tree.
func (t *osTree) signedParent(sum objectstore.Checksum) (*objectstore.Commit, error) {
	c, err := t.repo.Commit(sum)
	if err == nil && (c.Tree != t.commit.Tree || c.Meta != t.commit.Meta) {
		err = fmt.Errorf("%w: the tree demands a signed composefs image as its root, and the signature is for the commit without the layers above it",
			ErrUnsupported)
	}
	return c, err
}

func (t *osTree) isSigned(sum objectstore.Checksum) (bool, error) {
	data, err := t.repo.ReadMetadata(objectstore.TypeCommitMeta, sum)
	if errors.Is(err, objectstore.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	entries, err := gvariant.ParseDict(data)
	if err != nil {
		return false, fmt.Errorf("signatures of %s: %w: %w", sum, err, ErrInvalid)
	}
	v := lookup(entries, signatureKey)
	return v.Type == "aay" && len(v.Data) > 0, nil
}

// cfsDigest returns the digest that a commit states for its image, or nil.
func cfsDigest(c *objectstore.Commit) (*objectstore.Checksum, error) {
	v, ok := c.Lookup(cfs.DigestKey)
	if !ok {
		return nil, nil
	}
	data, ok := v.Bytes()
	if !ok || len(data) != len(objectstore.Checksum{}) {
		return nil, fmt.Errorf("%s of the commit is no digest: %w", cfs.DigestKey, ErrInvalid)
	}
	digest := objectstore.Checksum(data)
	return &digest, nil
}

// cfsSource returns the deployment whose composefs image a new one gets: one of the same commit, whose image is that of
// the same tree. It returns nil if there is none.
func (s *Sysroot) cfsSource(st *State, r *Request) (*Deployment, error) {
	list := st.All()
	if r.Merge != nil { // first: the new one may be meant to differ from it in little
		list = append([]*Deployment{r.Merge}, list...)
	}
	for _, d := range list {
		if d.Commit != r.Commit {
			continue
		}
		if has, err := s.hasCfs(d); has || err != nil {
			return d, err
		}
	}
	return nil, nil
}

func (s *Sysroot) hasCfs(d *Deployment) (bool, error) {
	st, err := s.statCfs(d)
	return st != nil, err
}

// statCfs returns the attributes of a deployment's image, or nil if it has none.
func (s *Sysroot) statCfs(d *Deployment) (*unix.Stat_t, error) {
	name := path.Join(d.Path(), cfs.Name)
	switch st, err := s.dir.Lstat(name); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s is not a regular file: %w", name, ErrInvalid)
	default:
		return &st, nil
	}
}

// noteLostCfs notes that a new deployment has no composefs image, although the one that it takes over from has.
func (s *Sysroot) noteLostCfs(p *Plan) error {
	if p.cfs.from != nil || p.cfs.write || p.merge == nil {
		return nil
	}
	lost, err := s.hasCfs(p.merge)
	if lost {
		p.Notes = append(p.Notes, fmt.Sprintf(
			"%s boots from a composefs image. The new deployment gets none and boots from its files.", p.merge.short()))
	}
	return err
}

// giveCfs gives a new deployment, whose root is given, its composefs image. As a link it keeps fs-verity.
func (s *Sysroot) giveCfs(ctx context.Context, p *Plan, root *atfs.Dir) error {
	switch {
	case p.cfs.from != nil:
		return s.dir.Link(path.Join(p.cfs.from.Path(), cfs.Name), root, cfs.Name)
	case !p.cfs.write:
		return nil
	}
	digests := cfs.KnownDigests
	if p.cfs.verity {
		digests = cfs.VerityDigests
	}
	image, err := cfs.Marshal(ctx, s.repo, p.tree.commit.Root(), digests)
	if err != nil {
		return err
	}
	if p.cfs.digest != nil {
		if err := checkDigest(image, *p.cfs.digest); err != nil {
			return err
		}
	}
	return s.writeCfs(image, root, p.cfs.verity)
}

// checkDigest refuses an image that ostree-prepare-root would refuse.
func checkDigest(image []byte, want objectstore.Checksum) error {
	got, err := composefs.VerityDigest(bytes.NewReader(image))
	if err == nil && got != want {
		err = fmt.Errorf("the composefs image has the digest %s, the commit states %s: %w", objectstore.Checksum(got), want, ErrInvalid)
	}
	return err
}

// writeCfs writes an image. It has its name only when it is complete, with fs-verity if that is demanded or if the
// repository's files have it.
func (s *Sysroot) writeCfs(image []byte, root *atfs.Dir, verity bool) (err error) {
	f, err := root.TmpFile(0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(image); err != nil {
		return err
	}
	if err := f.Chmod(fileMode); err != nil {
		return err
	}
	if verity {
		err = f.EnableVerity()
	} else {
		err = s.repo.GiveVerity(f)
	}
	if err != nil {
		return err
	}
	return f.LinkTo(root, cfs.Name)
}
