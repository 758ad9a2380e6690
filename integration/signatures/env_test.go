package signatures

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A host is shared by all tests.
type host struct {
	dir      string
	binary   string
	signers  string // directory with skopeo, podman and cosign 3
	cosign2  string // directory with cosign 2
	tools    *testhost.Tools
	registry *stack.Registry

	env  []string
	gpg  map[string]string // fingerprints
	keys map[string]*ecdsa.PrivateKey
}

// shared is nil if the tests are skipped.
var shared *host

func TestMain(m *testing.M) {
	testenv.Main(m, func(ctx context.Context) error {
		shared = &host{gpg: make(map[string]string), keys: make(map[string]*ecdsa.PrivateKey)}
		return shared.prepare(ctx)
	}, func() error { return shared.close() })
}

func (h *host) prepare(ctx context.Context) (err error) {
	if h.dir, err = os.MkdirTemp("", "oss"); err != nil {
		return err
	}
	if err := testhost.InstallPackages(ctx, os.Stderr); err != nil {
		return err
	}
	if h.tools, err = testhost.BuildTools(ctx, os.Stderr); err != nil {
		return err
	}
	if h.signers, err = testhost.Signers(ctx, os.Stderr); err != nil {
		return err
	}
	if h.cosign2, err = testhost.Cosign2(ctx, os.Stderr); err != nil {
		return err
	}
	if h.binary, err = testhost.BuildBinary(ctx, h.dir); err != nil {
		return err
	}
	if h.registry, err = stack.StartRegistry(ctx, h.tools); err != nil {
		return err
	}
	return h.makeFiles(ctx)
}

func (h *host) close() error {
	var errs []error
	if len(h.gpg) > 0 {
		_, err := h.run(context.Background(), "gpgconf", "--kill", "all")
		errs = append(errs, err)
	}
	if h.registry != nil {
		errs = append(errs, h.registry.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}

// run runs a program in the tests' directory.
func (h *host) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = h.dir
	cmd.Env = append(os.Environ(), h.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// makeFiles makes the keys, and the files by which the programs find signatures.
func (h *host) makeFiles(ctx context.Context) error {
	home := filepath.Join(h.dir, "home")
	h.env = []string{
		"HOME=" + home, "GNUPGHOME=" + filepath.Join(h.dir, "gnupg"), "COSIGN_PASSWORD=", "PODMAN_IGNORE_CGROUPSV1_WARNING=1",
		"CONTAINERS_CONF=" + filepath.Join(h.dir, "containers.conf"),
	}
	root := filepath.Join(h.signers, "root")
	files := map[string]string{
		"home/.config/containers/registries.d/default.yaml": "default-docker:\n  use-sigstore-attachments: true\n  lookaside: file://" + h.dir + "/lookaside\n",
		"gnupg/gpg.conf": "",
		"containers.conf": fmt.Sprintf("[engine]\nconmon_path=[%q]\nhelper_binaries_dir=[%q]\nruntime=\"crun\"\n[engine.runtimes]\ncrun=[%q]\n[network]\nnetwork_backend=\"netavark\"\n",
			root+"/usr/bin/conmon", root+"/usr/lib/podman", root+"/usr/bin/crun"),
	}
	for name, text := range files {
		if err := h.write(name, []byte(text)); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(h.dir, "gnupg"), 0o700); err != nil {
		return err
	}
	for _, k := range []string{"k1", "k2", "k3"} {
		if _, err := h.run(ctx, h.cosign2+"/cosign", "generate-key-pair", "--output-key-prefix", k); err != nil {
			return err
		}
	}
	for _, k := range []string{"g1", "g2"} {
		if _, err := h.run(ctx, "gpg", "--batch", "--passphrase", "", "--quick-gen-key", k+"@example.org", "ed25519", "sign"); err != nil {
			return err
		}
		out, err := h.run(ctx, "gpg", "--batch", "--with-colons", "--fingerprint", k+"@example.org")
		if err != nil {
			return err
		}
		_, fpr, _ := strings.Cut(out, "\nfpr:::::::::")
		h.gpg[k], _, _ = strings.Cut(fpr, ":")
		if _, err := h.run(ctx, "gpg", "--batch", "--armor", "--output", filepath.Join(h.dir, k+".asc"), "--export", h.gpg[k]); err != nil {
			return err
		}
	}
	for _, k := range []string{"own", "rekor", "ca", "otherca"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		h.keys[k] = key
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return err
		}
		if err := h.write(k+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})); err != nil {
			return err
		}
	}
	for _, ca := range []string{"ca", "otherca"} {
		if err := h.write(ca+".pem", h.cert(ca, nil)); err != nil {
			return err
		}
	}
	return nil
}

