package deploy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/nativetest"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

const selinuxXattr = "security.selinux"

// policyText labels /usr/bin by a rule of its own, and all else alike.
const policyText = "/.* u:o:root\n/usr/bin/.* u:o:bin\n"

// nativeTree is the tree of an OS commit with labels by policyText, but for /usr/bin/odd.
func nativeTree() *objecttest.Node {
	root := func(n *objecttest.Node) *objecttest.Node { return n.Xattr(selinuxXattr, "u:o:root\x00") }
	bin := func(n *objecttest.Node) *objecttest.Node { return n.Xattr(selinuxXattr, "u:o:bin\x00") }
	file := func(content string) *objecttest.Node { return root(objecttest.File(0o644, content)) }
	dir := func(entries map[string]*objecttest.Node) *objecttest.Node {
		return root(objecttest.Dir(0o755, entries))
	}
	top := map[string]*objecttest.Node{
		"ostree": root(objecttest.Symlink("sysroot/ostree")),
		"root":   root(objecttest.Dir(0o700, nil)),
		"usr": dir(map[string]*objecttest.Node{
			"bin": dir(map[string]*objecttest.Node{
				"tool":  bin(objecttest.File(0o755, "tool")),
				"tool2": bin(objecttest.File(0o755, "tool")),
				"kept":  bin(objecttest.File(0o755, "kept")),
				"ping":  bin(objecttest.File(0o755, "ping")).Xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
				"sh":    bin(objecttest.Symlink("tool")),
				"odd":   root(objecttest.File(0o755, "odd")),
				"gone":  bin(objecttest.File(0o755, "gone")),
			}),
			"etc": dir(map[string]*objecttest.Node{
				"app.conf": file("default\n"), "shells": file("/bin/sh\n"), "passwd": file("root:x:0:0\n"), "empty": file(""), "hosts": file(""),
			}),
			"lib": dir(map[string]*objecttest.Node{
				"os-release": file("ID=test\n"),
				"modules": dir(map[string]*objecttest.Node{"6.1.0": dir(map[string]*objecttest.Node{
					"vmlinuz": file("kernel"), "initramfs.img": file("initramfs"),
				})}),
			}),
		}),
	}
	for _, name := range []string{"boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var"} {
		top[name] = dir(nil)
	}
	policy := func(entries map[string]*objecttest.Node) map[string]*objecttest.Node {
		return map[string]*objecttest.Node{"config": file("SELINUX=enforcing\nSELINUXTYPE=targeted\n"), "targeted": dir(entries)}
	}
	top["usr"].Entries["etc"].Entries["selinux"] = dir(policy(map[string]*objecttest.Node{
		"policy":   dir(map[string]*objecttest.Node{"policy.33": file("compiled")}),
		"contexts": dir(map[string]*objecttest.Node{"files": dir(map[string]*objecttest.Node{"file_contexts": file(policyText)})}),
	}))
	return dir(top)
}

// objectOf returns the path in a layer of the object of a file.
func objectOf(t *testing.T, repo *objectstore.Repo, commit objectstore.Checksum, name string) string {
	t.Helper()
	c, err := repo.Commit(commit)
	testenv.Must(t, err)
	e, err := repo.Lookup(c.Root(), name)
	testenv.Must(t, err)
	return nativetest.ObjectPath(e.Checksum, objectstore.TypeFile)
}

// importTars imports layers of an image with labels into the bed's store.
func (b *bed) importTars(t *testing.T, name string, labels map[string]string, tars ...[]byte) *Image {
	t.Helper()
	img := &Image{Name: name, Version: "1", Created: time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)}
	var diffIDs []digest.Digest
	var blobs []map[string]string
	for _, data := range tars {
		held, err := b.layers.Import(t.Context(), bytes.NewReader(data), layer.ImportOptions{})
		testenv.Must(t, err)
		testenv.Must(t, held.Release())
		img.Layers = append(img.Layers, held.ID)
		diffIDs = append(diffIDs, digest.FromBytes(data))
		blobs = append(blobs, map[string]string{"digest": digest.FromString("blob of " + string(data)).String()})
	}
	img.Config = nativetest.Config(t, diffIDs, labels)
	var err error
	img.Manifest, err = json.Marshal(map[string]any{"layers": blobs})
	testenv.Must(t, err)
	img.ManifestDigest = digest.FromBytes(img.Manifest)
	return img
}

