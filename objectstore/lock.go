package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// LockKind is the kind of a lock: shared or exclusive.
type LockKind int

const (
	// LockShared is for adding objects and refs. It excludes LockExclusive.
	LockShared LockKind = iota
	// LockExclusive is for removing objects. It excludes every other lock.
	LockExclusive
)

// String returns the kind.
func (k LockKind) String() string {
	if k == LockExclusive {
		return "exclusive"
	}
	return "shared"
}

// Lock is a lock of a repository, libostree's own: an open file description lock on its file .lock. Each Lock has its
// own open file, so it excludes goroutines of this process as well as other processes. Locks are not recursive: a
// goroutine may hold two shared locks, but with an exclusive one it waits for itself.
type Lock struct {
	repo *Repo
	kind LockKind
	once sync.Once
	file *atfs.File // nil under locking=false
}

// Intervals between attempts to take a lock that is held.
const (
	minLockPoll = time.Millisecond
	maxLockPoll = 200 * time.Millisecond
)

// Lock takes a lock. It waits for lock-timeout-secs of the repository's config (default 300, -1 means no limit), then
// fails with ErrLocked. It stops when ctx is done.
func (r *Repo) Lock(ctx context.Context, kind LockKind) (*Lock, error) {
	l := &Lock{repo: r, kind: kind}
	if !r.config.locking {
		return l, ctx.Err()
	}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("lock ostree repository: %w", err)
	}
	if err := l.wait(ctx, r.config.lockTimeout); err != nil {
		return nil, errors.Join(fmt.Errorf("take %s lock of ostree repository %s: %w", kind, r.dir.Path(), err), l.file.Close())
	}
	return l, nil
}

func (l *Lock) open() error {
	const mode = 0o660
	var err error
	l.file, err = l.repo.dir.OpenFile(lockName, unix.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		l.file, err = l.repo.dir.OpenFile(lockName, unix.O_RDWR|unix.O_CREAT, mode)
	}
	return err
}

func (l *Lock) wait(ctx context.Context, timeout time.Duration) error {
	start := time.Now()
	for poll := minLockPoll; ; poll = min(2*poll, maxLockPoll) {
		err := l.try()
		if err == nil || !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return err
		}
		if poll == minLockPoll {
			l.repo.waiting.Add(1)
			defer l.repo.waiting.Add(-1)
		}
		if timeout != forever && time.Since(start) >= timeout {
			return ErrLocked
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}

func (l *Lock) try() error {
	typ := int16(unix.F_RDLCK)
	if l.kind == LockExclusive {
		typ = unix.F_WRLCK
	}
	whole := unix.Flock_t{Type: typ, Whence: unix.SEEK_SET}
	return unix.FcntlFlock(uintptr(l.file.FD()), unix.F_OFD_SETLK, &whole)
}

// Unlock releases the lock. A second call does nothing.
func (l *Lock) Unlock() (err error) {
	l.once.Do(func() {
		if l.file != nil {
			err = l.file.Close() // closing the last descriptor of the open file releases its locks
		}
	})
	return err
}
