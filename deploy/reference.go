package deploy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// A Demand says which signatures an image needs besides those that the signature policy demands of it.
type Demand uint8

// The demands.
const (
	// NoDemand: what the policy accepts is enough.
	NoDemand Demand = iota
	// DemandPolicy: the policy must not accept images that it does not know.
	DemandPolicy
	// DemandCommit: the ostree commit inside the image must be signed by a key of an ostree remote.
	DemandCommit
)

// A Reference names an image in a registry, and demands signatures, as references in origin files do.
type Reference struct {
	Name   string
	Demand Demand
	Remote string // whose keys count for DemandCommit
}

// Forms of references, as ostree's tools write them.
const (
	unverifiedRegistry = "ostree-unverified-registry:"
	unverifiedImage    = "ostree-unverified-image:"
	imageSigned        = "ostree-image-signed:"
	remoteRegistry     = "ostree-remote-registry:"
	remoteImage        = "ostree-remote-image:"
	dockerTransport    = "docker://"
	registryTransport  = "registry:"
)

// ParseReference parses a reference of an origin file. One to an image outside registries, or to none, is an ErrTransport,
// and comes with what it demands.
func ParseReference(text string) (r Reference, err error) {
	var rest string
	inRegistry := false // the form names no transport
	for _, form := range []string{unverifiedRegistry, unverifiedImage, imageSigned, remoteRegistry, remoteImage} {
		after, ok := strings.CutPrefix(text, form)
		if !ok {
			continue
		}
		rest = after
		switch form {
		case imageSigned:
			r.Demand = DemandPolicy
		case remoteRegistry, remoteImage:
			r.Demand = DemandCommit
			r.Remote, rest, _ = strings.Cut(rest, ":")
		}
		inRegistry = form == unverifiedRegistry || form == remoteRegistry
	}
	if !inRegistry {
		name, ok := strings.CutPrefix(rest, dockerTransport)
		if !ok {
			name, ok = strings.CutPrefix(rest, registryTransport)
		}
		if rest = name; !ok {
			rest = ""
		}
	}
	if r.Name = rest; r.Name == "" || r.Demand == DemandCommit && r.Remote == "" {
		r.Name = ""
		return r, as(ErrTransport, fmt.Errorf("containerd cannot pull origin %q", text))
	}
	return r, nil
}

// String returns the reference as ostree's tools write it.
func (r Reference) String() string {
	switch r.Demand {
	case DemandPolicy:
		return imageSigned + dockerTransport + r.Name
	case DemandCommit:
		return remoteImage + r.Remote + ":" + dockerTransport + r.Name
	case NoDemand:
	}
	return unverifiedRegistry + r.Name
}

// NewReference returns the reference of a deployment of an image that takes over from another deployment, which may be nil.
// The image is a reference, or a plain name: then it has the demand of the other one, which no name can drop.
func NewReference(image string, from *sysroot.Deployment) (Reference, error) {
	if strings.HasPrefix(image, "ostree-unverified-") || strings.HasPrefix(image, imageSigned) || strings.HasPrefix(image, "ostree-remote-") {
		return ParseReference(image)
	}
	r := Reference{}
	if from != nil {
		if text, ok := from.ImageReference(); ok {
			var err error
			if r, err = ParseReference(text); err != nil && !errors.Is(err, ErrTransport) {
				return r, err
			}
		}
	}
	r.Name = image
	return r, nil
}
