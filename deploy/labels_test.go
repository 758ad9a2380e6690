package deploy

import (
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/nativetest"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// policyFiles are those of a policy with a given text.
func policyFiles(mode, contexts string) []file {
	return []file{
		{name: "etc/selinux/config", content: "SELINUX=" + mode + "\nSELINUXTYPE=targeted\n"},
		{name: "etc/selinux/targeted/policy/policy.33", content: "compiled"},
		{name: "etc/selinux/targeted/contexts/files/file_contexts", content: contexts},
		{name: "etc/selinux/targeted/contexts/files/file_contexts.subs_dist", content: "/lib /usr/lib\n"},
	}
}

func TestReadLabels(t *testing.T) {
	b := newBed(t)
	img := b.osImage(t, append(
		policyFiles("enforcing", "/.* u:o:root\n/usr/lib/.* -- u:o:lib\n/usr/lib/.* -l u:o:link\n/etc(/.*)? u:o:etc\n/run/.* <<none>>\n"),
		file{name: "lib", target: "usr/lib"}, file{name: "usr/lib/x", target: "os-release"},
	)...)
	labels, err := ReadLabels(t.Context(), b.layers, img)
	testenv.Must(t, err)
	for _, tt := range []struct {
		name, path string
		typ        fs.FileMode
		inImage    bool
		label      string
		line       int
	}{
		{"/", "/", fs.ModeDir, true, "u:o:root", 1},
		{"/usr/lib/os-release", "/usr/lib/os-release", 0, true, "u:o:lib", 2},
		{"usr/lib/../lib/os-release", "/usr/lib/os-release", 0, true, "u:o:lib", 2},
		{"/lib/os-release", "/usr/lib/os-release", 0, true, "u:o:lib", 2},
		{"/lib", "/lib", fs.ModeSymlink, true, "u:o:root", 1}, // by substitution /usr/lib
		{"/usr/lib/x", "/usr/lib/x", fs.ModeSymlink, true, "u:o:link", 3},
		{"/etc", "/etc", fs.ModeDir, true, "u:o:etc", 4},
		{"/etc/app.conf", "/etc/app.conf", 0, true, "u:o:etc", 4},
		{"/usr/etc/app.conf", "/usr/etc/app.conf", 0, true, "u:o:root", 1},
		{"/run/x", "/run/x", 0, false, "", 5},
		{"/usr/lib/new", "/usr/lib/new", 0, false, "u:o:lib", 2},
		{"/usr/lib/new/", "/usr/lib/new", fs.ModeDir, false, "u:o:root", 1},
		{"/lib/none/x", "/lib/none/x", 0, false, "u:o:lib", 2},
	} {
		got := labels.File(tt.name)
		if got.Path != tt.path || got.Type != tt.typ || got.InImage != tt.inImage || got.Label != tt.label || got.Line.Line != tt.line {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt)
		}
	}
}

func TestReadLabelsRefused(t *testing.T) {
	b := newBed(t)
	for name, tt := range map[string]struct {
		files []file
		want  error
	}{
		"no policy": {nil, selinux.ErrNoPolicy},
		"disabled":  {policyFiles("disabled", "/.* u:o:root\n"), selinux.ErrNoPolicy},
		"bad line":  {policyFiles("permissive", "/.* u:o:root\n/x(\n"), selinux.ErrInvalid},
		"too large": {policyFiles("permissive", kib("#", selinux.MaxFile>>10+1)), oscommit.ErrInvalid},
		"directory": {[]file{{name: "etc/selinux/config/"}}, oscommit.ErrInvalid},
		"loop":      {[]file{{name: "etc/selinux/config", target: "config"}}, selinux.ErrNoPolicy},
	} {
		if _, err := ReadLabels(t.Context(), b.layers, b.osImage(t, tt.files...)); !errors.Is(err, tt.want) {
			t.Errorf("%s: got error %v, want %v", name, err, tt.want)
		}
	}
}

