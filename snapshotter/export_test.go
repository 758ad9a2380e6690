package snapshotter

import "errors"

// CopyMetadata copies metadata.db now.
func (s *Snapshotter) CopyMetadata() error { return s.copyMetadata() }

// CheckCopy returns the damage to the copy of metadata.db.
func (s *Snapshotter) CheckCopy() error {
	damage, err := checkDatabase(s.root, MetadataCopy)
	return errors.Join(damage, err)
}

// StopPrebuild stops building rootfs images before they are needed.
func (s *Snapshotter) StopPrebuild() { s.prebuilder.close() }
