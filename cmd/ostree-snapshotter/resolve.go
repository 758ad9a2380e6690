package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/containerd/v2/pkg/namespaces"
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
		img.Layers, err = s.Unpacked(ctx, m.DiffIDs)
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
