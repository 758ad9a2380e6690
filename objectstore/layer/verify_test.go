package layer

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// TestVerifyCheckout changes one thing of a checkout at a time: each is found, and an unchanged checkout passes.
func TestVerifyCheckout(t *testing.T) {
	base := []tarEntry{dir("d", mode(0o750), owner(5, 6)), file("d/below", "below", owner(7, 8))}
	top := []tarEntry{
		file("d/f", "content", mode(0o4755), owner(3, 4), withXattr("user.a", "1")), hardlink("d/g", "d/f", mode(0o4755), owner(3, 4), withXattr("user.a", "1")),
		file("copy", "content of a copy", withXattr("user.empty", ""), owner(3, 4)), file("e", ""), symlink("l", "d"), fifo("p"),
		hardlink("d/h", "d/below"), whiteout("", "w"), dir("x", withXattr("user.x", "1")),
	}
	for _, tt := range []struct {
		name   string
		change func(dir string) error
		want   string // in the error; "" for none
	}{
		{"nothing", func(string) error { return nil }, ""},
		{"content of a copy", func(dir string) error { return rewrite(dir+"/copy", "CONTENT of a copy") }, "/copy: content"},
		{"size of a copy", func(dir string) error { return rewrite(dir+"/copy", "short") }, "/copy: size"},
		{"mode of a copy", func(dir string) error { return os.Chmod(dir+"/copy", 0o600) }, "/copy: mode"},
		{"owner of a copy", func(dir string) error { return os.Lchown(dir+"/copy", 9, 9) }, "/copy: owner"},
		{"time of a copy", func(dir string) error { return os.Chtimes(dir+"/copy", time.Time{}, time.Unix(1, 0)) }, "/copy: modification time"},
		{"attribute of a copy", func(dir string) error { return unix.Setxattr(dir+"/copy", "user.empty", []byte("x"), 0) }, "/copy: extended attribute user.empty"},
		{"attribute too many", func(dir string) error { return unix.Setxattr(dir+"/x", "user.more", nil, 0) }, "/x: layer has no extended attribute user.more"},
		{"attribute missing", func(dir string) error { return unix.Removexattr(dir+"/x", "user.x") }, "/x: extended attribute user.x"},
		{"empty file that is not", func(dir string) error { return rewrite(dir+"/e", "x") }, "/e: size"},
		{"file of its own with the object's content", func(dir string) error {
			return errors.Join(os.Remove(dir+"/d/f"), os.Remove(dir+"/d/g"), run("cp", "-a", dir+"/copy", dir+"/d/f"), run("cp", "-a", dir+"/copy", dir+"/d/g"))
		}, "/d: modification time"},
		{"hard link broken", func(dir string) error {
			return keepTime(dir+"/d", func() error {
				return errors.Join(os.Rename(dir+"/d/g", dir+"/old"), run("cp", "-a", dir+"/old", dir+"/d/g"), os.Remove(dir+"/old"))
			})
		}, "/d/g: inode"},
		{"link to a file below broken", func(dir string) error {
			return keepTime(dir+"/d", func() error { return errors.Join(os.Remove(dir+"/d/h"), os.WriteFile(dir+"/d/h", []byte("x"), 0o644)) })
		}, "/d/h: owner"},
		{"implied directory", func(dir string) error { return os.Chmod(dir+"/d", 0o755) }, "/d: mode"},
		{"time of a directory", func(dir string) error { return os.Chtimes(dir+"/x", time.Time{}, time.Unix(1, 0)) }, "/x: modification time"},
		{"target", func(dir string) error {
			return errors.Join(os.Remove(dir+"/l"), os.Symlink("x", dir+"/l"), run("touch", "-h", "-d", when.Format(time.RFC3339Nano), dir+"/l"))
		}, "/l: target"},
		{"type", func(dir string) error { return errors.Join(os.Remove(dir+"/p"), os.Mkdir(dir+"/p", 0o755)) }, "/p: file type"},
		{"whiteout gone", func(dir string) error { return os.Remove(dir + "/w") }, "w: no such file"},
		{"entry too many", func(dir string) error {
			return keepTime(dir, func() error { return os.WriteFile(dir+"/more", nil, 0o644) })
		}, "/more: layer has no such entry"},
		{"entry too many below", func(dir string) error {
			return keepTime(dir+"/d", func() error { return os.WriteFile(dir+"/d/more", nil, 0o644) })
		}, "/d/more: layer has no such entry"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, root := newStore(t, Options{})
			chain := []objectstore.Checksum{importTar(t, s, makeTar(t, base...)).ID, importTar(t, s, makeTar(t, top...)).ID}
			name, _, err := s.Checkout(t.Context(), chain)
			testenv.Must(t, err)
			dir := filepath.Join(root, name)
			st, err := os.Stat(dir)
			testenv.Must(t, err)
			testenv.Must(t, tt.change(dir))
			if !strings.HasPrefix(tt.want, "/more") {
				testenv.Must(t, os.Chtimes(dir, time.Time{}, st.ModTime()))
			}
			err = s.VerifyCheckout(t.Context(), name, chain)
			switch {
			case tt.want == "":
				testenv.Must(t, err)
			case err == nil || !strings.Contains(err.Error(), tt.want):
				t.Errorf("got error %v, want %q", err, tt.want)
			case !errors.Is(err, objectstore.ErrCorrupt) && !errors.Is(err, fs.ErrNotExist):
				t.Errorf("got error %v, which is neither ErrCorrupt nor fs.ErrNotExist", err)
			}
		})
	}
}

func run(name string, args ...string) error { return exec.Command(name, args...).Run() }

// keepTime calls f and restores the time of a directory.
func keepTime(dir string, f func() error) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return errors.Join(f(), os.Chtimes(dir, time.Time{}, st.ModTime()))
}

// rewrite replaces the content of a file and keeps its time.
func rewrite(name, content string) error {
	return keepTime(name, func() error { return os.WriteFile(name, []byte(content), 0) })
}

// TestVerify removes each object of a layer in turn: the error names it.
func TestVerify(t *testing.T) {
	s, _ := newStore(t, Options{})
	id := importTar(t, s, makeTar(t, file("a", "a"), file("b", "b"), dir("d"))).ID
	testenv.Must(t, s.Verify(t.Context(), id))
	names, err := s.Closure(id)
	testenv.Must(t, err)
	for _, name := range names {
		p := filepath.Join(s.Repo().ObjectsDir().Path(), objectstore.LoosePath(name.Checksum, name.Type))
		testenv.Must(t, os.Rename(p, p+".away"))
		err := s.Verify(t.Context(), id)
		if !errors.Is(err, objectstore.ErrNotExist) && !errors.Is(err, ErrNotExist) {
			t.Errorf("%s is missing: got error %v", name, err)
		}
		testenv.Must(t, os.Rename(p+".away", p))
	}
	testenv.Must(t, s.Verify(t.Context(), id))
}
