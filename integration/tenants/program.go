package tenants

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An Order is what the program is to do.
type Order struct {
	// Report is the file that the report is written to.
	Report string
	// Write names directories. Every file below them is attacked, and new names and copies go to Scratch.
	Write   []string
	Scratch string
	// Hold names a directory that files are created in. They are kept open, and attacked as soon as the file Go exists.
	Hold, Ready, Go string
	// Escape has the program leave its container.
	Escape bool
	// Remount names read-only mounts to make writable.
	Remount []string
	// Tamper names directories whose files get the attributes of overlayfs, which lead to Object.
	Tamper []string
	Object string // relative to the directory of objects
	// Paths, Sockets and Processes of the host must be out of reach. Device is the disk of the store.
	Paths, Sockets []string
	Processes      []int
	Device         uint64
	// Disks names devices that must not open.
	Disks []string
	// Cached names a file whose pages in the page cache are counted.
	Cached string
	// Search names directories in which secrets are looked for.
	Search []string
}

// A Report is what the program managed to do.
type Report struct {
	Writes   []Attempt // changes of files, which may be the program's own to change
	Breaches []Attempt // what nobody but root on the host may do
	Secrets  []string  // files that contain a secret
	Cached   int       // pages
}

// An Attempt is a step of the program.
type Attempt struct {
	What, Path string
	Err        string // "" if it succeeded
}

// succeeded returns the attempts that did.
func succeeded(all []Attempt) []Attempt {
	return slices.DeleteFunc(slices.Clone(all), func(a Attempt) bool { return a.Err != "" })
}

// secretPrefix returns the beginning of secrets. It is put together at run time, so that no program contains it.
func secretPrefix() string { return strings.Join([]string{"tenants", "secret", ""}, "-") }

// written is what the program writes into files.
const written = "overwritten by a neighbour"

// Main runs the program: its argument names a file with an Order in JSON.
func Main(args []string) error {
	if len(args) != 1 {
		return errors.New("needs one argument")
	}
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var o Order
	if err := json.Unmarshal(b, &o); err != nil {
		return fmt.Errorf("parse the order: %w", err)
	}
	var r Report
	if err := o.run(&r); err != nil {
		return err
	}
	if b, err = json.Marshal(r); err != nil {
		return err
	}
	temp := o.Report + ".part" // whoever waits for the report reads a complete one
	return errors.Join(os.WriteFile(temp, b, 0o666), os.Rename(temp, o.Report))
}

func (o *Order) run(r *Report) error {
	for _, dir := range o.Remount {
		r.Writes = append(r.Writes,
			attempt("remount writable", dir, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, "")),
			attempt("remount the file system writable", dir, unix.Mount("", dir, "", unix.MS_REMOUNT, "")))
	}
	if o.Cached != "" {
		var err error
		if r.Cached, err = cached(o.Cached); err != nil {
			return err
		}
	}
	if o.Hold != "" {
		attempts, err := hold(o.Hold, o.Ready, o.Go)
		if err != nil {
			return err
		}
		r.Writes = append(r.Writes, attempts...)
	}
	for _, dir := range o.Tamper {
		r.Writes = append(r.Writes, tamper(dir, o.Object)...)
	}
	// Search first: what is written may hide what was to be read.
	for _, dir := range o.Search {
		r.Secrets = append(r.Secrets, search(dir)...)
	}
	for _, name := range o.Paths {
		r.Breaches = append(r.Breaches, reach(name, o.Scratch)...)
	}
	for _, name := range o.Disks {
		r.Breaches = append(r.Breaches, attempt("open a device", name, opened(name, os.O_RDONLY, nothing)))
	}
	for _, name := range o.Sockets {
		r.Breaches = append(r.Breaches, attempt("connect", name, connect(name)))
	}
	for _, pid := range o.Processes {
		r.Breaches = append(r.Breaches, enter(pid)...)
	}
	if o.Escape {
		r.Breaches = append(r.Breaches, escape(o.Device, o.Paths, o.Scratch)...)
	}
	for _, dir := range o.Write {
		r.Writes = append(r.Writes, overwrite(files(dir), o.Scratch)...)
	}
	return nil
}

func attempt(what, path string, err error) Attempt {
	a := Attempt{What: what, Path: path}
	if err != nil {
		a.Err = err.Error()
	}
	return a
}

// mounted names what containers have mounted, besides what runc mounts.
var mounted = []string{"/proc", "/sys", "/dev", "/run", programPath, controlPath}

const (
	programPath = "/attacker" // of the program in containers
	controlPath = "/control"  // of the directory in containers through which the test and the program talk
	volumePath  = "/volume"   // of a view of the neighbour's image, mounted read-only
)

// files returns the regular files below a directory that can be listed. It follows no links and enters no other mounts.
func files(dir string) (found []string) {
	_ = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error { // what cannot be listed is no target
		if err != nil || e.IsDir() && slices.Contains(mounted, name) {
			return fs.SkipDir
		}
		if e.Type().IsRegular() && !slices.Contains(mounted, name) {
			found = append(found, name)
		}
		return nil
	})
	return found
}

// search returns the files below a directory that contain a secret.
func search(dir string) (found []string) {
	for _, name := range files(dir) {
		if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte(secretPrefix())) {
			found = append(found, name)
		}
	}
	return found
}

// await waits until a file exists, for a minute.
func await(name string) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(name); err == nil {
			return nil
		}
	}
	return fmt.Errorf("wait for %s: %w", name, os.ErrDeadlineExceeded)
}
