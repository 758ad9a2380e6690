package deploy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// An Image is an image whose layers are in a store.
type Image struct {
	Name           string        // under which a registry has it
	ManifestDigest digest.Digest // of Manifest
	Target         digest.Digest // that the name stands for: ManifestDigest, an index that names it, or "" if unknown
	Manifest       []byte        // JSON, byte for byte
	Config         []byte        // JSON, byte for byte
	Version        string        // "" if the image has none
	Created        time.Time     // zero if unknown
	Layers         []objectstore.Checksum
}

// maxVersion is the length of the longest version that an image can have: boot menus show it.
const maxVersion = 128

// Check returns an oscommit.ErrInvalid for an image without layers, and for a version that would spoil a boot menu.
func (i *Image) Check() error {
	if v := i.Version; len(v) > maxVersion || strings.ContainsFunc(v, unicode.IsControl) {
		return as(oscommit.ErrInvalid, fmt.Errorf("its version %.*q is too long or has control characters", maxVersion, v))
	}
	if len(i.Layers) == 0 {
		return as(oscommit.ErrInvalid, errors.New("it has no layers"))
	}
	return nil
}

// A Source turns an image into the operating system that its commit will hold. [Flatten] is the source for images that
// consist of layers alone. Another source can handle images that carry the objects of an ostree commit, or label files
// by the image's policy: it decides by Manifest and Config, and returns an OS of its own.
type Source interface {
	// OS reads the layers of the image, and writes nothing. An image that cannot become a commit is an
	// oscommit.ErrInvalid. The caller holds the shared lock of the layers' repository, also while it uses the OS.
	OS(ctx context.Context, img *Image) (OS, error)
}

// An OS is the operating system of an image, before and while its commit is made.
type OS interface {
	// Missing lists what the OS lacks to boot; nothing if it can.
	Missing() []string
	// Dropped lists files of the image that the commit will not have, by path.
	Dropped() []oscommit.Dropped
	// Kernel returns the version of the kernel, the name of its directory below usr/lib/modules.
	Kernel() string
	// FileSize returns the size of a regular file. It follows no symbolic links.
	FileSize(name string) (size int64, ok bool)
	// ReadDir and ReadFile read the OS as [oscommit.Tree.ReadDir] and [oscommit.Tree.ReadFile] do; repo is that of the
	// image's layers.
	ReadDir(name string) []string
	ReadFile(repo *objectstore.Repo, name string, limit int64) ([]byte, error)
	// Allocated estimates the size of a deployment on an empty file system with the given block size. With copies it has
	// copies of everything outside of /usr.
	Allocated(block int64, copies bool) int64
	// Need returns what Store would transfer from one repository to another, and changes neither.
	Need(to, from *objectstore.Repo) (oscommit.Need, error)
	// Store writes the commit, as [oscommit.Tree.Store] does. Progress may be nil.
	Store(ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, progress func(oscommit.Progress)) (oscommit.Stored, error)
}

// Labelled returns the Source that merges the layers of an image, as Flatten does, and gives files the SELinux labels of
// the policy inside the image, as ostree commit --selinux-policy does. An image without a policy, or whose configuration
// disables it, gets no labels. A policy that cannot be used is a selinux.ErrInvalid.
func Labelled(layers *layer.Store, epoch oscommit.Epoch) Source {
	return labelled{flatten{layers}, epoch}
}

type labelled struct {
	flatten
	epoch oscommit.Epoch
}

func (l labelled) OS(ctx context.Context, img *Image) (OS, error) {
	tree, err := flatTree(ctx, l.layers, img)
	if err != nil {
		return nil, err
	}
	if err := label(l.layers, tree, l.epoch); err != nil {
		return nil, err
	}
	return &flatOS{tree, img}, nil
}

// Flatten returns the Source that merges the layers of an image. Files keep their owners, modes and extended
// attributes, and get no SELinux labels. The commit is a function of the image alone: it is the same on every host.
func Flatten(layers *layer.Store) Source { return flatten{layers} }

type flatten struct{ layers *layer.Store }

func (f flatten) OS(ctx context.Context, img *Image) (OS, error) {
	tree, err := flatTree(ctx, f.layers, img)
	if err != nil {
		return nil, err
	}
	return &flatOS{tree, img}, nil
}

// flatTree returns the tree of an OS commit, made by flattening an image.
func flatTree(ctx context.Context, layers *layer.Store, img *Image) (*oscommit.Tree, error) {
	root, err := layers.Flatten(ctx, img.Layers)
	if err != nil {
		return nil, err
	}
	return oscommit.NewTree(root)
}

// A flatOS is an OS made by flattening.
type flatOS struct {
	*oscommit.Tree
	img *Image
}

func (f *flatOS) Dropped() []oscommit.Dropped { return f.Tree.Dropped }

func (f *flatOS) Store(
	ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, progress func(oscommit.Progress),
) (oscommit.Stored, error) {
	return f.store(ctx, txn, from, progress, nil)
}

// store writes the commit with a parent, nil for none.
func (f *flatOS) store(
	ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, progress func(oscommit.Progress), parent *objectstore.Checksum,
) (oscommit.Stored, error) {
	f.Progress = progress
	return f.Tree.Store(ctx, txn, from, oscommit.Image{
		ManifestDigest: f.img.ManifestDigest.String(),
		Manifest:       string(f.img.Manifest),
		Config:         string(f.img.Config),
		Version:        f.img.Version,
		Created:        f.img.Created,
		Parent:         parent,
	})
}

// checkArch returns an ErrArchitecture for an image that says that it is for another architecture than this machine's.
// Containers can run some of these images, such as those for 386 on amd64.
func (i *Image) checkArch() error {
	var config struct{ Architecture string }
	if err := json.Unmarshal(i.Config, &config); err != nil {
		return as(oscommit.ErrInvalid, fmt.Errorf("read its config: %w", err))
	}
	if a := config.Architecture; a != "" && !kargs.IsFor([]string{a}, runtime.GOARCH) {
		return as(ErrArchitecture, fmt.Errorf("it is for %.40q, and this machine is %s", a, runtime.GOARCH))
	}
	return nil
}

// bootableOS returns the OS of an image if it can be booted, else an ErrNotBootable, ErrArchitecture or
// oscommit.ErrInvalid.
func bootableOS(ctx context.Context, src Source, img *Image) (OS, error) {
	if err := cmp.Or(img.Check(), img.checkArch()); err != nil {
		return nil, err
	}
	found, err := src.OS(ctx, img)
	if err != nil {
		return nil, err
	}
	if missing := found.Missing(); len(missing) > 0 {
		return nil, as(ErrNotBootable, fmt.Errorf("not bootable, missing: %s", strings.Join(missing, "; ")))
	}
	return found, nil
}
