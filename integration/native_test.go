package integration

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/encapsulate"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// nativeForms are the forms in which builders encapsulate a commit.
var nativeForms = map[string]encapsulate.Options{
	"native:version-1":     encapsulate.Scatter(5),
	"native:version-2":     with(encapsulate.Scatter(5), func(o *encapsulate.Options) { o.Parents = true }),
	"native:linked-xattrs": with(encapsulate.Scatter(5), func(o *encapsulate.Options) { o.LinkedXattrs = true }),
	"native:one-layer":     {},
}

// exampleForm has a chunk for /usr/bin, and one for the rest.
var exampleForm = encapsulate.Options{Chunks: 2, Chunk: func(path string) int {
	if strings.HasPrefix(path, "usr/bin/") {
		return 0
	}
	return 1
}}

func with(o encapsulate.Options, change func(*encapsulate.Options)) encapsulate.Options {
	change(&o)
	return o
}

// nativeScript makes a tree to commit: with whatever matters to links, and to directories that a layer does not name.
const nativeScript = `
mkdir -p usr/bin usr/etc/private usr/lib/deep/deeper usr/lib/modules/6.1.0 usr/share boot dev proc root run sys sysroot tmp var home/user
ln -s sysroot/ostree ostree
echo ID=example >usr/lib/os-release; echo kernel >usr/lib/modules/6.1.0/vmlinuz; echo initramfs >usr/lib/modules/6.1.0/initramfs.img
for f in passwd group shadow shells; do echo "first line of $f" >usr/etc/$f; done
chmod 700 root; chmod 1777 tmp; chmod 711 usr/etc/private; chown 5:6 usr/etc/private
chmod 2775 usr/lib/deep; chown 0:50 usr/lib/deep; chmod 750 home/user; chown 1000:1000 home/user
setfattr -n user.directory -v yes usr/lib/deep/deeper
echo program >usr/bin/program; chmod 4755 usr/bin/program
ln -s program usr/bin/alias; ln -s program usr/bin/alias-2; ln -s /nowhere usr/lib/dangling
echo secret >usr/etc/private/shadow; chmod 640 usr/etc/private/shadow; chown 0:42 usr/etc/private/shadow
echo profile >root/.profile; echo mine >home/user/file; chown 1000:1000 home/user/file
for i in 1 2 3 4 5 6 7 8 9; do
  echo equal >usr/share/equal-$i; : >usr/share/empty-$i; echo $i >usr/lib/deep/deeper/file-$i
  ln usr/share/equal-$i usr/lib/deep/linked-$i
done
echo attributes >usr/share/attributes; setfattr -n user.first -v 1 usr/share/attributes
cp usr/bin/program usr/bin/capable; chmod 755 usr/bin/capable
setfattr -n security.capability -v 0sAQAAAgAkAAAAAAAAAAAAAAAAAAA= usr/bin/capable
long=$(printf 'long-%0200d' 1); mkdir usr/share/$long; echo long >usr/share/$long/$long; ln -s $long/$long usr/share/link
`

// nativeCommit returns a commit that ostree made.
func nativeCommit(t *testing.T) *encapsulate.Commit {
	t.Helper()
	tree, repo := t.TempDir(), t.TempDir()
	script := exec.Command("sh", "-euc", nativeScript)
	script.Dir = tree
	testenv.Must(t, script.Run())
	commit, closeIt, err := encapsulate.CommitTree(t.Context(), repo, tree)
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, closeIt()) })
	return commit
}

// nativeImages returns ostree-native images by reference.
func nativeImages(t *testing.T) map[string]*images.Image {
	t.Helper()
	example, err := encapsulate.Example()
	testenv.Must(t, err)
	made := make(map[string]*images.Image)
	made["example:v0"], err = encapsulate.ExampleImage(t.TempDir())
	testenv.Must(t, err)
	made["example:version-1"], err = example.Image(t.TempDir(), exampleForm)
	testenv.Must(t, err)
	commit := nativeCommit(t)
	for ref, o := range nativeForms {
		made[ref], err = commit.Image(t.TempDir(), o)
		testenv.Must(t, err)
	}
	return made
}

