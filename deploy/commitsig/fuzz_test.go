package commitsig_test

import (
	"bytes"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/commitsig"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// pgp returns an OpenPGP key, and its signature of "commit".
func pgp(tb testing.TB) (key, sig []byte) {
	tb.Helper()
	key, err := os.ReadFile("testdata/key.gpg")
	testenv.Must(tb, err)
	sig, err = os.ReadFile("testdata/commit.sig")
	testenv.Must(tb, err)
	return key, sig
}

func pgpRemote(tb testing.TB, key []byte) *commitsig.Remote {
	tb.Helper()
	h := host("[remote \"o\"]\n")
	h.Root = fstest.MapFS{"usr/share/ostree/trusted.gpg.d/k.gpg": {Data: key, Mode: 0o644}}
	r, err := commitsig.Load(h, "o")
	testenv.Must(tb, err)
	return r
}

// FuzzMeta parses detached metadata, and then verifies it: no input makes an accepted signature of another commit.
func FuzzMeta(f *testing.F) {
	key, sig := pgp(f)
	r := pgpRemote(f, key)
	good := meta(map[string][][]byte{"ostree.gpgsigs": {sig}})
	f.Add(good)
	f.Add(meta(map[string][][]byte{"ostree.gpgsigs": {sig, sig}, "ostree.sign.ed25519": {make([]byte, 64)}}))
	f.Add([]byte{})
	now := time.Unix(1_700_000_000, 0)
	if _, err := r.Verify([]byte("commit"), good, now); err != nil {
		f.Fatalf("the signature: %v", err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := commitsig.Parse(data)
		if err == nil {
			total := 0
			for _, sig := range append(s.GPG, s.Ed25519...) {
				total += len(sig)
			}
			if total > len(data) {
				t.Errorf("%d bytes of signatures in %d bytes", total, len(data))
			}
		}
		if v, err := r.Verify([]byte("another commit"), data, now); err == nil {
			t.Errorf("accepted for another commit: %+v", v)
		}
		if _, err := r.Verify([]byte("commit"), data, now); err == nil && !bytes.Contains(data, sig[len(sig)-64:]) {
			t.Errorf("accepted without the signature: %x", data)
		}
	})
}
