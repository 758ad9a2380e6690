package snapshotter

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// recover brings metadata, directories and layers to agreement after a stop of any kind, and reads what is kept in
// memory.
func (s *Snapshotter) recover(ctx context.Context) error {
	if err := s.removeUnfinished(); err != nil {
		return err
	}
	if err := s.discardOrphans(ctx); err != nil {
		return err
	}
	s.garbage.Store(true) // what was being stored when the last process ended
	present := make(map[objectstore.Checksum]bool)
	return s.read(ctx, func(ctx context.Context) error {
		return walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			switch {
			case err != nil:
				return err
			case info.Kind == snapshots.KindCommitted:
				s.committed.put(id, info)
				return s.checkLayer(ctx, info, present)
			case info.Kind == snapshots.KindActive:
				return s.checkDirectory(ctx, id, info)
			}
			return nil
		})
	})
}

// checkLayer puts a committed snapshot into the index of chains. One whose layer is lost is logged and is not: to pull
// the image again then makes the layer anew, instead of finding this snapshot.
func (s *Snapshotter) checkLayer(ctx context.Context, info snapshots.Info, present map[objectstore.Checksum]bool) error {
	c, err := contentOf("", info)
	if err != nil {
		log.G(ctx).WithError(err).Error("snapshot cannot be used: remove the image and pull it again")
		return nil
	}
	ok, known := present[c.layer]
	if !known {
		if ok, err = s.layers.Repo().Has(objectstore.TypeCommit, c.layer); err != nil {
			return err
		}
		present[c.layer] = ok
	}
	if !ok {
		log.G(ctx).WithField("snapshot", info.Name).WithField("layer", c.layer.String()).
			Error("layer of snapshot is lost: remove the image and pull it again")
		return nil
	}
	s.refs.put(info)
	return nil
}

// removeUnfinished removes directories that were being made when the last process ended.
func (s *Snapshotter) removeUnfinished() error {
	names, err := s.tmp.ReadNames()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, newPrefix) {
			errs = append(errs, s.tmp.RemoveAll(name))
		}
	}
	return errors.Join(errs...)
}

// checkDirectory logs an active snapshot whose directory is missing or damaged. Its mounts will say so too.
func (s *Snapshotter) checkDirectory(ctx context.Context, id string, info snapshots.Info) error {
	_, err := s.readDirectory(id)
	if errdefs.IsDataLoss(err) {
		log.G(ctx).WithError(err).WithField("snapshot", info.Name).Error("active snapshot cannot be used: remove the container")
		return nil
	}
	return err
}

// refIndex knows the committed snapshots that containerd may find by their chain ID and parent. Only those are in it
// whose chain ID this program computed: a name alone proves nothing about the content.
type refIndex struct {
	mu     sync.Mutex
	byName map[string]refKey
	count  map[refKey]int
}

type refKey struct{ ref, parent string }

// put takes notice of a snapshot, or of its new labels.
func (x *refIndex) put(info snapshots.Info) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(info.Name)
	ref := info.Labels[snapshots.LabelSnapshotRef]
	if info.Kind != snapshots.KindCommitted || ref == "" || ref != info.Labels[LabelChainID] {
		return
	}
	if x.byName == nil {
		x.byName = make(map[string]refKey)
		x.count = make(map[refKey]int)
	}
	k := refKey{ref, info.Parent}
	x.byName[info.Name] = k
	x.count[k]++
}

func (x *refIndex) remove(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(name)
}

func (x *refIndex) drop(name string) {
	k, ok := x.byName[name]
	if !ok {
		return
	}
	delete(x.byName, name)
	if x.count[k]--; x.count[k] == 0 {
		delete(x.count, k)
	}
}

// has reports whether there is a snapshot with this reference and parent.
func (x *refIndex) has(ref, parent string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.count[refKey{ref, parent}] > 0
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
