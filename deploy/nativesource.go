package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Native returns the Source for images with an ostree commit inside, and leaves all others to ordinary. The commit is
// rebuilt as it was, and becomes the parent of the image's own commit. That has the same tree, or, if the image has
// layers above, these over it, with labels by label: a function that changes the merged tree, which may be nil.
//
// An image has a commit inside if its label ostree.final-diffid names the last layer that holds it. One with the label
// ostree.commit alone has it if its lowest layer holds this commit, as in the format's first version.
func Native(layers *layer.Store, ordinary Source, label func(*oscommit.Tree) error) Source {
	return &nativeSource{layers, ordinary, label}
}

type nativeSource struct {
	layers   *layer.Store
	ordinary Source
	label    func(*oscommit.Tree) error
}

func (s *nativeSource) OS(ctx context.Context, img *Image) (OS, error) {
	found, err := s.find(ctx, img)
	if errors.Is(err, native.ErrInvalid) {
		err = as(oscommit.ErrInvalid, err)
	}
	if err != nil {
		return nil, err
	}
	if found == nil {
		return s.ordinary.OS(ctx, img)
	}
	return found, nil
}

// find returns the OS of an image with a commit inside, or nil for another one.
func (s *nativeSource) find(ctx context.Context, img *Image) (OS, error) {
	place, err := native.Find(img.Config)
	if err != nil || place == nil {
		return nil, err
	}
	if err := img.Check(); err != nil {
		return nil, err
	}
	if place.Unmarked {
		lowest, err := s.layers.Image(ctx, img.Layers[0])
		if err != nil || !native.HasCommit(lowest, place.Commit) {
			return nil, err
		}
	}
	base, err := native.Read(ctx, s.layers, img.Layers, place)
	if err != nil {
		return nil, err
	}
	merged, err := base.Merge(ctx, s.layers, img.Layers)
	if err != nil {
		return nil, err
	}
	tree, err := oscommit.NewTree(merged.Root)
	if err != nil {
		return nil, err
	}
	tree.Give(merged.Given)
	n := &nativeOS{flatOS: flatOS{tree, img}, base: base, derived: len(img.Layers) > len(place.DiffIDs)}
	if n.derived && s.label != nil {
		err = s.label(tree)
	}
	return n, err
}

// A nativeOS is the OS of an image with a commit inside.
type nativeOS struct {
	flatOS
	base    *native.Base
	derived bool // the image has layers above the commit
}

// Need is the need of the commit inside, and of the files and directories of the layers above.
func (n *nativeOS) Need(to, from *objectstore.Repo) (oscommit.Need, error) {
	need, err := n.base.Need(to, from)
	if err != nil || !n.derived {
		return need, err
	}
	above, err := n.flatOS.Need(to, from)
	return sumOf(need, above), err
}

// sumOf returns the need of a commit inside an image and of the layers above it.
func sumOf(base, above oscommit.Need) oscommit.Need {
	base.Objects += above.Objects
	base.Bytes += above.Bytes
	base.Shared += above.Shared
	base.Metadata += above.Metadata
	return base
}

// Store writes both commits, and stages the ref by which ostree's tools find the commit inside.
func (n *nativeOS) Store(
	ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, progress func(oscommit.Progress),
) (s oscommit.Stored, err error) {
	ref, err := baseRef(n.img.Manifest)
	if err != nil {
		return s, as(oscommit.ErrInvalid, err)
	}
	base, err := n.base.Store(ctx, txn, from, progress)
	if err != nil {
		if errors.Is(err, native.ErrInvalid) {
			err = as(oscommit.ErrInvalid, err)
		}
		return s, err
	}
	txn.SetRef(ref, n.base.Sum)
	if !n.derived {
		progress = nil // all is there
	}
	s, err = n.store(ctx, txn, from, progress, &n.base.Sum)
	s.Need = sumOf(base, s.Need)
	return s, err
}

// baseRef returns the ref that ostree's tools give to the commit in the lowest layer of an image.
func baseRef(manifest []byte) (string, error) {
	blobs, err := layerBlobs(manifest)
	if err != nil {
		return "", err
	}
	if len(blobs) == 0 {
		return "", errors.New("its manifest has no layers")
	}
	return escapeRef(blobRefs, blobs[0].String()), nil
}

// layerBlobs returns the digests of the layers in a manifest, lowest first.
func layerBlobs(manifest []byte) ([]digest.Digest, error) {
	var m struct {
		Layers []struct {
			Digest digest.Digest `json:"digest"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	var blobs []digest.Digest
	for _, l := range m.Layers {
		if err := l.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("parse manifest: digest %.100q of a layer: %w", l.Digest, err)
		}
		blobs = append(blobs, l.Digest)
	}
	return blobs, nil
}
