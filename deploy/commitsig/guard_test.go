package commitsig

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// panics is a reader that panics, as the OpenPGP library may.
type panics struct{}

func (panics) Read([]byte) (int, error) { panic("injected") }

// TestPanic: a panic while OpenPGP signatures are read, or checked by a key, refuses them, and the remote is as before.
func TestPanic(t *testing.T) {
	sigs, err := guarded(func() (string, error) {
		_, err := io.ReadAll(panics{})
		return "partly read", err
	})
	if sigs != "" || err == nil || !strings.Contains(err.Error(), "injected") {
		t.Errorf("a reader that panics: got %q, %v", sigs, err)
	}

	data, err := os.ReadFile("testdata/key.gpg")
	testenv.Must(t, err)
	ring, err := parseKeyring(data)
	testenv.Must(t, err)
	sig, err := os.ReadFile("testdata/commit.sig")
	testenv.Must(t, err)
	list := gvariant.AppendArray(nil, 1, 1, func(b []byte, _ int) []byte { return append(b, sig...) })
	meta := gvariant.AppendDict(nil, []gvariant.Entry{{Key: keyGPG, Value: gvariant.Variant{Type: listType, Data: list}}})
	now := time.Unix(1_700_000_000, 0)
	r := &Remote{Name: "o", gpg: true, keyring: openpgp.EntityList{nil}} // looking at the key panics
	if v, err := r.Verify([]byte("commit"), meta, now); v != nil || !errors.Is(err, ErrBadSignature) {
		t.Errorf("a key that panics: got %+v, %v, want that no signature is accepted", v, err)
	}
	r.keyring = ring
	if _, err := r.Verify([]byte("commit"), meta, now); err != nil {
		t.Errorf("with its key, after a panic: %v", err)
	}
}
