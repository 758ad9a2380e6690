package bench

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// BenchmarkLabels compares deployments of an image without and with the SELinux labels of Debian's policy, each in a
// sysroot of its own on the file system of the store: the first one, and an update of 100 files. "cpu" is processor time of
// this process and its children, without the kernel's own threads. "ostree" is the same work for ostree: "ostree commit
// --selinux-policy" of a checkout of the commit without labels, and "ostree admin deploy" of the result, which has the same
// objects as ours.
func BenchmarkLabels(b *testing.B) {
	ostree := testenv.NeedsTool(b, "ostree")
	built, err := testhost.SELinuxPolicy(b.Context(), b.Output())
	testenv.Must(b, err)
	blob := layerBlob(b, "base:1")
	for _, fstype := range []string{"ext4", "xfs"} {
		b.Run(fstype, func(b *testing.B) {
			first, update := newLabelSeries(""), newLabelSeries("update-")
			for round := 0; b.Loop(); round++ {
				dir := testenv.NewDisk(b, fstype, 4<<30).Dir
				testenv.Must(b, os.Mkdir(dir+"/store", 0o711))
				store := openStore(b, dir+"/store")
				chain := append(importOS(b, store, "base:1", blob), importFiles(b, store, func(w *tar.Writer) error { return w.AddFS(os.DirFS(built)) }))
				sysroots := make(map[string]*sysroot.Sysroot)
				for _, name := range []string{"plain", "labels", "ostree"} {
					sysroots[name] = openSysroot(b, dir+"/"+name)
				}
				labelled := first.deployBoth(b, store, chain, sysroots, dir, round)
				first.deployTheirs(b, ostree, storeOS(b, store, chain, sysroots["ostree"].Repo()), sysroots["ostree"].Repo(), dir)
				sameTree(b, sysroots["labels"].Repo(), labelled, sysroots["ostree"].Repo())
				chain = append(chain, importFiles(b, store, changedFiles))
				update.deployBoth(b, store, chain, sysroots, dir, round)
				for _, s := range sysroots {
					testenv.Must(b, s.Close())
				}
				testenv.Must(b, errors.Join(store.Close(), store.Repo().Close()))
			}
			first.report(b)
			update.report(b)
		})
	}
}

// labelSeries are times of deployments without and with labels.
type labelSeries struct {
	prefix    string
	wall, cpu series
}

func newLabelSeries(prefix string) labelSeries {
	return labelSeries{prefix, make(series), make(series)}
}

func (s labelSeries) time(b *testing.B, name, dir string, f func() error) {
	b.Helper()
	run(b, "sync", "-f", dir)
	before := cpuTime(b)
	s.wall.time(b, s.prefix+name, f)
	s.cpu[s.prefix+"cpu-"+name] = append(s.cpu[s.prefix+"cpu-"+name], cpuTime(b)-before)
}

func (s labelSeries) report(b *testing.B) {
	b.Helper()
	s.wall.report(b, s.prefix+"plain")
	s.cpu.report(b, s.prefix+"cpu-plain")
}

// cpuTime returns the processor time of this process and its children so far.
func cpuTime(b *testing.B) (sum time.Duration) {
	b.Helper()
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		testenv.Must(b, unix.Getrusage(who, &u))
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

// deployBoth deploys an image in both sysroots, which take turns to be the first. It returns the commit with labels.
func (s labelSeries) deployBoth(
	b *testing.B, store *layer.Store, chain []objectstore.Checksum, sysroots map[string]*sysroot.Sysroot, dir string, round int,
) (labelled objectstore.Checksum) {
	b.Helper()
	order := []string{"plain", "labels"}
	if round%2 == 1 {
		order = []string{"labels", "plain"}
	}
	for _, name := range order {
		s.time(b, name, dir, func() error {
			o := deploy.PromoteOptions{NoLabels: name == "plain"}
			img := &deploy.Image{Name: "example.org/os:1", Manifest: []byte("{}"), Config: []byte("{}"), Layers: chain}
			p, err := deploy.Promote(b.Context(), store, sysroots[name].Repo(), img, o)
			if err != nil {
				return err
			}
			if !o.NoLabels {
				labelled = p.Commit
			}
			return errors.Join(deployOS(b, sysroots[name], p.Commit, o.NoLabels), p.Close())
		})
	}
	return labelled
}

// deployTheirs has ostree make a commit with labels of one without, and deploy it.
func (s labelSeries) deployTheirs(b *testing.B, ostree string, commit objectstore.Checksum, repo *objectstore.Repo, dir string) {
	b.Helper()
	tree := dir + "/tree"
	run(b, ostree, "checkout", "-H", "--repo="+repo.Dir().Path(), commit.String(), tree)
	s.time(b, "ostree", dir, func() error {
		run(b, ostree, "commit", "--repo="+repo.Dir().Path(), "--branch=labels", "--tree=dir="+tree, "--selinux-policy="+tree, "--bootable")
		run(b, ostree, "admin", "deploy", "--sysroot="+dir+"/ostree", "--os=os", "--karg=root=LABEL=root", "labels")
		return nil
	})
}

// sameTree compares our commit with that of ostree.
func sameTree(b *testing.B, repo *objectstore.Repo, commit objectstore.Checksum, other *objectstore.Repo) {
	b.Helper()
	ours, err := repo.Commit(commit)
	testenv.Must(b, err)
	sum, err := other.Ref("labels")
	testenv.Must(b, err)
	theirs, err := other.Commit(sum)
	testenv.Must(b, err)
	if ours.Root() != theirs.Root() {
		b.Fatalf("commit has tree %v, that of ostree %v", ours.Root(), theirs.Root())
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
