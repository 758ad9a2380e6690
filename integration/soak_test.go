package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

var (
	soakDuration = flag.Duration("soak.duration", time.Minute, "how long TestSoak lets its workers go on")
	soakSeed     = flag.Uint64("soak.seed", 0, "what TestSoak does, in which order; 0 chooses")
)

const (
	soakWorkers = 4
	soakWriters = 3               // containers that keep writing, at most
	soakTimeout = 4 * time.Minute // limit of an operation; a longer one hangs
	soakMemory  = 512 << 20       // limit of the daemon's resident bytes
)

// foreignRef is a ref in the repository that is not ours.
const foreignRef = "soak/kept"

// soakNamespaces are the namespaces of the workers. nerdctl has its own.
var soakNamespaces = []string{"soak-a", "soak-b", soakNerdctl}

const soakNerdctl = "soak-nerdctl"

// A soakImage is an image with the expected output of a container.
type soakImage struct {
	ref     string
	weight  int
	command []string
	want    string // set by the first container
}

func shell(script string) []string { return []string{"/bin/sh", "-c", script} }

func soakImages() []*soakImage {
	data := shell("cd /data && cat $(find . -type f | sort) | sha256sum && find . | sort | sha256sum")
	return []*soakImage{
		{ref: "tiny:1", weight: 4, command: shell("cat /etc/passwd | sha256sum")},
		{ref: "layers:1", weight: 6, command: data},
		{ref: "layers:zstd", weight: 4, command: data},
		{ref: "layers:tar", weight: 2, command: data},
		{ref: "layers:docker", weight: 2, command: data},
		{ref: "odd:1", weight: 3, command: shell("sha256sum /odd/large-random /odd/sparse /odd/same-b; find /odd | sort | sha256sum")},
		{ref: "app:1", weight: 2, command: []string{"/usr/bin/python3", "/srv/app/main.py"}},
		{ref: "base:2", weight: 1, command: []string{"/usr/bin/python3", "-c", "import json, numpy; print(numpy.arange(7).sum())"}},
	}
}

// A churn counts events that can make other operations fail, and how many are going on.
type churn struct{ running, begun atomic.Int64 }

func (c *churn) begin()     { c.running.Add(1); c.begun.Add(1) }
func (c *churn) end()       { c.running.Add(-1) }
func (c *churn) idle() bool { return c.running.Load() == 0 }

// since returns a function that reports whether an event was going on since the call.
func (c *churn) since() func() bool {
	busy, n := !c.idle(), c.begun.Load()
	return func() bool { return busy || c.begun.Load() != n }
}

// A soak is the state shared by the workers.
type soak struct {
	*env
	images []*soakImage
	fulls  map[string]string // name in the registry of each image

	quiet    sync.RWMutex // held for reading by each operation, and for writing when none may run
	outages  churn        // of the daemon
	removals map[string]*churn

	mu       sync.Mutex
	writers  []container
	remnants []container    // containers that could not be removed yet
	counts   map[string]int // operations by name and outcome
	failed   error
	stop     context.CancelFunc
}

// A container outlives the operation that started it.
type container struct{ namespace, id string }

// TestSoak lets workers pull, run, commit and remove related images and prune the store concurrently, while the daemon
// is killed and stopped repeatedly. An operation may fail for these reasons only. At the end every image must be right,
// and after the last is removed the store must be empty.
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	r := rand.New(rand.NewPCG(seed, 0))
	unpacks := 1 + 2*r.IntN(2)
	t.Logf("go test ./integration -run '^TestSoak$' -soak.duration %v -soak.seed %d (%d layers at a time)", *soakDuration, seed, unpacks)
	s := &soak{
		env:      start(t, func(o *stack.Options) { o.ParallelUnpacks = unpacks }),
		images:   soakImages(),
		fulls:    make(map[string]string),
		removals: make(map[string]*churn),
		counts:   make(map[string]int),
	}
	s.learn()
	s.commitForeign(foreignRef)
	s.load(seed)
	if s.failed != nil {
		t.Fatalf("seed %d: %v", seed, s.failed)
	}
	for _, name := range slices.Sorted(maps.Keys(s.counts)) {
		t.Logf("%6d %s", s.counts[name], name)
	}
	s.finish()
}

