package tenants

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestTechniques uses each technique, as root, on a file of a plain directory that another directory has a hard link
// to. The comparison of trees sees each change.
func TestTechniques(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, how := range slices.Concat(descriptorTechniques, pathTechniques) {
		t.Run(how.name, func(t *testing.T) {
			dir := t.TempDir()
			mine, theirs := filepath.Join(dir, "mine"), filepath.Join(dir, "theirs")
			testenv.Must(t, errors.Join(os.Mkdir(mine, 0o755), os.Mkdir(theirs, 0o755)))
			name := filepath.Join(mine, "file")
			testenv.Must(t, os.WriteFile(name, []byte(strings.Repeat("as it was\n", 1000)), 0o644))
			testenv.Must(t, unix.Setxattr(name, "user.kept", []byte("as it was"), 0))
			testenv.Must(t, os.Link(name, filepath.Join(theirs, "file")))
			before, err := tree.Read(t.Context(), theirs)
			testenv.Must(t, err)
			held, err := os.Open(name)
			testenv.Must(t, err)
			defer held.Close()

			err = how.do(&target{path: name, held: held, scratch: mine})
			after, rerr := tree.Read(t.Context(), theirs)
			testenv.Must(t, rerr)
			if errors.Is(err, unix.EOPNOTSUPP) && how.effect == replaces {
				return // clones and fs-verity
			}
			if (err != nil) != (how.effect == fails) {
				t.Errorf("got the error %v, want one: %t", err, how.effect == fails)
			}
			if diff := tree.Diff(before, after, tree.Options{}); (len(diff) > 0) != (how.effect == changes) {
				t.Errorf("the other name has the changes %q, want some: %t", diff, how.effect == changes)
			}
		})
	}
}