// inside is the number of layers that hold the commit of a nativeImage.
const inside = 3

// nativeImage imports an image that has a commit in its lower layers.
func (b *bed) nativeImage(t *testing.T, name string, commit objectstore.Checksum, layers ...nativetest.Layer) *Image {
	t.Helper()
	var tars [][]byte
	labels := map[string]string{"ostree.commit": commit.String()}
	for i, l := range layers {
		data, diffID := l.Tar(t)
		tars = append(tars, data)
		if i == inside-1 {
			labels["ostree.final-diffid"] = diffID.String()
		}
	}
	return b.importTars(t, name, labels, tars...)
}

// byName puts files into three layers.
func byName(name string) int { return len(name) % 3 }

// promoteNative makes the commit of an image, and returns it.
func (b *bed) promoteNative(t *testing.T, to *objectstore.Repo, img *Image) (objectstore.Checksum, *objectstore.Commit) {
	t.Helper()
	p := promoteTo(t, b.layers, to, img, false)
	testenv.Must(t, p.Close())
	c, err := to.Commit(p.Commit)
	testenv.Must(t, err)
	return p.Commit, c
}

// blobRef returns the ref of an image's lowest layer.
func blobRef(t *testing.T, img *Image) string {
	t.Helper()
	ref, err := baseRef(img.Manifest)
	testenv.Must(t, err)
	return ref
}

// TestPromoteNative makes the commit of an image with nothing above the commit inside.
func TestPromoteNative(t *testing.T) {
	b := newBed(t)
	from := objecttest.NewRepo(t)
	want := objecttest.Commit(t, from, "os", nativeTree())
	img := b.nativeImage(t, "example.org/native:1", want, nativetest.Encapsulate(t, from, want, inside, byName)...)
	to := sysrootRepo(t, b.root.Path()+"-sysroot/ostree/repo")
	dry := promoteTo(t, b.layers, to, img, true)
	if n := len(contentObjects(t, to)); n != 0 || dry.Need.Objects == 0 || dry.Need.Metadata == 0 {
		t.Errorf("dry run: %d objects, need %+v, want no object, and copies", n, dry.Need)
	}
	testenv.Must(t, dry.Close())
	sum, commit := b.promoteNative(t, to, img)
	base, err := to.Commit(want)
	testenv.Must(t, err)
	if sum != dry.Commit || commit.Parent == nil || *commit.Parent != want || commit.Tree != base.Tree || commit.Meta != base.Meta {
		t.Errorf("got %+v, want the commit of the dry run, with parent %s and its tree", commit, want)
	}
	if got, err := to.Ref(blobRef(t, img)); err != nil || got != want {
		t.Errorf("ref of layer 0: got %s, %v, want %s", got, err, want)
	}
	if got, ok := strings.CutPrefix(blobRef(t, img), "ostree/container/blob/sha256_3A_"); !ok || len(got) != 64 {
		t.Errorf("ref of layer 0: got %s", blobRef(t, img))
	}
	if again, _ := b.promoteNative(t, to, img); again != sum {
		t.Errorf("again: got %s, want %s", again, sum)
	}
	objecttest.NeedsOstree(t)
	if got := objecttest.Ostree(t, to, "show", "--print-metadata-key=ostree.manifest-digest", sum.String()); got != "'"+img.ManifestDigest.String()+"'\n" {
		t.Errorf("ostree show: got %q, want the digest", got)
	}
	if got := objecttest.Ostree(t, to, "log", sum.String()); !strings.Contains(got, want.String()) {
		t.Errorf("ostree log: got %q, want the commit inside", got)
	}
}

