package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// lostImages are pulled before the loss, and again afterwards.
var lostImages = []string{"layers:1", "odd:1"}

// lostEnv starts a stack with the images, and with a container of the first image that has written to its root file
// system. The daemon is stopped.
func lostEnv(t *testing.T) (e *env, fulls []string, id string) {
	t.Helper()
	e = start(t, func(o *stack.Options) { o.ParallelUnpacks = 3 })
	for _, ref := range lostImages {
		fulls = append(fulls, e.pull(defaultNS, ref))
	}
	id = containerID()
	e.must(e.StartContainer(t.Context(), defaultNS, fulls[0], id, "/bin/sleep", "1000"))
	e.exec(defaultNS, id, "echo kept > /written; rm /data/kept")
	e.must(e.StopDaemon())
	return e, fulls, id
}

// TestLost removes parts of a store one at a time. The daemon reports and rebuilds the part. Pulling the same images
// again, also into another namespace, works and unpacks nothing. With checkouts that are not the default, it leaves out
// parts that have nothing to do with them.
func TestLost(t *testing.T) {
	const (
		restored = "metadata.db is lost, and its copy takes its place without later changes"
		remade   = "checkouts of layers were missing and are rebuilt"
		refs     = "refs of layers were lost and are restored"
	)
	for _, tt := range []struct {
		name   string
		damage func(root string) error
		log    string
		once   bool // with the default checkouts only
	}{
		{"metadata.db", func(root string) error { return os.Remove(filepath.Join(root, "metadata.db")) }, restored, false},
		{"metadata.db is empty", func(root string) error { return os.Truncate(filepath.Join(root, "metadata.db"), 0) }, restored, true},
		{"metadata.db is garbage", func(root string) error {
			return os.WriteFile(filepath.Join(root, "metadata.db"), []byte(strings.Repeat("garbage", 10_000)), 0o600)
		}, restored, true},
		{"layers", func(root string) error { return os.RemoveAll(filepath.Join(root, "layers")) }, remade, false},
		{"composefs images", func(root string) error {
			rootfs := filepath.Join(root, "rootfs")
			return errors.Join(process.UnmountBelow(rootfs), os.RemoveAll(rootfs))
		}, "", true}, // there are none with hard links
		{"refs", func(root string) error { return os.RemoveAll(filepath.Join(root, "repo/refs")) }, refs, false},
	} {
		if tt.once && testenv.Checkout() != "" {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			e, fulls, id := lostEnv(t)
			e.must(tt.damage(e.Root))
			e.must(e.StartDaemon(t.Context()))
			if tt.log == remade && e.composefs() {
				tt.log = "" // there were none
			}
			if lines := e.daemonLog(tt.log); tt.log != "" && (len(lines) != 1 || lines[0].Level != "warning") {
				t.Errorf("the daemon logged %q in %v, want one warning", tt.log, lines)
			}
			for _, ns := range []string{defaultNS, "second"} {
				for i, full := range fulls {
					e.must(e.Pull(t.Context(), ns, full))
					e.compare(lostImages[i], e.view(ns, full))
				}
				if got := e.run(ns, fulls[0], "/bin/sh", "-c", "cat /data/kept > /dev/null && echo $((40+2))"); strings.TrimSpace(got) != "42" {
					t.Errorf("a new container in namespace %s printed %q, want 42", ns, got)
				}
			}
			e.importedOnce(lostImages...)
			e.fsck()

			e.ctr(defaultNS, "tasks", "rm", "--force", id)
			e.ctr(defaultNS, "tasks", "start", "--detach", "--fifo-dir", e.Dir+"/fifo", id)
			if got := e.exec(defaultNS, id, "cat /written; ls /data/kept 2>&1 || true"); !strings.HasPrefix(got, "kept\n") || !strings.Contains(got, "No such file") {
				t.Errorf("started again, the container sees %q", got)
			}
			e.must(e.RemoveContainer(t.Context(), defaultNS, id))
			for _, full := range fulls {
				e.ctr(defaultNS, "images", "rm", "--sync", full)
				e.ctr("second", "images", "rm", "--sync", full)
			}
			e.empty()
		})
	}
}

