package sysroot

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

// An op changes a sysroot, with ostree admin or with our package.
type op struct {
	name   string
	cleans bool // it removes files that no deployment needs
	ostree func(s *system) error
	ours   func(ctx context.Context, s *system) error

	program []string // verb and arguments of our program for the same change; nil: none
}

// with returns the op with a verb of our program.
func (o op) with(program ...string) op {
	o.program = program
	return o
}

// do makes the change with our package or program.
func (o op) do(ctx context.Context, s *system) error {
	if s.byProgram && o.program != nil {
		return s.runProgram(o.program[0], o.program[1:]...)
	}
	return o.ours(ctx, s)
}

// verb returns an op of ostree admin.
func verb(ours func(ctx context.Context, s *system) error, args ...string) op {
	return op{
		name:   strings.Join(args, " "),
		cleans: slices.Contains([]string{"deploy", "undeploy", "cleanup"}, args[0]) && !slices.Contains(args, "--stage"),
		ostree: func(s *system) error {
			_, err := s.admin(args[0], args[1:]...)
			return err
		},
		ours: ours,
	}
}

// same returns an op that is the same for ostree and us.
func same(name string, do func(s *system) error) op {
	return op{name: name, ostree: do, ours: func(_ context.Context, s *system) error { return do(s) }}
}

// plan returns an op of ours that is a plan from the state alone.
func plan(f func(ctx context.Context, sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error)) func(context.Context, *system) error {
	return func(ctx context.Context, s *system) error {
		return s.change(ctx, func(sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) { return f(ctx, sr, st) })
	}
}

func deployment(d deployOp) op {
	if d.stateroot == "" {
		d.stateroot = osName
	}
	return verb(d.ours, append([]string{"deploy"}, d.args()...)...)
}

func undeploy(index int) op {
	return verb(plan(func(_ context.Context, sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) {
		return sr.PlanUndeploy(st, index)
	}), "undeploy", strconv.Itoa(index)).with("undeploy", strconv.Itoa(index))
}

func pin(index int, pinned bool) op {
	args, name := []string{"pin"}, "pin"
	if !pinned {
		args, name = append(args, "--unpin"), "unpin"
	}
	return verb(plan(func(_ context.Context, sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) {
		return sr.PlanPin(st, index, pinned)
	}), append(args, strconv.Itoa(index))...).with(name, strconv.Itoa(index))
}

func cleanup() op {
	return verb(plan(func(ctx context.Context, sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) {
		return sr.PlanCleanup(ctx, st)
	}), "cleanup").with("cleanup")
}

// appendKarg deploys the default, of this ref, again with another kernel argument.
func appendKarg(ref, arg string) op {
	return verb(plan(func(ctx context.Context, sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) {
		return sr.PlanKargs(ctx, st, st.Default(), st.Default().Kargs.Append(arg), st.Default().Origin)
	}), "deploy", "--os="+osName, "--karg-append="+arg, ref).with("kargs", "--append", arg)
}

// rollback needs an ostree with set-default, which trixie has.
func rollback() op {
	return verb(plan(func(_ context.Context, sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) {
		return sr.PlanRollback(st)
	}), "set-default", "1").with("rollback")
}

func stateroot(name string) op {
	return verb(func(_ context.Context, s *system) error {
		if s.host.Release() == ostreehost.Bookworm {
			_, err := s.admin("os-init", name) // it creates in var what the first deployment creates now
			return err
		}
		sr, err := s.open()
		if err != nil {
			return err
		}
		return errors.Join(sr.InitStateroot(name), sr.Close())
	}, "os-init", name)
}

// boot starts a deployment. Later ops happen in the running system.
func boot(index int, readonly bool) op {
	do := func(s *system) error {
		if s.booted != nil {
			s.booted.Stop()
		}
		s.booted = s.start(s.host.Release(), index, s.setReadonly(readonly))
		return nil
	}
	return same("boot "+strconv.Itoa(index), do)
}

// finalize does the work of the shutdown.
func finalize() op {
	return verb(func(ctx context.Context, s *system) error {
		return s.locked(ctx, func(sr *sysroot.Sysroot) error {
			_, err := sr.FinalizeStaged(ctx)
			return err
		})
	}, "finalize-staged").with("finalize-staged")
}

