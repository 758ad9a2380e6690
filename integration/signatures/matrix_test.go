package signatures

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A kase is a row of the table.
type kase struct {
	name   string
	make   func(e *env) // pushes REPO:1 and signs
	ref    func(e *env) string
	policy string // requirements; @x stands for the file x of the tests' directory, REPO for the repository
	want   bool   // accepted
	others oracle // the programs that read the form
	differ bool   // they accept what we refuse
	key    string // that cosign verifies with
}

// oracle says which programs must answer the same.
type oracle int

const (
	alone  oracle = iota // none reads it
	peers                // skopeo and podman
	cosign               // cosign 3
)

const (
	byRepo = `,"signedIdentity":{"type":"matchRepository"}`
	k1     = `{"type":"sigstoreSigned","keyPath":"@k1.pub"` + byRepo + `}`
	k2     = `{"type":"sigstoreSigned","keyPath":"@k2.pub"` + byRepo + `}`
	own    = `{"type":"sigstoreSigned","keyPath":"@own.pub"}`
	logged = `{"type":"sigstoreSigned","keyPath":"@own.pub","rekorPublicKeyPath":"@rekor.pub"}`
	bundle = `{"type":"sigstoreSigned","keyPath":"@k1.pub"}`
	g1     = `{"type":"signedBy","keyType":"GPGKeys","keyPath":"@g1.asc"}`
	g2     = `{"type":"signedBy","keyType":"GPGKeys","keyPath":"@g2.asc"}`
	fulcio = `{"type":"sigstoreSigned","fulcio":{"caPath":"@ca.pem","oidcIssuer":"https://id.example.org","subjectEmail":"dev@example.org"},"rekorPublicKeyPath":"@rekor.pub"}`
	pki    = `{"type":"sigstoreSigned","pki":{"caRootsPath":"@ca.pem","subjectEmail":"dev@example.org"}}`
)

func unsigned(e *env) { e.push("1", e.path()) }

// attached pushes an image and attaches a signature for REPO:1, after it was changed.
func attached(change func(e *env, a *attachment)) func(*env) {
	return func(e *env) {
		a := attachment{name: e.repo + ":1", digest: e.push("1", e.path())}
		if change != nil {
			change(e, &a)
		}
		e.attach(a)
	}
}

// certified is attached with a certificate and a log's entry.
func certified(ca, log string, change func(*x509.Certificate), at time.Duration) func(*env) {
	return attached(func(e *env, a *attachment) {
		if change == nil {
			change = func(*x509.Certificate) {}
		}
		a.cert, a.log, a.at = e.cert(ca, change), log, time.Now().Add(at)
	})
}

// gpg pushes an image and signs it with skopeo, for REPO and a suffix.
func gpg(key, suffix string) func(*env) {
	return func(e *env) {
		m := e.image(e.path())
		e.pushManifest("1", manifestType, m)
		e.simple(key, e.repo+suffix, m, 1)
	}
}

func byDigest(e *env) string { return e.repo + "@" + digest.FromBytes(e.image(e.path())).String() }

