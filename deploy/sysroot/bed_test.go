package sysroot_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// value fails the test instead of returning an error: value(f())(t).
func value[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		testenv.Must(tb, err)
		return v
	}
}

type (
	node  = objecttest.Node
	names = map[string]*node
)

var (
	dir  = objecttest.Dir
	file = objecttest.File
	link = objecttest.Symlink
)

// osTree returns a tiny system. Trees with the same kernel have the same bootcsum.
func osTree(version, kernel string) *node {
	return dir(0o755, names{
		"boot": dir(0o755, nil), "sysroot": dir(0o755, nil), "ostree": link("sysroot/ostree"),
		"var": dir(0o755, names{"lib": dir(0o755, names{"db": file(0o644, "data")})}),
		"usr": dir(0o755, names{
			"bin": dir(0o755, names{"sh": file(0o755, "shell")}),
			"etc": dir(0o755, names{"conf": file(0o644, "default "+version), "same": file(0o600, "same"), "empty": file(0o644, "")}),
			"lib": dir(0o755, names{
				"os-release": file(0o644, "PRETTY_NAME=\"Test OS\"\nID=test\n"),
				"tmpfiles.d": dir(0o755, nil),
				"modules": dir(0o755, names{"6.1.0": dir(0o755, names{
					"vmlinuz": file(0o644, "kernel "+kernel), "initramfs.img": file(0o600, "initramfs "+kernel),
				})}),
			}),
		}),
	})
}

// commitTree stores a commit of a tree, with a version and other metadata, under a ref.
func commitTree(tb testing.TB, repo *objectstore.Repo, ref, version string, tree *node, metadata ...objectstore.MetaEntry) {
	tb.Helper()
	txn := value(repo.Begin(tb.Context()))(tb)
	root, meta, err := objecttest.Store(txn, tree)
	testenv.Must(tb, err)
	c := &objectstore.Commit{Tree: root, Meta: meta, Timestamp: 1700000000, Metadata: append([]objectstore.MetaEntry{
		{Key: "version", Value: gvariant.String(version)},
		{Key: "ostree.ref-binding", Value: gvariant.Strings([]string{ref})},
	}, metadata...)}
	stored := value(txn.StoreMetadata(objectstore.TypeCommit, value(c.Marshal())(tb)))(tb)
	txn.SetRef(ref, stored.Checksum)
	testenv.Must(tb, txn.Commit(tb.Context(), objectstore.CommitOptions{}))
}

// A bed is a sysroot to test on.
type bed struct {
	*sysroot.Sysroot
	t        *testing.T
	path     string
	run      string // its /run; "" for none
	bootPath string // its /boot; "" for that in the sysroot
	noPrune  bool   // try leaves objects
	full     bool   // reopen has a smallLoader
}

// newSysroot makes a sysroot with the stateroot os, in a directory that can be removed when the test ends.
func newSysroot(t *testing.T) *bed {
	t.Helper()
	testenv.NeedsRoot(t)
	path := testenv.MemoryDir(t)
	initSysroot(t, path)
	return openSysroot(t, path, sysroot.Options{})
}

func initSysroot(t *testing.T, path string) {
	t.Helper()
	d := value(atfs.Open(path))(t)
	testenv.Must(t, sysroot.Init(d))
	s := value(sysroot.Open(d, sysroot.Options{}))(t)
	testenv.Must(t, s.InitStateroot("os"))
	testenv.Must(t, s.Close())
	testenv.Must(t, d.Close())
	t.Cleanup(func() { thaw(t, path) })
}

func openSysroot(t *testing.T, path string, opts sysroot.Options) *bed {
	t.Helper()
	d := value(atfs.Open(path))(t)
	b := &bed{Sysroot: value(sysroot.Open(d, opts))(t), t: t, path: path}
	testenv.Must(t, d.Close())
	t.Cleanup(func() { testenv.Must(t, b.Close()) })
	return b
}

// thaw clears the immutable flags of deployments.
func thaw(t *testing.T, path string) {
	t.Helper()
	for _, name := range value(filepath.Glob(filepath.Join(path, "ostree/deploy/*/deploy/*.[0-9]*")))(t) {
		d, err := atfs.Open(name)
		if err != nil {
			continue // an origin file
		}
		testenv.Must(t, d.SetImmutable(false))
		testenv.Must(t, d.Close())
	}
}

func (b *bed) commit(version, kernel string) {
	b.t.Helper()
	commitTree(b.t, b.Repo(), "os/"+version, version, osTree(version, kernel))
}

func (b *bed) load() *sysroot.State {
	b.t.Helper()
	return value(b.Load(b.t.Context()))(b.t)
}

