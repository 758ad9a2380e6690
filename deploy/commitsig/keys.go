package commitsig

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// parseKeys returns the ed25519 keys in a list, one in base64 a line. Other lines are skipped, as in libostree.
func parseKeys(data []byte) (keys []ed25519.PublicKey) {
	for line := range strings.Lines(string(data)) {
		if key, err := parseKey(line); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

func parseKey(text string) (ed25519.PublicKey, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return nil, err
	}
	if len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%d bytes, an ed25519 key has %d", len(key), ed25519.PublicKeySize)
	}
	return key, nil
}

// armored is how a key in ASCII armor begins.
const armored = "-----BEGIN PGP PUBLIC KEY BLOCK-----"

// parseKeyring returns the OpenPGP keys in a file: binary, or in any number of blocks of ASCII armor. Keys of unknown
// kinds are skipped.
func parseKeyring(data []byte) (keys openpgp.EntityList, err error) {
	if !bytes.Contains(data, []byte(armored)) {
		if len(data) == 0 {
			return nil, nil
		}
		return openpgp.ReadKeyRing(bytes.NewReader(data))
	}
	for r := bytes.NewReader(data); ; {
		block, err := armor.Decode(r)
		if errors.Is(err, io.EOF) {
			return keys, nil
		}
		if err != nil {
			return nil, err
		}
		more, err := openpgp.ReadKeyRing(block.Body)
		if err != nil {
			return nil, err
		}
		keys = append(keys, more...)
	}
}

// A signers is a keyring with the keys that may sign. Old keys say nothing of their use: they may.
type signers struct{ openpgp.EntityList }

func (s signers) KeysByIdUsage(id uint64, _ byte) (keys []openpgp.Key) { //nolint:revive // of openpgp.KeyRing
	for _, key := range s.KeysById(id) {
		if self := key.SelfSignature; self != nil && (!self.FlagsValid || self.FlagSign) {
			keys = append(keys, key)
		}
	}
	return keys
}

// guarded calls f, which uses the OpenPGP library: that panics on some malformed packets.
func guarded[T any](f func() (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			var none T
			v, err = none, fmt.Errorf("malformed packet: %v", p)
		}
	}()
	return f()
}

// splitPackets returns the signatures in OpenPGP data. Anything else in it is an error.
func splitPackets(data []byte) (sigs []*packet.Signature, err error) {
	for r := packet.NewReader(bytes.NewReader(data)); ; {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return sigs, nil
		}
		if err != nil {
			return nil, err
		}
		sig, ok := p.(*packet.Signature)
		switch {
		case !ok:
			return nil, errors.New("not only signatures")
		case len(sigs) == maxSignatures:
			return nil, fmt.Errorf("more than %d signatures", maxSignatures)
		}
		sigs = append(sigs, sig)
	}
}
