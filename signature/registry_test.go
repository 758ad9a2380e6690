package signature

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// repository is a repository in memory, and counts what is read.
type repository struct {
	docs      map[string][]byte // manifests and blobs by tag or digest
	referrers []byte            // nil if the registry keeps no list
	err       error
	reads     int
}

func (r *repository) get(ref string, limit int64) ([]byte, error) {
	r.reads++
	b, ok := r.docs[ref]
	switch {
	case r.err != nil:
		return nil, r.err
	case !ok:
		return nil, ErrNotFound
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return b, nil
}

func (r *repository) Manifest(_ context.Context, ref string, limit int64) ([]byte, error) {
	return r.get(ref, limit)
}

func (r *repository) Blob(_ context.Context, d digest.Digest, limit int64) ([]byte, error) {
	return r.get(d.String(), limit)
}

func (r *repository) Referrers(context.Context, digest.Digest, int64) ([]byte, error) {
	if r.referrers == nil {
		return nil, ErrNotFound
	}
	return r.referrers, nil
}

func (r *repository) add(b []byte) digest.Digest {
	d := digest.FromBytes(b)
	r.docs[d.String()] = b
	return d
}

// referrer adds a manifest that refers to an image, and returns its descriptor in a list.
func (r *repository) referrer(artifactType, predicate, layerType string, layer []byte) ocispec.Descriptor {
	notes := map[string]string{predicateAnnotation: predicate}
	m := mustJSON(ocispec.Manifest{
		ArtifactType: artifactType, Annotations: notes, Layers: []ocispec.Descriptor{{MediaType: layerType, Digest: r.add(layer)}},
	})
	return ocispec.Descriptor{Digest: r.add(m), ArtifactType: artifactType, Annotations: notes}
}

func newRepository() *repository { return &repository{docs: make(map[string][]byte)} }

func signaturesIn(t *testing.T, r *repository, forms Form) ([]Signature, error) {
	t.Helper()
	src := &Registry{Open: func(context.Context, reference.Named) (Repository, error) { return r, nil }}
	return src.Signatures(t.Context(), mustName(t, "r.io/a:1"), sumA, forms)
}

func TestRegistryReferrers(t *testing.T) {
	for _, byTag := range []bool{false, true} {
		r := newRepository()
		list := []ocispec.Descriptor{
			r.referrer(bundleType, signType, bundleType, []byte("bundle")),
			r.referrer(bundleType, "https://slsa.dev/provenance/v1", bundleType, []byte("statement")),
			r.referrer("application/spdx+json", "", bundleType, []byte("other")),
			r.referrer("application/vnd.dev.cosign.artifact.sig.v1+json", "", payloadType, []byte("payload")),
			{Digest: sumB, ArtifactType: bundleType}, // removed
		}
		index := mustJSON(ocispec.Index{Manifests: list})
		if byTag {
			r.docs[strings.Replace(sumA.String(), ":", "-", 1)] = index
		} else {
			r.referrers = index
		}
		found, err := signaturesIn(t, r, Attachment|Bundle)
		if err != nil || len(found) != 2 || string(found[0].Data) != "bundle" || found[0].Form != Bundle ||
			string(found[1].Data) != "payload" || found[1].Form != Attachment {
			t.Errorf("by tag %v: %v, %v", byTag, found, err)
		}
	}
}

// TestRegistryBounds: a repository with very many or very large signatures costs little.
func TestRegistryBounds(t *testing.T) {
	const many = 10_000
	index := func(r *repository, predicate string) {
		var list []ocispec.Descriptor
		for i := range many {
			list = append(list, r.referrer(bundleType, predicate, bundleType, fmt.Append(nil, i)))
		}
		r.referrers = mustJSON(ocispec.Index{Manifests: list})
	}
	r := newRepository()
	index(r, "https://slsa.dev/provenance/v1")
	if found, err := signaturesIn(t, r, Bundle); err != nil || len(found) > 0 || r.reads > 2 {
		t.Errorf("%d statements: %d signatures, %v, %d reads", many, len(found), err, r.reads)
	}
	r = newRepository()
	index(r, signType)
	if _, err := signaturesIn(t, r, Bundle); err == nil || r.reads > 2 {
		t.Errorf("%d signatures: %v, %d reads", many, err, r.reads)
	}
	r = newRepository()
	m := ocispec.Manifest{}
	for i := range maxSignatures + 1 {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: payloadType, Digest: r.add(fmt.Append(nil, i))})
	}
	r.docs[strings.Replace(sumA.String(), ":", "-", 1)+".sig"] = mustJSON(m)
	if _, err := signaturesIn(t, r, Attachment); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("%d attachments: %v", len(m.Layers), err)
	}
	r = newRepository()
	large := r.referrer(bundleType, signType, bundleType, bytes.Repeat([]byte("x"), maxSignature+1))
	r.referrers = mustJSON(ocispec.Index{Manifests: []ocispec.Descriptor{large}})
	if _, err := signaturesIn(t, r, Bundle); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a large signature: %v", err)
	}
}

