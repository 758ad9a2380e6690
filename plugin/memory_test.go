package plugin

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestCgroupLimit reads the limit of memory of control groups and of the groups above them.
func TestCgroupLimit(t *testing.T) {
	for _, tt := range []struct {
		name, self string
		limits     map[string]string
		want       uint64
	}{
		{"none", "0::/system.slice/a.service\n", map[string]string{"system.slice": "max", "system.slice/a.service": "max"}, math.MaxInt64},
		{"its own", "0::/system.slice/a.service\n", map[string]string{"system.slice/a.service": "1048576"}, 1 << 20},
		{"above", "0::/system.slice/a.service\n", map[string]string{"system.slice": "4096", "system.slice/a.service": "1048576"}, 4096},
		{"of another", "0::/a\n", map[string]string{"b": "4096"}, math.MaxInt64},
		{"root", "0::/\n", nil, math.MaxInt64},
		{"hybrid", "1:memory:/a\n0::/b\n", map[string]string{"a": "4096", "b": "8192"}, 8192},
		{"not a number", "0::/a\n", map[string]string{"a": "much"}, math.MaxInt64},
		{"empty", "", nil, math.MaxInt64},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			self := filepath.Join(root, "self")
			testenv.Must(t, os.WriteFile(self, []byte(tt.self), 0o600))
			for group, limit := range tt.limits {
				testenv.Must(t, os.MkdirAll(filepath.Join(root, group), 0o700))
				testenv.Must(t, os.WriteFile(filepath.Join(root, group, "memory.max"), []byte(limit+"\n"), 0o600))
			}
			if got := cgroupLimit(self, root); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
	if got := cgroupLimit("/nonexistent", "/nonexistent"); got != math.MaxInt64 {
		t.Errorf("without control groups: got %d, want none", got)
	}
}
