package plugin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// Without composefs, "auto" chooses hard links and gives the reason, and "composefs" is an error. Here the file system
// cannot hold the upper directory of an overlay.
func TestChooseCheckout(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	base := t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(base, "merged")
	options := "lowerdir=" + filepath.Join(base, "lower") + ",upperdir=" + filepath.Join(base, "upper") + ",workdir=" + filepath.Join(base, "work")
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir, err := atfs.Open(merged)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, tt := range []struct {
		checkout, want Checkout
		fails          bool
	}{
		{CheckoutAuto, CheckoutHardlink, false},
		{CheckoutComposefs, "", true},
		{CheckoutHardlink, CheckoutHardlink, false},
	} {
		support, why, err := (&Config{Checkout: tt.checkout}).choose(dir)
		got := chosen(support)
		switch {
		case tt.fails && !errors.Is(err, composefsmount.ErrUnsupported):
			t.Errorf("%s: got %v, %v, want an error", tt.checkout, got, err)
		case !tt.fails && (err != nil || got != tt.want || why == "" || strings.Contains(why, "\n")):
			t.Errorf("%s: got %s, %q, %v, want %s", tt.checkout, got, why, err, tt.want)
		}
	}
	if names, err := dir.ReadNames(); err != nil || len(names) > 0 {
		t.Errorf("left behind: %q, %v", names, err)
	}
}

// With composefs, "auto" uses fs-verity if the file system has it, and "require" is an error if not.
func TestChooseVerity(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsEROFS(t)
	base := t.TempDir()
	dir, err := atfs.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	has := testenv.HasVerity(t, base)
	for _, tt := range []struct {
		verity      Verity
		want, fails bool
	}{
		{VerityOff, false, false},
		{VerityAuto, has, false},
		{VerityRequire, true, !has},
	} {
		c := &Config{Checkout: CheckoutComposefs, Verity: tt.verity}
		support, why, err := c.choose(dir)
		switch {
		case tt.fails && !errors.Is(err, composefsmount.ErrUnsupported):
			t.Errorf("%s: got %v, %v, want an error", tt.verity, support, err)
		case !tt.fails && (err != nil || support.Verity != tt.want):
			t.Errorf("%s: got %v, %v, want fs-verity %v", tt.verity, support, err, tt.want)
		case !tt.fails && (strings.Contains(why, "verity=require") != tt.want || strings.Contains(why, "\n")):
			t.Errorf("%s: it says %q", tt.verity, why)
		}
		c.Checkout = CheckoutHardlink
		support, _, err = c.choose(dir)
		if support != nil || err != nil != (tt.verity == VerityRequire) {
			t.Errorf("%s with hard links: got %v, %v", tt.verity, support, err)
		}
	}
	if names, err := dir.ReadNames(); err != nil || len(names) > 0 {
		t.Errorf("left behind: %q, %v", names, err)
	}
}

// The format of the root's file "checkout" is fixed: stores of all versions can be read.
func TestReadCheckout(t *testing.T) {
	dir, err := atfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := ReadCheckout(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v, want fs.ErrNotExist", err)
	}
	for _, tt := range []struct {
		line string
		want Chosen
		ok   bool
	}{
		{"hardlink: the configuration says so\n", Chosen{CheckoutHardlink, "the configuration says so"}, true},
		{
			"composefs: the kernel has file-backed EROFS; no verity: x: y\n",
			Chosen{CheckoutComposefs, "the kernel has file-backed EROFS; no verity: x: y"},
			true,
		},
		{"", Chosen{}, false},
		{"auto: it is early", Chosen{}, false},
		{"composefs", Chosen{}, false},
	} {
		if err := dir.WriteFile(checkoutFile, []byte(tt.line), 0o600, false); err != nil {
			t.Fatal(err)
		}
		got, err := ReadCheckout(dir)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: got %+v, %v, want %+v", tt.line, got, err, tt.want)
		}
		if tt.ok && got.String()+"\n" != tt.line {
			t.Errorf("%q is written as %q", tt.line, got.String())
		}
	}
}
