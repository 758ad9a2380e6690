package deploy_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain leaves out the example where it cannot run: a sysroot is made by root alone.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		flag.Parse()
		if err := flag.Set("test.skip", "^Example"); err != nil {
			panic(err)
		}
	}
	m.Run()
}
