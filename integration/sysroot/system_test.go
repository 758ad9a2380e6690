package sysroot

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

// The stateroots and refs of the tests.
const (
	osName    = "debian"
	otherName = "other"
)

// trees are what the tests deploy, by ref. The kernels of v2 and v3 are the same.
var trees = map[string]*osTree{
	"os/v1": {name: "Test OS", version: "1", kernel: "one"},
	"os/v2": {name: "Test OS", version: "2", kernel: "two", files: map[string]string{"usr/etc/new": "of version 2"}},
	"os/v3": {name: "Test OS", version: "3", kernel: "two"},
}

// A system is a sysroot, and the ostree that works on it.
type system struct {
	t    *testing.T
	root string
	boot string // a /boot of its own; "": that of the sysroot
	host *ostreehost.Host
}

// newSystems makes a directory for each sysroot on one file system in memory, and a host that reaches them. With ownBoot
// each has a /boot of its own.
func newSystems(t *testing.T, r ostreehost.Release, ownBoot bool, names ...string) (disk string, systems []*system) {
	t.Helper()
	disk = mountMemory(t, "256m")
	for _, name := range names {
		s := &system{t: t, root: filepath.Join(disk, name)}
		if err := os.Mkdir(s.root, 0o755); err != nil {
			t.Fatal(err)
		}
		if ownBoot {
			s.boot = filepath.Join(s.root, "boot")
			if err := os.Mkdir(s.boot, 0o755); err != nil {
				t.Fatal(err)
			}
			mountMemoryAt(t, s.boot, "16m")
		}
		systems = append(systems, s)
	}
	host := ostreehost.Start(t, r, ostreehost.Options{Binds: []ostreehost.Bind{{From: disk, To: disk}}, Env: ostreeEnv})
	for _, s := range systems {
		s.host = host
	}
	return disk, systems
}

// ostreeEnv keeps ostree from calling sync(2), which concerns the disks of the machine.
var ostreeEnv = []string{"OSTREE_SYSROOT_OPTS=skip-sync"}

// run runs a command on the system's host and ends the test if it fails.
func run(t *testing.T, h *ostreehost.Host, args ...string) string {
	t.Helper()
	out, err := h.Run(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// admin runs ostree admin on the sysroot from outside.
func (s *system) admin(verb string, args ...string) (string, error) {
	return s.host.Run(append([]string{"ostree", "admin", verb, "--sysroot=" + s.root}, args...)...)
}

// ostree runs ostree on the sysroot's repository.
func (s *system) ostree(verb string, args ...string) string {
	s.t.Helper()
	return run(s.t, s.host, append([]string{"ostree", verb, "--repo=" + filepath.Join(s.root, "ostree/repo")}, args...)...)
}

// commit has ostree commit the trees. Their checksums are the same each time.
func (s *system) commit(disk string) {
	s.t.Helper()
	for ref, tree := range trees {
		dir := filepath.Join(disk, "tree", ref)
		if _, err := os.Stat(dir); err != nil {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				s.t.Fatal(err)
			}
			tree.write(s.t, dir)
		}
		s.ostree("commit", "--branch="+ref, "--timestamp=2025-01-01T00:00:00Z",
			"--add-metadata-string=version="+tree.version, "--tree=dir="+dir)
	}
}

// init makes the sysroot and its first stateroot with ostree.
func (s *system) init(disk string) {
	s.t.Helper()
	run(s.t, s.host, "ostree", "admin", "init-fs", "--modern", s.root)
	if _, err := s.admin("os-init", osName); err != nil {
		s.t.Fatal(err)
	}
	s.commit(disk)
}

// bootDir returns the directory that is /boot.
func (s *system) bootDir() string { return filepath.Join(s.root, "boot") }

// entries reads the boot loader entries, the default first.
func (s *system) entries() []*bls.Entry {
	s.t.Helper()
	names, err := filepath.Glob(filepath.Join(s.bootDir(), "loader/entries/*.conf"))
	if err != nil {
		s.t.Fatal(err)
	}
	entries := make([]*bls.Entry, len(names))
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			s.t.Fatal(err)
		}
		e, err := bls.Parse(text)
		if err != nil {
			s.t.Fatalf("parse %s: %v", name, err)
		}
		var n int
		if _, err := fmt.Sscan(e.Version, &n); err != nil || n < 1 || n > len(names) || entries[len(names)-n] != nil {
			s.t.Fatalf("%s has the version %q among %d entries", name, e.Version, len(names))
		}
		entries[len(names)-n] = e
	}
	return entries
}

// start boots the system's entry with this index.
func (s *system) start(r ostreehost.Release, index int, config string) *ostreehost.Host {
	s.t.Helper()
	entries := s.entries()
	if index >= len(entries) {
		s.t.Fatalf("there are %d boot loader entries, want to start the one with index %d", len(entries), index)
	}
	h, err := ostreehost.StartBoot(s.t, r, ostreehost.Options{Env: ostreeEnv}, ostreehost.Boot{
		Sysroot: s.root, Boot: s.boot, Options: entries[index].Options, Config: config,
	})
	if err != nil {
		s.t.Fatalf("start %q: %v", entries[index].Options, err)
	}
	return h
}

var statusLine = regexp.MustCompile(`^(\*?) +(\S+ [0-9a-f]{64}\.[0-9]+.*)`)

// statusLines returns the deployments that ostree admin status lists.
func statusLines(status string) (lines []string) {
	for line := range strings.Lines(status) {
		if m := statusLine.FindStringSubmatch(line); m != nil {
			lines = append(lines, strings.TrimLeft(m[1]+" "+m[2], " "))
		}
	}
	return lines
}

// commitOf returns the checksum of a ref's commit.
func (s *system) commitOf(ref string) string {
	s.t.Helper()
	return strings.TrimSpace(s.ostree("rev-parse", ref))
}

// setReadonly says in the repository's configuration whether /sysroot is to be mounted read-only, where ostree of bookworm
// looks for it, and returns the initramfs' prepare-root.conf for that of trixie.
func (s *system) setReadonly(readonly bool) (config string) {
	s.t.Helper()
	s.ostree("config", "set", "sysroot.readonly", fmt.Sprint(readonly))
	return fmt.Sprintf("[sysroot]\nreadonly=%v\n", readonly)
}
