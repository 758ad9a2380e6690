package layer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A disk is a file system in a file, behind a loop device. What it has not written to the device yet is lost when the
// file is copied: the copy is the disk after a power failure.
type disk struct{ image, dir string }

func newDisk(t *testing.T, fstype string) *disk {
	t.Helper()
	tmp := t.TempDir()
	d := &disk{image: filepath.Join(tmp, "image"), dir: filepath.Join(tmp, "mnt")}
	command(t, "truncate", "-s", "512M", d.image)
	command(t, testenv.NeedsTool(t, "mkfs."+fstype), "-q", d.image)
	d.mount(t)
	return d
}

func (d *disk) mount(t *testing.T) {
	t.Helper()
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// A copy has the UUID of the original.
	options := "loop"
	if out, err := exec.Command("blkid", "-o", "value", "-s", "TYPE", d.image).Output(); err == nil && strings.TrimSpace(string(out)) == "xfs" {
		options += ",nouuid"
	}
	command(t, "mount", "-o", options, d.image, d.dir)
	t.Cleanup(func() { command(t, "umount", d.dir) })
}

// powerLoss returns the disk as it would be had the power failed now.
func (d *disk) powerLoss(t *testing.T) *disk {
	t.Helper()
	tmp := t.TempDir()
	after := &disk{image: filepath.Join(tmp, "image"), dir: filepath.Join(tmp, "mnt")}
	command(t, "cp", "--sparse=always", d.image, after.image)
	after.mount(t)
	return after
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// A layer is imported, a durable row names it, and the power fails: with the journal the next start heals the layer or
// says that it is lost, and the repository is right. Without it, damaged objects stay under their names, which is what
// this test would show of a journal that does not work.
func TestPowerLoss(t *testing.T) {
	testenv.NeedsLoop(t)
	tar := makeTar(t, manyFiles()...)
	for _, fstype := range []string{"ext4", "xfs"} {
		for _, journal := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/journal=%v", fstype, journal), func(t *testing.T) {
				before := newDisk(t, fstype)
				b := &bed{path: before.dir}
				b.open(t, Options{Journal: true})
				if err := b.Sync(t.Context()); err != nil { // the store itself is old
					t.Fatal(err)
				}
				b.close(t)
				b.open(t, Options{Journal: journal})
				defer b.close(t)
				l := b.importBlob(t, tar, someBlob)
				checkOut(t, b.Store, b.path, l.ID)
				row, err := os.Create(filepath.Join(before.dir, rowFile))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := row.WriteString(l.ID.String()); err != nil {
					t.Fatal(err)
				}
				if err := row.Sync(); err != nil {
					t.Fatal(err)
				}
				if err := row.Close(); err != nil {
					t.Fatal(err)
				}
				for _, blob := range []bool{true, false} {
					t.Run(fmt.Sprintf("blob=%v", blob), func(t *testing.T) {
						after := &bed{path: before.powerLoss(t).dir}
						if got, err := os.ReadFile(filepath.Join(after.path, rowFile)); err != nil || string(got) != l.ID.String() {
							t.Fatalf("row: got %q, %v", got, err)
						}
						after.open(t, Options{Journal: true, Boot: "after"})
						defer after.close(t)
						damaged := after.problems(t)
						if len(damaged) == 0 {
							t.Fatal("nothing was lost: this test does not test anything")
						}
						t.Logf("%d problems after the power failure", len(damaged))
						var remake func(context.Context, LostLayer) error
						if blob {
							remake = func(ctx context.Context, lost LostLayer) error {
								h, err := after.Import(ctx, bytes.NewReader(tar), ImportOptions{Blob: lost.Blob})
								if err != nil {
									return err
								}
								return h.Release()
							}
						}
						r, err := after.Recover(t.Context(), remake)
						if err != nil {
							t.Fatal(err)
						}
						problems := after.problems(t)
						_, err = after.Layer(t.Context(), l.ID)
						switch {
						case !journal:
							if len(problems) == 0 {
								t.Error("got no problems, although there is no journal")
							}
							return
						case len(problems) != 0:
							t.Errorf("got %d problems after recovery, first %v", len(problems), problems[0])
						case blob && (len(r.Remade) != 1 || err != nil):
							t.Errorf("got %+v, %v, want the layer made again", r, err)
						case !blob && (len(r.Lost) != 1 || err == nil):
							t.Errorf("got %+v, %v, want the layer lost", r, err)
						}
						checkStore(t, after.path)
						if blob {
							fs := checkOut(t, after.Store, after.path, l.ID)
							if got, err := os.ReadFile(filepath.Join(fs, "f7")); err != nil || string(got) != "content 7" {
								t.Errorf("got %q, %v", got, err)
							}
						}
					})
				}
			})
		}
	}
}

func manyFiles() []tarEntry {
	entries := []tarEntry{file("large", strings.Repeat("0123456789abcdef", 1<<17))}
	for i := range 300 {
		entries = append(entries, file(fmt.Sprint("f", i), fmt.Sprint("content ", i)))
	}
	return entries
}