// edit changes /etc like an administrator.
func edit(name, text string) op {
	do := func(s *system) error {
		return os.WriteFile(filepath.Join(s.etc(), name), []byte(text), 0o644)
	}
	return same("edit /etc/"+name, do)
}

// drop removes a file from /etc.
func drop(name string) op {
	do := func(s *system) error {
		return os.Remove(filepath.Join(s.etc(), name))
	}
	return same("remove /etc/"+name, do)
}

// sequences are changes that once went wrong, or could. Each run assigns the steps differently.
var sequences = map[string][]op{
	"first deployment": {deployment(deployOp{ref: "os/v1", set: []string{"root=/dev/vda2", "rw"}})},
	"upgrades": {
		deployment(deployOp{ref: "os/v1", set: []string{"root=/dev/vda2", "rw"}}),
		edit("conf", "ours"), edit("added", "new"), drop("passwd"),
		deployment(deployOp{ref: "os/v2"}),
		deployment(deployOp{ref: "os/v3"}), // with the same kernel
		deployment(deployOp{ref: "os/v1"}),
	},
	"kernel arguments": {
		deployment(deployOp{ref: "os/v1", set: []string{"root=/dev/vda2", "rw"}}),
		deployment(deployOp{ref: "os/v1", add: []string{"console=tty0", "console=ttyS0"}}),
		deployment(deployOp{ref: "os/v2", set: []string{"root=/dev/vda3"}}),
		appendKarg("os/v2", "quiet"),
		deployment(deployOp{ref: "os/v2", add: []string{`dyndbg="file a.c +p"`}}),
	},
	"the same commit again": {
		deployment(deployOp{ref: "os/v1"}),
		deployment(deployOp{ref: "os/v1"}), // only its links change
		deployment(deployOp{ref: "os/v1", retain: true}),
		deployment(deployOp{ref: "os/v1"}),
		undeploy(0),
		deployment(deployOp{ref: "os/v1", retain: true}),
	},
	"retained and not the default": {
		deployment(deployOp{ref: "os/v1"}),
		deployment(deployOp{ref: "os/v2", retain: true}),
		deployment(deployOp{ref: "os/v3", retain: true}),
		deployment(deployOp{ref: "os/v1", retain: true, notDefault: true}),
		deployment(deployOp{ref: "os/v2", notDefault: true}),
		undeploy(1), undeploy(7), cleanup(),
	},
	"pinned": {
		deployment(deployOp{ref: "os/v1"}),
		pin(0, true),
		deployment(deployOp{ref: "os/v2"}), deployment(deployOp{ref: "os/v3"}), deployment(deployOp{ref: "os/v2"}),
		pin(2, false),
		deployment(deployOp{ref: "os/v3"}),
		pin(9, true), cleanup(),
	},
	"two stateroots": {
		deployment(deployOp{ref: "os/v1"}),
		stateroot(otherName),
		deployment(deployOp{ref: "os/v2", stateroot: otherName}),
		deployment(deployOp{ref: "os/v3"}),
		deployment(deployOp{ref: "os/v1", stateroot: otherName}),
		undeploy(1), undeploy(0), cleanup(),
	},
	"all gone": {
		deployment(deployOp{ref: "os/v1"}), deployment(deployOp{ref: "os/v2"}),
		undeploy(0), undeploy(0), cleanup(),
		deployment(deployOp{ref: "os/v3"}),
	},
	"initial var": {
		deployment(deployOp{ref: "os/v4"}),
		stateroot(otherName),
		deployment(deployOp{ref: "os/v4", stateroot: otherName}),
		deployment(deployOp{ref: "os/v1", stateroot: otherName}),
		deployment(deployOp{ref: "os/v4", stateroot: otherName}),
	},
	"rollbacks": {
		deployment(deployOp{ref: "os/v1"}), deployment(deployOp{ref: "os/v2"}),
		rollback(), deployment(deployOp{ref: "os/v3"}), rollback(), rollback(), cleanup(),
	},
}

