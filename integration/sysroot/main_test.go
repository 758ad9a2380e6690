package sysroot

import (
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

func TestMain(m *testing.M) {
	ostreehost.Main()
	os.Exit(m.Run())
}
