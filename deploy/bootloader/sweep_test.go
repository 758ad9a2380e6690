package bootloader

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// sweepCases are changes of an ESP: its old and its new state. Kernel c is on it without an entry.
var sweepCases = map[string]struct{ before, after []string }{
	"first":    {nil, []string{"a"}},
	"deploy":   {[]string{"a"}, []string{"b+3", "a"}},
	"replace":  {[]string{"b", "a"}, []string{"c+3", "b"}},
	"rollback": {[]string{"b", "a"}, []string{"a", "b"}},
	"undeploy": {[]string{"b", "a"}, []string{"a"}},
}

func sweepCase(before, after []string) faulttest.Case[*machine] {
	plain := func(deployments []string) (kernels []string) {
		for _, d := range deployments {
			kernel, _, _ := strings.Cut(d, "+")
			kernels = append(kernels, kernel)
		}
		return kernels
	}
	return faulttest.Case[*machine]{
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			m := newMachine(t, path, nil)
			defer m.Close()
			if len(before) > 0 {
				m.write(t, 0, before...)
			}
			garbage := filepath.Join(path, "esp", kernelDirOf("c"))
			if err := os.MkdirAll(garbage, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(garbage, "vmlinuz-6.1.tmp"), []byte("half"), 0o644); err != nil {
				t.Fatal(err)
			}
		},
		Open: func(t *testing.T, path string, hook atfs.Hook) *machine {
			t.Helper()
			return newMachine(t, path, hook)
		},
		Run: func(t *testing.T, m *machine) error {
			t.Helper()
			return m.Write(t.Context(), m.boot, entries(1, after...))
		},
		Check: func(t *testing.T, m *machine, done bool) {
			t.Helper()
			got := menu(t, m.esp)
			if done {
				if want := plain(after); !slices.Equal(got, want) {
					t.Errorf("got the menu %q, want %q", got, want)
				}
				return
			}
			if len(got) == 0 && len(before) > 0 {
				t.Error("nothing can be booted")
			}
			if len(got) > 0 && got[0] != plain(after)[0] && (len(before) == 0 || got[0] != plain(before)[0]) {
				t.Errorf("%q is booted, which is neither the default of before nor that of after", got[0])
			}
		},
		Min: 8,
	}
}

// Whichever operation fails, the machine boots as before or as planned, and another try works.
func TestFaults(t *testing.T) {
	for name, c := range sweepCases {
		t.Run(name, func(t *testing.T) { faulttest.Sweep(t, sweepCase(c.before, c.after)) })
	}
}

// The same with the process killed.
func TestKills(t *testing.T) {
	if !faulttest.IsChild() {
		testenv.SkipShort(t, "starts a process for each operation")
	}
	for _, name := range []string{"replace", "undeploy"} {
		t.Run(name, func(t *testing.T) {
			faulttest.KillSweep(t, sweepCase(sweepCases[name].before, sweepCases[name].after))
		})
	}
}

// Kernels are on the disk before entries name them, and entries are gone from the disk before their kernels go.
func TestOrder(t *testing.T) {
	ops := faulttest.Order(t, "write", sweepCase(sweepCases["replace"].before, sweepCases["replace"].after))
	first := slices.IndexFunc(ops, func(op string) bool { return strings.HasPrefix(op, "create: loader/entries/") })
	last := slices.Index(ops, "unlink: loader/entries/ostree-2-os.conf")
	for i, op := range ops {
		written := strings.HasPrefix(op, "rename: ostree/")
		removed := strings.HasPrefix(op, "unlink: ostree/os-") && !strings.Contains(op, ".tmp") && i > first
		if written && i > first || removed && i < last {
			t.Errorf("operation %d, %s, is on the wrong side of the entries, %d to %d", i, op, first, last)
		}
	}
	if first < 0 || last < first {
		t.Errorf("entries: written from operation %d on, removed at %d", first, last)
	}
}