var cases = []kase{
	{name: "accept anything", make: unsigned, policy: `{"type":"insecureAcceptAnything"}`, want: true, others: peers},
	{name: "reject", make: func(e *env) { e.v2("k1", e.push("1", e.path())) }, policy: `{"type":"reject"}`, others: peers},
	{name: "unsigned, key", make: unsigned, policy: k1, others: peers},
	{name: "unsigned, bundle", make: unsigned, policy: bundle, others: cosign, key: "k1"},
	{name: "unsigned, gpg", make: unsigned, policy: g1, others: peers},

	// cosign 2.5 of Debian 13: attachments.
	{name: "cosign 2", make: func(e *env) { e.v2("k1", e.push("1", e.path())) }, policy: k1, want: true, others: peers},
	{name: "cosign 2 by digest", make: func(e *env) { e.v2("k1", e.push("1", e.path())) }, ref: byDigest, policy: k1, want: true, others: peers},
	{name: "cosign 2, default identity", make: func(e *env) { e.v2("k1", e.push("1", e.path())) }, policy: bundle, others: peers},
	{name: "cosign 2 with a tag in the name", make: func(e *env) {
		e.v2("k1", e.push("1", e.path()), "--sign-container-identity", e.repo+":1")
	}, policy: bundle, want: true, others: peers},
	{name: "cosign 2, wrong key", make: func(e *env) { e.v2("k2", e.push("1", e.path())) }, policy: k1, others: peers},
	{
		name: "cosign 2, one of two keys", make: func(e *env) { e.v2("k2", e.push("1", e.path())) },
		policy: `{"type":"sigstoreSigned","keyPaths":["@k1.pub","@k2.pub"]` + byRepo + `}`, want: true, others: peers,
	},
	{name: "cosign 2, two signers demanded, both there", make: func(e *env) {
		d := e.push("1", e.path())
		e.v2("k1", d)
		e.v2("k2", d)
	}, policy: k1 + "," + k2, want: true, others: peers},
	{name: "cosign 2, two signers demanded, one there", make: func(e *env) { e.v2("k1", e.push("1", e.path())) }, policy: k1 + "," + k2, others: peers},
	{name: "cosign 2, second signature fits", make: func(e *env) {
		d := e.push("1", e.path())
		e.v2("k2", d)
		e.v2("k1", d)
	}, policy: k1, want: true, others: peers},
	{name: "cosign 2, tag moved to an unsigned image", make: func(e *env) {
		e.v2("k1", e.push("1", e.path()))
		e.push("1", "moved "+e.path())
	}, policy: k1, others: peers},
	{name: "cosign 2, older image replayed", make: func(e *env) {
		e.v2("k1", e.push("1", "old "+e.path()))
		e.v2("k1", e.push("1", e.path()))
		e.push("1", "old "+e.path())
	}, policy: k1, want: true, others: peers},
	{name: "cosign 2, signature of another repository", make: func(e *env) {
		e.v2("k1", e.push("1", e.path()), "--sign-container-identity", e.registry.Address+"/other/image")
	}, policy: k1, others: peers},
	{name: "cosign 2, another repository that the policy names", make: func(e *env) {
		e.v2("k1", e.push("1", e.path()), "--sign-container-identity", "example.org/official/image")
	}, policy: `{"type":"sigstoreSigned","keyPath":"@k1.pub","signedIdentity":{"type":"exactRepository","dockerRepository":"example.org/official/image"}}`, want: true, others: peers},
	{name: "cosign 2, exact reference", make: func(e *env) {
		e.v2("k1", e.push("1", e.path()), "--sign-container-identity", "example.org/official/image:9")
	}, policy: `{"type":"sigstoreSigned","keyPath":"@k1.pub","signedIdentity":{"type":"exactReference","dockerReference":"example.org/official/image:9"}}`, want: true, others: peers},
	{name: "cosign 2 as a referrer", make: func(e *env) {
		e.env = append(e.env, "COSIGN_EXPERIMENTAL=1")
		e.v2("k1", e.push("1", e.path()), "--registry-referrers-mode", "oci-1-1")
	}, policy: k1, want: true, others: alone},

	// cosign 3.1 of Debian testing.
	{name: "cosign 3, attachment", make: func(e *env) { e.v3("k1", e.push("1", e.path()), "--new-bundle-format=false") }, policy: k1, want: true, others: peers},
	{name: "cosign 3, attachment, wrong key", make: func(e *env) { e.v3("k2", e.push("1", e.path()), "--new-bundle-format=false") }, policy: k1, others: peers},
	{name: "cosign 3, bundle", make: func(e *env) { e.v3("k1", e.push("1", e.path())) }, policy: bundle, want: true, others: cosign, key: "k1"},
	{name: "cosign 3, bundle by digest", make: func(e *env) { e.v3("k1", e.push("1", e.path())) }, ref: byDigest, policy: bundle, want: true, others: cosign, key: "k1"},
	{name: "cosign 3, bundle, wrong key", make: func(e *env) { e.v3("k2", e.push("1", e.path())) }, policy: bundle, others: cosign, key: "k1"},
	{name: "cosign 3, bundle, second signature fits", make: func(e *env) {
		d := e.push("1", e.path())
		e.v3("k2", d)
		e.v3("k1", d)
	}, policy: bundle, want: true, others: cosign, key: "k1"},
	{name: "cosign 3, bundles of two signers", make: func(e *env) {
		d := e.push("1", e.path())
		e.v3("k1", d)
		e.v3("k2", d)
	}, policy: bundle + `,{"type":"sigstoreSigned","keyPath":"@k2.pub"}`, want: true, others: alone},
	{name: "cosign 3, bundle, tag moved", make: func(e *env) {
		e.v3("k1", e.push("1", e.path()))
		e.push("1", "moved "+e.path())
	}, policy: bundle, others: cosign, key: "k1"},
	{name: "cosign 3, bundle names no repository", make: func(e *env) { e.v3("k1", e.push("1", e.path())) }, policy: k1, others: alone},
	{name: "cosign 3, attestation is no signature", make: func(e *env) {
		d := e.push("1", e.path())
		testenv.Must(e.t, e.write("predicate.json", []byte(`{}`)))
		e.must(e.signers+"/cosign", "attest", "--key", "k1.key", "--predicate", "predicate.json", "--tlog-upload=false",
			"--use-signing-config=false", "--allow-http-registry", "-y", e.repo+"@"+d)
	}, policy: bundle, others: cosign, differ: true, key: "k1"}, // that somebody has scanned an image must not let it run
	{
		name: "cosign 3, bundle without the log's record", make: func(e *env) { e.v3("k1", e.push("1", e.path())) },
		policy: `{"type":"sigstoreSigned","keyPath":"@k1.pub","rekorPublicKeyPath":"@rekor.pub"}`, others: alone,
	},

	// Attachments that no cosign makes.
	{name: "attachment", make: attached(nil), policy: own, want: true, others: peers},
	{name: "attachment, damaged payload", make: attached(func(_ *env, a *attachment) { a.damage = true }), policy: own, others: peers},
	{name: "attachment of another image", make: func(e *env) {
		other := e.push("2", "other "+e.path())
		e.attach(attachment{name: e.repo + ":1", digest: other, tag: e.push("1", e.path())})
	}, policy: own, others: peers},
	{name: "attachment without a signature", make: attached(func(_ *env, a *attachment) {
		a.change = func(m map[string]string) { delete(m, "dev.cosignproject.cosign/signature") }
	}), policy: own, others: peers},
	{name: "attachment, signature is no base64", make: attached(func(_ *env, a *attachment) {
		a.change = func(m map[string]string) { m["dev.cosignproject.cosign/signature"] += "!" }
	}), policy: own, others: peers},
	{name: "attachment of the type of simple signing", make: attached(func(_ *env, a *attachment) { a.typ = "atomic container signature" }), policy: own, others: peers},
	{name: "attachment for another tag", make: attached(func(e *env, a *attachment) { a.name = e.repo + ":2" }), policy: own, others: peers},
	{name: "attachment for another tag, by digest", make: attached(func(e *env, a *attachment) { a.name = e.repo + ":2" }), ref: byDigest, policy: own, want: true, others: peers},
	{
		name: "attachment, remapped", make: attached(func(_ *env, a *attachment) { a.name = "example.org/official:1" }),
		policy: `{"type":"sigstoreSigned","keyPath":"@own.pub","signedIdentity":{"type":"remapIdentity","prefix":"REPO","signedPrefix":"example.org/official"}}`, want: true, others: peers,
	},
	{name: "attachment, bad one before it", make: func(e *env) {
		a := attachment{name: e.repo + ":1", digest: e.push("1", e.path())}
		bad := a
		bad.damage = true
		e.attach(bad, a)
	}, policy: own, want: true, others: peers},

	// Transparency logs, with a key.
	{name: "log demanded, recorded", make: attached(func(_ *env, a *attachment) { a.log = "rekor" }), policy: logged, want: true, others: peers},
	{name: "log demanded, not recorded", make: attached(nil), policy: logged, others: peers},
	{name: "log demanded, recorded by another", make: attached(func(_ *env, a *attachment) { a.log = "otherca" }), policy: logged, others: peers},
	{name: "log demanded, record of another signature", make: attached(func(_ *env, a *attachment) {
		a.log, a.resign = "rekor", true
	}), policy: logged, others: peers},

	// Certificates of Fulcio, and of another authority.
	{name: "fulcio", make: certified("ca", "rekor", nil, 0), policy: fulcio, want: true, others: peers},
	{name: "fulcio, certificate expired since", make: certified("ca", "rekor", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}, -90*time.Minute), policy: fulcio, want: true, others: peers},
	{name: "fulcio, certificate expired before", make: certified("ca", "rekor", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}, 0), policy: fulcio, others: peers},
	{name: "fulcio, another e-mail", make: certified("ca", "rekor", func(c *x509.Certificate) { c.EmailAddresses = []string{"x@example.org"} }, 0), policy: fulcio, others: peers},
	{name: "fulcio, another issuer", make: certified("ca", "rekor", func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte("https://x.example.org") }, 0), policy: fulcio, others: peers},
	{name: "fulcio, another authority", make: certified("otherca", "rekor", nil, 0), policy: fulcio, others: peers},
	{name: "fulcio, no record", make: certified("ca", "", nil, 0), policy: fulcio, others: peers},
	{name: "fulcio, not for signing", make: certified("ca", "rekor", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, 0), policy: fulcio, others: peers},
	{name: "fulcio, URI", make: certified("ca", "rekor", func(c *x509.Certificate) {
		c.EmailAddresses, c.URIs = nil, []*url.URL{{Scheme: "https", Host: "ci.example.org", Path: "/build"}}
	}, 0), policy: strings.Replace(fulcio, `"subjectEmail":"dev@example.org"`, `"subjectURI":"https://ci.example.org/build"`, 1), want: true, others: alone},
	{name: "fulcio, another URI", make: certified("ca", "rekor", func(c *x509.Certificate) {
		c.EmailAddresses, c.URIs = nil, []*url.URL{{Scheme: "https", Host: "ci.example.org", Path: "/other"}}
	}, 0), policy: strings.Replace(fulcio, `"subjectEmail":"dev@example.org"`, `"subjectURI":"https://ci.example.org/build"`, 1), others: alone},
	{name: "pki", make: certified("ca", "", nil, 0), policy: pki, want: true, others: peers},
	{
		name: "pki, host", make: certified("ca", "", func(c *x509.Certificate) { c.DNSNames = []string{"build.example.org"} }, 0),
		policy: strings.Replace(pki, `"subjectEmail":"dev@example.org"`, `"subjectHostname":"build.example.org"`, 1), want: true, others: peers,
	},
	{name: "pki, expired", make: certified("ca", "", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, 0), policy: pki, others: peers},
	{name: "pki, another authority", make: certified("otherca", "", nil, 0), policy: pki, others: peers},
	{name: "pki, no certificate", make: attached(nil), policy: pki, others: peers},

	// Simple signing by skopeo.
	{name: "gpg", make: gpg("g1", ":1"), policy: g1, want: true, others: peers},
	{name: "gpg by digest", make: gpg("g1", ":1"), ref: byDigest, policy: g1, want: true, others: peers},
	{name: "gpg, wrong key", make: gpg("g2", ":1"), policy: g1, others: peers},
	{name: "gpg, one of two keys", make: gpg("g2", ":1"), policy: `{"type":"signedBy","keyType":"GPGKeys","keyPaths":["@g1.asc","@g2.asc"]}`, want: true, others: peers},
	{name: "gpg, another tag", make: gpg("g1", ":2"), policy: g1, others: peers},
	{name: "gpg, another repository", make: gpg("g1", "x:1"), policy: g1, others: peers},
	{name: "gpg, second signature fits", make: func(e *env) {
		gpg("g2", ":1")(e)
		e.simple("g1", e.repo+":1", e.image(e.path()), 2)
	}, policy: g1, want: true, others: peers},
	{name: "gpg, two signers", make: func(e *env) {
		gpg("g2", ":1")(e)
		e.simple("g1", e.repo+":1", e.image(e.path()), 2)
	}, policy: g1 + "," + g2, want: true, others: peers},
	{name: "gpg, two signers, one there", make: gpg("g2", ":1"), policy: g1 + "," + g2, others: peers},
	{name: "gpg, signature of another image", make: func(e *env) {
		e.simpleFor("g1", e.repo+":1", e.image("other"), digest.Digest(e.push("1", e.path())), 1)
	}, policy: g1, others: peers},
	{name: "gpg, no message", make: func(e *env) {
		d := e.push("1", e.path())
		testenv.Must(e.t, e.write("lookaside/"+e.path()+"@"+strings.Replace(d, ":", "=", 1)+"/signature-1", []byte("none")))
	}, policy: g1, others: peers},
	{name: "gpg and cosign 2 demanded", make: func(e *env) {
		gpg("g1", ":1")(e)
		e.v2("k1", digest.FromBytes(e.image(e.path())).String())
	}, policy: g1 + "," + k1, want: true, others: peers},
	{name: "gpg and cosign 2 demanded, gpg alone", make: gpg("g1", ":1"), policy: g1 + "," + k1, others: peers},
}

