package selinux

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// BenchmarkDisk stores an operating system that has a policy and three applications on its base, with the layers in a store and the
// OS commit in a sysroot's repository on the same file system, without and with labels. It reports what that takes on the
// disk, also relative to the distinct contents of all files in whole blocks.
func BenchmarkDisk(b *testing.B) {
	testenv.NeedsRoot(b)
	osLayers, apps := osAndApplications(b)
	distinct := contents(b, append(apps, osLayers...))
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		for _, labels := range []bool{false, true} {
			b.Run(fstype+map[bool]string{false: "/plain", true: "/labels"}[labels], func(b *testing.B) {
				for b.Loop() {
					disk := testenv.NewDisk(b, fstype, 3<<30)
					empty := used(b, disk.Dir)
					store(b, disk.Dir, osLayers, apps, labels)
					stored := used(b, disk.Dir) - empty
					b.ReportMetric(float64(stored)/(1<<20), "MiB")
					b.ReportMetric(float64(stored)/float64(distinct), "x-distinct")
				}
			})
		}
	}
}

// osAndApplications returns the layers of an OS image, and those that three images have on its lowest layer, as tar files.
func osAndApplications(tb testing.TB) (osLayers, apps []string) {
	tb.Helper()
	built, err := testhost.SELinuxPolicy(tb.Context(), tb.Output())
	testenv.Must(tb, err)
	policy := filepath.Join(tb.TempDir(), "policy.tar")
	f, err := os.Create(policy)
	testenv.Must(tb, err)
	w := tar.NewWriter(f)
	testenv.Must(tb, errors.Join(w.AddFS(os.DirFS(built)), w.Close(), f.Close()))
	osLayers = append(tars(tb, images.OSBase), policy)
	for _, ref := range []string{"app:1", "layers:1", "odd:1"} {
		apps = append(apps, tars(tb, ref)[1:]...)
	}
	return osLayers, apps
}

// tars returns the layers of an image of package images.
func tars(tb testing.TB, ref string) (files []string) {
	tb.Helper()
	dir, err := images.Layout(tb.Context(), tb.Output(), ref)
	testenv.Must(tb, err)
	img, err := images.Open(dir)
	testenv.Must(tb, err)
	tmp := tb.TempDir()
	for _, l := range img.Manifest.Layers {
		blob := img.Blob(l.Digest)
		if strings.HasSuffix(l.MediaType, "gzip") {
			plain := filepath.Join(tmp, l.Digest.Encoded())
			testenv.Must(tb, gunzip(plain, blob))
			blob = plain
		}
		files = append(files, blob)
	}
	return files
}

func gunzip(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, z)
	return errors.Join(err, out.Close())
}

// contents returns the size of the distinct contents of all files in some tars, in whole blocks.
func contents(tb testing.TB, tars []string) (size int64) {
	tb.Helper()
	const block = 4096
	seen := make(map[[sha256.Size]byte]bool)
	for _, name := range tars {
		f, err := os.Open(name)
		testenv.Must(tb, err)
		defer f.Close()
		for r := tar.NewReader(f); ; {
			_, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			testenv.Must(tb, err)
			h := sha256.New()
			n, err := io.Copy(h, r)
			testenv.Must(tb, err)
			if sum := [sha256.Size]byte(h.Sum(nil)); !seen[sum] {
				seen[sum] = true
				size += (n + block - 1) / block * block
			}
		}
	}
	return size
}

// store imports the layers, and makes the OS commit.
func store(tb testing.TB, dir string, osLayers, apps []string, labels bool) {
	tb.Helper()
	testenv.Must(tb, errors.Join(os.MkdirAll(filepath.Join(dir, "store/repo"), 0o700), os.Mkdir(filepath.Join(dir, "sysroot"), 0o755)))
	repo := repository(tb, filepath.Join(dir, "store/repo"))
	root, err := atfs.Open(filepath.Join(dir, "store"))
	testenv.Must(tb, err)
	defer root.Close()
	layers, err := layer.Open(root, repo, layer.Options{})
	testenv.Must(tb, err)
	img := &deploy.Image{
		Name: "registry.example.org/os:1", ManifestDigest: digest.FromString("{}"), Manifest: []byte("{}"), Config: []byte("{}"),
	}
	for _, name := range osLayers {
		img.Layers = append(img.Layers, importTar(tb, layers, name))
	}
	for _, name := range apps {
		importTar(tb, layers, name)
	}
	options := deploy.PromoteOptions{}
	if !labels {
		options.Source = deploy.Flatten(layers)
	}
	sysroot := repository(tb, filepath.Join(dir, "sysroot"))
	promoted, err := deploy.Promote(tb.Context(), layers, sysroot, img, options)
	testenv.Must(tb, err)
	testenv.Must(tb, errors.Join(promoted.Close(), layers.Close(), repo.Close(), sysroot.Close()))
}

func repository(tb testing.TB, name string) *objectstore.Repo {
	tb.Helper()
	dir, err := atfs.Open(name)
	testenv.Must(tb, err)
	defer dir.Close()
	repo, err := objectstore.Create(dir, objectstore.ModeBare)
	testenv.Must(tb, err)
	return repo
}

func importTar(tb testing.TB, layers *layer.Store, name string) objectstore.Checksum {
	tb.Helper()
	f, err := os.Open(name)
	testenv.Must(tb, err)
	defer f.Close()
	h, err := layers.Import(tb.Context(), f, layer.ImportOptions{})
	testenv.Must(tb, err)
	testenv.Must(tb, h.Release())
	return h.ID
}

// used returns the bytes in use on a file system, after everything is written.
func used(tb testing.TB, dir string) int64 {
	tb.Helper()
	f, err := os.Open(dir)
	testenv.Must(tb, err)
	defer f.Close()
	testenv.Must(tb, unix.Syncfs(int(f.Fd())))
	var st unix.Statfs_t
	testenv.Must(tb, unix.Fstatfs(int(f.Fd()), &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
