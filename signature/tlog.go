package signature

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// maxEntries is how many entries of logs a bundle may have.
const maxEntries = 8

// maxProof is how many sums a proof may have. A log of 2^64 entries needs no more.
const maxProof = 64

// A logEntry is an entry of a transparency log, as a signature has it with it.
type logEntry struct {
	Body           []byte
	IntegratedTime int64
	LogIndex       int64
	LogID          string // in hexadecimal

	promise []byte // the log's signature of all of the above; nil if there is none
	proof   *inclusionProof
}

// An inclusionProof shows that a tree, whose root the log has signed, has an entry.
type inclusionProof struct {
	index, size uint64
	hashes      [][]byte
	root        []byte
	checkpoint  string
}

// parseSET parses the annotation of an attachment with a log's entry.
func parseSET(data []byte) (e logEntry, err error) {
	if len(data) > maxSignature {
		return e, fmt.Errorf("its entry has more than %d bytes", maxSignature)
	}
	var payload json.RawMessage
	if err := decodeExactly(data, map[string]any{"SignedEntryTimestamp": &e.promise, "Payload": &payload}); err != nil {
		return e, err
	}
	return e, decodeExactly(payload, map[string]any{
		"body": &e.Body, "integratedTime": &e.IntegratedTime, "logIndex": &e.LogIndex, "logID": &e.LogID,
	})
}

// tlogEntry is an entry in a bundle. protobuf's JSON has 64-bit integers as strings.
type tlogEntry struct {
	LogIndex json.RawMessage `json:"logIndex"`
	LogID    struct {
		KeyID []byte `json:"keyId"`
	} `json:"logId"`
	IntegratedTime json.RawMessage `json:"integratedTime"`
	Promise        *struct {
		SET []byte `json:"signedEntryTimestamp"`
	} `json:"inclusionPromise"`
	Proof *struct {
		LogIndex   json.RawMessage `json:"logIndex"`
		RootHash   []byte          `json:"rootHash"`
		TreeSize   json.RawMessage `json:"treeSize"`
		Hashes     [][]byte        `json:"hashes"`
		Checkpoint struct {
			Envelope string `json:"envelope"`
		} `json:"checkpoint"`
	} `json:"inclusionProof"`
	Body []byte `json:"canonicalizedBody"`
}

// parseInt parses a number, which may be in quotes. An absent one is 0.
func parseInt(raw json.RawMessage) (int64, error) {
	if raw == nil {
		return 0, nil
	}
	return strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64)
}

func (t *tlogEntry) entry() (e logEntry, err error) {
	var errs [2]error
	e = logEntry{Body: t.Body, LogID: hex.EncodeToString(t.LogID.KeyID)}
	e.LogIndex, errs[0] = parseInt(t.LogIndex)
	e.IntegratedTime, errs[1] = parseInt(t.IntegratedTime)
	if err := errors.Join(errs[:]...); err != nil {
		return e, err
	}
	if t.Promise != nil {
		e.promise = t.Promise.SET
	}
	if t.Proof != nil {
		index, err1 := parseInt(t.Proof.LogIndex)
		size, err2 := parseInt(t.Proof.TreeSize)
		if err := errors.Join(err1, err2); err != nil {
			return e, err
		}
		if index < 0 || size <= index || len(t.Proof.Hashes) > maxProof {
			return e, errors.New("its proof of inclusion is invalid")
		}
		e.proof = &inclusionProof{
			index: uint64(index), size: uint64(size), hashes: t.Proof.Hashes, root: t.Proof.RootHash, checkpoint: t.Proof.Checkpoint.Envelope,
		}
	}
	return e, nil
}

// verify returns when one of some logs recorded an entry: by its promise, else by its proof, which tells no time.
func (e *logEntry) verify(logs []publicKey) (time.Time, error) {
	if len(e.promise) > 0 {
		msg, err := e.canonical()
		if err != nil {
			return time.Time{}, err
		}
		sum := sha256.Sum256(msg)
		for _, k := range logs {
			if key, ok := k.key.(*ecdsa.PublicKey); ok && ecdsa.VerifyASN1(key, sum[:], e.promise) {
				return time.Unix(e.IntegratedTime, 0), nil
			}
		}
		return time.Time{}, errors.New("its entry is not signed by a log of the policy")
	}
	if e.proof == nil {
		return time.Time{}, errors.New("its entry has neither a promise nor a proof")
	}
	return time.Time{}, e.proof.verify(e.Body, logs)
}

