package signature

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// sumA and sumB are digests of images.
var (
	sumA = digest.FromString("a")
	sumB = digest.FromString("b")
)

// memory is a source with signatures in memory.
type memory struct {
	list []Signature
	err  error
}

func (m memory) Signatures(context.Context, reference.Named, digest.Digest, Form) ([]Signature, error) {
	return m.list, m.err
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicPEM(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// signWith signs as cosign does.
func signWith(t testing.TB, key crypto.Signer, data []byte) []byte {
	t.Helper()
	var opts crypto.SignerOpts = crypto.SHA256
	sum := sha256.Sum256(data)
	msg := sum[:]
	if _, ok := key.(ed25519.PrivateKey); ok {
		opts, msg = crypto.Hash(0), data
	}
	sig, err := key.Sign(rand.Reader, msg, opts)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the values are constant
	}
	return b
}

func statement(predicate, name string, d digest.Digest) []byte {
	return mustJSON(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": map[string]any{},
		"subject": []any{map[string]any{"name": name, "digest": map[string]string{"sha256": d.Encoded()}}},
	})
}

func newBundle(payload, sig []byte, entries ...any) []byte {
	return mustJSON(map[string]any{
		"mediaType":            bundleType,
		"verificationMaterial": map[string]any{"publicKey": map[string]any{"hint": "x"}, "tlogEntries": entries},
		"dsseEnvelope":         map[string]any{"payload": payload, "payloadType": statementType, "signatures": []any{map[string]any{"sig": sig}}},
	})
}

// policyFor returns a policy with one requirement that has keys in the policy.
func policyFor(t testing.TB, keys [][]byte, logs ...[]byte) *Policy {
	t.Helper()
	req := map[string]any{"type": "sigstoreSigned", "keyDatas": keys}
	if len(logs) > 0 {
		req["rekorPublicKeyDatas"] = logs
	}
	p, err := ParsePolicy(mustJSON(map[string]any{"default": []any{req}}))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func verdictOf(t *testing.T, p *Policy, list ...Signature) *Verdict {
	t.Helper()
	v, err := Verify(t.Context(), p, Image{Name: mustName(t, "r.io/a:1"), Digest: sumA}, memory{list: list})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestKinds: signatures by each kind of key count, and fail when a bit is changed.
func TestKinds(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, minRSA)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ecdsa": ecKey(t), "rsa": rsaKey, "ed25519": edKey} {
		payload := statement(signType, "", sumA)
		sig := signWith(t, key, pae(statementType, payload))
		p := policyFor(t, [][]byte{publicPEM(t, ecKey(t).Public()), publicPEM(t, key.Public())})
		v := verdictOf(t, p, Signature{Form: Bundle, Data: newBundle(payload, sig)})
		if !v.Accepted || !strings.HasPrefix(v.Results[0].By.Key, "keyDatas 2: sha256:") {
			t.Errorf("%s: %+v", name, v)
		}
		sig[len(sig)-1] ^= 1
		if v := verdictOf(t, p, Signature{Form: Bundle, Data: newBundle(payload, sig)}); v.Accepted {
			t.Errorf("%s: a changed signature is accepted", name)
		}
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil {
		p := policyFor(t, [][]byte{publicPEM(t, short.Public())})
		_, err = Verify(t.Context(), p, Image{Name: mustName(t, "r.io/a:1"), Digest: sumA}, memory{})
	}
	if err == nil {
		t.Error("an RSA key of 1024 bits is accepted")
	}
}

// TestBundle: what a bundle must say to sign an image.
func TestBundle(t *testing.T) {
	key := ecKey(t)
	p := policyFor(t, [][]byte{publicPEM(t, key.Public())})
	signed := func(payload []byte) []byte { return newBundle(payload, signWith(t, key, pae(statementType, payload))) }
	good := signed(statement(signType, "", sumA))
	for name, c := range map[string]struct {
		bundle []byte
		err    string // "" if it is accepted
	}{
		"good":                {good, ""},
		"former media type":   {bytes.Replace(good, []byte(bundleType), []byte(bundleTypeOld), 1), ""},
		"named":               {signed(statement(signType, "r.io/a:1", sumA)), ""},
		"named otherwise":     {signed(statement(signType, "r.io/b:1", sumA)), "does not accept"},
		"another image":       {signed(statement(signType, "", sumB)), "for another image"},
		"says something else": {signed(statement("https://slsa.dev/provenance/v1", "", sumA)), "does not sign it"},
		"no statement":        {signed([]byte(`{}`)), "unknown type"},
		"version 0.1":         {bytes.Replace(good, []byte("v0.3+json"), []byte("v0.1+json"), 1), "version 0.3 is known"},
		"no JSON":             {[]byte("x"), "invalid character"},
		"no envelope":         {[]byte(`{"mediaType":"` + bundleType + `","verificationMaterial":{}}`), "no DSSE envelope"},
		"no material":         {[]byte(`{"mediaType":"` + bundleType + `"}`), "no verification material"},
		"nested":              {[]byte(strings.Repeat("[", maxDepth+1)), "nested"},
		"large":               {append(bytes.Repeat([]byte(" "), maxSignature), good...), "more than"},
	} {
		v := verdictOf(t, p, Signature{Form: Bundle, Data: c.bundle})
		if v.Accepted != (c.err == "") || !strings.Contains(v.Reason(), c.err) {
			t.Errorf("%s: accepted %v, %q, want %q", name, v.Accepted, v.Reason(), c.err)
		}
	}
}

// TestReasonBounded: a registry's data does not make long errors.
func TestReasonBounded(t *testing.T) {
	p := policyFor(t, [][]byte{publicPEM(t, ecKey(t).Public())})
	var list []Signature
	for _, c := range "\x00xyz" {
		list = append(list, Signature{Form: Bundle, Data: mustJSON(map[string]any{"mediaType": strings.Repeat(string(c), maxSignature/16)})})
	}
	v := verdictOf(t, p, list...)
	const want = 4096
	if n := len(v.Reason()); v.Accepted || n > want {
		t.Errorf("accepted %v, a reason of %d bytes, want at most %d", v.Accepted, n, want)
	}
	for _, tried := range v.Results[0].Tried {
		if n := len(tried.Err.Error()); n > want || !strings.HasPrefix(tried.Err.Error(), "bundle: its type is ") {
			t.Errorf("a trial with an error of %d bytes, want at most %d", n, want)
		}
	}
}

// promise returns a bundle's entry that a log has promised to include.
func promise(t testing.TB, log crypto.Signer, body []byte) map[string]any {
	t.Helper()
	e := logEntry{Body: body, IntegratedTime: 1700000000, LogIndex: 5, LogID: "abcd"}
	msg, err := e.canonical()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"logIndex": "5", "integratedTime": "1700000000", "logId": map[string]any{"keyId": []byte{0xab, 0xcd}}, "canonicalizedBody": body,
		"inclusionPromise": map[string]any{"signedEntryTimestamp": signWith(t, log, msg)},
	}
}

