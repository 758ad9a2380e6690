package images

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/workload"
)

// Link makes the layouts of the given workloads and links to them in a directory, which it creates if necessary: base-1
// for base:1. It replaces existing links.
func Link(ctx context.Context, log io.Writer, dir string, workloads ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("link layouts: %w", err)
	}
	for _, name := range workloads {
		w, ok := workload.Builtin(name)
		if !ok {
			return fmt.Errorf("link layouts: no workload %q", name)
		}
		for _, img := range w.Images {
			name, ok := img.Layout()
			if !ok {
				continue
			}
			ref, err := linked(name)
			if err != nil {
				return err
			}
			layout, err := Layout(ctx, log, ref)
			if err != nil {
				return err
			}
			if err := relink(layout, filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("link layouts: %w", err)
			}
		}
	}
	return nil
}

// linked returns the image for a directory name in a workload.
func linked(name string) (ref string, err error) {
	for ref := range recipes {
		if strings.ReplaceAll(ref, ":", "-") == name {
			return ref, nil
		}
	}
	return "", fmt.Errorf("link layouts: no test image is called %s", name)
}

func relink(target, name string) error {
	if st, err := os.Lstat(name); err == nil && st.Mode().Type() == os.ModeSymlink {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return os.Symlink(target, name)
}
