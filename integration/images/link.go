package images

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Link makes the layouts of images and links to them in a directory, which it creates if necessary. Names are those of the
// links: base-1 for base:1. It replaces existing links.
func Link(ctx context.Context, log io.Writer, dir string, names ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("link layouts: %w", err)
	}
	for _, name := range names {
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
	return nil
}

// linked returns the image for the name of a link.
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
