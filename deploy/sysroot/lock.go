package sysroot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// Intervals between attempts to take the lock.
const (
	minLockPoll = time.Millisecond
	maxLockPoll = 200 * time.Millisecond
)

// Lock takes the lock of libostree, which excludes all other processes that change the sysroot, and other users of this
// package in the same process. It waits until ctx is done: then the error is an ErrLocked, and the context's. A process
// that may not write to the sysroot gets an ErrReadOnly with the reason.
func (s *Sysroot) Lock(ctx context.Context) (unlock func() error, err error) {
	if err := s.checkWritable(); err != nil {
		return nil, fmt.Errorf("lock sysroot: %w", err)
	}
	f, err := s.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock sysroot %s: %w", s.dir.Path(), err)
	}
	return sync.OnceValue(func() error {
		// As in libostree: processes that wait for this file find out that it no longer has a name.
		if err := errors.Join(atfs.IgnoreNotExist(s.dir.Unlink(lockFile)), f.Close()); err != nil {
			return fmt.Errorf("unlock sysroot: %w", err)
		}
		return nil
	}), nil
}

func (s *Sysroot) lock(ctx context.Context) (*atfs.File, error) {
	for poll := minLockPoll; ; poll = min(2*poll, maxLockPoll) {
		f, err := s.tryLock()
		if f != nil || err != nil {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrLocked, context.Cause(ctx))
		case <-time.After(poll):
		}
	}
}

// tryLock returns nil if the lock is taken.
func (s *Sysroot) tryLock() (_ *atfs.File, err error) {
	f, err := s.dir.OpenFile(lockFile, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		return nil, err
	}
	locked := false
	defer func() {
		if !locked {
			err = errors.Join(err, f.Close())
		}
	}()
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	err = unix.FcntlFlock(uintptr(f.FD()), unix.F_OFD_SETLK, &whole)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// Its previous holder has removed the file's name.
	st, err := f.Stat()
	if err != nil || st.Nlink == 0 {
		return nil, err
	}
	locked = true
	return f, nil
}

// checkWritable returns an error if this process cannot change the sysroot.
func (s *Sysroot) checkWritable() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it takes root, this process runs as user %d", ErrReadOnly, os.Geteuid())
	}
	for _, d := range []*atfs.Dir{s.dir, s.boot} {
		ro, err := d.ReadOnly()
		if err != nil {
			return err
		}
		if ro {
			return fmt.Errorf("%w: %s is mounted read-only", ErrReadOnly, d.Path())
		}
	}
	return nil
}
