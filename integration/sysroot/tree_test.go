package sysroot

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// An osTree is what is needed to make a deployment of, and to boot one in a namespace.
type osTree struct {
	name    string            // in os-release
	version string            // in os-release and of the commit
	kernel  string            // content of the kernel: another one has another bootcsum; "": none
	files   map[string]string // besides; "": there is none
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
		"ostree": "sysroot/ostree", "usr/share/link": "shared",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}
