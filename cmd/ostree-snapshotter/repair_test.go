package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// manyFiles are the files of a layer with more objects than are damaged.
func manyFiles() []tarFile {
	var files []tarFile
	for i := range 160 {
		files = append(files, tarFile{name: fmt.Sprintf("many/%d", i), content: kib(fmt.Sprint("file ", i), 1+i%9), mtime: int64(i)})
	}
	return append(files, tarFile{name: "many/link", link: "many/7", mtime: 7}, tarFile{name: "other/sh", content: kib("shell", 96), mtime: 77})
}

// repairBed is a store whose daemon is stopped, and containerd's content store with the blobs of its layers.
type repairBed struct{ root, blobs string }

func newRepairBed(t *testing.T) repairBed {
	t.Helper()
	f, s := newFixture(t)
	if _, _, err := f.unpack(t.Context(), f.chain, manyFiles()); err != nil {
		t.Fatal(err)
	}
	f.stopDaemon(t)
	b := repairBed{root: s.cfg.Root, blobs: t.TempDir()}
	dir := filepath.Join(b.blobs, "blobs/sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, files := range [][]tarFile{baseFiles, aFiles, bFiles, manyFiles()} {
		data, err := makeTar(files)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, digest.FromBytes(data).Encoded()), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// fsck runs the command and decodes what it writes.
func (b repairBed) fsck(t *testing.T, args ...string) (int, fsckReport, string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	args = append([]string{"fsck", "--json", "--root", b.root, "--address", filepath.Join(b.root, "no-containerd")}, args...)
	status := execute(t.Context(), args, &stdout, &stderr)
	var r fsckReport
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v: stdout %q, stderr %q", err, stdout.String(), stderr.String())
	}
	return status, r, stderr.String()
}

// view is all that containers see of the checkouts.
func (b repairBed) view(t *testing.T) map[string]string {
	t.Helper()
	seen := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(b.root, "layers"), func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		// The directory of a layer, and its name tag, are not part of any checkout.
		rel, err := filepath.Rel(filepath.Join(b.root, "layers"), name)
		if err != nil || strings.Count(rel, "/") == 0 || filepath.Base(name) == "commit" {
			return err
		}
		text := fmt.Sprint(fi.Mode(), fi.ModTime())
		if fi.Mode().IsRegular() {
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			text += digest.FromBytes(content).String()
		}
		seen[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

func (b repairBed) checkRight(t *testing.T, want map[string]string) {
	t.Helper()
	if status, r, stderr := b.fsck(t); status != exitOK || len(r.Problems) != 0 {
		t.Errorf("fsck after repair: status %d, %+v, %s", status, r.Problems, stderr)
	}
	if ostree, ok := testenv.LookTool("ostree"); ok {
		if out, err := exec.CommandContext(t.Context(), ostree, "fsck", "--repo="+filepath.Join(b.root, "repo")).CombinedOutput(); err != nil {
			t.Errorf("ostree fsck: %v\n%s", err, out)
		}
	}
	got := b.view(t)
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: got %q, want %q", name, got[name], text)
		}
	}
	if len(got) != len(want) {
		t.Errorf("checkouts have %d entries, want %d", len(got), len(want))
	}
}

// flipBit changes one bit of a file and nothing else of it.
func flipBit(t *testing.T, rnd *rand.Rand, name string) {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := rnd.Int64N(fi.Size())
	var c [1]byte
	if _, err := f.ReadAt(c[:], at); err != nil {
		t.Fatal(err)
	}
	c[0] ^= 1 << rnd.IntN(8)
	if _, err := f.WriteAt(c[:], at); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// One bit flipped in each of 100 random objects: fsck names all of them and the layers, and repair makes everything
// right, checkouts included. Where the commit or a tree of a layer is damaged, only that can be blamed on the layer.
func TestRepairFlippedBits(t *testing.T) {
	for seed, pattern := range []string{"*.file", "*.file", "*", "*", "*"} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			b := newRepairBed(t)
			want := b.view(t)
			rnd := rand.New(rand.NewPCG(uint64(seed), 1))
			objects, err := filepath.Glob(filepath.Join(b.root, "repo/objects/*", pattern))
			if err != nil {
				t.Fatal(err)
			}
			rnd.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
			objects = objects[:100]
			for _, name := range objects {
				flipBit(t, rnd, name)
			}
			status, r, _ := b.fsck(t)
			if status != exitCorrupt {
				t.Errorf("fsck: status %d, want %d", status, exitCorrupt)
			}
			for _, name := range objects {
				dir, base := filepath.Split(name)
				i := slices.IndexFunc(r.Problems, func(p fsckProblem) bool { return p.Name == filepath.Base(dir)+base })
				if i < 0 || len(r.Problems[i].Layers) == 0 && pattern == "*.file" {
					t.Errorf("fsck does not name %s with its layers", name)
				}
			}
			status, r, stderr := b.fsck(t, "--repair", "--content-root", b.blobs)
			if status != exitOK || len(r.Problems) != 0 || len(r.Repaired) < len(objects) {
				t.Errorf("repair: status %d, %d repaired, left %+v\n%s", status, len(r.Repaired), r.Problems, stderr)
			}
			b.checkRight(t, want)
		})
	}
}

