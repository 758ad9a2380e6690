package integration

import (
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
)

// TestReference checks the environment with containerd's own snapshotter: every test image can be pulled, its
// containers run, and its files are as the other tests expect.
func TestReference(t *testing.T) {
	for _, ref := range images.Names() {
		if ref != images.SameContent(ref) {
			continue
		}
		t.Run(ref, func(t *testing.T) {
			if got, _ := reference(t, ref); len(got) < 300 {
				t.Errorf("the image has %d entries, want 300 or more", len(got))
			}
		})
	}
	t.Run("changes", func(t *testing.T) {
		got, _ := reference(t, "layers:1")
		for _, name := range []string{"data/gone", "data/deleted", "data/opaque/below", "data/recreated/old"} {
			if got[name] != nil {
				t.Errorf("%s is there, want it deleted", name)
			}
		}
		for _, name := range []string{"data/kept", "data/opaque/new", "data/no/entry/for/parents", "data/link-to-dir/upper-3"} {
			if got[name] == nil {
				t.Errorf("%s is missing", name)
			}
		}
		if links := got.Links(); len(links) < 3 {
			t.Errorf("got the hard links %q, want three groups or more", links)
		}
	})
	t.Run("odd", func(t *testing.T) {
		got, _ := reference(t, "odd:1")
		if e := got["odd/capability"]; e == nil || len(e.Xattrs["security.capability"]) != 20 {
			t.Errorf("odd/capability is %v, want a file capability", e)
		}
		if e := got["odd/time-nanoseconds"]; e == nil || e.Mtime.Nsec != 123456789 {
			t.Errorf("odd/time-nanoseconds is %v, want a time with nanoseconds", e)
		}
	})
}
