package sysroot

import (
	"fmt"
	"path"
	"slices"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Groups and keys of an origin file.
const (
	OriginGroup = "origin"
	OriginImage = "container-image-reference"

	transientGroup = "libostree-transient"
	pinnedKey      = "pinned"
)

// A Deployment is a tree that can be booted.
type Deployment struct {
	Stateroot string
	Commit    objectstore.Checksum
	Serial    int // tells deployments of one commit in one stateroot apart

	BootCsum   string // checksum of kernel and initramfs
	BootSerial int    // tells deployments with one kernel apart

	Origin  *keyfile.File // nil: no origin file
	Kargs   kargs.List    // without ostree=
	Title   string        // of its boot loader entry
	Version string        // of its commit; "" for none
	Extra   []bls.Field   // of its boot loader entry
	Tries   *bls.Tries    // the rest of its boot counting; nil: boots are not counted

	file     string     // name of its entry
	entry    *bls.Entry // as read; nil: not written yet
	overlays []string   // checksums of additional initramfs images
}

// Name returns the name of its directory, which is unique in its stateroot.
func (d *Deployment) Name() string { return fmt.Sprintf("%s.%d", d.Commit, d.Serial) }

// Path returns the path of its directory below the sysroot.
func (d *Deployment) Path() string { return path.Join(deploysDir(d.Stateroot), d.Name()) }

// ostreeArg returns the value of ostree= in its entry of boot/loader.B.
func (d *Deployment) ostreeArg(bootVersion int) string {
	return bls.OSTreeArg{BootVersion: bootVersion, Stateroot: d.Stateroot, BootCsum: d.BootCsum, BootSerial: d.BootSerial}.String()
}

// Pinned reports whether it is kept until it is unpinned.
func (d *Deployment) Pinned() bool {
	if d.Origin == nil {
		return false
	}
	pinned, err := d.Origin.Bool(transientGroup, pinnedKey, false)
	return err == nil && pinned
}

// ImageReference returns the reference of the container image that it was made from.
func (d *Deployment) ImageReference() (string, bool) {
	if d.Origin == nil {
		return "", false
	}
	return d.Origin.Get(OriginGroup, OriginImage)
}

// Failed reports whether it has used up the boots in which to prove itself.
func (d *Deployment) Failed() bool { return d.Tries != nil && d.Tries.Left == 0 }

// same reports whether two values are the same deployment.
func (d *Deployment) same(o *Deployment) bool {
	return d != nil && o != nil && d.Stateroot == o.Stateroot && d.Commit == o.Commit && d.Serial == o.Serial
}

// A Staged deployment is complete except for /etc, and becomes the default when the system shuts down.
type Staged struct {
	*Deployment
	Merge  *Deployment // whose /etc is merged; one of the state's Deployments, or nil
	Locked bool        // it is not finalized at shutdown

	// NoSELinux: it was staged with this option of a [Request], or with a policy that cannot be used.
	NoSELinux bool

	kargs kargs.List  // as recorded, with ostree= in its place
	lost  *Deployment // whose /etc was to be merged, and which no longer exists
}

// State is the state of a sysroot.
type State struct {
	BootVersion    int           // B in boot/loader -> loader.B
	SubBootVersion int           // S in ostree/boot.B -> boot.B.S
	Deployments    []*Deployment // in boot order; a staged one is not among them
	Staged         *Staged       // nil: none
	Booted         *Deployment   // one of Deployments; nil: not booted from this sysroot
	Notes          []string      // boot loader entries that were left out, and why

	incomplete bool // an entry that was left out may belong to a deployment
}

// All returns the deployments in the order of their indexes, as "ostree admin status" counts: a staged one comes first.
func (st *State) All() []*Deployment {
	if st.Staged == nil {
		return st.Deployments
	}
	return slices.Concat([]*Deployment{st.Staged.Deployment}, st.Deployments)
}

// Default returns the deployment that boots next as things are, or nil.
func (st *State) Default() *Deployment {
	if len(st.Deployments) == 0 {
		return nil
	}
	return st.Deployments[0]
}

// Pending returns the deployment that boots next if it is not the booted one: the staged one, else the default. It
// returns nil if there is none, or if nothing is booted.
func (st *State) Pending() *Deployment {
	switch {
	case st.Booted == nil:
		return nil
	case st.Staged != nil:
		return st.Staged.Deployment
	case st.Default() != st.Booted:
		return st.Default()
	}
	return nil
}

// Rollback returns the deployment to fall back to: the first one behind the booted one, or, if nothing is booted,
// behind the default. It returns nil if there is none.
func (st *State) Rollback() *Deployment {
	from := 0
	for i, d := range st.Deployments {
		if d == st.Booted {
			from = i
		}
	}
	if from+1 < len(st.Deployments) {
		return st.Deployments[from+1]
	}
	return nil
}

// MergeDeployment returns the deployment from which a new one of the stateroot takes /etc and kernel arguments. As in
// libostree that is the booted one if it belongs to the stateroot, else the first of the stateroot. It returns nil if
// there is none.
func (st *State) MergeDeployment(stateroot string) *Deployment {
	if st.Booted != nil && st.Booted.Stateroot == stateroot {
		return st.Booted
	}
	for _, d := range st.Deployments {
		if d.Stateroot == stateroot {
			return d
		}
	}
	return nil
}
