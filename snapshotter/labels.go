package snapshotter

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Labels that this package sets on committed snapshots. Callers can neither set nor remove them: image authors provide
// labels too, as annotations of a layer, so every value that arrives from outside is dropped.
const (
	// LabelLayer is the ID of the layer that the snapshot adds to its parent.
	LabelLayer = privatePrefix + "layer"
	// LabelCheckout is the name of the layer's checkout, below the root. Snapshots committed with hard-link checkouts
	// have it.
	LabelCheckout = privatePrefix + "checkout"
	// LabelChainID is the chain ID of the snapshot. It is set only if this program computed the diff IDs of all its
	// layers.
	LabelChainID = privatePrefix + "chain-id"
	// LabelBlob is the digest of the blob that the layer was unpacked from, if this program unpacked it. From it, the
	// ref that finds the layer when the blob is pulled again can be restored.
	LabelBlob = privatePrefix + "blob"

	privatePrefix = "containerd.io/snapshot/ostree."
)

// validLabels refuses labels that containerd or metadata.db does not accept.
func validLabels(asked map[string]string) error {
	for k, v := range asked {
		if k == "" {
			return fmt.Errorf("label without name: %w", errdefs.ErrInvalidArgument)
		}
		if err := labels.Validate(k, v); err != nil {
			return err
		}
	}
	return nil
}

// publicLabels returns a copy of labels without this package's own.
func publicLabels(labels map[string]string) map[string]string {
	public := make(map[string]string, len(labels))
	for k, v := range labels {
		if !strings.HasPrefix(k, privatePrefix) {
			public[k] = v
		}
	}
	return public
}

// publicPaths returns the field paths that do not name this package's labels.
func publicPaths(fieldpaths []string) []string {
	return slices.DeleteFunc(slices.Clone(fieldpaths), func(p string) bool { return strings.HasPrefix(p, "labels."+privatePrefix) })
}

// privateLabels returns this package's labels among labels.
func privateLabels(labels map[string]string) map[string]string {
	private := make(map[string]string)
	for k, v := range labels {
		if strings.HasPrefix(k, privatePrefix) {
			private[k] = v
		}
	}
	return private
}

// committedLabels returns the labels of a committed snapshot: the requested ones, its own, and the label that lets
// containerd find the snapshot from another namespace, with WithSharedNamespaces. Client-side unpacking does not request
// the latter.
func committedLabels(name string, asked, private map[string]string) map[string]string {
	labels := publicLabels(asked)
	maps.Copy(labels, private)
	chain := private[LabelChainID]
	if _, ok := labels[snapshots.LabelSnapshotRef]; !ok && chain != "" && clientName(name) == chain {
		labels[snapshots.LabelSnapshotRef] = chain
	}
	return labels
}

// clientName returns the part of a key or name that containerd's client chose: the metadata service prefixes it with
// the namespace and a number.
func clientName(key string) string {
	if parts := strings.SplitN(key, "/", 3); len(parts) == 3 {
		return parts[2]
	}
	return key
}

// namespaceOf returns the namespace in a key of containerd's metadata service, "" if it has none.
func namespaceOf(key string) string {
	parts := strings.SplitN(key, "/", 3)
	if len(parts) != 3 {
		return ""
	}
	if _, err := strconv.ParseUint(parts[1], 10, 64); err != nil {
		return "" // a path, chosen by a client without that service
	}
	return parts[0]
}

// isUnpackKey reports whether containerd uses a key for unpacking an image. Snapshots under other keys may be written
// to through their mounts.
func isUnpackKey(key string) bool {
	return strings.HasPrefix(clientName(key), snapshots.UnpackKeyPrefix+"-")
}

// content describes the content of a committed snapshot.
type content struct {
	name     string // of the snapshot
	id       string // of the snapshot
	layer    objectstore.Checksum
	checkout string        // below the root; "" if none was made
	chainID  digest.Digest // "" if unknown
	blob     digest.Digest // that the layer was unpacked from; "" if unknown
}

// LayerOf returns the layer that a committed snapshot adds to its parent. The error names the label that holds no
// layer.
func LayerOf(info snapshots.Info) (objectstore.Checksum, error) {
	sum, err := objectstore.ParseChecksum(info.Labels[LabelLayer])
	if err != nil {
		return sum, fmt.Errorf("snapshot %q: label %s: %w", info.Name, LabelLayer, err)
	}
	return sum, nil
}

// contentOf reads the labels of a committed snapshot.
func contentOf(id string, info snapshots.Info) (content, error) {
	sum, err := LayerOf(info)
	if err != nil {
		return content{}, err
	}
	c := content{
		name:     info.Name,
		id:       id,
		layer:    sum,
		checkout: info.Labels[LabelCheckout],
		chainID:  digest.Digest(info.Labels[LabelChainID]),
		blob:     digest.Digest(info.Labels[LabelBlob]),
	}
	return c, nil
}

// labels returns the labels from which contentOf reads c.
func (c content) labels() map[string]string {
	l := map[string]string{LabelLayer: c.layer.String()}
	if c.checkout != "" {
		l[LabelCheckout] = c.checkout
	}
	if c.chainID != "" {
		l[LabelChainID] = c.chainID.String()
	}
	if c.blob != "" {
		l[LabelBlob] = c.blob.String()
	}
	return l
}

// chainID returns the chain ID of a snapshot whose layer has a diff ID, over the chain below it. It is "" if this
// program did not compute either.
func chainID(below []content, diffID digest.Digest) digest.Digest {
	if len(below) == 0 || diffID == "" {
		return diffID
	}
	parent := below[0].chainID
	if parent == "" {
		return ""
	}
	return digest.FromString(parent.String() + " " + diffID.String())
}
