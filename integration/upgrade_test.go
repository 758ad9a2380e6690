package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// A system is a directory that becomes an operating system, with a containerd that pulls its images.
type system struct {
	*env
	dir string
}

func newSystem(e *env) *system {
	e.t.Helper()
	s := &system{e, filepath.Join(e.t.TempDir(), "sysroot")}
	e.must(os.Mkdir(s.dir, 0o755))
	e.t.Cleanup(s.thaw)
	return s
}

// thaw makes the deployments removable.
func (s *system) thaw() {
	names, err := filepath.Glob(filepath.Join(s.dir, "ostree/deploy/*/deploy/*.[0-9]"))
	s.must(err)
	for _, name := range names {
		d, err := atfs.Open(name)
		s.must(err)
		s.must(d.SetImmutable(false))
		s.must(d.Close())
	}
}

// do runs a command on the system, which must exit with a status, and returns its standard output.
func (s *system) do(status int, verb string, args ...string) string {
	s.t.Helper()
	args = append([]string{verb, "--sysroot", s.dir}, args...)
	switch verb {
	case "deploy", "upgrade", "switch":
		args = append(args, "--root", s.Root, "--daemon-address", s.Daemon, "--address", s.Containerd)
	}
	out, err := s.Run(s.t.Context(), daemonBinary(s.t), args...)
	if got := exitStatus(err); got != status {
		s.t.Fatalf("%v: exit status is %d, want %d: %v\n%s", args, got, status, err, out)
	}
	return out
}

// deploymentState is the tested part of "status --json".
type deploymentState struct {
	Image, Digest, Version string
	Kargs                  []string
	Unique                 int64 `json:"unique_bytes"`
	Shared                 int64 `json:"shared_bytes"`
}

func (s *system) state() (list []deploymentState) {
	s.t.Helper()
	var status struct{ Deployments []deploymentState }
	s.must(json.Unmarshal([]byte(s.do(0, "status", "--json")), &status))
	return status.Deployments
}

// path returns the path of a file in the first deployment.
func (s *system) path(name string) string {
	s.t.Helper()
	links, err := filepath.Glob(filepath.Join(s.dir, "ostree/boot.[01]/*/*/0"))
	s.must(err)
	if len(links) != 1 {
		s.t.Fatalf("the first deployment is one of %v", links)
	}
	return filepath.Join(links[0], name)
}

// TestUpgrade follows the life of a system. It is deployed from a registry, upgraded when the registry has a newer
// image of the same name, and switched to another image.
func TestUpgrade(t *testing.T) {
	e := start(t, nil)
	versions, err := images.OS(t.Context(), t.Output(), t.TempDir(), nil)
	e.must(err)
	pushAs := func(version, ref string) string {
		e.must(versions[version].Push(t.Context(), shared.registry.Address, ref))
		return shared.registry.Address + "/" + ref
	}
	name := pushAs("os:1", "system:stable")
	s := newSystem(e)
	if out := s.do(16, "deploy", "--init", name); out != "" {
		t.Errorf("deploy of an image that is not here prints %q", out)
	}
	e.must(e.Pull(t.Context(), defaultNS, name))
	s.do(0, "deploy", "--init", "--stateroot", "os", "--karg", "root=LABEL=root", name)
	first := s.state()
	if len(first) != 1 || first[0].Image != name || first[0].Digest != versions["os:1"].Descriptor.Digest.String() || first[0].Version != "1" {
		t.Fatalf("status of the first deployment is %+v", first)
	}
	e.ostreeAgrees(s)
	s.sharesFiles()

	// There is no update.
	s.do(77, "upgrade", "--check", "--plain-http")
	if out := s.do(0, "upgrade", "--plain-http"); !strings.HasPrefix(out, "no change: ") {
		t.Errorf("upgrade without a newer image prints %q", out)
	}

	// There is an update, and an administrator has edited /etc.
	pushAs("os:2", "system:stable")
	out := s.do(0, "upgrade", "--check", "--plain-http", "--json")
	if newer := versions["os:2"].Descriptor.Digest.String(); !strings.Contains(out, `"available_digest": "`+newer+`"`) ||
		!strings.Contains(out, `"update_available": true`) {
		t.Errorf("upgrade --check prints\n%s", out)
	}
	if out := s.do(0, "upgrade", "--dry-run", "--plain-http"); !strings.Contains(out, " would be pulled: ") {
		t.Errorf("upgrade --dry-run prints %q", out)
	}
	if got := s.state(); len(got) != 1 {
		t.Errorf("--check and --dry-run have left %+v", got)
	}
	e.must(os.WriteFile(s.path("etc/edited"), []byte("edited\n"), 0o600))
	s.do(0, "upgrade", "--plain-http")
	second := s.state()
	if len(second) != 2 || second[0].Version != "2" || second[0].Image != name || second[1].Version != "1" {
		t.Fatalf("status after the upgrade is %+v", second)
	}
	if b, err := os.ReadFile(s.path("etc/edited")); err != nil || string(b) != "edited\n" {
		t.Errorf("what was edited in /etc is %q, %v", b, err)
	}
	e.ostreeAgrees(s)
	s.do(77, "upgrade", "--check", "--plain-http")

	// Switch to another image, which was not pulled yet.
	other := pushAs("os:1", "other:1")
	if out := s.do(0, "switch", "--dry-run", "--plain-http", other); !strings.Contains(out, " would be pulled: ") {
		t.Errorf("switch --dry-run prints %q", out)
	}
	s.do(0, "switch", "--plain-http", other)
	if got := s.state(); len(got) != 2 || got[0].Image != other || got[0].Version != "1" {
		t.Errorf("status after the switch is %+v", got)
	}
	s.do(77, "upgrade", "--check", "--plain-http")
	e.ostreeAgrees(s)

	// The registry does not have the image.
	s.do(1, "switch", "--plain-http", shared.registry.Address+"/absent:1")
	if got := s.state(); len(got) != 2 || got[0].Image != other {
		t.Errorf("status after a switch that failed is %+v", got)
	}
}

