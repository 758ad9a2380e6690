package containerd

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// keptLabel is the label of a manifest that names the blob with its signatures. By its prefix, containerd's garbage
	// collector keeps the blob as long as the manifest.
	keptLabel = "containerd.io/gc.ref.content.ostree-snapshotter.signatures"
	rootLabel = "containerd.io/gc.root"
)

// KeepSignatures keeps a document with the manifest of an image in a namespace: they are removed together. It replaces one
// that was kept before. The error is an errdefs.ErrNotFound if containerd does not have the manifest.
func (c *Client) KeepSignatures(ctx context.Context, namespace string, manifest digest.Digest, doc []byte) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	store := c.Content()
	info, err := store.Info(ctx, manifest)
	if err != nil {
		return fmt.Errorf("keep signatures of %s: %w", manifest, err)
	}
	desc := ocispec.Descriptor{Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	if info.Labels[keptLabel] == desc.Digest.String() {
		return nil
	}
	// The collector may run at any time: the document is a root until the manifest names it.
	root := content.WithLabels(map[string]string{rootLabel: time.Now().UTC().Format(time.RFC3339)})
	err = content.WriteBlob(ctx, store, "ostree-snapshotter-"+desc.Digest.String(), bytes.NewReader(doc), desc, root)
	if err == nil {
		err = setLabel(ctx, store, manifest, keptLabel, desc.Digest.String())
	}
	if err == nil {
		err = setLabel(ctx, store, desc.Digest, rootLabel, "")
	}
	if err != nil {
		return fmt.Errorf("keep signatures of %s: %w", manifest, err)
	}
	return nil
}

// setLabel sets a label of a blob, or removes it if the value is "".
func setLabel(ctx context.Context, store content.Store, dgst digest.Digest, label, value string) error {
	_, err := store.Update(ctx, content.Info{Digest: dgst, Labels: map[string]string{label: value}}, "labels."+label)
	return err
}

// KeptSignatures returns the document that is kept with a manifest, nil if there is none.
func (c *Client) KeptSignatures(ctx context.Context, namespace string, manifest digest.Digest) ([]byte, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	info, err := c.Content().Info(ctx, manifest)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	dgst := digest.Digest(info.Labels[keptLabel])
	if err == nil && dgst == "" {
		return nil, nil
	}
	var doc []byte
	if err == nil {
		doc, err = documents{c.Content()}.read(ctx, ocispec.Descriptor{Digest: dgst})
	}
	if err != nil {
		return nil, fmt.Errorf("read the kept signatures of %s: %w", manifest, err)
	}
	return doc, nil
}