// busybox returns the path of a static busybox.
func busybox(t *testing.T) string {
	t.Helper()
	tiny, dir := image(t, "tiny:1"), t.TempDir()
	testenv.Must(t, exec.Command("tar", "-xf", tiny.Blob(tiny.Manifest.Layers[0].Digest), "-C", dir, "./bin/busybox").Run())
	return filepath.Join(dir, "bin/busybox")
}

// listing returns a hash of what a container of an image sees: each name with type, mode, owner and size, each target and
// each content.
func (e *env) listing(busybox, full string) string {
	e.t.Helper()
	const script = `b=/run/busybox; cd /
$b find . -xdev ! -type l -exec $b stat -c '%n %F %a %u:%g' {} + | $b sort >/run/list
$b find . -xdev -type l -exec $b stat -c '%N' {} + | $b sort >>/run/list
$b find . -xdev -type f ! -path './run/*' -exec $b sha256sum {} + | $b sort >>/run/list
$b sha256sum </run/list`
	return e.inContainer(busybox, full, script)
}

// inContainer runs a script in a new container of an image that need not have a shell, and returns what it prints.
func (e *env) inContainer(busybox, full, script string) (out string) {
	e.t.Helper()
	flags := []string{"--mount", "type=bind,src=" + busybox + ",dst=/run/busybox,options=rbind:ro"}
	e.eventually("read what a container prints", func() string {
		var err error
		out, err = e.RunContainerWith(e.t.Context(), defaultNS, flags, full, containerID(), "/run/busybox", "sh", "-euc", script)
		e.must(err)
		if out == "" {
			return "nothing has arrived"
		}
		return ""
	})
	return out
}

// keepCapability gives the reference what it loses: containerd sets the owner of a file again for each hard link in a
// layer, and the kernel then removes the file's capabilities.
func keepCapability(want tree.Tree) {
	linked := want["usr/bin/capable"]
	if linked == nil {
		return
	}
	value := string([]byte{1, 0, 0, 2, 0, 0x24, 19: 0})
	for _, entry := range want {
		if entry.Size == linked.Size && entry.SHA256 == linked.SHA256 && entry.Mode == linked.Mode {
			entry.Xattrs = map[string]string{"security.capability": value}
		}
	}
}

// TestNative pulls images in every form of ostree-ext and rpm-ostree, layer by layer and with layers unpacked at the same
// time. Containers must see what they see on overlayfs, unpacked in order: most layers lack the directories of their files,
// and all files are links into the repository in the image.
func TestNative(t *testing.T) {
	needsHost(t)
	t.Parallel()
	made, tool := nativeImages(t), busybox(t)
	// These two run; the others have the same files.
	listings := map[string]string{"example:v0": "", "native:version-1": ""}
	for ref, img := range made {
		testenv.Must(t, img.Push(t.Context(), shared.registry.Address, ref))
		want, _ := referenceOf(t, ref, img, func(e *env) {
			if _, runs := listings[ref]; runs {
				listings[ref] = e.listing(tool, shared.registry.Address+"/"+ref)
			}
		})
		keepCapability(want)
	}
	for _, mode := range []struct {
		checkout string
		unpacks  int
	}{{"hardlink", 1}, {"hardlink", 3}, {"composefs", 1}, {"composefs", 3}} {
		t.Run(fmt.Sprintf("%s/%d at once", mode.checkout, mode.unpacks), func(t *testing.T) {
			if mode.checkout == "composefs" {
				testenv.NeedsEROFS(t)
			}
			e := start(t, func(o *stack.Options) {
				o.Config, o.ParallelUnpacks = fmt.Sprintf("checkout = %q\n", mode.checkout), mode.unpacks
			})
			for ref, img := range made {
				if _, runs := listings[ref]; !runs && mode.unpacks == 1 {
					continue // nothing new
				}
				full := shared.registry.Address + "/" + ref
				e.must(e.Pull(t.Context(), defaultNS, full))
				want, options := referenceOf(t, ref, img, nil)
				options.ExactLinks = e.composefs()
				for _, line := range diffTrees(want, e.view(defaultNS, full), options) {
					t.Errorf("%s: %s", ref, line)
				}
				if listing, runs := listings[ref]; runs && e.listing(tool, full) != listing {
					t.Errorf("%s: a container does not see what it sees on overlayfs", ref)
				}
			}
		})
	}
}

