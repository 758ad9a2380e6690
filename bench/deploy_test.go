package bench

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// BenchmarkDeploy compares two deployments, each in a new sysroot on the file system of the store: that of an image
// whose layers are in the store, including merging the layers and storing the OS commit in the sysroot's repository;
// and "ostree admin deploy" of the same commit from a repository that has it. "store" is our part up to the commit.
//
// The images are an operating system of 2,000 files with a real kernel, and base:1 with a fake one, of 14,000.
func BenchmarkDeploy(b *testing.B) {
	ostree := testenv.NeedsTool(b, "ostree")
	for _, ref := range []string{images.OSBase, "base:1"} {
		b.Run(ref, func(b *testing.B) {
			blob := layerBlob(b, ref)
			s := make(series)
			for b.Loop() {
				dir, remove := freshDisk(b, "4G")
				testenv.Must(b, os.Mkdir(dir+"/store", 0o711))
				store := openStore(b, dir+"/store")
				chain := importOS(b, store, ref, blob)
				ours, theirs := openSysroot(b, dir+"/ours"), openSysroot(b, dir+"/theirs")
				commit := storeOS(b, store, chain, theirs.Repo())
				run(b, "sync", "-f", dir)
				s.time(b, "ostree", func() error {
					run(b, ostree, "admin", "deploy", "--sysroot="+dir+"/theirs", "--os=os", "--karg=root=LABEL=root", "os")
					return nil
				})
				run(b, "sync", "-f", dir)
				s.time(b, "ours", func() error {
					s.time(b, "store", func() error {
						if got := storeOS(b, store, chain, ours.Repo()); got != commit {
							b.Errorf("commit %s, want %s", got, commit)
						}
						return nil
					})
					return deployOS(b, ours, commit, false)
				})
				testenv.Must(b, errors.Join(ours.Close(), theirs.Close(), store.Close(), store.Repo().Close()))
				remove()
			}
			s.report(b, "ostree")
		})
	}
}

// importOS imports the layer of an image, and a layer that makes it an operating system if it is not one.
func importOS(b *testing.B, store *layer.Store, ref, blob string) (chain []objectstore.Checksum) {
	b.Helper()
	load := func(r io.Reader) {
		h, err := store.Import(b.Context(), r, layer.ImportOptions{})
		testenv.Must(b, err)
		testenv.Must(b, h.Release())
		chain = append(chain, h.ID)
	}
	if ref == images.OSBase { // its layer is not compressed
		f, err := os.Open(blob)
		testenv.Must(b, err)
		load(f)
		testenv.Must(b, f.Close())
		return chain
	}
	r, err := klauspost(b.Context(), blob)
	testenv.Must(b, err)
	load(r)
	testenv.Must(b, r.Close())
	var t bytes.Buffer
	w := tar.NewWriter(&t)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "sysroot/", Mode: 0o755},
		{Typeflag: tar.TypeSymlink, Name: "ostree", Linkname: "sysroot/ostree"},
		{Typeflag: tar.TypeReg, Name: "usr/lib/modules/6.1.0/vmlinuz", Mode: 0o644, Size: 8 << 20},
		{Typeflag: tar.TypeReg, Name: "usr/lib/modules/6.1.0/initramfs.img", Mode: 0o644, Size: 32 << 20},
	} {
		testenv.Must(b, w.WriteHeader(&h))
		_, err := w.Write(make([]byte, h.Size))
		testenv.Must(b, err)
	}
	testenv.Must(b, w.Close())
	load(&t)
	return chain
}

// openSysroot makes a sysroot with a stateroot.
func openSysroot(b *testing.B, path string) *sysroot.Sysroot {
	b.Helper()
	testenv.Must(b, os.Mkdir(path, 0o755))
	dir, err := atfs.Open(path)
	testenv.Must(b, err)
	defer dir.Close()
	testenv.Must(b, sysroot.Init(dir))
	s, err := sysroot.Open(dir, sysroot.Options{})
	testenv.Must(b, err)
	testenv.Must(b, s.InitStateroot("os"))
	return s
}

// storeOS stores the OS commit of an image durably.
func storeOS(b *testing.B, store *layer.Store, chain []objectstore.Checksum, to *objectstore.Repo) objectstore.Checksum {
	b.Helper()
	root, err := store.Flatten(b.Context(), chain)
	testenv.Must(b, err)
	tree, err := oscommit.NewTree(root)
	testenv.Must(b, err)
	if missing := tree.Missing(); len(missing) > 0 {
		b.Fatalf("the image lacks %q", missing)
	}
	txn, err := to.Begin(b.Context())
	testenv.Must(b, err)
	stored, err := tree.Store(b.Context(), txn, store.Repo(), oscommit.Image{})
	testenv.Must(b, err)
	txn.SetRef("os", stored.Commit)
	testenv.Must(b, txn.Commit(b.Context(), objectstore.CommitOptions{Sync: true}))
	return stored.Commit
}

func deployOS(b *testing.B, s *sysroot.Sysroot, commit objectstore.Checksum, noSELinux bool) error {
	b.Helper()
	unlock, err := s.Lock(b.Context())
	if err != nil {
		return err
	}
	st, err := s.Load(b.Context())
	if err == nil {
		var plan *sysroot.Plan
		plan, err = s.PlanDeploy(b.Context(), st, sysroot.Request{
			Stateroot: "os", Commit: commit, Kargs: kargs.List{"root=LABEL=root"}, NoSELinux: noSELinux,
		})
		if err == nil {
			err = s.Execute(b.Context(), plan)
		}
	}
	return errors.Join(err, unlock())
}