// bootedSequences are changes in a running system.
var bootedSequences = map[string][]op{
	"the booted one stays": {
		deployment(deployOp{ref: "os/v1", set: []string{"root=/dev/vda2", "rw"}}),
		boot(0, false),
		edit("conf", "changed while it runs"), edit("added", "while it runs"), drop("passwd"),
		deployment(deployOp{ref: "os/v2"}), deployment(deployOp{ref: "os/v3"}),
		edit("added", "too late"), undeploy(1), cleanup(),
		boot(0, true),
		undeploy(1), undeploy(0),
	},
	"staged": {
		deployment(deployOp{ref: "os/v1", set: []string{"root=/dev/vda2", "rw"}}),
		boot(0, false),
		edit("conf", "changed before"),
		deployment(deployOp{ref: "os/v2", stage: true}),
		edit("late", "changed after"), drop("passwd"),
		finalize(),
		boot(0, true),
		deployment(deployOp{ref: "os/v3", stage: true, add: []string{"console=ttyS0"}}),
		edit("conf", "changed again"),
		finalize(), finalize(),
	},
	"staged more than once": {
		deployment(deployOp{ref: "os/v1"}),
		boot(0, true),
		deployment(deployOp{ref: "os/v2", stage: true}),
		deployment(deployOp{ref: "os/v3", stage: true}),
		cleanup(),
		deployment(deployOp{ref: "os/v3", stage: true}),
		undeploy(0),
		deployment(deployOp{ref: "os/v2", stage: true, add: []string{"quiet"}}),
		finalize(), cleanup(),
	},
	"booted behind the default": {
		deployment(deployOp{ref: "os/v1"}), deployment(deployOp{ref: "os/v2"}),
		boot(1, false),
		edit("conf", "of the booted one"),
		deployment(deployOp{ref: "os/v3", stage: true}), finalize(),
		deployment(deployOp{ref: "os/v2"}),
		boot(1, true), undeploy(1), undeploy(0),
	},
	"deployed over what is staged": {
		deployment(deployOp{ref: "os/v1"}),
		boot(0, false),
		deployment(deployOp{ref: "os/v2", stage: true}),
		deployment(deployOp{ref: "os/v3"}),
		cleanup(), finalize(),
	},
	"a pinned one and what is staged": {
		deployment(deployOp{ref: "os/v1"}), deployment(deployOp{ref: "os/v2"}),
		boot(0, false),
		pin(1, true),
		deployment(deployOp{ref: "os/v3", stage: true}),
		pin(0, true), pin(1, true), pin(1, false),
		finalize(),
		boot(0, false),
		deployment(deployOp{ref: "os/v1", stage: true}),
		finalize(),
	},
}

// byProgram is the run in which we use the program.
const byProgram = "program"

// who assigns the steps of a run.
var who = map[string]func(step int) (ours bool){
	byProgram:     func(int) bool { return true },
	"ours-theirs": func(step int) bool { return step%2 == 0 },
	"theirs-ours": func(step int) bool { return step%2 == 1 },
}

// A step is a change of a sysroot, with the listing after it.
type step struct {
	op
	err  error
	list listing
}

// record makes the changes from next with ostree, until there are no more.
func (s *system) record(next func() (op, bool)) (steps []step) {
	s.t.Helper()
	for o, ok := next(); ok; o, ok = next() {
		err := o.ostree(s)
		steps = append(steps, step{o, err, s.list()})
	}
	return steps
}

// replay repeats steps and compares. It returns at the first difference.
func (s *system) replay(t *testing.T, steps []step, ours func(step int) bool) {
	t.Helper()
	before := s.list()
	for i, want := range steps {
		by, do := "ostree", want.ostree
		if ours(i) {
			by, do = "us", func(s *system) error { return want.do(t.Context(), s) }
		}
		err := do(s)
		got := s.list()
		diff := diffSettled(want.list, s.named(got))
		if (err == nil) != (want.err == nil) || len(diff) > 0 {
			t.Errorf("step %d, %q by %s: %v, want %v\n%s", i, want.name, by, err, want.err, strings.Join(diff, "\n"))
			for j, st := range steps[:i] {
				t.Logf("step %d: %q, error %v", j, st.name, st.err)
			}
			return
		}
		if err != nil {
			if diff := before.diff(got); len(diff) > 0 {
				t.Errorf("step %d, %q by %s has failed and changed\n%s", i, want.name, by, strings.Join(diff, "\n"))
			}
		} else if want.cleans && (ours(i) || s.host.Release() != ostreehost.Bookworm) {
			for _, name := range got.leftovers(ours(i)) {
				t.Errorf("step %d, %q by %s left %s", i, want.name, by, name)
			}
		}
		before = got
	}
}

