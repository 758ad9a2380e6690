package snapshotter

import (
	"slices"
	"testing"
)

func TestPlanMountSweep(t *testing.T) {
	set := func(names ...string) map[string]struct{} {
		m := make(map[string]struct{})
		for _, n := range names {
			m[n] = struct{}{}
		}
		return m
	}
	found := foundMounts{
		active: []string{"1", "2"},
		rootfses: map[string][]string{
			"rootfs/a": {"image", "digest", "fs", "fs-m", "view"},
			"rootfs/b": {"image", "digest", "fs", "view"},
		},
	}
	for name, tt := range map[string]struct {
		live    liveMounts
		unmount []string
		discard []string
	}{
		"nothing needed": {
			liveMounts{},
			[]string{"mounts/1", "mounts/2", "rootfs/a/view", "rootfs/a/fs", "rootfs/a/fs-m", "rootfs/b/view", "rootfs/b/fs"},
			[]string{"rootfs/a", "rootfs/b"},
		},
		"image needed, nothing runs on it": {
			liveMounts{active: set("1"), rootfses: map[string]map[string]struct{}{"rootfs/b": set()}},
			[]string{"mounts/2", "rootfs/a/view", "rootfs/a/fs", "rootfs/a/fs-m", "rootfs/b/view", "rootfs/b/fs"},
			[]string{"rootfs/a"},
		},
		"run with mapped owners": {
			liveMounts{active: set("1", "2"), rootfses: map[string]map[string]struct{}{"rootfs/a": set("", "-m"), "rootfs/b": set("")}},
			nil,
			nil,
		},
		"run without": {
			liveMounts{active: set("1", "2", "3"), rootfses: map[string]map[string]struct{}{"rootfs/a": set(""), "rootfs/b": set("")}},
			[]string{"rootfs/a/fs-m"},
			nil,
		},
		"image of which nothing is there": {
			liveMounts{active: set("1", "2"), rootfses: map[string]map[string]struct{}{"rootfs/a": set("", "-m"), "rootfs/b": set(""), "rootfs/c": set("")}},
			nil,
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			plan := planMountSweep(found, tt.live)
			if !slices.Equal(plan.unmount, tt.unmount) {
				t.Errorf("unmounts %q, want %q", plan.unmount, tt.unmount)
			}
			if !slices.Equal(plan.discard, tt.discard) {
				t.Errorf("discards %q, want %q", plan.discard, tt.discard)
			}
		})
	}
}
