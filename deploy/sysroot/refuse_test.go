package sysroot_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// at returns the directory at a path in a tree.
func at(tree *node, path string) names {
	for name := range strings.SplitSeq(path, "/") {
		next := tree.Entries[name]
		if next == nil {
			next = dir(0o755, names{})
			tree.Entries[name] = next
		}
		if next.Entries == nil {
			next.Entries = names{}
		}
		tree = next
	}
	return tree.Entries
}

// TestRefusedTrees: a tree that would not boot, or not work, is refused with one line, and nothing changes.
func TestRefusedTrees(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	b.deploy(ref(b, "1"))
	const modules = "usr/lib/modules"
	selinux := func(mode string) func(tree *node) {
		return func(tree *node) {
			maps.Copy(at(tree, "usr/etc/selinux"), names{"config": file(0o644, "# x\nSELINUX="+mode+"\nSELINUXTYPE=targeted\n"), "targeted": dir(0o755, nil)})
		}
	}
	composefs := func(enabled string) func(tree *node) {
		return func(tree *node) {
			at(tree, "usr/lib/ostree")["prepare-root.conf"] = file(0o644, "[composefs]\nenabled="+enabled+"\n")
		}
	}
	for name, tt := range map[string]struct {
		change func(tree *node)
		want   error // nil: it is accepted
		text   string
	}{
		"no kernel": {func(tree *node) { delete(at(tree, modules), "6.1.0") }, sysroot.ErrInvalid, "there is no kernel in /usr/lib/modules"},
		"kernel with a strange version": {func(tree *node) {
			at(tree, modules)["6 \x1b[2J"] = at(tree, modules)["6.1.0"]
			delete(at(tree, modules), "6.1.0")
		}, sysroot.ErrInvalid, `/usr/lib/modules: "6 \x1b[2J" is not a kernel version`},
		"two kernels":              {func(tree *node) { at(tree, modules+"/5.9")["vmlinuz"] = file(0o644, "k") }, sysroot.ErrInvalid, "several kernels to choose from: /usr/lib/modules has 5.9, 6.1.0"},
		"modules without a kernel": {func(tree *node) { at(tree, modules+"/5.9")["modules.dep"] = file(0o644, "k") }, nil, ""},
		"kernel is a link":         {func(tree *node) { at(tree, modules+"/6.1.0")["vmlinuz"] = link("/boot/vmlinuz") }, sysroot.ErrInvalid, "there is no kernel"},
		"initramfs is a link":      {func(tree *node) { at(tree, modules+"/6.1.0")["initramfs.img"] = link("x") }, sysroot.ErrInvalid, "initramfs.img is not a regular file"},
		"two /etc":                 {func(tree *node) { at(tree, "etc")["x"] = file(0o644, "x") }, sysroot.ErrInvalid, "both /etc and /usr/etc"},
		"empty /etc":               {func(tree *node) { at(tree, "etc") }, nil, ""},
		"/etc is a link":           {func(tree *node) { tree.Entries["etc"] = link("usr/etc") }, sysroot.ErrInvalid, "/etc of the tree is not a directory"},
		"/usr/etc is a link": {func(tree *node) {
			delete(at(tree, "usr"), "etc")
			at(tree, "usr")["etc"] = link("share/etc")
		}, sysroot.ErrInvalid, "/usr/etc of the tree is not a directory"},
		"no os-release":        {func(tree *node) { delete(at(tree, "usr/lib"), "os-release") }, sysroot.ErrInvalid, "os-release"},
		"no name":              {func(tree *node) { at(tree, "usr/lib")["os-release"] = file(0o644, "X=y\n") }, sysroot.ErrInvalid, "neither PRETTY_NAME nor ID"},
		"os-release in a loop": {func(tree *node) { at(tree, "usr/lib")["os-release"] = link("os-release") }, unix.ELOOP, "os-release"},
		"os-release elsewhere": {func(tree *node) {
			at(tree, "usr/lib")["os-release"] = link("../../../usr/share/./release")
			at(tree, "usr/share")["release"] = link("/usr/share/release.d/a")
			at(tree, "usr/share/release.d")["a"] = file(0o644, "ID=x")
		}, nil, ""},
		"os-release in /etc": {func(tree *node) {
			delete(at(tree, "usr/lib"), "os-release")
			at(tree, "usr/etc")["os-release"] = file(0o644, "ID=x")
		}, nil, ""},
		"os-release leads to /etc": {func(tree *node) {
			at(tree, "usr/lib")["os-release"] = link("../../etc/os-release")
			at(tree, "usr/etc")["os-release"] = file(0o644, "ID=x")
		}, nil, ""},
		"os-release leads nowhere": {func(tree *node) {
			at(tree, "usr/lib")["os-release"] = link("absent")
			at(tree, "usr/etc")["os-release"] = file(0o644, "ID=x")
		}, nil, ""},
		"os-release outside": {func(tree *node) { at(tree, "usr/lib")["os-release"] = link("/../../../../etc/hostname") }, sysroot.ErrInvalid, "the tree has no /"},
		"huge os-release":    {func(tree *node) { at(tree, "usr/lib")["os-release"] = file(0o644, strings.Repeat("x", 70000)) }, sysroot.ErrInvalid, "more than 65536 bytes"},
		"enforcing":          {selinux("enforcing"), sysroot.ErrSELinux, `"targeted" (enforcing, in /usr/etc/selinux/targeted)`},
		"permissive":         {selinux("Permissive"), sysroot.ErrSELinux, "permissive"},
		"disabled":           {selinux("disabled"), nil, ""},
		"policy that is not there": {func(tree *node) {
			at(tree, "usr/etc/selinux")["config"] = file(0o644, "SELINUX=enforcing\nSELINUXTYPE=targeted\n")
		}, nil, ""},
		"composefs":        {composefs("yes"), nil, ""},
		"composefs signed": {composefs("signed"), sysroot.ErrUnsupported, "the commit has no signature"},
		"composefs verity": {composefs("verity"), sysroot.ErrUnsupported, "the tree demands fs-verity"},
		"transient root without composefs": {func(tree *node) {
			at(tree, "usr/lib/ostree")["prepare-root.conf"] = file(0o644, "[root]\ntransient=true\n")
		}, sysroot.ErrInvalid, "/usr/lib/ostree/prepare-root.conf: a transient root needs composefs"},
		"transient root with composefs": {composefs("maybe\n[root]\ntransient=true"), nil, ""},
		"composefs in /etc": {func(tree *node) {
			composefs("no")(tree)
			at(tree, "usr/etc/ostree")["prepare-root.conf"] = file(0o644, "[composefs]\nenabled=verity\n")
		}, sysroot.ErrUnsupported, "the tree demands fs-verity"},
		"composefs unknown": {composefs("On"), sysroot.ErrInvalid, "/usr/lib/ostree/prepare-root.conf: "},
		"composefs image": {func(tree *node) {
			tree.Entries[".ostree.cfs"] = file(0o644, "image")
		}, sysroot.ErrInvalid, "/.ostree.cfs, which would pass for its composefs image"},
		"/etc conflict": {func(tree *node) {
			delete(at(tree, "usr/etc"), "conf")
			at(tree, "usr/etc/conf")["x"] = file(0o644, "x")
		}, etcmerge.ErrConflict, "conf"},
	} {
		t.Run(name, func(t *testing.T) {
			b.t = t
			testenv.Must(t, os.WriteFile(filepath.Join(b.path, b.load().Deployments[0].Path(), "etc/conf"), []byte("mine"), 0o644))
			tree := osTree("x", "x")
			tt.change(tree)
			commitTree(t, b.Repo(), "os/x", "x", tree)
			before := snapshot(t, b.path)
			st := b.load()
			r := sysroot.Request{Stateroot: "os", Commit: ref(b, "x"), Merge: st.MergeDeployment("os")}
			p, err := b.PlanDeploy(t.Context(), st, r)
			if !errors.Is(err, tt.want) || tt.want != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got error %v, want %v, %q", err, tt.want, tt.text)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("error has several lines: %v", err)
			}
			if err != nil && p != nil {
				if err := b.Execute(t.Context(), p); !errors.Is(err, tt.want) {
					t.Errorf("execute: got error %v, want %v", err, tt.want)
				}
			}
			if snapshot(t, b.path) != before {
				t.Error("the sysroot was changed")
			}
			if errors.Is(err, sysroot.ErrSELinux) {
				r.NoSELinux = true
				_, err = b.PlanDeploy(t.Context(), st, r)
				testenv.Must(t, err)
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	b.commit("2", "b")
	b.deploy(ref(b, "1"))
	b.deploy(ref(b, "2"))
	st := b.load()
	plan := func(change func(r *sysroot.Request)) func() error {
		return func() error {
			r := sysroot.Request{Stateroot: "os", Commit: ref(b, "1")}
			change(&r)
			_, err := b.PlanDeploy(t.Context(), st, r)
			return err
		}
	}
	for name, tt := range map[string]struct {
		do   func() error
		want error
		text string
	}{
		"stateroot":      {plan(func(r *sysroot.Request) { r.Stateroot = "x" }), sysroot.ErrNotExist, `stateroot "x"`},
		"no stateroot":   {plan(func(r *sysroot.Request) { r.Stateroot = "../os" }), sysroot.ErrInvalid, ""},
		"commit":         {plan(func(r *sysroot.Request) { r.Commit = objectstore.Checksum{1} }), objectstore.ErrNotExist, "is not complete in the sysroot's repository"},
		"stage":          {plan(func(r *sysroot.Request) { r.Stage = true }), sysroot.ErrInvalid, "was booted from this sysroot"},
		"ostree=":        {plan(func(r *sysroot.Request) { r.Kargs = []string{"ostree=/x"} }), sysroot.ErrInvalid, "ostree="},
		"hidden ostree=": {plan(func(r *sysroot.Request) { r.Kargs = []string{`x="a ostree=/x"`} }), sysroot.ErrInvalid, "ostree="},
		"tries":          {plan(func(r *sysroot.Request) { r.Tries = -1 }), sysroot.ErrInvalid, ""},
		"merge":          {plan(func(r *sysroot.Request) { r.Merge = &sysroot.Deployment{Stateroot: "os"} }), sysroot.ErrNotExist, "whose /etc is to be merged"},
		"undeploy":       {func() error { _, err := b.PlanUndeploy(st, 2); return err }, sysroot.ErrNotExist, "there are 2, counted from 0"},
		"negative":       {func() error { _, err := b.PlanUndeploy(st, -1); return err }, sysroot.ErrNotExist, ""},
		"pin":            {func() error { _, err := b.PlanPin(st, 7, true); return err }, sysroot.ErrNotExist, ""},
	} {
		if err := tt.do(); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got error %v, want %v, %q", name, err, tt.want, tt.text)
		}
	}
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanPin(st, 1, true) })
	if _, err := b.PlanUndeploy(b.load(), 1); !errors.Is(err, sysroot.ErrInUse) || !strings.Contains(err.Error(), "pinned") {
		t.Errorf("undeploy a pinned deployment: got error %v, want %v", err, sysroot.ErrInUse)
	}
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanPin(st, 1, false) })
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 1) })
	if _, err := b.PlanRollback(b.load()); !errors.Is(err, sysroot.ErrNotExist) {
		t.Errorf("roll back to nothing: got error %v, want %v", err, sysroot.ErrNotExist)
	}
}

