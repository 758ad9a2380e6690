package signature

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// The media types of bundles, and what is inside.
const (
	bundleType    = "application/vnd.dev.sigstore.bundle.v0.3+json"
	bundleTypeOld = "application/vnd.dev.sigstore.bundle+json;version=0.3"
	statementType = "application/vnd.in-toto+json"
)

// inTotoTypes are the versions of statements.
var inTotoTypes = []string{"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"}

// signType is the type of statement that signs an image. Others say how it was built, or what is in it.
const signType = "https://sigstore.dev/cosign/sign/v1"

// bundle is a sigstore bundle with a DSSE envelope.
type bundle struct {
	cert        []byte
	chain       [][]byte
	entries     []logEntry
	payloadType string
	payload     []byte
	sig         []byte
}

// parseBundle parses a bundle with one signature of an in-toto statement. What is not needed is not looked at.
func parseBundle(data []byte) (*bundle, error) {
	var doc struct {
		MediaType string `json:"mediaType"`
		Material  *struct {
			Certificate *rawCert `json:"certificate"`
			Chain       *struct {
				Certificates []json.RawMessage `json:"certificates"`
			} `json:"x509CertificateChain"`
			Entries []tlogEntry `json:"tlogEntries"`
		} `json:"verificationMaterial"`
		Envelope *struct {
			Payload     []byte `json:"payload"`
			PayloadType string `json:"payloadType"`
			Signatures  []struct {
				Sig []byte `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	err := checkNesting(data)
	if err == nil {
		err = json.Unmarshal(data, &doc)
	}
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	switch {
	case doc.MediaType != bundleType && doc.MediaType != bundleTypeOld:
		return nil, fmt.Errorf("bundle: its type is %q; version 0.3 is known", doc.MediaType)
	case doc.Material == nil:
		return nil, errors.New("bundle: it has no verification material")
	case doc.Envelope == nil:
		return nil, errors.New("bundle: it has no DSSE envelope, so that it does not sign an image")
	case len(doc.Envelope.Signatures) != 1:
		return nil, fmt.Errorf("bundle: it has %d signatures, want one", len(doc.Envelope.Signatures))
	case len(doc.Material.Entries) > maxEntries:
		return nil, fmt.Errorf("bundle: it has more than %d entries of logs", maxEntries)
	}
	b := &bundle{payload: doc.Envelope.Payload, payloadType: doc.Envelope.PayloadType, sig: doc.Envelope.Signatures[0].Sig}
	switch m := doc.Material; {
	case m.Certificate != nil:
		b.cert = m.Certificate.RawBytes
	case m.Chain != nil:
		certs, err := rawCerts(m.Chain.Certificates)
		if err != nil {
			return nil, fmt.Errorf("bundle: %w", err)
		}
		if len(certs) > 0 {
			b.cert, b.chain = certs[0], certs[1:]
		}
	}
	for _, e := range doc.Material.Entries {
		entry, err := e.entry()
		if err != nil {
			return nil, fmt.Errorf("bundle: %w", err)
		}
		b.entries = append(b.entries, entry)
	}
	return b, nil
}

// checkNesting returns an error for JSON that is nested too deeply, or that is not JSON.
func checkNesting(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	depth := 0
	for {
		t, err := dec.Token()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case t == json.Delim('{'), t == json.Delim('['):
			depth++
		case t == json.Delim('}'), t == json.Delim(']'):
			depth--
		}
		if depth > maxDepth {
			return fmt.Errorf("it is nested more than %d deep", maxDepth)
		}
	}
}

// pae returns what a DSSE signature is made of: type and payload, each with its length.
func pae(payloadType string, payload []byte) []byte {
	b := []byte("DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(b, payload...)
}

// checkBundle checks a bundle.
func (t *trust) checkBundle(img Image, c candidate, id *identity) (*Acceptance, error) {
	b, err := parseBundle(c.Data)
	if err != nil {
		return nil, err
	}
	s := &signed{message: pae(b.payloadType, b.payload), sig: b.sig, cert: b.cert, chain: b.chain, entries: b.entries}
	s.binds = func(body, key []byte) error { return bindsEnvelope(body, key, b) }
	by, err := t.check(s)
	if err != nil {
		return nil, err
	}
	if b.payloadType != statementType {
		return nil, fmt.Errorf("bundle: its payload has the type %q", b.payloadType)
	}
	return by, checkStatement(b.payload, c, img, id)
}

// checkStatement returns why a statement does not sign an image.
func checkStatement(data []byte, c candidate, img Image, id *identity) error {
	var doc struct {
		Type          string `json:"_type"`
		PredicateType string `json:"predicateType"`
		Subject       []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("statement: %w", err)
	}
	if !slices.Contains(inTotoTypes, doc.Type) {
		return fmt.Errorf("statement: unknown type %q", doc.Type)
	}
	if doc.PredicateType != signType {
		return fmt.Errorf("statement: it says something of the image (%q), and does not sign it", doc.PredicateType)
	}
	err := errors.New("statement: it is about nothing")
	for _, s := range doc.Subject {
		if s.Digest["sha256"] != c.of.Encoded() {
			err = fmt.Errorf("it is for another image, sha256:%.64s", s.Digest["sha256"])
			continue
		}
		if s.Name == "" {
			return id.checkUnnamed()
		}
		if err = id.check(img.Name, s.Name); err == nil {
			return nil
		}
	}
	return err
}