func (h *host) write(name string, data []byte) error {
	name = filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}

// cert returns a certificate in PEM of the key "own" by an authority, or that of the authority itself.
func (h *host) cert(ca string, change func(*x509.Certificate)) []byte {
	key := h.keys[ca]
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: ca}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	leaf, pub := root, key.Public()
	if change != nil {
		leaf = &x509.Certificate{
			SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
			EmailAddresses:  []string{"dev@example.org"},
			ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte("https://id.example.org")}},
		}
		pub = h.keys["own"].Public()
		change(leaf)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, pub, key)
	if err != nil {
		panic(err) // the templates are constant
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// An env is what one case works with: a repository of its own.
type env struct {
	*host
	t    *testing.T
	repo string // registry and path
}

func (e *env) path() string { return strings.TrimPrefix(e.repo, e.registry.Address+"/") }

func (e *env) must(name string, args ...string) string {
	e.t.Helper()
	out, err := e.run(e.t.Context(), name, args...)
	testenv.Must(e.t, err)
	return out
}

func (e *env) put(path, path2, mediaType string, data []byte) {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), http.MethodPut, "http://"+e.registry.Address+"/v2/"+path+path2, bytes.NewReader(data))
	testenv.Must(e.t, err)
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	testenv.Must(e.t, err)
	body, err := io.ReadAll(resp.Body)
	testenv.Must(e.t, err)
	testenv.Must(e.t, resp.Body.Close())
	if resp.StatusCode != http.StatusCreated {
		e.t.Fatalf("put %s: %s: %s", path2, resp.Status, body)
	}
}

// blob pushes a blob, and returns its descriptor.
func (e *env) blob(mediaType string, data []byte) map[string]any {
	e.t.Helper()
	resp, err := http.Post("http://"+e.registry.Address+"/v2/"+e.path()+"/blobs/uploads/", "", http.NoBody)
	testenv.Must(e.t, err)
	testenv.Must(e.t, resp.Body.Close())
	loc := resp.Header.Get("Location")
	_, query, _ := strings.Cut(loc, "/v2/")
	d := digest.FromBytes(data)
	sep := "?"
	if strings.Contains(query, "?") {
		sep = "&"
	}
	e.put("", query+sep+"digest="+d.String(), "application/octet-stream", data)
	return map[string]any{"mediaType": mediaType, "digest": d, "size": len(data)}
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// push pushes an image without layers, and returns its digest. Versions are different images.
func (e *env) push(tag, version string) string {
	e.t.Helper()
	return e.pushManifest(tag, manifestType, e.image(version))
}

func (e *env) image(version string) []byte {
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Labels":{"v":%q}},"rootfs":{"type":"layers","diff_ids":[]}}`, version)
	return marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "layers": []any{},
		"config": e.blob("application/vnd.oci.image.config.v1+json", []byte(config)),
	})
}

func (e *env) pushManifest(tag, mediaType string, m []byte) string {
	e.t.Helper()
	e.put(e.path(), "/manifests/"+tag, mediaType, m)
	return digest.FromBytes(m).String()
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the values are constant
	}
	return b
}

// cosign signs with a release of cosign.
func (e *env) cosign(dir, key, dgst string, args ...string) {
	e.t.Helper()
	args = append([]string{"sign", "--key", key + ".key", "--tlog-upload=false", "--allow-http-registry", "-y"}, args...)
	if dir == e.signers {
		args = append(args, "--use-signing-config=false")
	}
	e.must(dir+"/cosign", append(args, e.repo+"@"+dgst)...)
}

func (e *env) v2(key, dgst string, args ...string) {
	e.t.Helper()
	e.cosign(e.cosign2, key, dgst, args...)
}

func (e *env) v3(key, dgst string, args ...string) {
	e.t.Helper()
	e.cosign(e.signers, key, dgst, args...)
}

// simple signs with skopeo, for a name. The signature is the n-th of an image.
func (e *env) simple(key, name string, manifest []byte, n int) {
	e.t.Helper()
	dgst := digest.FromBytes(manifest)
	e.simpleFor(key, name, manifest, dgst, n)
}