// TestPromoteNativeShared makes the commits in the repository that has the layers, and finds the objects again.
func TestPromoteNativeShared(t *testing.T) {
	b := newBed(t)
	from := objecttest.NewRepo(t)
	want := objecttest.Commit(t, from, "os", nativeTree())
	layers := append(nativetest.Encapsulate(t, from, want, inside, byName), nativetest.Layer{nativetest.File("etc/new", "new", 0o644)})
	img := b.nativeImage(t, "example.org/native:1", want, layers...)
	sum, commit := b.promoteNative(t, b.repo, img)
	if commit.Parent == nil || *commit.Parent != want {
		t.Errorf("parent %v, want %s", commit.Parent, want)
	}
	if got := describe(t, b.repo, commit, "/usr/etc/new"); got != "new u:o:root" {
		t.Errorf("/usr/etc/new: got %q, want a label", got)
	}
	p := promoteTo(t, b.layers, b.repo, img, false)
	testenv.Must(t, p.Close())
	if p.Commit != sum || p.Need.Objects+p.Need.Shared != 0 || p.Need.Metadata != 0 {
		t.Errorf("again: commit %s, need %+v, want %s and nothing", p.Commit, p.Need, sum)
	}
}

// TestPromoteNativeMerge lays layers over the commit. The commit has what a container sees, with labels by the policy of
// the merged tree.
func TestPromoteNativeMerge(t *testing.T) {
	from := objecttest.NewRepo(t)
	commit := objecttest.Commit(t, from, "os", nativeTree())
	object := func(name string) string { return objectOf(t, from, commit, name) }
	dir, file, link := nativetest.Dir, nativetest.File, nativetest.Link
	for name, tt := range map[string]struct {
		layers []nativetest.Layer
		want   map[string]string // content and label by path, "" for an absent file
	}{
		"nothing": {[]nativetest.Layer{{}}, map[string]string{"/usr/bin/odd": "odd u:o:bin", "/usr/bin/tool": "tool u:o:bin"}},
		"new files": {
			[]nativetest.Layer{{dir("usr/bin", 0o755), file("usr/bin/new", "new", 0o755), file("etc/new", "new", 0o600), dir("root", 0o750)}},
			map[string]string{"/usr/bin/new": "new u:o:bin", "/usr/etc/new": "new u:o:root", "/usr/etc/app.conf": "default\n u:o:root"},
		},
		"removed files": {
			[]nativetest.Layer{{
				file("usr/bin/.wh.gone", "", 0), file("etc/.wh.app.conf", "", 0), file("usr/lib/modules/.wh..wh..opq", "", 0),
				file("usr/lib/modules/6.2.0/vmlinuz", "new kernel", 0o644), file("usr/lib/modules/6.2.0/initramfs.img", "new", 0o644),
			}},
			map[string]string{"/usr/bin/gone": "", "/usr/etc/app.conf": "", "/usr/lib/modules/6.1.0": "", "/usr/lib/modules/6.2.0/vmlinuz": "new kernel u:o:root"},
		},
		"write through a link": {
			[]nativetest.Layer{{file(object("usr/bin/tool"), "written", 0o755), program("usr/bin/tool", object("usr/bin/tool"))}},
			map[string]string{"/usr/bin/tool": "written u:o:bin", "/usr/bin/tool2": "tool u:o:bin"},
		},
		"write through two links": {
			[]nativetest.Layer{{
				file(object("usr/bin/tool"), "written", 0o755), program("usr/bin/tool", object("usr/bin/tool")), program("usr/bin/tool2", "usr/bin/tool"),
			}},
			map[string]string{"/usr/bin/tool": "written u:o:bin", "/usr/bin/tool2": "written u:o:bin"},
		},
		"reversed link": {
			[]nativetest.Layer{{file("etc/shells", "/bin/sh\n/bin/other\n", 0o644), link(object("usr/etc/shells"), "etc/shells")}},
			map[string]string{"/usr/etc/shells": "/bin/sh\n/bin/other\n u:o:root"},
		},
		"link to an object below": {
			[]nativetest.Layer{{program("usr/bin/new", object("usr/bin/kept"))}},
			map[string]string{"/usr/bin/new": "kept u:o:bin", "/usr/bin/kept": "kept u:o:bin"},
		},
		"link to a file with other attributes": {
			[]nativetest.Layer{{program("usr/lib/ping", "usr/bin/ping")}},
			map[string]string{"/usr/lib/ping": "ping u:o:root capability", "/usr/bin/ping": "ping u:o:bin capability"},
		},
		"link to a link": {
			[]nativetest.Layer{{link("usr/bin/sh2", object("usr/bin/sh"))}, {link("usr/bin/sh3", "usr/bin/sh2")}},
			map[string]string{"/usr/bin/sh3": "-> tool u:o:bin"},
		},
		"object in a later layer": {
			[]nativetest.Layer{{file(object("usr/bin/tool"), "written", 0o755)}, {program("usr/bin/tool", object("usr/bin/tool"))}},
			map[string]string{"/usr/bin/tool": "written u:o:bin"},
		},
		"repository removed": {
			[]nativetest.Layer{{file("sysroot/.wh.ostree", "", 0), file("etc/passwd", "root:x:0:0\nuser:x:1:1\n", 0o644)}},
			map[string]string{"/usr/etc/passwd": "root:x:0:0\nuser:x:1:1\n u:o:root", "/usr/bin/tool": "tool u:o:bin"},
		},
		"another policy": {
			[]nativetest.Layer{{file("etc/selinux/targeted/contexts/files/file_contexts", "/.* u:o:other\n/usr/lib/.* u:o:root\n", 0o644)}},
			map[string]string{"/usr/bin/tool": "tool u:o:other", "/usr/lib/os-release": "ID=test\n u:o:root"},
		},
		"no policy": {
			[]nativetest.Layer{{file("etc/selinux/config", "SELINUX=disabled\n", 0o644), file("usr/bin/new", "new", 0o755)}},
			map[string]string{"/usr/bin/tool": "tool u:o:bin", "/usr/bin/odd": "odd u:o:root", "/usr/bin/new": "new "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			layers := append(nativetest.Encapsulate(t, from, commit, inside, byName), tt.layers...)
			img := b.nativeImage(t, "example.org/derived:1", commit, layers...)
			to := sysrootRepo(t, b.root.Path()+"-sysroot/ostree/repo")
			sum, merged := b.promoteNative(t, to, img)
			for path, want := range tt.want {
				if got := describe(t, to, merged, path); got != want {
					t.Errorf("%s: got %q, want %q", path, got, want)
				}
			}
			if e, err := to.Lookup(merged.Root(), "sysroot/ostree"); !errors.Is(err, objectstore.ErrNoEntry) {
				t.Errorf("/sysroot/ostree: got %+v, %v, want nothing", e, err)
			}
			if merged.Parent == nil || *merged.Parent != commit {
				t.Errorf("parent %v, want %s", merged.Parent, commit)
			}
			if name == "no policy" { // files keep the labels that a container's do not have
				return
			}
			// What a container sees, as an image without a commit inside.
			plain := *img
			plain.Name, plain.Config = "example.org/plain:1", []byte("{}")
			_, seen := b.promoteNative(t, to, &plain)
			if merged.Tree != seen.Tree || merged.Meta != seen.Meta {
				t.Errorf("the tree of %s differs from what a container sees", sum)
				if objecttest.HasOstree() {
					t.Log(objecttest.Ostree(t, to, "diff", refOf(t, plain.Name), refOf(t, img.Name)))
				}
			}
		})
	}
}

