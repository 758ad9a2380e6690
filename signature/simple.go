package signature

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/opencontainers/go-digest"
)

// The types of payloads, which name an image and its digest.
const (
	simpleType = "atomic container signature"
	cosignType = "cosign container image signature"
)

// A claim is what a payload says.
type claim struct {
	digest digest.Digest
	name   string
}

// parseClaim parses the payload of a simple signature, or of cosign's attachment.
func parseClaim(data []byte, typ string) (c claim, err error) {
	var critical, optional, image, ident json.RawMessage
	var got, dgst string
	if err := decodeExactly(data, map[string]any{"critical": &critical, "optional": &optional}); err != nil {
		return c, fmt.Errorf("payload: %w", err)
	}
	if err := parseOptional(optional, typ); err != nil {
		return c, fmt.Errorf("payload: optional: %w", err)
	}
	if err := decodeExactly(critical, map[string]any{"type": &got, "image": &image, "identity": &ident}); err != nil {
		return c, fmt.Errorf("payload: critical: %w", err)
	}
	if got != typ {
		return c, fmt.Errorf("payload: it has the type %q, not %q", got, typ)
	}
	if err := decodeExactly(image, map[string]any{"docker-manifest-digest": &dgst}); err != nil {
		return c, fmt.Errorf("payload: image: %w", err)
	}
	if c.digest, err = digest.Parse(dgst); err != nil {
		return c, fmt.Errorf("payload: digest %q: %w", dgst, err)
	}
	if err := decodeExactly(ident, map[string]any{"docker-reference": &c.name}); err != nil {
		return c, fmt.Errorf("payload: identity: %w", err)
	}
	return c, nil
}

// parseOptional checks the part of a payload that need not be understood. cosign writes null there.
func parseOptional(data []byte, typ string) error {
	if typ == cosignType && string(data) == "null" {
		return nil
	}
	var creator string
	var timestamp float64
	err := decodeObject(data, func(key string) any {
		switch key {
		case "creator":
			return &creator
		case "timestamp":
			return &timestamp
		}
		return new(any)
	})
	if err == nil && timestamp != float64(int64(timestamp)) {
		err = errors.New("timestamp is not an integer")
	}
	return err
}

// check returns why a claim is not about an image.
func (c claim) check(img Image, of digest.Digest, id *identity) error {
	if c.digest != of {
		return fmt.Errorf("it is for another image, %s", c.digest)
	}
	return id.check(img.Name, c.name)
}

// signedBy demands an OpenPGP signature by one of some keys.
type signedBy struct {
	keys     keySources
	identity identity
}

func parseSignedBy(data []byte) (requirement, error) {
	var typ, keyType string
	var ident json.RawMessage
	s := new(signedBy)
	err := decodeObject(data, func(key string) any {
		switch key {
		case "type":
			return &typ
		case "keyType":
			return &keyType
		case "signedIdentity":
			return &ident
		case "keyDatas":
			return nil
		}
		return s.keys.field("key", key)
	})
	if err == nil {
		err = s.keys.validate()
	}
	if err == nil && len(s.keys.given) == 0 {
		err = errNoKey
	}
	if err == nil && keyType != "GPGKeys" {
		err = fmt.Errorf("keyType %q: only GPGKeys is known", keyType)
	}
	if err != nil {
		return nil, fmt.Errorf("signedBy: %w", err)
	}
	s.identity, err = parseIdentity(ident)
	return s, err
}

func (*signedBy) forms() Form { return Simple }

func (s *signedBy) check(img Image, list []candidate) (Result, error) {
	ring, err := s.keyring()
	if err != nil {
		return Result{}, err
	}
	return tryAll(typeSignedBy, Simple, list, func(c candidate) (*Acceptance, error) {
		payload, key, err := ring.open(c.Data, time.Now())
		if err != nil {
			return nil, err
		}
		cl, err := parseClaim(payload, simpleType)
		if err != nil {
			return nil, err
		}
		return &Acceptance{Key: key}, cl.check(img, c.of, &s.identity)
	}), nil
}

// A keyring has OpenPGP keys, and where each is from.
type keyring struct {
	entities openpgp.EntityList
	from     map[*openpgp.Entity]string
}

func (s *signedBy) keyring() (*keyring, error) {
	blobs, err := s.keys.load()
	if err != nil {
		return nil, err
	}
	k := &keyring{from: make(map[*openpgp.Entity]string)}
	for _, b := range blobs {
		if err := k.add(b); err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
	}
	if len(k.entities) == 0 {
		return nil, errors.New("signedBy: no keys")
	}
	return k, nil
}

// add adds the keys of a file, armoured or not.
func (k *keyring) add(b blob) error {
	list, err := openpgp.ReadKeyRing(bytes.NewReader(b.data))
	if err != nil {
		armored, err2 := openpgp.ReadArmoredKeyRing(bytes.NewReader(b.data))
		if err2 != nil {
			return errors.Join(err, err2)
		}
		list = armored
	}
	for _, e := range list {
		k.from[e] = b.name
	}
	k.entities = append(k.entities, list...)
	return nil
}

// open returns the content of a signed message, and the key that signed it.
func (k *keyring) open(message []byte, now time.Time) (payload []byte, key string, err error) {
	defer func() {
		// The library panics on some malformed packets.
		if p := recover(); p != nil {
			payload, key, err = nil, "", fmt.Errorf("openpgp: malformed message: %v", p)
		}
	}()
	if len(message) > maxSignature {
		return nil, "", fmt.Errorf("it has more than %d bytes", maxSignature)
	}
	md, err := openpgp.ReadMessage(bytes.NewReader(message), k.entities, nil, openpgpConfig(now))
	if err != nil {
		return nil, "", fmt.Errorf("openpgp: %w", err)
	}
	if !md.IsSigned || md.IsEncrypted {
		return nil, "", errors.New("openpgp: it is not a signed message")
	}
	payload, err = io.ReadAll(io.LimitReader(md.UnverifiedBody, maxSignature+1))
	switch {
	case len(payload) > maxSignature:
		return nil, "", fmt.Errorf("openpgp: its content has more than %d bytes", maxSignature)
	case md.SignedBy == nil:
		return nil, "", fmt.Errorf("openpgp: it is signed by key %016X, which is not in the policy", md.SignedByKeyId)
	case err != nil:
		return nil, "", fmt.Errorf("openpgp: %w", err)
	case md.SignatureError != nil:
		return nil, "", fmt.Errorf("openpgp: %w", md.SignatureError)
	case md.Signature == nil:
		return nil, "", errors.New("openpgp: the signature is missing")
	}
	e := md.SignedBy.Entity
	return payload, fmt.Sprintf("%s: %X", k.from[e], e.PrimaryKey.Fingerprint), nil
}
