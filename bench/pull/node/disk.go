package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// FileSystems are those that a disk can be made with, and the arguments of mkfs by which all of its work is done at once:
// what is left for later would be done while something is measured.
var fileSystems = map[string][]string{
	"ext4":  {"-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"},
	"xfs":   {"-q"},
	"btrfs": {"-q"},
}

// FileSystem tells whether a disk can be made with a file system.
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
