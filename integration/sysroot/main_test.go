package sysroot

import (
	"fmt"
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

func TestMain(m *testing.M) {
	if root := os.Getenv(asUserEnv); root != "" {
		if err := deployAsUser(root); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if status, done := ostreehost.Main(); done {
		os.Exit(status)
	}
	code := m.Run()
	if err := os.RemoveAll(programDir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}
