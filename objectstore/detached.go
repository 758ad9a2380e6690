package objectstore

import (
	"errors"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// ParseXattrs parses an a(ayay), a list of extended attributes in the form that objects have it; anything else is
// ErrCorrupt. The list may be unsorted, and its values refer to data.
func ParseXattrs(data []byte) ([]Xattr, error) {
	xattrs, err := parseXattrs(data)
	list, err := parsed("extended attributes", &xattrs, err)
	if err != nil {
		return nil, err
	}
	return *list, nil
}

// MarshalXattrs is the inverse of ParseXattrs: no bytes for an empty list. A list that no object can have is ErrInvalid.
func MarshalXattrs(xattrs []Xattr) ([]byte, error) {
	if err := validateXattrs(xattrs); err != nil {
		return nil, err
	}
	return appendXattrs(nil, xattrs), nil
}

// StoreCommitMeta stores the detached metadata of a commit, its signatures: the bytes of an a{sv}, anything else is
// ErrInvalid. Existing metadata stays: it may have been changed after the commit was made.
func (t *Txn) StoreCommitMeta(commit Checksum, data []byte) error {
	return storeError(TypeCommitMeta, commit, t.storeCommitMeta(commit, data))
}

func (t *Txn) storeCommitMeta(commit Checksum, data []byte) error {
	if len(data) > MaxMetadataSize {
		return invalidf("%d bytes, at most %d are allowed", len(data), MaxMetadataSize)
	}
	if _, err := gvariant.ParseDict(data); err != nil {
		return invalidf("%v", err)
	}
	f, err := t.repo.tmp.TmpFile(fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && t.umask&fileMode != 0 {
		err = f.Chmod(fileMode)
	}
	if err == nil {
		_, err = t.publish(f, commit, TypeCommitMeta, false)
	}
	return errors.Join(err, f.Close())
}
