package layer

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Share shares the space of the store out among layers: each gets the objects that none before it has, and its
// checkouts. As for [Held].Added, inodes borrowed from another repository count for nobody. The shares add up to the
// space of all objects and checkouts of the layers. Layers that cannot be read have no share. A layer may occur twice.
//
// It takes time linear in the objects of all layers, and no lock.
func (s *Store) Share(ctx context.Context, layers []objectstore.Checksum) (map[objectstore.Checksum]Usage, error) {
	shares := make(map[objectstore.Checksum]Usage, len(layers))
	taken := make(map[objectstore.ObjectName]struct{})
	linked := make(map[atfs.Inode]struct{}) // objects that have other names
	for _, id := range layers {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if _, ok := shares[id]; ok {
			continue
		}
		objects, err := s.Closure(id)
		if err != nil {
			continue // fsck reports it
		}
		var share Usage
		for _, name := range objects {
			if _, ok := taken[name]; ok {
				continue
			}
			taken[name] = struct{}{}
			st, err := s.repo.StatObject(name)
			if err != nil {
				continue // likewise
			}
			if st.Nlink > 1 {
				linked[atfs.InodeOf(&st)] = struct{}{}
				if s.borrowed(name, &st) {
					continue
				}
			}
			share.count(&st)
		}
		shares[id] = share
	}
	for id, share := range shares {
		own := make(map[atfs.Inode]struct{}) // files of this checkout that have several names
		err := s.layers.Walk(CheckoutDir(id), func(st *unix.Stat_t) error {
			if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				inode := atfs.InodeOf(st)
				if _, ok := linked[inode]; ok {
					return nil
				}
				if _, ok := own[inode]; ok {
					return nil
				}
				own[inode] = struct{}{}
			}
			share.count(st)
			return context.Cause(ctx)
		})
		if err != nil {
			return nil, err
		}
		shares[id] = share
	}
	return shares, nil
}

func (u *Usage) count(st *unix.Stat_t) {
	u.Bytes += atfs.Allocated(st)
	u.Inodes++
}

// borrowed reports whether the inode of an object is that of a lender.
func (s *Store) borrowed(name objectstore.ObjectName, st *unix.Stat_t) bool {
	for _, from := range s.lenders.Repos {
		if lent, err := from.StatObject(name); err == nil && atfs.InodeOf(&lent) == atfs.InodeOf(st) {
			return true
		}
	}
	return false
}
