package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/layout"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
)

// layoutPrefix begins the name of an image in an OCI layout.
const layoutPrefix = "oci:"

// unencapsulateFlags are the flags of "image unencapsulate".
type unencapsulateFlags struct {
	daemonFlags
	imageFlags
	repo     string
	ref      string
	platform string
}

// unencapsulateReport is the output of "image unencapsulate --json".
type unencapsulateReport struct {
	Commit      objectstore.Checksum `json:"commit"`
	Ref         string               `json:"ref,omitempty"`
	LayersAbove int                  `json:"layers_above"` // that are no part of the commit
}

func (c *cli) imageUnencapsulateCommand() *cobra.Command {
	var f unencapsulateFlags
	cmd := &cobra.Command{
		Use:   "unencapsulate IMAGE",
		Short: "Take the ostree commit out of an image",
		Long: `Write the ostree commit inside an ostree-native image into an ostree repository, bit by bit and with the signatures that came
with it. What layers above the commit have added is left out.

IMAGE is the name in "ctr images ls" of an image that was pulled with this snapshotter, whose blobs are not needed; or
oci:DIR[:TAG], an OCI layout, which is unpacked in the repository's directory tmp first. Without --ref nothing keeps the commit:
the repository's next prune removes it.` +
			exitHelp(exitNoRepo, exitLocked, exitCorrupt, exitNoImage, exitInterrupted),
		Args:              oneArg("IMAGE"),
		ValidArgsFunction: c.completeImage(&f.imageFlags),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.imageUnencapsulate(cmd.Context(), &f, args[0])
		},
	}
	c.jsonFlag(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.repo, "repo", systemRepo, "ostree `REPO` to write to, of mode bare")
	fl.StringVar(&f.ref, "ref", "", "`REF` that is to name the commit")
	fl.StringVar(&f.platform, "platform", platforms.Format(platforms.DefaultSpec()), "`PLATFORM` of the image, if a layout has it for several")
	f.addDaemon(cmd)
	f.addImage(cmd)
	return cmd
}

