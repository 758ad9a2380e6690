package commitsig

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Kinds of errors of [Remote.Verify].
var (
	// ErrUnsigned: a commit has no signature of a kind that a remote demands.
	ErrUnsigned = errors.New("commit is not signed")
	// ErrBadSignature: a commit has signatures, and none that a remote accepts.
	ErrBadSignature = errors.New("no signature of the commit is accepted")
)

// A Verdict says which signatures of a commit a remote accepts.
type Verdict struct {
	Remote string
	Keys   []string // that made the signatures: "OpenPGP " and a fingerprint, or "ed25519 " and the key in base64
}

// Verify checks that a commit, the bytes of its object, has a signature of each kind that the remote demands, by a key of
// the remote. meta is its detached metadata, nil if it has none. An OpenPGP signature must be made by a key that is
// neither revoked nor expired now, and must not be expired itself. Errors are ErrUnsigned, ErrBadSignature or ErrInvalid.
func (r *Remote) Verify(commit, meta []byte, now time.Time) (*Verdict, error) {
	sigs, err := Parse(meta)
	if err != nil {
		return nil, err
	}
	v := &Verdict{Remote: r.Name}
	for _, kind := range []struct {
		demanded bool
		name     string
		found    bool
		verify   func() (string, error)
	}{
		{r.gpg, "OpenPGP", len(sigs.GPG) > 0, func() (string, error) {
			return guarded(func() (string, error) { return r.verifyGPG(commit, sigs.GPG, now) })
		}},
		{r.sign, "ed25519", len(sigs.Ed25519) > 0, func() (string, error) { return r.verifyEd25519(commit, sigs.Ed25519) }},
	} {
		if !kind.demanded {
			continue
		}
		if !kind.found {
			return nil, fmt.Errorf("%w: remote %s demands an %s signature", ErrUnsigned, r.Name, kind.name)
		}
		key, err := kind.verify()
		if err != nil {
			return nil, fmt.Errorf("%w: remote %s: %s: %w", ErrBadSignature, r.Name, kind.name, err)
		}
		v.Keys = append(v.Keys, kind.name+" "+key)
	}
	return v, nil
}

// verifyEd25519 returns the key that made a signature.
func (r *Remote) verifyEd25519(commit []byte, sigs [][]byte) (string, error) {
	revoked := false
	for _, key := range r.keys {
		out := slices.ContainsFunc(r.revoked, func(k ed25519.PublicKey) bool { return k.Equal(key) })
		for _, sig := range sigs {
			switch {
			case len(sig) != ed25519.SignatureSize || !ed25519.Verify(key, commit, sig):
			case out:
				revoked = true
			default:
				return base64.StdEncoding.EncodeToString(key), nil
			}
		}
	}
	if revoked {
		return "", errors.New("the key is revoked")
	}
	return "", fmt.Errorf("none of %d signatures is by one of %d keys", len(sigs), len(r.keys))
}

// maxReasons is the number of signatures whose faults an error names.
const maxReasons = 3

// errEnds marks an error of a signature after which GnuPG looks at no other one.
var errEnds = errors.New("")

// verifyGPG returns the fingerprint of a key that made a signature. As GnuPG does for ostree, it looks at no signature after
// one that does not fit the commit or has expired, and at none if there is anything else among them.
func (r *Remote) verifyGPG(commit []byte, sigs [][]byte, now time.Time) (string, error) {
	list, err := splitPackets(bytes.Join(sigs, nil))
	if err != nil {
		return "", err
	}
	if len(list) == 0 {
		return "", errors.New("it is empty")
	}
	var reasons []string
	for _, sig := range list {
		key, err := r.checkGPG(commit, sig, now)
		if err == nil {
			return key, nil
		}
		reasons = append(reasons, err.Error())
		if errors.Is(err, errEnds) {
			break
		}
	}
	if n := len(reasons) - maxReasons; n > 0 {
		reasons = append(reasons[:maxReasons], fmt.Sprintf("and %d more", n))
	}
	return "", errors.New(strings.Join(reasons, "; "))
}

// checkGPG returns the fingerprint of the key that made a signature.
func (r *Remote) checkGPG(commit []byte, sig *packet.Signature, now time.Time) (string, error) {
	if sig.IssuerKeyId == nil {
		return "", errors.New("a signature without the name of its key")
	}
	name := fmt.Sprintf("key %016X", *sig.IssuerKeyId)
	var b bytes.Buffer
	if err := sig.Serialize(&b); err != nil {
		return "", err
	}
	if sig.CreationTime.After(now) { // by a clock that is ahead of this one
		now = sig.CreationTime
	}
	keys := signers{r.keyring}
	for _, key := range keys.KeysById(*sig.IssuerKeyId) {
		if key.PublicKey.CreationTime.After(sig.CreationTime) {
			return "", fmt.Errorf("%s is newer than the signature", name)
		}
	}
	config := &packet.Config{Time: func() time.Time { return now }}
	_, by, err := openpgp.VerifyDetachedSignature(keys, bytes.NewReader(commit), &b, config)
	switch {
	case errors.Is(err, pgperrors.ErrUnknownIssuer):
		return "", fmt.Errorf("%s is not one of the remote's", name)
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return "", fmt.Errorf("%s is revoked", name)
	case errors.Is(err, pgperrors.ErrKeyExpired):
		return "", fmt.Errorf("%s has expired", name)
	case errors.Is(err, pgperrors.ErrSignatureExpired):
		return "", fmt.Errorf("the signature by %s has expired%w", name, errEnds)
	case err != nil:
		return "", fmt.Errorf("%s: %w%w", name, err, errEnds)
	}
	return fmt.Sprintf("%X", by.PrimaryKey.Fingerprint), nil
}