// TestRegistryFails: what cannot be read is not absent.
func TestRegistryFails(t *testing.T) {
	r := newRepository()
	r.err = errors.New("the registry is down")
	for _, form := range []Form{Attachment, Bundle} {
		if _, err := signaturesIn(t, r, form); !errors.Is(err, r.err) {
			t.Errorf("%s: %v", form, err)
		}
	}
}

// endless is a body without an end. It counts what is sent.
type endless struct{ sent atomic.Int64 }

func (e *endless) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	chunk := make([]byte, 1<<16)
	for e.sent.Load() < 1<<30 {
		n, err := w.Write(chunk)
		e.sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// TestPlacesFail: a directory that cannot be read is no empty one.
func TestPlacesFail(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadPlaces(filepath.Join(dir, "none")); err != nil {
		t.Errorf("no directory: %v", err)
	}
	for _, name := range []string{"file", "[odd]/a.yaml"} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte("}"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"file", "[odd]"} {
		if p, err := LoadPlaces(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: got %+v, want an error", name, p)
		}
	}
	if err := os.Symlink("lost", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if p, err := LoadPlaces(filepath.Join(dir, "link")); err == nil {
		t.Errorf("a link that leads nowhere: got %+v, want an error", p)
	}
}

func TestLookaside(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	files := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer files.Close()
	big := &endless{}
	server := httptest.NewServer(big)
	defer server.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer broken.Close()
	at := "@" + strings.Replace(sumA.String(), ":", "=", 1) + "/signature-"
	for _, repo := range []string{"files/a", "dir/a"} {
		write(repo+at+"1", "one")
		write(repo+at+"2", "two")
		write(repo+at+"4", "not reached")
	}
	write("conf/a.yaml", "default-docker: {lookaside: 'file://"+dir+"'}\ndocker:\n  h.io: {lookaside: '"+files.URL+"'}\n"+
		"  big.io: {sigstore: '"+server.URL+"'}\n  broken.io: {lookaside: '"+broken.URL+"'}\n  ftp.io: {lookaside: 'ftp://x'}\n"+
		"  h.io/off: {use-sigstore-attachments: false}\n")
	places, err := LoadPlaces(filepath.Join(dir, "conf"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"h.io/files/a": "one two", "r.io/dir/a": "one two", "r.io/none": "", "big.io/a": "error more than",
		"broken.io/a": "error 502", "ftp.io/a": "error the scheme is not",
	} {
		list, err := places.lookaside(t.Context(), mustName(t, name), sumA)
		var texts []string
		for _, s := range list {
			texts = append(texts, string(s.Data))
		}
		got := strings.Join(texts, " ")
		if text, ok := strings.CutPrefix(want, "error "); ok {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: error is %v, want %q", name, err, text)
			}
		} else if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if sent := big.sent.Load(); sent > 64<<20 {
		t.Errorf("%d bytes of an endless signature were sent", sent)
	}
	if places.attachments(mustName(t, "h.io/off:1")) || !places.attachments(mustName(t, "h.io/on:1")) {
		t.Error("use-sigstore-attachments is not heeded")
	}
	write("conf/b.yaml", "docker: {h.io: {lookaside: 'file:///x'}}\n")
	if _, err := LoadPlaces(filepath.Join(dir, "conf")); err == nil || !strings.Contains(err.Error(), `"h.io" too`) {
		t.Errorf("a scope in two files: %v", err)
	}
}