// canonical returns an entry in the form that a log signs: JSON with sorted keys and without spaces.
func (e *logEntry) canonical() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(struct {
		Body           string `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogID          string `json:"logID"`
		LogIndex       int64  `json:"logIndex"`
	}{base64.StdEncoding.EncodeToString(e.Body), e.IntegratedTime, e.LogID, e.LogIndex})
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// verify checks that the tree has a leaf, and that a log has signed the tree's root.
func (p *inclusionProof) verify(leaf []byte, logs []publicKey) error {
	root, err := p.rootOf(leaf)
	if err != nil {
		return err
	}
	return verifyCheckpoint(p.checkpoint, p.size, root, logs)
}

// rootOf returns the root of the tree that has a leaf, by RFC 6962.
func (p *inclusionProof) rootOf(leaf []byte) ([]byte, error) {
	inner := bits.Len64(p.index ^ (p.size - 1))
	border := bits.OnesCount64(p.index >> inner)
	if len(p.hashes) != inner+border {
		return nil, fmt.Errorf("its proof of inclusion has %d sums, want %d", len(p.hashes), inner+border)
	}
	node := sha256.Sum256(append([]byte{0}, leaf...))
	for i, h := range p.hashes {
		if len(h) != sha256.Size {
			return nil, errors.New("its proof of inclusion has an invalid sum")
		}
		if i < inner && p.index>>i&1 == 0 {
			node = sha256.Sum256(append(append([]byte{1}, node[:]...), h...))
		} else {
			node = sha256.Sum256(append(append([]byte{1}, h...), node[:]...))
		}
	}
	return node[:], nil
}

// verifyCheckpoint checks a signed note: origin, size of the tree and root on a line each, an empty line, and signatures.
func verifyCheckpoint(note string, size uint64, root []byte, logs []publicKey) error {
	i := strings.Index(note, "\n\n")
	if i < 0 || len(note) > maxSignature {
		return errors.New("its checkpoint is invalid")
	}
	text, sigs := note[:i+1], note[i+2:]
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[1] != strconv.FormatUint(size, 10) || lines[2] != base64.StdEncoding.EncodeToString(root) {
		return errors.New("its checkpoint is for another tree")
	}
	sum := sha256.Sum256([]byte(text))
	n := 0
	for line := range strings.SplitSeq(strings.TrimSuffix(sigs, "\n"), "\n") {
		if n++; n > maxEntries {
			break
		}
		fields := strings.Split(line, " ")
		if len(fields) != 3 || fields[0] != "—" {
			continue
		}
		sig, err := base64.StdEncoding.DecodeString(fields[2])
		if err != nil || len(sig) < 4 {
			continue
		}
		for _, k := range logs {
			want := sha256.Sum256(k.der)
			key, ok := k.key.(*ecdsa.PublicKey)
			if ok && binary.BigEndian.Uint32(want[:]) == binary.BigEndian.Uint32(sig) && ecdsa.VerifyASN1(key, sum[:], sig[4:]) {
				return nil
			}
		}
	}
	return errors.New("its checkpoint is not signed by a log of the policy")
}

// A logBody is what a log records.
type logBody struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Spec       json.RawMessage `json:"spec"`
}

// logHash is a sum, in hexadecimal.
type logHash struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"value"`
}

// bindsHashedRekord checks that a log's entry is for a signature of data by a key or certificate, in DER.
func bindsHashedRekord(body, key, sig, data []byte) error {
	var doc logBody
	if err := json.Unmarshal(body, &doc); err != nil {
		return err
	}
	if doc.Kind != "hashedrekord" || doc.APIVersion != "0.0.1" {
		return fmt.Errorf("its entry is of the kind %q, version %q", doc.Kind, doc.APIVersion)
	}
	var spec struct {
		Signature struct {
			Content   []byte `json:"content"`
			PublicKey struct {
				Content []byte `json:"content"`
			} `json:"publicKey"`
		} `json:"signature"`
		Data struct {
			Hash logHash `json:"hash"`
		} `json:"data"`
	}
	if err := json.Unmarshal(doc.Spec, &spec); err != nil {
		return err
	}
	if spec.Data.Hash.Algorithm != "sha256" {
		return fmt.Errorf("its entry has a sum of the kind %q", spec.Data.Hash.Algorithm)
	}
	if !bytes.Equal(spec.Signature.Content, sig) {
		return errors.New("its entry is for another signature")
	}
	return errors.Join(samePEM(spec.Signature.PublicKey.Content, key), sameSum("payload", spec.Data.Hash.Value, data))
}

// samePEM returns an error unless text is one block of PEM with the content der.
func samePEM(text, der []byte) error {
	block, rest := pem.Decode(text)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 || !bytes.Equal(block.Bytes, der) {
		return errors.New("its entry is for another key")
	}
	return nil
}

// bindsEnvelope checks that a log's entry is for a bundle's envelope and a key or certificate, in DER.
func bindsEnvelope(body, key []byte, b *bundle) error {
	var doc logBody
	if err := json.Unmarshal(body, &doc); err != nil {
		return err
	}
	switch doc.Kind + " " + doc.APIVersion {
	case "hashedrekord 0.0.1":
		return bindsHashedRekord(body, key, b.sig, pae(b.payloadType, b.payload))
	case "dsse 0.0.1":
		return bindsDSSE(doc.Spec, key, b)
	case "dsse 0.0.2":
		return bindsDSSE2(doc.Spec, key, b)
	}
	return fmt.Errorf("its entry is of the kind %q, version %q", doc.Kind, doc.APIVersion)
}

// bindsDSSE checks an entry of the first Rekor.
func bindsDSSE(data, key []byte, b *bundle) error {
	var spec struct {
		PayloadHash logHash `json:"payloadHash"`
		Signatures  []struct {
			Signature []byte `json:"signature"`
			Verifier  []byte `json:"verifier"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	if spec.PayloadHash.Algorithm != "sha256" || len(spec.Signatures) != 1 {
		return errors.New("its entry is not for one signature of a SHA-256 sum")
	}
	s := spec.Signatures[0]
	if !bytes.Equal(s.Signature, b.sig) {
		return errors.New("its entry is for another signature")
	}
	return errors.Join(samePEM(s.Verifier, key), sameSum("payload", spec.PayloadHash.Value, b.payload))
}

// bindsDSSE2 checks an entry of the second Rekor.
func bindsDSSE2(data, key []byte, b *bundle) error {
	type rawKey struct {
		RawBytes []byte `json:"rawBytes"`
	}
	var spec struct {
		V2 struct {
			PayloadHash struct {
				Algorithm string `json:"algorithm"`
				Digest    []byte `json:"digest"`
			} `json:"payloadHash"`
			Signatures []struct {
				Content  []byte `json:"content"`
				Verifier struct {
					Key  *rawKey `json:"publicKey"`
					Cert *rawKey `json:"x509Certificate"`
				} `json:"verifier"`
			} `json:"signatures"`
		} `json:"dsseV002"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	if spec.V2.PayloadHash.Algorithm != "SHA2_256" || len(spec.V2.Signatures) != 1 {
		return errors.New("its entry is not for one signature of a SHA-256 sum")
	}
	s := spec.V2.Signatures[0]
	raw := s.Verifier.Key
	if raw == nil {
		raw = s.Verifier.Cert
	}
	sum := sha256.Sum256(b.payload)
	switch {
	case !bytes.Equal(s.Content, b.sig):
		return errors.New("its entry is for another signature")
	case raw == nil || !bytes.Equal(raw.RawBytes, key):
		return errors.New("its entry is for another key")
	case !bytes.Equal(spec.V2.PayloadHash.Digest, sum[:]):
		return errors.New("its entry is for another payload")
	}
	return nil
}