// do loads the state, plans and executes, under the lock.
func (b *bed) do(plan func(st *sysroot.State) (*sysroot.Plan, error)) *sysroot.Plan {
	b.t.Helper()
	unlock := value(b.Lock(b.t.Context()))(b.t)
	defer func() { testenv.Must(b.t, unlock()) }()
	p := value(plan(b.load()))(b.t)
	testenv.Must(b.t, b.Execute(b.t.Context(), p))
	return p
}

// deploy deploys a commit as the CLI does: with the merge deployment's /etc and kernel arguments.
func (b *bed) deploy(sum objectstore.Checksum, change ...func(*sysroot.Request)) {
	b.t.Helper()
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		r := sysroot.Request{Stateroot: "os", Commit: sum, Origin: originFile("os/x")}
		for _, f := range change {
			f(&r)
		}
		r.Merge = st.MergeDeployment(r.Stateroot)
		return b.PlanDeploy(b.t.Context(), st, r)
	})
}

func withKargs(args ...string) func(*sysroot.Request) {
	return func(r *sysroot.Request) { r.Kargs = kargs.List(args) }
}

func originFile(refspec string) *keyfile.File {
	f := &keyfile.File{}
	f.Set("origin", "refspec", refspec)
	return f
}

// admin runs "ostree admin", which must succeed, and returns its output.
func (b *bed) admin(args ...string) string {
	b.t.Helper()
	out, err := b.tryAdmin(args...)
	if err != nil {
		b.t.Fatalf("ostree admin %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (b *bed) tryAdmin(args ...string) (string, error) {
	out, err := exec.Command("ostree", append(append([]string{"admin"}, args...), "--sysroot="+b.path)...).CombinedOutput()
	return string(out), err
}

// snapshot lists everything that decides how a sysroot boots, with names, targets and contents.
func snapshot(t *testing.T, path string) string {
	t.Helper()
	var lines []string
	add := func(root string, content bool) { lines = append(lines, list(t, path, root, content)...) }
	add("boot", true)
	for _, e := range value(os.ReadDir(filepath.Join(path, "ostree")))(t) {
		if strings.HasPrefix(e.Name(), "boot.") {
			add("ostree/"+e.Name(), false)
		}
	}
	add("ostree/repo/refs/heads", true)
	for _, stateroot := range value(os.ReadDir(filepath.Join(path, "ostree/deploy")))(t) {
		deployments, err := os.ReadDir(filepath.Join(path, "ostree/deploy", stateroot.Name(), "deploy"))
		if os.IsNotExist(err) {
			continue
		}
		testenv.Must(t, err)
		for _, e := range deployments {
			name := filepath.Join("ostree/deploy", stateroot.Name(), "deploy", e.Name())
			if !e.IsDir() {
				add(name, true)
				continue
			}
			lines = append(lines, fmt.Sprintf("%s immutable: %t", name, immutable(t, filepath.Join(path, name))))
			add(name+"/etc", true)
			if _, err := os.Lstat(filepath.Join(path, name, ".ostree.cfs")); err == nil {
				add(name+"/.ostree.cfs", true)
			}
		}
		// Older versions of ostree treat /var in their own way, which other tests cover.
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "ostree/repo/refs/heads/os/") })
	return strings.Join(lines, "\n") + "\n"
}

// list lists a directory, with targets and contents.
func list(t *testing.T, path, root string, content bool) (lines []string) {
	t.Helper()
	testenv.Must(t, filepath.WalkDir(filepath.Join(path, root), func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := value(filepath.Rel(path, name))(t)
		switch {
		case d.Type()&os.ModeSymlink != 0:
			rel += " -> " + value(os.Readlink(name))(t)
		case d.IsDir():
			rel += "/"
		case content:
			rel += ": " + strings.ReplaceAll(string(value(os.ReadFile(name))(t)), "\n", "|")
		}
		if label := label(t, name); label != "" {
			rel += " label " + label
		}
		lines = append(lines, rel)
		return nil
	}))
	return lines
}

const immutableFlag = 0x10

func immutable(t *testing.T, path string) bool {
	t.Helper()
	d := value(atfs.Open(path))(t)
	defer d.Close()
	flags, err := unix.IoctlGetUint32(d.FD(), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&immutableFlag != 0
}

func openDir(t *testing.T, path string) *atfs.Dir {
	t.Helper()
	return objecttest.OpenDir(t, path)
}

// bind mounts a directory over another until the test ends.
func bind(t *testing.T, from, over string) {
	t.Helper()
	testenv.Must(t, unix.Mount(from, over, "", unix.MS_BIND, ""))
	t.Cleanup(func() { testenv.Must(t, unix.Unmount(over, 0)) })
}

func bootcsum(contents ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(contents, "")))
	return hex.EncodeToString(sum[:])
}