// leftovers returns the names that no deployment needs, except those that ostree leaves; see [diffSettled].
func (l listing) leftovers(ours bool) (names []string) {
	for name := range l {
		dir, ok := strings.CutSuffix(name, "/root-transient")
		if ok && l[strings.Replace(dir, "/backing/", "/deploy/", 1)] == "" || ours && (l.unusedKernel(name) || l.unusedRef(name)) {
			names = append(names, name)
		}
	}
	return names
}

// named returns a listing of ours with ostree's names of entries. The program uses names that all versions of ostree
// can read.
func (s *system) named(l listing) listing {
	if !s.byProgram || s.host.Release() == ostreehost.Bookworm {
		return l
	}
	out := make(listing, len(l))
	for name, line := range l {
		out[oldEntry.ReplaceAllString(name, "$1.conf")] = line
	}
	return out
}

var oldEntry = regexp.MustCompile(`^(boot/loader\.[01]/entries/ostree-[0-9]+)-[^/]+\.conf$`)

// unusedKernel reports whether a name is that of a kernel, or of its directory, without an entry.
func (l listing) unusedKernel(name string) bool {
	dir := kernelDir.FindString(name)
	if dir == "" {
		return false
	}
	for _, line := range l {
		if strings.Contains(line, "linux "+strings.TrimPrefix(dir, "boot")+"/") {
			return false
		}
	}
	return true
}

// unusedRef reports whether a name is the ref of a deployment that does not exist.
func (l listing) unusedRef(name string) bool {
	m := deploymentRef.FindStringSubmatch(name)
	if m == nil {
		return false
	}
	deployments := 0
	for name := range l {
		if strings.HasSuffix(name, ".origin") {
			deployments++
		}
	}
	index, err := strconv.Atoi(m[1])
	return err == nil && index >= deployments
}

var abootKeys = regexp.MustCompile(`aboot(cfg)? .*?\\n`)

// diffSettled compares the listings after ostree's change and after ours. It leaves out these differences:
//
//   - What ostree of trixie adds for two things that we do not do: the keys of Android's boot loader, which it writes into
//     each entry without looking for the files they name, and directories for the changes of roots that are writable until
//     the next boot.
//   - Kernels of no entry that ostree leaves in /boot, since another stateroot has the same one under another name.
//   - Refs that ostree leaves of deployments beyond the last, after the staged one was dropped, which it had counted.
//   - The composefs images that an ostree with composefs gives to all deployments. We make none that nobody mounts, and keep
//     one as a hard link; TestComposefsImage and TestCLI check that.
//   - The kernel arguments of a staged deployment, which ostree leaves out if they are those of the merge deployment.
func diffSettled(want, got listing) []string {
	want, got = maps.Clone(want), maps.Clone(got)
	for _, l := range []listing{want, got} {
		for name, line := range l {
			switch {
			case backing.MatchString(name), l.unusedKernel(name), l.unusedRef(name):
				delete(l, name)
			case strings.HasSuffix(name, ".conf"):
				l[name] = abootKeys.ReplaceAllString(line, "")
			}
		}
	}
	for name, line := range got {
		if path.Base(name) == cfs.Name {
			got[name], _, _ = strings.Cut(line, " = ")
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok && path.Base(name) == cfs.Name {
			delete(want, name)
		}
	}
	const stagedArgs = stagedFile + " kargs"
	if want[stagedArgs] == "" {
		delete(got, stagedArgs)
	}
	return want.diff(got)
}

var (
	backing       = regexp.MustCompile(`^ostree/deploy/[^/]+/backing(/|$)`)
	deploymentRef = regexp.MustCompile(`^ostree/repo/refs/heads/ostree/[01]/[01]/([0-9]+)$`)
	kernelDir     = regexp.MustCompile(`^boot/ostree/[^/]+`)
)

// alternate makes a sequence with ostree, and then with each of who.
func alternate(t *testing.T, r ostreehost.Release, ownBoot bool, next func(s *system) (op, bool)) {
	t.Helper()
	names := append([]string{"reference"}, slices.Sorted(maps.Keys(who))...)
	disk, systems := newSystems(t, r, ownBoot, names...)
	initAll(disk, systems...)
	reference := systems[0]
	defer reference.stop()
	steps := reference.record(func() (op, bool) { return next(reference) })
	var others []*ostreehost.Host
	for _, other := range ostreehost.Releases {
		if other != r {
			binds := []ostreehost.Bind{{From: disk, To: disk}}
			others = append(others, ostreehost.Start(t, other, ostreehost.Options{Binds: binds, Env: ostreeEnv}))
		}
	}
	for i, s := range systems[1:] {
		s.byProgram = names[i+1] == byProgram
		t.Run(names[i+1], func(t *testing.T) {
			s.replay(t, steps, who[names[i+1]])
			s.stop()
			reference.stop()
			s.check(t, reference, others...)
		})
	}
}

// TestAlternate makes the same changes to several sysroots: to one with ostree admin alone, and to others with ostree
// admin and us in turn. It compares the listings after each step. At the end ostree must accept the result, and each
// deployment must start.
func TestAlternate(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
		for name, ops := range sequences {
			if r == ostreehost.Bookworm && (name == "rollbacks" || name == "initial var") {
				continue // its ostree has no set-default, and does not handle /var in trees
			}
			t.Run(name, func(t *testing.T) { alternate(t, r, name == "two stateroots", list(ops)) })
		}
	})
}

