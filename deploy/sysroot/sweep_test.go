package sysroot_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// A sweepCase is a change of a sysroot.
type sweepCase struct {
	prepare func(b *bed)
	run     func(b *bed) error
	// booted is the index of the running deployment; -1 for none.
	booted int
	// apart has /boot on a file system of its own.
	apart bool
	// full has a boot loader with room for two kernels.
	full bool
	// prune has objects pruned, which has a sweep of its own.
	prune bool
	min   int
}

var sweepCases = map[string]sweepCase{
	"deploy":                      {prepare: with(twoDeployments, "3"), run: deployOnce("3", nil), booted: -1, min: 200},
	"deploy with its own boot":    {prepare: with(twoDeployments, "3"), run: deployOnce("3", nil), booted: -1, apart: true, min: 200},
	"deploy with composefs image": {prepare: oneCfs, run: kargsOnce, booted: -1, min: 130},
	"make a composefs image":      {prepare: with(twoDeployments, "cfs"), run: deployOnce("cfs", nil), booted: -1, min: 200},
	"deploy with early prune": {
		prepare: with(twoDeployments, "3"), run: deployOnce("3", func(r *sysroot.Request) { r.EarlyPrune = true }),
		booted: -1, full: true, min: 250,
	},
	"first deploy":             {prepare: with(nil, "1"), run: deployOnce("1", nil), booted: -1, min: 130},
	"first deploy with labels": {prepare: oneLabelled, run: deployOnce("1", nil), booted: -1, min: 230},
	"finalize with labels":     {prepare: stagedLabelled, run: finalizeOnce, booted: 0, min: 110},
	"undeploy":                 {prepare: twoDeployments, run: undeployOnce, booted: -1, min: 100},
	"rollback":                 {prepare: twoDeployments, run: rollbackOnce("1"), booted: -1, min: 70},
	"rollback to same kernel":  {prepare: sameKernels, run: rollbackOnce("2"), booted: -1, min: 35},
	"rollback staged":          {prepare: oneStaged, run: rollbackOnce("1"), booted: 0, min: 100},
	"pin":                      {prepare: twoDeployments, run: pinOnce, booted: -1, min: 9},
	"cleanup":                  {prepare: with(manyLeftovers, "3"), run: cleanupOnce, booted: -1, prune: true, min: 29},
	"stage":                    {prepare: with(oneStaged, "4"), run: deployOnce("4", func(r *sysroot.Request) { r.Stage = true }), booted: 0, min: 110},
	"finalize":                 {prepare: oneStaged, run: finalizeOnce, booted: 0, min: 140},
	"boot complete":            {prepare: oneCounted, run: completeOnce, booted: 0, min: 5},
}

// tinyTree returns a minimal system: each file adds operations to the sweep.
func tinyTree(version, kernel string) *node {
	tree := osTree(version, kernel)
	for _, name := range []string{"boot", "sysroot", "ostree"} {
		delete(tree.Entries, name)
	}
	delete(tree.Entries["usr"].Entries, "bin")
	at(tree, "usr/lib")["tmpfiles.d"] = file(0o644, "is looked for only")
	at(tree, "var")["db"] = file(0o644, "data")
	delete(at(tree, "var"), "lib")
	return tree
}

// commitTiny stores versions of a tiny system.
func (b *bed) commitTiny(names ...string) {
	b.t.Helper()
	versions := map[string]struct{ version, kernel string }{"1": {"1", "a"}, "2": {"2", "b"}, "3": {"3", "c"}, "4": {"4", "a"}, "2b": {"2", "b"}, "cfs": {"3", "c"}}
	for _, name := range names {
		tree := tinyTree(name, versions[name].kernel)
		if name == "cfs" {
			at(tree, "usr/lib/ostree")["prepare-root.conf"] = file(0o644, "[composefs]\nenabled=yes\n")
		}
		commitTree(b.t, b.Repo(), "os/"+name, versions[name].version, tree)
	}
}

// with stores versions first.
func with(then func(b *bed), versions ...string) func(b *bed) {
	return func(b *bed) {
		b.commitTiny(versions...)
		if then != nil {
			then(b)
		}
	}
}

func twoDeployments(b *bed) {
	b.commitTiny("1", "2")
	b.deploy(ref(b, "1"), withKargs("rw"))
	b.deploy(ref(b, "2"))
	b.changeEtc()
}

func oneCfs(b *bed) {
	b.commitTiny("1")
	b.deploy(ref(b, "1"), withKargs("rw"))
	b.giveCfs(0)
}

