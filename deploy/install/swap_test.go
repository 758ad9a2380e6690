package install

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// victim makes an image whose contents must stay.
func victim(tb testing.TB) string {
	tb.Helper()
	image := newImage(tb)
	writeAt(tb, image, 0, "precious")
	writeAt(tb, image, testDisk-8, "precious")
	return image
}

func mustRename(tb testing.TB, from, to string) {
	tb.Helper()
	if err := os.Rename(from, to); err != nil {
		tb.Fatal(err)
	}
}

func mustLink(tb testing.TB, target, name string) {
	tb.Helper()
	if err := os.Symlink(target, name); err != nil {
		tb.Fatal(err)
	}
}

// Whoever may write to the directory of a disk, or makes its links, cannot have another disk written to than the one
// that was looked at: neither between plan and installation nor during the installation.
func TestSwapped(t *testing.T) {
	needsTools(t)
	away := func(image string) string { return image + ".away" }
	for name, c := range map[string]struct {
		disk func(t *testing.T) string // makes the disk that is planned for; nil: an empty image
		swap func(t *testing.T, disk, victim string)
	}{
		"for a link": {nil, func(t *testing.T, disk, victim string) {
			t.Helper()
			mustRename(t, disk, away(disk))
			mustLink(t, victim, disk)
		}},
		"for a file": {nil, func(t *testing.T, disk, victim string) {
			t.Helper()
			mustRename(t, disk, away(disk))
			if err := os.Link(victim, disk); err != nil {
				t.Fatal(err)
			}
		}},
		"a new image for a link": {
			func(t *testing.T) string {
				t.Helper()
				return filepath.Join(testenv.MemoryDir(t), "disk.img")
			},
			func(t *testing.T, disk, victim string) {
				t.Helper()
				if err := os.Rename(disk, away(disk)); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				mustLink(t, victim, disk)
			},
		},
		"a link to another device": {
			func(t *testing.T) string {
				t.Helper()
				link := filepath.Join(t.TempDir(), "by-id")
				mustLink(t, device(t, newImage(t)), link)
				return link
			},
			func(t *testing.T, disk, victim string) {
				t.Helper()
				mustRename(t, disk, away(disk))
				mustLink(t, device(t, victim), disk)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, when := range []string{"before", "during"} {
				t.Run(when, func(t *testing.T) {
					victim := victim(t)
					var disk string
					if c.disk == nil {
						disk = newImage(t)
					} else {
						disk = c.disk(t)
					}
					opts := options()
					opts.Wipe = true
					if fi, err := os.Stat(disk); err == nil && fi.Mode()&os.ModeDevice != 0 {
						opts.Size = 0
					}
					before := readEdges(t, victim)
					p := mustPlan(t, disk, opts)
					if when == "before" {
						c.swap(t, disk, victim)
					}
					err := p.execute(t.Context(), func(ctx context.Context, root *atfs.Dir) error {
						if when == "during" {
							c.swap(t, disk, victim)
						}
						return fakeFill(ctx, root)
					})
					if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), disk) {
						t.Errorf("got %v, want ErrChanged with %s", err, disk)
					}
					if !bytes.Equal(readEdges(t, victim), before) {
						t.Error("the other disk was written to")
					}
					if _, err := os.Lstat(disk); err != nil {
						t.Errorf("what took the disk's place: %v", err)
					}
				})
			}
		})
	}
}

// readEdges returns the beginning and end of an image.
func readEdges(tb testing.TB, image string) []byte {
	tb.Helper()
	f, err := os.Open(image)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 2*edge)
	if _, err := f.ReadAt(b[:edge], 0); err != nil {
		tb.Fatal(err)
	}
	if _, err := f.ReadAt(b[edge:], testDisk-edge); err != nil {
		tb.Fatal(err)
	}
	return b
}

// A device number that another device has got since the plan is not the disk.
func TestReusedDevice(t *testing.T) {
	needsTools(t)
	other := newImage(t)
	opts := options()
	opts.Size = 0
	for range 10 {
		dev := strings.TrimSpace(command(t, "losetup", "--find", "--show", newImage(t)))
		p := mustPlan(t, dev, opts)
		command(t, "losetup", "--detach", dev)
		if err := exec.Command(testenv.NeedsTool(t, "losetup"), dev, other).Run(); err != nil {
			continue // another process was faster
		}
		t.Cleanup(func() { command(t, "losetup", "--detach", dev) })
		before := stampOf(t, other)
		if err := p.execute(t.Context(), fakeFill); !errors.Is(err, ErrChanged) {
			t.Errorf("got %v, want ErrChanged", err)
		}
		if stampOf(t, other) != before {
			t.Error("the other device was written to")
		}
		return
	}
	t.Error("other processes take every loop device")
}
