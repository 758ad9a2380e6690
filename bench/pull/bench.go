// Package pull compares the costs of images with different snapshotters of containerd: the time to unpack, to start a
// container and to remove; disk space, memory and page cache.
package pull

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/mirror"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/node"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/workload"
)

// An Image is an image to measure. The provider has its manifests and blobs.
type Image struct {
	Name     string
	Target   ocispec.Descriptor
	Provider content.Provider
}

// A Starter provides a node for one run. The run must not see what the node stored before: either the node is new, or
// the images that were pulled into it have been removed.
type Starter interface {
	Start(ctx context.Context, snapshotter string) (*node.Node, error)
	// Method describes the containerd and the file system of the runs, in sentences.
	Method() []string
}

// Options configure [Run].
type Options struct {
	Workload     *workload.Workload // provides name and description
	Images       []Image
	Failures     []report.Failure // of the workload's other images
	Snapshotters []string
	Rounds       int
	Nodes        Starter
	Self         string // our program, which runs in containers; it must be static
	Version      string // of our program
	// Progress is called after each step, with the number of steps done, the number of all steps, and a description.
	Progress func(done, total int, what string)
}

// Run measures. Snapshotters take turns in each round. A failure is recorded in the report once, and the rest goes on.
// When the context ends, the report covers the steps done so far. An error means that nothing could be measured.
func Run(ctx context.Context, o Options) (*report.Report, error) {
	m, err := mirror.Start(ctx)
	if err != nil {
		return nil, err
	}
	b := &bench{
		options: o,
		broken:  make(map[string]bool),
		report: &report.Report{
			Version: report.Version, Started: time.Now().UTC().Truncate(time.Second),
			Snapshotters: o.Snapshotters, Baseline: baseline(o.Snapshotters), Rounds: o.Rounds, Machine: describeMachine(),
			Workload: o.Workload.Name, Description: o.Workload.Description,
			Method: append(slices.Clone(method), o.Nodes.Method()...), Failures: o.Failures,
		},
	}
	b.report.Machine.Programs = versions(ctx)
	for _, img := range o.Images {
		if err := b.addImage(ctx, m, img); err != nil {
			b.fail(0, "", img.Name, err)
		}
	}
	for round := 1; round <= o.Rounds && ctx.Err() == nil; round++ {
		b.round(ctx, round)
	}
	b.report.Seconds = time.Since(b.report.Started).Seconds()
	b.report.Interrupted = ctx.Err() != nil
	ours := report.Program{Name: "ostree-snapshotter", Version: o.Version}
	b.report.Machine.Programs = append([]report.Program{ours}, b.report.Machine.Programs...)
	return b.report, m.Close()
}

// method describes how every benchmark measures.
var method = []string{
	"Snapshotters take turns in each round, and a different one is first in each. Ratios are formed within a round.",
	"Images are pulled by containerd's transfer service, as \"ctr images pull\" does, from a registry in the benchmark itself: first the blobs, and then again to unpack them. The page cache is warm.",
	"After each pull, a container of the image lists and hashes all of its files. A pull whose files differ from the tars of the layers has no figures.",
	"Cold: the store is empty. Warm: it has the images before this one in the list. Again: it has this image, which is pulled into another namespace of containerd.",
}

// baseline chooses the snapshotter to compare with: containerd's default, or the first.
func baseline(snapshotters []string) string {
	if slices.Contains(snapshotters, "overlayfs") || len(snapshotters) == 0 {
		return "overlayfs"
	}
	return snapshotters[0]
}

// A bench is one run of the benchmark.
type bench struct {
	options Options
	images  []*mirrored
	broken  map[string]bool // after the first failure: snapshotters, and images with a snapshotter
	steps   int             // done so far
	report  *report.Report
}

// mirrored is an image that can be pulled.
type mirrored struct {
	name string
	ref  string
	tree tree
}

func (b *bench) addImage(ctx context.Context, m *mirror.Mirror, img Image) error {
	manifest, err := images.Manifest(ctx, img.Provider, img.Target, platforms.Default())
	if err != nil {
		return err
	}
	t, err := readTree(ctx, img.Provider, manifest.Layers)
	if err != nil {
		return err
	}
	info := report.Image{Name: img.Name, Digest: img.Target.Digest.String(), Layers: len(manifest.Layers)}
	for _, l := range manifest.Layers {
		info.BlobBytes += l.Size
	}
	info.Files, info.FileBytes = t.size()
	b.report.Images = append(b.report.Images, info)
	b.images = append(b.images, &mirrored{name: img.Name, ref: m.Add(img.Target, img.Provider), tree: t})
	return nil
}

// fail records a failure. The measurement is not tried again.
func (b *bench) fail(round int, snapshotter, image string, err error) {
	b.report.Failures = append(b.report.Failures, report.NewFailure(snapshotter, image, round, err))
}

func (b *bench) record(round int, snapshotter, image string, state report.State, v values) {
	b.report.Runs = append(b.report.Runs, report.Run{Round: round, Snapshotter: snapshotter, Image: image, State: state, Values: v})
}

// done reports progress.
func (b *bench) done(format string, args ...any) {
	b.steps++
	each := len(b.images)
	if each > 1 {
		each++ // all of them together
	}
	b.options.Progress(b.steps, b.options.Rounds*len(b.options.Snapshotters)*each, fmt.Sprintf(format, args...))
}

