package tenants

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// The tenants are namespaces of containerd.
const (
	alice   = "alice"   // owns the private image
	mallory = "mallory" // attacks it
)

// The images. Mallory's share all files of the common layer with Alice's, and one more of another layer.
const (
	privateImage = "example.org/alice/private:1"
	ownImage     = "example.org/mallory/own:1"
	volumeImage  = "example.org/mallory/volume:1" // the common layer alone
)

// Users of the host. A file of each image belongs to user.
const (
	user   = 1000
	nobody = 65534
)

func file(name, content string, mode int64, uid int) tar.Header {
	h := snaptest.File(name, content)
	h.Mode, h.Uid, h.Gid = mode, uid, uid
	return h
}

func dir(name string, mode int64, uid int) tar.Header {
	h := snaptest.Dir(name)
	h.Mode, h.Uid, h.Gid = mode, uid, uid
	return h
}

func ofGroup(h tar.Header, gid int) tar.Header {
	h.Gid = gid
	return h
}

func xattr(h tar.Header, name, value string) tar.Header {
	h.PAXRecords["SCHILY.xattr."+name] = value
	h.Format = tar.FormatPAX
	return h
}

// secrets are the contents of Alice's files that nobody else may read, by name.
var secrets = map[string]string{
	"etc/secret": secretPrefix() + "of root\n",
	"srv/app":    secretPrefix() + "of everybody in the image\n",
}

// largeContent is more than a commit reads into memory, and many pages.
var largeContent = strings.Repeat("larger than what is read at once\n", 16<<10)

func commonLayer(t *testing.T) []byte {
	t.Helper()
	return snaptest.Tar(
		t,
		dir(".", 0o755, 0), dir("etc", 0o755, 0), dir("usr", 0o755, 0), dir("usr/bin", 0o755, 0), dir("srv", 0o755, 0),
		dir("home", 0o755, 0), dir("home/user", 0o755, user), dir("tmp", 0o1777, 0), dir("proc", 0o755, 0), dir("dev", 0o755, 0),
		file("usr/bin/tool", "#!/bin/sh\n# "+strings.Repeat("tool ", 2000), 0o755, 0),
		file("usr/bin/su", "#!/bin/sh\n# set-user-ID\n", 0o4755, 0),
		file("usr/bin/library", largeContent, 0o644, 0),
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n", 0o644, 0),
		file("etc/shadow", "root:*:1::::::\n", 0o600, 0),
		file("etc/empty", "", 0o644, 0),
		file("etc/linked", "one file, two names\n", 0o644, 0), snaptest.Link("srv/linked", "etc/linked"),
		xattr(file("etc/attribute", "with an attribute\n", 0o644, 0), "user.kept", "as it was"),
		xattr(file("usr/bin/ping", "#!/bin/sh\n# capable\n", 0o755, 0),
			"security.capability", "\x01\x00\x00\x02\x00\x20"+strings.Repeat("\x00", 14)),
		file("srv/world", "for everybody to write\n", 0o666, 0),
		ofGroup(file("srv/group", "for a group to write\n", 0o664, 0), user),
		file("home/user/file", "of the user\n", 0o644, user),
		file("home/user/private", "of the user alone\n", 0o600, user),
		file("home/user/program", "#!/bin/sh\n", 0o4755, user),
	)
}

func privateLayer(t *testing.T) []byte {
	t.Helper()
	return snaptest.Tar(
		t, file("etc/secret", secrets["etc/secret"], 0o600, 0), file("srv/app", secrets["srv/app"], 0o644, 0),
		file("srv/shared", "in two layers of two tenants\n", 0o644, 0),
	)
}

func ownLayer(t *testing.T) []byte {
	t.Helper()
	return snaptest.Tar(
		t, file("srv/shared", "in two layers of two tenants\n", 0o644, 0), file("srv/own", "of the neighbour\n", 0o644, 0),
	)
}

// laterLayer has the files that the program holds open when they are committed.
func laterLayer(t *testing.T) []byte {
	t.Helper()
	var headers []tar.Header
	for name, content := range heldFiles {
		headers = append(headers, file(name, content, 0o644, 0))
	}
	return snaptest.Tar(t, headers...)
}