// TestLabelled promotes images with the default source, and compares the commits with those that it makes without labels.
func TestLabelled(t *testing.T) {
	b := newBed(t)
	to := sysrootRepo(t, b.root.Path()+"-sysroot/ostree/repo")
	promote := func(img *Image, o PromoteOptions) (objectstore.Checksum, error) {
		p, err := Promote(t.Context(), b.layers, to, img, o)
		if err != nil {
			return objectstore.Checksum{}, err
		}
		return p.Commit, p.Close()
	}
	without := func(files []file, name string) []file {
		return slices.DeleteFunc(files, func(f file) bool { return path.Base(f.name) == name })
	}
	const contexts = "/.* u:o:root\n/usr/etc(/.*)? u:o:usretc\n/etc(/.*)? u:o:etc\n"
	for name, tt := range map[string]struct {
		files  []file
		o      PromoteOptions
		labels map[string]string // of directories
		want   error
	}{
		"policy":             {policyFiles("enforcing", contexts), PromoteOptions{}, map[string]string{"": "root", "usr/etc": "usretc"}, nil},
		"epoch 1":            {policyFiles("permissive", contexts), PromoteOptions{Epoch: 1}, map[string]string{"": "root", "usr/etc": "etc"}, nil},
		"no labels":          {policyFiles("enforcing", contexts), PromoteOptions{NoLabels: true}, map[string]string{"": "", "usr/etc": ""}, nil},
		"disabled":           {policyFiles("disabled", contexts), PromoteOptions{}, map[string]string{"": "", "usr/etc": ""}, nil},
		"no policy":          {nil, PromoteOptions{}, map[string]string{"": "", "usr/etc": ""}, nil},
		"no compiled one":    {without(policyFiles("enforcing", contexts), "policy.33"), PromoteOptions{}, nil, selinux.ErrInvalid},
		"no file_contexts":   {without(policyFiles("enforcing", contexts), "file_contexts"), PromoteOptions{}, nil, selinux.ErrInvalid},
		"no label for /":     {policyFiles("enforcing", "/usr u:o:usr\n"), PromoteOptions{}, nil, selinux.ErrInvalid},
		"bad line":           {policyFiles("enforcing", "/.* u:o:root\n/(?=x) u:o:x\n"), PromoteOptions{}, nil, selinux.ErrInvalid},
		"bad, and no labels": {policyFiles("enforcing", "/.* u:o:root\n/(?=x) u:o:x\n"), PromoteOptions{NoLabels: true}, map[string]string{"": ""}, nil},
	} {
		commit, err := promote(b.osImage(t, tt.files...), tt.o)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got error %v, want %v", name, err, tt.want)
		}
		for dir, want := range tt.labels {
			if got := dirLabel(t, to, commit, dir); got != want && got != "u:o:"+want+"\x00" {
				t.Errorf("%s: /%s: got label %q, want %q", name, dir, got, want)
			}
		}
	}
}

// TestDryRunLinks: a dry run makes the same commit as the real one, of hard links alone, where labels or other users' files
// take copies.
func TestDryRunLinks(t *testing.T) {
	b := newBed(t)
	from := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, from, "os", nativeTree())
	native := nativetest.Encapsulate(t, from, sum, inside, byName)
	above := nativetest.Layer{nativetest.File("usr/bin/more", "more", 0o755)}
	open := file{name: "usr/bin/set", content: "of another user", uid: 1000}
	for name, img := range map[string]*Image{
		"ordinary": b.osImage(t, append(policyFiles("enforcing", "/.* u:o:root\n"), open)...),
		"native":   b.nativeImage(t, "example.org/native:1", sum, native...),
		"derived":  b.nativeImage(t, "example.org/derived:1", sum, append(native, above)...),
	} {
		to := sysrootRepo(t, filepath.Join(b.root.Path()+"-sysroot", name))
		dry := promoteTo(t, b.layers, to, img, true)
		for _, object := range contentObjects(t, dry.Repo) {
			st, err := dry.Repo.Stat(object)
			testenv.Must(t, err)
			if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 && st.Nlink == 1 {
				t.Errorf("%s: object %s of %d bytes is a copy", name, object, st.Size)
			}
		}
		made := promoteTo(t, b.layers, to, img, false)
		if dry.Commit != made.Commit {
			t.Errorf("%s: the dry run has commit %s, want %s", name, dry.Commit, made.Commit)
		}
		for _, object := range contentObjects(t, to) {
			want, err := to.FileMeta(object)
			testenv.Must(t, err)
			got, err := dry.Repo.FileMeta(object)
			testenv.Must(t, err)
			if diff := testenv.Diff(want, got); diff != "" {
				t.Errorf("%s: object %s of the dry run (-want +got):\n%s", name, object, diff)
			}
		}
		testenv.Must(t, errors.Join(dry.Close(), made.Close()))
		objecttest.Fsck(t, to)
	}
	objecttest.Fsck(t, b.repo)
}

