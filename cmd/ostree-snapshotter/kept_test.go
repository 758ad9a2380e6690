package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// signedRegistry serves one image and a bundle that signs it.
func signedRegistry(t *testing.T, manifest []byte, key ed25519.PrivateKey) *httptest.Server {
	t.Helper()
	payload := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://sigstore.dev/cosign/sign/v1","subject":[{"digest":{"sha256":%q}}]}`,
		digest.FromBytes(manifest).Encoded())
	const payloadType = "application/vnd.in-toto+json"
	pae := fmt.Sprintf("DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		testenv.Must(t, err)
		return b
	}
	const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	bundle := encode(map[string]any{"mediaType": bundleType, "verificationMaterial": map[string]any{}, "dsseEnvelope": map[string]any{
		"payload": payload, "payloadType": payloadType, "signatures": []any{map[string]any{"sig": ed25519.Sign(key, []byte(pae))}},
	}})
	referrer := encode(ocispec.Manifest{ArtifactType: bundleType, Layers: []ocispec.Descriptor{{MediaType: bundleType, Digest: digest.FromBytes(bundle)}}})
	index := encode(ocispec.Index{Manifests: []ocispec.Descriptor{{ArtifactType: bundleType, Digest: digest.FromBytes(referrer)}}})
	docs := map[string][]byte{
		"manifests/1": manifest, "manifests/" + digest.FromBytes(manifest).String(): manifest,
		"manifests/" + digest.FromBytes(referrer).String(): referrer, "blobs/" + digest.FromBytes(bundle).String(): bundle,
		"referrers/" + digest.FromBytes(manifest).String(): index,
	}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := docs[strings.TrimPrefix(r.URL.Path, "/v2/os/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b)
	}))
}

// TestKeptSignatures: an image that was checked once is checked again without its registry, by the signatures that are kept
// with it; one that was not checked is not accepted then.
func TestKeptSignatures(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	pub, key, err := ed25519.GenerateKey(nil)
	testenv.Must(t, err)
	der, err := x509.MarshalPKIXPublicKey(pub)
	testenv.Must(t, err)
	keyFile, policy := filepath.Join(dir, "key.pub"), filepath.Join(dir, "policy.json")
	testenv.Must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	testenv.Must(t, os.WriteFile(policy, []byte(`{"default":[{"type":"sigstoreSigned","keyPath":"`+keyFile+`"}]}`), 0o600))

	s := containerdtest.New(t)
	manifest := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `"}`)
	dgst := s.Blob(ocispec.MediaTypeImageManifest, manifest).Digest
	client, err := containerd.Dial(s.Address)
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, client.Close()) })

	registry := signedRegistry(t, manifest, key)
	name := strings.TrimPrefix(registry.URL, "http://") + "/os:1"
	var notes bytes.Buffer
	check := func(client *containerd.Client, readOnly bool) error {
		v := (&cli{stderr: &notes}).newVerifier(new(cobra.Command), &verifyFlags{policyFlags: policyFlags{policy, dir}})
		v.keepIn(&imageSource{client: client, namespace: "default"}, readOnly)
		_, err := v.Verify(t.Context(), name, dgst, "", false)
		return err
	}
	testenv.Must(t, check(client, true))
	if doc, err := client.KeptSignatures(t.Context(), "default", dgst); doc != nil || err != nil {
		t.Errorf("a dry run has kept %q, %v", doc, err)
	}
	closed, err := containerd.Dial(s.Address)
	testenv.Must(t, err)
	testenv.Must(t, closed.Close())
	testenv.Must(t, check(closed, false))
	if got := notes.String(); strings.Count(got, "signatures are not kept with the image") != 1 {
		t.Errorf("without containerd: notes %q, want that the signatures are not kept with the image", got)
	}
	var out bytes.Buffer
	c := cli{stdout: &out, stderr: &out}
	if status := c.execute(t.Context(), []string{"image", "verify", "--keep", "--signature-policy", policy, "--registries.d", dir, "-a", s.Address, name}); status != exitOK {
		t.Fatalf("image verify --keep: exit status %d, %s", status, out.String())
	}
	kept, err := client.KeptSignatures(t.Context(), "default", dgst)
	testenv.Must(t, err)
	registry.Close()
	testenv.Must(t, check(client, false)) // without the registry

	testenv.Must(t, client.KeepSignatures(t.Context(), "default", dgst, bytes.Replace(kept, []byte(`"data":"`), []byte(`"data":"AAAA`), 1)))
	if err := check(client, false); !errors.As(err, new(*signature.SourceError)) {
		t.Errorf("damaged kept signatures and no registry: error is %v", err)
	}
}
