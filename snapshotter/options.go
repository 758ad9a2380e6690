package snapshotter

import (
	"context"

	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

type options struct {
	staging func(context.Context) bool
	mapped  func(context.Context) bool
	sync    bool
	shared  bool
	overlay []string

	background int // percent

	composefs *composefsmount.Support
}

// An Option configures a [Snapshotter].
type Option func(*options)

// WithStaging lets Prepare return read-only mounts for a layer that the store already has: containerd 2.4 and later
// then neither fetch nor apply it. allow is called each time; it must return false if the caller is an older
// containerd, which would apply the layer to the read-only mounts.
func WithStaging(allow func(context.Context) bool) Option {
	return func(o *options) { o.staging = allow }
}

// WithSharedNamespaces lets Prepare answer "already exists" for a chain of layers that any namespace has. containerd
// then fetches no blobs into the other namespace: images there are incomplete, and whoever knows an image's diff IDs
// sees its files. Without it only containerd itself gives that answer, for a chain that the namespace has.
func WithSharedNamespaces() Option {
	return func(o *options) { o.shared = true }
}

// WithMappedMounts tells the snapshotter whether the caller can mount with the options uidmap and gidmap, as containerd
// can since 2.0. If can returns false, a snapshot of hard-link checkouts for a user namespace is refused, which could not
// be mounted. Without this option, the caller is taken to be able to. With composefs it does not have to.
func WithMappedMounts(can func(context.Context) bool) Option {
	return func(o *options) { o.mapped = can }
}

// WithSync makes AddLayer sync everything before it returns, and Commit before it records the snapshot.
func WithSync() Option {
	return func(o *options) { o.sync = true }
}

// WithBackgroundRemoval makes Cleanup return once unneeded layers are forgotten, and removes their files in the
// background; unless the store's file system is fuller than this percentage, since whoever frees space then looks at it at
// once. See also [WaitForRemoval].
func WithBackgroundRemoval(percent int) Option {
	return func(o *options) { o.background = percent }
}

// WithComposefs runs snapshots on one composefs image of all layers below them, instead of on a checkout of each.
// support describes how this kernel mounts images.
func WithComposefs(support composefsmount.Support) Option {
	return func(o *options) { o.composefs = &support }
}
