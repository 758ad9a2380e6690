package sysroot

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// labelledTrees are trees with Debian's SELinux policy.
func labelledTrees(t *testing.T) map[string]*osTree {
	t.Helper()
	built, err := testhost.SELinuxPolicy(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"usr/etc/shadow": "root:*:::::::\n", "usr/etc/ssh/ssh_host_rsa_key": "key", "usr/etc/cron.d/job": "# job\n", "usr/etc/fstab": "# none\n",
		"usr/lib/tmpfiles.d/var.conf": "d /var/tmp\n", "var/log/wtmp": "log", "var/lib/dbus/machine-id": "id", "var/cache/man/index": "index",
		"usr/etc/selinux/default/policy/policy.34": "binary",
	}
	for _, name := range []string{
		"config", "default/contexts/files/file_contexts", "default/contexts/files/file_contexts.homedirs", "default/contexts/files/file_contexts.subs_dist",
	} {
		text, err := os.ReadFile(filepath.Join(built, "etc/selinux", name))
		testenv.Must(t, err)
		files["usr/etc/selinux/"+name] = string(text)
	}
	return map[string]*osTree{
		"os/s1": {name: "Test OS", version: "1", kernel: "one", files: files},
		"os/s2": {name: "Test OS", version: "2", kernel: "two", files: files},
		"os/s3": {name: "Test OS", version: "3", kernel: "three", files: files},
	}
}

// label changes the label of a file in /etc.
func label(name, label string) op {
	return same("label /etc/"+name, func(s *system) error {
		return unix.Lsetxattr(filepath.Join(s.etc(), name), "security.selinux", []byte(label), 0)
	})
}

// labelOps are changes whose results need labels. Files that are created in /etc get their labels as the kernel would give them.
var labelOps = []op{
	deployment(deployOp{ref: "os/s1", set: []string{"root=/dev/vda2", "rw"}}),
	edit("conf", "mine"), label("conf", "system_u:object_r:etc_t:s0"),
	edit("shadow-", "mine"), label("shadow-", "system_u:object_r:shadow_t:s0"),
	drop("empty"),
	deployment(deployOp{ref: "os/s2"}),
	stateroot(otherName),
	deployment(deployOp{ref: "os/s2", stateroot: otherName, set: []string{"rw"}}),
	boot(1, false),
	deployment(deployOp{ref: "os/s3", stage: true}),
	edit("late", "mine"), label("late", "system_u:object_r:etc_t:s0"),
	finalize(),
}

// TestLabels makes the same changes with ostree on a host that seems to have SELinux, and with us on one that has not. The
// labels must be the same, and nothing of ours may lack one.
func TestLabels(t *testing.T) {
	needs(t)
	lib := testenv.SELinuxHost(t)
	trees := labelledTrees(t)
	for _, r := range ostreehost.Releases {
		t.Run(string(r), func(t *testing.T) {
			disk, systems := newSystems(t, r, true, "theirs", "ours")
			theirs, ours := systems[0], systems[1]
			theirs.initEmpty()
			for ref, tree := range trees {
				theirs.commitLabelled(disk, ref, tree)
			}
			copySystem(theirs, ours)
			theirs.preload(disk, lib)
			for _, o := range labelOps {
				if err := o.ostree(theirs); err != nil {
					t.Fatalf("%s with ostree: %v", o.name, err)
				}
				if err := o.ours(t.Context(), ours); err != nil {
					t.Fatalf("%s with us: %v", o.name, err)
				}
			}
			compareLabels(t, labelsOf(t, theirs), labelsOf(t, ours))
			run(t, ours.host, "ostree", "fsck", "--repo="+filepath.Join(ours.root, "ostree/repo"))
			ours.stop()
			theirs.stop()
		})
	}
}

// preload makes the ostree of a system believe that the host has SELinux, and labels what exists as such a host would have.
func (s *system) preload(disk, lib string) {
	s.t.Helper()
	const preloaded = "selinuxhost.so"
	data, err := os.ReadFile(lib)
	testenv.Must(s.t, err)
	testenv.Must(s.t, os.WriteFile(filepath.Join(s.root, preloaded), data, 0o755))
	for name := range labelsOf(s.t, s) {
		switch {
		case strings.HasPrefix(name, "ostree/repo"):
		case strings.Contains(name, "/var/"):
		default:
			testenv.Must(s.t, unix.Lsetxattr(filepath.Join(s.root, name), "security.selinux", []byte("system_u:object_r:root_t:s0"), 0))
		}
	}
	testenv.Must(s.t, unix.Setxattr(s.bootDir(), "security.selinux", []byte("system_u:object_r:boot_t:s0"), 0))
	opts := withProgram(s.t, ostreehost.Bind{From: disk, To: disk})
	opts.Env = append(slices.Clone(opts.Env), "LD_PRELOAD="+filepath.Join(s.root, preloaded))
	s.host = ostreehost.Start(s.t, s.host.Release(), opts)
	s.env = []string{"LD_PRELOAD=/sysroot/" + preloaded}
}

// commitLabelled commits a tree with the labels of its policy.
func (s *system) commitLabelled(disk, ref string, tree *osTree) {
	s.t.Helper()
	dir := filepath.Join(disk, "tree", ref)
	testenv.Must(s.t, os.MkdirAll(dir, 0o755))
	tree.write(s.t, dir)
	// ostree 2022.7 writes labels behind other attributes, whatever their names, and then finds such objects damaged.
	for _, name := range []string{"usr/share/shared", "usr/etc/machine.d", "usr/etc/machine.d/a"} {
		testenv.Must(s.t, unix.Removexattr(filepath.Join(dir, name), "user.test"))
	}
	s.ostree("commit", "--branch="+ref, "--timestamp=2025-01-01T00:00:00Z", "--add-metadata-string=version="+tree.version,
		"--selinux-policy="+dir, "--tree=dir="+dir)
}

// labelsOf returns the labels of all files of a sysroot by their paths: "" for none.
func labelsOf(t *testing.T, s *system) map[string]string {
	t.Helper()
	found := make(map[string]string)
	testenv.Must(t, filepath.WalkDir(s.root, func(file string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(s.root, file)
		if err != nil {
			return err
		}
		var value [256]byte
		n, err := unix.Lgetxattr(file, "security.selinux", value[:])
		if err != nil && !errors.Is(err, unix.ENODATA) {
			return &fs.PathError{Op: "lgetxattr", Path: file, Err: err}
		}
		found[name] = strings.TrimRight(string(value[:max(n, 0)]), "\x00")
		return nil
	}))
	return found
}

// unlabelled are names that need no label: files of the repository itself, and of the test.
var unlabelled = regexp.MustCompile(`^ostree/(repo|lock)(/|$)|^selinuxhost\.so$`)

func compareLabels(t *testing.T, theirs, ours map[string]string) {
	t.Helper()
	all := maps.Clone(theirs)
	maps.Copy(all, ours)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if unlabelled.MatchString(name) {
			continue
		}
		want, both := theirs[name]
		got, exists := ours[name]
		switch {
		case exists && got == "":
			t.Errorf("%s has no label, ostree: %q", name, want)
		case exists && both && got != want:
			t.Errorf("%s: label %q, ostree: %q", name, got, want)
		}
	}
}