// learn pushes the images and records the output of their containers.
func (s *soak) learn() {
	same := make(map[string]string)
	for _, img := range s.images {
		full := s.pull(defaultNS, img.ref)
		s.fulls[img.ref] = full
		for _, ns := range soakNamespaces {
			s.removals[ns+" "+full] = new(churn)
		}
		img.want = s.run(defaultNS, full, img.command...)
		key := images.SameContent(img.ref)
		if want, ok := same[key]; ok && img.want != want {
			s.t.Errorf("a container of %s printed %q, want %q", img.ref, img.want, want)
		}
		same[key] = img.want
	}
	for _, full := range s.fulls {
		s.ctr(defaultNS, "images", "rm", "--sync", full)
	}
}

// load runs the workers for the requested time.
func (s *soak) load(seed uint64) {
	ctx, stop := context.WithTimeout(s.t.Context(), *soakDuration)
	defer stop()
	s.stop = stop
	var group sync.WaitGroup
	for i := range soakWorkers {
		r := rand.New(rand.NewPCG(seed, uint64(i+1)))
		group.Go(func() {
			for ctx.Err() == nil {
				s.step(r)
			}
		})
	}
	r := rand.New(rand.NewPCG(seed, 1000))
	group.Go(func() { s.disturb(ctx, r) })
	group.Wait()
}

// fail ends the soak.
func (s *soak) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
	s.stop()
}

func (s *soak) count(outcome string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[outcome]++
}

// An operation does something, and returns which removals of an image can make it fail.
type operation struct {
	name   string
	weight int
	do     func(ctx context.Context, r *rand.Rand, suffers func(*churn)) error
}

func (s *soak) operations() []operation {
	return []operation{
		{"pull", 6, s.opPull},
		{"run", 6, s.opRun},
		{"remove", 7, s.opRemove},
		{"write", 3, s.opWrite},
		{"commit", 2, s.opCommit},
		{"prune", 2, s.opPrune},
		{"tidy", 2, s.opTidy},
		{"fsck", 1, s.opFsck},
		{"ostree", 1, s.opOstree},
	}
}

func choose[T any](r *rand.Rand, all []T, weight func(T) int) T {
	sum := 0
	for _, v := range all {
		sum += weight(v)
	}
	n := r.IntN(sum)
	for _, v := range all {
		if n -= weight(v); n < 0 {
			return v
		}
	}
	panic("unreachable")
}

// Errors that an operation may have while the daemon is away, and while its image is being removed.
var (
	whenAway    = regexp.MustCompile(`connection refused|connection error:|[Uu]navailable|error reading from server|transport is closing|connection reset|broken pipe|does not answer for it|o\.sock: no such file`)
	whenRemoved = regexp.MustCompile(`not found|already exists|does not exist|[Nn]o such|unexpected media type|unable to resolve|can't be found|missing|[Uu]navailable`)
)

// step runs one operation. The soak fails unless the operation succeeds or has a reason not to.
func (s *soak) step(r *rand.Rand) {
	s.quiet.RLock()
	defer s.quiet.RUnlock()
	op := choose(r, s.operations(), func(o operation) int { return o.weight })
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), soakTimeout)
	defer cancel()
	away := s.outages.since()
	var removed []func() bool
	start := time.Now()
	err := op.do(ctx, r, func(c *churn) { removed = append(removed, c.since()) })
	gone := slices.ContainsFunc(removed, func(f func() bool) bool { return f() })
	switch text := said(err); {
	case err == nil:
		s.count(op.name)
	case ctx.Err() != nil:
		s.fail(fmt.Errorf("%s hangs: it was given up after %v: %w", op.name, time.Since(start), err))
	case away() && whenAway.MatchString(text):
		s.count(op.name + ", daemon away")
	case gone && whenRemoved.MatchString(text):
		s.count(op.name + ", image removed")
	default:
		s.fail(fmt.Errorf("%s after %v (daemon away: %t, image removed: %t): %s", op.name, time.Since(start), away(), gone, text))
	}
}

