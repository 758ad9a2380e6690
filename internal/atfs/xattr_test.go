package atfs_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestXattrs(t *testing.T) {
	d := openDir(t, t.TempDir())
	if err := d.WriteFile("f", nil, 0o644, false); err != nil {
		t.Fatal(err)
	}
	if err := d.Setxattr("f", "user.a", []byte("1")); err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			testenv.Unsupported(t, "needs user xattrs in the temporary directory")
		}
		t.Fatal(err)
	}
	if err := errors.Join(d.Setxattr("f", "user.empty", nil), d.SetxattrSelf("user.dir", []byte("d"))); err != nil {
		t.Fatal(err)
	}
	f, err := d.Open("f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, read := range map[string]func() (map[string][]byte, error){
		"by name": func() (map[string][]byte, error) { return d.Xattrs("f") }, "open": f.Xattrs,
	} {
		x, err := read()
		if err != nil || string(x["user.a"]) != "1" || len(x["user.empty"]) != 0 {
			t.Errorf("%s: got %q, %v", name, x, err)
		}
		if _, ok := x["user.empty"]; !ok {
			t.Errorf("%s: the empty value is missing", name)
		}
	}
	// Values and lists of names around the size of the first buffer.
	long := make(map[string]string)
	for _, n := range []int{127, 128, 129, 1000} {
		long[fmt.Sprintf("user.value%d", n)] = strings.Repeat("v", n)
	}
	for name, value := range long {
		if err := d.Setxattr("f", name, []byte(value)); err != nil {
			t.Fatal(err)
		}
		x, err := f.Xattrs()
		if err != nil || string(x[name]) != value {
			t.Errorf("%s: got %q, %v", name, x, err)
		}
	}
	for name := range long {
		if err := d.Removexattr("f", name); err != nil {
			t.Fatal(err)
		}
	}
	if x, err := d.Xattrs("."); err != nil || string(x["user.dir"]) != "d" {
		t.Errorf("directory: got %q, %v", x, err)
	}
	if err := errors.Join(d.Removexattr("f", "user.a"), f.Removexattr("user.empty")); err != nil {
		t.Fatal(err)
	}
	if x, err := f.Xattrs(); err != nil || len(x) != 0 {
		t.Errorf("after removal: got %q, %v", x, err)
	}
}