func (c *cli) imageUnencapsulate(ctx context.Context, f *unencapsulateFlags, image string) (err error) {
	if f.ref != "" {
		if err := objectstore.ValidateRef(f.ref); err != nil {
			return withStatus(exitUsage, fmt.Errorf("--ref: %w", err))
		}
	}
	repo, err := openRepo(f.repo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	if name, ok := strings.CutPrefix(image, layoutPrefix); ok {
		return c.unencapsulateLayout(ctx, f, repo, name)
	}
	return c.viewImage(ctx, &f.daemonFlags, &f.imageFlags, image, func(s *store, img *deploy.Image) error {
		place, err := placeOf(image, img.Config)
		if err != nil {
			return err
		}
		return c.takeOut(ctx, f, repo, s.Layers, img.Layers, place)
	})
}

// placeOf returns where an image has its commit.
func placeOf(image string, config []byte) (*native.Place, error) {
	place, err := native.Find(config)
	if err == nil && place == nil {
		err = errors.New("it has no ostree commit inside")
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", image, err)
	}
	return place, nil
}

// takeOut writes the commit at a place in layers into a repository.
func (c *cli) takeOut(
	ctx context.Context, f *unencapsulateFlags, repo *objectstore.Repo, layers *layer.Store, ids []objectstore.Checksum, place *native.Place,
) (err error) {
	base, err := native.Read(ctx, layers, ids, place)
	if err != nil {
		return err
	}
	lock, err := repo.Lock(ctx, objectstore.LockShared) // until the commit has no mark, no prune removes it
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	txn, err := repo.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	bar := c.newProgress("writing objects")
	_, err = base.Store(ctx, txn, layers.Repo(), bar.stored)
	bar.stop()
	if err != nil {
		return fmt.Errorf("write commit %s: %w", base.Sum, err)
	}
	if f.ref != "" {
		txn.SetRef(f.ref, base.Sum)
	}
	if err := txn.Commit(ctx, objectstore.CommitOptions{Sync: true}); err != nil {
		return err
	}
	if err := repo.SetComplete(base.Sum); err != nil {
		return err
	}
	return c.printTakenOut(unencapsulateReport{base.Sum, f.ref, len(ids) - len(place.DiffIDs)})
}

func (c *cli) printTakenOut(r unencapsulateReport) error {
	if c.json {
		return c.writeJSON(r)
	}
	rows := []string{"commit\t" + r.Commit.String()}
	if r.Ref != "" {
		rows = append(rows, "ref\t"+r.Ref)
	}
	if r.LayersAbove > 0 {
		rows = append(rows, fmt.Sprintf("layers above\t%d, left out", r.LayersAbove))
	}
	return c.table(rows...)
}

// unencapsulateLayout unpacks the layers with the commit of an image, and takes it out of them.
func (c *cli) unencapsulateLayout(ctx context.Context, f *unencapsulateFlags, repo *objectstore.Repo, name string) (err error) {
	platform, err := platforms.Parse(f.platform)
	if err != nil {
		return withStatus(exitUsage, fmt.Errorf("--platform: %w", err))
	}
	l, err := layout.Open(ctx, name)
	if err != nil {
		return err
	}
	m, err := containerd.FindManifest(ctx, l, platform, l.Manifests...)
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	place, err := placeOf(name, m.ConfigJSON)
	if err != nil {
		return err
	}
	if len(m.Layers) != len(m.DiffIDs) {
		return fmt.Errorf("image %s: its manifest has %d layers, its configuration %d", name, len(m.Layers), len(m.DiffIDs))
	}
	s, err := newScratch(repo)
	if err != nil {
		return fmt.Errorf("make room to unpack image %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, s.close()) }()
	ids := make([]objectstore.Checksum, len(m.Layers))
	for i := range place.DiffIDs {
		if ids[i], err = s.unpack(ctx, l, m, i); err != nil {
			return fmt.Errorf("image %s: layer %d: %w", name, i, err)
		}
	}
	return c.takeOut(ctx, f, repo, s.layers, ids, place)
}

// A scratch is a store of layers inside a repository's directory for temporary files, so that both can share files. Without
// close it remains until the repository is pruned.
type scratch struct {
	of     *atfs.Dir
	name   string
	dir    *atfs.Dir
	repo   *objectstore.Repo
	layers *layer.Store
	held   []*layer.Held
}

func newScratch(of *objectstore.Repo) (_ *scratch, err error) {
	s := &scratch{of: of.Dir(), name: "tmp/unencapsulate-" + rand.Text()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := s.of.Mkdir(s.name, 0o700); err != nil {
		return nil, err
	}
	if s.dir, err = s.of.OpenDir(s.name); err != nil {
		return nil, err
	}
	if err := s.dir.Mkdir("repo", 0o700); err != nil {
		return nil, err
	}
	dir, err := s.dir.OpenDir("repo")
	if err != nil {
		return nil, err
	}
	s.repo, err = objectstore.Create(dir, objectstore.ModeBare)
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	s.layers, err = layer.Open(s.dir, s.repo, layer.Options{})
	return s, err
}

// unpack imports a layer of an image.
func (s *scratch) unpack(ctx context.Context, from content.Provider, m *containerd.Manifest, i int) (objectstore.Checksum, error) {
	held, err := blob.Import(containerd.Silent(ctx), s.layers, from, m.Layers[i], nil)
	if err != nil {
		return objectstore.Checksum{}, err
	}
	s.held = append(s.held, held)
	return held.ID, nil
}

func (s *scratch) close() error {
	var errs []error
	for _, h := range s.held {
		errs = append(errs, h.Release())
	}
	if s.layers != nil {
		errs = append(errs, s.layers.Close())
	}
	if s.repo != nil {
		errs = append(errs, s.repo.Close())
	}
	if s.dir != nil {
		errs = append(errs, s.dir.Close())
	}
	return errors.Join(append(errs, s.of.RemoveAll(s.name))...)
}