// said returns the text of an error, with all of a command's output, because ctr's progress can follow the cause.
func said(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	var command *stack.CommandError
	if errors.As(err, &command) {
		text += "\nall that it printed:\n" + command.Output
	}
	return text
}

// target chooses an image and a namespace.
func (s *soak) target(r *rand.Rand, suffers func(*churn)) (namespace, full string, img *soakImage) {
	namespace = soakNamespaces[r.IntN(len(soakNamespaces))]
	img = choose(r, s.images, func(i *soakImage) int { return i.weight })
	full = s.fulls[img.ref]
	suffers(s.removals[namespace+" "+full])
	return namespace, full, img
}

// obtain pulls an image in one of several ways.
func (s *soak) obtain(ctx context.Context, r *rand.Rand, namespace, full string) error {
	if r.IntN(3) == 0 {
		return s.Pull(ctx, namespace, full, "--local")
	}
	return s.Pull(ctx, namespace, full)
}

func (s *soak) opPull(ctx context.Context, r *rand.Rand, suffers func(*churn)) error {
	namespace, full, _ := s.target(r, suffers)
	return s.obtain(ctx, r, namespace, full)
}

func (s *soak) opRun(ctx context.Context, r *rand.Rand, suffers func(*churn)) error {
	namespace, full, img := s.target(r, suffers)
	if err := s.obtain(ctx, r, namespace, full); err != nil {
		return err
	}
	id := containerID()
	got, err := s.RunContainer(ctx, namespace, full, id, img.command...)
	if err != nil {
		s.keepForTidy(container{namespace, id})
		return err
	}
	if got != img.want {
		return fmt.Errorf("a container of %s printed %q, want %q", img.ref, got, img.want)
	}
	return nil
}

func (s *soak) opRemove(ctx context.Context, r *rand.Rand, _ func(*churn)) error {
	namespace, full, _ := s.target(r, func(*churn) {})
	c := s.removals[namespace+" "+full]
	c.begin()
	defer c.end()
	args := []string{"images", "rm", full}
	if r.IntN(2) == 0 {
		args = []string{"images", "rm", "--sync", full}
	}
	_, err := s.Ctr(ctx, namespace, args...)
	if err != nil && strings.Contains(err.Error(), "not found") {
		return nil
	}
	return err
}

