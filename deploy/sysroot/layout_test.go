package sysroot_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// TestLayoutsAsOSTree deploys trees with their kernel in each of the possible places, by this package and by ostree,
// and compares the results.
func TestLayoutsAsOSTree(t *testing.T) {
	objecttest.NeedsOstree(t)
	const modules = "usr/lib/modules/6.1.0"
	sum := strings.Repeat("0123456789abcdef", 4)
	noModules := func(tree *node) { delete(tree.Entries["usr"].Entries["lib"].Entries, "modules") }
	for name, change := range map[string]func(tree *node){
		"modules": func(*node) {},
		"initramfs without suffix": func(tree *node) {
			at(tree, modules)["initramfs"] = at(tree, modules)["initramfs.img"]
			delete(at(tree, modules), "initramfs.img")
		},
		"no initramfs": func(tree *node) { delete(at(tree, modules), "initramfs.img") },
		"device tree":  func(tree *node) { at(tree, modules)["devicetree"] = file(0o644, "dt") },
		"hmac":         func(tree *node) { at(tree, modules)[".vmlinuz.hmac"] = file(0o644, "hmac") },
		"legacy": func(tree *node) {
			noModules(tree)
			at(tree, "usr/lib/ostree-boot")["vmlinuz-6.1-"+sum] = file(0o644, "k")
			at(tree, "usr/lib/ostree-boot")["initramfs-6.1-"+sum] = file(0o644, "i")
		},
		"legacy with device tree": func(tree *node) {
			noModules(tree)
			at(tree, "usr/lib/ostree-boot")["vmlinuz-"+sum] = file(0o644, "k")
			at(tree, "usr/lib/ostree-boot")["devicetree-6.1-"+sum] = file(0o644, "d")
		},
		"in boot": func(tree *node) {
			noModules(tree)
			at(tree, "boot")["vmlinuz-6.1-"+sum] = file(0o644, "k")
			at(tree, "boot")["initramfs-6.1-"+sum] = file(0o644, "i")
			at(tree, "boot")["config-6.1"] = file(0o644, "c")
		},
		"initramfs in the older place": func(tree *node) {
			delete(at(tree, modules), "initramfs.img")
			at(tree, "usr/lib/ostree-boot")["vmlinuz-6.1-"+sum] = file(0o644, "k")
			at(tree, "usr/lib/ostree-boot")["initramfs-6.1-"+sum] = file(0o644, "i")
		},
		"initramfs in both": func(tree *node) {
			at(tree, "usr/lib/ostree-boot")["vmlinuz-6.1-"+sum] = file(0o644, "k")
			at(tree, "usr/lib/ostree-boot")["initramfs-6.1-"+sum] = file(0o644, "i")
		},
		"version in the name": func(tree *node) { at(tree, "usr/lib")["os-release"] = file(0o644, "PRETTY_NAME=\"OS x\"\n") },
		"odd name": func(tree *node) {
			at(tree, "usr/lib")["os-release"] = file(0o644, "NAME=n\n# PRETTY_NAME=no\nID='i d'\\ x\"\\$y\"z\nBAD='\n")
		},
		"whiteout": func(tree *node) { at(tree, "usr/share")[".ostree-wh.gone"] = file(0o600, "") },
	} {
		t.Run(name, func(t *testing.T) {
			var got [2]string
			for i := range got {
				b := newSysroot(t)
				b.commit("1", "a")
				tree := osTree("x", "x")
				change(tree)
				commitTree(t, b.Repo(), "os/x", "x", tree)
				for _, version := range []string{"1", "x"} { // the second time an entry exists that has to be written again
					if i == 0 {
						b.admin("deploy", "--os=os", "os/"+version)
					} else {
						b.deploy(ref(b, version), func(r *sysroot.Request) { r.Origin = originFile("os/" + version) })
					}
				}
				b.load()
				root := filepath.Join("ostree/deploy/os/deploy", ref(b, "x").String()+".0")
				got[i] = snapshot(t, b.path) + strings.Join(list(t, filepath.Join(b.path, root), ".", false), "\n")
			}
			if diff := testenv.Diff(got[0], got[1]); diff != "" {
				t.Errorf("-ostree +ours:\n%s", diff)
			}
		})
	}
}

