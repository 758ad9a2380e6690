package snapshotter

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
)

// stack describes the mounts of one snapshot.
type stack struct {
	upper, work string   // directories of the snapshot itself
	lowers      []string // directories below it, topmost first
	empty       string   // a directory without entries, for overlays of only one
	readOnly    bool     // a view, or an active snapshot that is staged
	unpack      bool     // containerd applies an image layer to it
	options     []string // for every overlay mount
	mapped      []string // options for containerd to map owners
}

// mount returns the mounts of the stack: always exactly one, which mount(8) understands.
func (s stack) mount() []mount.Mount {
	s.lowers = topmost(s.lowers)
	if len(s.lowers) == 1 {
		// An overlay without an upper directory needs two. A bind mount of the one would be writable once somebody
		// remounts it, and its files are those of all images. Snapshots with an upper directory get both too: clients
		// find out what an upper directory changes by comparing lower directories.
		s.lowers = append(s.lowers, s.empty)
	}
	switch {
	case s.readOnly && len(s.lowers) == 0:
		return bind(s.upper, "ro", s.mapped...)
	case s.readOnly:
		return s.overlay(s.lower())
	case len(s.lowers) > 0:
		return s.overlay("workdir="+s.work, "upperdir="+s.upper, s.lower())
	case s.unpack:
		// There is nothing below to mount over, but an applier must not take this for a plain directory: there it would
		// execute the layer's whiteouts instead of keeping them, and the parent is known only at Commit. An overlay
		// without a lower directory tells it so; it is never mounted.
		return s.overlay("workdir="+s.work, "upperdir="+s.upper)
	}
	return bind(s.upper, "rw", s.mapped...)
}

// topmost removes later duplicates from a list of directories, topmost first. The kernel refuses an overlay with the
// same directory twice, and images do contain a layer twice, most often an empty one. The result shows the same:
// whatever a layer adds or hides, its topmost occurrence does so again, over everything in between.
func topmost(dirs []string) []string {
	seen := make(map[string]struct{}, len(dirs))
	return slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool {
		_, ok := seen[dir]
		seen[dir] = struct{}{}
		return ok
	})
}

func (s stack) lower() string { return lowerOption + strings.Join(s.lowers, ":") }

func (s stack) overlay(options ...string) []mount.Mount {
	options = append(options, s.options...)
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.mapped...)}}
}

func bind(source, access string, options ...string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: append([]string{access, "rbind"}, options...)}}
}

// overlayParameters is the directory of the kernel's defaults for overlay mounts.
const overlayParameters = "/sys/module/overlay/parameters"

// overlayOptions returns the options that every overlay mount needs, given the overlay module's parameters in dir. The
// module must be loaded.
//
// Without index=off, a write to one of two unrelated files that are links to one object can change the other, if the
// kernel defaults to index=on. With metacopy or redirect_dir, an upper directory is not readable by itself, and the
// layer that Commit imports from it would be wrong.
func overlayOptions(dir string) []string {
	var options []string
	if _, err := os.Stat(filepath.Join(dir, "index")); err == nil {
		options = append(options, "index=off")
	}
	for _, name := range []string{"metacopy", "redirect_dir"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && strings.TrimSpace(string(b)) == "Y" {
			options = append(options, name+"=off")
		}
	}
	return options
}
