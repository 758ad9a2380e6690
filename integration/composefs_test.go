package integration

import (
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// TestImageDigest compares the digests of images' root file systems with those of mkcomposefs. TestPull does so with larger
// images.
func TestImageDigest(t *testing.T) {
	e := start(t, nil)
	refs := []string{"layers:1", "odd:1"}
	for _, ref := range refs {
		e.view(defaultNS, e.pull(defaultNS, ref))
	}
	e.sameDigests(refs...)
}

// sameDigests compares the digests of images, of which there was a view, with those of mkcomposefs. Containers run on
// composefs images with these digests.
func (e *env) sameDigests(refs ...string) {
	e.t.Helper()
	dir, err := testhost.Mkcomposefs(e.t.Context(), e.t.Output())
	e.must(err)
	for _, ref := range refs {
		digest := e.wantDigest(dir, push(e.t, ref))
		if !e.composefs() {
			continue
		}
		files, err := filepath.Glob(filepath.Join(e.Root, "rootfs/*/digest"))
		e.must(err)
		found := false
		for _, name := range files {
			b, err := os.ReadFile(name)
			e.must(err)
			found = found || strings.TrimSpace(string(b)) == digest
		}
		if !found {
			e.t.Errorf("%s: no image with digest %s is in %q", ref, digest, files)
		}
	}
}

// TestImageDigestWithVerity compares images that contain the digests of their files, and checks these digests.
func TestImageDigestWithVerity(t *testing.T) {
	e := start(t, nil)
	dir, err := testhost.Mkcomposefs(t.Context(), t.Output())
	e.must(err)
	full := e.pull(defaultNS, "odd:1")
	plain := e.wantDigest(dir, full)
	out, err := exec.Command("ostree", "config", "--repo="+filepath.Join(e.Root, "repo"), "set", "ex-integrity.fsverity", "yes").CombinedOutput()
	if err != nil {
		t.Fatalf("ostree config: %v\n%s", err, out)
	}
	if got := e.wantDigest(dir, full); got == plain {
		t.Error("the digest does not depend on those of the files")
	}
	digests := 0
	for line := range strings.Lines(e.ours("image", "digest", "--dump", full)) {
		fields := strings.Fields(line)
		if payload, want := fields[8], fields[10]; strings.HasSuffix(payload, ".file") {
			f, err := os.Open(filepath.Join(e.Root, "repo/objects", payload))
			e.must(err)
			got, err := composefs.VerityDigest(f)
			e.must(errors.Join(err, f.Close()))
			if hex.EncodeToString(got[:]) != want {
				t.Errorf("%s has digest %x, the image %s", fields[0], got, want)
			}
			digests++
		}
	}
	if digests == 0 {
		t.Error("the image has no digest")
	}
}

// wantDigest compares the digest of an image with that of the mkcomposefs in dir, and returns it.
func (e *env) wantDigest(dir, image string) string {
	e.t.Helper()
	digest := strings.TrimSpace(e.ours("image", "digest", image))
	dump := filepath.Join(e.t.TempDir(), "dump")
	e.must(os.WriteFile(dump, []byte(e.ours("image", "digest", "--dump", image)), 0o600))
	out, err := exec.Command(filepath.Join(dir, "mkcomposefs"), "--from-file", "--print-digest-only", dump).Output()
	e.must(err)
	if want := strings.TrimSpace(string(out)); digest != want {
		e.t.Errorf("%s: got %s, mkcomposefs has %s", image, digest, want)
	}
	return digest
}

// ours runs a command of our program beside the daemon and returns its output.
func (e *env) ours(args ...string) string {
	e.t.Helper()
	args = append(args, "--root", e.Root, "--daemon-address", e.Daemon, "--address", e.Containerd)
	out, err := exec.Command(daemonBinary(e.t), args...).Output()
	if err != nil {
		e.t.Fatalf("run ostree-snapshotter %q: %v", args, err)
	}
	return string(out)
}

// TestSwitchCheckouts restarts the daemon with other checkouts, there and back. A running container goes on, and new
// ones run.
func TestSwitchCheckouts(t *testing.T) {
	testenv.NeedsEROFS(t)
	e := start(t, func(o *stack.Options) { o.Config = "checkout = \"hardlink\"\n" })
	full := e.pull(defaultNS, "layers:1")
	var ids []string
	for _, mode := range []string{"composefs", "hardlink", "composefs"} {
		id := containerID()
		e.must(e.StartContainer(t.Context(), defaultNS, full, id, "/bin/sh", "-c", writeScript))
		ids = append(ids, id)
		e.eventually("start to write", func() string {
			if _, err := e.Exec(t.Context(), defaultNS, id, "/bin/cat", "/log"); err != nil {
				return err.Error()
			}
			return ""
		})
		e.must(e.StopDaemon())
		e.must(e.WriteConfig("checkout = \"" + mode + "\"\n[log]\nformat = \"json\"\n"))
		e.must(e.StartDaemon(t.Context()))
		if out := e.ours("df"); !strings.Contains(out, mode+": ") {
			t.Errorf("df does not say that checkouts are %s:\n%s", mode, out)
		}
		for _, id := range ids {
			e.grows(id)
			e.exec(defaultNS, id, "cat /data/kept && chmod 600 /data/kept")
		}
		e.compare("layers:1", e.view(defaultNS, full))
		e.run(defaultNS, full, "/bin/cat", "/data/kept")
		odd := e.pull(defaultNS, "odd:1")
		e.compare("odd:1", e.view(defaultNS, odd))
		e.ctr(defaultNS, "images", "rm", "--sync", odd)
	}
	for _, id := range ids {
		e.must(e.RemoveContainer(t.Context(), defaultNS, id))
	}
	e.ctr(defaultNS, "images", "rm", "--sync", full)
	e.empty()
}

// TestDamagedRootfs flips a bit in the image that a container runs on. fsck names it, and --repair rebuilds it.
func TestDamagedRootfs(t *testing.T) {
	testenv.NeedsEROFS(t)
	e := start(t, func(o *stack.Options) { o.Config = "checkout = \"composefs\"\n" })
	full := e.pull(defaultNS, "layers:1")
	id := containerID()
	e.must(e.StartContainer(t.Context(), defaultNS, full, id, "/bin/sleep", "1000"))
	mounted, err := filepath.Glob(filepath.Join(e.Root, "rootfs/*/fs"))
	e.must(err)
	if len(mounted) != 1 {
		t.Fatalf("got %q mounted, want one", mounted)
	}
	name := filepath.Join(filepath.Dir(mounted[0]), "image")
	b, err := os.ReadFile(name)
	e.must(err)
	b[len(b)/2] ^= 1
	e.must(os.WriteFile(name, b, 0o600))
	r := e.fsckReport(12)
	if len(r.Problems) != 1 || r.Problems[0].Kind != "rootfs" || len(r.Problems[0].Images) != 1 {
		t.Errorf("got problems %+v, want one with a rootfs, and the image", r.Problems)
	}
	r = e.fsckReport(0, "--repair")
	if len(r.Problems) != 0 || len(r.Repaired) != 1 {
		t.Errorf("got %+v, want one thing repaired", r)
	}
	e.must(e.RemoveContainer(t.Context(), defaultNS, id))
	e.compare("layers:1", e.view(defaultNS, full))
}
