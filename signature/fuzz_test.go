package signature

import (
	"bytes"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// fuzzTrust trusts a key that signs no input of a fuzz test.
func fuzzTrust(tb testing.TB) *trust {
	tb.Helper()
	key := ecKey(tb)
	k := publicKey{name: "key", key: key.Public()}
	return &trust{keys: []publicKey{k}, logs: []publicKey{k}}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchRepository"}}]}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy(data)
		if err == nil && len(p.def) == 0 {
			t.Error("a policy without a default")
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add(newBundle(statement(signType, "", sumA), []byte("sig"), map[string]any{"logIndex": "5", "canonicalizedBody": []byte("{}")}))
	tr, img := fuzzTrust(f), Image{Digest: sumA}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := tr.checkBundle(img, candidate{Signature{Form: Bundle, Data: data}, sumA}, new(identity)); err == nil {
			t.Error("a bundle that nobody signed is accepted")
		}
	})
}

// FuzzLogEntry parses what a log is said to have recorded.
func FuzzLogEntry(f *testing.F) {
	f.Add([]byte(`{"SignedEntryTimestamp":"YQ==","Payload":{"body":"e30=","integratedTime":1,"logIndex":1,"logID":"ab"}}`),
		[]byte(`{"kind":"dsse","apiVersion":"0.0.1","spec":{}}`), "log\n3\nAAAA\n\n— log AAAAAAA=\n", uint64(1), uint64(3))
	tr := fuzzTrust(f)
	f.Fuzz(func(t *testing.T, set, body []byte, note string, index, size uint64) {
		if e, err := parseSET(set); err == nil {
			if _, err := e.verify(tr.logs); err == nil {
				t.Error("an entry that nobody signed is accepted")
			}
		}
		_ = bindsEnvelope(body, nil, new(bundle))
		if size > index {
			p := inclusionProof{index: index, size: size, hashes: [][]byte{make([]byte, 32)}, checkpoint: note}
			if p.verify(body, tr.logs) == nil {
				t.Error("a proof that nobody signed is accepted")
			}
		}
	})
}

func FuzzAttachment(f *testing.F) {
	f.Add([]byte(`{"critical":{"type":"cosign container image signature","image":{"docker-manifest-digest":"sha256:a"},"identity":{"docker-reference":"a"}},"optional":null}`),
		"c2ln", "-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n", "{}")
	tr := fuzzTrust(f)
	f.Fuzz(func(t *testing.T, payload []byte, sig, cert, set string) {
		c := candidate{Signature{Form: Attachment, Data: payload, Annotations: map[string]string{
			annotationSignature: sig, annotationCert: cert, annotationChain: cert, annotationBundle: set,
		}}, sumA}
		if _, err := tr.checkAttachment(Image{Digest: sumA}, c, new(identity)); err == nil {
			t.Error("an attachment that nobody signed is accepted")
		}
		if cl, err := parseClaim(payload, cosignType); err == nil && cl.digest.Validate() != nil {
			t.Errorf("digest %q", cl.digest)
		}
	})
}

func FuzzMessage(f *testing.F) {
	e, err := openpgp.NewEntity("a", "", "", nil)
	if err != nil {
		f.Fatal(err)
	}
	var msg bytes.Buffer
	w, err := openpgp.Sign(&msg, e, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(msg.Bytes())
	ring := &keyring{from: make(map[*openpgp.Entity]string)}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := ring.open(data, time.Now()); err == nil {
			t.Error("a message by a key that is not in the ring is accepted")
		}
	})
}

// FuzzPlaces parses registries.d.
func FuzzPlaces(f *testing.F) {
	f.Add([]byte("default-docker:\n  lookaside: file:///a\ndocker:\n  a.io:\n    use-sigstore-attachments: true\n"), "a.io/b:1")
	f.Fuzz(func(t *testing.T, data []byte, text string) {
		p := &Places{scopes: make(map[string]place)}
		name, err := ParseName(text)
		if err != nil || p.add(data) != nil {
			return
		}
		p.attachments(name)
		if u, err := p.base(name); err == nil && u == nil {
			t.Error("no URL")
		}
	})
}