// kargsOnce adds a kernel argument, unless that is done and only later steps are missing.
func kargsOnce(b *bed) error {
	return b.try(func(ctx context.Context, st *sysroot.State) (*sysroot.Plan, error) {
		if slices.Contains(st.Default().Kargs, "quiet") {
			return b.PlanCleanup(ctx, st)
		}
		return b.PlanKargs(ctx, st, st.Default(), st.Default().Kargs.Append("quiet"), st.Default().Origin)
	})
}

// tinyLabelledTree is a tinyTree with a policy and labels.
func tinyLabelledTree(tb testing.TB, version, kernel string) *node {
	tb.Helper()
	tree := tinyTree(version, kernel)
	addPolicy(tree)
	labelTree(tb, tree)
	return tree
}

func oneLabelled(b *bed) {
	commitTree(b.t, b.Repo(), "os/1", "1", tinyLabelledTree(b.t, "1", "a"))
}

func stagedLabelled(b *bed) {
	oneLabelled(b)
	b.deploy(ref(b, "1"), withKargs("rw"))
	b.changeEtc()
	for _, name := range []string{"conf", "added"} {
		name = filepath.Join(b.path, b.load().Deployments[0].Path(), "etc", name)
		testenv.Must(b.t, unix.Setxattr(name, atfs.XattrSELinux, []byte("u:r:old_t:s0"), 0))
	}
	commitTree(b.t, b.Repo(), "os/2", "2", tinyLabelledTree(b.t, "2", "b"))
	b.boot(0)
	b.deploy(ref(b, "2"), func(r *sysroot.Request) { r.Stage = true })
}

func sameKernels(b *bed) {
	b.commitTiny("2", "2b")
	b.deploy(ref(b, "2"), withKargs("rw"))
	b.deploy(ref(b, "2b"))
}

// changeEtc changes /etc of the default deployment.
func (b *bed) changeEtc() {
	b.t.Helper()
	etc := filepath.Join(b.path, b.load().Default().Path(), "etc")
	testenv.Must(b.t, os.WriteFile(filepath.Join(etc, "conf"), []byte("changed"), 0o600))
	testenv.Must(b.t, os.WriteFile(filepath.Join(etc, "added"), []byte("added"), 0o644))
	testenv.Must(b.t, os.Remove(filepath.Join(etc, "same")))
}

func oneStaged(b *bed) {
	twoDeployments(b)
	b.commitTiny("3")
	b.boot(0)
	b.deploy(ref(b, "3"), func(r *sysroot.Request) { r.Stage = true })
}

func oneCounted(b *bed) {
	b.commitTiny("1")
	b.deploy(ref(b, "1"), func(r *sysroot.Request) { r.Tries = 3 })
}

func manyLeftovers(b *bed) {
	twoDeployments(b)
	for _, name := range []string{"boot/loader.0/entries", "boot/loader.1/entries", "ostree/boot.0.0", "ostree/boot.1.0/os", "boot/ostree/os-" + strings.Repeat("0", 64)} {
		testenv.Must(b.t, os.MkdirAll(filepath.Join(b.path, name), 0o755))
	}
	sum := ref(b, "3").String()
	dead := filepath.Join(b.path, "ostree/deploy/os/deploy", sum+".0")
	testenv.Must(b.t, os.MkdirAll(dead+"/usr/bin", 0o755))
	testenv.Must(b.t, os.WriteFile(dead+".origin", nil, 0o644))
	testenv.Must(b.t, os.WriteFile(dead+".origin.tmp-1", nil, 0o644))
	testenv.Must(b.t, os.Remove(filepath.Join(b.path, "ostree/repo/refs/heads/os/3")))
	d := value(atfs.Open(dead))(b.t)
	testenv.Must(b.t, d.SetImmutable(true))
	testenv.Must(b.t, d.Close())
}

// deployOnce deploys a version, unless that is done and only later steps are missing.
func deployOnce(version string, change func(*sysroot.Request)) func(b *bed) error {
	return func(b *bed) error {
		sum := ref(b, version)
		return b.try(func(ctx context.Context, st *sysroot.State) (*sysroot.Plan, error) {
			if d := st.Default(); d != nil && d.Commit == sum || st.Staged != nil && st.Staged.Commit == sum {
				return b.PlanCleanup(ctx, st)
			}
			r := sysroot.Request{Stateroot: "os", Commit: sum, Merge: st.MergeDeployment("os"), Origin: originFile("os/" + version)}
			if change != nil {
				change(&r)
			}
			return b.PlanDeploy(ctx, st, r)
		})
	}
}

