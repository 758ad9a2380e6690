package signature

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distribution/reference"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func mustName(t *testing.T, name string) reference.Named {
	t.Helper()
	ref, err := ParseName(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

const (
	anyone = `{"type":"insecureAcceptAnything"}`
	nobody = `{"type":"reject"}`
)

func TestParsePolicy(t *testing.T) {
	for name, c := range map[string]struct{ policy, err string }{
		"smallest":            {`{"default":[` + nobody + `]}`, ""},
		"other transports":    {`{"default":[` + nobody + `],"transports":{"docker-daemon":{"":[` + anyone + `]},"odd":{"x":[` + nobody + `]}}}`, ""},
		"gpg":                 {`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}`, ""},
		"gpg, two paths":      {`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPaths":["/k","/l"]}]}`, ""},
		"keys":                {`{"default":[{"type":"sigstoreSigned","keyDatas":["YQ==","Yg=="],"signedIdentity":{"type":"matchRepository"}}]}`, ""},
		"fulcio":              {`{"default":[{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i","subjectEmail":"e"},"rekorPublicKeyPath":"/r"}]}`, ""},
		"pki":                 {`{"default":[{"type":"sigstoreSigned","pki":{"caRootsPath":"/c","subjectHostname":"h"}}]}`, ""},
		"empty":               {``, "unexpected EOF"},
		"no object":           {`[]`, "not a JSON object"},
		"no default":          {`{}`, `no "default"`},
		"unknown key":         {`{"default":[` + nobody + `],"defaults":[]}`, `unknown key "defaults"`},
		"key twice":           {`{"default":[` + anyone + `],"default":[` + nobody + `]}`, `"default" occurs twice`},
		"scope twice":         {`{"default":[` + nobody + `],"transports":{"docker":{"a":[` + nobody + `],"a":[` + anyone + `]}}}`, `"a" occurs twice`},
		"empty list":          {`{"default":[]}`, "list of requirements is empty"},
		"null list":           {`{"default":null}`, "list of requirements is empty"},
		"unknown type":        {`{"default":[{"type":"x"}]}`, `unknown type "x"`},
		"extra key":           {`{"default":[{"type":"reject","x":1}]}`, `unknown key "x"`},
		"trailing data":       {`{"default":[` + nobody + `]} x`, "data after"},
		"no key":              {`{"default":[{"type":"signedBy","keyType":"GPGKeys"}]}`, "names no key"},
		"empty path":          {`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":""}]}`, `"keyPath" is empty`},
		"two places":          {`{"default":[{"type":"sigstoreSigned","keyPath":"/k","keyData":"YQ=="}]}`, "exclude each other"},
		"keyDatas of gpg":     {`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyDatas":["YQ=="]}]}`, `unknown key "keyDatas"`},
		"key type":            {`{"default":[{"type":"signedBy","keyType":"X509Certificates","keyPath":"/k"}]}`, "only GPGKeys"},
		"keys and pki":        {`{"default":[{"type":"sigstoreSigned","keyPath":"/k","pki":{"caRootsPath":"/c","subjectEmail":"e"}}]}`, "exclude each other"},
		"fulcio without log":  {`{"default":[{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i","subjectEmail":"e"}}]}`, "needs a rekorPublicKey"},
		"fulcio for anyone":   {`{"default":[{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i"},"rekorPublicKeyPath":"/r"}]}`, "no subjectEmail"},
		"fulcio of anyone":    {`{"default":[{"type":"sigstoreSigned","fulcio":{"caPath":"/c","subjectEmail":"e"},"rekorPublicKeyPath":"/r"}]}`, "no oidcIssuer"},
		"pki with log":        {`{"default":[{"type":"sigstoreSigned","pki":{"caRootsPath":"/c","subjectEmail":"e"},"rekorPublicKeyPath":"/r"}]}`, "exclude each other"},
		"pki for anyone":      {`{"default":[{"type":"sigstoreSigned","pki":{"caRootsPath":"/c"}}]}`, "no subjectEmail"},
		"unknown identity":    {`{"default":[{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"x"}}]}`, `unknown type "x"`},
		"reference, no tag":   {`{"default":[{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"exactReference","dockerReference":"a/b"}}]}`, "neither a tag nor a digest"},
		"prefix with a tag":   {`{"default":[{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a.b/c:d","signedPrefix":"x.y"}}]}`, "it has a tag"},
		"identity, extra key": {`{"default":[{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchExact","x":1}}]}`, `unknown key "x"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParsePolicy([]byte(c.policy))
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if err != nil && !errors.As(err, new(*PolicyError)) {
				t.Errorf("error %T, want a PolicyError", err)
			}
		})
	}
}

func TestLoadPolicy(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadPolicy(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, new(*PolicyError)) {
		t.Errorf("absent file: %v", err)
	}
	file := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(file, []byte(`{"default":[`+nobody+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := LoadPolicy(file); err != nil || p.File != file {
		t.Errorf("policy %v, error %v", p, err)
	}
	if err := os.Truncate(file, maxConfig+1); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadPolicy(file); err == nil || !strings.Contains(err.Error(), "has more than") {
		t.Errorf("large file: %v", err)
	}
}

// TestSystemPolicy: the vendor's policy counts without that of the host, and only a policy that is not there at all is absent.
func TestSystemPolicy(t *testing.T) {
	dir := t.TempDir()
	host, vendor := filepath.Join(dir, "etc/policy.json"), filepath.Join(dir, "usr/policy.json")
	saved := systemPolicies
	systemPolicies = []string{host, vendor}
	t.Cleanup(func() { systemPolicies = saved })
	if _, err := LoadPolicy(""); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), host) {
		t.Errorf("no policy: error is %v", err)
	}
	for _, d := range []string{"etc", "usr"} {
		testenv.Must(t, os.Mkdir(filepath.Join(dir, d), 0o700))
	}
	testenv.Must(t, os.WriteFile(vendor, []byte(`{"default":[`+nobody+`]}`), 0o600))
	if p, err := LoadPolicy(""); err != nil || p.File != vendor {
		t.Errorf("only the vendor's: policy %v, error %v", p, err)
	}
	// A link that leads nowhere is a policy that is lost.
	testenv.Must(t, os.Symlink("lost", host))
	if p, err := LoadPolicy(""); err == nil || errors.Is(err, fs.ErrNotExist) || !errors.As(err, new(*PolicyError)) {
		t.Errorf("the host's is lost: policy %v, error %v", p, err)
	}
	if _, err := LoadPolicy(host); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a lost policy by name: error is %v", err)
	}
	testenv.Must(t, os.RemoveAll(filepath.Dir(host)))
	testenv.Must(t, os.Symlink("lost", filepath.Dir(host)))
	if p, err := LoadPolicy(""); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the host's directory is lost: policy %v, error %v", p, err)
	}
	testenv.Must(t, os.Remove(filepath.Dir(host)))
	testenv.Must(t, os.Mkdir(filepath.Join(dir, "elsewhere"), 0o700))
	testenv.Must(t, os.Symlink("elsewhere", filepath.Dir(host)))
	if p, err := LoadPolicy(""); err != nil || p.File != vendor {
		t.Errorf("the host's directory is elsewhere: policy %v, error %v", p, err)
	}
	testenv.Must(t, os.WriteFile(host, []byte(`{`), 0o600))
	if p, err := LoadPolicy(""); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the host's is damaged: policy %v, error %v", p, err)
	}
}

func TestRule(t *testing.T) {
	list := `[` + nobody + `]`
	p, err := ParsePolicy([]byte(`{"default":` + list + `,"transports":{"docker":{
		"a.example.com:5000/x/y:1":` + list + `,"a.example.com:5000/x/y":` + list + `,"a.example.com:5000/x":` + list + `,
		"a.example.com:5000":` + list + `,"*.example.com":` + list + `,"docker.io/library":` + list + `}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"a.example.com:5000/x/y:1": "a.example.com:5000/x/y:1",
		"a.example.com:5000/x/y":   "a.example.com:5000/x/y",
		"a.example.com:5000/x/z":   "a.example.com:5000/x",
		"a.example.com:5000/z":     "a.example.com:5000",
		"a.example.com/z":          "*.example.com",
		"example.com/z":            "default",
		"busybox":                  "docker.io/library",
		"a.example.com:5000/xx/y":  "a.example.com:5000",
	} {
		if scope, _ := p.rule(mustName(t, name)); scope != want {
			t.Errorf("%s: scope %s, want %s", name, scope, want)
		}
	}
	p, err = ParsePolicy([]byte(`{"default":[` + anyone + `],"transports":{"docker":{"":[{"type":"sigstoreSigned","keyPath":"/k"}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if scope, _ := p.rule(mustName(t, "busybox")); scope != "docker" || !p.Demands(mustName(t, "busybox")) || !p.AcceptsUnknown() {
		t.Errorf("scope %s", scope)
	}
}

// TestAcceptsUnknown: neither the default nor the scope of all registries may accept images that no scope names.
func TestAcceptsUnknown(t *testing.T) {
	for policy, want := range map[string]bool{
		`{"default":[` + nobody + `]}`:                                                   false,
		`{"default":[` + anyone + `]}`:                                                   true,
		`{"default":[` + anyone + `,` + nobody + `]}`:                                    false,
		`{"default":[` + nobody + `],"transports":{"docker":{"":[` + anyone + `]}}}`:     true,
		`{"default":[` + nobody + `],"transports":{"docker":{"r.io":[` + anyone + `]}}}`: false,
		`{"default":[` + nobody + `],"transports":{"dir":{"":[` + anyone + `]}}}`:        false,
	} {
		p, err := ParsePolicy([]byte(policy))
		testenv.Must(t, err)
		if got := p.AcceptsUnknown(); got != want {
			t.Errorf("%s: %t, want %t", policy, got, want)
		}
	}
}

func TestIdentity(t *testing.T) {
	sum := "@sha256:" + strings.Repeat("a", 64)
	other := "@sha256:" + strings.Repeat("b", 64)
	type row struct {
		identity, image, signed string
		want                    bool
	}
	for _, c := range []row{
		{``, "r.io/a:1", "r.io/a:1", true},
		{``, "r.io/a:1", "r.io/a:2", false},
		{``, "r.io/a:1", "r.io/a", false},
		{``, "r.io/a:1", "r.io/b:1", false},
		{``, "r.io/a" + sum, "r.io/a:1", true},
		{``, "r.io/a" + sum, "r.io/a" + other, true},
		{``, "r.io/a" + sum, "r.io/b:1", false},
		{``, "r.io/a" + sum, "r.io/a", false},
		{``, "busybox", "busybox:latest", true},
		{``, "r.io/a:1", "not a name", false},
		{`{"type":"matchExact"}`, "r.io/a" + sum, "r.io/a:1", false},
		{`{"type":"matchExact"}`, "r.io/a" + sum, "r.io/a" + sum, true},
		{`{"type":"matchExact"}`, "r.io/a:1", "r.io/a:1", true},
		{`{"type":"matchRepository"}`, "r.io/a:1", "r.io/a", true},
		{`{"type":"matchRepository"}`, "r.io/a:1", "r.io/a:2", true},
		{`{"type":"matchRepository"}`, "r.io/a:1", "r.io/a/b:1", false},
		{`{"type":"exactReference","dockerReference":"q.io/z:9"}`, "r.io/a:1", "q.io/z:9", true},
		{`{"type":"exactReference","dockerReference":"q.io/z:9"}`, "r.io/a:1", "r.io/a:1", false},
		{`{"type":"exactRepository","dockerRepository":"q.io/z"}`, "r.io/a:1", "q.io/z:3", true},
		{`{"type":"exactRepository","dockerRepository":"q.io/z"}`, "r.io/a:1", "q.io/y:3", false},
		{`{"type":"remapIdentity","prefix":"r.io","signedPrefix":"q.io/z"}`, "r.io/a:1", "q.io/z/a:1", true},
		{`{"type":"remapIdentity","prefix":"r.io/a","signedPrefix":"q.io/z"}`, "r.io/a:1", "q.io/z:1", true},
		{`{"type":"remapIdentity","prefix":"r.io/a","signedPrefix":"q.io/z"}`, "r.io/ab:1", "q.io/zb:1", false},
		{`{"type":"remapIdentity","prefix":"r.io/a","signedPrefix":"q.io/z"}`, "r.io/ab:1", "r.io/ab:1", true},
		{`{"type":"remapIdentity","prefix":"r.io","signedPrefix":"q.io"}`, "r.io/a" + sum, "q.io/a:1", true},
	} {
		var raw []byte
		if c.identity != "" {
			raw = []byte(c.identity)
		}
		id, err := parseIdentity(raw)
		if err != nil {
			t.Errorf("%s: %v", c.identity, err)
			continue
		}
		if got := id.matches(mustName(t, c.image), c.signed); got != c.want {
			t.Errorf("%v: %v", c, got)
		}
	}
}

func TestParseName(t *testing.T) {
	sum := "@sha256:" + strings.Repeat("a", 64)
	got := map[string]string{}
	for _, name := range []string{"busybox", "r.io/a", "r.io/a:1", "r.io/a:1" + sum} {
		got[name] = mustName(t, name).String()
	}
	want := map[string]string{
		"busybox": "docker.io/library/busybox:latest", "r.io/a": "r.io/a:latest", "r.io/a:1": "r.io/a:1", "r.io/a:1" + sum: "r.io/a" + sum,
	}
	if d := testenv.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := ParseName("R.io/A b"); err == nil {
		t.Error("an invalid name was parsed")
	}
}
