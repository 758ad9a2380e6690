package tenants

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestTenants has Mallory's containers, users of the host and hostile images attack Alice's image, with each kind of
// checkout and each store. At the end the same attacks find the guards off, and succeed.
func TestTenants(t *testing.T) {
	for _, checkout := range []string{"composefs", "hardlink"} {
		for _, store := range []string{ownStore, systemStore} {
			t.Run(checkout+"/"+store, func(t *testing.T) {
				t.Parallel()
				w := start(t, checkout, store, "")
				w.must(w.add(mallory, ownImage, commonLayer(t), ownLayer(t)))
				w.must(w.add(mallory, volumeImage, commonLayer(t)))
				part := func(name string, test func(w *world)) {
					t.Run(name, func(t *testing.T) {
						w := w.in(t)
						test(w)
						w.unharmed()
					})
				}
				part("secrets are found", secretsAreFound)
				part("what a neighbour can tell", neighbourTells)
				for _, b := range boxes {
					part("container/"+b.name, func(w *world) { fromContainer(w, b) })
				}
				part("commit under a writer", commitUnderWriter)
				part("attributes of overlayfs", overlayAttributesInContainer)
				// Unpacking and labels do not depend on the place of the repository.
				if store == ownStore {
					for _, h := range hostileImages(w) {
						part("image/"+h.name, func(w *world) { hostileImage(w, h) })
					}
					part("labels", labelsOfSnapshots)
				}
				part("users of the host", func(w *world) { usersOfHost(w, store == systemStore) })
				part("reboot", func(w *world) { w.must(w.Reboot(w.t.Context())) })
				w.ours("fsck", "--deep")
				w.command("ostree", "fsck", "--repo="+w.repo)
				if store == ownStore {
					part("with an open repository", openRepository)
					part("with handles", handlesInContainer)
				}
				part("with the objects in a container", objectsInContainer)
			})
		}
	}
}

// secretsAreFound checks that the search for secrets finds those that it can read.
func secretsAreFound(w *world) {
	r := w.attack(alice, privateImage, "alice", nil, "", Order{Search: []string{"/"}})
	slices.Sort(r.Secrets)
	if !slices.Equal(r.Secrets, []string{"/etc/secret", "/srv/app"}) {
		w.t.Errorf("Alice's container finds %q, want her two secrets", r.Secrets)
	}
}

// neighbourTells checks what the documentation says: a container can tell whether another one has read a file that both
// images have, and with hard links how often the store has it. If this fails, the documentation is wrong.
func neighbourTells(w *world) {
	const shared = "/usr/bin/library"
	ask := func() int { return w.attack(mallory, ownImage, "curious", nil, "", Order{Cached: shared}).Cached }
	object, err := os.Open(filepath.Join(w.repo, "objects", w.object(largeContent)))
	w.must(err)
	defer object.Close()
	w.must(errors.Join(object.Sync(), unix.Fadvise(fd(object), 0, 0, unix.FADV_DONTNEED)))
	pages := len(largeContent) / os.Getpagesize() // the kernel keeps and drops a few as it likes
	if got := ask(); got > pages/4 {
		w.t.Errorf("%d of %d pages of %s are cached, want none", got, pages, shared)
	}
	w.attack(alice, privateImage, "alice", nil, "", Order{Search: []string{"/"}})
	if got := ask(); got < pages*3/4 {
		w.t.Errorf("%d of %d pages of %s are cached after Alice read it, want all", got, pages, shared)
	}
	if links := w.view[shared[1:]].Nlink; (links > 1) != (w.checkout == "hardlink") {
		w.t.Errorf("%s has %d links in the image", shared, links)
	}
}

// contained fails the test if a report from a container has what it must not.
func (w *world) contained(r Report, writes int) {
	w.t.Helper()
	if got := succeeded(r.Breaches); len(got) > 0 {
		w.t.Errorf("the container managed to\n\t%s", sorted(got))
	}
	if len(r.Secrets) > 0 {
		w.t.Errorf("the container read secrets in %q", r.Secrets)
	}
	if got := len(succeeded(r.Writes)); got < writes {
		w.t.Errorf("%d of %d attempts to write succeeded, want %d or more: files of the container's own", got, len(r.Writes), writes)
	}
}

