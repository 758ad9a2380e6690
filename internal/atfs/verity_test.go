package atfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func verityFile(t *testing.T, dir, content string) (*atfs.Dir, *atfs.File) {
	t.Helper()
	d, err := atfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	f, err := d.TmpFile(0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	return d, f
}

func TestEnableVerity(t *testing.T) {
	dir := t.TempDir()
	testenv.NeedsVerity(t, dir)
	for _, content := range []string{"", "x", string(make([]byte, 1<<20+1))} {
		d, f := verityFile(t, dir, content)
		if _, ok, err := f.MeasureVerity(); ok || err != nil {
			t.Errorf("before: got %v, %v, want no digest", ok, err)
		}
		mtime := unix.Timespec{Sec: 12345, Nsec: 6789}
		if err := f.Utimes(mtime); err != nil {
			t.Fatal(err)
		}
		// A child process holds every descriptor for a moment.
		other, err := unix.FcntlInt(uintptr(f.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(20*time.Millisecond, func() { _ = unix.Close(other) })
		if has, err := f.HasVerity(); !has || err != nil {
			t.Errorf("file system with fs-verity: got %v, %v", has, err)
		}
		for range 2 { // the second time changes nothing
			if err := f.EnableVerity(); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok, err := f.MeasureVerity(); !ok || err != nil {
			t.Errorf("got %v, %v, want a digest", ok, err)
		}
		if has, err := f.HasVerity(); !has || err != nil {
			t.Errorf("file with fs-verity: got %v, %v", has, err)
		}
		if st, err := f.Stat(); err != nil || st.Mtim != mtime || st.Size != int64(len(content)) {
			t.Errorf("got time %v, size %d, %v, want %v, %d", st.Mtim, st.Size, err, mtime, len(content))
		}
		name := filepath.Join(dir, "file")
		if err := f.LinkTo(d, "file"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.OpenFile(name, os.O_WRONLY, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("open for writing: got %v, want %v", err, unix.EPERM)
		}
		if b, err := os.ReadFile(name); err != nil || string(b) != content {
			t.Errorf("got %d bytes, %v, want %d", len(b), err, len(content))
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVerityUnsupported(t *testing.T) {
	_, f := verityFile(t, testenv.MemoryDir(t), "x")
	if err := f.EnableVerity(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want %v", err, errors.ErrUnsupported)
	}
	if _, ok, err := f.MeasureVerity(); ok || err != nil {
		t.Errorf("got %v, %v, want no digest", ok, err)
	}
	if has, err := f.HasVerity(); has || err != nil {
		t.Errorf("got %v, %v, want no fs-verity", has, err)
	}
}
