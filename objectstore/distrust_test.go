package objectstore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
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

// An object of the right size with wrong content is trusted unless it is distrusted. Its name is announced before it
// exists, and only when it is new or replaced.
func TestDistrust(t *testing.T) {
	testenv.NeedsRoot(t)
	path := t.TempDir()
	d, err := atfs.Open(path)
	testenv.Must(t, err)
	defer d.Close()
	repo, err := Create(d, ModeBare)
	testenv.Must(t, err)
	defer repo.Close()
	dirmeta, err := (&DirMeta{Mode: unix.S_IFDIR | 0o755}).Marshal()
	testenv.Must(t, err)
	store := func(t *testing.T, distrust ...ObjectName) (names, published []ObjectName) {
		t.Helper()
		txn, err := repo.Begin(t.Context())
		testenv.Must(t, err)
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
		testenv.Must(t, err)
		l, err := txn.StoreSymlink(&FileMeta{Mode: unix.S_IFLNK | 0o777, Target: "target"})
		testenv.Must(t, err)
		m, err := txn.StoreMetadata(TypeDirMeta, dirmeta)
		testenv.Must(t, err)
		testenv.Must(t, txn.Abort())
		return []ObjectName{{TypeFile, f.Checksum}, {TypeFile, l.Checksum}, {TypeDirMeta, m.Checksum}}, published
	}
	var names []ObjectName
	wantProblems := func(t *testing.T, want int) {
		t.Helper()
		if r, err := repo.Fsck(t.Context(), FsckOptions{}); err != nil || len(r.Problems) != want {
			t.Errorf("fsck: got %+v, %v, want %d problems", r, err, want)
		}
	}
	t.Run("new objects are announced", func(t *testing.T) {
		var published []ObjectName
		if names, published = store(t); len(published) != len(names) {
			t.Errorf("announced %v, want %v", published, names)
		}
	})
	t.Run("damaged objects are trusted", func(t *testing.T) {
		for _, name := range []ObjectName{names[0], names[2]} {
			file := filepath.Join(path, "objects", LoosePath(name.Checksum, name.Type))
			b, err := os.ReadFile(file)
			testenv.Must(t, err)
			b[0] ^= 1
			testenv.Must(t, os.WriteFile(file, b, 0o644))
		}
		if _, published := store(t); len(published) != 0 {
			t.Errorf("announced %v, although all are there", published)
		}
		wantProblems(t, 2)
	})
	t.Run("distrusted objects are replaced", func(t *testing.T) {
		if _, published := store(t, names...); len(published) != len(names) {
			t.Errorf("announced %v, want %v", published, names)
		}
		wantProblems(t, 0)
	})
	t.Run("mend", func(t *testing.T) {
		testMend(t, repo, path, names[0], func() { store(t, names...) })
	})
	t.Run("remove", func(t *testing.T) {
		lock, err := repo.Lock(t.Context(), LockShared)
		testenv.Must(t, err)
		for range 2 { // the second time it is absent
			if err := lock.RemoveObject(names[0].Type, names[0].Checksum); err != nil {
				t.Error(err)
			}
		}
		testenv.Must(t, lock.Unlock())
		if ok, err := repo.Has(names[0].Type, names[0].Checksum); ok || err != nil {
			t.Errorf("removed object is there: %v, %v", ok, err)
		}
	})
}

// testMend damages a content object whose content is "content", in several ways. store stores it again. Its inode must
// be mended, so that a hard link is right too, unless the inode is another object's.
func testMend(t *testing.T, repo *Repo, path string, name ObjectName, store func()) {
	t.Helper()
	file := filepath.Join(path, "objects", LoosePath(name.Checksum, name.Type))
	link := filepath.Join(path, "link")
	testenv.Must(t, os.Link(file, link))
	ino := func(name string) uint64 {
		t.Helper()
		var st unix.Stat_t
		testenv.Must(t, unix.Stat(name, &st))
		return st.Ino
	}
	right := func(what string) {
		t.Helper()
		r, err := repo.Fsck(t.Context(), FsckOptions{})
		if err != nil || len(r.Problems) != 0 {
			t.Errorf("%s: got %+v, %v, want no problems", what, r, err)
		}
	}
	for what, damage := range map[string]func() error{
		"shorter":   func() error { return os.Truncate(file, 3) },
		"empty":     func() error { return os.Truncate(file, 0) },
		"longer":    func() error { return os.Truncate(file, 1<<20) },
		"mode":      func() error { return os.Chmod(file, 0o4711) },
		"owner":     func() error { return os.Lchown(file, 7, 8) },
		"attribute": func() error { return unix.Setxattr(file, "user.more", []byte("x"), 0) },
		"content":   func() error { return os.WriteFile(file, []byte("CONTENT"), 0) },
	} {
		testenv.Must(t, damage())
		store()
		right(what)
		if b, err := os.ReadFile(link); err != nil || string(b) != "content" || ino(link) != ino(file) {
			t.Errorf("%s: the link has %q, %v, want \"content\"; is the object: %t", what, b, err, ino(link) == ino(file))
		}
	}

	txn, err := repo.Begin(t.Context())
	testenv.Must(t, err)
	stored, err := txn.StoreFile(&FileMeta{Mode: unix.S_IFREG | 0o644}, unix.Timespec{}, []byte("another object"))
	testenv.Must(t, err)
	other := filepath.Join(path, "objects", LoosePath(stored.Checksum, TypeFile))
	testenv.Must(t, txn.Abort())
	testenv.Must(t, os.Remove(file))
	testenv.Must(t, os.Link(other, file))
	store()
	right("another object's inode")
}

// TestMendRefused damages an object on a disk that rejects writes: the object must be replaced.
func TestMendRefused(t *testing.T) {
	testenv.NeedsRoot(t)
	d, err := atfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var refuse error
	hooked, err := d.WithHook(func(op atfs.Op, name string) error {
		if op == atfs.OpWrite && strings.HasSuffix(name, ".file") {
			return refuse
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer hooked.Close()
	repo, err := Create(hooked, ModeBare)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	store := func(distrust map[ObjectName]struct{}) (Stored, error) {
		txn, err := repo.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		txn.Distrust(distrust)
		stored, err := txn.StoreFile(&FileMeta{Mode: unix.S_IFREG | 0o644}, unix.Timespec{Sec: 1}, []byte("content"))
		return stored, errors.Join(err, txn.Abort())
	}
	stored, err := store(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ refuse, want error }{{unix.EIO, nil}, {unix.EPERM, nil}, {unix.ENOSPC, unix.ENOSPC}} {
		file := filepath.Join(d.Path(), "objects", LoosePath(stored.Checksum, TypeFile))
		if err := os.WriteFile(file, []byte("CONTENT"), 0); err != nil {
			t.Fatal(err)
		}
		refuse = tt.refuse
		_, err := store(map[ObjectName]struct{}{{TypeFile, stored.Checksum}: {}})
		if !errors.Is(err, tt.want) {
			t.Errorf("%v: got error %v, want %v", tt.refuse, err, tt.want)
		}
		if b, err := os.ReadFile(file); tt.want == nil && string(b) != "content" {
			t.Errorf("%v: got %q, %v", tt.refuse, b, err)
		}
	}
}