func (e *env) simpleFor(key, name string, manifest []byte, dgst digest.Digest, n int) {
	e.t.Helper()
	testenv.Must(e.t, e.write("manifest", manifest))
	out := filepath.Join("lookaside", e.path()+"@sha256="+dgst.Encoded(), fmt.Sprintf("signature-%d", n))
	testenv.Must(e.t, e.write(out, nil))
	e.must(e.signers+"/skopeo", "standalone-sign", filepath.Join(e.dir, "manifest"), name, e.gpg[key], "-o", filepath.Join(e.dir, out))
}

// An attachment is a signature like cosign's with the key "own".
type attachment struct {
	name   string // that it is for
	digest string
	typ    string // of the payload, if it is not cosign's
	cert   []byte
	chain  []byte
	log    string                  // key of the log that has recorded it
	at     time.Time               // when
	change func(map[string]string) // changes the annotations
	damage bool                    // changes the payload after it is signed
	resign bool                    // replaces the signature by another valid one, after the log has recorded it
	tag    string                  // digest of the image that it is attached to, if it is another
}

func sign(key *ecdsa.PrivateKey, data []byte) []byte {
	sum := sha256.Sum256(data)
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		panic(err) // keys and sums fit
	}
	return sig
}

func (e *env) attach(list ...attachment) {
	e.t.Helper()
	var layers []any
	tag := ""
	for _, a := range list {
		typ := a.typ
		if typ == "" {
			typ = "cosign container image signature"
		}
		payload := marshal(map[string]any{"optional": nil, "critical": map[string]any{
			"type": typ, "image": map[string]string{"docker-manifest-digest": a.digest}, "identity": map[string]string{"docker-reference": a.name},
		}})
		sig := sign(e.keys["own"], payload)
		notes := map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
		if a.cert != nil {
			notes["dev.sigstore.cosign/certificate"] = string(a.cert)
		}
		if a.chain != nil {
			notes["dev.sigstore.cosign/chain"] = string(a.chain)
		}
		if a.log != "" {
			notes["dev.sigstore.cosign/bundle"] = string(e.entry(a, payload, sig))
		}
		if a.resign {
			notes["dev.cosignproject.cosign/signature"] = base64.StdEncoding.EncodeToString(sign(e.keys["own"], payload))
		}
		if a.change != nil {
			a.change(notes)
		}
		if a.damage {
			payload = bytes.Replace(payload, []byte(`"optional":null`), []byte(`"optional":{}`), 1)
		}
		l := e.blob("application/vnd.dev.cosign.simplesigning.v1+json", payload)
		l["annotations"] = notes
		layers = append(layers, l)
		if tag = a.tag; tag == "" {
			tag = a.digest
		}
	}
	e.pushManifest(strings.Replace(tag, ":", "-", 1)+".sig", manifestType, marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "layers": layers,
		"config": e.blob("application/vnd.oci.image.config.v1+json", []byte("{}")),
	}))
}

// entry returns a log's entry for an attachment.
func (e *env) entry(a attachment, payload, sig []byte) []byte {
	verifier := a.cert
	if verifier == nil {
		b, err := os.ReadFile(filepath.Join(e.dir, "own.pub"))
		testenv.Must(e.t, err)
		verifier = b
	}
	sum := sha256.Sum256(payload)
	body := marshal(map[string]any{"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": map[string]any{
		"data":      map[string]any{"hash": map[string]string{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
		"signature": map[string]any{"content": sig, "publicKey": map[string]any{"content": verifier}},
	}})
	at := a.at
	if at.IsZero() {
		at = time.Now()
	}
	// The log signs canonical JSON: maps are encoded with sorted keys.
	p := marshal(map[string]any{"body": body, "integratedTime": at.Unix(), "logID": "ab", "logIndex": 7})
	return marshal(map[string]any{"SignedEntryTimestamp": sign(e.keys[a.log], p), "Payload": json.RawMessage(p)})
}

// start returns the environment of a case.
func start(t *testing.T, repo string) *env {
	t.Helper()
	testenv.SkipShort(t, "needs registries and signers")
	testenv.NeedsRoot(t)
	return &env{host: shared, t: t, repo: shared.registry.Address + "/" + repo}
}
