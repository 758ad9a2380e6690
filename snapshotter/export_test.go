package snapshotter

import (
	"context"
	"errors"
)

// CopyMetadata copies metadata.db now.
func (s *Snapshotter) CopyMetadata() error { return s.copyMetadata() }

// CheckCopy returns the damage to the copy of metadata.db.
func (s *Snapshotter) CheckCopy() error {
	damage, err := checkDatabase(s.root, MetadataCopy)
	return errors.Join(damage, err)
}

// StopPrebuild stops building rootfs images before they are needed.
func (s *Snapshotter) StopPrebuild() { s.prebuilder.close() }

// StopRemoval stops the background removal; RemoveRest does it.
func (s *Snapshotter) StopRemoval() { s.rest.stop() }

// RemoveRest removes what cleanups left.
func (s *Snapshotter) RemoveRest() error { return s.rest.run(s.removeRest) }

// TryRemoveRest is one attempt of RemoveRest.
func (s *Snapshotter) TryRemoveRest(ctx context.Context) error { return s.removeRest(ctx) }

// WaitForStop waits until the background removal is told to stop.
func (s *Snapshotter) WaitForStop() { <-s.rest.ctx.Done() }
