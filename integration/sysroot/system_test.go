package sysroot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

// The stateroots and refs of the tests.
const (
	osName    = "debian"
	otherName = "other"
)

// trees are the deployed trees, by ref. The kernels of v2 and v3 are the same, and v4 has content in /var.
var trees = map[string]*osTree{
	"os/v1": {name: "Test OS", version: "1", kernel: "one"},
	"os/v2": {name: "Test OS", version: "2", kernel: "two", files: map[string]string{"usr/etc/new": "of version 2"}},
	"os/v3": {name: "Test OS", version: "3", kernel: "two"},
	"os/v4": {name: "Test OS", version: "4", kernel: "one", files: map[string]string{
		"var/lib/db/data": "initial", "var/log/wtmp": "", "usr/lib/tmpfiles.d/var.conf": "d /var/tmp\n",
	}},
}

// A system is a sysroot, with the ostree that works on it.
type system struct {
	t    *testing.T
	root string
	boot string // a separate /boot; "": that of the sysroot
	host *ostreehost.Host

	bootMount string // see writableBoot

	booted *ostreehost.Host // started from the sysroot; nil: none

	env []string // more variables of commands in the running system

	byProgram bool // our changes are made with the program where it has a verb, and not with the package
}

// newSystems makes a directory for each sysroot on one file system in memory, and a host with access to them. With
// ownBoot each has a separate /boot.
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
	host := ostreehost.Start(t, r, withProgram(t, ostreehost.Bind{From: disk, To: disk}))
	for _, s := range systems {
		s.host = host
	}
	return disk, systems
}

// ostreeEnv keeps ostree from calling sync(2), which affects the disks of the machine, and has the variables of systemd
// that it needs.
var ostreeEnv = []string{"OSTREE_SYSROOT_OPTS=skip-sync", "INVOCATION_ID=test"}

