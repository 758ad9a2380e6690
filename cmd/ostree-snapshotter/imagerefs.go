package main

import (
	"context"
	"errors"
	"slices"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

const (
	imageRefs    = "ostree/container/image" // the directory of refs of images
	metaImporter = "ostree.importer.version"
)

// unusedImages returns the refs of images of which there is no deployment. Those that other tools have pulled are not ours to
// judge: their commits say which importer made them.
func (s *system) unusedImages(deployed ...*sysroot.Deployment) (names []string, err error) {
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
		_, image := c.MetaString(metaManifestDigest)
		if _, foreign := c.MetaString(metaImporter); image && !foreign {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// dropImages takes the names from the commits of images of which there is no deployment, so that they can be pruned. What is
// deployed has other refs. The caller holds the sysroot's lock, under which images are deployed too.
func (s *system) dropImages(ctx context.Context, deployed ...*sysroot.Deployment) error {
	names, err := s.unusedImages(deployed...)
	if err != nil || len(names) == 0 {
		return err
	}
	return s.Repo().DeleteRefs(ctx, names...)
}
