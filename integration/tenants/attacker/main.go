// Command attacker is the adversary of package tenants. The tests start it in containers and as users of the host.
package main

import (
	"fmt"
	"os"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tenants"
)

func main() {
	if err := tenants.Main(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
