package integration

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// TestUpgradeSigned: with a policy that demands a key, unsigned images are refused before anything is written, and signed
// ones are deployed; a demand in the origin stays; and the check costs little.
func TestUpgradeSigned(t *testing.T) {
	e := start(t, nil)
	versions, err := images.OS(t.Context(), t.Output(), t.TempDir(), nil)
	e.must(err)
	repository := shared.registry.Address + "/signed"
	name := repository + ":stable"
	signer, err := testhost.NewSigner(t.Context(), t.Output(), t.TempDir())
	e.must(err)
	text, err := signer.Policy(repository, repository)
	e.must(err)
	policy := filepath.Join(t.TempDir(), "policy.json")
	e.must(os.WriteFile(policy, []byte(text), 0o600))
	flags := []string{"--plain-http", "--signature-policy", policy}
	with := func(args ...string) []string { return append(args, flags...) }

	s := newSystem(e)
	e.must(versions["os:1"].Push(t.Context(), shared.registry.Address, "signed:stable"))
	e.must(e.Pull(t.Context(), defaultNS, name))
	s.do(17, "deploy", with("--init", name)...)
	if list, err := os.ReadDir(s.dir); err != nil || len(list) != 0 {
		t.Errorf("a refused image has left %v, %v", list, err)
	}
	e.must(signer.Sign(t.Context(), name))
	s.do(0, "deploy", with("--init", "ostree-image-signed:docker://"+name)...)
	if out := s.do(0, "status", "-v"); !strings.Contains(out, "\n  origin  ostree-image-signed:docker://"+name+"\n  signed  checked ") ||
		!strings.Contains(out, "\n  rule    "+repository+" of "+policy+"\n") {
		t.Errorf("status -v prints\n%s", out)
	}

	// The name stands for an unsigned image now. That is not pulled.
	e.must(versions["os:2"].Push(t.Context(), shared.registry.Address, "signed:stable"))
	s.do(17, "upgrade", with()...)
	s.do(17, "upgrade", with("--dry-run")...)
	if out, err := e.Ctr(t.Context(), defaultNS, "images", "ls"); err != nil || strings.Contains(out, versions["os:2"].Descriptor.Digest.String()) {
		t.Errorf("images after a refused upgrade, %v:\n%s", err, out)
	}
	// Without a policy the origin's demand is not met; another name does not drop it.
	if _, err := signature.LoadPolicy(""); errors.Is(err, fs.ErrNotExist) {
		e.must(versions["os:1"].Push(t.Context(), shared.registry.Address, "signed:other"))
		s.do(17, "upgrade", "--plain-http")
		s.do(17, "switch", "--plain-http", repository+":other")
	}
	e.must(signer.Sign(t.Context(), name))
	s.do(0, "upgrade", with()...)
	if got := s.state(); len(got) != 2 || got[0].Version != "2" || got[0].Image != name {
		t.Errorf("status after the upgrade is %+v", got)
	}
	e.ostreeAgrees(s)

	// The registry does not answer: that is not a missing signature.
	s.do(1, "switch", with("ostree-image-signed:docker://127.0.0.1:1/os:1")...)

	// The other way to the same deployment takes no signature: what the check costs.
	s.do(0, "switch", "--plain-http", deploy.Reference{Name: name}.String())
	s.cost(flags[1:])
}

// Limits of what a policy may cost an upgrade.
const (
	maxTime   = 300 * time.Millisecond
	maxMemory = 5 << 10 // KiB
)

// cost compares upgrades that change nothing, with more flags and without.
func (s *system) cost(flags []string) {
	s.t.Helper()
	type figures struct {
		wall, processor time.Duration
		memory          int64
	}
	least := func(flags []string) figures {
		f := figures{math.MaxInt64, math.MaxInt64, math.MaxInt64}
		for range 7 {
			args := append([]string{
				"upgrade", "--plain-http", "--sysroot", s.dir, "--root", s.Root, "--daemon-address", s.Daemon, "--address", s.Containerd,
			}, flags...)
			cmd := exec.CommandContext(s.t.Context(), daemonBinary(s.t), args...)
			begin := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil {
				s.t.Fatalf("%v: %v\n%s", args, err, out)
			}
			f.wall = min(f.wall, time.Since(begin))
			f.processor = min(f.processor, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
			if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
				f.memory = min(f.memory, u.Maxrss)
			}
		}
		return f
	}
	without, with := least(nil), least(flags)
	s.t.Logf("upgrade without a policy: %v, of which %v of the processor, %d KiB; with it: %v, %v, %d KiB",
		without.wall, without.processor, without.memory, with.wall, with.processor, with.memory)
	if with.wall-without.wall > maxTime || with.memory-without.memory > maxMemory {
		s.t.Errorf("a policy costs %v and %d KiB, at most %v and %d KiB are allowed",
			with.wall-without.wall, with.memory-without.memory, maxTime, int64(maxMemory))
	}
}
