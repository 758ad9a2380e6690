package testenv

import (
	"bytes"
	_ "embed"
	"os/exec"
	"path/filepath"
	"testing"
)

//go:embed testdata/selinuxhost.c
var selinuxHost []byte

// SELinuxHost returns a library for LD_PRELOAD that makes ostree(1) write the labels that it writes on a host with SELinux.
// It is compiled with cc.
func SELinuxHost(tb testing.TB) string {
	tb.Helper()
	lib := filepath.Join(tb.TempDir(), "selinuxhost.so")
	cc := exec.Command(NeedsTool(tb, "cc"), "-shared", "-fPIC", "-o", lib, "-x", "c", "-")
	cc.Stdin = bytes.NewReader(selinuxHost)
	if out, err := cc.CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	return lib
}
