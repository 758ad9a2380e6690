package deploy

import (
	"errors"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

func TestParseReference(t *testing.T) {
	for _, tt := range []struct{ reference, want string }{
		{"ostree-unverified-registry:example.org/os:1", "example.org/os:1"},
		{"ostree-unverified-image:docker://example.org/os:1", "example.org/os:1"},
		{"ostree-unverified-image:registry:example.org/os@sha256:00", "example.org/os@sha256:00"},
		{"ostree-unverified-image:oci:/var/os", ""},
		{"ostree-image-signed:docker://example.org/os:1", ""},
		{"ostree-remote-registry:remote:example.org/os:1", ""},
		{"ostree-unverified-registry:", ""},
		{"example.org/os:1", ""},
		{"", ""},
	} {
		got, err := ParseReference(tt.reference)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("ParseReference(%q) = %q, %v, want %q", tt.reference, got, err, tt.want)
		}
		if err != nil && errors.Is(err, ErrSigned) == errors.Is(err, ErrTransport) {
			t.Errorf("ParseReference(%q): %v is not of one kind", tt.reference, err)
		}
	}
}

func TestNewOrigin(t *testing.T) {
	old, err := keyfile.Parse([]byte("[origin]\nrefspec=remote:os\noverride-commit=00\nunconfigured-state=x\n[packages]\nrequested=vim;\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := NewOrigin(&sysroot.Deployment{Origin: old}, "example.org/os:1")
	want := "[origin]\nunconfigured-state=x\ncontainer-image-reference=ostree-unverified-registry:example.org/os:1\n" +
		"[packages]\nrequested=vim;\n"
	if string(got.Marshal()) != want {
		t.Errorf("origin is\n%s\nwant\n%s", got.Marshal(), want)
	}
	if ref, _ := old.Get("origin", "refspec"); ref != "remote:os" {
		t.Error("the origin of the deployment before has changed")
	}
	name, refspec := OriginName(&sysroot.Deployment{Origin: got})
	if name != "example.org/os:1" || refspec != "" {
		t.Errorf("OriginName() = %q, %q", name, refspec)
	}
	if name, refspec = OriginName(&sysroot.Deployment{Origin: old}); name != "" || refspec != "remote:os" {
		t.Errorf("OriginName() of a refspec = %q, %q", name, refspec)
	}
	for _, from := range []*sysroot.Deployment{nil, {}} {
		want := "[origin]\ncontainer-image-reference=ostree-unverified-registry:example.org/os:1\n"
		if got := NewOrigin(from, "example.org/os:1").Marshal(); string(got) != want {
			t.Errorf("origin of the first deployment is\n%s\nwant\n%s", got, want)
		}
	}
}

func TestNewest(t *testing.T) {
	good := &sysroot.Deployment{Stateroot: "os", Serial: 0}
	fresh := &sysroot.Deployment{Stateroot: "os", Serial: 1, Tries: &bls.Tries{Left: 3}}
	broken := &sysroot.Deployment{Stateroot: "os", Serial: 2, Tries: &bls.Tries{Done: 3}}
	other := &sysroot.Deployment{Stateroot: "other"}
	staged := &sysroot.Deployment{Stateroot: "os", Serial: 3}
	for _, tt := range []struct {
		name string
		st   sysroot.State
		want *sysroot.Deployment
	}{
		{"none", sysroot.State{}, nil},
		{"default", sysroot.State{Deployments: []*sysroot.Deployment{fresh, good}}, fresh},
		{"another stateroot", sysroot.State{Deployments: []*sysroot.Deployment{other, good}}, good},
		{"staged", sysroot.State{
			Deployments: []*sysroot.Deployment{good}, Booted: good, Staged: &sysroot.Staged{Deployment: staged, Merge: good},
		}, staged},
		{"broken", sysroot.State{Deployments: []*sysroot.Deployment{broken, good}, Booted: good}, good},
		{"broken, offline", sysroot.State{Deployments: []*sysroot.Deployment{broken, good}}, good},
		{"only broken", sysroot.State{Deployments: []*sysroot.Deployment{broken}}, broken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := newest(&tt.st, "os"); got != tt.want {
				t.Errorf("newest() = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestImageRef(t *testing.T) {
	for name, want := range map[string]string{
		"quay.io/fedora/fedora-coreos:stable": "ostree/container/image/docker_3A__2F__2F_quay_2E_io/fedora/fedora-coreos_3A_stable",
		"localhost:5000/os_1@sha256:ab":       "ostree/container/image/docker_3A__2F__2F_localhost_3A_5000/os__1_40_sha256_3A_ab",
		"a/":                                  "ostree/container/image/docker_3A__2F__2F_a_2F_",
		"é":                                   "ostree/container/image/docker_3A__2F__2F__E9_",
	} {
		got, err := imageRef(name)
		if err != nil || got != want {
			t.Errorf("imageRef(%q) = %q, %v; want %q", name, got, err, want)
		}
		if err := objectstore.ValidateRef(got); err != nil {
			t.Errorf("imageRef(%q): %v", name, err)
		}
	}
	for _, name := range []string{"", "a\x00b"} {
		if got, err := imageRef(name); !errors.Is(err, oscommit.ErrInvalid) {
			t.Errorf("imageRef(%q) = %q, %v, want an error", name, got, err)
		}
	}
}
