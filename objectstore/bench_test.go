package objectstore_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

func benchMeta() *objectstore.FileMeta {
	return &objectstore.FileMeta{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mode: unix.S_IFREG | 0o644}
}

// BenchmarkStoreFileNew stores files of 4 KiB that the repository lacks.
func BenchmarkStoreFileNew(b *testing.B) {
	repo := objecttest.NewRepo(b)
	txn := begin(b, repo)
	m, data := benchMeta(), make([]byte, 4096)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		binary.LittleEndian.PutUint64(data, i)
		if s, err := txn.StoreFile(m, unix.Timespec{Sec: 1}, data); err != nil || !s.Added {
			b.Fatal(s, err)
		}
	}
}

// BenchmarkStoreFileExisting stores a file of 4 KiB that exists in the repository.
func BenchmarkStoreFileExisting(b *testing.B) {
	repo := objecttest.NewRepo(b)
	txn := begin(b, repo)
	m, data := benchMeta(), make([]byte, 4096)
	if _, err := txn.StoreFile(m, unix.Timespec{Sec: 1}, data); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if s, err := txn.StoreFile(m, unix.Timespec{Sec: 1}, data); err != nil || s.Added {
			b.Fatal(s, err)
		}
	}
}

// benchRepo has 20 commits of 1000 files each, a tenth of them garbage.
func benchRepo(b *testing.B) *objectstore.Repo {
	b.Helper()
	repo := objecttest.NewRepo(b)
	for c := range 20 {
		files := make(map[string]*objecttest.Node)
		for i := range 1000 {
			files[fmt.Sprint(i)] = objecttest.File(0o644, fmt.Sprint(c, i)).Own(uint32(os.Geteuid()), uint32(os.Getegid()))
		}
		ref := fmt.Sprintf("c%d", c)
		if c%10 == 0 {
			ref = ""
		}
		objecttest.Commit(b, repo, ref, objecttest.Dir(0o755, files).Own(uint32(os.Geteuid()), uint32(os.Getegid())))
	}
	return repo
}

func BenchmarkPlanPrune(b *testing.B) {
	repo := benchRepo(b)
	b.ReportAllocs()
	for b.Loop() {
		p, err := repo.PlanPrune(b.Context(), objectstore.PruneOptions{})
		if err != nil || p.Stats().Objects < 2000 {
			b.Fatal(p.Stats(), err)
		}
	}
}

func BenchmarkFsck(b *testing.B) {
	repo := benchRepo(b)
	b.ReportAllocs()
	for b.Loop() {
		r, err := repo.Fsck(b.Context(), objectstore.FsckOptions{})
		if err != nil || r.Err() != nil {
			b.Fatal(r, err)
		}
	}
}
