package sysroot

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

// TestOSTree checks that ostree alone does the same in a host as on a machine. The other tests rely on it.
func TestOSTree(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
		for _, readonly := range []bool{false, true} {
			disk, systems := newSystems(t, r, false, "alone")
			s := systems[0]
			s.init(disk)
			if _, err := s.admin("deploy", "--os="+osName, "--karg=root=LABEL=root", "--karg=rw", "os/v1"); err != nil {
				t.Fatal(err)
			}
			v1 := s.commitOf("os/v1")
			h := s.start(r, 0, s.setReadonly(readonly))
			checkMounts(t, h, readonly, false)
			want := []string{"* debian " + v1 + ".0"}
			if got := statusLines(run(t, h, "ostree", "admin", "status")); !slices.Equal(got, want) {
				t.Errorf("status of the booted system: %q, want %q", got, want)
			}
			run(t, h, "ostree", "admin", "deploy", "--stage", "--os="+osName, "os/v2")
			v2 := s.commitOf("os/v2")
			want = []string{"debian " + v2 + ".0 (staged)", "* debian " + v1 + ".0"}
			if got := statusLines(run(t, h, "ostree", "admin", "status")); !slices.Equal(got, want) {
				t.Errorf("status with a staged deployment: %q, want %q", got, want)
			}
			if err := os.WriteFile(h.Path("etc/late"), []byte("late"), 0o644); err != nil {
				t.Fatal(err)
			}
			run(t, h, "ostree", "admin", "finalize-staged")
			want = []string{"debian " + v2 + ".0 (pending)", "* debian " + v1 + ".0"}
			if got := statusLines(run(t, h, "ostree", "admin", "status")); !slices.Equal(got, want) {
				t.Errorf("status of the finalized deployment: %q, want %q", got, want)
			}
			h.Stop()
			h = s.start(r, 0, s.setReadonly(readonly))
			if got, err := os.ReadFile(h.Path("etc/late")); err != nil || string(got) != "late" {
				t.Errorf("/etc/late of the new deployment: %q, %v", got, err)
			}
		}
	})
}

// checkMounts checks the mounts of a running system, made by ostree-prepare-root and by units.
func checkMounts(t *testing.T, h *ostreehost.Host, readonly, ownBoot bool) {
	t.Helper()
	info, err := os.ReadFile(h.Path("proc/1/mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(info), nil)
	if err != nil {
		t.Fatal(err)
	}
	options := make(map[string]string) // of the first mount at each place
	for _, m := range mounts {
		if _, ok := options[m.Mountpoint]; !ok {
			options[m.Mountpoint], _, _ = strings.Cut(m.Options, ",")
		}
	}
	want := map[string]string{"/": "rw", "/sysroot": "rw", "/usr": "ro", "/boot": "rw"}
	if readonly {
		want["/sysroot"], want["/etc"] = "ro", "rw"
		if h.Release() == ostreehost.Forky && !ownBoot {
			want["/boot"] = "ro" // a bind mount of that in /sysroot
		}
	}
	for at, mode := range want {
		if options[at] != mode {
			t.Errorf("%s is mounted %q, want %q\n%s", at, options[at], mode, info)
		}
	}
	if _, err := os.Stat(h.Path("run/ostree-booted")); err != nil {
		t.Error(err)
	}
}
