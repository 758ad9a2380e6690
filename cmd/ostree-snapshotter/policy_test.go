package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// TestDryRunRefuses: what the policy refuses, a dry run without a system refuses too.
func TestDryRunRefuses(t *testing.T) {
	b := newImageBed(t)
	name := b.osImage(t).Name
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.json")
	testenv.Must(t, os.WriteFile(policy, []byte(`{"default":[{"type":"reject"}]}`), 0o600))
	status, out, errs := b.run(t, "deploy", "--init", "--dry-run", "--sysroot", dir, "--signature-policy", policy, name)
	if status != exitRefused || out != "" || !strings.Contains(errs, `is refused by rule "default"`) {
		t.Errorf("got status %d, %q, %q, want %d", status, out, errs, exitRefused)
	}
}

// TestRefusedMakesNothing: an image that the policy refuses leaves neither a sysroot nor a stateroot.
func TestRefusedMakesNothing(t *testing.T) {
	b := newImageBed(t)
	name := b.osImage(t).Name
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.json")
	testenv.Must(t, os.WriteFile(policy, []byte(`{"default":[{"type":"reject"}]}`), 0o600))
	parent := openDir(t, t.TempDir())
	sys := filepath.Join(parent.Path(), "sys")
	testenv.Must(t, os.Mkdir(sys, 0o755))
	t.Cleanup(func() { testenv.Must(t, parent.RemoveAll("sys")) }) // deployments are immutable
	init := func(want int, flags ...string) {
		t.Helper()
		args := append([]string{"deploy", "--init", "--sysroot", sys, name}, flags...)
		if status, _, errs := b.run(t, args...); status != want {
			t.Errorf("%q: got status %d, %s, want %d", flags, status, errs, want)
		}
	}
	init(exitRefused, "--signature-policy", policy)
	if list, err := os.ReadDir(sys); err != nil || len(list) != 0 {
		t.Errorf("a refused image has left %v, %v", list, err)
	}
	init(exitOK)
	init(exitRefused, "--signature-policy", policy, "--stateroot", "other")
	if _, err := os.Stat(filepath.Join(sys, "ostree/deploy/other")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused image has left a stateroot: %v", err)
	}
}

// TestSignatureHints: a hint names the tool that makes the signature that a rule demands, and the file that is missing.
func TestSignatureHints(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.json")
	name, err := signature.ParseName("r.io/os:1")
	testenv.Must(t, err)
	img := signature.Image{Name: name, Digest: digest.FromString("os")}
	key := filepath.Join(dir, "key")
	testenv.Must(t, os.WriteFile(key, pemKey(t), 0o600))
	for _, c := range []struct{ requirement, want string }{
		{`{"type":"sigstoreSigned","keyPath":"` + key + `"}`, "cosign sign"},
		{`{"type":"signedBy","keyType":"GPGKeys","keyPath":"../../deploy/commitsig/testdata/key.gpg"}`, "skopeo copy --sign-by"},
		{`{"type":"sigstoreSigned","keyPath":"` + key + `.lost"}`, "a key"},
	} {
		testenv.Must(t, os.WriteFile(file, []byte(`{"default":[`+c.requirement+`]}`), 0o600))
		p, err := signature.LoadPolicy(file)
		testenv.Must(t, err)
		v, err := signature.Verify(t.Context(), p, img, signature.Kept{})
		if err == nil {
			err = v.Err()
		}
		if hint := hintFor(err); !strings.Contains(hint, c.want) {
			t.Errorf("%v: hint is %q, want %q", err, hint, c.want)
		}
	}
	_, err = signature.LoadPolicy(filepath.Join(dir, "none"))
	if hint := hintFor(err); !strings.Contains(hint, "--signature-policy names") {
		t.Errorf("%v: hint is %q", err, hint)
	}
}

// pemKey returns a public key.
func pemKey(t *testing.T) []byte {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(nil)
	testenv.Must(t, err)
	der, err := x509.MarshalPKIXPublicKey(pub)
	testenv.Must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}