// A world is a running stack with the images of both tenants.
type world struct {
	*stack.Stack
	t *testing.T

	checkout string
	repo     string // of the store
	public   string // a directory on the disk of the store to which everybody may write
	// What Alice's image shows, in a new container and in a view.
	active, view tree.Tree
}

// Stores.
const (
	ownStore    = "own"    // the repository is below the root
	systemStore = "system" // everybody can enter it, as ostree makes /ostree/repo, and the configuration accepts that
)

// start starts a stack with Alice's image.
func start(t *testing.T, checkout, store, config string) *world {
	t.Helper()
	testenv.SkipShort(t, "needs a real containerd")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	if checkout == "composefs" {
		testenv.NeedsEROFS(t)
	}
	w := &world{t: t, checkout: checkout}
	var err error
	w.public, err = os.MkdirTemp("", "ost")
	w.must(err)
	w.must(os.Chmod(w.public, 0o777))
	t.Cleanup(func() { w.must(os.RemoveAll(w.public)) })
	config += fmt.Sprintf("checkout = %q\n", checkout)
	if store == systemStore {
		w.repo = filepath.Join(w.public, "sysroot/ostree/repo")
		w.must(os.MkdirAll(filepath.Dir(w.repo), 0o755))
		w.command("ostree", "init", "--mode=bare", "--repo="+w.repo)
		config += fmt.Sprintf("repo = %q\nshared_repo = true\n", w.repo)
	}
	w.Stack, err = stack.Start(t.Context(), stack.Options{
		Tools: shared.tools, Snapshotter: stack.Ostree, Binary: shared.daemon, Config: config,
	})
	w.must(err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the last of containerd's log:\n%s", process.Tail(w.ContainerdLog(), 15))
			t.Logf("the last of the daemon's log:\n%s", process.Tail(w.DaemonLog(), 40))
		}
		if err := w.Stop(); err != nil {
			t.Errorf("stop the stack: %v", err)
		}
	})
	if store == ownStore {
		w.repo = filepath.Join(w.Root, "repo")
	}
	w.must(w.add(alice, privateImage, commonLayer(t), privateLayer(t)))
	id, err := w.ChainID(t.Context(), alice, privateImage)
	w.must(err)
	w.active, err = w.ReadActive(t.Context(), alice, id)
	w.must(err)
	w.view, err = w.ReadView(t.Context(), alice, id)
	w.must(err)
	for _, files := range []tree.Tree{w.active, w.view} {
		if got := leaked(files); len(files) < 25 || len(got) != len(secrets) {
			t.Fatalf("Alice's image has %d entries and the secrets %q, want more", len(files), got)
		}
	}
	return w
}

// in returns w for a part of the test.
func (w *world) in(t *testing.T) *world {
	t.Helper()
	part := *w
	part.t = t
	return &part
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) command(name string, args ...string) {
	w.t.Helper()
	if out, err := exec.CommandContext(w.t.Context(), name, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func (w *world) ctr(namespace string, args ...string) {
	w.t.Helper()
	_, err := w.Ctr(w.t.Context(), namespace, args...)
	w.must(err)
}

func sum(content string) string {
	b := sha256.Sum256([]byte(content))
	return hex.EncodeToString(b[:])
}

// configOf returns the configuration of an image with layers.
func configOf(layers ...[]byte) ocispec.Image {
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"},
	}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
	}
	return config
}

// add imports an image into a namespace and unpacks it.
func (w *world) add(namespace, name string, layers ...[]byte) error {
	w.t.Helper()
	blobs := make([]images.Layer, len(layers))
	for i, l := range layers {
		blobs[i] = images.Layer{MediaType: ocispec.MediaTypeImageLayer, Blob: l}
	}
	return w.addConfigured(namespace, name, configOf(layers...), blobs...)
}

