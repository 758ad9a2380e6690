package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// maxVersion is how long the version may be that an image says it has: it is shown in boot menus.
const maxVersion = 128

// resolved is an image of containerd whose layers are in our store.
type resolved struct {
	Name, Namespace string
	Target          digest.Digest // what the name stands for: a manifest, or an index of some
	Manifest        digest.Digest
	ManifestJSON    []byte // byte for byte
	ConfigJSON      []byte
	Chain           digest.Digest          // chain ID of the uppermost layer
	Layers          []objectstore.Checksum // lowest first
	Version         string                 // "" if the image does not say
	Created         time.Time              // zero if it does not say
}

// errNotUnpacked is the error of an image that containerd has and the store does not.
var errNotUnpacked = errors.New("it is pulled, but this snapshotter has not unpacked it")

// notBootableError is the error of an image that is not an operating system.
type notBootableError struct{ error }

// resolveImage finds the image that containerd has under a name, for this host, and its layers in the store.
func (c *cli) resolveImage(ctx context.Context, client *containerd.Client, s *store, name string) (*resolved, error) {
	namespace := cmp.Or(c.imageNamespace, namespaces.Default)
	found, err := client.Resolve(ctx, namespace, name, platforms.DefaultSpec())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	m := found.Manifest
	img := &resolved{
		Name: name, Namespace: namespace, Target: found.Target, Manifest: m.Digest, ManifestJSON: m.JSON, ConfigJSON: m.ConfigJSON,
		Version: m.Version, Created: m.Created,
	}
	if err = checkOS(m); err == nil {
		img.Chain = identity.ChainID(m.DiffIDs)
		img.Layers, err = s.layersOf(ctx, c.daemonAddress, m.DiffIDs)
	}
	if err != nil {
		err = &containerd.ImageError{Namespace: namespace, Name: name, Err: err}
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return img, nil
}

// checkOS refuses an image without layers, and a version that would spoil what it is shown in.
func checkOS(m *containerd.Manifest) error {
	if v := m.Version; len(v) > maxVersion || strings.ContainsFunc(v, unicode.IsControl) {
		return notBootableError{fmt.Errorf("its version %.*q is too long or has control characters", maxVersion, v)}
	}
	if len(m.DiffIDs) == 0 {
		return notBootableError{errors.New("it has no layers")}
	}
	for _, id := range m.DiffIDs {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("layer %q: %w", id, err)
		}
	}
	return nil
}

// layersOf finds the layers of an image in the store: by the digests of their tars, or, since what was built here has none,
// by the snapshot of the chain. Without them the error is errNotUnpacked.
func (s *store) layersOf(ctx context.Context, daemonAddress string, diffIDs []digest.Digest) ([]objectstore.Checksum, error) {
	list, err := s.byDiffID(ctx, diffIDs)
	if err == nil && list == nil {
		list, err = s.bySnapshot(ctx, daemonAddress, identity.ChainID(diffIDs))
	}
	if err == nil && len(list) != len(diffIDs) {
		err = errNotUnpacked
	}
	return list, err
}

// byDiffID returns nil if the store does not have all.
func (s *store) byDiffID(ctx context.Context, diffIDs []digest.Digest) ([]objectstore.Checksum, error) {
	list := make([]objectstore.Checksum, 0, len(diffIDs))
	for _, id := range diffIDs {
		held, err := s.layers.Acquire(ctx, id)
		if errors.Is(err, objectstore.ErrNotExist) || errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		list = append(list, held.ID)
		if err := held.Release(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// bySnapshot returns nil if the store has no snapshot of the chain.
func (s *store) bySnapshot(ctx context.Context, daemonAddress string, chain digest.Digest) ([]objectstore.Checksum, error) {
	rows, err := s.rows(ctx, daemonAddress)
	if err != nil {
		return nil, err
	}
	byKey := make(map[string]*row, len(rows))
	var top *row
	for i := range rows {
		byKey[rows[i].key] = &rows[i]
		if rows[i].kind == snapshots.KindCommitted && rows[i].chain == chain {
			top = &rows[i]
		}
	}
	var list []objectstore.Checksum
	for top != nil && len(list) <= len(rows) {
		list = append(list, top.layer)
		top = byKey[top.parent]
	}
	slices.Reverse(list)
	return list, nil
}
