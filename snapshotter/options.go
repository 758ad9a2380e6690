package snapshotter

import (
	"context"

	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

type options struct {
	staging   func(context.Context) bool
	sync      bool
	overlay   []string
	composefs *composefsmount.Support
}

// An Option configures a [Snapshotter].
type Option func(*options)

// WithStaging lets Prepare answer read-only mounts for a layer that the store has already: containerd 2.4 and later
// take that for a layer that is neither to be fetched nor to be applied. allow is asked each time; it must be false
// when the caller is an older containerd, which would apply the layer to the read-only mounts.
func WithStaging(allow func(context.Context) bool) Option {
	return func(o *options) { o.staging = allow }
}

// WithSync makes AddLayer write everything to the disk before it returns, and Commit before it records the snapshot.
func WithSync() Option {
	return func(o *options) { o.sync = true }
}

// WithComposefs has snapshots run on one composefs image of all the layers below them, instead of on a checkout of each,
// mounted as the kernel can do it.
func WithComposefs(support composefsmount.Support) Option {
	return func(o *options) { o.composefs = &support }
}
