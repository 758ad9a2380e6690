package differ_test

import (
	"archive/tar"
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// BenchmarkCompare measures our differ and containerd's on a container that changes three of an image's ten thousand
// files.
func BenchmarkCompare(b *testing.B) {
	headers := []tar.Header{snaptest.Dir("files")}
	for i := range 10_000 {
		if i%100 == 0 {
			headers = append(headers, snaptest.Dir(fmt.Sprintf("files/%d", i/100)))
		}
		headers = append(headers, snaptest.File(fmt.Sprintf("files/%d/%d", i/100, i), fmt.Sprintf("%8192d", i)))
	}
	c := newContainerOn(b, snaptest.Tar(b, headers...))
	c.change(b, "echo 1 >files/0/0; rm files/1/100; echo new >files/new")
	for name, differ := range map[string]diff.Comparer{"ostree": c.differ, "walking": walking.NewWalkingDiff(c.target.Store)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := differ.Compare(c.ctx, c.lower, c.upper, diff.WithMediaType(ocispec.MediaTypeImageLayerGzip)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
