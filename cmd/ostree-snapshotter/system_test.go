package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
)

// The layers of the operating systems that scripts deploy. All have osBase below. The first two are versions of one
// image, with different defaults in /etc and kernel arguments, and a large file in common.
var (
	osBase = append([]tarFile{
		{name: "etc/app.conf", content: "default\n", mtime: 1000},
		{name: "etc/gone.conf", content: "default\n", mtime: 1000},
		{name: "usr/lib/tmpfiles.d/var.conf", content: "# nothing\n", mtime: 1000},
		{name: "usr/share/large", content: kib("large", 400), mtime: 1000},
	}, osFiles...)
	os1Files = []tarFile{
		{name: "etc/version", content: "1\n", mtime: 2000},
		{name: "usr/lib/bootc/kargs.d/10-os.toml", content: "kargs = [\"quiet\", \"old\"]\n", mtime: 2000},
		{name: "usr/share/own", content: kib("one", 40), mtime: 2000},
	}
	os2Files = []tarFile{
		{name: "etc/version", content: "2\n", mtime: 3000},
		{name: "usr/lib/bootc/kargs.d/10-os.toml", content: "kargs = [\"quiet\", \"new\"]\n", mtime: 3000},
		{name: "usr/share/own", content: kib("two", 60), mtime: 3000},
	}
	conflictFiles = []tarFile{ // an administrator's file is a directory
		{name: "etc/added/file", content: "a directory\n", mtime: 3000},
	}
	selinuxFiles = []tarFile{
		{name: "etc/selinux/config", content: "SELINUX=enforcing\nSELINUXTYPE=targeted\n", mtime: 3000},
		{name: "etc/selinux/targeted/policy", content: "policy\n", mtime: 3000},
	}
	kargsFiles = []tarFile{
		{name: "usr/lib/bootc/kargs.d/99-evil.toml", content: "kargs = [\"ostree=/ostree/boot.0/evil/00/0\"]\n", mtime: 3000},
	}
	twoKernelsFiles = []tarFile{
		{name: "usr/lib/modules/6.2.0/vmlinuz", content: "another kernel\n", mtime: 3000},
	}
)

// An osImage is an image that scripts deploy.
type osImage struct {
	name, version string
	layers        [][]tarFile
}

var osImages = []osImage{
	{"example.org/os:1", "1.0", [][]tarFile{osBase, os1Files}},
	{"example.org/os:2", "2.0", [][]tarFile{osBase, os2Files}},
	{"example.org/conflict:1", "", [][]tarFile{osBase, conflictFiles}},
	{"example.org/selinux:1", "", [][]tarFile{osBase, selinuxFiles}},
	{"example.org/kargs:1", "", [][]tarFile{osBase, kargsFiles}},
	{"example.org/kernels:1", "", [][]tarFile{osBase, twoKernelsFiles}},
	{"example.org/app:1", "", [][]tarFile{baseFiles}},
}

// newOSContainerd serves the images that scripts deploy, and one that is not unpacked.
func newOSContainerd(t *testing.T) *containerdtest.Server {
	t.Helper()
	f := newContainerd(t)
	for _, img := range osImages {
		var diffIDs []digest.Digest
		for _, files := range img.layers {
			data, err := makeTar(files)
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
			Platform: hostPlatform(), Created: "2026-01-02T03:04:05Z", Labels: labels, DiffIDs: diffIDs,
		}))
	}
	f.Tag("default", "example.org/packed:1", f.Manifest(containerdtest.Image{
		Platform: hostPlatform(), DiffIDs: []digest.Digest{digest.FromString("not unpacked")},
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
	if err := createRepo(filepath.Join(dir, "repo")); err != nil {
		return err
	}
	f, err := openFixture(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	unpacked := make(map[digest.Digest]bool)
	for _, img := range osImages {
		var chain digest.Digest
		for _, files := range img.layers {
			next, err := chainOf(chain, files)
			if err != nil {
				return err
			}
			if !unpacked[next] {
				if _, _, err := f.unpack(ctx, chain, files); err != nil {
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
func chainOf(parent digest.Digest, files []tarFile) (digest.Digest, error) {
	data, err := makeTar(files)
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
	ts.Defer(func() { ts.Check(thaw(dir)) })
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
	d, _, err := indexArg(st, args[1])
	ts.Check(err)
	ts.Setenv(args[2], filepath.Join(args[0], d.Path()))
}

// thaw makes the deployments of a sysroot removable.
func thaw(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "ostree/deploy/*/deploy/*"))
	for _, name := range names {
		if strings.Contains(filepath.Base(name), "origin") {
			continue
		}
		d, oerr := atfs.Open(name)
		if oerr != nil {
			return oerr
		}
		err = errors.Join(err, d.SetImmutable(false), d.Close())
	}
	return err
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

// TestSystemInterrupted interrupts each long command before it begins. The system stays as it is.
func TestSystemInterrupted(t *testing.T) {
	testenv.NeedsRoot(t)
	containerd := newOSContainerd(t)
	store, sys := t.TempDir(), filepath.Join(t.TempDir(), "sys")
	if err := errors.Join(makeOSStore(t.Context(), store), os.Mkdir(sys, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := thaw(sys); err != nil {
			t.Error(err)
		}
	})
	images := []string{"--root", store, "--address", containerd.Address, "example.org/os:1"}
	output(t, exitOK, append([]string{"deploy", "--sysroot", sys, "--init"}, images...)...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{
		append([]string{"deploy", "--karg=x"}, images...), append([]string{"switch", "--karg=x"}, images...),
		{"status"},
		{"kargs", "--append=x"},
		{"rollback"},
		{"cleanup"},
		{"config-diff"},
	} {
		t.Run(args[0], func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := execute(ctx, append(args, "--sysroot", sys), &stdout, &stderr); got != exitInterrupted {
				t.Errorf("exit status is %d, want %d: %s", got, exitInterrupted, stderr.String())
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout is %q, want nothing", stdout.String())
			}
		})
	}
	var r statusReport
	decode(t, output(t, exitOK, "status", "--sysroot", sys, "--json"), &r)
	if len(r.Deployments) != 1 {
		t.Errorf("there are %d deployments, want 1", len(r.Deployments))
	}
}
