package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// maxSignature is the size of the largest payload, message or bundle that is read. Those in use have a few KiB.
const maxSignature = 1 << 20

// The annotations of cosign's attachments.
const (
	annotationSignature = "dev.cosignproject.cosign/signature"
	annotationCert      = "dev.sigstore.cosign/certificate"
	annotationChain     = "dev.sigstore.cosign/chain"
	annotationBundle    = "dev.sigstore.cosign/bundle"
)

// sigstoreSigned demands a signature by one of some keys, or by a certificate of an authority for an identity; and, with
// keys of transparency logs, that one of these has recorded it.
type sigstoreSigned struct {
	keys, logs keySources
	signer     *certSigner // nil with keys
	identity   identity
}

func parseSigstore(data []byte) (requirement, error) {
	var typ string
	var ident, fulcio, pki json.RawMessage
	s := new(sigstoreSigned)
	err := decodeObject(data, func(key string) any {
		switch key {
		case "type":
			return &typ
		case "signedIdentity":
			return &ident
		case "fulcio":
			return &fulcio
		case "pki":
			return &pki
		}
		if dst := s.keys.field("key", key); dst != nil {
			return dst
		}
		return s.logs.field("rekorPublicKey", key)
	})
	if err == nil {
		err = errors.Join(s.keys.validate(), s.logs.validate())
	}
	switch {
	case err != nil:
	case (fulcio != nil || pki != nil) && len(s.keys.given) > 0, fulcio != nil && pki != nil:
		err = errors.New("keys, fulcio and pki exclude each other")
	case fulcio != nil && len(s.logs.given) == 0:
		err = errors.New("fulcio needs a rekorPublicKey: the time of a signature is known from the log alone")
	case pki != nil && len(s.logs.given) > 0:
		err = errors.New("pki and rekorPublicKey exclude each other")
	case fulcio != nil:
		s.signer, err = parseFulcio(fulcio)
	case pki != nil:
		s.signer, err = parsePKI(pki)
	case len(s.keys.given) == 0:
		err = errNoKey
	}
	if err != nil {
		return nil, fmt.Errorf("sigstoreSigned: %w", err)
	}
	s.identity, err = parseIdentity(ident)
	return s, err
}

func (*sigstoreSigned) forms() Form { return Attachment | Bundle }

func (s *sigstoreSigned) check(img Image, list []candidate) (Result, error) {
	t, err := s.load()
	if err != nil {
		return Result{}, fmt.Errorf("sigstoreSigned: %w", err)
	}
	return tryAll(typeSigstore, s.forms(), list, func(c candidate) (*Acceptance, error) {
		if len(c.Data) > maxSignature {
			return nil, fmt.Errorf("it has more than %d bytes", maxSignature)
		}
		if c.Form == Bundle {
			return t.checkBundle(img, c, &s.identity)
		}
		return t.checkAttachment(img, c, &s.identity)
	}), nil
}

// trust is what a requirement trusts: keys or an authority, and logs.
type trust struct {
	keys   []publicKey
	signer *loadedSigner // nil with keys
	logs   []publicKey   // nil if nothing has to be recorded
}

// A publicKey is a key of the policy.
type publicKey struct {
	name string // its file or place, with the start of its fingerprint
	der  []byte // as SubjectPublicKeyInfo
	key  crypto.PublicKey
}

func (s *sigstoreSigned) load() (*trust, error) {
	t := new(trust)
	var err error
	if t.keys, err = loadKeys(&s.keys); err != nil {
		return nil, err
	}
	if t.logs, err = loadKeys(&s.logs); err != nil {
		return nil, err
	}
	for _, k := range t.logs {
		if _, ok := k.key.(*ecdsa.PublicKey); !ok {
			return nil, fmt.Errorf("%s: the key of a log must be an ECDSA key", k.name)
		}
	}
	if s.signer != nil {
		t.signer, err = s.signer.load()
	}
	return t, err
}

func loadKeys(src *keySources) ([]publicKey, error) {
	blobs, err := src.load()
	if err != nil {
		return nil, err
	}
	var list []publicKey
	for _, b := range blobs {
		k, err := parsePublicKey(b.data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
		sum := sha256.Sum256(k.der)
		k.name = fmt.Sprintf("%s: sha256:%x", b.name, sum[:8])
		list = append(list, k)
	}
	return list, nil
}

// parsePublicKey parses a key in PEM, as cosign and openssl write it.
func parsePublicKey(data []byte) (k publicKey, err error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return k, errors.New("it has no public key in PEM")
	}
	switch block.Type {
	case "PUBLIC KEY":
		k.key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		k.key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		err = fmt.Errorf("it has %q in PEM, and no public key", block.Type)
	}
	if err == nil {
		err = checkKey(k.key)
	}
	if err == nil {
		k.der, err = x509.MarshalPKIXPublicKey(k.key)
	}
	return k, err
}

// minRSA is the length of the shortest RSA key that is accepted, in bits.
const minRSA = 2048

// checkKey returns why a key cannot verify anything.
func checkKey(key crypto.PublicKey) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA {
			return fmt.Errorf("an RSA key of %d bits is too short", n)
		}
		return nil
	}
	return fmt.Errorf("keys of type %T are not known", key)
}

var errMismatch = errors.New("the signature does not match the key")

