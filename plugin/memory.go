package plugin

import (
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// minTotalMemory is the smallest memory for unpacking that can be configured: layers of 20,000 entries fit into it.
	minTotalMemory = 64 << 20
	// leastTotalMemory is the smallest default, for machines with little memory.
	leastTotalMemory = 256 << 20
)

// defaultTotalMemory returns the default memory for unpacking layers: a quarter of what this process can have.
func defaultTotalMemory() int64 {
	memory := cgroupLimit("/proc/self/cgroup", "/sys/fs/cgroup")
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		memory = min(memory, uint64(info.Totalram)*uint64(info.Unit)) //nolint:unconvert // Totalram has 32 bits on some platforms
	}
	return int64(max(memory/4, leastTotalMemory))
}

// cgroupLimit returns the least limit of memory of the process's control group and those above it, in the unified
// hierarchy; the largest integer if there is none.
func cgroupLimit(self, root string) uint64 {
	limit := uint64(1<<63 - 1)
	text, err := os.ReadFile(self)
	if err != nil {
		return limit
	}
	for line := range strings.Lines(string(text)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		if !ok {
			continue
		}
		for name = path.Clean("/" + name); name != "/"; name = path.Dir(name) {
			b, err := os.ReadFile(path.Join(root, name, "memory.max"))
			if err != nil {
				continue
			}
			if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 63); err == nil { // not "max"
				limit = min(limit, n)
			}
		}
	}
	return limit
}