func undeployOnce(b *bed) error {
	return b.try(func(ctx context.Context, st *sysroot.State) (*sysroot.Plan, error) {
		if len(st.Deployments) < 2 {
			return b.PlanCleanup(ctx, st)
		}
		return b.PlanUndeploy(st, 1)
	})
}

// rollbackOnce rolls back to a version, unless that is done and only later steps are missing.
func rollbackOnce(version string) func(b *bed) error {
	return func(b *bed) error {
		return b.try(func(ctx context.Context, st *sysroot.State) (*sysroot.Plan, error) {
			switch {
			case st.Default().Commit != ref(b, version):
				return b.PlanRollback(st)
			case st.Staged != nil:
				return b.PlanUndeploy(st, 0)
			}
			return b.PlanCleanup(ctx, st)
		})
	}
}

func pinOnce(b *bed) error {
	return b.try(func(_ context.Context, st *sysroot.State) (*sysroot.Plan, error) { return b.PlanPin(st, 1, true) })
}

func cleanupOnce(b *bed) error {
	return b.try(func(ctx context.Context, st *sysroot.State) (*sysroot.Plan, error) { return b.PlanCleanup(ctx, st) })
}

func finalizeOnce(b *bed) (err error) {
	unlock, err := b.Lock(b.t.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	_, err = b.FinalizeStaged(b.t.Context())
	return err
}

func completeOnce(b *bed) (err error) {
	unlock, err := b.Lock(b.t.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	_, err = b.BootComplete(b.t.Context())
	return err
}

// try is do that returns errors.
func (b *bed) try(plan func(context.Context, *sysroot.State) (*sysroot.Plan, error)) (err error) {
	ctx := b.t.Context()
	unlock, err := b.Lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	st, err := b.Load(ctx)
	if err != nil {
		return err
	}
	p, err := plan(ctx, st)
	if err != nil {
		return err
	}
	p.NoPrune = p.NoPrune || b.noPrune
	return b.Execute(ctx, p)
}

// boot makes a deployment the running one, as far as /run and the root directory show.
func (b *bed) boot(index int) {
	b.t.Helper()
	root := filepath.Join(b.path, b.load().Deployments[index].Path())
	testenv.Must(b.t, os.WriteFile(filepath.Join(b.run, "ostree-booted"), nil, 0o644))
	testenv.Must(b.t, os.WriteFile(filepath.Join(b.run, "root"), []byte(root), 0o644))
	b.reopen(nil)
}

// reopen opens the sysroot below the directory of a sweep again.
func (b *bed) reopen(hook atfs.Hook) {
	b.t.Helper()
	if b.Sysroot != nil {
		testenv.Must(b.t, b.Close())
	}
	openHooked := func(path string) *atfs.Dir {
		plain := value(atfs.Open(path))(b.t)
		defer plain.Close()
		return value(plain.WithHook(hook))(b.t)
	}
	dir := openHooked(b.path)
	defer dir.Close()
	run := openHooked(b.run)
	defer run.Close()
	opts := sysroot.Options{Run: run, Root: "/"}
	if b.bootPath != "" {
		boot := openHooked(b.bootPath)
		defer boot.Close()
		opts.Boot = boot
	}
	if root, err := os.ReadFile(filepath.Join(b.run, "root")); err == nil {
		opts.Root = string(root)
	}
	if b.full {
		opts.Bootloader = smallLoader{filepath.Join(b.path, "boot")}
	}
	b.Sysroot = value(sysroot.Open(dir, opts))(b.t)
}

// bootOf returns a directory on another file system that belongs to a path.
func bootOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	return "/dev/shm/test-boot-" + hex.EncodeToString(sum[:8])
}

func (c *sweepCase) bed(t *testing.T, path string) *bed {
	t.Helper()
	b := &bed{t: t, path: filepath.Join(path, "sysroot"), run: filepath.Join(path, "run"), noPrune: !c.prune, full: c.full}
	if c.apart {
		b.bootPath = bootOf(path)
	}
	return b
}

// setUp prepares the state that the change finds.
func (c *sweepCase) setUp(t *testing.T, path string) {
	t.Helper()
	b := c.bed(t, path)
	testenv.Must(t, os.Mkdir(b.path, 0o755))
	testenv.Must(t, os.Mkdir(b.run, 0o755))
	if c.apart {
		testenv.Must(t, os.Mkdir(b.bootPath, 0o755))
		t.Cleanup(func() { testenv.Must(t, os.RemoveAll(b.bootPath)) })
	}
	d := value(atfs.Open(b.path))(t)
	testenv.Must(t, sysroot.Init(d))
	testenv.Must(t, d.Close())
	b.reopen(nil)
	testenv.Must(t, b.InitStateroot("os"))
	c.prepare(b)
	if c.booted >= 0 {
		b.boot(c.booted)
	}
	testenv.Must(t, b.Close())
}

// copySetUp copies the prepared state to another directory. Files are links, but for those of /etc: changes must write them
// anew.
func (c *sweepCase) copySetUp(t *testing.T, from, path string) {
	t.Helper()
	testenv.Must(t, cloneTree(from, path))
	if c.apart {
		testenv.Must(t, cloneTree(bootOf(from), bootOf(path)))
		t.Cleanup(func() { testenv.Must(t, os.RemoveAll(bootOf(path))) })
	}
	b := c.bed(t, path)
	if root, err := os.ReadFile(filepath.Join(b.run, "root")); err == nil {
		testenv.Must(t, os.Remove(filepath.Join(b.run, "root")))
		testenv.Must(t, os.WriteFile(filepath.Join(b.run, "root"), []byte(strings.Replace(string(root), from, path, 1)), 0o644))
	}
}

// cloneTree copies directories, and links their files. Those of /etc it copies.
func cloneTree(from, to string) error {
	var dirs []func() error // finish directories that are filled
	err := filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := to + strings.TrimPrefix(name, from)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.Mode().IsRegular() && strings.Contains(name, "/etc/") && !strings.Contains(name, "/usr/etc/") {
			return cloneFile(name, target, fi.Mode())
		}
		if !d.IsDir() {
			return os.Link(name, target)
		}
		if err := os.Mkdir(target, 0o700); err != nil && target != to {
			return err
		}
		if err := cloneLabel(name, target); err != nil {
			return err
		}
		src, err := atfs.Open(name)
		if err != nil {
			return err
		}
		defer src.Close()
		flags, err := unix.IoctlGetUint32(src.FD(), unix.FS_IOC_GETFLAGS)
		frozen := err == nil && flags&immutableFlag != 0
		dirs = append(dirs, func() error {
			if err := os.Chmod(target, fi.Mode()); err != nil || !frozen {
				return err
			}
			d, err := atfs.Open(target)
			if err != nil {
				return err
			}
			return errors.Join(d.SetImmutable(true), d.Close())
		})
		return nil
	})
	for _, f := range dirs {
		err = errors.Join(err, f())
	}
	return err
}

