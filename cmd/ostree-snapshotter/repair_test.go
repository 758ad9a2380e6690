package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// manyFiles are the files of a layer with 165 entries.
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

// objects returns the file names of the store's content objects.
func (b repairBed) objects(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(b.root, "repo/objects/*/*.file"))
	if err != nil || len(names) == 0 {
		t.Fatalf("objects: %v, %v", names, err)
	}
	return names
}

// fsck runs the command and decodes its output.
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

// The exit status of a repair tells whether everything was repaired, some of it or nothing.
func TestRepairStatus(t *testing.T) {
	many, err := makeTar(manyFiles())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name         string
		keep         func(blob string) bool
		want         int
		repaired     bool
		left, hinted bool
	}{
		{"all blobs", func(string) bool { return true }, exitOK, true, false, false},
		{"some blobs", func(name string) bool { return name == digest.FromBytes(many).Encoded() }, exitPartly, true, true, false},
		{"no blobs", func(string) bool { return false }, exitCorrupt, false, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newRepairBed(t)
			for _, name := range b.objects(t) {
				if err := os.Truncate(name, 1); err != nil {
					t.Fatal(err)
				}
			}
			blobs, err := filepath.Glob(filepath.Join(b.blobs, "blobs/sha256/*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range blobs {
				if tt.keep(filepath.Base(name)) {
					continue
				}
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			status, r, stderr := b.fsck(t, "--repair", "--content-root", b.blobs)
			if status != tt.want || (len(r.Repaired) > 0) != tt.repaired || (len(r.Problems) > 0) != tt.left {
				t.Errorf("status %d, want %d: %d repaired, %d left\n%s", status, tt.want, len(r.Repaired), len(r.Problems), stderr)
			}
			if hinted := strings.Contains(stderr, "hint: remove the listed images"); hinted != tt.hinted {
				t.Errorf("stderr: %s", stderr)
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

// A repair imports layers with the daemon's limits: it refuses a layer that is too large for the configuration, and
// accepts every layer that the daemon does.
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
			if refused := strings.Contains(stderr, "more entries than max_entries allows"); refused != (tt.want != exitOK) {
				t.Errorf("stderr: %s", stderr)
			}
		})
	}
}

// A repair links files that a repository of dedup_repos has, instead of writing them.
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
	absent := filepath.Join(b.root, "absent") // is ignored
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