// TestBootloaders: if a boot loader needs a generated configuration, nothing changes.
func TestBootloaders(t *testing.T) {
	const grub = "boot/grub2/grub.cfg"
	for name, tt := range map[string]struct {
		config string   // in the group sysroot
		files  []string // that exist
		text   string   // of the error; "" for none
	}{
		"nothing":          {"", nil, ""},
		"none":             {"bootloader=none", []string{grub, "boot/syslinux/syslinux.cfg"}, ""},
		"auto":             {"bootloader=auto", nil, ""},
		"grub":             {"", []string{grub}, `the boot loader is "grub2" (/boot/grub2/grub.cfg)`},
		"Debian's grub":    {"bootloader=auto", []string{"boot/grub/grub.cfg"}, `"grub2" (/boot/grub/grub.cfg)`},
		"grub on EFI":      {"", []string{"boot/efi/EFI/x/grub.cfg"}, `(/boot/efi/EFI/x/grub.cfg)`},
		"static grub":      {"", []string{grub, "boot/grub2/.grub2-blscfg-supported"}, ""},
		"grub by bootupd":  {"", []string{grub, "boot/bootupd-state.json"}, ""},
		"syslinux":         {"", []string{"boot/syslinux/syslinux.cfg"}, `"syslinux"`},
		"u-boot":           {"", []string{"boot/loader.0/uEnv.txt"}, `"uboot"`},
		"said to be grub":  {"bootloader=grub2", nil, `"grub2" (the repository's config says so)`},
		"said to be zipl":  {"bootloader=zipl", nil, `"zipl"`},
		"composefs wanted": {"bootprefix=false\n[ex-integrity]\ncomposefs=true", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newSysroot(t)
			b.commit("1", "a")
			for _, f := range tt.files {
				f = filepath.Join(b.path, f)
				testenv.Must(t, os.MkdirAll(filepath.Dir(f), 0o755))
				testenv.Must(t, os.WriteFile(f, []byte(`{"installed":{},"static-configs":{"version":"1"}}`), 0o644))
			}
			config := value(os.OpenFile(filepath.Join(b.path, "ostree/repo/config"), os.O_APPEND|os.O_WRONLY, 0))(t)
			value(fmt.Fprintf(config, "\n[sysroot]\n%s\n", tt.config))(t)
			testenv.Must(t, config.Close())
			b = openSysroot(t, b.path, sysroot.Options{})
			_, err := b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: ref(b, "1")})
			switch {
			case tt.text == "":
				testenv.Must(t, err)
			case !errors.Is(err, sysroot.ErrUnsupported) || !strings.Contains(err.Error(), tt.text):
				t.Errorf("got error %v, want %v, %q", err, sysroot.ErrUnsupported, tt.text)
			}
		})
	}
}