func cloneFile(from, to string, mode fs.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, data, mode); err != nil {
		return err
	}
	return cloneLabel(from, to)
}

func cloneLabel(from, to string) error {
	var buf [256]byte
	n, err := unix.Getxattr(from, atfs.XattrSELinux, buf[:])
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Setxattr(to, atfs.XattrSELinux, buf[:n], 0)
}

func (c *sweepCase) faultCase(t *testing.T) faulttest.Case[*bed] {
	t.Helper()
	var want string // the result if nothing fails
	sweep := t      // its directory outlives those of single attempts
	return faulttest.Case[*bed]{
		Min: c.min,
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			template := filepath.Join(filepath.Dir(path), "template")
			if want == "" {
				testenv.Must(t, os.Mkdir(template, 0o711))
				c.setUp(sweep, template)
				done := template + "-done"
				c.copySetUp(sweep, template, done)
				b := c.bed(sweep, done)
				b.reopen(nil)
				testenv.Must(t, c.run(b))
				want = b.snapshot()
				testenv.Must(t, b.Close())
			}
			c.copySetUp(t, template, path)
		},
		Open: func(t *testing.T, path string, hook atfs.Hook) *bed {
			t.Helper()
			b := c.bed(t, path)
			b.reopen(hook)
			return b
		},
		Run: func(t *testing.T, b *bed) error { t.Helper(); b.t = t; return c.run(b) },
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			b.t = t
			b.check()
			if at, _ := strconv.Atoi(filepath.Base(filepath.Dir(b.path))); !done && at%16 == 0 && b.bootPath == "" && objecttest.HasOstree() {
				b.admin("status") // no stricter than our own check, and slow
			}
			if done && want != "" {
				if diff := testenv.Diff(want, b.snapshot()); diff != "" {
					t.Errorf("differs from the result without failures (-want +got):\n%s", diff)
				}
			}
		},
		// What the first of two removals leaves, the second removes.
		Survives: func(op atfs.Op, _ string) bool {
			return c.full && slices.Contains([]atfs.Op{atfs.OpUnlink, atfs.OpSetFlags}, op)
		},
		Clean: func(t *testing.T, path string) { t.Helper(); thaw(t, filepath.Join(path, "sysroot")) },
	}
}

