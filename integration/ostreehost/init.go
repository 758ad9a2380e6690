package ostreehost

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// initName is the name of a test's binary when it is started as PID 1 of a host.
const initName = "ostreehost-init"

// setup is the configuration of PID 1, passed on its command line.
type setup struct {
	Rootfs string // with the release's files
	Root   string // an empty directory for the host's root
	Binds  []Bind
	Env    []string
	Boot   *Boot
}

type request struct{ Args []string }

type reply struct {
	Stdout, Stderr string
	Code           int
	Error          string // set if it did not run
}

// namespaceEnv marks a process with a private mount namespace.
const namespaceEnv = "OSTREEHOST_NAMESPACE"

// Main turns the process into a host's PID 1, or into one of its programs, if it was started as such; then done is true
// and status is the exit status. Otherwise, if it is root, it gives the process a private mount namespace by starting
// it again, so that the tests' mounts end with it, however it ends.
func Main() (status int, done bool) {
	var err error
	switch {
	case os.Args[0] == initName:
		err = runInit(os.Args[1], os.NewFile(3, "requests"), os.NewFile(4, "replies"))
	case filepath.Base(os.Args[0]) == systemctlName:
		err = systemctl(os.Args[1:])
	case os.Geteuid() == 0 && os.Getenv(namespaceEnv) == "":
		err = isolate()
	default:
		return 0, false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// systemctlName is the name of the stand-in for systemctl in hosts. It is the test's binary.
const systemctlName = "systemctl"

// systemctl stands in for systemctl, which ostree calls after it has staged a deployment. No systemd would finalize the
// deployment at shutdown; tests do that themselves.
func systemctl(args []string) error {
	plain := slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "--quiet" }) // since ostree 2026
	if !slices.Equal(plain, []string{"start", "ostree-finalize-staged.service"}) {
		return fmt.Errorf("stand-in for systemctl: called with %q", args)
	}
	return nil
}

