package script

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// The layers of the operating systems that scripts deploy. All have osBase below. The first two are versions of one
// image, with different defaults in /etc and kernel arguments, and a large file in common.
var (
	osBase = append([]snaptest.TarFile{
		{Name: "etc/app.conf", Content: "default\n", Mtime: 1000},
		{Name: "etc/gone.conf", Content: "default\n", Mtime: 1000},
		{Name: "usr/lib/tmpfiles.d/var.conf", Content: "# nothing\n", Mtime: 1000},
		{Name: "usr/share/large", Content: snaptest.KiB("large", 400), Mtime: 1000},
	}, snaptest.OSFiles...)
	os1Files = []snaptest.TarFile{
		{Name: "etc/version", Content: "1\n", Mtime: 2000},
		{Name: "usr/lib/bootc/kargs.d/10-os.toml", Content: "kargs = [\"quiet\", \"old\"]\n", Mtime: 2000},
		{Name: "usr/share/own", Content: snaptest.KiB("one", 40), Mtime: 2000},
	}
	os2Files = []snaptest.TarFile{
		{Name: "etc/version", Content: "2\n", Mtime: 3000},
		{Name: "usr/lib/bootc/kargs.d/10-os.toml", Content: "kargs = [\"quiet\", \"new\"]\n", Mtime: 3000},
		{Name: "usr/share/own", Content: snaptest.KiB("two", 60), Mtime: 3000},
	}
	conflictFiles = []snaptest.TarFile{ // an administrator's file is a directory
		{Name: "etc/added/file", Content: "a directory\n", Mtime: 3000},
	}
	selinuxFiles = []snaptest.TarFile{
		{Name: "etc/selinux/config", Content: "SELINUX=enforcing\nSELINUXTYPE=targeted\n", Mtime: 3000},
		{Name: "etc/selinux/targeted/policy", Content: "policy\n", Mtime: 3000},
	}
	kargsFiles = []snaptest.TarFile{
		{Name: "usr/lib/bootc/kargs.d/99-evil.toml", Content: "kargs = [\"ostree=/ostree/boot.0/evil/00/0\"]\n", Mtime: 3000},
	}
	twoKernelsFiles = []snaptest.TarFile{
		{Name: "usr/lib/modules/6.2.0/vmlinuz", Content: "another kernel\n", Mtime: 3000},
	}
)

// An osImage is an image that scripts deploy.
type osImage struct {
	name, version string
	layers        [][]snaptest.TarFile
}

var osImages = []osImage{
	{"example.org/os:1", "1.0", [][]snaptest.TarFile{osBase, os1Files}},
	{"example.org/os:2", "2.0", [][]snaptest.TarFile{osBase, os2Files}},
	{"example.org/conflict:1", "", [][]snaptest.TarFile{osBase, conflictFiles}},
	{"example.org/selinux:1", "", [][]snaptest.TarFile{osBase, selinuxFiles}},
	{"example.org/kargs:1", "", [][]snaptest.TarFile{osBase, kargsFiles}},
	{"example.org/kernels:1", "", [][]snaptest.TarFile{osBase, twoKernelsFiles}},
	{"example.org/app:1", "", [][]snaptest.TarFile{snaptest.BaseFiles}},
}

// newOSContainerd serves the images that scripts deploy, and one that is not unpacked.
func newOSContainerd(t *testing.T) *containerdtest.Server {
	t.Helper()
	f := containerdtest.New(t)
	f.Plugins = map[string]string{containerd.SnapshotterID: "", containerd.DifferID: "no socket"}
	platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	for _, img := range osImages {
		var diffIDs []digest.Digest
		for _, files := range img.layers {
			data, err := snaptest.MakeTar(files)
			if err != nil {
				t.Fatal(err)
			}
			diffIDs = append(diffIDs, digest.FromBytes(data))
		}
		labels := map[string]string{}
		if img.version != "" {
			labels["org.opencontainers.image.version"] = img.version
		}
		f.Tag("default", img.name, f.Manifest(containerdtest.Image{
			Platform: platform, Created: "2026-01-02T03:04:05Z", Labels: labels, DiffIDs: diffIDs,
		}))
	}
	f.Tag("default", "example.org/packed:1", f.Manifest(containerdtest.Image{
		Platform: platform, DiffIDs: []digest.Digest{digest.FromString("not unpacked")},
	}))
	return f
}

// osstore DIR: makes the store of makeOSStore in DIR.
func scriptOSStore(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: osstore DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o711))
	ts.Check(makeOSStore(context.Background(), dir))
}

// makeOSStore makes a store with the images of newOSContainerd unpacked, and closes it.
func makeOSStore(ctx context.Context, dir string) (err error) {
	f, err := snaptest.OpenFixture(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	unpacked := make(map[digest.Digest]bool)
	for _, img := range osImages {
		var chain digest.Digest
		for _, files := range img.layers {
			next, err := chainOf(chain, files)
			if err != nil {
				return err
			}
			if !unpacked[next] {
				if _, _, err := f.Unpack(ctx, chain, files); err != nil {
					return err
				}
				unpacked[next] = true
			}
			chain = next
		}
	}
	return nil
}

// chainOf returns the chain ID of a layer on a chain.
func chainOf(parent digest.Digest, files []snaptest.TarFile) (digest.Digest, error) {
	data, err := snaptest.MakeTar(files)
	id := digest.FromBytes(data)
	if parent != "" {
		id = digest.FromString(parent.String() + " " + id.String())
	}
	return id, err
}

// sysroot DIR: makes a directory for a sysroot, which can be removed when the script ends.
func scriptSysroot(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: sysroot DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o755))
	ts.Defer(func() { // a deployment is immutable
		parent, err := atfs.Open(filepath.Dir(dir))
		ts.Check(err)
		ts.Check(errors.Join(parent.RemoveAll(filepath.Base(dir)), parent.Close()))
	})
}

// deployment DIR INDEX VARIABLE: sets the variable to the path of a deployment.
func scriptDeployment(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: deployment DIR INDEX VARIABLE")
	}
	dir := ts.MkAbs(args[0])
	s, err := deploy.Open(dir, deploy.Options{ReadOnly: true})
	ts.Check(err)
	st, err := s.Load(context.Background())
	ts.Check(errors.Join(err, s.Close()))
	index, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Setenv(args[2], filepath.Join(args[0], st.All()[index].Path()))
}

// meanwhile DIR COMMAND [ARG...]: runs a command while this process works on the sysroot in DIR, and stops that once
// the command waits for it. The command must succeed then.
func scriptMeanwhile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: meanwhile DIR COMMAND [ARG...]")
	}
	s, err := deploy.Open(ts.MkAbs(args[0]), deploy.Options{})
	ts.Check(err)
	defer func() { ts.Check(s.Close()) }()
	unlock, err := s.Lock(context.Background())
	ts.Check(err)
	name, err := exec.LookPath(args[1])
	ts.Check(err)
	cmd := exec.Command(name, args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	line, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil || !strings.Contains(line, "waiting for another process") {
		ts.Logf("it says %q, %v", line, err)
		err = errors.New("the command does not wait")
	}
	ts.Check(errors.Join(err, unlock(), cmd.Wait()))
}
