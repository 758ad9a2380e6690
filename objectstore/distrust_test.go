package objectstore

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

func TestObjectName(t *testing.T) {
	name := ObjectName{TypeDirTree, Checksum{0xab, 31: 1}}
	if got, err := ParseObjectName(name.String()); err != nil || got != name {
		t.Errorf("ParseObjectName(%q) = %v, %v", name, got, err)
	}
	for _, s := range []string{"", "x", name.Checksum.String(), name.Checksum.String() + ".", name.Checksum.String() + ".x", "ab.file"} {
		if got, err := ParseObjectName(s); err == nil {
			t.Errorf("ParseObjectName(%q) = %v, want an error", s, got)
		}
	}
}

// An object of the right size whose content is wrong is taken for what its name says, unless it is distrusted. Its name
// is announced before it is there, and only when it is new or replaced.
func TestDistrust(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: a bare repository has files of any owner")
	}
	path := t.TempDir()
	d, err := atfs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	repo, err := Create(d, ModeBare)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	dirmeta, err := (&DirMeta{Mode: unix.S_IFDIR | 0o755}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	store := func(distrust ...ObjectName) (names, published []ObjectName) {
		t.Helper()
		txn, err := repo.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		txn.OnPublish(func(name ObjectName) {
			mu.Lock()
			defer mu.Unlock()
			if ok, err := repo.Has(name.Type, name.Checksum); err != nil || ok && len(distrust) == 0 {
				t.Errorf("%s is there before it is announced (%v)", name, err)
			}
			published = append(published, name)
		})
		set := make(map[ObjectName]struct{})
		for _, name := range distrust {
			set[name] = struct{}{}
		}
		txn.Distrust(set)
		f, err := txn.StoreFile(&FileMeta{Mode: unix.S_IFREG | 0o644}, unix.Timespec{Sec: 1}, []byte("content"))
		if err != nil {
			t.Fatal(err)
		}
		l, err := txn.StoreSymlink(&FileMeta{Mode: unix.S_IFLNK | 0o777, Target: "target"})
		if err != nil {
			t.Fatal(err)
		}
		m, err := txn.StoreMetadata(TypeDirMeta, dirmeta)
		if err != nil {
			t.Fatal(err)
		}
		if err := txn.Abort(); err != nil {
			t.Fatal(err)
		}
		return []ObjectName{{TypeFile, f.Checksum}, {TypeFile, l.Checksum}, {TypeDirMeta, m.Checksum}}, published
	}
	names, published := store()
	if len(published) != len(names) {
		t.Errorf("announced %v, want %v", published, names)
	}
	for _, name := range []ObjectName{names[0], names[2]} {
		file := filepath.Join(path, "objects", LoosePath(name.Checksum, name.Type))
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, published := store(); len(published) != 0 {
		t.Errorf("announced %v, although all are there", published)
	}
	if r, err := repo.Fsck(t.Context(), FsckOptions{}); err != nil || len(r.Problems) != 2 {
		t.Errorf("got %+v, %v, want two problems", r, err)
	}
	if _, published := store(names...); len(published) != len(names) {
		t.Errorf("announced %v, want %v", published, names)
	}
	if r, err := repo.Fsck(t.Context(), FsckOptions{}); err != nil || len(r.Problems) != 0 {
		t.Errorf("got %+v, %v, want none", r, err)
	}

	lock, err := repo.Lock(t.Context(), LockShared)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is not there
		if err := lock.RemoveObject(names[0].Type, names[0].Checksum); err != nil {
			t.Error(err)
		}
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if ok, err := repo.Has(names[0].Type, names[0].Checksum); ok || err != nil {
		t.Errorf("removed object is there: %v, %v", ok, err)
	}
}
