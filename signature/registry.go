package signature

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotFound is returned by a [Repository] for what it does not have.
var ErrNotFound = errors.New("not found")

// maxDocument is the size of the largest manifest or index that is read.
const maxDocument = 4 << 20

// maxSignatures is how many signatures an image may have in one form.
const maxSignatures = 128

// A Repository has manifests and blobs. Every method bounds what it reads, and returns [ErrNotFound] only if the
// repository has answered that it does not have it.
type Repository interface {
	// Manifest returns a manifest or index by its tag or digest. That of a digest is verified.
	Manifest(ctx context.Context, ref string, limit int64) ([]byte, error)
	// Blob returns a blob, verified.
	Blob(ctx context.Context, digest digest.Digest, limit int64) ([]byte, error)
	// Referrers returns the index of the manifests whose subject has a digest, or [ErrNotFound] if the repository does not
	// keep one.
	Referrers(ctx context.Context, digest digest.Digest, limit int64) ([]byte, error)
}

// A Registry is a source of the signatures in repositories of registries, and at their lookasides.
type Registry struct {
	Open   func(ctx context.Context, name reference.Named) (Repository, error)
	Config *Places // nil for none
}

// Signatures implements [Source].
func (r *Registry) Signatures(ctx context.Context, name reference.Named, dgst digest.Digest, forms Form) ([]Signature, error) {
	var found []Signature
	if forms&Simple != 0 && r.Config != nil {
		list, err := r.Config.lookaside(ctx, name, dgst)
		if err != nil {
			return nil, err
		}
		found = append(found, list...)
	}
	if forms&(Attachment|Bundle) == 0 || r.Config != nil && !r.Config.attachments(name) {
		return found, nil
	}
	repo, err := r.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	if forms&Attachment != 0 {
		list, err := attachments(ctx, repo, name, dgst)
		if err != nil {
			return nil, err
		}
		found = append(found, list...)
	}
	list, err := referring(ctx, repo, name, dgst, forms)
	return append(found, list...), err
}

// payloadType is the media type of the payloads of attachments.
const payloadType = "application/vnd.dev.cosign.simplesigning.v1+json"

// attachments returns cosign's attachments: the layers of the manifest with a tag made of the digest.
func attachments(ctx context.Context, repo Repository, name reference.Named, dgst digest.Digest) ([]Signature, error) {
	tag := fmt.Sprintf("%s-%s.sig", dgst.Algorithm(), dgst.Encoded())
	m, err := readManifest(ctx, repo, tag)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("tag %s: %w", tag, err)
	}
	return layers(ctx, repo, m, Attachment, name.Name()+":"+tag)
}

// formOf returns the form of the signature that a layer of a type is, 0 if it is none.
func formOf(mediaType string) Form {
	switch mediaType {
	case payloadType:
		return Attachment
	case bundleType, bundleTypeOld:
		return Bundle
	}
	return 0
}

// layers returns the signatures in some forms that the layers of a manifest are. Other layers are not read.
func layers(ctx context.Context, repo Repository, m *ocispec.Manifest, forms Form, origin string) ([]Signature, error) {
	var found []Signature
	for _, l := range m.Layers {
		form := formOf(l.MediaType)
		if form&forms == 0 {
			continue
		}
		if len(found) == maxSignatures {
			return nil, fmt.Errorf("%s has more than %d signatures", origin, maxSignatures)
		}
		b, err := repo.Blob(ctx, l.Digest, maxSignature)
		if err != nil {
			return nil, fmt.Errorf("%s: blob %s: %w", origin, l.Digest, err)
		}
		found = append(found, Signature{Form: form, Origin: origin, Data: b, Annotations: l.Annotations})
	}
	return found, nil
}

func readManifest(ctx context.Context, repo Repository, ref string) (*ocispec.Manifest, error) {
	b, err := repo.Manifest(ctx, ref, maxDocument)
	if err != nil {
		return nil, err
	}
	m := new(ocispec.Manifest)
	if err = checkNesting(b); err == nil {
		err = json.Unmarshal(b, m)
	}
	return m, err
}

// predicateAnnotation is the annotation of a bundle's manifest with the type of its statement.
const predicateAnnotation = "dev.sigstore.bundle.predicateType"

// signatureTypes are the types of manifests that may refer to an image as its signatures. Lists of referrers that cosign
// has written have the type of the empty config instead, or none.
var signatureTypes = []string{
	bundleType, bundleTypeOld, "application/vnd.dev.cosign.artifact.sig.v1+json", ocispec.MediaTypeEmptyJSON,
	ocispec.MediaTypeImageConfig, "",
}

// maySign reports whether a manifest with a type and annotations may have signatures. An image may have thousands of
// statements about it that are none.
func maySign(artifactType string, annotations map[string]string) bool {
	predicate := annotations[predicateAnnotation]
	return slices.Contains(signatureTypes, artifactType) && (predicate == "" || predicate == signType)
}

// maxReferrers is how many manifests that refer to an image are read.
const maxReferrers = 512

// referring returns the signatures that refer to a digest.
func referring(ctx context.Context, repo Repository, name reference.Named, dgst digest.Digest, forms Form) ([]Signature, error) {
	list, err := referrers(ctx, repo, dgst)
	if err != nil {
		return nil, fmt.Errorf("referrers: %w", err)
	}
	if len(list) > maxReferrers {
		return nil, fmt.Errorf("referrers: %d manifests may be signatures, at most %d are read", len(list), maxReferrers)
	}
	var found []Signature
	for _, d := range list {
		m, err := readManifest(ctx, repo, d.Digest.String())
		if errors.Is(err, ErrNotFound) {
			continue // it was removed, and the list is not up to date
		}
		if err != nil {
			return nil, fmt.Errorf("referrer %s: %w", d.Digest, err)
		}
		if !maySign(m.ArtifactType, m.Annotations) {
			continue
		}
		more, err := layers(ctx, repo, m, forms, name.Name()+"@"+d.Digest.String())
		if err != nil {
			return nil, err
		}
		if found = append(found, more...); len(found) > maxSignatures {
			return nil, fmt.Errorf("referrers: there are more than %d signatures", maxSignatures)
		}
	}
	return found, nil
}

// referrers returns the descriptors of what may be a signature of a digest, by the registry's list of referrers or else
// by the tag that stands for one.
func referrers(ctx context.Context, repo Repository, dgst digest.Digest) ([]ocispec.Descriptor, error) {
	b, err := repo.Referrers(ctx, dgst, maxDocument)
	if errors.Is(err, ErrNotFound) {
		b, err = repo.Manifest(ctx, fmt.Sprintf("%s-%s", dgst.Algorithm(), dgst.Encoded()), maxDocument)
	}
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err = checkNesting(b); err == nil {
		err = json.Unmarshal(b, &index)
	}
	list := index.Manifests
	return slices.DeleteFunc(list, func(d ocispec.Descriptor) bool { return !maySign(d.ArtifactType, d.Annotations) }), err
}