func TestRepair(t *testing.T) {
	remove := func(pattern string) func(t *testing.T, b repairBed) {
		t.Helper()
		return func(t *testing.T, b repairBed) {
			t.Helper()
			names, err := filepath.Glob(filepath.Join(b.root, pattern))
			if err != nil || len(names) == 0 {
				t.Fatalf("%s: got %v, %v", pattern, names, err)
			}
			for _, name := range names {
				if err := os.RemoveAll(name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, b repairBed)
	}{
		{"nothing", func(*testing.T, repairBed) {}},
		{"content objects missing", remove("repo/objects/*/*.file")},
		{"trees missing", remove("repo/objects/*/*.dirtree")},
		{"checkouts missing", remove("layers/*")},
		{"half of a checkout missing", remove("layers/*/fs*/many")},
		{"refs missing", remove("repo/refs/heads/oci/diff")},
		{"layers lost", func(t *testing.T, b repairBed) {
			t.Helper()
			remove("repo/refs/heads/oci")(t, b)
			remove("repo/objects/*/*.commit")(t, b)
			remove("layers/*")(t, b)
		}},
		{"refs empty", func(t *testing.T, b repairBed) {
			t.Helper()
			names, err := filepath.Glob(filepath.Join(b.root, "repo/refs/heads/oci/diff/*"))
			if err != nil || len(names) == 0 {
				t.Fatal(names, err)
			}
			for _, name := range names {
				if err := os.Truncate(name, 0); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newRepairBed(t)
			want := b.view(t)
			tt.damage(t, b)
			if status, r, stderr := b.fsck(t, "--repair", "--content-root", b.blobs); status != exitOK {
				t.Errorf("repair: status %d, left %+v\n%s", status, r.Problems, stderr)
			}
			b.checkRight(t, want)
		})
	}
}

// What has no blob stays, and is named.
func TestRepairWithoutBlobs(t *testing.T) {
	for _, tt := range []struct {
		name string
		keep bool // some blobs
		want int
	}{
		{"none", false, exitCorrupt},
		{"some", true, exitPartly},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newRepairBed(t)
			names, err := filepath.Glob(filepath.Join(b.root, "repo/objects/*/*.file"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if err := os.Truncate(name, 1); err != nil {
					t.Fatal(err)
				}
			}
			many, err := makeTar(manyFiles())
			if err != nil {
				t.Fatal(err)
			}
			blobs, err := filepath.Glob(filepath.Join(b.blobs, "blobs/sha256/*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range blobs {
				if tt.keep && filepath.Base(name) == digest.FromBytes(many).Encoded() {
					continue
				}
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			status, r, stderr := b.fsck(t, "--repair", "--content-root", b.blobs)
			if status != tt.want || len(r.Problems) == 0 || tt.keep != (len(r.Repaired) > 0) {
				t.Errorf("status %d, %d repaired, %d left, want status %d\n%s", status, len(r.Repaired), len(r.Problems), tt.want, stderr)
			}
			if !slices.ContainsFunc(r.Problems, func(p fsckProblem) bool { return len(p.Snapshots) > 0 }) {
				t.Error("what stays damaged does not name snapshots")
			}
		})
	}
}

// writeConfig writes a configuration file and returns its name.
func writeConfig(t *testing.T, lines ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.toml")
	text := strings.Join(append([]string{"version = 1"}, lines...), "\n") + "\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// A repair imports layers with the daemon's options: what is too large for the configuration is refused, and what the
// daemon has accepted is not.
func TestRepairHasTheDaemonsLimits(t *testing.T) {
	for _, tt := range []struct {
		maxEntries, want int
	}{
		{100, exitPartly}, // the largest layer has 165
		{200, exitOK},
	} {
		t.Run(fmt.Sprint(tt.maxEntries), func(t *testing.T) {
			b := newRepairBed(t)
			names, err := filepath.Glob(filepath.Join(b.root, "repo/objects/*/*.file"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			config := writeConfig(t, "[import]", fmt.Sprint("max_entries = ", tt.maxEntries))
			status, r, stderr := b.fsck(t, "--repair", "--content-root", b.blobs, "--config", config)
			if status != tt.want {
				t.Errorf("status %d, want %d: %d repaired, left %+v\n%s", status, tt.want, len(r.Repaired), r.Problems, stderr)
			}
			if refused := strings.Contains(stderr, "more than 100 entries"); refused != (tt.want != exitOK) {
				t.Errorf("stderr: %s", stderr)
			}
		})
	}
}

// A repair does not write what a repository of dedup_repos has.
func TestRepairBorrows(t *testing.T) {
	b := newRepairBed(t)
	names, err := filepath.Glob(filepath.Join(b.root, "repo/objects/*/*.file"))
	if err != nil {
		t.Fatal(err)
	}
	host := filepath.Join(filepath.Dir(b.root), filepath.Base(b.root)+"-host")
	if err := createRepo(host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(host) })
	want := make(map[string]uint64) // inodes
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(filepath.Join(b.root, "repo"), name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(host, rel)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name, filepath.Join(host, rel)); err != nil {
			t.Fatal(err)
		}
		if st.Size > 0 {
			want[name] = st.Ino
		}
	}
	if err := os.RemoveAll(filepath.Join(b.root, "layers")); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(b.root, "absent") // a host that was set up anew: nothing is borrowed from it
	config := writeConfig(t, fmt.Sprintf("dedup_repos = [%q, %q]", absent, host))
	status, r, stderr := b.fsck(t, "--repair", "--content-root", b.blobs, "--config", config)
	if status != exitOK {
		t.Fatalf("status %d, left %+v\n%s", status, r.Problems, stderr)
	}
	linked := 0
	for name, ino := range want {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			t.Fatal(err)
		}
		if st.Ino == ino {
			linked++
		}
	}
	// All but layer images and recipes, which are files of no layer.
	if linked < 160 {
		t.Errorf("%d of %d objects are linked to", linked, len(want))
	}
}
