package testhost

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Signer has a key, and signs images with cosign 2.
type Signer struct {
	cosign string
	dir    string
}

// NewSigner makes a key in a directory.
func NewSigner(ctx context.Context, log io.Writer, dir string) (*Signer, error) {
	programs, err := Cosign2(ctx, log)
	if err != nil {
		return nil, err
	}
	s := &Signer{filepath.Join(programs, "cosign"), dir}
	return s, s.run(ctx, "generate-key-pair")
}

func (s *Signer) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.cosign, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cosign %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Sign signs the image that a name in a registry without TLS stands for.
func (s *Signer) Sign(ctx context.Context, image string) error {
	return s.run(ctx, "sign", "--key", "cosign.key", "--tlog-upload=false", "--allow-http-registry", "--yes", image)
}

// Policy returns a policy that demands a signature by the key for a repository, and rejects all others. The signature names
// the repository as it was signed.
func (s *Signer) Policy(repository, signedAs string) (string, error) {
	key, err := os.ReadFile(filepath.Join(s.dir, "cosign.pub"))
	if err != nil {
		return "", err
	}
	type object = map[string]any
	text, err := json.Marshal(object{
		"default": []object{{"type": "reject"}},
		"transports": object{"docker": object{repository: []object{{
			"type": "sigstoreSigned", "keyData": base64.StdEncoding.EncodeToString(key),
			"signedIdentity": object{"type": "exactRepository", "dockerRepository": signedAs},
		}}}},
	})
	return string(text), err
}