// fromContainer attacks every file that a container of an image with the same files sees, and the host.
func fromContainer(w *world, b box) {
	volume, remove := w.volume(volumeImage)
	defer remove()
	o := Order{
		Write: []string{"/", volumePath}, Search: []string{"/"}, Escape: true, Device: w.disk(),
		Paths:   []string{w.Root, filepath.Join(w.repo, "objects"), w.repo, w.Dir, w.public},
		Sockets: []string{w.Daemon, w.Containerd},
	}
	if b.remount {
		o.Remount = []string{"/", volumePath}
	}
	w.contained(w.attack(mallory, ownImage, "box", b.flags, volume, o), b.writes)
}

// commitUnderWriter commits a container's snapshot while a process of it has files open and mapped. The process then
// writes. Neither the committed snapshot nor a later image of Alice's with the same files shows it.
func commitUnderWriter(w *world) {
	const id, committed = "writer", "committed"
	control := w.start(mallory, ownImage, id, nil, Order{Hold: "/srv", Ready: controlPath + "/ready", Go: controlPath + "/go"})
	w.must(await(filepath.Join(control, "ready")))
	w.ctr(mallory, "snapshots", "--snapshotter", w.Snapshotter, "commit", committed, id)
	check := func(namespace, name, dir string) {
		w.t.Helper()
		got, err := w.ReadActive(w.t.Context(), namespace, name)
		w.must(err)
		for name, content := range heldFiles {
			e := got[filepath.Join(dir, name)]
			if e == nil || e.SHA256 != sum(content) || e.Mode&0o7777 != 0o644 || len(e.Xattrs) > 0 {
				w.t.Errorf("%s is %v, want it as it was committed", name, e)
			}
		}
	}
	check(mallory, committed, "srv")
	w.must(os.WriteFile(filepath.Join(control, "go"), nil, 0o644))
	w.contained(w.report(control), 10)
	check(mallory, committed, "srv")
	w.must(w.add(alice, "example.org/alice/later:1", laterLayer(w.t)))
	later, err := w.ChainID(w.t.Context(), alice, "example.org/alice/later:1")
	w.must(err)
	check(alice, later, "")
	w.ours("fsck", "--deep")
	w.must(w.RemoveContainer(w.t.Context(), mallory, id))
	sn := w.Client().SnapshotService(w.Snapshotter)
	// It has no blob to repair it from.
	w.must(sn.Remove(namespaces.WithNamespace(w.t.Context(), mallory), committed))
	w.collect()
}

// overlayAttributesInContainer sets attributes in a container by which overlayfs would take the content of a file from
// Alice's secret. It shows neither in the container, nor after its file system was mounted anew, nor in an image of it.
func overlayAttributesInContainer(w *world) {
	const id, committed = "tamper", "tampered"
	object := w.object(secrets["etc/secret"])
	o := Order{Tamper: []string{"/etc", "/srv"}, Object: object, Search: []string{"/"}}
	w.contained(w.report(w.start(mallory, ownImage, id, []string{"--cap-add", "CAP_SYS_ADMIN"}, o)), 1)
	w.must(w.Reboot(w.t.Context()))
	sn := w.Client().SnapshotService(w.Snapshotter)
	mounts, err := sn.Mounts(namespaces.WithNamespace(w.t.Context(), mallory), id)
	w.must(err)
	again, err := w.ReadMounts(w.t.Context(), mounts)
	if err != nil {
		w.t.Logf("the container's files after the reboot: %v", err)
	}
	w.ctr(mallory, "snapshots", "--snapshotter", w.Snapshotter, "commit", committed, id)
	image, err := w.ReadActive(w.t.Context(), mallory, committed)
	w.must(err)
	for where, files := range map[string]tree.Tree{"the container": again, "its image": image} {
		if got := leaked(files); len(got) > 0 {
			w.t.Errorf("%s shows secrets in %q", where, got)
		}
	}
	if e := image["etc/stolen"]; e == nil || e.Size != 0 {
		w.t.Errorf("the image has the file %v, want an empty one", e)
	}
	// It has no blob to repair it from.
	w.must(sn.Remove(namespaces.WithNamespace(w.t.Context(), mallory), committed))
	w.collect()
}

