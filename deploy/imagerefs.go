package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

const (
	imageRefs    = "ostree/container/image" // the directory of refs of images
	metaImporter = "ostree.importer.version"
)

// imageRef returns the ref that ostree's own tools give to the OS commit of an image in a registry. The name of the
// image must not be empty and must not contain NUL.
func imageRef(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%w: reference %q", oscommit.ErrInvalid, name)
	}
	reference := "docker://" + name
	var b strings.Builder
	b.WriteString(imageRefs + "/")
	alnum := false // whether the character before was a letter or a digit
	for i, c := range reference {
		was := alnum
		alnum = c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		switch {
		case alnum, c == '-', c == '/' && was && i+1 < len(reference):
			b.WriteRune(c)
		case c == '_':
			b.WriteString("__")
		default:
			fmt.Fprintf(&b, "_%02X_", c)
		}
	}
	return b.String(), nil
}

// unusedImages returns the refs of images without a deployment. Refs of other tools, whose commits name an importer,
// stay.
func (s *System) unusedImages(deployed ...*sysroot.Deployment) (names []string, err error) {
	refs, err := s.Repo().Refs(imageRefs)
	if err != nil {
		return nil, err
	}
	for name, sum := range refs {
		if slices.ContainsFunc(deployed, func(d *sysroot.Deployment) bool { return d.Commit == sum }) {
			continue
		}
		c, err := s.Repo().Commit(sum)
		if errors.Is(err, objectstore.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		_, image := c.MetaString(oscommit.ManifestDigest)
		if _, foreign := c.MetaString(metaImporter); image && !foreign {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// dropImages removes the refs of images without a deployment, so that their commits can be pruned. Deployments have
// refs of their own. The caller holds the sysroot's lock, as for every deployment of an image.
func (s *System) dropImages(ctx context.Context, deployed ...*sysroot.Deployment) error {
	names, err := s.unusedImages(deployed...)
	if err != nil || len(names) == 0 {
		return err
	}
	return s.Repo().DeleteRefs(ctx, names...)
}
