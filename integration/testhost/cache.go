package testhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// CacheEnv names the environment variable that moves the cache.
const CacheEnv = "OSTREE_SNAPSHOTTER_TEST_CACHE"

// CacheDir returns the cache's directory; it need not exist.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory (set HOME, XDG_CACHE_HOME or %s): %w", CacheEnv, err)
	}
	return filepath.Join(base, "ostree-snapshotter"), nil
}

// Key returns the key of something made from the given inputs: a hash that also tells their boundaries apart.
func Key(inputs ...string) string {
	h := sha256.New()
	for _, in := range inputs {
		fmt.Fprintf(h, "%d:%s\n", len(in), in)
	}
	return hex.EncodeToString(h.Sum(nil))[:20]
}

// Cached returns the directory kind/key of the cache. If it is not there yet, build fills a new directory which is then
// renamed to that name, so that a build that fails or is killed leaves nothing under it. Of several processes that want
// the same entry one builds it and the others wait. Entries of the same kind under other keys that were not used for
// two weeks are removed then.
func Cached(kind, key string, build func(dir string) error) (dir string, err error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(cache, kind)
	dir = filepath.Join(parent, key)
	if used(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	unlock, err := lockFile(filepath.Join(parent, key+".lock"))
	if err != nil {
		return "", fmt.Errorf("lock cache: %w", err)
	}
	defer unlock()
	if used(dir) {
		return dir, nil
	}
	if err := removeUnused(parent, time.Now().Add(-14*24*time.Hour)); err != nil {
		return "", fmt.Errorf("trim cache: %w", err)
	}
	tmp, err := os.MkdirTemp(parent, "tmp-"+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", fmt.Errorf("make cache entry: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("make cache entry: %w", err)
	}
	if err := build(tmp); err != nil {
		return "", fmt.Errorf("build %s: %w", kind, err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("publish cache entry: %w", err)
	}
	return dir, nil
}

// used tells whether a complete entry is there, and notes that it was wanted now.
func used(dir string) bool {
	now := time.Now()
	return os.Chtimes(dir, now, now) == nil
}

// removeUnused removes the entries and left-over temporary directories not touched since the given time. Lock files stay:
// a name that is removed while someone holds the lock could be locked twice.
func removeUnused(parent string, since time.Time) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.ModTime().Before(since) {
			if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// lockFile takes an exclusive lock on a file, waiting for it, and returns the function that gives it back.
func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { _ = f.Close() }, nil // which gives the lock back
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
		}
	}
}