func refOf(t *testing.T, name string) string {
	t.Helper()
	ref, err := imageRef(name)
	testenv.Must(t, err)
	return ref
}

// program is a hard link to a program.
func program(name, target string) nativetest.Entry {
	e := nativetest.Link(name, target)
	e.Mode = 0o755
	return e
}

// describe returns content or target, and label, of a file of a commit, "" for an absent one.
func describe(t *testing.T, repo *objectstore.Repo, c *objectstore.Commit, name string) string {
	t.Helper()
	e, err := repo.Lookup(c.Root(), strings.TrimPrefix(name, "/"))
	if errors.Is(err, objectstore.ErrNoEntry) {
		return ""
	}
	testenv.Must(t, err)
	m, err := repo.FileMeta(e.Checksum)
	testenv.Must(t, err)
	text := "-> " + m.Target
	if !m.IsSymlink() {
		f, err := repo.OpenFile(e.Checksum)
		testenv.Must(t, err)
		data, err := io.ReadAll(f)
		testenv.Must(t, errors.Join(err, f.Close()))
		text = string(data)
	}
	text += " "
	for _, x := range slices.Backward(m.Xattrs) {
		if x.Name == selinuxXattr {
			text += strings.TrimSuffix(string(x.Value), "\x00")
		} else {
			text += " " + strings.TrimPrefix(x.Name, "security.")
		}
	}
	return text
}

