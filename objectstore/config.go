package objectstore

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

// Mode is the way a repository stores content objects: the value of the key mode in its config.
type Mode string

// ModeBare stores a content object as a file with its owner, mode and extended attributes. This package supports no
// other mode.
const ModeBare Mode = "bare"

const (
	maxConfigLen = 1 << 20

	defaultLockTimeout = 300 * time.Second // as libostree since 2023.6
	defaultTmpExpiry   = 24 * time.Hour
	forever            = time.Duration(-1)
)

// config is the part of a repository's config file that this package reads.
type config struct {
	mode        string
	parent      string
	locking     bool
	lockTimeout time.Duration // forever: no limit
	tmpExpiry   time.Duration
	noXattrs    bool
	tombstones  bool
	verity      verity
}

// parseConfig parses the text of a config file. It ignores unknown keys.
func parseConfig(text string) (*config, error) {
	f, err := keyfile.Parse([]byte(text))
	if err != nil {
		return nil, corruptf("parse config: %v", err)
	}
	if v := word(f, "repo_version", ""); v != "1" {
		return nil, corruptf("parse config: repo_version is %.20q, only \"1\" exists", v)
	}
	c := &config{mode: word(f, "mode", string(ModeBare)), parent: word(f, "parent", "")}
	c.locking, err = f.Bool("core", "locking", true)
	if err == nil {
		c.lockTimeout, err = seconds(f, "lock-timeout-secs", defaultLockTimeout)
	}
	if err == nil {
		c.tmpExpiry, err = seconds(f, "tmp-expiry-secs", defaultTmpExpiry)
	}
	if err == nil {
		c.noXattrs, err = f.Bool("core", "disable-xattrs", false)
	}
	if err == nil {
		c.tombstones, err = f.Bool("core", "tombstone-commits", false)
	}
	if err == nil {
		c.verity, err = parseVerity(f)
	}
	if err != nil {
		return nil, corruptf("parse config: %v", err)
	}
	return c, nil
}

// supported rejects repositories on which this package would do the wrong thing.
func (c *config) supported(path string) error {
	switch {
	case c.mode != string(ModeBare):
		return &UnsupportedModeError{Path: path, Mode: c.mode}
	case c.parent != "":
		return &UnsupportedConfigError{
			Path: path, Key: "core/parent", Value: c.parent,
			Hint: "objects of a parent repository are not looked up; copy them with \"ostree pull-local\" and remove the key",
		}
	case c.noXattrs:
		return &UnsupportedConfigError{
			Path: path, Key: "core/disable-xattrs", Value: "true",
			Hint: "files of container images need their extended attributes; use another repository",
		}
	}
	return nil
}

// word reads a value of the group core that has no leading or trailing space.
func word(f *keyfile.File, key, fallback string) string {
	if v, ok := f.Get("core", key); ok {
		return strings.TrimSpace(v)
	}
	return fallback
}

// seconds reads a number of seconds; -1 means no limit.
func seconds(f *keyfile.File, key string, fallback time.Duration) (time.Duration, error) {
	v, ok := f.Get("core", key)
	if !ok {
		return fallback, nil
	}
	const limit = 1 << 31 // 68 years
	n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
	switch {
	case err != nil || n < -1 || n > limit:
		return 0, fmt.Errorf("%s is %.20q, not a number of seconds", key, v)
	case n == -1:
		return forever, nil
	}
	return time.Duration(n) * time.Second, nil
}