// object returns the name of the object with a content, relative to the directory of objects.
func (w *world) object(content string) string {
	w.t.Helper()
	objects := filepath.Join(w.repo, "objects")
	for name := range w.paths(objects) {
		if b, err := os.ReadFile(name); err == nil && string(b) == content {
			rel, err := filepath.Rel(objects, name)
			w.must(err)
			return rel
		}
	}
	w.t.Fatalf("no object has the content %q", content)
	return ""
}

// oddRefs are names that no layer has, and that of Alice's image.
func (w *world) oddRefs() []string {
	w.t.Helper()
	id, err := w.ChainID(w.t.Context(), alice, privateImage)
	w.must(err)
	return []string{
		id, "../../../etc", "/etc", "..", ".", "sha256:..", "sha256:" + strings.Repeat("0", 64), "a/../b", "a\nb", "a\x00b", "\xff",
		strings.Repeat("x", 4000), "alice/1/" + id, "layers/../../repo",
	}
}

// labelsOfSnapshots prepares snapshots whose labels name what is not Mallory's.
func labelsOfSnapshots(w *world) {
	ctx := namespaces.WithNamespace(w.t.Context(), mallory)
	ctx, release, err := w.Client().WithLease(ctx)
	w.must(err)
	sn := w.Client().SnapshotService(w.Snapshotter)
	own, err := w.ChainID(ctx, mallory, ownImage)
	w.must(err)
	labels := []string{
		snapshots.LabelSnapshotRef, "containerd.io/snapshot/ostree.layer", "containerd.io/snapshot/ostree.checkout",
		"containerd.io/snapshot/ostree.chain-id", "containerd.io/snapshot/ostree.blob", "containerd.io/snapshot/parent-chain-id",
		"containerd.io/snapshot/uidmapping", "containerd.io/snapshot/diff-id",
	}
	n := 0
	for i, label := range labels {
		values := w.oddRefs()
		if i > 0 {
			values = values[:3]
		}
		for _, value := range values {
			for _, parent := range []string{"", own} {
				n++
				key := fmt.Sprintf("extract-%d x", n)
				mounts, err := sn.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{label: value}))
				if err != nil {
					if files, err := w.ReadActive(ctx, mallory, value); err == nil && len(leaked(files)) > 0 {
						w.t.Errorf("%s %q over %q gave Mallory the snapshot", label, value, parent)
						w.must(sn.Remove(ctx, value))
					}
					continue
				}
				name := fmt.Sprintf("odd-%d", n)
				if err := sn.Commit(ctx, name, key, snapshots.WithLabels(map[string]string{label: value})); err != nil {
					w.must(sn.Remove(ctx, key))
					continue
				}
				files, err := w.ReadActive(ctx, mallory, name)
				if err != nil {
					w.t.Errorf("%s %q over %q, mounted at %v: %v", label, value, parent, mounts, err)
				}
				if got := leaked(files); len(got) > 0 {
					w.t.Errorf("%s %q over %q shows the secrets %q", label, value, parent, got)
				}
				w.must(sn.Remove(ctx, name))
			}
		}
	}
	w.must(release(ctx))
	w.collect() // some have no blob to repair them from
}