// An update that does not boot is not deployed again until the registry has another one.
func TestUpgradeFails(t *testing.T) {
	e := start(t, nil)
	versions, err := images.OS(t.Context(), t.Output(), t.TempDir(), nil)
	e.must(err)
	name := shared.registry.Address + "/counted:stable"
	pushAs := func(version string) {
		e.must(versions[version].Push(t.Context(), shared.registry.Address, "counted:stable"))
	}
	s := newSystem(e)
	esp := t.TempDir()
	e.must(os.MkdirAll(filepath.Join(esp, "loader/entries"), 0o755))
	e.must(os.MkdirAll(filepath.Join(esp, "EFI/systemd"), 0o755))
	loader := []byte("#### LoaderInfo: systemd-boot 252.39 ####")
	e.must(os.WriteFile(filepath.Join(esp, "EFI/systemd/systemd-bootx64.efi"), loader, 0o644))
	pushAs("os:1")
	e.must(e.Pull(t.Context(), defaultNS, name))
	s.do(0, "deploy", "--init", "--esp", esp, name)
	pushAs("os:2")
	s.do(0, "upgrade", "--plain-http", "--esp", esp, "--boot-tries", "2")

	entry := filepath.Join(esp, "loader/entries/ostree-2-default")
	e.must(os.Rename(entry+"+2.conf", entry+"+0-2.conf")) // like systemd-boot after two tries
	if out := s.do(77, "upgrade", "--check", "--plain-http", "--esp", esp); !strings.Contains(out, " has failed to boot; ") {
		t.Errorf("upgrade --check prints %q", out)
	}
	if out := s.do(0, "upgrade", "--plain-http", "--esp", esp); !strings.HasPrefix(out, "no change: ") {
		t.Errorf("upgrade to an image that has failed prints %q", out)
	}
	pushAs("os:broken") // it is simply another image
	s.do(0, "upgrade", "--check", "--plain-http", "--esp", esp)
	s.do(0, "upgrade", "--plain-http", "--esp", esp)
	if got := s.state(); len(got) != 2 || got[0].Version != "3" || got[1].Version != "1" {
		t.Errorf("status after the next upgrade is %+v", got)
	}
}

// ostreeAgrees checks a system with ostree.
func (e *env) ostreeAgrees(s *system) {
	e.t.Helper()
	for _, args := range [][]string{
		{"admin", "status", "--sysroot=" + s.dir}, {"fsck", "--repo=" + filepath.Join(s.dir, "ostree/repo")},
	} {
		if out, err := exec.Command("ostree", args...).CombinedOutput(); err != nil {
			e.t.Errorf("ostree %v: %v\n%s", args, err, out)
		}
	}
}

// sharesFiles checks that files of the deployment share inodes with those in containers.
func (s *system) sharesFiles() {
	s.t.Helper()
	var st unix.Stat_t
	name := s.path("usr/bin/ostree")
	s.must(unix.Stat(name, &st))
	out, err := exec.Command("find", s.Root+"/repo/objects", "-inum", strconv.FormatUint(st.Ino, 10)).Output()
	s.must(err)
	if len(out) == 0 {
		s.t.Errorf("%s is not a file of the store", name)
	}
}
