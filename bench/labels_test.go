package bench

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// BenchmarkLabels compares deployments of an image without and with the SELinux labels of Debian's policy, each in a
// sysroot of its own on the file system of the store: the first one, and an update of 100 files.
func BenchmarkLabels(b *testing.B) {
	built, err := testhost.SELinuxPolicy(b.Context(), b.Output())
	testenv.Must(b, err)
	blob := layerBlob(b, "base:1")
	for _, fstype := range []string{"ext4", "xfs"} {
		b.Run(fstype, func(b *testing.B) {
			first, update := make(series), make(series)
			for round := 0; b.Loop(); round++ {
				dir := testenv.NewDisk(b, fstype, 3<<30).Dir
				testenv.Must(b, os.Mkdir(dir+"/store", 0o711))
				store := openStore(b, dir+"/store")
				chain := append(importOS(b, store, "base:1", blob), importFiles(b, store, func(w *tar.Writer) error { return w.AddFS(os.DirFS(built)) }))
				sysroots := map[string]*sysroot.Sysroot{"plain": openSysroot(b, dir+"/plain"), "labels": openSysroot(b, dir+"/labels")}
				deployBoth(b, first, store, chain, sysroots, dir, round)
				chain = append(chain, importFiles(b, store, changedFiles))
				deployBoth(b, update, store, chain, sysroots, dir, round)
				testenv.Must(b, errors.Join(sysroots["plain"].Close(), sysroots["labels"].Close(), store.Close(), store.Repo().Close()))
			}
			first.report(b, "plain")
			b.ReportMetric(float64(median(update["plain"]))/1e6, "update-plain-ms")
			b.ReportMetric(float64(median(update["labels"]))/1e6, "update-labels-ms")
		})
	}
}

// deployBoth deploys an image in both sysroots, which take turns to be the first.
func deployBoth(
	b *testing.B, s series, store *layer.Store, chain []objectstore.Checksum, sysroots map[string]*sysroot.Sysroot, dir string, round int,
) {
	b.Helper()
	order := []string{"plain", "labels"}
	if round%2 == 1 {
		order = []string{"labels", "plain"}
	}
	for _, name := range order {
		run(b, "sync", "-f", dir)
		s.time(b, name, func() error {
			o := deploy.PromoteOptions{NoLabels: name == "plain"}
			img := &deploy.Image{Name: "example.org/os:1", Manifest: []byte("{}"), Config: []byte("{}"), Layers: chain}
			p, err := deploy.Promote(b.Context(), store, sysroots[name].Repo(), img, o)
			if err != nil {
				return err
			}
			return errors.Join(deployOS(b, sysroots[name], p.Commit, o.NoLabels), p.Close())
		})
	}
}

// changedFiles writes the files of an update.
func changedFiles(w *tar.Writer) error {
	for i := range 100 {
		text := fmt.Sprintf("file %d of the update", i)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/update/%d", i), Mode: 0o644, Size: int64(len(text))}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}

// importFiles imports a layer of the files that a function writes.
func importFiles(b *testing.B, store *layer.Store, write func(*tar.Writer) error) objectstore.Checksum {
	b.Helper()
	var t bytes.Buffer
	w := tar.NewWriter(&t)
	testenv.Must(b, errors.Join(write(w), w.Close()))
	h, err := store.Import(b.Context(), &t, layer.ImportOptions{})
	testenv.Must(b, err)
	testenv.Must(b, h.Release())
	return h.ID
}