// opWrite starts a container that keeps writing, or checks that one still does and ends it.
func (s *soak) opWrite(ctx context.Context, r *rand.Rand, suffers func(*churn)) error {
	s.mu.Lock()
	var w container
	if len(s.writers) == soakWriters {
		i := r.IntN(len(s.writers))
		w = s.writers[i]
		s.writers = slices.Delete(s.writers, i, i+1)
	}
	s.mu.Unlock()
	if w.id != "" {
		err := s.writes(ctx, w)
		s.keepForTidy(w) // not earlier, because another worker may tidy now
		if err != nil {
			return fmt.Errorf("a container does not go on: %w", err)
		}
		return nil
	}
	namespace, full, img := s.target(r, suffers)
	if strings.HasPrefix(img.ref, "app") || strings.HasPrefix(img.ref, "base") {
		namespace, full = soakNamespaces[0], s.fulls["layers:1"]
		suffers(s.removals[namespace+" "+full])
	}
	if err := s.obtain(ctx, r, namespace, full); err != nil {
		return err
	}
	w = container{namespace, containerID()}
	if err := s.StartContainer(ctx, namespace, full, w.id, shell(writeScript)...); err != nil {
		s.keepForTidy(w)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writers = append(s.writers, w)
	return nil
}

// writes waits until a container has written more than before.
func (s *soak) writes(ctx context.Context, w container) error {
	lines := func() (string, error) {
		return s.Exec(ctx, w.namespace, w.id, shell("wc -l < /log 2>/dev/null || true")...)
	}
	before, err := lines()
	for deadline := time.Now().Add(20 * time.Second); err == nil; {
		time.Sleep(100 * time.Millisecond)
		var now string
		if now, err = lines(); err == nil && now != before && now != "" {
			return nil
		}
		if err == nil && time.Now().After(deadline) {
			return fmt.Errorf("container %s has written %q lines, and no more in 20 s", w.id, strings.TrimSpace(now))
		}
	}
	return err
}

func (s *soak) keepForTidy(c container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remnants = append(s.remnants, c)
}

// opTidy removes containers: running ones, and the remains of those that could not be started.
func (s *soak) opTidy(ctx context.Context, _ *rand.Rand, _ func(*churn)) error {
	s.mu.Lock()
	todo := s.remnants
	s.remnants = nil
	s.mu.Unlock()
	for i, c := range todo {
		if err := s.dropContainer(ctx, c.namespace, c.id); err != nil {
			for _, c := range todo[i:] {
				s.keepForTidy(c)
			}
			return err
		}
	}
	return nil
}

// dropContainer removes a container if it exists.
func (s *soak) dropContainer(ctx context.Context, namespace, id string) error {
	for _, args := range [][]string{{"tasks", "rm", "--force", id}, {"containers", "rm", id}} {
		if _, err := s.Ctr(ctx, namespace, args...); err != nil && !strings.Contains(err.Error(), "not found") {
			return err
		}
	}
	return nil
}

// opCommit changes a container, makes an image of it, runs the image and removes both.
func (s *soak) opCommit(ctx context.Context, r *rand.Rand, suffers func(*churn)) (err error) {
	full := s.fulls[[]string{"layers:1", "tiny:1", "odd:1"}[r.IntN(3)]]
	suffers(s.removals[soakNerdctl+" "+full])
	nerdctl := func(args ...string) (string, error) { return s.Nerdctl(ctx, soakNerdctl, args...) }
	if err := s.obtain(ctx, r, soakNerdctl, full); err != nil {
		return err
	}
	name, parent := containerID(), "--cgroup-parent="+s.CgroupParent()
	committed := name + ":committed"
	defer func() {
		for _, args := range [][]string{{"rm", "--force", name}, {"rmi", "--force", committed}} {
			if _, rerr := nerdctl(args...); rerr != nil && !strings.Contains(strings.ToLower(rerr.Error()), "no such") {
				err = errors.Join(err, rerr)
			}
		}
	}()
	text := fmt.Sprintf("%x", r.Uint64())
	if _, err := nerdctl("run", parent, "--net", "none", "--name", name, full, "/bin/sh", "-c",
		"echo "+text+" > /committed; rm /etc/group; mkdir -p /new/dir; cat /etc/passwd > /new/dir/copy"); err != nil {
		return err
	}
	if _, err := nerdctl("commit", name, committed); err != nil {
		return err
	}
	// Check the exit status, because nerdctl can lose the output of a short container (containerd/nerdctl#3877).
	check := fmt.Sprintf(`[ "$(cat /committed)" = %s ] && [ ! -e /etc/group ] && [ "$(cat /new/dir/copy)" = "$(cat /etc/passwd)" ]`, text)
	if _, err := nerdctl("run", parent, "--rm", "--net", "none", committed, "/bin/sh", "-c", check); err != nil {
		return fmt.Errorf("run a container of a committed image, which checks its files: %w", err)
	}
	return nil
}

// command runs a command of our program on the store.
func (s *soak) command(ctx context.Context, name string, flags ...string) error {
	args := []string{name, "--root", s.Root, "--daemon-address", s.Daemon}
	_, err := s.Run(ctx, daemonBinary(s.t), append(args, flags...)...)
	return err
}

func (s *soak) opPrune(ctx context.Context, r *rand.Rand, _ func(*churn)) error {
	if r.IntN(3) == 0 {
		return s.command(ctx, "prune", "--dry-run")
	}
	return s.command(ctx, "prune")
}

func (s *soak) opFsck(ctx context.Context, _ *rand.Rand, _ func(*churn)) error {
	return s.command(ctx, "fsck", "--address", s.Containerd)
}

// opOstree uses the repository as other programs may: it commits a tree, deletes the ref again, and prunes.
func (s *soak) opOstree(ctx context.Context, r *rand.Rand, _ func(*churn)) error {
	ref := fmt.Sprintf("soak/%x", r.Uint64())
	if err := s.ostreeCommit(ctx, ref); err != nil {
		return err
	}
	repo := "--repo=" + filepath.Join(s.Root, "repo")
	if _, err := s.Run(ctx, "ostree", "refs", repo, "--delete", ref); err != nil {
		return err
	}
	_, err := s.Run(ctx, "ostree", "prune", repo, "--refs-only")
	return err
}

// ostreeCommit commits a tree that shares a file with some of the images.
func (s *soak) ostreeCommit(ctx context.Context, ref string) error {
	dir, err := os.MkdirTemp(s.Dir, "tree")
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"kept": "content of data/kept\n", "ref": ref} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	if err == nil {
		_, err = s.Run(ctx, "ostree", "commit", "--repo="+filepath.Join(s.Root, "repo"), "--branch="+ref, "--subject=soak",
			"--owner-uid=0", "--owner-gid=0", dir)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

func (s *soak) commitForeign(ref string) {
	s.t.Helper()
	s.must(s.ostreeCommit(s.t.Context(), ref))
}

// disturb kills or stops the daemon at random moments and starts it again. Sometimes it waits until no operation runs
// and checks the store.
func (s *soak) disturb(ctx context.Context, r *rand.Rand) {
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(1000+r.IntN(9000)) * time.Millisecond):
		}
		if err := s.outage(ctx, r); err != nil {
			s.fail(err)
			return
		}
		if n%5 == 0 {
			if err := s.checkAtRest(ctx); err != nil {
				s.fail(err)
				return
			}
		}
	}
}