// TestPromoteFixture deploys an image that ostree's own builder and buildah made in 2021, with what it lacks to boot. No
// label names its last layer: it has a commit inside because its lowest layer holds the one of the label.
func TestPromoteFixture(t *testing.T) {
	const commit = "3cb6170b6945065c2475bc16d7bebcc84f96b4c677811a6751e479b89f8c3770"
	b := newBed(t)
	tars := fixtureLayers(t)
	more := makeTar(t, append(slices.Clone(osFiles[:10]), file{name: "etc/app.conf", content: "default\n"}, file{name: "usr/lib/os-release", content: "ID=test\n"}))
	s := newSystem(t)
	img := b.importTars(t, "example.org/fixture:1", map[string]string{"ostree.commit": commit}, append(tars, more)...)
	b.deploy(t, s, Request{Image: img, Stateroot: "os"})
	d := b.load(t, s).All()[0]
	c, err := s.Repo().Commit(d.Commit)
	testenv.Must(t, err)
	if c.Parent == nil || c.Parent.String() != commit {
		t.Errorf("parent %v, want %s", c.Parent, commit)
	}
	for path, want := range map[string]string{
		"/usr/bin/bash": "bash\n system_u:object_r:shell_exec_t:s0", "/usr/share/anewfile2": "", "/usr/bin/sh": "-> bash system_u:object_r:bin_t:s0",
	} {
		if got := describe(t, s.Repo(), c, path); got != want && (want != "" || got == "") {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	objecttest.NeedsOstree(t)
	objecttest.Ostree(t, s.Repo(), "fsck", "--quiet")
	if got := objecttest.Ostree(t, s.Repo(), "show", commit); !strings.Contains(got, commit) {
		t.Errorf("ostree show: got %q, want the commit", got)
	}
}

// fixtureLayers returns the tars of the fixture's layers.
func fixtureLayers(t *testing.T) [][]byte {
	t.Helper()
	f, err := os.Open("native/testdata/exampleos-derive-v2.ociarchive")
	testenv.Must(t, err)
	defer f.Close()
	tars := make(map[int64][]byte) // by size of the blob
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		testenv.Must(t, err)
		z, err := gzip.NewReader(r)
		if err != nil {
			continue // no layer
		}
		data, err := io.ReadAll(z)
		testenv.Must(t, err)
		tars[h.Size] = data
	}
	sizes := slices.Sorted(maps.Keys(tars))
	return [][]byte{tars[sizes[1]], tars[sizes[0]]}
}

// TestPromoteNativeOrdinary: an image with the label of a commit that its lowest layer does not have is an ordinary one.
func TestPromoteNativeOrdinary(t *testing.T) {
	b := newBed(t)
	img := b.importTars(t, "example.org/os:1", map[string]string{"ostree.commit": strings.Repeat("ab", 32)}, makeTar(t, baseFiles), makeTar(t, osFiles))
	if _, c := b.promoteNative(t, sysrootRepo(t, b.root.Path()+"-sysroot/ostree/repo"), img); c.Parent != nil {
		t.Errorf("parent %s, want none", c.Parent)
	}
}

// TestPromoteNativeMalformed: an error of a layer is an ErrInvalid that names image and layer, and leaves nothing.
func TestPromoteNativeMalformed(t *testing.T) {
	from := objecttest.NewRepo(t)
	commit := objecttest.Commit(t, from, "os", nativeTree())
	for name, tt := range map[string]struct {
		change func(l []nativetest.Layer, img *Image)
		want   string
	}{
		"content": {func(l []nativetest.Layer, _ *Image) {
			for _, layer := range l {
				for i := range layer {
					if layer[i].Content == "kept" {
						layer[i].Content = "KEPT"
					}
				}
			}
		}, ".file: its checksum is not its name"},
		"manifest": {func(_ []nativetest.Layer, img *Image) { img.Manifest = []byte(`{"layers":[{"digest":"../../x"}]}`) }, `digest "../../x" of a layer`},
		"configuration": {func(_ []nativetest.Layer, img *Image) {
			img.Config = []byte(`{"config":{"Labels":{"ostree.final-diffid":"x"}},"rootfs":{"diff_ids":["y"]}}`)
		}, "label ostree.commit"},
		"other layers": {func(_ []nativetest.Layer, img *Image) {
			img.Layers[0], img.Layers[1] = img.Layers[1], img.Layers[0]
		}, "its configuration names layer"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			layers := nativetest.Encapsulate(t, from, commit, inside, byName)
			var ignored Image
			ignored.Layers = make([]objectstore.Checksum, 2)
			tt.change(layers, &ignored)
			img := b.nativeImage(t, "example.org/native:1", commit, layers...)
			if name != "content" {
				tt.change(nil, img)
			}
			to := sysrootRepo(t, b.root.Path()+"-sysroot/ostree/repo")
			_, err := Promote(t.Context(), b.layers, to, img, PromoteOptions{})
			if !errors.Is(err, oscommit.ErrInvalid) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), img.Name) {
				t.Errorf("got error %v, want an ErrInvalid with %q", err, tt.want)
			}
			if refs, err := to.Refs(""); err != nil || len(refs) != 0 {
				t.Errorf("refs %v, %v, want none", refs, err)
			}
			if have, err := to.Has(objectstore.TypeCommit, commit); err != nil || have {
				t.Errorf("there is the commit, %v", err)
			}
		})
	}
}