// round measures each image with each snapshotter alone, and then all images together with each.
func (b *bench) round(ctx context.Context, round int) {
	// The order changes each round, so that no snapshotter always follows the same other one.
	turns := slices.Clone(b.options.Snapshotters)
	k := (round - 1) % len(turns)
	turns = append(turns[k:], turns[:k]...)
	for _, img := range b.images {
		for _, sn := range turns {
			b.try(ctx, round, sn, img.name, func(s *session) error { return b.alone(ctx, round, s, img) })
		}
	}
	if len(b.images) < 2 {
		return
	}
	for _, sn := range turns {
		b.try(ctx, round, sn, "", func(s *session) error { return b.together(ctx, round, s) })
	}
}

// try starts a node and calls f, unless f failed before.
func (b *bench) try(ctx context.Context, round int, snapshotter, image string, f func(*session) error) {
	if ctx.Err() != nil || b.broken[snapshotter] || b.broken[snapshotter+" "+image] {
		return
	}
	n, err := b.options.Nodes.Start(ctx, snapshotter)
	if err != nil {
		if ctx.Err() == nil {
			b.broken[snapshotter] = true
			b.fail(round, snapshotter, "", err)
		}
		return
	}
	b.describe(ctx, n)
	err = f(&session{n, b.options.Self, namespace})
	if ctx.Err() == nil && err != nil {
		b.broken[snapshotter+" "+image] = true
		b.fail(round, snapshotter, image, err)
	}
	if err := n.Close(); err != nil {
		b.fail(round, snapshotter, image, fmt.Errorf("clean up: %w", err))
	}
}

// describe records the description of the first node.
func (b *bench) describe(ctx context.Context, n *node.Node) {
	if b.report.Machine.FileSystem == "" {
		b.report.Machine.FileSystem = fileSystemOf(n.Root)
		if n.NewDisk {
			b.report.Machine.FileSystem += " on a loop device, new for each run"
		}
		if v, err := n.Client.Version(ctx); err == nil {
			program := report.Program{Name: "containerd", Version: v.Version}
			b.report.Machine.Programs = append([]report.Program{program}, b.report.Machine.Programs...)
		}
	}
}

// alone measures an image in an empty store, and then the same layers again.
func (b *bench) alone(ctx context.Context, round int, s *session, img *mirrored) (err error) {
	again := &session{s.Node, s.self, otherNamespace}
	defer func() { err = errors.Join(err, s.clear(ctx, img.ref), again.clear(ctx, img.ref)) }()
	cold := make(values)
	if err := s.pull(ctx, img, cold); err != nil {
		return err
	}
	if err := s.firstStart(ctx, img.ref, cold); err != nil {
		return err
	}
	if err := s.verify(ctx, img.ref, img.tree); err != nil {
		return err
	}
	repeated := make(values)
	if err := again.pull(ctx, img, repeated); err != nil {
		return fmt.Errorf("the same in another namespace: %w", err)
	}
	if err := again.verify(ctx, img.ref, img.tree); err != nil {
		return fmt.Errorf("the same in another namespace: %w", err)
	}
	if err := again.remove(ctx, nil, img.ref); err != nil {
		return err
	}
	if err := s.remove(ctx, cold, img.ref); err != nil {
		return err
	}
	b.record(round, s.Snapshotter, img.name, report.Cold, cold)
	b.record(round, s.Snapshotter, img.name, report.Again, repeated)
	b.done("%s, %s: unpacked in %.2f s, again in %.2f s", img.name, s.Snapshotter, cold[report.Unpack], repeated[report.Unpack])
	return nil
}

// pull downloads and unpacks an image.
func (s *session) pull(ctx context.Context, img *mirrored, v values) error {
	if err := s.download(ctx, img.ref, v); err != nil {
		return err
	}
	return s.unpack(ctx, img.ref, v)
}

// together pulls all images into one store, one after the other, and measures them together. Images that failed alone
// are left out; then there is no result for all of them.
func (b *bench) together(ctx context.Context, round int, s *session) (err error) {
	whole := slices.DeleteFunc(slices.Clone(b.images), func(img *mirrored) bool { return b.broken[s.Snapshotter+" "+img.name] })
	if len(whole) < 2 {
		return nil
	}
	var refs []string
	for _, img := range whole {
		refs = append(refs, img.ref)
	}
	defer func() { err = errors.Join(err, s.clear(ctx, refs...)) }()
	empty, err := s.space(ctx)
	if err != nil {
		return err
	}
	for i, img := range whole {
		v := make(values)
		if err := s.pull(ctx, img, v); err != nil {
			return fmt.Errorf("%s: %w", img.name, err)
		}
		if err := s.verify(ctx, img.ref, img.tree); err != nil {
			return fmt.Errorf("%s: %w", img.name, err)
		}
		if i > 0 {
			b.record(round, s.Snapshotter, img.name, report.Warm, v)
		}
	}
	if len(whole) < len(b.images) {
		return nil
	}
	all := make(values)
	used, err := s.space(ctx)
	if err != nil {
		return err
	}
	all.space(used.minus(empty))
	cached, err := s.pageCache(ctx, refs)
	if err != nil {
		return err
	}
	all[report.Cached] = float64(cached)
	if err := s.remove(ctx, all, refs...); err != nil {
		return err
	}
	b.record(round, s.Snapshotter, "", report.All, all)
	b.done("all images, %s: %.0f MiB on disk", s.Snapshotter, all[report.Disk]/(1<<20))
	return nil
}

// clear removes images left by a failed run. Nodes that are new for each run do not need it, but it does no harm.
func (s *session) clear(ctx context.Context, refs ...string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return s.remove(ctx, nil, refs...)
}