func TestMatrix(t *testing.T) {
	testenv.SkipShort(t, "needs registries and signers")
	testenv.NeedsRoot(t)
	if len(cases) < 40 {
		t.Errorf("%d cases, want at least 40", len(cases))
	}
	count := make(map[oracle]int)
	for i, c := range cases {
		count[c.others]++
		t.Run(c.name, func(t *testing.T) {
			e := start(t, fmt.Sprintf("case%d/image", i))
			h := *e.host
			e.host = &h // with an environment of its own
			c.make(e)
			ref := e.repo + ":1"
			if c.ref != nil {
				ref = c.ref(e)
			}
			policy := strings.NewReplacer("@", e.dir+"/", "REPO", e.repo).Replace(strings.ReplaceAll(c.policy, "dev@example", "dev\x00example"))
			policy = strings.ReplaceAll(policy, "\x00", "@")
			testenv.Must(t, e.write("policy.json", []byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"`+e.repo+`":[`+policy+`]}}}`)))

			if got, text := e.ours(ref); got != c.want {
				t.Errorf("ours: accepted is %v, want %v: %s", got, c.want, text)
			}
			switch c.others {
			case peers:
				if got, text := e.skopeo(ref); got != c.want {
					t.Errorf("skopeo: accepted is %v, want %v: %s", got, c.want, text)
				}
				if got, text := e.podman(ref); got != c.want {
					t.Errorf("podman: accepted is %v, want %v: %s", got, c.want, text)
				}
			case alone:
			case cosign:
				if got, text := e.verify(ref, c.key); got != (c.want || c.differ) {
					t.Errorf("cosign: accepted is %v, want %v: %s", got, c.want || c.differ, text)
				}
			}
		})
	}
	t.Logf("%d cases: %d with skopeo and podman, %d with cosign", len(cases), count[peers], count[cosign])
}

// ours returns what "image verify" says.
func (e *env) ours(ref string) (bool, string) {
	e.t.Helper()
	out, err := e.run(e.t.Context(), e.binary, "image", "verify", "--signature-policy", filepath.Join(e.dir, "policy.json"),
		"--registries.d", filepath.Join(e.dir, "home/.config/containers/registries.d"), ref)
	return e.verdict(out, err, "is refused by rule")
}

// verdict returns whether a program has accepted an image. One that fails with another text has not said.
func (e *env) verdict(out string, err error, refused ...string) (bool, string) {
	e.t.Helper()
	if err == nil {
		return true, out
	}
	var exit *exec.ExitError
	for _, text := range refused {
		if errors.As(err, &exit) && strings.Contains(out, text) {
			return false, out
		}
	}
	e.t.Fatalf("%v", err)
	return false, out
}

func (e *env) skopeo(ref string) (bool, string) {
	e.t.Helper()
	dst, err := os.MkdirTemp(e.dir, "copy")
	testenv.Must(e.t, err)
	out, err := e.run(e.t.Context(), e.signers+"/skopeo", "copy", "--policy", filepath.Join(e.dir, "policy.json"),
		"--registries.d", filepath.Join(e.dir, "home/.config/containers/registries.d"), "--src-tls-verify=false", "docker://"+ref, "dir:"+dst)
	return e.verdict(out, err, "Source image rejected")
}

func (e *env) podman(ref string) (bool, string) {
	e.t.Helper()
	root := filepath.Join(e.dir, "podman")
	out, err := e.run(e.t.Context(), e.signers+"/podman", "--root", root, "--runroot", root+"-run", "--tmpdir", root+"-tmp",
		"--storage-driver", "vfs", "pull", "--signature-policy", filepath.Join(e.dir, "policy.json"), "--tls-verify=false", ref)
	return e.verdict(out, err, "Source image rejected")
}

func (e *env) verify(ref, key string) (bool, string) {
	e.t.Helper()
	out, err := e.run(e.t.Context(), e.signers+"/cosign", "verify", "--key", key+".pub", "--insecure-ignore-tlog", "--allow-http-registry", ref)
	return e.verdict(out, err, "no signatures found", "no matching signatures", "failed to verify signature", "invalid signature", "no valid")
}