// proof returns a bundle's entry with a proof: leaf index of a log of size leaves.
func proof(t testing.TB, log *ecdsa.PrivateKey, body []byte, index, size int) map[string]any {
	t.Helper()
	leaves := make([][]byte, size)
	for i := range leaves {
		leaves[i] = fmt.Appendf(nil, "leaf %d", i)
	}
	leaves[index] = body
	root, path := merkle(leaves, index)
	text := fmt.Sprintf("log.example.org\n%d\n%s\n", size, base64.StdEncoding.EncodeToString(root))
	der, err := x509.MarshalPKIXPublicKey(log.Public())
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(der)
	sig := append(id[:4:4], signWith(t, log, []byte(text))...)
	return map[string]any{
		"logIndex": fmt.Sprint(index), "canonicalizedBody": body,
		"inclusionProof": map[string]any{
			"logIndex": fmt.Sprint(index), "treeSize": fmt.Sprint(size), "rootHash": root, "hashes": path,
			"checkpoint": map[string]any{"envelope": text + "\n— log.example.org " + base64.StdEncoding.EncodeToString(sig) + "\n"},
		},
	}
}

// merkle returns the root of a tree by RFC 6962, written down from its recursive definition, and the path of a leaf, -1
// for none.
func merkle(leaves [][]byte, index int) (root []byte, path [][]byte) {
	if len(leaves) == 1 {
		sum := sha256.Sum256(append([]byte{0}, leaves[0]...))
		return sum[:], nil
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	left, lpath := merkle(leaves[:k], min(index, k-1))
	right, rpath := merkle(leaves[k:], max(index-k, 0))
	if index < k {
		path = append(lpath, right)
	} else {
		path = append(rpath, left)
	}
	sum := sha256.Sum256(append(append([]byte{1}, left...), right...))
	return sum[:], path
}

// TestLog: a log's record counts if it is of this signature, by a log of the policy, in each form.
func TestLog(t *testing.T) {
	key, log, other := ecKey(t), ecKey(t), ecKey(t)
	keyPEM := publicPEM(t, key.Public())
	keyDER, _ := pem.Decode(keyPEM)
	p := policyFor(t, [][]byte{keyPEM}, publicPEM(t, log.Public()))
	payload := statement(signType, "", sumA)
	msg := pae(statementType, payload)
	sig := signWith(t, key, msg)
	hexSum := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

	hashed := func(sig, key []byte, sum string) []byte {
		return mustJSON(map[string]any{"kind": "hashedrekord", "apiVersion": "0.0.1", "spec": map[string]any{
			"signature": map[string]any{"content": sig, "publicKey": map[string]any{"content": key}},
			"data":      map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": sum}},
		}})
	}
	dsse := func(sig, key []byte, sum string) []byte {
		return mustJSON(map[string]any{"kind": "dsse", "apiVersion": "0.0.1", "spec": map[string]any{
			"payloadHash": map[string]any{"algorithm": "sha256", "value": sum},
			"signatures":  []any{map[string]any{"signature": sig, "verifier": key}},
		}})
	}
	dsse2 := func(sig, key []byte, data []byte) []byte {
		sum := sha256.Sum256(data)
		return mustJSON(map[string]any{"kind": "dsse", "apiVersion": "0.0.2", "spec": map[string]any{"dsseV002": map[string]any{
			"payloadHash": map[string]any{"algorithm": "SHA2_256", "digest": sum[:]},
			"signatures":  []any{map[string]any{"content": sig, "verifier": map[string]any{"publicKey": map[string]any{"rawBytes": key}}}},
		}}})
	}
	otherPEM := publicPEM(t, other.Public())
	otherSig := signWith(t, key, msg)
	good := dsse(sig, keyPEM, hexSum(payload))
	moved := proof(t, log, good, 3, 7)
	moved["inclusionProof"].(map[string]any)["logIndex"] = "2"
	for name, c := range map[string]struct {
		entries []any
		err     string
	}{
		"none":                     {nil, "has no entry"},
		"hashedrekord":             {[]any{promise(t, log, hashed(sig, keyPEM, hexSum(msg)))}, ""},
		"dsse":                     {[]any{promise(t, log, good)}, ""},
		"dsse 2":                   {[]any{proof(t, log, dsse2(sig, keyDER.Bytes, payload), 3, 7)}, ""},
		"second entry fits":        {[]any{promise(t, other, good), promise(t, log, good)}, ""},
		"another log":              {[]any{promise(t, other, good)}, "not signed by a log"},
		"another log's checkpoint": {[]any{proof(t, other, good, 3, 7)}, "checkpoint is not signed"},
		"another place":            {[]any{moved}, "another tree"},
		"no promise and no proof":  {[]any{map[string]any{"canonicalizedBody": good}}, "neither"},
		"dsse, other signature":    {[]any{promise(t, log, dsse(otherSig, keyPEM, hexSum(payload)))}, "another signature"},
		"dsse, other key":          {[]any{promise(t, log, dsse(sig, otherPEM, hexSum(payload)))}, "another key"},
		"dsse, other payload":      {[]any{promise(t, log, dsse(sig, keyPEM, hexSum(msg)))}, "another payload"},
		"dsse 2, other signature":  {[]any{promise(t, log, dsse2(otherSig, keyDER.Bytes, payload))}, "another signature"},
		"dsse 2, other key":        {[]any{promise(t, log, dsse2(sig, keyPEM, payload))}, "another key"},
		"dsse 2, other payload":    {[]any{promise(t, log, dsse2(sig, keyDER.Bytes, msg))}, "another payload"},
		"hashed, other signature":  {[]any{promise(t, log, hashed(otherSig, keyPEM, hexSum(msg)))}, "another signature"},
		"hashed, other payload":    {[]any{promise(t, log, hashed(sig, keyPEM, hexSum(payload)))}, "another payload"},
		"unknown kind":             {[]any{promise(t, log, []byte(`{"kind":"x","apiVersion":"1"}`))}, "of the kind"},
	} {
		v := verdictOf(t, p, Signature{Form: Bundle, Data: newBundle(payload, sig, c.entries...)})
		if v.Accepted != (c.err == "") || !strings.Contains(v.Reason(), c.err) || v.Accepted && !v.Results[0].By.Logged {
			t.Errorf("%s: accepted %v, %q, want %q", name, v.Accepted, v.Reason(), c.err)
		}
	}
}

// TestProof: each leaf of trees of all small sizes is proven, and no other leaf by its path.
func TestProof(t *testing.T) {
	for size := 1; size <= 33; size++ {
		leaves := make([][]byte, size)
		for i := range leaves {
			leaves[i] = []byte{byte(i)}
		}
		for i := range leaves {
			root, path := merkle(leaves, i)
			p := inclusionProof{index: uint64(i), size: uint64(size), hashes: path}
			if got, err := p.rootOf(leaves[i]); err != nil || !bytes.Equal(got, root) {
				t.Fatalf("leaf %d of %d: %x, %v, want %x", i, size, got, err, root)
			}
			if got, err := p.rootOf([]byte("other")); err != nil || bytes.Equal(got, root) {
				t.Fatalf("leaf %d of %d: another leaf is proven: %v", i, size, err)
			}
		}
	}
}

// TestVerify: what is no matter of one signature.
func TestVerify(t *testing.T) {
	key := ecKey(t)
	p := policyFor(t, [][]byte{publicPEM(t, key.Public())})
	name := mustName(t, "r.io/a:1")
	down := errors.New("the registry is down")
	_, err := Verify(t.Context(), p, Image{Name: name, Digest: sumA}, memory{err: down})
	if !errors.As(err, new(*SourceError)) || !errors.Is(err, down) {
		t.Errorf("a registry that fails: %v", err)
	}
	v, err := Verify(t.Context(), p, Image{Name: name, Digest: sumA}, memory{})
	if err != nil || v.Accepted || v.Unsigned() != Attachment|Bundle || !errors.As(v.Err(), new(*RefusedError)) {
		t.Errorf("no signature: %+v, %v", v, err)
	}
	for _, d := range []digest.Digest{"", "sha256:x", digest.SHA512.FromString("a")} {
		if _, err := Verify(t.Context(), p, Image{Name: name, Digest: d}, memory{}); err == nil {
			t.Errorf("digest %q is taken", d)
		}
	}
	pinned := mustName(t, "r.io/a@"+sumB.String())
	if _, err := Verify(t.Context(), p, Image{Name: pinned, Digest: sumA}, memory{}); err == nil {
		t.Error("another image than the pinned one is taken")
	}
	payload := statement(signType, "", sumB)
	list := []Signature{{Form: Bundle, Data: newBundle(payload, signWith(t, key, pae(statementType, payload)))}}
	v, err = Verify(t.Context(), p, Image{Name: pinned, Digest: sumA, Index: sumB}, memory{list: list})
	if err != nil || !v.Accepted || v.Results[0].By.Digest != sumB {
		t.Errorf("the signature of the index: %+v, %v", v, err)
	}
}

// TestOpenPGP: a message's signature and content are checked.
func TestOpenPGP(t *testing.T) {
	e, err := openpgp.NewEntity("a", "", "a@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	var pub, msg bytes.Buffer
	if err := e.Serialize(&pub); err != nil {
		t.Fatal(err)
	}
	payload := mustJSON(map[string]any{"optional": map[string]any{"creator": "x", "timestamp": 1}, "critical": map[string]any{
		"type": simpleType, "image": map[string]any{"docker-manifest-digest": sumA}, "identity": map[string]any{"docker-reference": "r.io/a:1"},
	}})
	w, err := openpgp.Sign(&msg, e, nil, nil)
	if err == nil {
		_, err = w.Write(payload)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParsePolicy(mustJSON(map[string]any{"default": []any{map[string]any{"type": "signedBy", "keyType": "GPGKeys", "keyData": pub.Bytes()}}}))
	if err != nil {
		t.Fatal(err)
	}
	good := msg.Bytes()
	if v := verdictOf(t, p, Signature{Form: Simple, Data: good}); !v.Accepted || !strings.Contains(v.Results[0].By.Key, "keyData: ") {
		t.Errorf("refused: %s", v.Reason())
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if v := verdictOf(t, p, Signature{Form: Simple, Data: bad}); v.Accepted && !bytes.Contains(bad, payload) {
			t.Fatalf("byte %d: a message with another content is accepted", i)
		}
	}
	if v := verdictOf(t, p, Signature{Form: Simple, Data: good[:len(good)-1]}); v.Accepted {
		t.Error("a message without its end is accepted")
	}
	// A nil key stands for what the library panics on.
	broken := &keyring{entities: openpgp.EntityList{nil}}
	if _, _, err := broken.open(good, time.Now()); err == nil || !strings.Contains(err.Error(), "malformed") {
		t.Errorf("a panic of the library: error is %v", err)
	}
	if v := verdictOf(t, p, Signature{Form: Simple, Data: payload}); v.Accepted {
		t.Error("a content without a signature is accepted")
	}
}
