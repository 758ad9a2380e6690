package deploy

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// osTree returns a tree of files with the given content, by name.
func osTree(files map[string]string) *objecttest.Node {
	root := &objecttest.Node{Mode: unix.S_IFDIR | 0o755, Entries: make(map[string]*objecttest.Node)}
	for name, content := range files {
		root.Entries[name] = &objecttest.Node{Mode: unix.S_IFREG | 0o644, Content: []byte(content)}
	}
	return root
}

// kargsTree returns the tree of an image with these files in kargs.d.
func kargsTree(files map[string]string) *objecttest.Node {
	tree := osTree(files)
	for _, name := range []string{"kargs.d", "bootc", "lib", "usr"} {
		tree = &objecttest.Node{Mode: unix.S_IFDIR | 0o755, Entries: map[string]*objecttest.Node{name: tree}}
	}
	return tree
}

func TestImageKargs(t *testing.T) {
	repo := objecttest.NewRepo(t)
	manyFiles := make(map[string]string)
	for i := range maxKargs + 1 {
		manyFiles[fmt.Sprintf("%d.toml", i)] = "kargs = []"
	}
	many := strings.Repeat(`"a", `, maxKargs+1)
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
		bad   string // in the error
	}{
		{"none", nil, "", ""},
		{"sorted", map[string]string{
			"20-b.toml": `kargs = ["b", "c=\"1 2\""]`, "10-a.toml": `kargs = ["a=1"]`, "README": "not read", "x.conf": "kargs",
		}, `a=1 b c="1 2"`, ""},
		{"architecture", map[string]string{
			"a.toml": "kargs = [\"other\"]\nmatch-architectures = [\"s390\"]",
			"b.toml": "kargs = [\"this\"]\nmatch-architectures = [\"s390\", \"" + runtime.GOARCH + "\"]",
		}, "this", ""},
		{"ostree", map[string]string{"a.toml": `kargs = ["ostree=/ostree/boot.0/evil/00/0"]`}, "", "a.toml"},
		{"quoted ostree", map[string]string{"a.toml": `kargs = ["\"ostree=/ostree/boot.0/evil/00/0\""]`}, "", "a.toml"},
		{"ostree in a value", map[string]string{"a.toml": `kargs = ["x=\"a ostree=/ostree/boot.0/evil/00/0 b\""]`}, "", "a.toml"},
		{"not TOML", map[string]string{"a.toml": "kargs"}, "", "a.toml"},
		{"control", map[string]string{"a.toml": `kargs = ["a\nlinux /evil"]`}, "", "a.toml"},
		{"large", map[string]string{"a.toml": "kargs = []\n#" + strings.Repeat("x", kargs.MaxDropIn)}, "", "a.toml"},
		{"many files", manyFiles, "", "more than"},
		{"many", map[string]string{"a.toml": "kargs = [" + many + "]"}, "", "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			commit := objecttest.Commit(t, repo, strings.ReplaceAll(tt.name, " ", "-"), kargsTree(tt.files))
			got, err := imageKargs(repo, commit)
			if tt.bad != "" {
				if err == nil || !strings.Contains(err.Error(), tt.bad) {
					t.Errorf("error is %v, want %q in it", err, tt.bad)
				}
				return
			}
			if s := strings.Join(got, " "); err != nil || s != tt.want {
				t.Errorf("imageKargs() = %q, %v, want %q", s, err, tt.want)
			}
		})
	}
	commit := objecttest.Commit(t, repo, "elsewhere", osTree(map[string]string{"usr": "a file"}))
	if got, err := imageKargs(repo, commit); err != nil || got != nil {
		t.Errorf("imageKargs() without the directory = %q, %v", got, err)
	}
}

// TestImageKargsDamaged removes the directory of the files. Arguments that cannot be read are not absent.
func TestImageKargsDamaged(t *testing.T) {
	repo, err := objectstore.Create(objecttest.OpenDir(t, t.TempDir()), objectstore.ModeBare)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	commit := objecttest.Commit(t, repo, "test", kargsTree(map[string]string{"a.toml": `kargs = ["a"]`}))
	c, err := repo.Commit(commit)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := repo.Lookup(c.Root(), kargs.DropInDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.ObjectsDir().Unlink(objectstore.LoosePath(dir.Checksum, objectstore.TypeDirTree)); err != nil {
		t.Fatal(err)
	}
	if got, err := imageKargs(repo, commit); !errors.Is(err, objectstore.ErrNotExist) {
		t.Errorf("imageKargs() = %q, %v, want that an object is missing", got, err)
	}
}