// TestMetadataLost removes metadata.db and its copy. The store starts empty, and keeps the files that the container
// wrote. After the images are removed and pulled again everything works, and nothing is unpacked.
func TestMetadataLost(t *testing.T) {
	e, fulls, id := lostEnv(t)
	e.must(errors.Join(os.Remove(filepath.Join(e.Root, "metadata.db")), os.Remove(filepath.Join(e.Root, "metadata.db.copy"))))
	e.must(e.StartDaemon(t.Context()))
	const msg = "metadata.db is lost and has no copy: the store starts empty; remove containers and images, and pull the images again"
	if lines := e.daemonLog(msg); len(lines) != 1 || lines[0].Level != "error" {
		t.Errorf("the daemon logged this in %v, want one error", lines)
	}
	written, err := filepath.Glob(filepath.Join(e.Root, "lost/*/fs/written"))
	if err != nil || len(written) != 1 {
		t.Fatalf("lost/ has %q, %v, want what the container wrote", written, err)
	}
	if b, err := os.ReadFile(written[0]); err != nil || string(b) != "kept\n" {
		t.Errorf("%s has %q, %v", written[0], b, err)
	}
	e.must(e.RemoveContainer(t.Context(), defaultNS, id))
	for _, full := range fulls {
		e.ctr(defaultNS, "images", "rm", "--sync", full)
	}
	for i, full := range fulls {
		e.must(e.Pull(t.Context(), defaultNS, full))
		e.compare(lostImages[i], e.view(defaultNS, full))
	}
	if got := e.run(defaultNS, fulls[0], "/bin/sh", "-c", "echo $((40+2))"); strings.TrimSpace(got) != "42" {
		t.Errorf("a new container printed %q, want 42", got)
	}
	e.importedOnce(lostImages...)
	e.must(os.RemoveAll(filepath.Join(e.Root, "lost")))
	for _, full := range fulls {
		e.ctr(defaultNS, "images", "rm", "--sync", full)
	}
	e.empty()
}

// TestMetadataLostAfterKill loses metadata.db while its copy is older. Newer snapshots are missing until image and
// container are removed and the image is pulled again. Snapshots that were removed since are collected again by
// containerd.
func TestMetadataLostAfterKill(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.ParallelUnpacks = 3 })
	removed := e.pull(defaultNS, "tiny:1")
	old := e.pull(defaultNS, "odd:1")
	e.must(e.StopDaemon()) // copies metadata.db
	copied, err := os.ReadFile(filepath.Join(e.Root, "metadata.db.copy"))
	e.must(err)
	e.must(e.StartDaemon(t.Context()))
	e.ctr(defaultNS, "images", "rm", "--sync", removed)
	full := e.pull(defaultNS, "layers:1")
	id := containerID()
	e.must(e.StartContainer(t.Context(), defaultNS, full, id, "/bin/sleep", "1000"))
	e.exec(defaultNS, id, "echo kept > /written")
	e.must(e.KillDaemon())
	e.must(os.WriteFile(filepath.Join(e.Root, "metadata.db.copy"), copied, 0o600))
	e.must(os.Remove(filepath.Join(e.Root, "metadata.db")))

	e.must(e.StartDaemon(t.Context()))
	written, err := filepath.Glob(filepath.Join(e.Root, "lost/*/fs/written"))
	if err != nil || len(written) != 1 {
		t.Errorf("lost/ has %q, %v, want what the container wrote", written, err)
	}
	e.exec(defaultNS, id, "cat /written /data/kept") // it still runs
	e.compare("odd:1", e.view(defaultNS, old))
	e.must(e.Pull(t.Context(), "second", old))
	e.must(e.RemoveContainer(t.Context(), defaultNS, id))
	e.ctr(defaultNS, "images", "rm", "--sync", full)
	e.must(e.Pull(t.Context(), defaultNS, full))
	e.compare("layers:1", e.view(defaultNS, full))
	e.run(defaultNS, full, "/bin/true")
	e.ctr(defaultNS, "images", "rm", "--sync", full)
	e.ctr(defaultNS, "images", "rm", "--sync", old)
	e.ctr("second", "images", "rm", "--sync", old)
	e.empty()
}