// run runs a command on the system's host and ends the test if it fails.
func run(t *testing.T, h *ostreehost.Host, args ...string) string {
	t.Helper()
	out, err := h.Run(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// admin runs ostree admin: in the running system if one was started, else on the sysroot from outside.
func (s *system) admin(verb string, args ...string) (string, error) {
	if s.booted != nil {
		return s.booted.Run(append([]string{"ostree", "admin", verb}, args...)...)
	}
	return s.host.Run(append([]string{"ostree", "admin", verb, "--sysroot=" + s.root}, args...)...)
}

// runProgram runs a verb of the program in the same way.
func (s *system) runProgram(verb string, args ...string) error {
	h, args := s.booted, append([]string{program, verb}, args...)
	if h == nil {
		h, args = s.host, append(args, "--sysroot="+s.root)
	}
	_, err := h.Run(args...)
	return err
}

// ostree runs ostree on the sysroot's repository.
func (s *system) ostree(verb string, args ...string) string {
	s.t.Helper()
	return run(s.t, s.host, append([]string{"ostree", verb, "--repo=" + filepath.Join(s.root, "ostree/repo")}, args...)...)
}

// commit commits the trees with ostree. Their checksums are always the same.
func (s *system) commit(disk string) {
	s.t.Helper()
	for ref, tree := range trees {
		s.commitTree(disk, ref, tree)
	}
}

func (s *system) commitTree(disk, ref string, tree *osTree) {
	s.t.Helper()
	dir := filepath.Join(disk, "tree", ref)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	tree.write(s.t, dir)
	s.ostree("commit", "--branch="+ref, "--timestamp=2025-01-01T00:00:00Z",
		"--add-metadata-string=version="+tree.version, "--tree=dir="+dir)
}

// initEmpty initializes the sysroot and its first stateroot with ostree.
func (s *system) initEmpty() {
	s.t.Helper()
	run(s.t, s.host, "ostree", "admin", "init-fs", "--modern", s.root)
	if _, err := s.admin("os-init", osName); err != nil {
		s.t.Fatal(err)
	}
}

// init initializes the sysroot and commits the trees.
func (s *system) init(disk string) { initAll(disk, s) }

// initAll initializes sysroots and their first stateroot: the first with ostree, and the others as copies of it.
func initAll(disk string, systems ...*system) {
	s := systems[0]
	s.t.Helper()
	s.initEmpty()
	s.commit(disk)
	for _, other := range systems[1:] {
		copySystem(s, other)
	}
}

// copySystem copies a sysroot without deployments.
func copySystem(from, to *system) {
	from.t.Helper()
	out, err := exec.CommandContext(from.t.Context(), "cp", "-a", filepath.Join(from.root, "ostree"), to.root).CombinedOutput()
	if err != nil {
		from.t.Fatalf("copy %s to %s: %v: %s", from.root, to.root, err, out)
	}
	if err := os.MkdirAll(to.bootDir(), 0o755); err != nil {
		from.t.Fatal(err)
	}
}

// bootDir returns the directory of /boot.
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

// deploymentOf returns the directory of an entry's deployment, below the sysroot.
func (s *system) deploymentOf(e *bls.Entry) string {
	s.t.Helper()
	link, ok := kargs.Parse(e.Options).Value("ostree")
	if !ok {
		s.t.Fatalf("no ostree= in %q", e.Options)
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(s.root, link))
	if err != nil {
		s.t.Fatal(err)
	}
	if dir, err = filepath.Rel(s.root, dir); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// check has the ostree of each host check the sysroot, compares its status with the reference's, and starts the default
// deployment, or all of them if the program made them.
func (s *system) check(t *testing.T, reference *system, hosts ...*ostreehost.Host) {
	t.Helper()
	for _, h := range append(hosts, s.host) {
		run(t, h, "ostree", "fsck", "--repo="+filepath.Join(s.root, "ostree/repo"))
		var said [2][]string
		for i, s := range []*system{reference, s} {
			said[i] = statusLines(run(t, h, "ostree", "admin", "status", "--sysroot="+s.root))
		}
		if !slices.Equal(said[1], said[0]) {
			t.Errorf("ostree admin status of %s lists %q, want %q", h.Release(), said[1], said[0])
		}
	}
	sr, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, sr.Repo())
	if err := sr.Close(); err != nil {
		t.Error(err)
	}
	for i, e := range s.entries() {
		if i > 0 && !s.byProgram {
			break
		}
		readonly := i%2 == 1
		h := s.start(s.host.Release(), i, s.setReadonly(readonly))
		checkMounts(t, h, readonly, s.boot != "")
		d := s.deploymentOf(e)
		want, got := stat(t, filepath.Join(s.root, d)), stat(t, h.Root())
		if want.Dev != got.Dev || want.Ino != got.Ino {
			t.Errorf("the entry %q does not start %s", e.Title, d)
		}
		h.Stop()
	}
}

func stat(t *testing.T, name string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Stat(name, &st); err != nil {
		t.Fatalf("stat %s: %v", name, err)
	}
	return st
}

// etc returns /etc of the running system, or else of the default deployment.
func (s *system) etc() string {
	s.t.Helper()
	if s.booted != nil {
		return s.booted.Path("etc")
	}
	return filepath.Join(s.root, s.deploymentOf(s.entries()[0]), "etc")
}

// stop stops the running system.
func (s *system) stop() {
	if s.booted != nil {
		s.booted.Stop()
		s.booted = nil
	}
}

// start boots the entry of the system with this index.
func (s *system) start(r ostreehost.Release, index int, config string) *ostreehost.Host {
	s.t.Helper()
	entries := s.entries()
	if index >= len(entries) {
		s.t.Fatalf("there are %d boot loader entries, want to start the one with index %d", len(entries), index)
	}
	opts := withProgram(s.t)
	opts.Env = append(slices.Clone(opts.Env), s.env...)
	h, err := ostreehost.StartBoot(s.t, r, opts, ostreehost.Boot{
		Sysroot: s.root, Boot: s.boot, Options: entries[index].Options, Config: config,
	})
	if err != nil {
		s.t.Fatalf("start %q: %v", entries[index].Options, err)
	}
	return h
}

var statusLine = regexp.MustCompile(`^(\*?) +(\S+ [0-9a-f]{64}\.[0-9]+.*)`)

// statusLines returns the deployments in the output of ostree admin status.
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

// setReadonly configures whether /sysroot is mounted read-only: in the repository's configuration, for the ostree of
// bookworm, and in the returned prepare-root.conf for the initramfs, for that of trixie.
func (s *system) setReadonly(readonly bool) (config string) {
	s.t.Helper()
	config = fmt.Sprintf("[sysroot]\nreadonly=%v\n", readonly)
	s.setConfig(bareConfig + config)
	return config
}

// bareConfig is the configuration of a sysroot's repository.
const bareConfig = "[core]\nrepo_version=1\nmode=bare\n\n"

// setConfig writes the repository's configuration.
func (s *system) setConfig(text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.root, "ostree/repo/config"), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}
