package sysroot_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestLimits deploys files as long as they may be, which must be readable again, and files that are longer, which must
// change nothing.
func TestLimits(t *testing.T) {
	origin := func(n int) *keyfile.File {
		f := originFile("os/x")
		f.Set("origin", "x", strings.Repeat("y", n))
		return f
	}
	// Around the value of x=: GRUB's argument, the longest of a boot loader, and the others.
	around := len("BOOT_IMAGE=(hd0,gpt99)/ostree/os-/vmlinuz-6.1.0 rw x= ostree=/ostree/boot.0/os//0") + 2*64
	kernel := kargs.MaxLen(runtime.GOARCH) - around
	for _, tt := range []struct {
		name   string
		most   int // largest accepted size
		text   string
		change func(r *sysroot.Request, size int)
	}{
		{"kernel arguments", kernel, "the kernel reads only", func(r *sysroot.Request, size int) {
			r.Kargs = kargs.List{"rw", "x=" + strings.Repeat("y", size)}
		}},
		{"origin file", 1<<20 - 4<<10 - len("[origin]\nrefspec=os/x\nx=\n"), "its origin file would have", func(r *sysroot.Request, size int) {
			r.Origin = origin(size)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newSysroot(t)
			b.commit("1", "a")
			b.deploy(ref(b, "1"))
			b.deploy(ref(b, "1"), func(r *sysroot.Request) { tt.change(r, tt.most) })
			b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanPin(st, 0, true) })
			if st := b.load(); len(st.Deployments) != 2 || !st.Deployments[0].Pinned() {
				t.Errorf("got %d deployments, want 2, the first pinned", len(st.Deployments))
			}
			before := snapshot(t, b.path)
			for _, size := range []int{tt.most + 1, 2*tt.most + 70<<10} {
				r := sysroot.Request{Stateroot: "os", Commit: ref(b, "1"), Origin: originFile("os/x")}
				tt.change(&r, size)
				_, err := b.PlanDeploy(t.Context(), b.load(), r)
				if !errors.Is(err, sysroot.ErrInvalid) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("size %d: got error %v, want %v, %q", size, err, sysroot.ErrInvalid, tt.text)
				}
			}
			if snapshot(t, b.path) != before {
				t.Error("the sysroot was changed")
			}
		})
	}
}

// TestLongStaged stages as many kernel arguments as there may be, which must be readable and finalized, and more, which
// must not disturb what is staged.
func TestLongStaged(t *testing.T) {
	b := newBooted(t)
	around := len("BOOT_IMAGE=(hd0,gpt99)/ostree/os-/vmlinuz-6.1.0 rw x= ostree=/ostree/boot.0/os//0") + 2*64
	most := kargs.MaxLen(runtime.GOARCH) - around
	long := kargs.List{"rw", "x=" + strings.Repeat("y", most)}
	b.deploy(ref(b, "3"), staged, withKargs(long...))
	for _, size := range []int{most + 1, 2 << 20} {
		st := b.load()
		r := sysroot.Request{
			Stateroot: "os", Commit: ref(b, "4"), Merge: st.Booted, Stage: true, Kargs: kargs.List{"rw", "x=" + strings.Repeat("y", size)},
		}
		if _, err := b.PlanDeploy(t.Context(), st, r); !errors.Is(err, sysroot.ErrInvalid) {
			t.Errorf("size %d: got error %v, want %v", size, err, sysroot.ErrInvalid)
		}
	}
	if got := b.load().Staged; got == nil || !slices.Equal(got.Kargs, long) {
		t.Fatalf("got %+v, want commit 3 with its arguments", got)
	}
	value(b.FinalizeStaged(t.Context()))(t)
	if got := b.load().Default(); got.Commit != ref(b, "3") || !slices.Equal(got.Kargs, long) {
		t.Errorf("finalized: got %s with %d arguments", got.Name(), len(got.Kargs))
	}
}

// TestHugeStagedFile: a staged file that another program has made too long is an error that names it, at once and at the
// next boot.
func TestHugeStagedFile(t *testing.T) {
	b := newBooted(t)
	b.deploy(ref(b, "3"), staged)
	testenv.Must(t, os.Truncate(b.stagedFile(), 1<<20+1))
	_, err := b.Load(t.Context())
	_, ferr := b.FinalizeStaged(t.Context())
	for _, err := range []error{err, ferr} {
		if !errors.Is(err, sysroot.ErrCorrupt) || !strings.Contains(err.Error(), "/run/ostree/staged-deployment") {
			t.Errorf("got error %v, want %v that names the file", err, sysroot.ErrCorrupt)
		}
	}
	testenv.Must(t, os.Remove(b.stagedFile())) // as a reboot does
	if r := value(b.BootComplete(t.Context()))(t); !strings.Contains(r.Finalize, "staged-deployment") {
		t.Errorf("the next boot reports %q", r.Finalize)
	}
}