func (w *world) addConfigured(namespace, name string, config ocispec.Image, layers ...images.Layer) error {
	w.t.Helper()
	b, err := images.Archive(name, config, layers...)
	w.must(err)
	archive := filepath.Join(w.Dir, "image.tar")
	w.must(os.WriteFile(archive, b, 0o600))
	_, err = w.Ctr(w.t.Context(), namespace, "images", "import", "--snapshotter", w.Snapshotter, archive)
	return err
}

// differences compares Alice's image with what it was.
func (w *world) differences() (lines []string) {
	w.t.Helper()
	id, err := w.ChainID(w.t.Context(), alice, privateImage)
	w.must(err)
	compare := func(want, got tree.Tree, err error, options tree.Options) {
		if err != nil {
			lines = append(lines, err.Error())
			return
		}
		lines = append(lines, tree.Diff(want, got, options)...)
	}
	got, err := w.ReadActive(w.t.Context(), alice, id)
	compare(w.active, got, err, tree.Options{IgnoreMtime: []string{"."}}) // that of the upper directory
	got, err = w.ReadView(w.t.Context(), alice, id)
	compare(w.view, got, err, tree.Options{})
	return lines
}

// unharmed fails the test if Alice's image has changed.
func (w *world) unharmed() {
	w.t.Helper()
	for _, line := range w.differences() {
		w.t.Errorf("Alice's image has changed: %s", line)
	}
}

// ours runs a command of our program, which must succeed.
func (w *world) ours(args ...string) {
	w.t.Helper()
	args = append(args, "--root", w.Root, "--daemon-address", w.Daemon, "--address", w.Containerd,
		"--config", filepath.Join(w.Dir, "ostree.toml"))
	if out, err := w.Run(w.t.Context(), shared.daemon, args...); err != nil {
		w.t.Errorf("%v\n%s", err, out)
	}
}

// restored repairs what an attack changed for which there was no guard, and checks that nothing is left of it.
func (w *world) restored() {
	w.t.Helper()
	w.ours("fsck", "--repair")
	w.ours("fsck", "--deep")
	w.unharmed()
}

// leaked returns the files of an image whose content is one of Alice's secrets.
func leaked(files tree.Tree) (names []string) {
	for name, e := range files {
		for _, content := range secrets {
			if e.SHA256 == sum(content) {
				names = append(names, name)
			}
		}
	}
	return names
}

// disk returns the device of the store.
func (w *world) disk() uint64 {
	w.t.Helper()
	var st unix.Stat_t
	w.must(unix.Stat(w.Root, &st))
	return st.Dev
}

// A box is a container of the attacker's.
type box struct {
	name    string
	flags   []string
	remount bool // the container may mount
	writes  int  // at least so many attempts to write must succeed, on files of the container's own
}

var boxes = []box{
	{name: "root", writes: 300},
	{name: "user", flags: []string{"--user", "1000:1000"}, writes: 30},
	{name: "new privileges", flags: []string{"--user", "1000:1000", "--allow-new-privs"}, writes: 30},
	{name: "mounting", flags: []string{"--cap-add", "CAP_SYS_ADMIN"}, remount: true, writes: 300},
	{name: "user namespace", flags: []string{
		"--cap-add", "CAP_SYS_ADMIN", "--remap-labels", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536",
	}, remount: true, writes: 300},
}

// publicDir makes a directory to which everybody may write, on the disk of the store.
func (w *world) publicDir(name string) string {
	w.t.Helper()
	dir, err := os.MkdirTemp(w.public, name)
	w.must(err)
	w.must(os.Chmod(dir, 0o777))
	return dir
}

// bindFlags returns flags that mount the program, the control directory and a volume into a container.
func bindFlags(control, volume string) []string {
	flags := []string{
		"--mount", "type=bind,src=" + shared.attacker + ",dst=" + programPath + ",options=rbind:ro",
		"--mount", "type=bind,src=" + control + ",dst=" + controlPath + ",options=rbind:rw",
	}
	if volume != "" {
		flags = append(flags, "--mount", "type=bind,src="+volume+",dst="+volumePath+",options=rbind:ro")
	}
	return flags
}

