package native_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/nativetest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

func TestFind(t *testing.T) {
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	commit := objectstore.Checksum{1}
	for name, tt := range map[string]struct {
		layers []digest.Digest
		labels map[string]string
		want   string // its layers, or the error
	}{
		"no labels":               {[]digest.Digest{a}, nil, "ordinary"},
		"no layers":               {nil, map[string]string{"ostree.commit": commit.String()}, "ordinary"},
		"commit alone":            {[]digest.Digest{a, b}, map[string]string{"ostree.commit": commit.String()}, "1, unmarked"},
		"another label of a name": {[]digest.Digest{a, b}, map[string]string{"ostree.commit": "HEAD"}, "ordinary"},
		"first":                   {[]digest.Digest{a, b, c}, map[string]string{"ostree.commit": commit.String(), "ostree.final-diffid": a.String()}, "1"},
		"second":                  {[]digest.Digest{a, b, c}, map[string]string{"ostree.commit": commit.String(), "ostree.final-diffid": b.String()}, "2"},
		"layers above may repeat": {[]digest.Digest{a, b, c, c}, map[string]string{"ostree.commit": commit.String(), "ostree.final-diffid": b.String()}, "2"},
		"absent":                  {[]digest.Digest{a, b}, map[string]string{"ostree.commit": commit.String(), "ostree.final-diffid": c.String()}, "which the image does not have"},
		"twice":                   {[]digest.Digest{a, b, a}, map[string]string{"ostree.commit": commit.String(), "ostree.final-diffid": a.String()}, "names layer " + a.String() + ", which the image has twice"},
		"no commit":               {[]digest.Digest{a, b}, map[string]string{"ostree.final-diffid": a.String()}, `label ostree.commit="" is not a checksum`},
	} {
		t.Run(name, func(t *testing.T) {
			place, err := native.Find(nativetest.Config(t, tt.layers, tt.labels))
			got := "ordinary"
			switch {
			case err != nil:
				if !errors.Is(err, native.ErrInvalid) {
					t.Errorf("got error %v, want an ErrInvalid", err)
				}
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got error %v, want %q in it", err, tt.want)
				}
				return
			case place != nil:
				got = fmt.Sprint(len(place.DiffIDs))
				if place.Unmarked {
					got += ", unmarked"
				}
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	if _, err := native.Find([]byte("{")); !errors.Is(err, native.ErrInvalid) {
		t.Errorf("no JSON: got error %v, want an ErrInvalid", err)
	}
}

// small is a tree with a file in each of three layers, by smallChunks: one whose label only the commit has, one as in the
// layer, and a symbolic link.
func small() *objecttest.Node {
	return objecttest.Dir(0o755, map[string]*objecttest.Node{
		"usr": objecttest.Dir(0o755, map[string]*objecttest.Node{
			"shell": objecttest.File(0o755, "shell").Xattr("security.selinux", "system_u:object_r:shell_exec_t:s0\x00"),
			"file":  objecttest.File(0o644, "file"),
			"files": objecttest.File(0o644, "files"),
			"link":  objecttest.Symlink("shell"),
		}),
	})
}

// smallChunks puts the files of small into layers.
func smallChunks(name string) int {
	return map[string]int{"usr/shell": 1, "usr/file": 2, "usr/link": 2}[name]
}

// bareRepo makes a repository that is checked by ours alone, which is faster.
func bareRepo(t *testing.T) *objectstore.Repo {
	t.Helper()
	repo, err := objectstore.Create(objecttest.OpenDir(t, t.TempDir()), objectstore.ModeBare)
	testenv.Must(t, err)
	t.Cleanup(func() {
		report, err := repo.Fsck(context.WithoutCancel(t.Context()), objectstore.FsckOptions{})
		testenv.Must(t, errors.Join(err, report.Err(), repo.Close()))
	})
	return repo
}

// index returns the index of the first entry of a layer whose name contains text.
func index(l nativetest.Layer, text string) int {
	return slices.IndexFunc(l, func(e nativetest.Entry) bool { return strings.Contains(e.Name, text) })
}

func without(l nativetest.Layer, text string) nativetest.Layer {
	i := index(l, text)
	return slices.Delete(l, i, i+1)
}

func object(data string, typ objectstore.ObjectType) nativetest.Entry {
	return nativetest.File(nativetest.ObjectPath(sha256.Sum256([]byte(data)), typ), data, 0o644)
}

// TestMalformed: each malformed image is an ErrInvalid that names the layer, and nothing is in the repository.
func TestMalformed(t *testing.T) {
	type layers = []nativetest.Layer
	from := objecttest.NewRepo(t)
	commit := objecttest.Commit(t, from, "os", small())
	other := objecttest.Commit(t, from, "other", objecttest.Dir(0o755, nil))
	objects := nativetest.Repo + "objects/"
	selinux := xattrsLinkOf(t, from, commit, "/usr/shell")
	for name, tt := range map[string]struct {
		change func(l layers) layers
		want   []string
	}{
		"another commit than the label": {func(layers) layers {
			return nativetest.Encapsulate(t, from, other, 1, smallChunks)
		}, []string{"layer 0 ", "its commit is " + other.String(), "ostree.commit names " + commit.String()}},
		"no commit": {func(l layers) layers {
			l[0] = without(l[0], ".commit")
			return l
		}, []string{"layer 0 ", "it has no commit"}},
		"two commits": {func(l layers) layers {
			data, err := from.ReadMetadata(objectstore.TypeCommit, other)
			testenv.Must(t, err)
			l[0] = append(l[0], object(string(data), objectstore.TypeCommit))
			return l
		}, []string{"layer 0 ", "second commit"}},
		"no file": {func(l layers) layers {
			i := index(l[2], ".file-xattrs-link")
			object := strings.TrimSuffix(l[2][i].Name, "-xattrs-link")
			l[2] = slices.DeleteFunc(l[2], func(e nativetest.Entry) bool {
				return strings.HasPrefix(e.Name, object) || e.Linkname == object
			})
			return l
		}, []string{"layer 2 ", ".file is missing, in this layer and those below"}},
		"no dirtree": {func(l layers) layers {
			l[0] = without(l[0], ".dirtree")
			return l
		}, []string{"layer 0 ", ".dirtree is missing"}},
		"no dirmeta": {func(l layers) layers {
			l[0] = without(l[0], ".dirmeta")
			return l
		}, []string{"layer 0 ", ".dirmeta is missing"}},
		"list of attributes without a file": {func(l layers) layers {
			l[1] = append(l[1], nativetest.File(objects+"ab/"+strings.Repeat("c", 62)+".file-xattrs-link", "", 0o644))
			return l
		}, []string{"layer 1 ", "abcc", ".file is missing, but not the list of its extended attributes"}},
		"file without a list of attributes": {func(l layers) layers {
			l[1] = without(l[1], ".file-xattrs-link")
			return l
		}, []string{"layer 1 ", ".file has no list of its extended attributes"}},
		"metadata in a chunk": {func(l layers) layers {
			l[1] = append(l[1], object("\x00", objectstore.TypeDirTree))
			return l
		}, []string{"layer 1 ", ".dirtree: metadata in a layer above the lowest"}},
		"commit in a chunk": {func(l layers) layers {
			i := index(l[0], ".commit")
			l[1] = append(l[1], l[0][i])
			l[0] = slices.Delete(l[0], i, i+1)
			return l
		}, []string{"layer 1 ", ".commit: metadata in a layer above the lowest"}},
		"large metadata": {func(l layers) layers {
			l[0] = append(l[0], object(strings.Repeat("x", 10<<20+1), objectstore.TypeDirTree))
			return l
		}, []string{"layer 0 ", "metadata of 10485761 bytes, at most 10485760 are allowed"}},
		"large attributes": {func(l layers) layers {
			i := index(l[1], ".file-xattrs-link")
			l[1][i] = nativetest.File(l[1][i].Name, strings.Repeat("x", 1<<20+1), 0o644)
			return l
		}, []string{"layer 1 ", "extended attributes of 1048577 bytes, at most 1048576 are allowed"}},
		"damaged attributes": {func(l layers) layers {
			i := index(l[1], ".file-xattrs-link")
			l[1][i] = nativetest.File(l[1][i].Name, "\xff\xff", 0o644)
			return l
		}, []string{"layer 1 ", ".file-xattrs-link: parse extended attributes"}},
		"unsorted attributes": {func(l layers) layers {
			at, i := find(l, selinux)
			l[at][i] = nativetest.File(selinux, "b\x00v\x02a\x00v\x02\x04\x08", 0o644)
			return l
		}, []string{"layer 1 ", `.file: extended attribute "a": not sorted, or twice`}},
		"other attributes": {func(l layers) layers {
			at, i := find(l, selinux)
			l[at][i] = nativetest.File(selinux, "", 0o644)
			return l
		}, []string{"layer 1 ", ".file: its checksum is not its name"}},
		"attributes of a file without any": {func(l layers) layers {
			link := xattrsLinkOf(t, from, commit, "/usr/file")
			at, i := find(l, link)
			l[at][i] = nativetest.File(link, "a\x00v\x02\x04", 0o644)
			return l
		}, []string{"layer 2 ", ".file: its checksum is not its name"}},
		"other content": {func(l layers) layers {
			at, i := find(l, strings.TrimSuffix(selinux, "-xattrs-link"))
			l[at][i].Content = "SHELL"
			return l
		}, []string{"layer 1 ", ".file: its checksum is not its name"}},
		"other owner of a link": {func(l layers) layers {
			for at := range l {
				for i, e := range l[at] {
					if e.Linkname == "shell" || strings.HasSuffix(e.Linkname, ".file") {
						l[at][i].Uid = 1
					}
				}
			}
			return l
		}, []string{".file: its checksum is not its name"}},
		"damaged metadata": {func(l layers) layers {
			i := index(l[0], ".dirmeta")
			l[0][i] = nativetest.File(l[0][i].Name, strings.Repeat("x", len(l[0][i].Content)), 0o644)
			return l
		}, []string{"layer 0 ", ".dirmeta: its checksum is not its name"}},
		"mode of the repository": {func(l layers) layers {
			i := index(l[0], "repo/config")
			l[0][i] = nativetest.File(l[0][i].Name, "[core]\nrepo_version=1\nmode=bare\n", 0o644)
			return l
		}, []string{"layer 0 ", `has mode "bare", not bare-split-xattrs`}},
		"no configuration": {func(l layers) layers {
			for i := range l {
				l[i] = without(l[i], "repo/config")
			}
			return l
		}, []string{"layer 0 ", "/sysroot/ostree/repo has no config"}},
		"configuration that is no key file": {func(l layers) layers {
			i := index(l[0], "repo/config")
			l[0][i] = nativetest.File(l[0][i].Name, "mode", 0o644)
			return l
		}, []string{"layer 0 ", "config: line 1"}},
		"large configuration": {func(l layers) layers {
			i := index(l[0], "repo/config")
			l[0][i] = nativetest.File(l[0][i].Name, strings.Repeat("#", 64<<10+1), 0o644)
			return l
		}, []string{"layer 0 ", "config has 65537 bytes"}},
		"odd name": {func(l layers) layers {
			l[0] = append(l[0], nativetest.File(objects+"ab/cd.file", "", 0o644))
			return l
		}, []string{"layer 0 ", "objects/ab/cd.file: not the name of an object"}},
		"odd directory": {func(l layers) layers {
			l[0] = append(l[0], nativetest.File(objects+"0xab/"+strings.Repeat("c", 62)+".file", "", 0o644))
			return l
		}, []string{"layer 0 ", "not the name of an object"}},
		"odd type": {func(l layers) layers {
			l[0] = append(l[0], nativetest.File(objects+"ab/"+strings.Repeat("c", 62)+".filez", "", 0o644))
			return l
		}, []string{"layer 0 ", ".filez: path "}},
		"link as metadata": {func(l layers) layers {
			l[0] = append(l[0], nativetest.Symlink(objects+"ab/"+strings.Repeat("c", 62)+".dirtree", "/etc/shadow"))
			return l
		}, []string{"layer 0 ", ".dirtree: mode 120777: not an object"}},
		"directory as file": {func(l layers) layers {
			l[0] = append(l[0], nativetest.Dir(objects+"ab/"+strings.Repeat("c", 62)+".file", 0o755))
			return l
		}, []string{"layer 0 ", ".file: mode 40755: not an object"}},
		"list of attributes in another layer": {func(l layers) layers {
			at, i := find(l, selinux)
			l[0] = append(l[0], nativetest.File(nativetest.Repo+"objects/list", l[at][i].Content, 0o644))
			l[at][i] = nativetest.Link(selinux, nativetest.Repo+"objects/list")
			return l
		}, []string{"layer 1 ", "hard link to a file of another layer"}},
		"signatures of another commit": {func(l layers) layers {
			l[0] = append(l[0], nativetest.File(nativetest.ObjectPath(other, objectstore.TypeCommitMeta), "", 0o644))
			return l
		}, []string{"layer 0 ", "signatures of another commit"}},
		"damaged signatures": {func(l layers) layers {
			l[0] = append(l[0], nativetest.File(nativetest.ObjectPath(commit, objectstore.TypeCommitMeta), "xyz", 0o644))
			return l
		}, []string{"layer 0 ", ".commitmeta: "}},
	} {
		t.Run(name, func(t *testing.T) {
			img := newImage(t, commit, tt.change(nativetest.Encapsulate(t, from, commit, 3, smallChunks))...)
			to := bareRepo(t)
			base, err := img.read(t)
			if err == nil {
				err = storeBase(t, base, to, img.layers.Repo())
			}
			var in *native.LayerError
			if !errors.Is(err, native.ErrInvalid) || !errors.As(err, &in) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got error %v, want an ErrInvalid of a layer, on one line", err)
			}
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got error %v, want %q in it", err, want)
				}
			}
			if names, err := filepath.Glob(to.ObjectsDir().Path() + "/*/*.commit*"); err != nil || len(names) != 0 {
				t.Errorf("%v, %v are in the repository, want no commit", names, err)
			}
			if refs, err := to.Refs(""); err != nil || len(refs) != 0 {
				t.Errorf("refs %v, %v, want none", refs, err)
			}
		})
	}
}

