package commitsig_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/commitsig"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// key is a key of the tests.
var key = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func public() string {
	return base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
}

// host returns a host whose repository has a configuration.
func host(config string) commitsig.Host {
	return commitsig.Host{Root: fstest.MapFS{}, Repo: fstest.MapFS{"config": {Data: []byte(config), Mode: 0o644}}}
}

const only25519 = "[remote \"o\"]\ngpg-verify=false\nsign-verify=ed25519\nverification-ed25519-key="

// meta returns detached metadata.
func meta(lists map[string][][]byte) []byte {
	var entries []gvariant.Entry
	for name, sigs := range lists {
		data := gvariant.AppendArray(nil, 1, len(sigs), func(b []byte, i int) []byte { return append(b, sigs[i]...) })
		entries = append(entries, gvariant.Entry{Key: name, Value: gvariant.Variant{Type: "aay", Data: data}})
	}
	return gvariant.AppendDict(nil, entries)
}

func TestVerify(t *testing.T) {
	r, err := commitsig.Load(host(only25519+public()+"\n"), "o")
	testenv.Must(t, err)
	commit := []byte("commit")
	sig := ed25519.Sign(key, commit)
	now := time.Now()
	v, err := r.Verify(commit, meta(map[string][][]byte{"ostree.sign.ed25519": {[]byte("short"), sig}}), now)
	if err != nil || v.Remote != "o" || !slices.Equal(v.Keys, []string{"ed25519 " + public()}) {
		t.Errorf("signed: got %+v, %v, want the key of remote o", v, err)
	}
	for name, test := range map[string]struct {
		commit string
		meta   []byte
		want   error
	}{
		"no metadata":       {"commit", nil, commitsig.ErrUnsigned},
		"another kind":      {"commit", meta(map[string][][]byte{"ostree.gpgsigs": {sig}}), commitsig.ErrUnsigned},
		"another commit":    {"other", meta(map[string][][]byte{"ostree.sign.ed25519": {sig}}), commitsig.ErrBadSignature},
		"not a dictionary":  {"commit", []byte("x"), commitsig.ErrInvalid},
		"many signatures":   {"commit", meta(map[string][][]byte{"ostree.sign.ed25519": make([][]byte, 65)}), commitsig.ErrInvalid},
		"large signature":   {"commit", meta(map[string][][]byte{"ostree.sign.ed25519": {make([]byte, 64<<10+1)}}), commitsig.ErrInvalid},
		"large metadata":    {"commit", make([]byte, 10<<20+1), commitsig.ErrInvalid},
		"two lists":         {"commit", twice(sig), commitsig.ErrInvalid},
		"value not a list":  {"commit", gvariant.AppendDict(nil, []gvariant.Entry{{Key: "ostree.sign.ed25519", Value: gvariant.String("x")}}), commitsig.ErrUnsigned},
		"no signature left": {"commit", meta(map[string][][]byte{"ostree.sign.ed25519": {}}), commitsig.ErrUnsigned},
	} {
		if _, err := r.Verify([]byte(test.commit), test.meta, now); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

// twice returns detached metadata with two lists of ed25519 signatures.
func twice(sig []byte) []byte {
	e := gvariant.Entry{Key: "ostree.sign.ed25519", Value: gvariant.Variant{Type: "aay", Data: gvariant.AppendArray(nil, 1, 1, func(b []byte, _ int) []byte { return append(b, sig...) })}}
	return gvariant.AppendDict(nil, []gvariant.Entry{e, e})
}

func TestLoadErrors(t *testing.T) {
	for name, test := range map[string]struct {
		config string
		want   error
		text   string
	}{
		"no remote":            {"[core]\nmode=bare\n", commitsig.ErrNoRemote, "o is neither in"},
		"no signature":         {"[remote \"o\"]\ngpg-verify=false\n", commitsig.ErrRemote, "demands no signature"},
		"no OpenPGP key":       {"[remote \"o\"]\n", commitsig.ErrRemote, "there is no key"},
		"relative path":        {"[remote \"o\"]\ngpgkeypath=keys\n", commitsig.ErrRemote, "not absolute"},
		"no ed25519 key":       {"[remote \"o\"]\ngpg-verify=false\nsign-verify=true\n", commitsig.ErrRemote, "there is no key"},
		"only another kind":    {"[remote \"o\"]\ngpg-verify=false\nsign-verify=spki\n", commitsig.ErrRemote, "only ed25519"},
		"short ed25519 key":    {only25519 + "AAAA\n", commitsig.ErrRemote, "3 bytes"},
		"not true and not off": {"[remote \"o\"]\ngpg-verify=perhaps\n", commitsig.ErrRemote, "gpg-verify"},
	} {
		if _, err := commitsig.Load(host(test.config), "o"); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got %v, want %v with %q", name, err, test.want, test.text)
		}
	}
	twofold := host(only25519 + public() + "\n")
	twofold.Root = fstest.MapFS{"etc/ostree/remotes.d/o.conf": {Data: []byte("[remote \"o\"]\n"), Mode: 0o644}}
	if _, err := commitsig.Load(twofold, "o"); !errors.Is(err, commitsig.ErrRemote) || !strings.Contains(err.Error(), "both") {
		t.Errorf("a remote in two files: got %v", err)
	}
	for _, name := range []string{"", "../o", "o\"]"} {
		if _, err := commitsig.Load(host(only25519+public()+"\n"), name); !errors.Is(err, commitsig.ErrNoRemote) {
			t.Errorf("name %q: got %v, want no such remote", name, err)
		}
	}
}

// TestRevoked: a revoked key is not used even if the remote has it in its own configuration.
func TestRevoked(t *testing.T) {
	h := host(only25519 + public() + "\n")
	h.Root = fstest.MapFS{"etc/ostree/revoked.ed25519.d/r": {Data: []byte("# key\n" + public() + "\n"), Mode: 0o644}}
	r, err := commitsig.Load(h, "o")
	testenv.Must(t, err)
	commit := []byte("commit")
	_, err = r.Verify(commit, meta(map[string][][]byte{"ostree.sign.ed25519": {ed25519.Sign(key, commit)}}), time.Now())
	if !errors.Is(err, commitsig.ErrBadSignature) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("got %v, want that the key is revoked", err)
	}
}