func (b *bed) snapshot() string {
	text := snapshot(b.t, b.path)
	if b.bootPath != "" {
		text += strings.Join(list(b.t, b.bootPath, ".", true), "\n") + "\n"
	}
	staged, err := os.ReadFile(filepath.Join(b.run, "ostree/staged-deployment"))
	if err == nil {
		text += "staged: " + hex.EncodeToString(staged) + "\n"
	}
	return text + strings.Join(list(b.t, b.path, "ostree/deploy/os/var", true), "\n") + "\n"
}

// check verifies that whatever boots is complete.
func (b *bed) check() {
	t := b.t
	t.Helper()
	boot := b.bootPath
	if boot == "" {
		boot = filepath.Join(b.path, "boot")
	}
	st := b.load()
	if stateroot := labels(t, filepath.Join(b.path, "ostree/deploy/os/var")); stateroot[".ostree-selabeled"] != "" {
		for name, label := range stateroot {
			if label == "" {
				t.Errorf("/var counts as labelled, but %s is not", name)
			}
		}
	}
	entries := value(filepath.Glob(filepath.Join(boot, "loader/entries/*.conf")))(t)
	if len(entries) != len(st.Deployments) {
		t.Errorf("%d entries, %d deployments", len(entries), len(st.Deployments))
	}
	for _, name := range entries {
		for line := range strings.Lines(string(value(os.ReadFile(name))(t))) {
			key, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			switch key {
			case "linux", "initrd":
				if got := string(value(os.ReadFile(filepath.Join(boot, v)))(t)); !strings.HasPrefix(got, "kernel ") && !strings.HasPrefix(got, "initramfs ") {
					t.Errorf("%s: %s is not complete: %q", filepath.Base(name), v, got)
				}
			case "options":
				_, link, _ := strings.Cut(v, "ostree=")
				link, _, _ = strings.Cut(link, " ")
				root := value(filepath.EvalSymlinks(filepath.Join(b.path, link)))(t)
				b.checkDeployment(root)
			}
		}
	}
}

func (b *bed) checkDeployment(root string) {
	b.t.Helper()
	for _, name := range []string{"usr/lib/os-release", "usr/etc/conf", "etc/conf", "etc/empty", "usr/lib/modules/6.1.0/vmlinuz"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			b.t.Error(err)
		}
	}
	if _, err := os.Stat(root + ".origin"); err != nil {
		b.t.Error(err)
	}
	if label(b.t, root) != "" {
		for name, label := range labels(b.t, filepath.Join(root, "etc")) {
			if label == "" || label == "u:r:usr_t:s0" {
				b.t.Errorf("/etc/%s has the label %q", name, label)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(root, "usr/lib/ostree/prepare-root.conf")); err == nil {
		if _, err := os.Stat(filepath.Join(root, cfs.Name)); err != nil {
			b.t.Error(err)
		}
	}
	if !immutable(b.t, root) {
		b.t.Errorf("%s is not immutable", root)
	}
	if _, err := os.Stat(filepath.Join(b.path, "ostree/deploy/os/var/db")); err != nil {
		b.t.Error(err)
	}
}

func sweep(t *testing.T, f func(t *testing.T, c faulttest.Case[*bed])) {
	t.Helper()
	testenv.NeedsRoot(t)
	for _, name := range slices.Sorted(maps.Keys(sweepCases)) {
		c := sweepCases[name]
		t.Run(name, func(t *testing.T) {
			f(t, c.faultCase(t))
		})
	}
}

func TestFaultSweep(t *testing.T) { sweep(t, faulttest.Sweep[*bed]) }

func TestKillSweep(t *testing.T) {
	sweep(t, func(t *testing.T, c faulttest.Case[*bed]) {
		t.Helper()
		if strings.HasSuffix(t.Name(), "own_boot") {
			return // a file without a name dies with the process: the state is as where the kernel is linked
		}
		faulttest.KillSweep(t, c)
	})
}

// TestOrder pins the operations on the disk, and their order: targets of the switches are durable before the switches
// are thrown, and nothing that is needed until then is removed before.
func TestOrder(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, name := range []string{"deploy with its own boot", "rollback to same kernel", "finalize", "make a composefs image", "first deploy with labels"} {
		t.Run(name, func(t *testing.T) {
			c := sweepCases[name]
			f := c.faultCase(t)
			f.Prepare = c.setUp
			faulttest.Order(t, strings.ReplaceAll(name, " ", "-"), f)
		})
	}
}
