package sysroot

import (
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

// TestWrites writes to files of the image in running systems: as docs/deploy.md says, and never to objects.
func TestWrites(t *testing.T) {
	needs(t)
	for name, tt := range map[string]struct {
		release ostreehost.Release
		config  string // of ostree-prepare-root
		opt     bool   // /opt is writable

		afterOpt, afterEtc string // what was written to, after a reboot
	}{
		"bookworm":                   {ostreehost.Bookworm, "", true, "mine", "mine"},
		"bookworm, read-only":        {ostreehost.Bookworm, "[sysroot]\nreadonly=true\n", true, "mine", "mine"},
		"trixie":                     {ostreehost.Trixie, "", true, "mine", "mine"},
		"trixie, read-only":          {ostreehost.Trixie, "[sysroot]\nreadonly=true\n", true, "mine", "mine"},
		"forky":                      {ostreehost.Forky, "", true, "mine", "mine"},
		"forky, composefs":           {ostreehost.Forky, "[composefs]\nenabled=yes\n", false, "program", "mine"},
		"forky, transient root":      {ostreehost.Forky, "[composefs]\nenabled=yes\n[root]\ntransient=true\n", true, "program", "mine"},
		"forky, transient /etc":      {ostreehost.Forky, "[composefs]\nenabled=yes\n[etc]\ntransient=true\n", false, "program", "default of 1"},
		"forky, perhaps a composefs": {ostreehost.Forky, "[composefs]\nenabled=maybe\n", false, "program", "mine"},
	} {
		t.Run(name, func(t *testing.T) {
			disk, systems := newSystems(t, tt.release, false, "ours")
			s := systems[0]
			s.initEmpty()
			tree := *trees["os/v1"]
			tree.files = map[string]string{"opt/app/program": "program", "usr/lib/ostree/prepare-root.conf": tt.config}
			s.commitTree(disk, "os/v1", &tree)
			s.setConfig(bareConfig + tt.config) // for the ostree of bookworm
			d := deployOp{ref: "os/v1", stateroot: osName, set: []string{"root=LABEL=root", "rw"}}
			if err := d.ours(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			h := s.start(tt.release, 0, tt.config)
			for path, want := range map[string]bool{"opt/app/program": tt.opt, "etc/conf": true} {
				err := os.WriteFile(h.Path(path), []byte("mine"), 0)
				if got := err == nil; got != want {
					t.Errorf("/%s: writable is %v, want %v (%v)", path, got, want, err)
				}
			}
			h.Stop()
			s.ostree("fsck")
			h = s.start(tt.release, 0, tt.config)
			for path, want := range map[string]string{"opt/app/program": tt.afterOpt, "etc/conf": tt.afterEtc} {
				if got, err := os.ReadFile(h.Path(path)); err != nil || string(got) != want {
					t.Errorf("/%s after a reboot: got %q, %v, want %q", path, got, err, want)
				}
			}
		})
	}
}
