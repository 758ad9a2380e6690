package compat

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// TestCompat works with everything that earlier revisions made, with each kind of checkout.
func TestCompat(t *testing.T) {
	testenv.SkipShort(t, "needs a real containerd")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	archives, err := filepath.Glob("testdata/*.tar.gz")
	if err != nil || len(archives) == 0 {
		t.Fatalf("list archives: got %q, %v", archives, err)
	}
	tools, err := testhost.BuildTools(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := testhost.BuildBinary(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	composefs := canComposefs(t)
	for _, archive := range archives {
		for _, checkout := range []string{"hardlink", "composefs"} {
			name := strings.TrimSuffix(filepath.Base(archive), ".tar.gz") + "/" + checkout
			t.Run(name, func(t *testing.T) {
				if checkout == "composefs" && composefs != nil {
					testenv.Unsupported(t, "needs composefs images: %v", composefs)
				}
				b := extract(t, binary, archive)
				b.snapshotsAreThere(checkout)
				b.storeIsSound()
				b.layersAreThere()
				b.systemIsThere()
				b.systemChanges(tools, checkout)
				b.storeIsSound()
			})
		}
	}
}

// canComposefs returns the reason why the kernel cannot mount composefs images, or nil.
func canComposefs(t *testing.T) error {
	t.Helper()
	dir, err := atfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	_, err = composefsmount.Probe(dir)
	return err
}

// A bed is an extracted archive.
type bed struct {
	*machine
	t    *testing.T
	want expected
}

func extract(t *testing.T, binary, archive string) *bed {
	t.Helper()
	m, err := newMachine(binary)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{machine: m, t: t}
	t.Cleanup(func() {
		if err := m.remove(); err != nil {
			t.Error(err)
		}
	})
	_, err = command(t.Context(), "tar", "--extract", "--gzip", "--file", archive, "--directory", m.dir, "--xattrs", "--xattrs-include=*",
		"--numeric-owner", "--same-owner", "--same-permissions")
	b.must(err)
	text, err := os.ReadFile(filepath.Join(m.dir, expectedFile))
	b.must(err)
	b.must(json.Unmarshal(text, &b.want))
	return b
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// ours runs a command of the program and returns its output.
func (b *bed) ours(args ...string) string {
	b.t.Helper()
	out, err := b.run(b.t.Context(), args...)
	b.must(err)
	return out
}

// onSystem runs a command of the program on the sysroot.
func (b *bed) onSystem(args ...string) string {
	b.t.Helper()
	out, err := b.system(b.t.Context(), args...)
	b.must(err)
	return out
}

// snapshotsAreThere starts the daemon, which recovers the store, and compares all snapshots and their files.
func (b *bed) snapshotsAreThere(checkout string) {
	b.t.Helper()
	journal := filepath.Join(b.store(), "journal")
	if entries, err := os.ReadDir(journal); err != nil || len(entries) == 0 {
		b.t.Fatalf("the archive's journal: %d entries, %v", len(entries), err)
	}
	stop, err := b.serve(b.t.Context(), checkout)
	b.must(err)
	got, err := b.snapshots(b.t.Context())
	b.must(errors.Join(err, stop()))
	for key, s := range got {
		// With checkouts of hard links, equal files may be links of each other too.
		for _, names := range b.want.Snapshots[key].Links {
			if !slices.ContainsFunc(s.Links, func(group []string) bool { return containsAll(group, names) }) {
				b.t.Errorf("snapshot %s: %s are no links of one file", key, names)
			}
		}
		if checkout == "hardlink" {
			s.Links = b.want.Snapshots[key].Links
			got[key] = s
		}
	}
	if diff := testenv.Diff(b.want.Snapshots, got); diff != "" {
		b.t.Errorf("snapshots: -want +got:\n%s", diff)
	}
	if entries, err := os.ReadDir(journal); err != nil || len(entries) > 0 {
		b.t.Errorf("the journal after recovery: %d entries, %v", len(entries), err)
	}
}

func containsAll(all, some []string) bool {
	for _, s := range some {
		if !slices.Contains(all, s) {
			return false
		}
	}
	return true
}

// storeIsSound has everything read, pruned and read again, by ostree too.
func (b *bed) storeIsSound() {
	b.t.Helper()
	for range 2 {
		_, err := command(b.t.Context(), "ostree", "fsck", "--repo="+filepath.Join(b.store(), "repo"))
		b.must(err)
		b.ours("fsck", "--deep")
		b.ours("df", "--address", b.containerd, "--daemon-address", b.daemon)
		b.ours("prune")
	}
}

// layersAreThere compares the layers with the revision's.
func (b *bed) layersAreThere() {
	b.t.Helper()
	got, want := withoutPlace(b.t, []byte(b.ours("layers", "--json"))), withoutPlace(b.t, b.want.Layers)
	if list, ok := want.([]any); ok { // of a revision that printed the bare list
		want = map[string]any{"layers": list}
	}
	if diff := testenv.Diff(want, got); diff != "" {
		b.t.Errorf("layers: -want +got:\n%s", diff)
	}
}

// systemIsThere compares the deployments with the revision's, and with ostree's view of them.
func (b *bed) systemIsThere() {
	b.t.Helper()
	want := withoutPlace(b.t, b.want.Status)
	got := withoutPlace(b.t, []byte(b.onSystem("status", "--json")))
	dropNew(want, got)
	if diff := testenv.Diff(want, got); diff != "" {
		b.t.Errorf("status: -want +got:\n%s", diff)
	}
	b.wantImages(os2Image, os1Image)
}

// dropNew removes the keys of objects in got that the same objects in want do not have: a later version may tell more.
func dropNew(want, got any) {
	switch got := got.(type) {
	case []any:
		want, ok := want.([]any)
		for i := 0; ok && i < min(len(want), len(got)); i++ {
			dropNew(want[i], got[i])
		}
	case map[string]any:
		want, ok := want.(map[string]any)
		if !ok {
			return
		}
		for key := range got {
			if _, known := want[key]; !known {
				delete(got, key)
				continue
			}
			dropNew(want[key], got[key])
		}
	}
}

// withoutPlace decodes JSON and leaves out what depends on the machine: a path, and space on the disk.
func withoutPlace(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	var strip func(v any)
	strip = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				strip(e)
			}
		case map[string]any:
			for _, key := range []string{"sysroot", "unique_bytes", "shared_bytes"} {
				delete(v, key)
			}
			for _, e := range v {
				strip(e)
			}
		}
	}
	strip(v)
	return v
}