// TestAlternateBooted makes changes in running systems. Some have a /boot that is not the sysroot's.
func TestAlternateBooted(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
		for name, ops := range bootedSequences {
			// Each sequence has a separate /boot in a release or two, and none in the next.
			ownBoot := len(name)%2 == slices.Index(ostreehost.Releases, r)%2
			t.Run(fmt.Sprintf("%s,boot=%v", name, ownBoot), func(t *testing.T) { alternate(t, r, ownBoot, list(ops)) })
		}
	})
}

// list returns the operations one after the other.
func list(ops []op) func(*system) (op, bool) {
	return func(*system) (o op, ok bool) {
		if len(ops) > 0 {
			o, ops, ok = ops[0], ops[1:], true
		}
		return o, ok
	}
}

var randomSeeds = flag.Int("random.seeds", 2, "number of random sequences")

// TestRandom is TestAlternate with random operations.
func TestRandom(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
		for seed := range uint64(*randomSeeds) {
			t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
				rng, left := rand.New(rand.NewPCG(seed, 4)), 12
				alternate(t, r, seed%2 == 1, func(s *system) (op, bool) {
					left--
					return randomOp(rng, s), left >= 0
				})
			})
		}
	})
}

func randomOp(rng *rand.Rand, s *system) op {
	entries := s.entries()
	if len(entries) == 0 || rng.IntN(2) == 0 {
		return deployment(deployOp{
			ref: "os/v" + strconv.Itoa(rng.IntN(3)+1), retain: rng.IntN(3) == 0, notDefault: rng.IntN(4) == 0,
			set: []string{"root=/dev/vda" + strconv.Itoa(rng.IntN(2))},
		})
	}
	index := rng.IntN(len(entries))
	switch rng.IntN(6) {
	case 0:
		return pin(index, true)
	case 1:
		return pin(index, false)
	case 2:
		return cleanup()
	case 3:
		return edit([]string{"conf", "new", "more"}[rng.IntN(3)], strconv.Itoa(rng.IntN(3)))
	case 4:
		if len(entries) > 1 && s.host.Release() != ostreehost.Bookworm {
			return rollback()
		}
	}
	if origin, err := os.ReadFile(filepath.Join(s.root, s.deploymentOf(entries[index])+".origin")); err != nil {
		s.t.Fatal(err)
	} else if strings.Contains(string(origin), "pinned") {
		return pin(index, false) // ostree would undeploy it, we do not
	}
	return undeploy(index)
}