// TestBootTooSmall: /boot has room for one kernel but not for two.
func TestBootTooSmall(t *testing.T) {
	b := newSysroot(t)
	boot := testenv.NewDisk(t, "ext4", 8<<20, "-O", "^has_journal", "-m", "0")
	b = openSysroot(t, b.path, sysroot.Options{Boot: openDir(t, boot.Dir)})
	for _, v := range []string{"1", "2"} {
		tree := osTree(v, v)
		at(tree, "usr/lib/modules/6.1.0")["initramfs.img"] = file(0o600, strings.Repeat(v, 5<<20))
		commitTree(t, b.Repo(), "os/"+v, v, tree)
	}
	b.deploy(ref(b, "1"))
	before := snapshot(t, b.path) + strings.Join(list(t, boot.Dir, "loader", true), "\n")
	_, err := b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: ref(b, "2")})
	if !errors.Is(err, sysroot.ErrNoSpace) || !strings.Contains(err.Error(), "the boot file system needs 5") || !strings.Contains(err.Error(), "KiB, has ") {
		t.Errorf("got error %v, want %v", err, sysroot.ErrNoSpace)
	}
	if got := snapshot(t, b.path) + strings.Join(list(t, boot.Dir, "loader", true), "\n"); got != before {
		t.Error("the sysroot was changed")
	}
	b.deploy(ref(b, "1")) // its kernel exists
}

