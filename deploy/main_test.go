package deploy_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain skips the example without root, which making a sysroot needs.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		flag.Parse()
		if err := flag.Set("test.skip", "^Example"); err != nil {
			panic(err)
		}
	}
	m.Run()
}