// find returns the layer and index of the entry with a name.
func find(l []nativetest.Layer, name string) (at, i int) {
	for at, layer := range l {
		if i := slices.IndexFunc(layer, func(e nativetest.Entry) bool { return e.Name == name }); i >= 0 {
			return at, i
		}
	}
	panic("no entry " + name)
}

// xattrsLinkOf returns the path in a layer of the list of a file's extended attributes.
func xattrsLinkOf(t *testing.T, repo *objectstore.Repo, commit objectstore.Checksum, name string) string {
	t.Helper()
	c, err := repo.Commit(commit)
	testenv.Must(t, err)
	e, err := repo.Lookup(c.Root(), strings.TrimPrefix(name, "/"))
	testenv.Must(t, err)
	return nativetest.ObjectPath(e.Checksum, objectstore.TypeFileXattrsLink)
}

// TestManyPaths: a few objects can make a tree of more paths than there are atoms.
func TestManyPaths(t *testing.T) {
	from := objecttest.NewRepo(t)
	txn, err := from.Begin(t.Context())
	testenv.Must(t, err)
	tree, meta, err := objecttest.Store(txn, objecttest.Dir(0o755, nil))
	testenv.Must(t, err)
	nest := func(tree objectstore.Checksum, names ...string) objectstore.Checksum {
		var d objectstore.DirTree
		for _, name := range names {
			d.Dirs = append(d.Dirs, objectstore.TreeDir{Name: name, Tree: tree, Meta: meta})
		}
		data, err := d.Marshal()
		testenv.Must(t, err)
		stored, err := txn.StoreMetadata(objectstore.TypeDirTree, data)
		testenv.Must(t, err)
		return stored.Checksum
	}
	wide, deep, long := tree, tree, tree
	for range 30 {
		wide = nest(wide, "a", "b")
	}
	for range 3000 {
		deep = nest(deep, "a")
	}
	for range 20 {
		long = nest(long, strings.Repeat("n", 255))
	}
	defer func() { testenv.Must(t, txn.Abort()) }()
	for name, tt := range map[string]struct {
		root objectstore.Checksum
		want string
	}{
		"wide": {wide, "more than 4194304 paths"},
		"deep": {deep, "more than 2047 directories above it"},
		"long": {long, "longer than 4095"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := (&objectstore.Commit{Tree: tt.root, Meta: meta}).Marshal()
			testenv.Must(t, err)
			commit := objectstore.Checksum(sha256.Sum256(data))
			l := nativetest.Layer{object(string(data), objectstore.TypeCommit), nativetest.File(nativetest.Repo+"config", "[core]\nmode=bare-split-xattrs\n", 0o644)}
			for _, typ := range []objectstore.ObjectType{objectstore.TypeDirTree, objectstore.TypeDirMeta} {
				names, err := filepath.Glob(from.ObjectsDir().Path() + "/*/*." + typ.Ext())
				testenv.Must(t, err)
				for _, name := range names {
					data, err := os.ReadFile(name)
					testenv.Must(t, err)
					l = append(l, object(string(data), typ))
				}
			}
			if _, err := newImage(t, commit, l).read(t); !errors.Is(err, native.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestLimits: all metadata objects, and all different lists of extended attributes, have a limit.
func TestLimits(t *testing.T) {
	for name, tt := range map[string]struct {
		tree  *objecttest.Node
		limit int64
		want  string
	}{
		"metadata":                      {small(), 200, "layer 0 .*: metadata of more than 200 bytes"},
		"attributes":                    {manyLists(20), 10000, "all lists of extended attributes have more than 10000 bytes"},
		"attributes, enough":            {manyLists(20), 30000, "^$"},
		"attributes of all files":       {oneList(20), 1100, "the extended attributes of all files have more than 17600 bytes"},
		"attributes of all directories": {nestedDirs(6), 2500, "attributes of directories below it have more than 40000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			from := objecttest.NewRepo(t)
			commit := objecttest.Commit(t, from, "os", tt.tree)
			img := newImage(t, commit, nativetest.Encapsulate(t, from, commit, 1, inLowest)...)
			place, err := native.Find(img.config)
			testenv.Must(t, err)
			_, err = native.ReadWithin(t.Context(), img.layers, img.ids, place, tt.limit)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if !regexp.MustCompile(tt.want).MatchString(got) || err != nil && !errors.Is(err, native.ErrInvalid) {
				t.Errorf("got error %v, want %s", err, tt.want)
			}
		})
	}
}

// manyLists is a tree of files with n different lists of extended attributes of 1,000 bytes, each of two files.
func manyLists(n int) *objecttest.Node {
	files := make(map[string]*objecttest.Node)
	for i := range n {
		for _, content := range []string{"a", "b"} {
			files[fmt.Sprint(content, i)] = objecttest.File(0o644, content).Xattr("user.x", strings.Repeat(fmt.Sprint(i%10), 1000+i))
		}
	}
	return objecttest.Dir(0o755, files)
}

// oneList is a tree of n files that share a list of extended attributes of 1,000 bytes.
func oneList(n int) *objecttest.Node {
	files := make(map[string]*objecttest.Node)
	for i := range n {
		files[fmt.Sprint(i)] = objecttest.File(0o644, fmt.Sprint(i)).Xattr("user.x", strings.Repeat("x", 1000))
	}
	return objecttest.Dir(0o755, files)
}

// nestedDirs is a tree of n objects, and 2^n paths, with attributes of 600 bytes each.
func nestedDirs(n int) *objecttest.Node {
	dir := objecttest.Dir(0o755, nil)
	for range n {
		below := dir.Xattr("user.x", strings.Repeat("x", 600))
		dir = objecttest.Dir(0o755, map[string]*objecttest.Node{"a": below, "b": below})
	}
	return dir
}

// TestNoRoom: too little room is an error before anything is written.
func TestNoRoom(t *testing.T) {
	from := objecttest.NewRepo(t)
	commit := objecttest.Commit(t, from, "os", objecttest.Dir(0o755, map[string]*objecttest.Node{
		"large": objecttest.File(0o644, string(bytes.Repeat([]byte("x"), 20<<20))).Xattr("security.selinux", "l\x00"),
	}))
	img := newImage(t, commit, nativetest.Encapsulate(t, from, commit, 1, inLowest)...)
	base, err := img.read(t)
	testenv.Must(t, err)
	dir := testenv.NewDisk(t, "ext4", 16<<20).Dir + "/repo"
	testenv.Must(t, os.Mkdir(dir, 0o755))
	to := objecttest.NewRepoAt(t, objecttest.OpenDir(t, dir))
	if err := storeBase(t, base, to, img.layers.Repo()); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "20 MiB") {
		t.Errorf("got error %v, want ENOSPC with the size", err)
	}
	if names, err := filepath.Glob(to.ObjectsDir().Path() + "/*/*"); err != nil || len(names) != 0 {
		t.Errorf("%v, %v were written", names, err)
	}
}
