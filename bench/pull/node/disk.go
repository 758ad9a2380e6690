package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// fileSystems maps the supported file systems to arguments of mkfs that make it do all of its work at once. Deferred
// work would run during a measurement.
var fileSystems = map[string][]string{
	"ext4":  {"-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"},
	"xfs":   {"-q"},
	"btrfs": {"-q"},
}

// FileSystem reports whether a file system is supported.
func FileSystem(name string) bool { return fileSystems[name] != nil }

// newDisk makes a file system in a sparse file and mounts it.
func newDisk(ctx context.Context, file, fstype string, size int64, at string) error {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	for _, argv := range [][]string{
		append(append([]string{"mkfs." + fstype}, fileSystems[fstype]...), file),
		{"mount", "-t", fstype, "-o", "loop", file, at},
	} {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("make disk: %s: %w: %s", strings.Join(argv, " "), err, oneLine(string(out)))
		}
	}
	return nil
}