// TestDiskFull: the disk is full before the deployment is complete.
func TestDiskFull(t *testing.T) {
	disk := testenv.NewDisk(t, "ext4", 48<<20, "-m", "0", "-b", "4096")
	initSysroot(t, disk.Dir)
	b := openSysroot(t, disk.Dir, sysroot.Options{})
	b.commit("1", "a")
	b.deploy(ref(b, "1"))
	tree := osTree("2", "b")
	for i := range 3000 { // a block each, which no check has counted
		at(tree, fmt.Sprintf("usr/share/%d", i))
	}
	commitTree(t, b.Repo(), "os/2", "2", tree)
	big := osTree("3", "c")
	at(big, "usr/etc")["big"] = file(0o644, strings.Repeat("x", 6<<20))
	commitTree(t, b.Repo(), "os/3", "3", big)
	filler := fill(t, disk.Dir, 4<<20)

	before := snapshot(t, b.path)
	_, err := b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: ref(b, "3")})
	if !errors.Is(err, sysroot.ErrNoSpace) || !strings.Contains(err.Error(), "/etc of the deployment needs 6") {
		t.Errorf("/etc does not fit: got error %v, want %v", err, sysroot.ErrNoSpace)
	}
	st := b.load()
	p := value(b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "2"), Merge: st.Default()}))(t)
	if err := b.Execute(t.Context(), p); !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got error %v, want %v on one line", err, unix.ENOSPC)
	}
	if snapshot(t, b.path) != before {
		t.Error("the sysroot was changed")
	}
	testenv.Must(t, os.Remove(filler))
	b.deploy(ref(b, "2"))
}

// TestFailedFirst: a deployment that fails removes its files from /var.
func TestFailedFirst(t *testing.T) {
	for name, change := range map[string]func(tree *node){
		"with files in /var": func(*node) {},
		"without":            func(tree *node) { tree.Entries["var"] = dir(0o755, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			disk := testenv.NewDisk(t, "ext4", 8<<20, "-m", "0", "-O", "^has_journal")
			b := newSysroot(t)
			tree := osTree("1", "a")
			change(tree)
			commitTree(t, b.Repo(), "os/1", "1", tree)
			b = openSysroot(t, b.path, sysroot.Options{Boot: openDir(t, disk.Dir)})
			p := value(b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: ref(b, "1")}))(t)
			filler := fill(t, disk.Dir, 0)
			if err := b.Execute(t.Context(), p); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("got error %v, want %v", err, unix.ENOSPC)
			}
			if left := append(value(filepath.Glob(b.path+"/ostree/deploy/os/var*/*"))(t), value(filepath.Glob(b.path+"/ostree/deploy/os/deploy/*"))(t)...); len(left) > 0 {
				t.Errorf("left over: %q", left)
			}
			testenv.Must(t, os.Remove(filler))
			b.deploy(ref(b, "1"))
		})
	}
}

// fill creates a file that leaves so many bytes free.
func fill(t *testing.T, dir string, leave int64) string {
	t.Helper()
	var fs unix.Statfs_t
	testenv.Must(t, unix.Statfs(dir, &fs))
	f := value(os.Create(filepath.Join(dir, "filler")))(t)
	defer func() { testenv.Must(t, f.Close()) }()
	for block := make([]byte, 64<<10); len(block) > 0; {
		size := value(f.Seek(0, io.SeekCurrent))(t)
		if leave > 0 && size >= int64(fs.Bfree)*fs.Bsize-leave {
			break
		}
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	testenv.Must(t, f.Sync())
	return f.Name()
}