// verify returns why a signature of data is not made by a key: ECDSA or RSA (PKCS#1 v1.5) of its SHA-256 sum, or Ed25519.
func verify(key crypto.PublicKey, data, sig []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	ok := false
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, sum[:], sig)
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, data, sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig) == nil
	}
	if !ok {
		return errMismatch
	}
	return nil
}

// signed is a signature in the shape that both forms have.
type signed struct {
	message []byte // that is signed
	sig     []byte
	cert    []byte   // the signer's certificate in DER, nil if there is none
	chain   [][]byte // of the certificate, in DER, without it and the root
	entries []logEntry
	binds   func(body []byte, key []byte) error // checks that a log's entry is that of this signature and key
}

// check returns how a signature is accepted: by which key, for which identity.
func (t *trust) check(s *signed) (*Acceptance, error) {
	if t.signer == nil {
		return t.checkKeys(s)
	}
	if s.cert == nil {
		return nil, errors.New("it has no certificate")
	}
	cert, err := x509.ParseCertificate(s.cert)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	at := time.Now()
	logged := t.logs != nil
	if logged {
		if at, err = t.logTime(s, s.cert); err != nil {
			return nil, err
		}
		if at.IsZero() {
			return nil, errors.New("transparency log: it tells no time, which a certificate needs")
		}
	}
	who, err := t.signer.check(cert, s.chain, at)
	if err != nil {
		return nil, err
	}
	if err := verify(cert.PublicKey, s.message, s.sig); err != nil {
		return nil, err
	}
	return &Acceptance{Key: t.signer.name, Identity: who, Logged: logged}, nil
}

func (t *trust) checkKeys(s *signed) (*Acceptance, error) {
	for _, k := range t.keys {
		if verify(k.key, s.message, s.sig) != nil {
			continue
		}
		if t.logs != nil {
			if _, err := t.logTime(s, k.der); err != nil {
				return nil, err
			}
		}
		return &Acceptance{Key: k.name, Logged: t.logs != nil}, nil
	}
	if len(t.keys) == 1 {
		return nil, errMismatch
	}
	return nil, fmt.Errorf("the signature matches none of %d keys", len(t.keys))
}

// logTime returns when a log of the policy recorded a signature by a key or certificate, the zero time if the log tells
// no time. Without a valid entry it is an error.
func (t *trust) logTime(s *signed, key []byte) (time.Time, error) {
	err := errors.New("transparency log: it has no entry, which the policy demands")
	for _, e := range s.entries {
		var at time.Time
		if at, err = e.verify(t.logs); err == nil {
			err = s.binds(e.Body, key)
		}
		if err == nil {
			return at, nil
		}
		err = fmt.Errorf("transparency log: %w", err)
	}
	return time.Time{}, err
}

// checkAttachment checks cosign's attachment.
func (t *trust) checkAttachment(img Image, c candidate, id *identity) (*Acceptance, error) {
	s := &signed{message: c.Data}
	text, ok := c.Annotations[annotationSignature]
	if !ok {
		return nil, fmt.Errorf("it has no annotation %s", annotationSignature)
	}
	var err error
	if s.sig, err = base64.StdEncoding.DecodeString(text); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	if s.cert, s.chain, err = attachedCerts(c.Annotations); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if set, ok := c.Annotations[annotationBundle]; ok && t.logs != nil {
		e, err := parseSET([]byte(set))
		if err != nil {
			return nil, fmt.Errorf("transparency log: %w", err)
		}
		s.entries = []logEntry{e}
	}
	s.binds = func(body, key []byte) error { return bindsHashedRekord(body, key, s.sig, s.message) }
	by, err := t.check(s)
	if err != nil {
		return nil, err
	}
	cl, err := parseClaim(c.Data, cosignType)
	if err != nil {
		return nil, err
	}
	return by, cl.check(img, c.of, id)
}

// attachedCerts returns the certificate of an attachment and those that are between it and the root, in DER. The chain in
// an attachment ends with the root, which is not trusted for being there.
func attachedCerts(annotations map[string]string) (cert []byte, chain [][]byte, err error) {
	text, ok := annotations[annotationCert]
	if !ok {
		return nil, nil, nil
	}
	certs, err := decodePEMCerts([]byte(text))
	if err != nil {
		return nil, nil, err
	}
	if len(certs) != 1 {
		return nil, nil, fmt.Errorf("there are %d, want one", len(certs))
	}
	if text = annotations[annotationChain]; text == "" {
		return certs[0], nil, nil
	}
	if chain, err = decodePEMCerts([]byte(text)); err != nil {
		return nil, nil, err
	}
	return certs[0], chain[:max(0, len(chain)-1)], nil
}

// maxCerts is how many certificates a signature may have.
const maxCerts = 16

func decodePEMCerts(data []byte) ([][]byte, error) {
	var certs [][]byte
	for len(bytes.TrimSpace(data)) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("it is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it has %q in PEM", block.Type)
		}
		if certs = append(certs, block.Bytes); len(certs) > maxCerts {
			return nil, fmt.Errorf("it has more than %d certificates", maxCerts)
		}
	}
	return certs, nil
}

// sameSum returns an error unless text is the SHA-256 sum of data in hexadecimal.
func sameSum(what, text string, data []byte) error {
	sum := sha256.Sum256(data)
	if text != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("its entry is for another %s", what)
	}
	return nil
}
