package commitsig

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

// A gnupg is a home directory of GnuPG.
type gnupg struct {
	t    *testing.T
	home string
}

func newGnuPG(t *testing.T) *gnupg {
	t.Helper()
	home, err := os.MkdirTemp("", "gpg") // short: the agent's socket is in it
	testenv.Must(t, err)
	g := &gnupg{t, home}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		testenv.Must(t, os.RemoveAll(home))
	})
	return g
}

func (g *gnupg) run(stdin []byte, args ...string) []byte {
	g.t.Helper()
	args = append([]string{"--homedir", g.home, "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)
	var stderr bytes.Buffer
	cmd := exec.CommandContext(g.t.Context(), "gpg", args...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("gpg %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

func clock(at time.Time) []string {
	return []string{"--faked-system-time", at.UTC().Format("20060102T150405") + "!"}
}

// at runs a command at another time.
func (g *gnupg) at(when time.Time, args ...string) {
	g.t.Helper()
	g.run(nil, append(clock(when), args...)...)
}

func address(name string) string { return name + "@keys.example" }

// generate makes a key, and returns its fingerprint.
func (g *gnupg) generate(name, algorithm, usage, expire string, when time.Time) string {
	g.t.Helper()
	g.at(when, "--quick-gen-key", name+" <"+address(name)+">", algorithm, usage, expire)
	for line := range strings.Lines(string(g.run(nil, "--list-keys", "--with-colons", "="+name+" <"+address(name)+">"))) {
		if fields := strings.Split(line, ":"); fields[0] == "fpr" {
			return fields[9]
		}
	}
	g.t.Fatalf("gpg has not made key %s", name)
	return ""
}

// sign returns a signature of data.
func (g *gnupg) sign(data []byte, name string, when time.Time, args ...string) []byte {
	g.t.Helper()
	args = append(append(clock(when), "--local-user", "="+name+" <"+address(name)+">"), args...)
	return g.run(data, append(args, "--detach-sign", "--output", "-")...)
}

// export returns a public key.
func (g *gnupg) export(name string, args ...string) string {
	g.t.Helper()
	return string(g.run(nil, append(args, "--export", "="+name+" <"+address(name)+">")...))
}

// revoke revokes a key by the certificate that was made with it.
func (g *gnupg) revoke(fingerprint string) {
	g.t.Helper()
	text, err := os.ReadFile(filepath.Join(g.home, "openpgp-revocs.d", fingerprint+".rev"))
	testenv.Must(g.t, err)
	g.run(bytes.ReplaceAll(text, []byte(":---"), []byte("---")), "--import")
}

// edit edits a key.
func (g *gnupg) edit(fingerprint, commands string) {
	g.t.Helper()
	g.run([]byte(commands), "--command-fd", "0", "--edit-key", fingerprint)
}

// opensslKey makes an ed25519 key.
func opensslKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	block, _ := pem.Decode([]byte(run(t, "openssl", "genpkey", "-algorithm", "ed25519")))
	if block == nil {
		t.Fatal("openssl has not made a key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	testenv.Must(t, err)
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		t.Fatalf("openssl has made a key of type %T", key)
	}
	return ed
}

// opensslSign returns OpenSSL's signature of data.
func opensslSign(t *testing.T, key ed25519.PrivateKey, data []byte) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	testenv.Must(t, err)
	dir := t.TempDir()
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "data"), data, 0o600))
	run(t, "openssl", "pkeyutl", "-sign", "-rawin", "-inkey", filepath.Join(dir, "key"), "-in", filepath.Join(dir, "data"), "-out", filepath.Join(dir, "sig"))
	sig, err := os.ReadFile(filepath.Join(dir, "sig"))
	testenv.Must(t, err)
	if len(sig) != ed25519.SignatureSize {
		t.Fatal(fmt.Errorf("openssl has made a signature of %d bytes", len(sig)))
	}
	return sig
}