// isolate returns only if it fails.
func isolate() error {
	runtime.LockOSThread() // unshare affects this thread, and execve keeps it
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.Setenv(namespaceEnv, "1"); err != nil {
		return err
	}
	return os.NewSyscallError("execve", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

func runInit(conf string, requests io.Reader, replies io.Writer) error {
	var s setup
	if err := json.Unmarshal([]byte(conf), &s); err != nil {
		return err
	}
	answer := json.NewEncoder(replies)
	if err := s.enter(); err != nil {
		return answer.Encode(&reply{Error: err.Error()})
	}
	if err := answer.Encode(&reply{}); err != nil {
		return err
	}
	// Notice the end of the requests even while a command runs: the command ends with PID 1.
	queue, ended := make(chan request), make(chan error, 1)
	go func() {
		in := json.NewDecoder(requests)
		for {
			var r request
			if err := in.Decode(&r); err != nil {
				ended <- err
				return
			}
			queue <- r
		}
	}()
	go func() {
		for r := range queue {
			if err := answer.Encode(s.run(r)); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := <-ended; !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (s *setup) run(r request) *reply {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append([]string{"HOME=/root", "PATH=" + searchPath, "LC_ALL=C.UTF-8"}, s.Env...)
	cmd.Dir = "/"
	err := cmd.Run()
	out := &reply{Stdout: stdout.String(), Stderr: stderr.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		out.Code = exit.ExitCode()
		if out.Code < 0 {
			out.Error = exit.String()
		}
	} else if err != nil {
		out.Error = err.Error()
	}
	return out
}

// standIns is the directory of a host with the stand-in for systemctl.
const standIns = "/run/stand-ins"

const searchPath = standIns + ":/usr/bin:/usr/sbin" // some releases have a systemctl

// enter sets up the host's root and makes it the root of the process.
func (s *setup) enter() error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := s.initramfs(); err != nil {
		return err
	}
	root := s.Root
	if s.Boot != nil {
		if err := s.prepareRoot(); err != nil {
			return err
		}
		if err := s.switchRoot(); err != nil {
			return err
		}
		root = filepath.Join(root, "sysroot")
	}
	for _, b := range s.Binds {
		if err := bindNew(b.From, filepath.Join(root, b.To)); err != nil {
			return err
		}
	}
	if err := unix.Chroot(root); err != nil {
		return &os.PathError{Op: "chroot", Path: root, Err: err}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return os.Setenv("PATH", searchPath) // commands are looked up in it
}

// initramfs mounts a root file system in memory with the release's usr.
func (s *setup) initramfs() error {
	if err := mount("tmpfs", s.Root, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	for _, name := range []string{"dev", "etc/ostree", "proc", "root", "run", "sysroot", "tmp", "usr", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(s.Root, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := os.Symlink("usr/"+name, filepath.Join(s.Root, name)); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", filepath.Join(s.Root, "run"), "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := bindNew(self, filepath.Join(s.Root, standIns, systemctlName)); err != nil {
		return err
	}
	cmdline := "quiet"
	if s.Boot != nil {
		cmdline = s.Boot.Options
		if s.Boot.Config != "" {
			conf := filepath.Join(s.Root, "etc/ostree/prepare-root.conf")
			if err := os.WriteFile(conf, []byte(s.Boot.Config), 0o644); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(filepath.Join(s.Root, "run/cmdline"), []byte(cmdline+"\n"), 0o644); err != nil {
		return err
	}
	return s.system(s.Root, filepath.Join(s.Root, "run/cmdline"))
}

// system mounts the release's usr, and the kernel's file systems.
func (s *setup) system(root, cmdline string) error {
	if err := bind(filepath.Join(s.Rootfs, "usr"), filepath.Join(root, "usr")); err != nil {
		return err
	}
	if err := bind("/dev", filepath.Join(root, "dev")); err != nil {
		return err
	}
	if err := mount("proc", filepath.Join(root, "proc"), "proc", 0, ""); err != nil {
		return err
	}
	return bind(cmdline, filepath.Join(root, "proc/cmdline"))
}

// prepareRoot runs ostree-prepare-root, which makes the deployment on the kernel's command line the root, at /sysroot.
func (s *setup) prepareRoot() error {
	if err := bind(s.Boot.Sysroot, filepath.Join(s.Root, "sysroot")); err != nil {
		return err
	}
	cmd := exec.Command("/usr/lib/ostree/ostree-prepare-root", "/sysroot")
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: s.Root}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ostree-prepare-root: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

var ostreeArg = regexp.MustCompile(`(?:^| )ostree=/ostree/boot\.[01]/([^/ ]+)/`)

// switchRoot mounts in the new root what systemd and ostree's units would mount, and the release's usr over the
// deployment's, which has only a few files.
func (s *setup) switchRoot() error {
	root := filepath.Join(s.Root, "sysroot")
	m := ostreeArg.FindStringSubmatch(s.Boot.Options)
	if m == nil {
		return fmt.Errorf("no ostree= in %q", s.Boot.Options)
	}
	if err := bind(filepath.Join(root, "sysroot/ostree/deploy", m[1], "var"), filepath.Join(root, "var")); err != nil {
		return err
	}
	if err := bind(filepath.Join(s.Root, "run"), filepath.Join(root, "run")); err != nil {
		return err
	}
	if err := s.mountBoot(root); err != nil {
		return err
	}
	return s.system(root, filepath.Join(s.Root, "run/cmdline"))
}

// mountBoot mounts a separate /boot, or else that of the sysroot: from ostree 2026 on a generated unit does so instead of
// ostree-prepare-root.
func (s *setup) mountBoot(root string) error {
	from := s.Boot.Boot
	if from == "" {
		if _, err := os.Lstat(filepath.Join(root, "boot/loader")); err == nil {
			return nil
		}
		from = filepath.Join(root, "sysroot/boot")
	}
	return bind(from, filepath.Join(root, "boot"))
}

// bindNew binds a file or directory to a name, which is created if it is below a writable directory.
func bindNew(from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if st.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
		var f *os.File
		if f, err = os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return err
	}
	return bind(from, to)
}

func bind(from, to string) error { return mount(from, to, "", unix.MS_BIND|unix.MS_REC, "") }

func mount(from, to, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(from, to, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s %s at %s: %w", fstype, from, to, err)
	}
	return nil
}
