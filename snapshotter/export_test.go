package snapshotter

import "errors"

// CopyMetadata makes the copy of metadata.db now.
func (s *Snapshotter) CopyMetadata() error { return s.copyMetadata() }

// CheckCopy returns what is wrong with the copy of metadata.db.
func (s *Snapshotter) CheckCopy() error {
	damage, err := checkDatabase(s.root, MetadataCopy)
	return errors.Join(damage, err)
}

// StopPrebuild has no rootfs images built before they are needed.
func (s *Snapshotter) StopPrebuild() { s.prebuilder.close() }
