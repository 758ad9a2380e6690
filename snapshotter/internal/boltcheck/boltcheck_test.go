package boltcheck

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

const pageSize = 4096

// database returns a database with buckets of all sizes, free pages, and values that span pages.
func database(tb testing.TB, options *bolt.Options) []byte {
	tb.Helper()
	name := filepath.Join(tb.TempDir(), "db")
	options.PageSize = pageSize
	db, err := bolt.Open(name, 0o600, options)
	if err != nil {
		tb.Fatal(err)
	}
	for round := range 4 {
		if err := db.Update(func(tx *bolt.Tx) error {
			top, err := tx.CreateBucketIfNotExists([]byte("v1"))
			if err != nil {
				return err
			}
			for i := range 150 {
				b, err := top.CreateBucketIfNotExists(fmt.Appendf(nil, "bucket %d", i))
				if err != nil {
					return err
				}
				for k := range i % 9 {
					if err := b.Put(fmt.Appendf(nil, "key %d", k), bytes.Repeat([]byte{byte(round)}, i*k)); err != nil {
						return err
					}
				}
			}
			return errors.Join(top.Put([]byte("large"), make([]byte, 3*pageSize)), top.DeleteBucket(fmt.Appendf(nil, "bucket %d", 7*round)))
		}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		tb.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// bboltErr returns the errors of bbolt's own check, except for wasted pages. It must not be called on a damaged
// database.
func bboltErr(tb testing.TB, data []byte) error {
	tb.Helper()
	name := filepath.Join(tb.TempDir(), "db")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	db, err := bolt.Open(name, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return err
	}
	err = db.View(func(tx *bolt.Tx) error {
		var errs []error
		for err := range tx.Check() {
			if !strings.HasSuffix(err.Error(), ": unreachable unfreed") {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, db.Close())
}

// readVersion is the version of bbolt against which this package was checked: internal/common/page.go, meta.go and
// bucket.go, and the rules in tx_check.go.
const readVersion = "v1.5.0"

// TestVersion fails when bbolt moves: this package would take pages that the new version writes differently for damage,
// and the store would fall back to a copy. Compare the files above between the two versions, then change readVersion.
func TestVersion(t *testing.T) {
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "go.etcd.io/bbolt" {
			if f[1] != readVersion {
				t.Errorf("go.mod has bbolt %s, the page format was read in %s", f[1], readVersion)
			}
			return
		}
	}
	t.Error("go.mod does not have bbolt")
}

func TestWholeDatabases(t *testing.T) {
	for name, options := range map[string]*bolt.Options{
		"default":          {},
		"hashmap freelist": {FreelistType: bolt.FreelistMapType},
		"no freelist":      {NoFreelistSync: true},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Check(database(t, options)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDamagedPages damages pages in several ways: Check finds each damage, unless bbolt finds none either.
func TestDamagedPages(t *testing.T) {
	data := database(t, &bolt.Options{})
	pages := len(data) / pageSize
	random := rand.New(rand.NewPCG(1, 2))
	garbage := func(b []byte) {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
	}
	for name, damage := range map[string]func(b []byte, page int) []byte{
		"zero":                      func(b []byte, page int) []byte { clear(b[page*pageSize:][:pageSize]); return b },
		"garbage":                   func(b []byte, page int) []byte { garbage(b[page*pageSize:][:pageSize]); return b },
		"garbage behind the header": func(b []byte, page int) []byte { garbage(b[page*pageSize+headerSize:][:pageSize-headerSize]); return b },
		"cut":                       func(b []byte, page int) []byte { return b[:page*pageSize] },
		"cut in the middle":         func(b []byte, page int) []byte { return b[:page*pageSize+pageSize/2] },
		"another page": func(b []byte, page int) []byte {
			copy(b[page*pageSize:][:pageSize], data[(page*7+3)%pages*pageSize:])
			return b
		},
		// As if the page had been written to the wrong place: only its content shows it.
		"another page with this one's number": func(b []byte, page int) []byte {
			copy(b[page*pageSize+8:][:pageSize-8], data[(page*7+3)%pages*pageSize+8:])
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			found := 0
			for page := range pages {
				bad := damage(bytes.Clone(data), page)
				if Check(bad) != nil {
					found++
				} else if page < 2 {
					continue // one meta page is enough: an interrupted write leaves one
				} else if err := bboltErr(t, bad); err != nil {
					t.Errorf("page %d: passes, but bbolt says %v", page, err)
				}
			}
			t.Logf("found for %d of %d pages", found, pages)
			if found < 40 { // most pages are free
				t.Errorf("found for %d of %d pages, want at least 40", found, pages)
			}
		})
	}
}

// FuzzCheck changes a few bytes of a database: Check must not panic or hang.
func FuzzCheck(f *testing.F) {
	data := database(f, &bolt.Options{})
	f.Add([]byte{})
	f.Add([]byte("\x00\x10\x00\x01\x20\x00\x02\x02"))
	f.Fuzz(func(_ *testing.T, changes []byte) {
		bad := bytes.Clone(data)
		for ; len(changes) >= 4; changes = changes[4:] { // three bytes are the position
			at := int(changes[0]) | int(changes[1])<<8 | int(changes[2])<<16
			bad[at%len(bad)] = changes[3]
		}
		_ = Check(bad)
	})
}