// TestNativeOS pulls a whole Debian system in 65 layers. A container must see what is in the tar that the commit was made of,
// besides the repository and without the times.
func TestNativeOS(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *stack.Options) { o.Config, o.ParallelUnpacks = "checkout = \"hardlink\"\n", 3 })
	img, err := encapsulate.OS(t.Context(), t.Output())
	e.must(err)
	const ref = "native-os:1"
	e.must(img.Push(t.Context(), shared.registry.Address, ref))
	full := shared.registry.Address + "/" + ref
	e.must(e.Pull(t.Context(), defaultNS, full))
	got, dir, plain := e.view(defaultNS, full), t.TempDir(), image(t, images.OSBase)
	e.must(exec.Command("tar", "-xpf", plain.Blob(plain.Manifest.Layers[0].Digest), "-C", dir, "--numeric-owner", "--xattrs", "--xattrs-include=*").Run())
	want, err := tree.Read(t.Context(), dir)
	e.must(err)
	want["."] = got["."]
	leaveOut(got, "sysroot/ostree")
	leaveOut(got, "var/tmp") // builders add it
	e.sameButTimes(want, got)
	if out := e.run(defaultNS, full, "/bin/sh", "-c", ". /etc/os-release; echo $ID"); strings.TrimSpace(out) != "debian" {
		t.Errorf("the container printed %q, want debian", out)
	}
}

// manyXattrs returns a layer with the xattr files that a builder writes for so many files with equal xattrs.
func manyXattrs(first, n int) encapsulate.Layer {
	return func(w io.Writer) error {
		tw := tar.NewWriter(w)
		for i := range n {
			sum := sha256.Sum256(fmt.Append(nil, first+i))
			h := &tar.Header{
				Name: fmt.Sprintf("sysroot/ostree/repo/objects/%x/%x.file-xattrs-link", sum[:1], sum[1:]), Mode: 0o644,
				Size: int64(len(equalXattrs)), ModTime: time.Unix(0, 0), Format: tar.FormatGNU,
			}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			if _, err := io.WriteString(tw, equalXattrs); err != nil {
				return err
			}
		}
		return tw.Close()
	}
}

// equalXattrs stands for the bytes of the label that most files of an image have.
const equalXattrs = "security.selinux\x00system_u:object_r:usr_t:s0\x00\x11"

// TestNativeLinks pulls three images that together have more equal xattr files than a file on ext4 can have links.
func TestNativeLinks(t *testing.T) {
	needsHost(t)
	t.Parallel()
	const names, limit = 22_000, 65_000
	disk := testenv.NewDisk(t, "ext4", 1<<30)
	e := start(t, func(o *stack.Options) {
		o.Root, o.Config = filepath.Join(disk.Dir, "ostree"), "checkout = \"hardlink\"\n"
	})
	tool := busybox(t)
	for i := range 3 {
		img, err := encapsulate.Layout(t.TempDir(), []encapsulate.Layer{manyXattrs(i*names, names)}, func([]digest.Digest) map[string]string { return nil })
		e.must(err)
		ref := fmt.Sprintf("native-links:%d", i)
		e.must(img.Push(t.Context(), shared.registry.Address, ref))
		full := shared.registry.Address + "/" + ref
		e.must(e.Pull(t.Context(), defaultNS, full))
		const script = `cd /sysroot/ostree/repo/objects; b=/run/busybox
$b find . -type f -exec $b sha256sum {} + | $b cut -c1-64 | $b sort | $b uniq -c`
		want := fmt.Sprintf("%d %x", names, sha256.Sum256([]byte(equalXattrs)))
		if got := e.inContainer(tool, full, script); strings.TrimSpace(got) != want {
			t.Errorf("the container of image %d has %q, want %q", i, got, want)
		}
	}
	meta := &objectstore.FileMeta{Mode: unix.S_IFREG | 0o644}
	h, err := objectstore.NewContentHash(meta)
	e.must(err)
	_, _ = io.WriteString(h, equalXattrs)
	var st unix.Stat_t
	e.must(unix.Stat(filepath.Join(e.Root, "repo/objects", objectstore.LoosePath(objectstore.Checksum(h.Sum(nil)), objectstore.TypeFile)), &st))
	if st.Nlink != limit {
		t.Errorf("the object has %d links, want %d: all that it can have", st.Nlink, limit)
	}
}