func (s *soak) outage(ctx context.Context, r *rand.Rand) error {
	s.outages.begin()
	defer s.outages.end()
	end, how := s.KillDaemon, "kill"
	if r.IntN(4) == 0 {
		end, how = s.StopDaemon, "stop"
	}
	if err := end(); err != nil {
		return err
	}
	time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
	s.count(how + " the daemon")
	return s.StartDaemon(context.WithoutCancel(ctx))
}

// checkAtRest waits until no operation runs and checks the store.
func (s *soak) checkAtRest(ctx context.Context) error {
	s.quiet.Lock()
	defer s.quiet.Unlock()
	ctx = context.WithoutCancel(ctx)
	for _, w := range s.writers {
		if err := s.writes(ctx, w); err != nil {
			return fmt.Errorf("a container does not go on: %w", err)
		}
	}
	if err := s.ostreeFsck(ctx); err != nil {
		return err
	}
	s.count("check at rest")
	return s.command(ctx, "fsck", "--address", s.Containerd)
}

// ostreeFsck checks the repository with ostree. ostree takes no lock, so the daemon may prune objects meanwhile. Real
// damage is still there in the next try.
func (s *soak) ostreeFsck(ctx context.Context) error {
	var err error
	for range 5 {
		if _, err = s.Run(ctx, "ostree", "fsck", "--repo="+filepath.Join(s.Root, "repo")); err == nil {
			return nil
		}
		time.Sleep(time.Second)
	}
	return err
}

