package encapsulate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// inBin puts the files of usr/bin into the first chunk and all others into the second.
func inBin(path string) int {
	if strings.HasPrefix(path, "usr/bin/") {
		return 0
	}
	return 1
}

// vectors are the sizes and hashes of the example's layers by a second writer, a script in Python, whose layers ostree
// accepted.
var vectors = map[string]struct {
	layer  int
	o      Options
	size   int
	sha256 string
}{
	"layer 0":                {0, Options{Chunks: 2, Chunk: inBin}, 166400, "92bdab38fdc47d3638cb2e21db01edf5f889967934d1bb0203005dcf111611c8"},
	"chunk 1 of version 1":   {1, Options{Chunks: 2, Chunk: inBin}, 153600, "cfd4d4eeb8f3dddae72d755bcd46ab34877c7a8a6c4cc6f4e69e3d8d6e95b62b"},
	"chunk 2 of version 1":   {2, Options{Chunks: 2, Chunk: inBin}, 146432, "2e3c54e97b4a5b3917e8d93899360b693a6825c4f9fb1911de0fa488886bad2f"},
	"chunk 1 of version 2":   {1, Options{Chunks: 2, Chunk: inBin, Parents: true}, 154624, "97e687662f075910e71623d2ee9e8405d5f1c9d7a6223fbf0d327fb0c6ca5021"},
	"chunk 2 of version 2":   {2, Options{Chunks: 2, Chunk: inBin, Parents: true}, 148480, "592d42b2321f8ebb0fd85e16d1f274223c2c778be147d3f396d16be81b2cb57f"},
	"one layer of version 1": {0, Options{}, 187904, "70d5d36ced82a5aa605a44beed69cead54bfc8dc3e9e9c5dd4d2c7317b1698c3"},
	"one layer of version 2": {0, Options{Parents: true}, 190464, "d0c5767f26106fb54a79c04b6ec86a1197988d70f5db2e121bb3ff7f9d2ed28d"},
}

func TestVectors(t *testing.T) {
	c, err := Example()
	testenv.Must(t, err)
	for name, v := range vectors {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			testenv.Must(t, c.Layers(v.o)[v.layer](&b))
			sum := sha256.Sum256(b.Bytes())
			if got := hex.EncodeToString(sum[:]); b.Len() != v.size || got != v.sha256 {
				t.Errorf("got %d bytes with hash %s, want %d with %s", b.Len(), got, v.size, v.sha256)
			}
		})
	}
}

// TestLongNumbers compares numbers in headers with those of Rust's crate tar.
func TestLongNumbers(t *testing.T) {
	for _, test := range []struct {
		size int
		n    uint64
		want string
	}{
		{8, 0o7777777, "7777777\x00"},
		{8, 1 << 21, "\x80\x00\x00\x00\x00\x20\x00\x00"},
		{12, 1<<33 - 1, "77777777777\x00"},
		{12, 1 << 33, "\x80\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00"},
	} {
		field := make([]byte, test.size)
		number(field, test.n)
		if string(field) != test.want {
			t.Errorf("%#o: got %q, want %q", test.n, field, test.want)
		}
	}
}

func TestPAXRecord(t *testing.T) {
	for length, want := range map[int]string{0: "5 a=", 4: "9 a=", 5: "11 a=", 92: "98 a=", 93: "99 a=", 94: "101 a="} {
		value := strings.Repeat("v", length)
		if got := paxRecord("a", value); got != want+value+"\n" {
			t.Errorf("value of %d bytes: got %q, want %q", length, got, want+value+"\n")
		}
	}
}

// TestOSTree unpacks the layers of each form with tar. What is in them must be a repository that ostree accepts.
func TestOSTree(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "ostree")
	c, err := Example()
	testenv.Must(t, err)
	for name, o := range map[string]Options{
		"version 1":     {Chunks: 2, Chunk: inBin},
		"version 2":     {Chunks: 2, Chunk: inBin, Parents: true},
		"linked xattrs": {Chunks: 2, Chunk: inBin, LinkedXattrs: true},
		"one layer":     {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, layer := range c.Layers(o) {
				var b bytes.Buffer
				testenv.Must(t, layer(&b))
				tar := exec.Command("tar", "-xpf", "-", "-C", dir)
				tar.Stdin = &b
				if out, err := tar.CombinedOutput(); err != nil {
					t.Fatalf("tar: %v\n%s", err, out)
				}
			}
			repo := filepath.Join(dir, repoDir)
			out, err := exec.Command("ostree", "--repo="+repo, "fsck").CombinedOutput()
			if err != nil {
				t.Errorf("ostree fsck: %v\n%s", err, out)
			}
			copied := t.TempDir()
			for _, args := range [][]string{{"init", "--mode=bare"}, {"pull-local", repo, ExampleCommit}, {"fsck"}} {
				if out, err := exec.Command("ostree", append([]string{"--repo=" + copied}, args...)...).CombinedOutput(); err != nil {
					t.Errorf("ostree %s: %v\n%s", args[0], err, out)
				}
			}
			if b, err := os.ReadFile(filepath.Join(dir, "usr/bin/bash")); err != nil || string(b) != "bash\n" {
				t.Errorf("usr/bin/bash: got %q, %v", b, err)
			}
		})
	}
}