// TestNativeRefs: the commit inside an image goes with the image, also one without metadata and time, and commits of other
// tools stay.
func TestNativeRefs(t *testing.T) {
	b := newBed(t)
	from := objecttest.NewRepo(t)
	s := newSystem(t)
	var imgs []*Image
	var commits []objectstore.Checksum
	for _, content := range []string{"first", "second", "third"} {
		tree := nativeTree()
		tree.Entries["usr"].Entries["lib"].Entries["version"] = objecttest.File(0o644, content)
		commits = append(commits, bareCommit(t, from, nil, 0, tree))
		imgs = append(imgs, b.nativeImage(t, "example.org/native:1", commits[len(commits)-1], nativetest.Encapsulate(t, from, commits[len(commits)-1], inside, byName)...))
	}
	foreign := foreignRefs(t, s.Repo())
	for _, img := range imgs {
		b.deploy(t, s, Request{Image: img, Stateroot: "os"})
	}
	found, err := s.Repo().Refs(blobRefs)
	testenv.Must(t, err)
	want := append([]string{blobRef(t, imgs[1]), blobRef(t, imgs[2])}, foreign...) // two deployments
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, want) {
		t.Errorf("refs of layers: got\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for i, have := range []bool{false, true, true} {
		if got, err := s.Repo().Has(objectstore.TypeCommit, commits[i]); err != nil || got != have {
			t.Errorf("commit inside image %d: got %t, %v, want %t", i, got, err, have)
		}
	}
}

// foreignRefs writes refs of layers as other tools do, and returns them: of an image that has a ref, of a layer, and of a
// part of a commit.
func foreignRefs(t *testing.T, repo *objectstore.Repo) (refs []string) {
	t.Helper()
	txn, err := repo.Begin(t.Context())
	testenv.Must(t, err)
	tree, meta, err := objecttest.Store(txn, objecttest.Dir(0o755, map[string]*objecttest.Node{"f": objecttest.File(0o644, "foreign")}))
	testenv.Must(t, err)
	put := func(ref string, entries ...objectstore.MetaEntry) {
		data, err := (&objectstore.Commit{Metadata: entries, Tree: tree, Meta: meta}).Marshal()
		testenv.Must(t, err)
		stored, err := txn.StoreMetadata(objectstore.TypeCommit, data)
		testenv.Must(t, err)
		txn.SetRef(ref, stored.Checksum)
		if strings.HasPrefix(ref, blobRefs) {
			refs = append(refs, ref)
		}
	}
	importer := objectstore.MetaEntry{Key: metaImporter, Value: gvariant.String("1.0")}
	blob := digest.FromString("foreign")
	put(imageRefs+"/foreign", importer, objectstore.MetaEntry{Key: oscommit.ManifestDigest, Value: gvariant.String("sha256:00")},
		objectstore.MetaEntry{Key: oscommit.Manifest, Value: gvariant.String(`{"layers":[{"digest":"` + blob.String() + `"}]}`)})
	put(escapeRef(blobRefs, blob.String()), objectstore.MetaEntry{Key: "version", Value: gvariant.String("1")})
	put(escapeRef(blobRefs, digest.FromString("layer").String()), importer)
	object, err := txn.StoreFile(&objectstore.FileMeta{Mode: unix.S_IFREG | 0o644}, unix.Timespec{}, []byte("part"))
	testenv.Must(t, err)
	part, err := (&objectstore.DirTree{Files: []objectstore.TreeFile{{Name: object.Checksum.String(), Checksum: object.Checksum}}}).Marshal()
	testenv.Must(t, err)
	stored, err := txn.StoreMetadata(objectstore.TypeDirTree, part)
	testenv.Must(t, err)
	tree = stored.Checksum
	put(escapeRef(blobRefs, digest.FromString("part").String()))
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
	return refs
}

