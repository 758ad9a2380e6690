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
	const name = "example.org/os:1"
	for _, tt := range []struct {
		text    string
		want    Reference
		written string // "": an error
	}{
		{"ostree-unverified-registry:" + name, Reference{Name: name}, "ostree-unverified-registry:" + name},
		{"ostree-unverified-image:docker://" + name, Reference{Name: name}, "ostree-unverified-registry:" + name},
		{"ostree-unverified-image:registry:" + name + "@sha256:00", Reference{Name: name + "@sha256:00"}, "ostree-unverified-registry:" + name + "@sha256:00"},
		{"ostree-image-signed:docker://" + name, Reference{name, DemandPolicy, ""}, "ostree-image-signed:docker://" + name},
		{"ostree-image-signed:registry:" + name, Reference{name, DemandPolicy, ""}, "ostree-image-signed:docker://" + name},
		{"ostree-remote-registry:r:" + name, Reference{name, DemandCommit, "r"}, "ostree-remote-image:r:docker://" + name},
		{"ostree-remote-image:r:docker://" + name, Reference{name, DemandCommit, "r"}, "ostree-remote-image:r:docker://" + name},
		{"ostree-unverified-image:oci:/var/os", Reference{}, ""},
		{"ostree-image-signed:oci:/var/os", Reference{Demand: DemandPolicy}, ""},
		{"ostree-image-signed:" + name, Reference{Demand: DemandPolicy}, ""},
		{"ostree-remote-image:r:oci:/var/os", Reference{"", DemandCommit, "r"}, ""},
		{"ostree-remote-registry::" + name, Reference{Demand: DemandCommit}, ""},
		{"ostree-remote-registry:r:", Reference{"", DemandCommit, "r"}, ""},
		{"ostree-unverified-registry:", Reference{}, ""},
		{name, Reference{}, ""},
		{"", Reference{}, ""},
	} {
		got, err := ParseReference(tt.text)
		if got != tt.want || (err == nil) != (tt.written != "") || err != nil && !errors.Is(err, ErrTransport) {
			t.Errorf("ParseReference(%q) = %+v, %v, want %+v", tt.text, got, err, tt.want)
		}
		if err == nil && got.String() != tt.written {
			t.Errorf("%q is written as %q, want %q", tt.text, got, tt.written)
		}
	}
}

// TestNewReference: no plain name drops a demand, not even that of an image that is in no registry.
func TestNewReference(t *testing.T) {
	const name = "example.org/other:1"
	for before, want := range map[string]Reference{
		"":                                     {Name: name},
		"ostree-unverified-registry:os":        {Name: name},
		"ostree-image-signed:docker://os":      {name, DemandPolicy, ""},
		"ostree-image-signed:oci:/var/os":      {name, DemandPolicy, ""},
		"ostree-remote-registry:r:os":          {name, DemandCommit, "r"},
		"ostree-remote-image:r:oci:/var/os":    {name, DemandCommit, "r"},
		"ostree-remote-image:r:docker://other": {name, DemandCommit, "r"},
	} {
		var f keyfile.File
		if before != "" {
			f.Set("origin", "container-image-reference", before)
		}
		from := &sysroot.Deployment{Origin: &f}
		if got, err := NewReference(name, from); err != nil || got != want {
			t.Errorf("a plain name after %q: got %+v, %v, want %+v", before, got, err, want)
		}
		if got, err := NewReference("ostree-unverified-registry:"+name, from); err != nil || got != (Reference{Name: name}) {
			t.Errorf("an unverified reference after %q: got %+v, %v", before, got, err)
		}
	}
	if got, err := NewReference(name, nil); err != nil || got != (Reference{Name: name}) {
		t.Errorf("without a deployment: got %+v, %v", got, err)
	}
	if _, err := NewReference("ostree-image-signed:"+name, nil); !errors.Is(err, ErrTransport) {
		t.Errorf("a reference without a transport: got %v", err)
	}
}

func TestNewOrigin(t *testing.T) {
	old, err := keyfile.Parse([]byte("[origin]\nrefspec=remote:os\noverride-commit=00\nunconfigured-state=x\n[packages]\nrequested=vim;\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := NewOrigin(&sysroot.Deployment{Origin: old}, Reference{Name: "example.org/os:1"})
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
		if got := NewOrigin(from, Reference{Name: "example.org/os:1"}).Marshal(); string(got) != want {
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