// attack runs the program in a container and returns its report.
func (w *world) attack(namespace, image, id string, flags []string, volume string, o Order) Report {
	w.t.Helper()
	control := w.publicDir("control")
	_, err := w.RunContainerWith(w.t.Context(), namespace, append(bindFlags(control, volume), flags...), image, id,
		programPath, w.order(o, control, controlPath))
	w.must(err)
	return w.report(control)
}

// start is attack for a program that keeps running. It returns the control directory.
func (w *world) start(namespace, image, id string, flags []string, o Order) (control string) {
	w.t.Helper()
	control = w.publicDir("control")
	w.must(w.StartContainerWith(w.t.Context(), namespace, append(bindFlags(control, ""), flags...), image, id,
		programPath, w.order(o, control, controlPath)))
	return control
}

// order writes an order into a control directory, which the program sees at a path. It returns the program's argument.
func (w *world) order(o Order, control, path string) string {
	w.t.Helper()
	o.Report, o.Scratch = filepath.Join(path, "report"), path
	b, err := json.Marshal(o)
	w.must(err)
	w.must(os.WriteFile(filepath.Join(control, "order"), b, 0o644))
	return filepath.Join(path, "order")
}

// report waits for the report in a control directory.
func (w *world) report(control string) (r Report) {
	w.t.Helper()
	name := filepath.Join(control, "report")
	w.must(await(name))
	b, err := os.ReadFile(name)
	w.must(err)
	w.must(json.Unmarshal(b, &r))
	return r
}

// attackAs runs the program as a user of the host and returns its report.
func (w *world) attackAs(uid uint32, o Order) Report {
	w.t.Helper()
	return w.startAs(uid, w.publicDir("home"), o)()
}

// startAs starts the program as a user of the host, with a home directory that becomes the user's. The function that it
// returns waits for the report.
func (w *world) startAs(uid uint32, home string, o Order) (wait func() Report) {
	w.t.Helper()
	w.must(os.Chown(home, int(uid), int(uid)))
	cmd := exec.CommandContext(w.t.Context(), shared.attacker, w.order(o, home, home))
	cmd.Dir = home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	w.must(cmd.Start())
	return func() Report {
		w.t.Helper()
		if err := cmd.Wait(); err != nil {
			w.t.Fatalf("attack as user %d: %v\n%s", uid, err, &out)
		}
		return w.report(home)
	}
}

// paths returns what is below a directory, with its attributes.
func (w *world) paths(dir string) map[string]*syscall.Stat_t {
	w.t.Helper()
	found := make(map[string]*syscall.Stat_t)
	w.must(filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		found[name] = fi.Sys().(*syscall.Stat_t)
		return nil
	}))
	return found
}

// volume mounts a view of an image read-only, as for an image volume of Kubernetes. Call the function to unmount it.
func (w *world) volume(image string) (target string, remove func()) {
	w.t.Helper()
	id, err := w.ChainID(w.t.Context(), mallory, image)
	w.must(err)
	ctx := namespaces.WithNamespace(w.t.Context(), mallory)
	ctx, release, err := w.Client().WithLease(ctx)
	w.must(err)
	sn := w.Client().SnapshotService(w.Snapshotter)
	mounts, err := sn.View(ctx, "volume", id)
	w.must(err)
	target, err = os.MkdirTemp(w.public, "volume")
	w.must(err)
	w.must(mount.All(mounts, target))
	return target, func() {
		w.t.Helper()
		w.must(errors.Join(mount.UnmountAll(target, 0), sn.Remove(ctx, "volume"), release(ctx)))
	}
}

// collect waits for containerd's garbage collection. Until then the daemon has the snapshots that a client has removed.
func (w *world) collect() {
	w.t.Helper()
	ctx := namespaces.WithNamespace(w.t.Context(), mallory)
	manager := w.Client().LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID())
	w.must(err)
	w.must(manager.Delete(ctx, lease, leases.SynchronousDelete))
}

// sorted returns the attempts, one a line.
func sorted(all []Attempt) string {
	var lines []string
	for _, a := range all {
		lines = append(lines, fmt.Sprintf("%s: %s", a.What, a.Path))
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n\t")
}
