package deploy

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// UpgradeFrom returns the deployment from which a stateroot, chosen as by [System.Stateroot], upgrades, and the reference
// to its image. Errors are ErrNothingDeployed, ErrNotFromImage, and those of [ParseReference].
func (s *System) UpgradeFrom(st *sysroot.State, stateroot string) (from *sysroot.Deployment, image Reference, err error) {
	stateroot, err = s.Stateroot(st, stateroot)
	if err != nil {
		return nil, image, err
	}
	if from = newest(st, stateroot); from == nil {
		return nil, image, as(ErrNothingDeployed, fmt.Errorf("stateroot %s has no deployment", stateroot))
	}
	reference, ok := from.ImageReference()
	if !ok {
		return nil, image, as(ErrNotFromImage, fmt.Errorf("%s was not deployed from an image", Title(from)))
	}
	image, err = ParseReference(reference)
	return from, image, err
}

// An Update compares a deployed image with the one that its name stands for now.
type Update struct {
	Deployed  digest.Digest // of the manifest; "" if the deployment was not made from an image
	Available digest.Digest // of the manifest that the name stands for now
	Failed    bool          // the available image was deployed, and failed to boot
}

// Wanted reports whether to upgrade to the available image.
func (u *Update) Wanted() bool { return u.Available != u.Deployed && !u.Failed }

// Update compares the image of a deployment with the manifest that its name stands for now.
func (s *System) Update(st *sysroot.State, from *sysroot.Deployment, available digest.Digest) (*Update, error) {
	u := &Update{Available: available}
	var err error
	if u.Deployed, err = manifestDigest(s.Repo(), from.Commit); err != nil {
		return nil, err
	}
	u.Failed, err = s.hasFailed(st, available)
	return u, err
}
