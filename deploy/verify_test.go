package deploy

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/nativetest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// verifierFunc is a policy.
type verifierFunc func(manifest, index digest.Digest, known bool) (*Verdict, error)

func (f verifierFunc) Verify(_ context.Context, _ string, manifest, index digest.Digest, known bool) (*Verdict, error) {
	return f(manifest, index, known)
}

var signKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// addRemote gives a system's repository the ostree remote "vendor", whose key is signKey.
func addRemote(t *testing.T, s *System) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(s.Path, "ostree/repo/config"), os.O_APPEND|os.O_WRONLY, 0)
	testenv.Must(t, err)
	key := base64.StdEncoding.EncodeToString(signKey.Public().(ed25519.PublicKey))
	_, err = f.WriteString("\n[remote \"vendor\"]\ngpg-verify=false\nsign-verify=ed25519\nverification-ed25519-key=" + key + "\n[remote \"broken\"]\ngpg-verify=perhaps\n")
	testenv.Must(t, err)
	testenv.Must(t, f.Close())
}

// signedImage is an image with a commit inside, which key has signed, nil for nobody, and with layers above.
func (b *bed) signedImage(t *testing.T, name string, key ed25519.PrivateKey, above ...nativetest.Layer) *Image {
	t.Helper()
	from := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, from, "os", nativeTree())
	layers := nativetest.Encapsulate(t, from, sum, inside, byName)
	if key != nil {
		object, err := from.ReadMetadata(objectstore.TypeCommit, sum)
		testenv.Must(t, err)
		sig := ed25519.Sign(key, object)
		list := gvariant.AppendArray(nil, 1, 1, func(b []byte, _ int) []byte { return append(b, sig...) })
		meta := gvariant.AppendDict(nil, []gvariant.Entry{{Key: "ostree.sign.ed25519", Value: gvariant.Variant{Type: "aay", Data: list}}})
		layers[0] = append(layers[0], nativetest.File(nativetest.ObjectPath(sum, objectstore.TypeCommitMeta), string(meta), 0o644))
	}
	return b.nativeImage(t, name, sum, append(layers, above...)...)
}

// TestCommitDemand: a reference with an ostree remote takes only images whose commit it has signed, and the demand stays.
func TestCommitDemand(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	addRemote(t, s)
	other := ed25519.NewKeyFromSeed([]byte(strings.Repeat("x", ed25519.SeedSize)))
	above := nativetest.Layer{nativetest.File("etc/new", "new", 0o644)}
	const name = "example.org/native:1"
	demand := &Reference{Name: name, Demand: DemandCommit, Remote: "vendor"}
	covers := verifierFunc(func(digest.Digest, digest.Digest, bool) (*Verdict, error) {
		return &Verdict{Rule: "r", Time: time.Now(), Signers: []Signer{{Key: "policy's"}}}, nil
	})
	accepts := verifierFunc(func(digest.Digest, digest.Digest, bool) (*Verdict, error) {
		return &Verdict{Rule: "r", Time: time.Now()}, nil
	})
	before := refs(t, s.Repo())
	for text, r := range map[string]Request{
		"commit is not signed":                    {Image: b.signedImage(t, name, nil), Reference: demand},
		"no signature of the commit is accepted":  {Image: b.signedImage(t, name, other), Reference: demand},
		"not the layers above it":                 {Image: b.signedImage(t, name, signKey, above), Reference: demand},
		"the layers above it":                     {Image: b.signedImage(t, name, signKey, above), Reference: demand, Verifier: accepts},
		"it has none inside":                      {Image: b.osImage(t), Reference: demand, Verifier: covers},
		"commit is not signed: remote vendor dem": {Image: b.signedImage(t, name, nil, above), Reference: demand, Verifier: covers},
	} {
		_, err := s.Plan(t.Context(), b.load(t, s), b.layers, r)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want a refusal with %q", err, text)
		}
	}
	for _, remote := range []string{"absent", "broken"} {
		_, err := s.Plan(t.Context(), b.load(t, s), b.layers, Request{
			Image: b.signedImage(t, name, signKey), Reference: &Reference{Name: name, Demand: DemandCommit, Remote: remote},
		})
		if !errors.Is(err, ErrRemote) || errors.Is(err, ErrRefused) {
			t.Errorf("remote %s: got %v, want an error of the remote, not of the image", remote, err)
		}
	}
	if after := refs(t, s.Repo()); len(after) != len(before) || len(contentObjects(t, s.Repo())) != 0 {
		t.Errorf("refused images have left refs %q and %d objects", after, len(contentObjects(t, s.Repo())))
	}

	p := b.deploy(t, s, Request{Image: b.signedImage(t, name, signKey), Reference: demand})
	if text, _ := p.New.ImageReference(); text != "ostree-remote-image:vendor:docker://"+name {
		t.Errorf("origin: got %s", text)
	}
	if v := VerdictOf(b.load(t, s).Default()); v == nil || v.Remote != "vendor" || len(v.Signers) != 1 || !strings.HasPrefix(v.Signers[0].Key, "ed25519 ") {
		t.Errorf("verdict in the origin: got %+v", v)
	}
	// A plain name keeps the demand.
	if _, err := s.Plan(t.Context(), b.load(t, s), b.layers, Request{Image: b.signedImage(t, "example.org/other:1", nil)}); !errors.Is(err, ErrRefused) {
		t.Errorf("another image by its name: got %v, want a refusal", err)
	}
	p = b.deploy(t, s, Request{Image: b.signedImage(t, name, signKey, above), Verifier: covers})
	if v := VerdictOf(p.New); v == nil || v.Rule != "r" || len(v.Signers) != 2 {
		t.Errorf("verdict of an image that the policy covers: got %+v", v)
	}
	dropped := &Reference{Name: name}
	if p = b.deploy(t, s, Request{Image: b.signedImage(t, name, nil), Reference: dropped}); VerdictOf(p.New) != nil {
		t.Errorf("without a demand: got verdict %+v", VerdictOf(p.New))
	}
}

