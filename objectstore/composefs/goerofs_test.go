package composefs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// goerofsView lists images with the erofs project's Go reader: each has a listing or an error.
func goerofsView(tb testing.TB, repeat int, images ...[]byte) (views []map[string]seen, errs []error) {
	tb.Helper()
	program, err := testhost.Goerofs(tb.Context(), os.Stderr)
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	args := []string{"-repeat", strconv.Itoa(repeat)}
	for i, image := range images {
		name := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(name, image, 0o600); err != nil {
			tb.Fatal(err)
		}
		args = append(args, name)
	}
	cmd := exec.CommandContext(tb.Context(), program, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatal(err)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); len(views) < len(images); {
		// See integration/tools/goerofs.
		var listing struct {
			Error string
			Nodes []goerofsNode
		}
		if err := d.Decode(&listing); err != nil {
			tb.Fatal(err)
		}
		view := make(map[string]seen)
		for _, n := range listing.Nodes {
			view[string(n.Path)] = n.seen()
		}
		err = nil
		if listing.Error != "" {
			err = errors.New(listing.Error)
		}
		views, errs = append(views, view), append(errs, err)
	}
	return views, errs
}

type goerofsNode struct {
	Path, First     []byte
	Mode            fs.FileMode
	UID, GID        uint32
	Rdev            uint64
	Size            int64
	Sec, Nsec       int64
	Nlink           uint64
	Target, Content []byte
	Xattrs          []struct{ Name, Value []byte }
}

func (n goerofsNode) seen() seen {
	s := seen{
		mode: unixMode(n.Mode), uid: n.UID, gid: n.GID, rdev: n.Rdev, size: n.Size,
		mtime: unix.Timespec{Sec: n.Sec, Nsec: n.Nsec}, nlink: n.Nlink,
		target: string(n.Target), content: string(n.Content), first: string(n.First), xattrs: map[string]string{},
	}
	for _, x := range n.Xattrs {
		s.xattrs[string(x.Name)] = string(x.Value)
	}
	return s
}

// suitsGoerofs reports whether go-erofs 0.3.1 can read an image of the tree: a shared attribute must lie within one
// block, and names that path.Clean or fs.ValidPath object to are not found, because it joins paths.
func suitsGoerofs(root *Inode) error {
	for _, s := range view(root, 1) {
		for name, value := range s.xattrs {
			if len(name)+len(value) > 300 {
				return fmt.Errorf("xattr %s of %d bytes", name, len(value))
			}
		}
	}
	return nil
}

func TestGoerofsAgrees(t *testing.T) {
	type variant struct {
		namedTree
		Options
		image []byte
	}
	compared := 0
	var variants []variant
	var images [][]byte
	for _, tree := range allTrees(t) {
		if suitsGoerofs(tree.root) != nil {
			continue
		}
		compared++
		for _, opts := range allOptions {
			v := variant{tree, opts, mustMarshal(t, tree.root, opts)}
			variants, images = append(variants, v), append(images, v.image)
		}
	}
	if compared < 20 {
		t.Errorf("only %d trees suit go-erofs", compared)
	}
	views, errs := goerofsView(t, 1, images...)
	for i, v := range variants {
		if errs[i] != nil {
			t.Errorf("%s, versions %v: go-erofs: %v", v.name, v.Options, errs[i])
			continue
		}
		if err := diffViews(views[i], view(v.root, le.Uint32(v.image[12:]))); err != nil {
			t.Errorf("%s, versions %v: %v", v.name, v.Options, err)
		}
	}
}

// BenchmarkGoerofs reads the same as BenchmarkRead through go-erofs, including the start of its program.
func BenchmarkGoerofs(b *testing.B) {
	image := mustMarshal(b, osTree(12_000), ostree)
	b.SetBytes(int64(len(image)))
	b.ResetTimer()
	if _, errs := goerofsView(b, b.N, image); errs[0] != nil {
		b.Fatal(errs[0])
	}
}
