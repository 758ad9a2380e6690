package pull

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/plugins/content/local"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/layout"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/mirror"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/workload"
)

// Find opens the images of a workload: layouts in place, and the others by fetching them into a directory. Images that
// it cannot open are failures. It calls progress with the number of images processed and of all images. The error is
// that of ctx, when it is done, or of the directory.
func Find(ctx context.Context, w *workload.Workload, dir string, progress func(done, total int64)) (found []Image, failed []report.Failure, err error) {
	store, err := local.NewStore(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("keep images: %w", err)
	}
	for i, img := range w.Images {
		progress(int64(i), int64(len(w.Images)))
		opened := Image{Name: img.Name}
		if name, ok := img.Layout(); ok {
			err = opened.open(ctx, name)
		} else {
			opened.Provider = store
			opened.Target, err = mirror.Fetch(ctx, img.Ref, store)
		}
		if err := context.Cause(ctx); err != nil {
			return nil, nil, err
		}
		if err != nil {
			failed = append(failed, report.NewFailure("", img.Name, 0, err))
			continue
		}
		found = append(found, opened)
	}
	return found, failed, nil
}

// open opens the image of a layout, DIR[:TAG].
func (img *Image) open(ctx context.Context, name string) error {
	l, err := layout.Open(ctx, name)
	if err != nil {
		return err
	}
	img.Provider = l
	img.Target, err = l.Target()
	return err
}
