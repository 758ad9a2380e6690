package sysroot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// An osTree holds the files needed to make a deployment, and to boot it in a namespace.
type osTree struct {
	name    string            // in os-release
	version string            // in os-release and of the commit
	kernel  string            // content of the kernel, which determines bootcsum; "": no kernel
	files   map[string]string // additional files; a file with "" is left out
}

// sharedText is the content of usr/share/shared in every tree.
const sharedText = "the same in every version"

// write writes the tree into an empty directory.
func (o *osTree) write(t *testing.T, dir string) {
	t.Helper()
	const kver = "6.12.1"
	files := map[string]string{
		"usr/lib/os-release":  fmt.Sprintf("NAME=%s\nPRETTY_NAME=\"%s %s\"\nID=test\n", o.name, o.name, o.version),
		"usr/share/shared":    sharedText,
		"usr/share/version":   o.version,
		"usr/etc/conf":        "default of " + o.version,
		"usr/etc/machine.d/a": "a",
		"usr/etc/passwd":      "root:x:0:0:root:/root:/bin/sh\n",
		"usr/etc/empty":       "",
		"usr/share/empty":     "",
	}
	if o.kernel != "" {
		files["usr/lib/modules/"+kver+"/vmlinuz"] = "kernel " + o.kernel
		files["usr/lib/modules/"+kver+"/initramfs.img"] = "initramfs " + o.kernel
	}
	for name, text := range o.files {
		if text == "" {
			delete(files, name)
			continue
		}
		files[name] = text
	}
	for _, name := range []string{"boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
		"ostree": "sysroot/ostree", "usr/share/link": "shared", "usr/etc/link": "/usr/share/shared",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []struct {
		name           string
		uid, gid, mode int
		xattr          string
	}{
		{"usr/share/version", 0, 0, 0o4755, ""},
		{"usr/share/shared", 0, 0, 0o644, "a file's"},
		{"usr/etc/machine.d", 0, 42, 0o2750, "a directory's"},
		{"usr/etc/machine.d/a", 7, 42, 0o640, "of /etc"},
		{"usr/etc/link", 7, 42, 0, ""},
		{"tmp", 0, 0, 0o1777, ""},
	} {
		p := filepath.Join(dir, a.name)
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.Lchown(p, a.uid, a.gid); err != nil {
			t.Fatal(err)
		}
		if a.mode != 0 {
			if err := unix.Chmod(p, uint32(a.mode)); err != nil {
				t.Fatalf("chmod %s: %v", p, err)
			}
		}
		if a.xattr != "" {
			if err := unix.Setxattr(p, "user.test", []byte(a.xattr), 0); err != nil {
				t.Fatalf("setxattr %s: %v", p, err)
			}
		}
	}
}
