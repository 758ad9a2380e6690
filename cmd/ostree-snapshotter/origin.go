package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Names in an origin file, and in the metadata of the OS commit of an image.
const (
	originGroup    = "origin"
	originImage    = "container-image-reference"
	originRefspec  = "refspec"
	originBase     = "baserefspec"
	originOverride = "override-commit"

	metaManifestDigest = "ostree.manifest-digest"

	unverifiedRegistry = "ostree-unverified-registry:"
)

// unverifiedImages are the forms that a reference has in an origin file when the image is in a registry and is taken as it
// comes, which is all that containerd does.
var unverifiedImages = []string{
	unverifiedRegistry, "ostree-unverified-image:registry:", "ostree-unverified-image:docker://",
}

// parseReference returns what containerd calls the image that a reference of an origin file names.
func parseReference(reference string) (string, error) {
	for _, form := range unverifiedImages {
		if name, ok := strings.CutPrefix(reference, form); ok && name != "" {
			return name, nil
		}
	}
	err := fmt.Errorf("origin %q is not one that containerd can pull", reference)
	switch {
	case strings.HasPrefix(reference, "ostree-image-signed:"), strings.HasPrefix(reference, "ostree-remote-"):
		return "", withHint(err, "it asks for a signature, which is not verified here; "+
			"\"ostree-snapshotter switch IMAGE\" does without it")
	}
	return "", withHint(err, "\"ostree-snapshotter switch IMAGE\" sets another")
}

// originName is what the origin of a deployment says it was made of: an image, as containerd calls it, or else an ostree
// refspec. "" if it says nothing.
func originName(d *sysroot.Deployment) (image, refspec string) {
	if reference, ok := d.ImageReference(); ok {
		if name, err := parseReference(reference); err == nil {
			return name, ""
		}
		return reference, ""
	}
	if d.Origin != nil {
		ref, _ := d.Origin.Get(originGroup, originRefspec)
		base, _ := d.Origin.Get(originGroup, originBase)
		return "", cmp.Or(ref, base)
	}
	return "", ""
}

// newOrigin is the origin of a deployment of an image that takes over from another, which may be nil. What the old one has
// beyond where it comes from is kept.
func newOrigin(from *sysroot.Deployment, image string) *keyfile.File {
	f := &keyfile.File{}
	if from != nil && from.Origin != nil {
		f = from.Origin.Clone()
	}
	for _, key := range []string{originRefspec, originBase, originOverride} {
		f.Remove(originGroup, key)
	}
	f.Set(originGroup, originImage, unverifiedRegistry+image)
	return f
}

// manifestDigest returns the digest of the manifest of the image that a commit was made of. "" if it was made of none.
func manifestDigest(repo *objectstore.Repo, commit objectstore.Checksum) (string, error) {
	c, err := repo.Commit(commit)
	if err != nil {
		return "", err
	}
	d, _ := c.MetaString(metaManifestDigest)
	return d, nil
}
