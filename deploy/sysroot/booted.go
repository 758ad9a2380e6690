package sysroot

import (
	"encoding/binary"
	"errors"
	"io/fs"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// bootedFile, in /run, exists if ostree has prepared the root of the running system. Since 2023 it holds an a{sv}.
const bootedFile = "ostree-booted"

// findBooted returns the directory that the running system was booted from, possibly one of another sysroot. It returns
// nil if the system was not booted from a deployment.
func (s *Sysroot) findBooted() (*atfs.Inode, error) {
	if s.run == nil {
		return nil, nil
	}
	data, err := s.run.ReadFile(bootedFile, maxStagedLen)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// With an overlay as root, the lower directory is recorded.
	if id, ok := parseBooted(data); ok {
		return &id, nil
	}
	name := s.opts.Root
	if name == "" {
		name = "/"
	}
	root, err := atfs.Open(name)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	st, err := root.Lstat(".")
	id := atfs.InodeOf(&st)
	return &id, err
}

var pairType = gvariant.MustType("(tt)")

func parseBooted(data []byte) (id atfs.Inode, ok bool) {
	entries, err := gvariant.ParseDict(data)
	if err != nil {
		return atfs.Inode{}, false
	}
	v := lookup(entries, "backing-root-device-inode")
	if v.Type != pairType.String() || pairType.Check(v.Data) != nil {
		return atfs.Inode{}, false
	}
	return atfs.Inode{Dev: binary.LittleEndian.Uint64(v.Data), Ino: binary.LittleEndian.Uint64(v.Data[8:])}, true
}

// lookup returns the value of a key, or the zero Variant.
func lookup(entries []gvariant.Entry, key string) gvariant.Variant {
	for _, e := range entries {
		if e.Key == key {
			return e.Value
		}
	}
	return gvariant.Variant{}
}