// TestLongFailure: the next boot reports why a staged deployment was not finalized, even if the reasons are too many.
func TestLongFailure(t *testing.T) {
	b := newBooted(t)
	deep := strings.Repeat("/"+strings.Repeat("x", 240), 14)
	etc := filepath.Join(b.path, b.load().Booted.Path(), "etc"+deep)
	testenv.Must(t, os.MkdirAll(etc, 0o755))
	tree := tinyTree("5", "e")
	for i := range 320 { // conflicts
		name := fmt.Sprintf("%04d", i)
		at(tree, "usr/etc"+deep+"/"+name)["file"] = file(0o644, "")
		testenv.Must(t, os.WriteFile(filepath.Join(etc, name), nil, 0o644))
	}
	commitTree(t, b.Repo(), "os/5", "5", tree)
	b.deploy(ref(b, "5"), staged)
	if _, err := b.FinalizeStaged(t.Context()); !errors.Is(err, etcmerge.ErrConflict) || len(err.Error()) <= 1<<20 {
		t.Fatalf("got error %.300v, want %v with more than a MiB", err, etcmerge.ErrConflict)
	}
	r := value(b.BootComplete(t.Context()))(t)
	if !strings.Contains(r.Finalize, "xxx/0000") || len(r.Finalize) > 1<<20 {
		t.Errorf("the next boot reports %d bytes: %.300s", len(r.Finalize), r.Finalize)
	}
	if st := b.load(); st.Default().Commit != ref(b, "2") {
		t.Errorf("the default is %s", st.Default().Name())
	}
}

// TestKargsThatCannotBeWritten: an entry would hold other arguments than were asked for.
func TestKargsThatCannotBeWritten(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	for _, args := range []kargs.List{{"a\x01b"}, {"a\x00"}} {
		_, err := b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: ref(b, "1"), Kargs: args})
		if !errors.Is(err, sysroot.ErrInvalid) {
			t.Errorf("%q: got error %v, want %v", args, err, sysroot.ErrInvalid)
		}
	}
}

// TestLongEntry: an entry with arguments beyond the kernel's limit, as earlier versions accepted them, is read, and its
// deployment can be removed.
func TestLongEntry(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	b.commit("2", "b")
	b.deploy(ref(b, "1"))
	b.deploy(ref(b, "2"))
	name := filepath.Join(b.path, "boot/loader/entries/ostree-2-os.conf")
	text := string(value(os.ReadFile(name))(t))
	testenv.Must(t, os.WriteFile(name, []byte(strings.Replace(text, "options ", "options x="+strings.Repeat("y", 100_000)+" ", 1)), 0o644))
	if n := len(b.load().Deployments); n != 2 {
		t.Fatalf("got %d deployments, want 2", n)
	}
	b.do(b.PlanRollback)
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 1) })
	if st := b.load(); len(st.Deployments) != 1 || st.Deployments[0].Commit != ref(b, "1") {
		t.Errorf("got %+v, want the first deployment alone", st.Deployments)
	}
}

// TestForeignEntries: files among the entries that are not of deployments, or cannot be read, do not stop anything.
func TestForeignEntries(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	b.commit("2", "b")
	b.deploy(ref(b, "1"))
	entries := filepath.Join(b.path, "boot/loader/entries")
	for name, text := range map[string]string{
		"ostree-other.conf": "title Other\noptions ostree=/elsewhere\n",
		"ostree-zeros.conf": strings.Repeat("\x00", 100),
		"ostree-7-os.conf":  strings.Repeat("#", 2<<20),
		"debian.conf":       "title Debian\n",
	} {
		testenv.Must(t, os.WriteFile(filepath.Join(entries, name), []byte(text), 0o644))
	}
	testenv.Must(t, os.Mkdir(filepath.Join(entries, "ostree-dir.conf"), 0o755))
	testenv.Must(t, os.Symlink("/etc/passwd", filepath.Join(entries, "ostree-link.conf")))
	st := b.load()
	if len(st.Deployments) != 1 || st.Deployments[0].Commit != ref(b, "1") {
		t.Errorf("got %+v, want the deployment of commit 1", st.Deployments)
	}
	var got []string
	for _, note := range st.Notes {
		_, name, _ := strings.Cut(note, `"`)
		name, _, _ = strings.Cut(name, `"`)
		got = append(got, name)
	}
	slices.Sort(got)
	want := []string{"ostree-7-os.conf", "ostree-dir.conf", "ostree-link.conf", "ostree-other.conf", "ostree-zeros.conf"}
	if !slices.Equal(got, want) {
		t.Errorf("notes name %q, want %q: %q", got, want, st.Notes)
	}
	// The deployment of the entry that is too long is unknown: a cleanup removes none.
	old := filepath.Join(b.path, "ostree/deploy/os/deploy", strings.Repeat("0", 64)+".0")
	testenv.Must(t, os.Mkdir(old, 0o755))
	cleanup := func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanCleanup(t.Context(), st) }
	b.do(cleanup)
	if _, err := os.Stat(old); err != nil {
		t.Errorf("cleanup: %v", err)
	}
	b.deploy(ref(b, "2")) // writes the entries anew
	if st = b.load(); len(st.Deployments) != 2 || len(st.Notes) > 0 {
		t.Errorf("got %d deployments and notes %q, want 2 and none", len(st.Deployments), st.Notes)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("the old deployment exists: %v", err)
	}
}