// usersOfHost attacks the store as users of the host. If they can reach the objects, because the operator accepts that,
// they may read and write what the file of the image itself lets them.
func usersOfHost(w *world, reachable bool) {
	store := w.paths(w.Root)
	for name, st := range w.paths(w.repo) {
		store[name] = st
	}
	// A repair gives an object another time, so that checkouts get copies of it. The one who can change less comes
	// first.
	for _, uid := range []uint32{nobody, user} {
		o := Order{
			Sockets:   []string{w.Daemon, w.Containerd, w.Containerd + ".ttrpc"},
			Processes: []int{w.DaemonPid()}, Search: []string{w.Root, w.repo},
		}
		for name := range store {
			o.Paths = append(o.Paths, name)
			o.Write = append(o.Write, name)
		}
		slices.Sort(o.Paths)
		r := w.attackAs(uid, o)
		slices.Sort(r.Secrets)
		r.Secrets = slices.Compact(r.Secrets)
		allowed := func(a Attempt) bool {
			if a.Path == w.Root && a.What == "execute" { // the mode of the root is 0711
				return true
			}
			st := store[a.Path]
			return reachable && st != nil && strings.HasPrefix(a.Path, w.repo) &&
				(writable(st, uid) || slices.Contains([]string{"list", "open", "execute", "read a link"}, a.What))
		}
		for _, list := range [][]Attempt{r.Breaches, r.Writes} {
			if got := slices.DeleteFunc(succeeded(list), allowed); len(got) > 0 {
				w.t.Errorf("user %d managed to\n\t%s", uid, sorted(got))
			}
		}
		for _, name := range r.Secrets {
			if st := store[name]; !reachable || st == nil || st.Mode&0o004 == 0 {
				w.t.Errorf("user %d read the secret in %s", uid, name)
			}
		}
		if !reachable {
			continue
		}
		if len(r.Secrets) != 1 {
			w.t.Errorf("user %d read the secrets %q, want the file that its image lets everybody read", uid, r.Secrets)
		}
		changed := w.differences()
		for _, line := range changed {
			own := uid == user && (strings.Contains(line, `"home/user/`) || strings.Contains(line, `"srv/group"`))
			if !own && !strings.Contains(line, `"srv/world"`) {
				w.t.Errorf("user %d changed a file that is not his: %s", uid, line)
			}
		}
		if len(changed) == 0 {
			w.t.Errorf("user %d has changed nothing, and can reach the objects: the comparison does not see it", uid)
		}
		w.restored()
	}
}

// writable reports whether a user of the host, who is in the group of the same number, can change a file where he reaches it.
func writable(st *syscall.Stat_t, uid uint32) bool {
	return st.Uid == uid || st.Gid == uid && st.Mode&0o020 != 0 || st.Mode&0o002 != 0
}

// openRepository opens the repository to users of the host. What usersOfHost looks for must then happen.
func openRepository(w *world) {
	for _, dir := range []string{w.repo, filepath.Join(w.repo, "objects")} {
		w.must(os.Chmod(dir, 0o755))
		defer func() { w.must(os.Chmod(dir, 0o700)) }()
	}
	usersOfHost(w, true)
}

// handlesInContainer lets a container open files by handle. That and a device are what escape needs.
func handlesInContainer(w *world) {
	var st unix.Statfs_t
	w.must(unix.Statfs(w.public, &st))
	if st.Type != unix.EXT4_SUPER_MAGIC {
		testenv.Unsupported(w.t, "needs ext4, whose handles are known")
	}
	o := Order{Escape: true, Device: w.disk(), Paths: []string{w.Root}}
	got := succeeded(w.attack(mallory, ownImage, "handles", []string{"--cap-add", "CAP_DAC_READ_SEARCH"}, "", o).Breaches)
	if len(got) != 1 || got[0].Path != controlPath {
		w.t.Errorf("the container managed to\n\t%s\nwant it to open the host's root by the mount at %s", sorted(got), controlPath)
	}
}

// objectsInContainer gives a container the directory of objects. What fromContainer looks for must then happen.
func objectsInContainer(w *world) {
	o := Order{Remount: []string{volumePath}, Write: []string{volumePath}, Search: []string{volumePath}}
	objects := filepath.Join(w.repo, "objects")
	r := w.attack(mallory, ownImage, "unguarded", []string{"--cap-add", "CAP_SYS_ADMIN"}, objects, o)
	if len(r.Secrets) != len(secrets) {
		w.t.Errorf("a container that has the objects found the secrets %q, want all", r.Secrets)
	}
	if len(w.differences()) == 0 {
		w.t.Error("a container that has the objects changed nothing: the comparison does not see it")
	}
	w.ours("fsck", "--repair")
	w.must(w.Reboot(w.t.Context())) // mounts from before lead to the inodes that the container put other files in place of
	w.restored()
}
