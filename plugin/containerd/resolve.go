package containerd

import (
	"context"
	"errors"
	"fmt"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	// ErrNoImage is returned if containerd does not have an image, has only a part of it, or has it for other platforms
	// only.
	ErrNoImage = errors.New("no such image")
	// ErrNoAnswer is returned if containerd cannot be asked for an image.
	ErrNoAnswer = errors.New("ask containerd")
)

// An ImageError reports why an image of containerd cannot be used. It has the text of Err.
type ImageError struct {
	Namespace, Name string
	FoundIn         string // another namespace that has an image of this name; "" if none does
	Err             error
}

func (e *ImageError) Error() string { return e.Err.Error() }
func (e *ImageError) Unwrap() error { return e.Err }

// Resolve returns the manifest for a platform of an image, by its name in a namespace of containerd. containerd has no
// short names.
//
// All errors are an [ImageError]. It wraps [ErrNoAnswer] if containerd cannot be asked, [ErrNoImage] if the name or one
// of the image's documents does not exist, [ErrNoImage] and a [PlatformError] or [ErrNoManifest] if there is no
// manifest for the platform, and otherwise a [DocumentError].
func (c *Client) Resolve(ctx context.Context, namespace, name string, want ocispec.Platform) (*Manifest, error) {
	fail := func(err error) (*Manifest, error) {
		return nil, &ImageError{Namespace: namespace, Name: name, Err: err}
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	resp, err := imagesapi.NewImagesClient(c.conn).Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		err = fmt.Errorf("containerd has %w in namespace %s", ErrNoImage, namespace)
		return nil, &ImageError{Namespace: namespace, Name: name, FoundIn: c.otherNamespace(ctx, name), Err: err}
	}
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrNoAnswer, err))
	}
	target := descriptor(resp.GetImage().GetTarget())
	m, err := FindManifest(ctx, c.Content(), want, target)
	var doc *DocumentError
	var platform *PlatformError
	switch {
	case err == nil:
		m.Target = target.Digest
		return m, nil
	case errors.As(err, &doc) && errdefs.IsNotFound(err):
		return fail(noImageError{fmt.Sprintf("containerd does not have its %s %s", doc.Kind, doc.Digest), err})
	case errors.Is(err, ErrNoManifest):
		return fail(noImageError{fmt.Sprintf("%s names no manifest", target.Digest), err})
	case errors.As(err, &platform):
		return fail(noImageError{err.Error(), err})
	}
	return fail(err)
}

// noImageError is an ErrNoImage that also wraps err, and has a text of its own.
type noImageError struct {
	text string
	err  error
}

func (e noImageError) Error() string   { return e.text }
func (e noImageError) Unwrap() []error { return []error{ErrNoImage, e.err} }

// otherNamespace returns a namespace that has an image of this name, or "" if none does.
func (c *Client) otherNamespace(ctx context.Context, name string) string {
	resp, err := namespacesapi.NewNamespacesClient(c.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return ""
	}
	for _, ns := range resp.Namespaces {
		_, err := imagesapi.NewImagesClient(c.conn).Get(namespaces.WithNamespace(ctx, ns.Name), &imagesapi.GetImageRequest{Name: name})
		if err == nil {
			return ns.Name
		}
	}
	return ""
}

func descriptor(t *types.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}
}