// TestPolicyDemand: the policy is asked by digest, before anything is written.
func TestPolicyDemand(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	img := b.osImage(t)
	img.Target = "sha256:index"
	errPolicy := errors.New("refused by the policy")
	asked := 0
	refuse := verifierFunc(func(manifest, index digest.Digest, known bool) (*Verdict, error) {
		if asked++; manifest != img.ManifestDigest || index != "sha256:index" || !known {
			t.Errorf("asked for %s in %s, known %t", manifest, index, known)
		}
		return nil, errPolicy
	})
	signed := &Reference{Name: img.Name, Demand: DemandPolicy}
	if _, err := s.Plan(t.Context(), b.load(t, s), b.layers, Request{Image: img, Reference: signed, Verifier: refuse}); !errors.Is(err, errPolicy) || asked != 1 {
		t.Errorf("got %v after %d questions, want the policy's refusal", err, asked)
	}
	if n := len(contentObjects(t, s.Repo())); n != 0 {
		t.Errorf("a refused image has left %d objects", n)
	}
	if _, err := s.Plan(t.Context(), b.load(t, s), b.layers, Request{Image: img, Reference: signed}); !errors.Is(err, ErrRefused) {
		t.Errorf("without a policy: got %v, want a refusal", err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if _, err := PlanInstall(t.Context(), b.layers, disk, InstallRequest{Image: img, Reference: signed, Verifier: refuse}); !errors.Is(err, errPolicy) {
		t.Errorf("install: got %v, want the policy's refusal", err)
	}
}

// TestRefusal: the running system remembers a refused image until another one is deployed.
func TestRefusal(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	if err := s.Refuse(Refusal{Stateroot: "os"}); err != nil {
		t.Errorf("a system that does not run: %v", err)
	}
	s.run = objecttest.OpenDir(t, t.TempDir())
	if r, err := s.LastRefusal(); err != nil || r != nil {
		t.Errorf("before: got %+v, %v", r, err)
	}
	testenv.Must(t, s.Refuse(Refusal{Stateroot: "os", Image: "example.org/os:1", Reason: strings.Repeat("r", 1<<20)}))
	r, err := s.LastRefusal()
	if err != nil || r == nil || r.Image != "example.org/os:1" || len(r.Reason) != maxReason || time.Since(r.Time) > time.Minute {
		t.Errorf("got %+v, %v", r, err)
	}
	testenv.Must(t, s.accept("other"))
	if r, err := s.LastRefusal(); err != nil || r == nil {
		t.Errorf("after a deployment in another stateroot: got %+v, %v", r, err)
	}
	b.deploy(t, s, Request{Image: b.osImage(t)})
	if r, err := s.LastRefusal(); err != nil || r != nil {
		t.Errorf("after a deployment: got %+v, %v", r, err)
	}
	testenv.Must(t, s.run.WriteFile(refusalFile, []byte("{"), 0o644, false))
	if r, err := s.LastRefusal(); err == nil || r != nil {
		t.Errorf("a damaged record: got %+v, %v", r, err)
	}
	testenv.Must(t, s.accept("os"))
	if r, err := s.LastRefusal(); err != nil || r != nil {
		t.Errorf("a damaged record after a deployment: got %+v, %v", r, err)
	}
}
