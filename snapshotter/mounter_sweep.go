package snapshotter

import (
	"errors"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Mount points in the directory of a rootfs image: the image, and a read-only overlay of image and objects. Those with
// a suffix map owners.
const (
	imageMount = "fs"
	viewMount  = "view"
)

// liveMounts are the mount points and images that snapshots need.
type liveMounts struct {
	active   map[string]struct{}            // IDs of active snapshots
	rootfses map[string]map[string]struct{} // by rootfs image: suffixes of the mounts that snapshots run on
}

// foundMounts are the mount points and images below a root.
type foundMounts struct {
	active   []string            // names in MountsDir
	rootfses map[string][]string // by rootfs image: names in its directory
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

// A mountSweep is a plan to sweep mounts.
type mountSweep struct {
	unmount []string // names below the root, in this order
	discard []string // rootfs images
}

// planMountSweep selects everything that is not live.
func planMountSweep(found foundMounts, live liveMounts) (plan mountSweep) {
	for _, id := range found.active {
		if _, ok := live.active[id]; !ok {
			plan.unmount = append(plan.unmount, path.Join(MountsDir, id))
		}
	}
	for _, image := range slices.Sorted(maps.Keys(found.rootfses)) {
		names := found.rootfses[image]
		needed, kept := live.rootfses[image]
		for _, prefix := range []string{viewMount, imageMount} { // the view lies over the image
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

// execute unmounts and discards. It returns functions that remove the discarded images, also beside an error. What cannot
// be unmounted stays, with its image, and does not stop the rest: the error is an objectstore.ErrNotRemoved that names it.
func (t *mountTree) execute(plan mountSweep) (removals, error) {
	var errs []error
	mounted := make(map[string]struct{}) // directories with a mount that stays
	for _, name := range plan.unmount {
		if err := t.unmount(name); err != nil {
			errs = append(errs, err)
			mounted[path.Dir(name)] = struct{}{}
		}
	}
	var discarded removals
	for _, image := range plan.discard {
		if _, busy := mounted[image]; busy {
			continue
		}
		remove, err := t.layers.DiscardRootfs(image)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		discarded = append(discarded, remove)
	}
	return discarded, objectstore.NotRemoved(errs...)
}

// removals delete discarded files.
type removals []func() error

func (r removals) run() error {
	var errs []error
	for _, remove := range r {
		errs = append(errs, remove())
	}
	return errors.Join(errs...)
}