// TestOlderTrees: /etc instead of /usr/etc, or no /etc at all. Today's ostree(1) cannot deploy such trees beside
// others, but old systems have them.
func TestOlderTrees(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	b.deploy(ref(b, "1"))
	b.changeEtc()
	tree := osTree("2", "a")
	tree.Entries["etc"] = tree.Entries["usr"].Entries["etc"]
	delete(tree.Entries["usr"].Entries, "etc")
	commitTree(t, b.Repo(), "os/2", "2", tree)
	without := osTree("3", "a")
	delete(without.Entries["usr"].Entries, "etc")
	commitTree(t, b.Repo(), "os/3", "3", without)
	b.deploy(ref(b, "2"))
	root := filepath.Join(b.path, b.load().Default().Path())
	for name, want := range map[string]string{"usr/etc/conf": "default 2", "etc/conf": "changed", "etc/added": "added"} {
		if got := string(value(os.ReadFile(filepath.Join(root, name)))(t)); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	b.deploy(ref(b, "3"))
	if _, err := os.Stat(filepath.Join(b.path, b.load().Default().Path(), "etc")); !os.IsNotExist(err) {
		t.Errorf("/etc of a tree without: got error %v", err)
	}
	b.deploy(ref(b, "1")) // with nothing to merge
}

// TestDeviceTrees: the files of a directory of device trees are hashed, installed and named.
func TestDeviceTrees(t *testing.T) {
	b := newSysroot(t)
	tree := osTree("1", "a")
	const dtb = "usr/lib/modules/6.1.0/dtb"
	at(tree, dtb)["b.dtb"] = file(0o644, "b")
	at(tree, dtb+"/a")["x.dtb"] = file(0o644, "x")
	commitTree(t, b.Repo(), "os/1", "1", tree)
	b.deploy(ref(b, "1"))
	d := b.load().Default()
	if want := bootcsum("kernel a", "initramfs a", "x", "b"); d.BootCsum != want {
		t.Errorf("bootcsum %s, want %s", d.BootCsum, want)
	}
	base := filepath.Join(b.path, "boot/ostree/os-"+d.BootCsum)
	for name, content := range map[string]string{"dtb/b.dtb": "b", "dtb/a/x.dtb": "x"} {
		if got := string(value(os.ReadFile(filepath.Join(base, name)))(t)); got != content {
			t.Errorf("%s: got %q, want %q", name, got, content)
		}
	}
	if text := string(value(os.ReadFile(entry(t, b.path)))(t)); !strings.Contains(text, "fdtdir /ostree/os-"+d.BootCsum+"/dtb\n") {
		t.Errorf("entry:\n%s", text)
	}
}

// TestStateroots has two systems with the same kernel side by side, by this package and by ostree.
func TestStateroots(t *testing.T) {
	objecttest.NeedsOstree(t)
	var got [2]string
	for i := range got {
		b := newSysroot(t)
		testenv.Must(t, b.InitStateroot("other"))
		b.commit("1", "a")
		b.commit("2", "a")
		for _, d := range []struct{ stateroot, version string }{{"os", "1"}, {"other", "1"}, {"os", "2"}, {"other", "2"}, {"os", "1"}} {
			if i == 0 {
				b.admin("deploy", "--os="+d.stateroot, "os/"+d.version)
			} else {
				b.deploy(ref(b, d.version), func(r *sysroot.Request) {
					r.Stateroot, r.Origin = d.stateroot, originFile("os/"+d.version)
				})
			}
			b.admin("status")
			got[i] += snapshot(t, b.path)
		}
	}
	if diff := testenv.Diff(got[0], got[1]); diff != "" {
		t.Errorf("-ostree +ours:\n%s", diff)
	}
}

// TestOwnBoot has /boot on a real file system of its own, which is frozen and thawed, by this package and ostree in
// turn.
func TestOwnBoot(t *testing.T) {
	objecttest.NeedsOstree(t)
	var got [2]string
	for i := range got {
		root := testenv.NewDisk(t, "xfs", 320<<20)
		initSysroot(t, root.Dir)
		boot := testenv.NewDisk(t, "ext4", 16<<20)
		bind(t, boot.Dir, filepath.Join(root.Dir, "boot"))
		b := openSysroot(t, root.Dir, sysroot.Options{})
		for _, v := range []string{"1", "2", "3"} {
			b.commit(v, v)
		}
		for n, version := range []string{"1", "2", "3", "1"} {
			if i == 0 || n%2 == 0 {
				b.admin("deploy", "--os=os", "os/"+version)
			} else {
				b.deploy(ref(b, version), func(r *sysroot.Request) { r.Origin = originFile("os/" + version) })
			}
			got[i] += snapshot(t, b.path)
		}
		for _, name := range value(filepath.Glob(filepath.Join(b.path, "boot/ostree/*/vmlinuz*")))(t) {
			if text := string(value(os.ReadFile(name))(t)); !strings.HasPrefix(text, "kernel ") {
				t.Errorf("%s holds %q", name, text)
			}
		}
	}
	if diff := testenv.Diff(got[0], got[1]); diff != "" {
		t.Errorf("-ostree +ours:\n%s", diff)
	}
}

// TestBootPrefix: with /boot on the root file system, paths in entries can begin with it.
func TestBootPrefix(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	b.commit("2", "a")
	config := filepath.Join(b.path, "ostree/repo/config")
	text := value(os.ReadFile(config))(t)
	testenv.Must(t, os.WriteFile(config, append(text, "\n[sysroot]\nbootprefix=true\nbls-append-except-default=old=yes;grub_users=x\n"...), 0o644))
	b = openSysroot(t, b.path, sysroot.Options{NewEntryNames: true})
	b.deploy(ref(b, "1"))
	b.deploy(ref(b, "2"))
	b.do(b.PlanRollback)
	b.do(b.PlanRollback)
	st := b.load()
	for i, d := range st.Deployments {
		name := filepath.Join(b.path, "boot/loader/entries", []string{"ostree-2.conf", "ostree-1.conf"}[i])
		text := string(value(os.ReadFile(name))(t))
		if !strings.Contains(text, "\nlinux /boot/ostree/os-"+d.BootCsum+"/vmlinuz-6.1.0\ninitrd /boot/ostree/os-"+d.BootCsum+"/initramfs-6.1.0.img\n") {
			t.Errorf("%s:\n%s", name, text)
		}
		if strings.Contains(text, "\nold yes\ngrub_users x\n") != (i == 1) {
			t.Errorf("%s is entry %d:\n%s", name, i, text)
		}
		if target := value(filepath.EvalSymlinks(filepath.Join(b.path, "boot/boot/loader/entries")))(t); !strings.HasPrefix(target, b.path) {
			t.Errorf("boot/boot leads to %s", target)
		}
	}
}

// A recorder is a boot loader that records its calls.
type recorder struct {
	t       *testing.T
	boot    string // /boot
	entries []sysroot.BootEntry
	tries   map[string]*bls.Tries
	blessed []string
	check   error
	fail    error
}

func (r *recorder) Check(context.Context, []sysroot.BootFile, []string) error { return r.check }

func (r *recorder) Write(_ context.Context, boot *atfs.Dir, entries []sysroot.BootEntry) error {
	if r.fail != nil {
		return r.fail
	}
	r.entries = entries
	for _, e := range entries {
		if ok := value(boot.Exists(strings.TrimPrefix(e.Entry.Linux, "/")))(r.t); !ok {
			r.t.Errorf("%s of %s is not there", e.Entry.Linux, e.Name)
		}
		if _, err := os.Stat(filepath.Join(r.boot, "loader/entries", e.Name.String())); err != nil {
			r.t.Errorf("the boot loader is told before the switch was thrown: %v", err)
		}
	}
	return nil
}

func (r *recorder) Tries(context.Context) (map[string]*bls.Tries, error) { return r.tries, nil }

func (r *recorder) Bless(_ context.Context, ostree string) error {
	r.blessed = append(r.blessed, ostree)
	return nil
}

// TestBootloader: a boot loader with entries of its own learns of every change before files that it needed until then
// go.
func TestBootloader(t *testing.T) {
	b := newSysroot(t)
	for _, v := range []string{"1", "2", "3"} {
		b.commit(v, v)
	}
	r := &recorder{t: t, boot: filepath.Join(b.path, "boot")}
	b = openSysroot(t, b.path, sysroot.Options{Bootloader: r})
	b.deploy(ref(b, "1"))
	b.deploy(ref(b, "2"))
	titles := func() string {
		var s []string
		for _, e := range r.entries {
			s = append(s, e.Entry.Title)
		}
		return strings.Join(s, ", ")
	}
	if got, want := titles(), "Test OS 2 (ostree:0), Test OS 1 (ostree:1)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// It fails: its old entries and their files stay.
	old := b.load().Deployments[1]
	r.fail = unix.ENOSPC
	st := b.load()
	p := value(b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "3"), Merge: st.Default()}))(t)
	if err := b.Execute(t.Context(), p); err == nil {
		t.Error("the boot loader's error is not seen")
	}
	for _, name := range []string{"boot/ostree/os-" + old.BootCsum, old.Path()} {
		if _, err := os.Stat(filepath.Join(b.path, name)); err != nil {
			t.Errorf("the boot loader still leads there: %v", err)
		}
	}
	r.fail = nil
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanCleanup(t.Context(), st) })
	if got, want := titles(), "Test OS 3 (ostree:0), Test OS 2 (ostree:1)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(b.path, old.Path())); !os.IsNotExist(err) {
		t.Errorf("an entry that nothing leads to: got error %v", err)
	}
	r.check = unix.ENOSPC
	st = b.load()
	if _, err := b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1")}); err == nil {
		t.Error("the boot loader's check is ignored")
	}
}

