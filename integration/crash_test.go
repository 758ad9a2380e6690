package integration

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// writeScript appends lines to /log. grows checks that it does.
const writeScript = "while true; do echo line >> /log; sleep 0.05; done"

// lines returns the number of lines that writeScript has written in a container.
func (e *env) lines(id string) int {
	e.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(e.exec(defaultNS, id, "wc -l < /log")))
	e.must(err)
	return n
}

// grows fails the test unless writeScript makes progress in the container.
func (e *env) grows(id string) {
	e.t.Helper()
	before := e.lines(id)
	e.eventually("watch the container", func() string {
		if e.lines(id) > before {
			return ""
		}
		return "it writes no more"
	})
}

// TestDaemonKilled kills the daemon while a container runs. The container goes on, and everything works after a
// restart.
func TestDaemonKilled(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.ParallelUnpacks = 3 })
	full := e.pull(defaultNS, "layers:1")
	id := containerID()
	e.must(e.StartContainer(t.Context(), defaultNS, full, id, "/bin/sh", "-c", writeScript))
	e.eventually("start to write", func() string {
		if _, err := e.Exec(t.Context(), defaultNS, id, "/bin/cat", "/log"); err != nil {
			return err.Error()
		}
		return ""
	})

	e.must(e.KillDaemon())
	e.grows(id)
	e.exec(defaultNS, id, "cat /data/kept; rm /data/kept; mv /data/modes /data/renamed")
	e.must(e.StartDaemon(t.Context()))
	e.grows(id)
	e.compare("layers:1", e.view(defaultNS, full))
	e.run(defaultNS, full, "/bin/cat", "/data/kept")
	odd := e.pull(defaultNS, "odd:1")
	e.compare("odd:1", e.view(defaultNS, odd))

	e.must(e.StopDaemon())
	e.grows(id)
	e.must(e.StartDaemon(t.Context()))
	e.must(e.RestartContainerd(t.Context()))
	e.grows(id)
	e.must(e.RemoveContainer(t.Context(), defaultNS, id))
	e.ctr(defaultNS, "images", "rm", "--sync", full)
	e.ctr(defaultNS, "images", "rm", "--sync", odd)
	e.empty()
}

// TestKilledWhilePulling kills the daemon repeatedly while it unpacks. The store must pass fsck each time, and the last
// pull must succeed.
func TestKilledWhilePulling(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.ParallelUnpacks = 3 })
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	refs := []string{"app:1", "layers:1", "odd:1", "base:2", "layers:1", "odd:1"}
	for _, ref := range refs {
		full := push(t, ref)
		pulled := make(chan error, 1)
		go func() { pulled <- e.Pull(t.Context(), defaultNS, full) }()
		wait := time.Duration(r.IntN(700)) * time.Millisecond
		if strings.HasPrefix(ref, "app") || strings.HasPrefix(ref, "base") {
			wait *= 4
		}
		time.Sleep(wait) // stops the pull at a random point
		e.must(e.KillDaemon())
		e.must(e.StartDaemon(t.Context()))
		err := <-pulled
		t.Logf("%s: killed after %v; the pull failed: %t", ref, wait, err != nil)
		e.fsck()
		if t.Failed() {
			return
		}
	}
	for _, ref := range []string{"app:1", "layers:1", "odd:1"} {
		full := e.pull(defaultNS, ref)
		e.compare(ref, e.view(defaultNS, full))
		e.run(defaultNS, full, "/bin/sh", "-c", "true")
	}
	for _, ref := range []string{"app:1", "layers:1", "odd:1", "base:2"} {
		e.ctr(defaultNS, "images", "rm", "--sync", push(t, ref))
	}
	e.empty()
}

// TestReboot loses everything that is not on disk. Images and containers are still there.
func TestReboot(t *testing.T) {
	e := start(t, nil)
	full := e.pull(defaultNS, "layers:1")
	id := containerID()
	e.must(e.StartContainer(t.Context(), defaultNS, full, id, "/bin/sleep", "1000"))
	e.exec(defaultNS, id, "echo before > /written; rm /data/kept; sync")
	e.must(e.Reboot(t.Context()))
	e.compare("layers:1", e.view(defaultNS, full))
	e.ctr(defaultNS, "tasks", "start", "--detach", "--fifo-dir", e.Dir+"/fifo", id)
	if got := e.exec(defaultNS, id, "cat /written; ls /data/kept 2>&1"+" || true"); !strings.HasPrefix(got, "before\n") || !strings.Contains(got, "No such file") {
		t.Errorf("after the reboot the container sees %q", got)
	}
	e.must(e.RemoveContainer(t.Context(), defaultNS, id))
	e.run(defaultNS, full, "/bin/true")
}
