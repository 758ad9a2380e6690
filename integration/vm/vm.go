package vm

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

const (
	// Program is the emulator.
	Program = "qemu-system-x86_64"
	// Host is the guest's address for listeners on the host's loopback interface.
	Host = "10.0.2.2"
	// kvmEnv names the environment variable that requests KVM.
	kvmEnv = "OSTREE_SNAPSHOTTER_TEST_KVM"

	// KernelArgs are kernel arguments that cost an emulated processor less time. An image that boots from its disk should
	// have them. With random addresses, qemu translates each library again for each process.
	KernelArgs = "quiet mitigations=off norandmaps"

	firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Time limits of a boot.
const (
	bootLimit = 4 * time.Minute  // until the guest's unit runs
	runLimit  = 15 * time.Minute // in total
)

//go:embed guest.sh
var guestScript string

//go:embed guest.service
var guestUnit string

// GuestFiles returns the files with which an image can run the commands of Boot.
func GuestFiles() []images.File {
	const unit = "usr/lib/systemd/system/guest.service"
	return []images.File{
		{Name: "usr/libexec/guest.sh", Mode: 0o755, Data: guestScript},
		{Name: unit, Mode: 0o644, Data: guestUnit},
		{Name: "etc/systemd/system/multi-user.target.wants/guest.service", Target: "/" + unit},
	}
}

// A Machine is a virtual machine that is powered off.
type Machine struct {
	disk string
	dir  string
	log  io.Writer
	n    int // boots so far

	kernel string // kernel to start, "" for the firmware's choice from the disk
}

// New returns a machine with a raw disk image. Its firmware's variables and its output are kept in dir, which the
// caller removes. Progress goes to log.
func New(disk, dir string, log io.Writer) (*Machine, error) {
	vars, err := os.ReadFile(firmwareVars)
	if err != nil {
		return nil, fmt.Errorf("make machine: %w", err)
	}
	m := &Machine{disk: disk, dir: dir, log: log}
	if err := os.WriteFile(m.path("vars.fd"), vars, 0o600); err != nil {
		return nil, fmt.Errorf("make machine: %w", err)
	}
	return m, nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// Run describes one boot of a machine.
type Run struct {
	Name     string // for messages
	Commands []Command
	// Failures allows boots before the one that runs the commands to fail. The machine is reset when the guest requests
	// it; otherwise a reset ends the run.
	Failures bool
}

// errSilent is returned if a guest did not come up.
var errSilent = errors.New("the guest never said anything")

// Boot starts the machine, runs the commands and waits until the guest has powered off. If the guest does not come up
// in time, Boot tries once more, because the emulator has races. If the guest came up but did not do everything, the
// error is that of the report.
func (m *Machine) Boot(ctx context.Context, run Run) (*Report, error) {
	r, err := m.boot(ctx, run)
	if errors.Is(err, errSilent) && !run.Failures && ctx.Err() == nil {
		fmt.Fprintf(m.log, "boot %s: %v: trying once more\n", run.Name, err)
		r, err = m.boot(ctx, run)
	}
	if err != nil {
		return r, fmt.Errorf("boot %s: %w", run.Name, err)
	}
	fmt.Fprintf(m.log, "boot %s: %s\n", run.Name, r.times())
	return r, nil
}

func (m *Machine) boot(ctx context.Context, run Run) (*Report, error) {
	m.n++
	name := fmt.Sprintf("%d-%s", m.n, run.Name)
	if err := os.WriteFile(m.path(name+".sh"), []byte(script(run.Commands)), 0o600); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	limit := bootLimit
	if run.Failures {
		limit = runLimit
	}
	silent := time.AfterFunc(limit, cancel)
	defer silent.Stop()

	start := time.Now()
	r := &Report{Console: m.path(name + ".console")}
	// The kernel ends qemu with the thread that started it, so that it never outlives a test.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, Program, m.args(name, run)...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	guest, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err = r.read(guest, func() { silent.Stop() })
	if err != nil {
		cancel()
	}
	err = errors.Join(err, cmd.Wait())
	r.Seconds = time.Since(start).Seconds()
	r.processor = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	switch {
	case r.began == 0:
		return r, fmt.Errorf("after %.0f s: %w\n%s\n%s", r.Seconds, errors.Join(errSilent, err), stderr.String(), r.Tail(80))
	case err != nil:
		return r, fmt.Errorf("run %s: %w\n%s\n%s", Program, err, stderr.String(), r.Tail(30))
	}
	return r, r.err()
}

// args returns the arguments of qemu.
func (m *Machine) args(name string, run Run) []string {
	accel := []string{"-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,la57=off,cx16=off,erms=off,fsrm=off,smap=off"}
	if os.Getenv(kvmEnv) != "" {
		accel = []string{"-accel", "kvm", "-cpu", "host"}
	}
	args := append(accel,
		"-machine", "q35", "-smp", "1", "-m", "1024", "-nodefaults", "-display", "none",
		// Synced data need not reach the host's disk, because no test survives the host.
		"-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file="+m.disk,
		"-device", "virtio-blk-pci,drive=disk,bootindex=1",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-rng-pci",
		"-fw_cfg", "name=opt/guest-script,file="+m.path(name+".sh"),
		"-serial", "file:"+m.path(name+".console"), "-serial", "stdio",
	)
	if m.kernel != "" {
		args = append(args, "-kernel", m.kernel, "-initrd", m.path("initramfs.cpio"), "-append", "console=ttyS0 panic=-1 "+KernelArgs)
	} else {
		args = append(args,
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+firmwareCode,
			"-drive", "if=pflash,format=raw,unit=1,file="+m.path("vars.fd"))
	}
	if !run.Failures {
		args = append(args, "-no-reboot")
	}
	return args
}

// Needs ends the test unless a machine can be started.
func Needs(tb testing.TB) {
	tb.Helper()
	testenv.NeedsTool(tb, Program)
	testenv.NeedsFile(tb, firmwareCode)
}
