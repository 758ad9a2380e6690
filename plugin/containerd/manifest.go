package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxIndexDepth bounds the nesting of indexes.
const maxIndexDepth = 4

// unknownPlatform is the operating system of BuildKit's attestations, whose manifests are not images.
const unknownPlatform = "unknown"

// A Manifest is the manifest of an image for one platform, with its config. Layers, diff IDs and version are as the
// image's author wrote them, unchecked.
type Manifest struct {
	Digest     digest.Digest
	Target     digest.Digest // by [Client.Resolve]: that the name stands for, of the manifest or an index
	JSON       []byte        // the manifest, byte for byte
	ConfigJSON []byte        // the config, byte for byte
	Layers     []ocispec.Descriptor
	DiffIDs    []digest.Digest
	Version    string    // "" if the image has none
	Created    time.Time // zero if the image has none

	platform ocispec.Platform // from the config; zero if it has none
}

// A PlatformError reports that an image exists for other platforms only.
type PlatformError struct {
	Want string
	Have []string // sorted
}

func (e *PlatformError) Error() string {
	return fmt.Sprintf("it is for %s, this host is %s", strings.Join(e.Have, ", "), e.Want)
}

// ErrNoManifest is returned if an image has no manifest for any platform.
var ErrNoManifest = errors.New("no manifest")

// FindManifest returns the best manifest for a platform among all below descs. A manifest without a platform, in the
// index and in its config, matches any.
//
// A document that cannot be read is a [DocumentError], which is an errdefs.ErrNotFound if the provider does not have
// it. If there is no manifest for the platform the error is a [PlatformError] or [ErrNoManifest].
func FindManifest(ctx context.Context, provider content.Provider, want ocispec.Platform, descs ...ocispec.Descriptor) (*Manifest, error) {
	w := newWalk(documents{provider})
	for _, desc := range descs {
		if err := w.add(ctx, desc, maxIndexDepth); err != nil {
			return nil, err
		}
	}
	match := platforms.Only(want)
	sortByPlatform(w.manifests, match)
	var others []string
	for _, desc := range w.manifests {
		if p := platformOf(desc); p.OS != "" && !match.Match(p) {
			if p.OS != unknownPlatform {
				others = append(others, platforms.Format(p))
			}
			continue
		}
		m, err := readManifest(ctx, w.provider, desc)
		if err != nil {
			return nil, err
		}
		if m.platform.OS != "" && !match.Match(m.platform) {
			others = append(others, platforms.Format(m.platform))
			continue
		}
		return m, nil
	}
	if len(others) == 0 {
		return nil, ErrNoManifest
	}
	slices.Sort(others)
	return nil, &PlatformError{Want: platforms.Format(want), Have: slices.Compact(others)}
}

// A walk finds manifests. It reads each document once, even if an index names it a thousand times or names itself.
type walk struct {
	provider  content.Provider
	skip      func(error) bool // reports whether to skip an index that causes the error
	seen      map[digest.Digest]bool
	manifests []ocispec.Descriptor // in the order of the indexes
}

func newWalk(provider content.Provider) *walk {
	return &walk{provider: provider, skip: func(error) bool { return false }, seen: make(map[digest.Digest]bool)}
}

// add adds the manifests below a descriptor, through at most depth indexes.
func (w *walk) add(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	index := images.IsIndexType(desc.MediaType)
	if w.seen[desc.Digest] || !index && !images.IsManifestType(desc.MediaType) {
		return nil
	}
	if !index {
		w.seen[desc.Digest] = true
		w.manifests = append(w.manifests, desc)
		return nil
	}
	children, err := w.index(ctx, desc, depth)
	if err != nil && w.skip(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := w.add(ctx, child, depth-1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) index(ctx context.Context, desc ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	if depth == 0 {
		return nil, documentError(desc, fmt.Errorf("more than %d indexes in each other", maxIndexDepth))
	}
	w.seen[desc.Digest] = true
	children, err := images.Children(ctx, w.provider, desc)
	if err != nil {
		return nil, documentError(desc, err)
	}
	return children, nil
}

// platformOf returns the platform of a descriptor, or the zero value if it has none.
func platformOf(desc ocispec.Descriptor) ocispec.Platform {
	if desc.Platform == nil {
		return ocispec.Platform{}
	}
	return platforms.Normalize(*desc.Platform)
}

// sortByPlatform sorts manifests, the best match first.
func sortByPlatform(list []ocispec.Descriptor, match platforms.MatchComparer) {
	slices.SortStableFunc(list, func(a, b ocispec.Descriptor) int {
		switch pa, pb := platformOf(a), platformOf(b); {
		case match.Less(pa, pb):
			return -1
		case match.Less(pb, pa):
			return 1
		}
		return 0
	})
}

// readManifest reads a manifest and its config.
func readManifest(ctx context.Context, provider content.Provider, desc ocispec.Descriptor) (*Manifest, error) {
	// Times are decoded as strings, so that an invalid time does not make the rest unusable.
	var manifest struct {
		Config      ocispec.Descriptor   `json:"config"`
		Layers      []ocispec.Descriptor `json:"layers"`
		Annotations map[string]string    `json:"annotations"`
	}
	var config struct {
		ocispec.Platform
		Created string              `json:"created"`
		Config  ocispec.ImageConfig `json:"config"`
		RootFS  ocispec.RootFS      `json:"rootfs"`
	}
	m := &Manifest{Digest: desc.Digest}
	var err error
	if m.JSON, err = readJSON(ctx, provider, desc, &manifest); err != nil {
		return nil, err
	}
	if m.ConfigJSON, err = readJSON(ctx, provider, manifest.Config, &config); err != nil {
		return nil, err
	}
	labels := config.Config.Labels
	m.Layers, m.DiffIDs = manifest.Layers, config.RootFS.DiffIDs
	m.Version = cmp.Or(labels[ocispec.AnnotationVersion], labels["version"])
	m.Created = firstTime(manifest.Annotations[ocispec.AnnotationCreated], config.Created)
	if config.OS != "" && config.Architecture != "" {
		m.platform = platforms.Normalize(config.Platform)
	}
	return m, nil
}

func readJSON(ctx context.Context, provider content.Provider, desc ocispec.Descriptor, v any) ([]byte, error) {
	b, err := content.ReadBlob(ctx, provider, desc)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return nil, documentError(desc, err)
	}
	return b, nil
}

// firstTime returns the first text that is a time, or the zero time.
func firstTime(texts ...string) time.Time {
	for _, text := range texts {
		if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
			return t
		}
	}
	return time.Time{}
}