// TestBootCounting: a new deployment has some boots to prove itself, the boot loader's count is read, and the counter
// goes when the system has booted well.
func TestBootCounting(t *testing.T) {
	b := newSysroot(t)
	for _, v := range []string{"1", "2", "3"} {
		b.commit(v, v)
	}
	b.deploy(ref(b, "1"))
	b.deploy(ref(b, "2"), func(r *sysroot.Request) { r.Tries = 3 })
	entries := filepath.Join(b.path, "boot/loader/entries")
	if tries := b.load().Default().Tries; tries == nil || *tries != (bls.Tries{Left: 3}) {
		t.Fatalf("tries: got %v, want 3", tries)
	}
	testenv.Must(t, os.Rename(entries+"/ostree-2-os+3.conf", entries+"/ostree-2-os+02-1.conf")) // as a boot loader does
	if objecttest.HasOstree() {
		b.admin("status")
	}
	// The rest stays when the entries are written again.
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "3"), Retain: true, NotDefault: true})
	})
	d := b.load().Default()
	if d.Tries == nil || *d.Tries != (bls.Tries{Left: 2, Done: 1}) {
		t.Fatalf("tries: got %v, want 2-1", d.Tries)
	}
	run := t.TempDir()
	testenv.Must(t, os.WriteFile(filepath.Join(run, "ostree-booted"), nil, 0o644))
	testenv.Must(t, os.WriteFile(filepath.Join(b.path, "boot/ostree/finalize-failure.stamp"), []byte("it failed"), 0o644))
	r := &recorder{t: t, boot: filepath.Join(b.path, "boot")}
	booted := openSysroot(t, b.path, sysroot.Options{Run: openDir(t, run), Root: filepath.Join(b.path, d.Path()), Bootloader: r})
	report := value(booted.BootComplete(t.Context()))(t)
	if !report.Blessed || report.Finalize != "it failed" || report.Booted.Commit != d.Commit || len(r.blessed) != 1 || !strings.HasPrefix(r.blessed[0], "/ostree/boot.") {
		t.Errorf("got %+v, blessed %q", report, r.blessed)
	}
	report = value(booted.BootComplete(t.Context()))(t)
	if report.Blessed || report.Finalize != "" || booted.load().Default().Tries != nil {
		t.Errorf("again: got %+v", report)
	}
	// The boot loader's count wins over the name of the entry.
	arg := r.blessed[0]
	r.tries = map[string]*bls.Tries{arg: {Left: 1, Done: 2}}
	if tries := booted.load().Default().Tries; tries == nil || *tries != (bls.Tries{Left: 1, Done: 2}) {
		t.Errorf("tries: got %v, want 1-2", tries)
	}
	if _, err := b.BootComplete(t.Context()); err == nil {
		t.Error("a system that was not booted has booted well")
	}
}
