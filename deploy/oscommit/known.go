package oscommit

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A repository keeps a list of labelled objects and the objects that they are made of, so that an update reads only the
// files that are new. The list can be lost: then all are read again. Nothing in it is believed without the object that
// it names.
const (
	knownDir  = "extensions/ostree-snapshotter" // where ostree leaves room for others
	knownName = knownDir + "/labelled"

	// The file is the magic, the SHA-256 of what follows, and for each object its key and its checksum, sorted.
	knownMagic  = "labelled objects 1\n"
	knownHeader = len(knownMagic) + sha256.Size
	knownEntry  = sha256.Size + len(objectstore.Checksum{})

	maxKnown = 1 << 20 // objects
)

// known holds the checksums of labelled objects.
type known map[knownKey]objectstore.Checksum

// A knownKey is the SHA-256 of an object's checksum and the label that it gets, which together determine the new object.
type knownKey [sha256.Size]byte

func keyOf(sum objectstore.Checksum, label string) knownKey {
	return sha256.Sum256(append(sum[:], label...))
}

// parseKnown returns nothing if the file is not whole.
func parseKnown(data []byte) known {
	if len(data) < knownHeader || string(data[:len(knownMagic)]) != knownMagic {
		return nil
	}
	entries := data[knownHeader:]
	if sum := sha256.Sum256(entries); len(entries)%knownEntry != 0 || !bytes.Equal(sum[:], data[len(knownMagic):knownHeader]) {
		return nil
	}
	k := make(known, len(entries)/knownEntry)
	for e := range slices.Chunk(entries, knownEntry) {
		k[knownKey(e)] = objectstore.Checksum(e[sha256.Size:])
	}
	return k
}

func (k known) marshal() []byte {
	data := make([]byte, knownHeader, knownSize(len(k)))
	copy(data, knownMagic)
	for _, key := range slices.SortedFunc(maps.Keys(k), func(a, b knownKey) int { return bytes.Compare(a[:], b[:]) }) {
		sum := k[key]
		data = append(append(data, key[:]...), sum[:]...)
	}
	sum := sha256.Sum256(data[knownHeader:])
	copy(data[len(knownMagic):], sum[:])
	return data
}

// knownSize returns the size of a file with n objects.
func knownSize(n int) int { return knownHeader + n*knownEntry }

func loadKnown(repo *objectstore.Repo) (known, error) {
	data, err := repo.Dir().ReadFile(knownName, int64(knownSize(maxKnown)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EFBIG) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read list of labelled objects: %w", err)
	}
	return parseKnown(data), nil
}

// save writes the file. It need not become durable: whoever finds half of it ignores it.
func (k known) save(repo *objectstore.Repo) error {
	tmp := "tmp/labelled-" + rand.Text() // prune removes what a crash leaves
	err := repo.Dir().MkdirAll(knownDir, 0o755)
	if err == nil {
		err = repo.Dir().WriteFile(tmp, k.marshal(), 0o644, false)
	}
	if err == nil {
		if err = repo.Dir().Rename(tmp, repo.Dir(), knownName, 0); err != nil {
			err = errors.Join(err, repo.Dir().Unlink(tmp))
		}
	}
	if err != nil {
		return fmt.Errorf("write list of labelled objects: %w", err)
	}
	return nil
}

// resolve finds the labelled files whose objects a repository has.
func (o *objects) resolve(repo *objectstore.Repo) error {
	if !slices.ContainsFunc(o.files, isRelabelled) {
		return nil
	}
	var err error
	if o.known, err = loadKnown(repo); err != nil || len(o.known) == 0 {
		return err
	}
	return o.eachFile(context.Background(), func(f *file) error {
		if f.relabel == nil {
			return nil
		}
		sum, ok := o.known[f.relabel.key]
		if !ok {
			return nil
		}
		if ok, err := f.isStored(repo, sum); !ok || err != nil {
			return err
		}
		f.sum = sum
		return nil
	})
}

func isRelabelled(f file) bool { return f.relabel != nil }

// isStored reports whether a repository has an object with all attributes of a file, and its size.
func (f *file) isStored(repo *objectstore.Repo, sum objectstore.Checksum) (bool, error) {
	st, err := repo.Stat(sum)
	if errors.Is(err, objectstore.ErrNotExist) {
		return false, nil
	}
	if err != nil || st.Mode != f.inode.Mode || st.Size != f.inode.Size {
		return false, err
	}
	is, err := repo.FileMeta(sum)
	if err != nil {
		return false, err
	}
	want := contentMeta(f.inode)
	return is.UID == want.UID && is.GID == want.GID && slices.EqualFunc(is.Xattrs, want.Xattrs, objectstore.Xattr.Equal), nil
}

// remember adds the labelled objects to the repository's list, and removes those that it no longer has.
func (o *objects) remember(repo *objectstore.Repo) error {
	now := make(known)
	changed := false
	for i := range o.files {
		if f := &o.files[i]; f.relabel != nil {
			now[f.relabel.key] = f.sum
			changed = changed || o.known[f.relabel.key] != f.sum
		}
	}
	if !changed {
		return nil
	}
	for key, sum := range o.known {
		if _, ok := now[key]; ok || len(now) >= maxKnown {
			continue
		}
		have, err := repo.Has(objectstore.TypeFile, sum)
		if err != nil {
			return err
		}
		if have {
			now[key] = sum
		}
	}
	if len(now) > maxKnown {
		return nil
	}
	return now.save(repo)
}
