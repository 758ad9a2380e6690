package deploy

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// policyFiles are those of a policy with a given text.
func policyFiles(mode, contexts string) []file {
	return []file{
		{name: "etc/selinux/config", content: "SELINUX=" + mode + "\nSELINUXTYPE=targeted\n"},
		{name: "etc/selinux/targeted/contexts/files/file_contexts", content: contexts},
		{name: "etc/selinux/targeted/contexts/files/file_contexts.subs_dist", content: "/lib /usr/lib\n"},
	}
}

func TestReadLabels(t *testing.T) {
	b := newBed(t)
	img := b.osImage(t, append(
		policyFiles("enforcing", "/.* u:o:root\n/usr/lib/.* -- u:o:lib\n/usr/lib/.* -l u:o:link\n/etc(/.*)? u:o:etc\n/run/.* <<none>>\n"),
		file{name: "lib", target: "usr/lib"}, file{name: "usr/lib/x", target: "os-release"},
	)...)
	labels, err := ReadLabels(t.Context(), b.layers, img)
	testenv.Must(t, err)
	for _, tt := range []struct {
		name, path string
		typ        fs.FileMode
		inImage    bool
		label      string
		line       int
	}{
		{"/", "/", fs.ModeDir, true, "u:o:root", 1},
		{"/usr/lib/os-release", "/usr/lib/os-release", 0, true, "u:o:lib", 2},
		{"usr/lib/../lib/os-release", "/usr/lib/os-release", 0, true, "u:o:lib", 2},
		{"/lib/os-release", "/usr/lib/os-release", 0, true, "u:o:lib", 2},
		{"/lib", "/lib", fs.ModeSymlink, true, "u:o:root", 1}, // by substitution /usr/lib
		{"/usr/lib/x", "/usr/lib/x", fs.ModeSymlink, true, "u:o:link", 3},
		{"/etc", "/etc", fs.ModeDir, true, "u:o:etc", 4},
		{"/etc/app.conf", "/etc/app.conf", 0, true, "u:o:etc", 4},
		{"/usr/etc/app.conf", "/usr/etc/app.conf", 0, true, "u:o:root", 1},
		{"/run/x", "/run/x", 0, false, "", 5},
		{"/usr/lib/new", "/usr/lib/new", 0, false, "u:o:lib", 2},
		{"/usr/lib/new/", "/usr/lib/new", fs.ModeDir, false, "u:o:root", 1},
		{"/lib/none/x", "/lib/none/x", 0, false, "u:o:lib", 2},
	} {
		got := labels.File(tt.name)
		if got.Path != tt.path || got.Type != tt.typ || got.InImage != tt.inImage || got.Label != tt.label || got.Line.Line != tt.line {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt)
		}
	}
}

func TestReadLabelsRefused(t *testing.T) {
	b := newBed(t)
	for name, tt := range map[string]struct {
		files []file
		want  error
	}{
		"no policy": {nil, selinux.ErrNoPolicy},
		"disabled":  {policyFiles("disabled", "/.* u:o:root\n"), selinux.ErrNoPolicy},
		"bad line":  {policyFiles("permissive", "/.* u:o:root\n/x(\n"), selinux.ErrInvalid},
		"too large": {policyFiles("permissive", kib("#", maxPolicyFile>>10+1)), oscommit.ErrInvalid},
		"directory": {[]file{{name: "etc/selinux/config/"}}, oscommit.ErrInvalid},
		"loop":      {[]file{{name: "etc/selinux/config", target: "config"}}, selinux.ErrNoPolicy},
	} {
		if _, err := ReadLabels(t.Context(), b.layers, b.osImage(t, tt.files...)); !errors.Is(err, tt.want) {
			t.Errorf("%s: got error %v, want %v", name, err, tt.want)
		}
	}
}
