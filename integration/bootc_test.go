package integration

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
)

// TestPlainBootcImage deploys an image made for bootc that has nothing of ostree's in it, and installs it.
func TestPlainBootcImage(t *testing.T) {
	e := start(t, nil)
	img, err := images.Bootc(t.Context(), t.Output(), filepath.Join(t.TempDir(), "layout"))
	e.must(err)
	e.must(img.Push(t.Context(), shared.registry.Address, "bootc:1"))
	name := shared.registry.Address + "/bootc:1"
	e.must(e.Pull(t.Context(), defaultNS, name))
	s := newSystem(e)
	out := s.do(0, "deploy", "--init", "--stateroot", "os", "--json", name)
	for _, want := range []string{
		"The directories /home, /opt, /root and /srv are part of the tree: what the running system writes there is lost with the next deployment.",
		`"path": "/boot/config-`, `"path": "/etc/hostname"`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("deploy prints\n%.2000s\nwant %q", out, want)
		}
	}
	if got := s.state(); len(got) != 1 || got[0].Version != "1" || !slices.Equal(got[0].Kargs, []string{"console=ttyS0"}) {
		t.Errorf("status is %+v", got)
	}
	e.ostreeAgrees(s)
	s.sharesFiles()

	deployment, err := filepath.EvalSymlinks(s.path("."))
	e.must(err)
	got, err := tree.Read(t.Context(), deployment)
	e.must(err)
	image := e.view(defaultNS, name)
	for _, etc := range []string{"etc", "usr/etc"} { // the deployment has both
		want := selected(image, func(name string) string { return inDeployment(name, etc) })
		have := selected(got, func(name string) string {
			if below(name, "etc") && etc != "etc" || below(name, "usr/etc") && etc == "etc" {
				return ""
			}
			return name
		})
		if diff := tree.Diff(want, have, tree.Options{}); len(diff) > 0 {
			t.Errorf("the deployment differs from the image in %d files: %.2000q", len(diff), diff)
		}
	}

	// The image's configuration of its installation.
	disk := filepath.Join(t.TempDir(), "disk")
	out, err = s.Run(t.Context(), daemonBinary(t), "install", "--dry-run", "--size", "4G", "--root", s.Root, "--daemon-address", s.Daemon,
		"--address", s.Containerd, name, disk)
	e.must(err)
	for _, want := range []string{" xfs, ", "deployment: " + name + ", in the stateroot example\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("install --dry-run prints\n%s\nwant %q", out, want)
		}
	}
}

// inDeployment returns the path in a deployment of a file of its image, "" if it has none, for /etc at a path.
func inDeployment(name, etc string) string {
	top, rest, _ := strings.Cut(name, "/")
	switch {
	case rest != "" && slices.Contains([]string{"boot", "dev", "proc", "run", "sys", "sysroot", "tmp"}, top), name == "etc/hostname":
		return ""
	case top == "etc":
		return filepath.Join(etc, rest)
	}
	return name
}

func below(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

// selected returns the files of a tree by new paths, without those that have none, and without times.
func selected(t tree.Tree, path func(name string) string) tree.Tree {
	s := make(tree.Tree)
	for name, entry := range t {
		if to := path(name); to != "" {
			timeless := *entry
			timeless.Mtime = unix.Timespec{}
			s[to] = &timeless
		}
	}
	return s
}