// dirLabel returns the label of a directory of a commit, "" for none.
func dirLabel(t *testing.T, repo *objectstore.Repo, commit objectstore.Checksum, name string) string {
	t.Helper()
	c, err := repo.Commit(commit)
	testenv.Must(t, err)
	tree, meta := c.Tree, c.Meta
	for part := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == '/' }) {
		d, err := repo.DirTree(tree)
		testenv.Must(t, err)
		i := slices.IndexFunc(d.Dirs, func(d objectstore.TreeDir) bool { return d.Name == part })
		tree, meta = d.Dirs[i].Tree, d.Dirs[i].Meta
	}
	m, err := repo.DirMeta(meta)
	testenv.Must(t, err)
	for _, x := range m.Xattrs {
		if x.Name == atfs.XattrSELinux {
			return string(x.Value)
		}
	}
	return ""
}

// TestLabelEpoch keeps the epoch of a system's labels in upgrades until another one is asked for.
func TestLabelEpoch(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	const contexts = "/.* u:o:root\n/usr/etc(/.*)? u:o:usretc\n/etc(/.*)? u:o:etc\n"
	img := b.osImage(t, policyFiles("enforcing", contexts)...)
	one, zero := oscommit.EpochEtc, oscommit.EpochUsrEtc
	for i, tt := range []struct {
		epoch  *oscommit.Epoch
		edits  kargs.Edits
		same   bool
		label  string
		origin string
	}{
		{&one, kargs.Edits{}, false, "u:o:etc\x00", "1"},
		{nil, kargs.Edits{}, true, "u:o:etc\x00", "1"},
		{nil, kargs.Edits{Append: []string{"another"}}, false, "u:o:etc\x00", "1"},
		{&zero, kargs.Edits{}, false, "u:o:usretc\x00", ""},
		{nil, kargs.Edits{}, true, "u:o:usretc\x00", ""},
	} {
		p, err := s.Plan(t.Context(), b.load(t, s), b.layers, Request{Image: img, Epoch: tt.epoch, Kargs: tt.edits})
		testenv.Must(t, err)
		if got := dirLabel(t, s.Repo(), p.OS.Commit, "usr/etc"); got != tt.label || (p.Same != nil) != tt.same {
			t.Errorf("step %d: label %q, same: %t, want %q, %t", i, got, p.Same != nil, tt.label, tt.same)
		}
		testenv.Must(t, p.Execute(t.Context()))
		testenv.Must(t, p.Close())
		origin := b.load(t, s).Deployments[0].Origin
		if got, _ := origin.Get(originGroup, originEpoch); got != tt.origin {
			t.Errorf("step %d: origin\n%s", i, origin.Marshal())
		}
	}
	d := b.load(t, s).Deployments[0]
	d.Origin.Set(originGroup, originEpoch, "2")
	if err := (&Request{}).labels(d); err == nil || !strings.Contains(err.Error(), `selinux-labeling-epoch="2"`) {
		t.Errorf("unknown epoch: got error %v", err)
	}
}

// TestOriginOwn keeps the keys of the program's own group in an origin file apart.
func TestOriginOwn(t *testing.T) {
	f := &keyfile.File{}
	setSharedKargs(f, kargs.List{"quiet"})
	setLabelEpoch(f, oscommit.EpochEtc)
	setSharedKargs(f, nil)
	if got, err := labelEpoch(f); err != nil || got != oscommit.EpochEtc {
		t.Errorf("epoch %d, %v, want 1", got, err)
	}
	setSharedKargs(f, kargs.List{"quiet"})
	setLabelEpoch(f, oscommit.EpochUsrEtc)
	if want := "[ostree-snapshotter]\nshared-kargs=quiet\n"; string(f.Marshal()) != want {
		t.Errorf("got %s, want %s", f.Marshal(), want)
	}
	setSharedKargs(f, nil)
	if got := f.Marshal(); len(got) > 0 {
		t.Errorf("got %s, want an empty file", got)
	}
}
