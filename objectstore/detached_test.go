package objectstore_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// TestStoreCommitMeta stores detached metadata once, which ostree reads.
func TestStoreCommitMeta(t *testing.T) {
	repo := objecttest.NewRepo(t)
	commit := objecttest.Commit(t, repo, "r", oneFile("f"))
	dict := func(v string) []byte {
		return gvariant.AppendDict(nil, []gvariant.Entry{{Key: "k", Value: gvariant.String(v)}})
	}
	txn := begin(t, repo)
	for _, data := range [][]byte{dict("first"), dict("second")} {
		testenv.Must(t, txn.StoreCommitMeta(commit, data))
	}
	if err := txn.StoreCommitMeta(commit, []byte("xyz")); !errors.Is(err, objectstore.ErrInvalid) || !strings.Contains(err.Error(), commit.String()) {
		t.Errorf("no dictionary: got error %v, want an ErrInvalid of the commit", err)
	}
	data, err := repo.ReadMetadata(objectstore.TypeCommitMeta, commit)
	testenv.Must(t, err)
	if string(data) != string(dict("first")) {
		t.Errorf("got %q, want what was stored first", data)
	}
	objecttest.NeedsOstree(t)
	if got := objecttest.Ostree(t, repo, "show", "--print-detached-metadata-key=k", "r"); got != "'first'\n" {
		t.Errorf("ostree show: got %q, want first", got)
	}
}

func TestParseXattrs(t *testing.T) {
	for data, want := range map[string]string{
		"":                      "",
		"user.a\x00value\x07\r": "user.a=value ",
		"user.a\x00value\x07":   "error",
		"\x00value\x01\x07":     "error",
	} {
		xattrs, err := objectstore.ParseXattrs([]byte(data))
		got := ""
		for _, x := range xattrs {
			got += x.Name + "=" + string(x.Value) + " "
		}
		if err != nil {
			got = "error"
			if !errors.Is(err, objectstore.ErrCorrupt) {
				t.Errorf("%q: got error %v, want an ErrCorrupt", data, err)
			}
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", data, got, want)
		}
		if back, err2 := objectstore.MarshalXattrs(xattrs); err == nil && (err2 != nil || string(back) != data) {
			t.Errorf("%q: marshalled again it is %q, %v", data, back, err2)
		}
	}
}

func TestMarshalXattrsInvalid(t *testing.T) {
	data, err := objectstore.MarshalXattrs([]objectstore.Xattr{{Name: "user.empty"}})
	if !errors.Is(err, objectstore.ErrInvalid) || data != nil {
		t.Errorf("got %q, %v, want an ErrInvalid", data, err)
	}
}
