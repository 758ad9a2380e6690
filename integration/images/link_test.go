package images

import (
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/workload"
)

// TestWorkloads checks that every layout of a workload can be made.
func TestWorkloads(t *testing.T) {
	n := 0
	for _, name := range workload.Names() {
		w, ok := workload.Builtin(name)
		if !ok {
			t.Fatalf("no workload %q", name)
		}
		for _, img := range w.Images {
			if layout, ok := img.Layout(); ok {
				n++
				if _, err := linked(layout); err != nil {
					t.Errorf("workload %s: %v", name, err)
				}
			}
		}
	}
	if n == 0 {
		t.Error("no workload refers to a layout")
	}
}
