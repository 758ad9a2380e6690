package snapshotter

import (
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
)

// What may be mounted in the directory of a rootfs image: the image, and, read-only, what image and objects show together. With
// a suffix, the same with owners mapped.
const (
	imageMount = "fs"
	viewMount  = "view"
)

// liveMounts are the mount points and images that snapshots need.
type liveMounts struct {
	active   map[string]struct{}            // IDs of active snapshots
	rootfses map[string]map[string]struct{} // rootfs images, and the suffixes of the mounts of each on which a snapshot runs
}

// foundMounts are the mount points and images below a root.
type foundMounts struct {
	active   []string            // names in MountsDir
	rootfses map[string][]string // rootfs images, and the names in the directory of each
}

func (t *mountTree) find() (found foundMounts, err error) {
	if found.active, err = t.names(MountsDir); err != nil {
		return found, err
	}
	images, err := t.layers.RootfsNames()
	if err != nil {
		return found, err
	}
	found.rootfses = make(map[string][]string, len(images))
	for _, image := range images {
		if found.rootfses[image], err = t.names(image); err != nil {
			return found, err
		}
	}
	return found, nil
}

// A mountSweep is what there is to sweep.
type mountSweep struct {
	unmount []string // names below the root, in this order
	discard []string // rootfs images
}

// planMountSweep chooses what is not live.
func planMountSweep(found foundMounts, live liveMounts) (plan mountSweep) {
	for _, id := range found.active {
		if _, ok := live.active[id]; !ok {
			plan.unmount = append(plan.unmount, path.Join(MountsDir, id))
		}
	}
	for _, image := range slices.Sorted(maps.Keys(found.rootfses)) {
		names := found.rootfses[image]
		needed, kept := live.rootfses[image]
		for _, prefix := range []string{viewMount, imageMount} { // the one is over the other
			for _, name := range names {
				suffix, ok := strings.CutPrefix(name, prefix)
				if _, needs := needed[suffix]; ok && !needs {
					plan.unmount = append(plan.unmount, path.Join(image, name))
				}
			}
		}
		if !kept {
			plan.discard = append(plan.discard, image)
		}
	}
	return plan
}

// execute unmounts and discards, and returns what removes what was discarded, in either case.
func (t *mountTree) execute(plan mountSweep) (removals, error) {
	for _, name := range plan.unmount {
		if err := t.unmount(name); err != nil {
			return nil, err
		}
	}
	var discarded removals
	for _, image := range plan.discard {
		remove, err := t.layers.DiscardRootfs(image)
		if err != nil {
			return discarded, err
		}
		discarded = append(discarded, remove)
	}
	return discarded, nil
}

// removals remove what was discarded.
type removals []func() error

func (r removals) run() error {
	var errs []error
	for _, remove := range r {
		errs = append(errs, remove())
	}
	return errors.Join(errs...)
}
