package objectstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

const verityContent = "content of a file with fs-verity"

var verityMeta = &objectstore.FileMeta{Mode: unix.S_IFREG | 0o644}

func storeOne(t *testing.T, repo *objectstore.Repo, content string) (objectstore.Stored, error) {
	t.Helper()
	txn, err := repo.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stored, err := txn.StoreFile(verityMeta, unix.Timespec{Sec: 7}, []byte(content))
	return stored, errors.Join(err, txn.Abort())
}

func wantDigest(t *testing.T, got objectstore.Checksum, content string) {
	t.Helper()
	want, err := composefs.VerityDigest(strings.NewReader(content))
	if err != nil || got != objectstore.Checksum(want) {
		t.Errorf("got digest %s, want %x (%v)", got, want, err)
	}
}

// New objects get fs-verity when stored, older ones on request; the kernel must then report the digest computed here.
func TestVerity(t *testing.T) {
	path := t.TempDir()
	testenv.NeedsVerity(t, path)
	repo := objecttest.NewRepoAt(t, objecttest.OpenDir(t, path))
	before, err := storeOne(t, repo, "before")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := repo.MeasureVerity(before.Checksum); ok || err != nil {
		t.Errorf("before: got %v, %v, want no digest", ok, err)
	}
	if err := repo.SetVerity(true); err != nil {
		t.Fatal(err)
	}
	after, err := storeOne(t, repo, verityContent)
	if err != nil {
		t.Fatal(err)
	}
	digest, ok, err := repo.MeasureVerity(after.Checksum)
	if !ok || err != nil {
		t.Errorf("got %v, %v, want a digest", ok, err)
	}
	wantDigest(t, digest, verityContent)
	if digest, err = repo.EnableVerity(before.Checksum); err != nil {
		t.Fatal(err)
	}
	wantDigest(t, digest, "before")
	if st, err := repo.Stat(before.Checksum); err != nil || st.Mtim.Sec != 7 {
		t.Errorf("got time %v, %v, want 7 s", st.Mtim, err)
	}
	if has, err := repo.HasVerity(); !has || err != nil {
		t.Errorf("got %v, %v, want fs-verity", has, err)
	}
	objecttest.Fsck(t, repo)

	// Damaged objects do not get it.
	if err := repo.SetVerity(false); err != nil {
		t.Fatal(err)
	}
	bad, err := storeOne(t, repo, "damaged")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(path, "objects", objectstore.LoosePath(bad.Checksum, objectstore.TypeFile))
	if err := os.WriteFile(name, []byte("DAMAGED"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.EnableVerity(bad.Checksum); !errors.Is(err, objectstore.ErrCorrupt) {
		t.Errorf("damaged: got %v, want %v", err, objectstore.ErrCorrupt)
	}
	if _, ok, err := repo.MeasureVerity(bad.Checksum); ok || err != nil {
		t.Errorf("damaged: got %v, %v, want no digest", ok, err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// The key is libostree's, and applies to every user of the repository. On a file system without fs-verity, "yes" is an
// error that stores nothing, and "maybe" is no error.
func TestVeritySetting(t *testing.T) {
	path := testenv.MemoryDir(t)
	dir := objecttest.OpenDir(t, path)
	repo := objecttest.NewRepoAt(t, dir)
	if has, err := repo.HasVerity(); has || err != nil {
		t.Errorf("got %v, %v, want no fs-verity", has, err)
	}
	config := filepath.Join(path, "config")
	plain, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.SetVerity(false); err != nil || repo.Verity() {
		t.Errorf("got %v, %v, want no fs-verity", repo.Verity(), err)
	}
	if b, err := os.ReadFile(config); err != nil || string(b) != string(plain) {
		t.Errorf("config became %q (%v), want no change", b, err)
	}
	if err := repo.SetVerity(true); err != nil || !repo.Verity() {
		t.Errorf("got %v, %v, want fs-verity", repo.Verity(), err)
	}
	if objecttest.HasOstree() {
		if got := objecttest.Ostree(t, repo, "config", "get", "ex-integrity.fsverity"); strings.TrimSpace(got) != "yes" {
			t.Errorf("ostree says %q, want yes", got)
		}
	}
	for _, tt := range []struct {
		value         string
		verity, fails bool
	}{{"yes", true, true}, {"true", true, true}, {"maybe", false, false}, {"no", false, false}} {
		if err := os.WriteFile(config, append(plain, "[ex-integrity]\nfsverity="+tt.value+"\n"...), 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := objectstore.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		stored, err := storeOne(t, again, tt.value)
		if again.Verity() != tt.verity || errors.Is(err, errors.ErrUnsupported) != tt.fails || err != nil != tt.fails {
			t.Errorf("%s: got %v, %v", tt.value, again.Verity(), err)
		}
		if have, err := again.Has(objectstore.TypeFile, stored.Checksum); err != nil || have == tt.fails {
			t.Errorf("%s: object is there: %v, %v", tt.value, have, err)
		}
		if err := again.SetVerity(false); err != nil || again.Verity() {
			t.Errorf("%s: got %v, %v, want no fs-verity", tt.value, again.Verity(), err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(config, append(plain, "[ex-integrity]\nfsverity=perhaps\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := objectstore.Open(dir); !errors.Is(err, objectstore.ErrCorrupt) {
		t.Errorf("got %v, %v, want %v", again, err, objectstore.ErrCorrupt)
	}
	if err := os.WriteFile(config, plain, 0o600); err != nil {
		t.Fatal(err)
	}
}
