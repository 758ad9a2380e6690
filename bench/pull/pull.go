package pull

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/node"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
)

// The namespaces into which images are pulled. The second is for an image whose layers exist already.
const (
	namespace      = "ostree-snapshotter-bench"
	otherNamespace = "ostree-snapshotter-bench-again"
)

// A session is a use of one node in one namespace.
type session struct {
	*node.Node
	self      string // our program
	namespace string
}

func (s *session) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.namespace)
}

// transfer makes containerd pull an image, as "ctr images pull" does: the missing blobs, and with unpack the missing
// layers. It returns the duration.
func (s *session) transfer(ctx context.Context, ref string, unpack bool) (time.Duration, error) {
	reg, err := registry.NewOCIRegistry(ctx, ref, registry.WithDefaultScheme("http"))
	if err != nil {
		return 0, err
	}
	platform := platforms.DefaultSpec()
	opts := []transferimage.StoreOpt{transferimage.WithPlatforms(platform)}
	if unpack {
		opts = append(opts, transferimage.WithUnpack(platform, s.Snapshotter))
	}
	start := time.Now()
	err = s.Client.Transfer(s.in(ctx), reg, transferimage.NewStore(ref, opts...))
	return time.Since(start), err
}

// download fetches the blobs of an image.
func (s *session) download(ctx context.Context, ref string, v values) error {
	d, err := s.transfer(ctx, ref, false)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	v.seconds(report.Download, d)
	return nil
}

// unpack unpacks a downloaded image.
func (s *session) unpack(ctx context.Context, ref string, v values) error {
	before, err := s.space(ctx)
	if err != nil {
		return err
	}
	if err := resetPeakMemory(s.Pids); err != nil {
		return err
	}
	cpu, err := processorTime(s.Pids)
	if err != nil {
		return err
	}
	d, err := s.transfer(ctx, ref, true)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	v.seconds(report.Unpack, d)
	after, err := processorTime(s.Pids)
	if err != nil {
		return err
	}
	v[report.CPU] = after - cpu
	peak, err := peakMemory(s.Pids)
	if err != nil {
		return err
	}
	v[report.Memory] = float64(peak)
	used, err := s.space(ctx)
	if err != nil {
		return err
	}
	v.space(used.minus(before))
	return nil
}

// space returns the disk space of the snapshotter after containerd has collected its garbage, such as the snapshot of a
// removed container.
func (s *session) space(ctx context.Context) (space, error) {
	service := s.Client.LeasesService()
	l, err := service.Create(s.in(ctx), leases.WithRandomID())
	if err == nil {
		err = service.Delete(s.in(ctx), l, leases.SynchronousDelete)
	}
	if err != nil {
		return space{}, fmt.Errorf("collect garbage: %w", err)
	}
	return measureSpace(s.Root)
}

// remove removes images and waits until containerd has removed everything that only they needed. If it is measured, remove
// also waits for what is done in the background afterwards.
func (s *session) remove(ctx context.Context, v values, refs ...string) error {
	cpu, err := processorTime(s.Pids)
	if err != nil {
		return err
	}
	start := time.Now()
	for i, ref := range refs {
		var opts []images.DeleteOpt
		if i == len(refs)-1 {
			opts = append(opts, images.SynchronousDelete())
		}
		if err := s.Client.ImageService().Delete(s.in(ctx), ref, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove: %w", err)
		}
	}
	if v == nil {
		return nil
	}
	v.seconds(report.Remove, time.Since(start))
	after, err := idleTime(ctx, s.Pids)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	v[report.RemoveCPU] = after - cpu
	return nil
}

// values holds the results of one run.
type values map[report.Metric]float64

func (v values) seconds(m report.Metric, d time.Duration) {
	if v != nil {
		v[m] = d.Seconds()
	}
}

// space records disk space. It is never negative, though other processes may free space at the same time.
func (v values) space(s space) {
	v[report.Disk], v[report.Inodes] = float64(max(s.bytes, 0)), float64(max(s.inodes, 0))
}
