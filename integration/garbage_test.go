package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// empty waits until the store is empty.
func (e *env) empty() {
	e.t.Helper()
	e.eventually("empty the store", func() string {
		left, err := stack.Leftovers(e.Root)
		e.must(err)
		if len(left) == 0 {
			return ""
		}
		return fmt.Sprintf("%d things are left, the first is %s", len(left), left[0])
	})
}

// TestGarbage deletes every image. Nothing may be left in the store, and files in use must stay until then.
func TestGarbage(t *testing.T) {
	small := []string{"tiny:1", "layers:1", "layers:zstd", "odd:1"}
	for _, mode := range []struct {
		name    string
		unpacks int
		refs    []string
	}{
		{"sequential", 1, small}, // TestFullDisk and TestUpdateSharesFiles remove base:1 when it was unpacked so
		{"parallel", 3, append(small, "base:1", "app:1")},
	} {
		t.Run(mode.name, func(t *testing.T) {
			e := start(t, func(o *stack.Options) { o.ParallelUnpacks = mode.unpacks })
			fulls := make(map[string]string)
			for _, ref := range mode.refs {
				fulls[ref] = e.pull(defaultNS, ref)
			}
			e.pull("other", "tiny:1")
			id := containerID()
			e.must(e.StartContainer(t.Context(), defaultNS, fulls["layers:1"], id, "/bin/sleep", "1000"))
			for _, full := range fulls {
				e.ctr(defaultNS, "images", "rm", "--sync", full)
			}
			e.eventually("remove what no image needs", func() string {
				out, err := exec.Command("ostree", "refs", "--repo="+filepath.Join(e.Root, "repo"), "--list").CombinedOutput()
				if err != nil {
					t.Fatalf("ostree refs: %v\n%s", err, out)
				}
				// The layers of tiny:1 and of layers:1, each by diff ID and by blob.
				if n, most := strings.Count(string(out), "\n"), 2*(len(image(t, "layers:1").Manifest.Layers)+1); n > most {
					return fmt.Sprintf("%d refs are left, want at most %d", n, most)
				}
				return ""
			})
			e.exec(defaultNS, id, "cat /data/kept && touch /data/kept")
			e.compare("tiny:1", e.view("other", fulls["tiny:1"]))
			e.fsck()

			e.must(e.RemoveContainer(t.Context(), defaultNS, id))
			e.ctr("other", "images", "rm", "--sync", fulls["tiny:1"])
			e.empty()

			// Repeat all of it.
			full := e.pull(defaultNS, "layers:1")
			e.compare("layers:1", e.view(defaultNS, full))
			e.ctr(defaultNS, "images", "rm", "--sync", full)
			e.empty()
		})
	}
}

// TestGarbageBesidePulls removes and pulls images that share files at the same time.
func TestGarbageBesidePulls(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.ParallelUnpacks = 3 })
	stop := make(chan struct{})
	done := make(chan error, 1)
	full := push(t, "layers:zstd")
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := e.Pull(t.Context(), "churn", full); err != nil {
				done <- err
				return
			}
			if _, err := e.Ctr(t.Context(), "churn", "images", "rm", "--sync", full); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 6 {
		full := e.pull(defaultNS, "layers:1")
		e.compare("layers:1", e.view(defaultNS, full))
		e.run(defaultNS, full, "/bin/true")
		e.ctr(defaultNS, "images", "rm", "--sync", full)
	}
	close(stop)
	e.must(<-done)
	e.empty()
}
