package objectstore

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// MetaEntry is an entry of a commit's metadata. Its key is not empty.
type MetaEntry = gvariant.Entry

// Commit is the object type commit: a tree and its description.
type Commit struct {
	Metadata  []MetaEntry // in stored order
	Parent    *Checksum   // the previous commit, nil for the first
	Subject   string
	Body      string
	Timestamp uint64   // seconds since 1970, UTC
	Tree      Checksum // dirtree of the root directory
	Meta      Checksum // dirmeta of the root directory
}

// Time returns the timestamp.
func (c *Commit) Time() time.Time { return time.Unix(int64(c.Timestamp), 0).UTC() }

// Root returns the root directory of the commit's tree, for [Repo.Lookup].
func (c *Commit) Root() TreeEntry { return TreeEntry{Dir: true, Checksum: c.Tree, Meta: c.Meta} }

// Lookup returns the metadata entry with a key.
func (c *Commit) Lookup(key string) (gvariant.Variant, bool) {
	for i := range c.Metadata {
		if c.Metadata[i].Key == key {
			return c.Metadata[i].Value, true
		}
	}
	return gvariant.Variant{}, false
}

// MetaString returns a metadata entry of type s. One of another type counts as absent, as for MetaUint64.
func (c *Commit) MetaString(key string) (string, bool) {
	v, _ := c.Lookup(key)
	return v.Str()
}

// MetaUint64 returns a metadata entry of type t, which is stored little-endian.
func (c *Commit) MetaUint64(key string) (uint64, bool) {
	v, _ := c.Lookup(key)
	return v.Uint64()
}

// Validate returns ErrInvalid if c cannot be stored as a commit object.
func (c *Commit) Validate() error {
	if !validString(c.Subject) || !validString(c.Body) {
		return invalidf("subject or body of the commit is not UTF-8")
	}
	if c.Tree.IsZero() || c.Meta.IsZero() {
		return invalidf("commit without a tree")
	}
	seen := make(map[string]struct{}, len(c.Metadata))
	for _, e := range c.Metadata {
		if e.Key == "" || !validString(e.Key) {
			return invalidf("commit metadata key %q", e.Key)
		}
		if _, twice := seen[e.Key]; twice {
			return invalidf("commit metadata key %q twice", e.Key)
		}
		seen[e.Key] = struct{}{}
		if err := e.Value.Check(); err != nil {
			return invalidf("commit metadata %q: %v", e.Key, err)
		}
	}
	return nil
}

// Marshal returns the object's bytes, a GVariant (a{sv}aya(say)sstayay) with a big-endian timestamp. It validates c.
func (c *Commit) Marshal() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b := gvariant.AppendDict(nil, c.Metadata)
	endMetadata := len(b)
	if c.Parent != nil {
		b = append(b, c.Parent[:]...)
	}
	endParent := len(b)
	endRelated := len(b) // a(say), always empty
	b = gvariant.AppendString(b, c.Subject)
	endSubject := len(b)
	b = gvariant.AppendString(b, c.Body)
	endBody := len(b)
	b = binary.BigEndian.AppendUint64(gvariant.Pad(b, 0, 8), c.Timestamp)
	b = append(b, c.Tree[:]...)
	endTree := len(b)
	b = append(b, c.Meta[:]...)
	return gvariant.AppendOffsets(b, 0, endTree, endBody, endSubject, endRelated, endParent, endMetadata), nil
}

var commitType = gvariant.MustType("(a{sv}aya(say)sstayay)")

// ParseCommit parses a commit object; anything else is ErrCorrupt. The values of the metadata refer to data.
// Allocations stay below 16 times len(data).
func ParseCommit(data []byte) (*Commit, error) {
	c, err := parseCommit(data)
	return parsed("commit", c, err)
}

func parseCommit(data []byte) (*Commit, error) {
	var buf [8][]byte
	v, err := commitType.Members(data, buf[:0])
	if err != nil {
		return nil, err
	}
	c := &Commit{Timestamp: binary.BigEndian.Uint64(v[5])}
	if c.Metadata, err = gvariant.ParseDict(v[0]); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if len(v[1]) > 0 {
		c.Parent = new(Checksum)
		if err := c.Parent.set(v[1]); err != nil {
			return nil, err
		}
	}
	if len(v[2]) > 0 {
		return nil, corruptf("related objects, which no version of ostree writes")
	}
	if c.Subject, err = parseString(v[3]); err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	if c.Body, err = parseString(v[4]); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	if err := c.Tree.set(v[6]); err != nil {
		return nil, err
	}
	if err := c.Meta.set(v[7]); err != nil {
		return nil, err
	}
	return c, c.Validate()
}
