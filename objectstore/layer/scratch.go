package layer

import (
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// Scratch creates an empty directory on the store's mount for the caller's temporary files, and opens it. name
// describes its purpose; several directories may have the same. release closes the directory and removes everything in
// it; further calls do nothing. If the process dies before, SweepTmp removes the directory, or a prune that runs a day
// later.
func (s *Store) Scratch(name string) (_ *atfs.Dir, release func() error, err error) {
	tmp := scratchPrefix + name + "-" + rand.Text()
	if err := s.tmp.Mkdir(tmp, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make temporary directory: %w", err)
	}
	dir, err := s.tmp.OpenDir(tmp)
	if err != nil {
		return nil, nil, fmt.Errorf("make temporary directory: %w", errors.Join(err, s.tmp.RemoveAll(tmp)))
	}
	return dir, sync.OnceValue(func() error { return errors.Join(dir.Close(), s.tmp.RemoveAll(tmp)) }), nil
}