// deployment is what the test looks at in "status --json".
type deployment struct {
	Stateroot string
	Commit    string
	Serial    int
	Image     string
	Kargs     []string
	Pinned    bool
}

func (b *bed) deployments() []deployment {
	b.t.Helper()
	var status struct{ Deployments []deployment }
	b.must(json.Unmarshal([]byte(b.onSystem("status", "--json")), &status))
	return status.Deployments
}

var ostreeDeployment = regexp.MustCompile(`(?m)^[* ] (\S+) ([0-9a-f]{64})\.(\d+)`)

// wantImages compares the images of the deployments, the default first, and the deployments with those that ostree lists.
func (b *bed) wantImages(images ...string) []deployment {
	b.t.Helper()
	list := b.deployments()
	var got, ours, theirs []string
	for _, d := range list {
		got = append(got, d.Image)
		ours = append(ours, fmt.Sprintf("%s %s %d", d.Stateroot, d.Commit, d.Serial))
	}
	if !slices.Equal(got, images) {
		b.t.Errorf("deployments are of %q, want %q", got, images)
	}
	out, err := command(b.t.Context(), "ostree", "admin", "status", "--sysroot="+b.sysroot())
	b.must(err)
	for _, m := range ostreeDeployment.FindAllStringSubmatch(out, -1) {
		theirs = append(theirs, strings.Join(m[1:], " "))
	}
	if !slices.Equal(ours, theirs) {
		b.t.Errorf("ostree lists %q, we list %q", theirs, ours)
	}
	_, err = command(b.t.Context(), "ostree", "fsck", "--repo="+filepath.Join(b.sysroot(), "ostree/repo"))
	b.must(err)
	return list
}

// systemChanges unpacks a third version of the operating system into the store, deploys it and goes back.
func (b *bed) systemChanges(tools *testhost.Tools, checkout string) {
	b.t.Helper()
	ctx := b.t.Context()
	s, err := stack.Start(ctx, stack.Options{
		Tools: tools, Snapshotter: stack.Ostree, Binary: b.binary, Root: b.store(), Config: fmt.Sprintf("checkout = %q\n", checkout),
	})
	b.must(err)
	defer func() {
		if err := s.Stop(); err != nil {
			b.t.Error(err)
		}
	}()
	m := &machine{dir: b.dir, binary: b.binary, containerd: s.Containerd, daemon: s.Daemon}
	b.must(unpack(stack.Context(ctx), s.Client(), os3Image))
	// The two lower layers were in the store.
	if log, err := os.ReadFile(s.DaemonLog()); err != nil || strings.Count(string(log), "layer imported") != 1 {
		b.t.Errorf("want one layer imported (%v), the daemon's log is\n%s", err, log)
	}
	b.must(m.deploy(ctx, os3Image, "--karg-delete", "nosmt"))
	list := b.wantImages(os3Image, os2Image, os1Image)
	if want := []string{"quiet", "root=LABEL=compat", "rw", "loglevel=3"}; len(list) > 0 && !slices.Equal(list[0].Kargs, want) {
		b.t.Errorf("the kernel arguments are %q, want %q", list[0].Kargs, want)
	}
	b.wantFile(list[0], "etc/local.conf", "of the administrator\n")
	b.wantFile(list[0], "etc/app.conf", "default of 2\n")
	b.wantFile(list[0], "etc/new.conf", "changed in 3\n")
	b.wantFile(list[0], "usr/share/three", "version 3\n")
	b.onSystem("kargs", "--append", "debug")
	if list := b.wantImages(os3Image, os3Image, os1Image); !slices.Contains(list[0].Kargs, "debug") {
		b.t.Errorf("the kernel arguments are %q, want debug among them", list[0].Kargs)
	}
	b.onSystem("rollback")
	b.onSystem("unpin", "2")
	b.onSystem("undeploy", "2")
	b.wantImages(os3Image, os3Image)
	b.wantFile(b.deployments()[0], "etc/local.conf", "of the administrator\n")
}

func (b *bed) wantFile(d deployment, name, want string) {
	b.t.Helper()
	dir := fmt.Sprintf("ostree/deploy/%s/deploy/%s.%d", d.Stateroot, d.Commit, d.Serial)
	if got, err := os.ReadFile(filepath.Join(b.sysroot(), dir, name)); err != nil || string(got) != want {
		b.t.Errorf("%s of %s is %q (%v), want %q", name, d.Image, got, err, want)
	}
}
