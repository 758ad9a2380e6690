package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// RestoredRefs is the result of [Store.RestoreRefs].
type RestoredRefs struct {
	Removed []*objectstore.RefError        // refs that could not be read
	Refs    int                            // restored
	Damaged map[objectstore.Checksum]error // layers that lack more than refs, and what they lack
}

// RestoreRefs restores lost refs of layers: the ref that keeps the layer, and those by which the blobs it was unpacked
// from find it. The caller needs the layers, and knows the blobs from when the layers were made.
//
// Refs that cannot be read, as after a power failure, are removed first: while one exists nothing can be pruned.
//
// A layer that lacks an object gets no ref: it must not be found, so that it can be rebuilt. A ref that names another
// layer by now stays unchanged.
func (s *Store) RestoreRefs(ctx context.Context, layers map[objectstore.Checksum][]digest.Digest) (RestoredRefs, error) {
	r := RestoredRefs{Damaged: make(map[objectstore.Checksum]error)}
	var err error
	if r.Removed, err = s.RemoveDamagedRefs(ctx); err != nil {
		return r, fmt.Errorf("restore refs: %w", err)
	}
	refs, err := s.repo.Refs(RefPrefix)
	if err != nil {
		return r, fmt.Errorf("restore refs: %w", err)
	}
	kept := make(map[objectstore.Checksum]bool) // by a ref that concerns only this layer
	for ref, id := range refs {
		kept[id] = kept[id] || !strings.HasPrefix(ref, refBlob)
	}
	for id, blobs := range layers {
		missing := missingBlobRefs(refs, blobs)
		if kept[id] && len(missing) == 0 {
			continue
		}
		n, err := s.restoreLayerRefs(ctx, id, refs, missing, kept[id])
		r.Refs += n
		switch {
		case errors.Is(err, objectstore.ErrNotExist), errors.Is(err, objectstore.ErrCorrupt):
			r.Damaged[id] = err
		case err != nil:
			return r, fmt.Errorf("restore refs of layer %s: %w", id, err)
		}
	}
	return r, nil
}

// RemoveDamagedRefs removes the refs of layers whose files name no layer, and returns them. [Store.RestoreRefs] restores
// those that are needed.
func (s *Store) RemoveDamagedRefs(ctx context.Context) (removed []*objectstore.RefError, err error) {
	_, unreadable, err := s.repo.ReadableRefs(RefPrefix)
	if err != nil {
		return nil, err
	}
	for _, re := range unreadable {
		if !errors.Is(re, objectstore.ErrCorrupt) {
			return removed, re
		}
		if err := s.repo.DeleteRefs(ctx, re.Ref); err != nil {
			return removed, err
		}
		removed = append(removed, re)
	}
	return removed, nil
}

// missingBlobRefs returns the refs of blobs that are not in refs. It skips a blob whose digest cannot have one.
func missingBlobRefs(refs map[string]objectstore.Checksum, blobs []digest.Digest) []string {
	var missing []string
	for _, blob := range blobs {
		if ref, err := digestRef(refBlob, blob); err == nil && refs[ref].IsZero() && !slices.Contains(missing, ref) {
			missing = append(missing, ref)
		}
	}
	return missing
}

// restoreLayerRefs writes refs of a complete layer, and adds the layer's own unless one keeps it already. It returns
// how many it wrote.
func (s *Store) restoreLayerRefs(
	ctx context.Context, id objectstore.Checksum, refs map[string]objectstore.Checksum, missing []string, kept bool,
) (_ int, err error) {
	// From here on no prune can remove the objects found.
	txn, err := s.repo.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	if err := s.Whole(id); err != nil {
		return 0, err
	}
	if !kept {
		l, err := s.Layer(ctx, id)
		if err != nil {
			return 0, err
		}
		ref, err := digestRef(refDiff, l.DiffID)
		if err != nil || !refs[ref].IsZero() {
			ref = refSnapshot + id.String()[:shortID]
		}
		missing = append(missing, ref)
	}
	return len(missing), s.publishRefs(ctx, txn, journalRecord{layer: id, refs: missing})
}
