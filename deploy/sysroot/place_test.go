package sysroot

import (
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
)

func TestPlaceOSTree(t *testing.T) {
	for _, tc := range []struct{ name, before, args, want string }{
		{"none before", "root=a rw", "root=a rw quiet", "root=a rw quiet"},
		{"unchanged", "root=a ostree=x rw", "root=a rw", "root=a ostree=x rw"},
		{"appended", "root=a rw ostree=x", "root=a rw quiet", "root=a rw ostree=x quiet"},
		{"replaced before", "root=a rw ostree=x quiet", "root=b rw quiet", "root=b rw ostree=x quiet"},
		{"replaced just before", "root=a ostree=x quiet", "root=b quiet", "root=b ostree=x quiet"},
		{"removed just before", "root=a rw ostree=x quiet", "root=a quiet", "root=a ostree=x quiet"},
		{"one of several removed", "console=a console=b ostree=x rw", "console=a rw", "console=a ostree=x rw"},
		{"the same of several", "console=a ostree=x console=b", "console=a console=b", "console=a ostree=x console=b"},
		{"removed all before", "root=a ostree=x quiet", "quiet", "ostree=x quiet"},
		{"first", "ostree=x quiet", "quiet rw", "ostree=x quiet rw"},
		{"removed all", "root=a ostree=x", "", "ostree=x"},
	} {
		args := kargs.Parse(tc.args)
		if got := placeOSTree(args, kargs.Parse(tc.before)).String(); got != tc.want {
			t.Errorf("%s: %q from %q: got %q, want %q", tc.name, tc.args, tc.before, got, tc.want)
		}
		if args.String() != tc.args {
			t.Errorf("%s: the arguments were changed to %q", tc.name, args)
		}
	}
}

func TestSameBootWithoutAboot(t *testing.T) {
	other := bls.Field{Key: "machine-id", Value: "1"}
	plain := &Deployment{Stateroot: "os", Extra: []bls.Field{other}}
	android := &Deployment{Stateroot: "os", Extra: []bls.Field{{Key: "aboot", Value: "/a"}, {Key: "abootcfg", Value: "/b"}, other}}
	if !sameBoot(plain, android) || !sameBoot(android, plain) {
		t.Error("the keys of Android's boot loader count")
	}
	if sameBoot(plain, &Deployment{Stateroot: "os"}) {
		t.Error("another key does not count")
	}
	if len(android.Extra) != 3 {
		t.Errorf("fields were dropped: %v", android.Extra)
	}
}