// finish checks every image, removes everything, and checks what is left.
func (s *soak) finish() {
	t, ctx := s.t, s.t.Context()
	s.must(s.StopDaemon())
	s.must(s.StartDaemon(ctx)) // so that open files and memory at the end are those of one daemon
	before := openFiles(t, s.DaemonPid())
	for _, w := range s.writers {
		s.must(s.writes(ctx, w))
	}
	for _, img := range s.images {
		s.must(s.Pull(ctx, defaultNS, s.fulls[img.ref]))
		s.compare(img.ref, s.view(defaultNS, s.fulls[img.ref]))
	}
	if out, err := s.ourFsck("--deep"); err != nil {
		t.Errorf("our fsck: %v\n%s", err, out)
	}
	s.must(s.ostreeFsck(ctx))
	repo := "--repo=" + filepath.Join(s.Root, "repo")
	if out, err := s.Run(ctx, "ostree", "cat", repo, foreignRef, "/kept"); err != nil || out != "content of data/kept\n" {
		t.Errorf("the commit that is not ours holds %q, %v", out, err)
	}
	for _, namespace := range append(soakNamespaces, defaultNS) {
		s.clear(namespace)
	}
	s.eventually("remove what no image needs", func() string { // the daemon prunes by itself
		for _, name := range []string{"layers/*", "snapshots/*", "tmp/*", "journal/*", "repo/tmp/[^c]*", "repo/refs/heads/oci/*/*"} {
			if left, err := filepath.Glob(filepath.Join(s.Root, name)); err != nil || len(left) > 0 {
				return fmt.Sprintf("left are %q (%v)", left, err)
			}
		}
		return ""
	})
	_, err := s.Run(ctx, "ostree", "refs", repo, "--delete", foreignRef)
	s.must(err)
	s.must(s.command(ctx, "prune"))
	s.empty()
	s.nothingLeft()
	s.logIsClean()
	if after := openFiles(t, s.DaemonPid()); after > before+8 {
		t.Errorf("the daemon has %d files open, it began with %d", after, before)
	}
	peak := peakMemory(t, s.DaemonPid())
	t.Logf("the daemon used %d MiB at most", peak>>20)
	if peak > soakMemory {
		t.Errorf("the daemon used %d bytes of memory, want %d at most", peak, soakMemory)
	}
}

// clear removes everything from a namespace.
func (s *soak) clear(namespace string) {
	s.t.Helper()
	for _, id := range strings.Fields(s.ctr(namespace, "containers", "list", "--quiet")) {
		s.must(s.dropContainer(s.t.Context(), namespace, id))
	}
	for _, id := range strings.Fields(s.ctr(namespace, "leases", "list", "--quiet")) {
		s.ctr(namespace, "leases", "delete", "--sync", id)
	}
	for _, name := range strings.Fields(s.ctr(namespace, "images", "list", "--quiet")) {
		s.ctr(namespace, "images", "rm", "--sync", name)
	}
}

// nothingLeft checks that the stack has no mounts and processes except containerd and the daemon.
func (s *soak) nothingLeft() {
	s.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.Dir))
	s.must(err)
	for _, m := range mounts {
		s.t.Errorf("a mount is left: %+v", *m)
	}
	s.eventually("wait for processes to end", func() string {
		found := processesOf(s.t, s.Dir+"/")
		if len(found) < 2 {
			return fmt.Sprintf("found processes %q, want containerd and the daemon at least", found)
		}
		for _, line := range found {
			if !strings.Contains(line, "/containerd --config ") && !strings.Contains(line, " serve --config ") {
				return "a process is left: " + line
			}
		}
		return ""
	})
}

// logIsClean fails the test if the daemon logged an error or damage. No operation of the test is a reason for either.
func (s *soak) logIsClean() {
	s.t.Helper()
	b, err := os.ReadFile(s.DaemonLog())
	s.must(err)
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "{") || strings.Contains(line, `"level":"error"`) || strings.Contains(line, "panic") ||
			strings.Contains(line, "store was damaged") {
			s.t.Errorf("the daemon logged: %s", line)
		}
	}
}

// openFiles returns the number of a process's open files, except directories of objects, which stay open.
func openFiles(t *testing.T, pid int) int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err == nil && !strings.Contains(target, "/repo/objects/") {
			n++
		}
	}
	return n
}

// peakMemory returns the largest resident set of a process, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil && n == 1 {
			return kib << 10
		}
	}
	t.Fatalf("process %d has no VmHWM", pid)
	return 0
}
