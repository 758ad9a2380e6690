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

// CacheEnv names the environment variable that sets the directory of the cache.
const CacheEnv = "OSTREE_SNAPSHOTTER_TEST_CACHE"

// CacheDir returns the directory of the cache, which need not exist.
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

// Key returns a key for the given inputs: a hash that also covers their boundaries.
func Key(inputs ...string) string {
	h := sha256.New()
	for _, in := range inputs {
		fmt.Fprintf(h, "%d:%s\n", len(in), in)
	}
	return hex.EncodeToString(h.Sum(nil))[:20]
}

// Cached returns the directory kind/key of the cache. If it does not exist, build fills a new directory, which is then
// renamed, so that a failed or killed build leaves nothing under the name. If several processes want the same entry,
// one builds it and the others wait. It also removes entries of the same kind with other keys that were not used for
// two weeks.
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

// used reports whether a complete entry exists, and records its use.
func used(dir string) bool {
	now := time.Now()
	return os.Chtimes(dir, now, now) == nil
}

// removeUnused removes entries and left-over temporary directories not used since the given time. It keeps lock files,
// because a name that is removed while a process holds its lock could be locked twice.
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

// lockFile waits for an exclusive lock on a file, and returns the function that releases it.
func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { _ = f.Close() }, nil // releases the lock
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
		}
	}
}
