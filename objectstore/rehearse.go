package objectstore

import (
	"sync"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/sha256x2"
)

// A rehearsal holds the metadata of content objects whose inodes are those of other objects.
type rehearsal struct {
	mu    sync.Mutex
	metas map[Checksum]*FileMeta
}

// Rehearse makes r, as long as it is open, a repository to find out in what would be stored. A transaction reads the same
// content and creates the same names, but links the files of other repositories where they are on the same mount, instead
// of copying them: also those that other users can change, and with [Txn.ImportContent] those that have other metadata.
// FileMeta returns the metadata that the object would have. Nothing else about r is right: throw it away.
//
// Call it before storing anything.
func (r *Repo) Rehearse() { r.rehearsal = &rehearsal{metas: make(map[Checksum]*FileMeta)} }

func (h *rehearsal) set(sum Checksum, m *FileMeta) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.metas[sum] = m
}

// meta returns the metadata of an object whose inode has others, or nil.
func (h *rehearsal) meta(sum Checksum) *FileMeta {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.metas[sum]
}

// rehearseContent is importContent with a link in place of a copy.
func (t *Txn) rehearseContent(from *Repo, sum Checksum, is, want *FileMeta, size int64) (Stored, error) {
	fresh, err := from.hashAs(sum, is, want, size)
	if err != nil {
		return Stored{}, err
	}
	src, err := from.subdir(sum[0], false)
	if err != nil {
		return Stored{}, err
	}
	t.repo.rehearsal.set(fresh, want)
	added, err := t.inSubdir(TypeFile, fresh, func(d *atfs.Dir) error {
		return src.Link(looseName(&sum, TypeFile), d, looseName(&fresh, TypeFile))
	})
	return Stored{Checksum: fresh, Added: added, Linked: added}, err
}

// hashAs returns the checksum of an object's content with other metadata, and verifies the object.
func (r *Repo) hashAs(sum Checksum, is, want *FileMeta, size int64) (fresh Checksum, err error) {
	if err := want.Validate(); err != nil {
		return fresh, err
	}
	in, _, err := r.openContent(sum, size)
	if err != nil {
		return fresh, err
	}
	defer in.Close()
	before, after := getHasher(), getHasher()
	defer before.put()
	defer after.put()
	before.startUnchecked(is)
	after.startUnchecked(want)
	buf := getCopyBuffer()
	defer copyBuffers.Put(buf)
	if err := copyAll(hasherPair{before, after}, in, buf[:]); err != nil {
		return fresh, err
	}
	return after.finish(), verifySum(before.finish(), sum)
}

// A hasherPair hashes the same content for two headers.
type hasherPair struct{ a, b *hasher }

func (p hasherPair) Write(b []byte) (int, error) {
	sha256x2.WriteBoth(p.a.hash, p.b.hash, b)
	return len(b), nil
}
