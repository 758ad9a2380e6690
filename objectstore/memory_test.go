package objectstore_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// maxAmplification is the memory bound in the documentation of ParseDirTree, ParseDirMeta and ParseCommit.
const maxAmplification = 16

// TestParseMemory measures the most expensive objects: with as many elements as possible, and claiming more.
func TestParseMemory(t *testing.T) {
	const n = 200_000
	name := func(i int) string { return fmt.Sprintf("%x", i) }
	tree := &objectstore.DirTree{}
	for i := range n {
		tree.Files = append(tree.Files, objectstore.TreeFile{Name: name(i)})
	}
	dirs := &objectstore.DirTree{}
	for i := range n {
		dirs.Dirs = append(dirs.Dirs, objectstore.TreeDir{Name: name(i)})
	}
	commit := &objectstore.Commit{Tree: hashOf(nil), Meta: hashOf(nil)}
	for i := range n {
		commit.Metadata = append(commit.Metadata, objectstore.MetaEntry{Key: name(i), Value: gvariant.Variant{Type: "y", Data: []byte{1}}})
	}
	marshal := func(v interface{ Marshal() ([]byte, error) }) []byte {
		b, err := v.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// Marshal rejects attributes that no file can have. This is what it would write.
	attrs := make([]byte, 12)
	binary.BigEndian.PutUint32(attrs[8:], 0o40755)
	attrs = gvariant.AppendArray(attrs, 1, n, func(b []byte, i int) []byte {
		start := len(b)
		b = gvariant.AppendString(b, name(i))
		return gvariant.AppendOffsets(b, start, len(b))
	})
	// The offsets at the end point as far as possible.
	claims := func(b []byte) []byte {
		b = slices.Clone(b)
		for i := len(b) - 4096; i < len(b); i++ {
			b[i] = 0xff
		}
		return b
	}
	dirTree := func(b []byte) error { _, err := objectstore.ParseDirTree(b); return err }
	dirMeta := func(b []byte) error { _, err := objectstore.ParseDirMeta(b); return err }
	parseCommit := func(b []byte) error { _, err := objectstore.ParseCommit(b); return err }
	for _, tt := range []struct {
		name  string
		data  []byte
		parse func([]byte) error
	}{
		{"files", marshal(tree), dirTree},
		{"directories", marshal(dirs), dirTree},
		{"attributes", attrs, dirMeta},
		{"commit metadata", marshal(commit), parseCommit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, data := range [][]byte{tt.data, claims(tt.data)} {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				err := tt.parse(data)
				runtime.ReadMemStats(&after)
				if err != nil && !errors.Is(err, objectstore.ErrCorrupt) {
					t.Error(err)
				}
				got := float64(after.TotalAlloc-before.TotalAlloc) / float64(len(data))
				t.Logf("%.1f times %d bytes, error %v", got, len(data), err)
				if got > maxAmplification {
					t.Errorf("allocated %.1f times the object of %d bytes, documented are %d", got, len(data), maxAmplification)
				}
			}
		})
	}
}