// bareCommit makes a commit without metadata.
func bareCommit(t *testing.T, repo *objectstore.Repo, parent *objectstore.Checksum, timestamp uint64, root *objecttest.Node) objectstore.Checksum {
	t.Helper()
	txn, err := repo.Begin(t.Context())
	testenv.Must(t, err)
	tree, meta, err := objecttest.Store(txn, root)
	testenv.Must(t, err)
	data, err := (&objectstore.Commit{Timestamp: timestamp, Tree: tree, Meta: meta, Parent: parent}).Marshal()
	testenv.Must(t, err)
	stored, err := txn.StoreMetadata(objectstore.TypeCommit, data)
	testenv.Must(t, err)
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
	return stored.Checksum
}

// TestNativeHistory: a commit inside an image goes with the image also if the commit inside the next image names it as
// its parent, as those of a distribution's releases do.
func TestNativeHistory(t *testing.T) {
	b := newBed(t)
	from := objecttest.NewRepo(t)
	s := newSystem(t)
	var parent *objectstore.Checksum
	var commits []objectstore.Checksum
	for _, content := range []string{"first", "second", "third"} {
		tree := nativeTree()
		tree.Entries["usr"].Entries["lib"].Entries["version"] = objecttest.File(0o644, content)
		sum := bareCommit(t, from, parent, 1, tree)
		commits, parent = append(commits, sum), &sum
		b.deploy(t, s, Request{Image: b.nativeImage(t, "example.org/native:1", sum, nativetest.Encapsulate(t, from, sum, inside, byName)...), Stateroot: "os"})
	}
	for i, have := range []bool{false, true, true} { // two deployments
		if got, err := s.Repo().Has(objectstore.TypeCommit, commits[i]); err != nil || got != have {
			t.Errorf("commit inside image %d: got %t, %v, want %t", i, got, err, have)
		}
	}
}

// TestNativeRefsDamaged deploys although a branch that nobody needs is damaged. What it needs is not known, so all
// commits inside images stay.
func TestNativeRefsDamaged(t *testing.T) {
	b := newBed(t)
	from := objecttest.NewRepo(t)
	s := newSystem(t)
	damaged := objecttest.Commit(t, s.Repo(), "branch", objecttest.Dir(0o755, map[string]*objecttest.Node{"f": objecttest.File(0o644, "branch")}))
	testenv.Must(t, os.Truncate(filepath.Join(s.Repo().ObjectsDir().Path(), objectstore.LoosePath(damaged, objectstore.TypeCommit)), 0))
	for i, content := range []string{"first", "second", "third"} {
		tree := nativeTree()
		tree.Entries["usr"].Entries["lib"].Entries["version"] = objecttest.File(0o644, content)
		sum := objecttest.Commit(t, from, content, tree)
		img := b.nativeImage(t, "example.org/native:1", sum, nativetest.Encapsulate(t, from, sum, inside, byName)...)
		b.deploy(t, s, Request{Image: img, Stateroot: "os", NoPrune: true})
		if found, err := s.Repo().Refs(blobRefs); err != nil || len(found) != i+1 {
			t.Errorf("refs of layers: got %v, %v, want %d", found, err, i+1)
		}
	}
}
