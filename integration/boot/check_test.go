package boot

import (
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
)

// look are the commands that show the booted system.
var look = []vm.Command{
	{Name: "version", Line: "cat /usr/lib/example-version"},
	{Name: "cmdline", Line: "cat /proc/cmdline"},
	{Name: "root", Line: `readlink -f "/sysroot$(sed -n 's/.*ostree=\([^ ]*\).*/\1/p' /proc/cmdline)"`},
	{Name: "entries", Line: "ls /efi/loader/entries"}, // and systemd mounts it
	{Name: "mounts", Line: "for m in / /usr /var /boot /efi; do findmnt -rno TARGET,SOURCE,FSTYPE,OPTIONS $m; done"},
	{Name: "writable", Line: "for d in / /usr /etc /var /boot; do touch $d/probe 2>/dev/null && rm $d/probe && echo $d; done; true"},
	{Name: "etc", Line: "cd /etc/example && grep . *"},
	{Name: "units", Line: "systemctl --failed --no-legend --plain"},
	{Name: "ostree", Line: "ostree admin status"},
	{Name: "status", Line: "ostree-snapshotter status --json"},
}

// after are the commands that show the next boot.
var after = []vm.Command{
	{Name: "ostree-after", Line: "ostree admin status"},
	{Name: "status-after", Line: "ostree-snapshotter status --json"},
}

// edit are the commands of an administrator.
var edit = []vm.Command{
	{Name: "edit", Line: "echo 'edited by hand' >/etc/example/edited.conf; echo 'made by hand' >/etc/example/admin.conf; echo 'made by hand' >/var/kept"},
}

// editLate are the commands of an administrator who does not know that an update is staged.
var editLate = []vm.Command{{Name: "edit-late", Line: "echo 'made by hand' >/etc/example/late.conf"}}

// inodes returns the commands that show the inode of a file in the booted system and in the layers of images.
func inodes(file string) []vm.Command {
	return []vm.Command{
		{Name: "deployed", Line: "stat -c %i " + file},
		{Name: "pulled", Line: "find /var/lib/ostree-snapshotter/layers -path '*" + file + "' -printf '%i\\n'"},
	}
}

// A deployment holds the checked fields of a deployment.
type deployment struct {
	Stateroot string `json:"stateroot"`
	Commit    string `json:"commit"`
	Serial    int    `json:"serial"`
	Image     string `json:"image"`
	Version   string `json:"version"`
	Booted    bool   `json:"booted"`
	Staged    bool   `json:"staged"`
	Pending   bool   `json:"pending"`
	Rollback  bool   `json:"rollback"`
	Tries     *struct {
		Left int `json:"left"`
		Done int `json:"done"`
	} `json:"boot_tries"`
}

func (d deployment) name() string { return d.Commit + "." + strconv.Itoa(d.Serial) }

// want is an expected deployment.
type want struct {
	image                             string
	booted, staged, pending, rollback bool
	tries                             string // left and done, if the boot loader counts
}

// fallback are the commands that show the report of a failed deployment.
var fallback = []vm.Command{{Name: "listing", Line: "ostree-snapshotter status"}}

// check are the commands of the final checks.
var check = []vm.Command{
	{Name: "kept", Line: "cat /var/kept"},
	{Name: "fsck", Line: "ostree fsck --repo=/sysroot/ostree/repo"},
}

// A bootCheck checks the output of a guest in one run.
type bootCheck struct {
	*vm.Report
	t    *testing.T
	name string
}

func (b *bootCheck) errorf(format string, args ...any) {
	b.t.Helper()
	b.t.Errorf("boot "+b.name+": "+format, args...)
}

// output returns the output of a command.
func (b *bootCheck) output(name string) string {
	b.t.Helper()
	r := b.Results[name]
	if r == nil {
		b.t.Fatalf("boot %s: no command %s was run", b.name, name)
	}
	return strings.TrimSpace(r.Output)
}

// wantVersion checks the version of the running system.
func (b *bootCheck) wantVersion(version string) {
	b.t.Helper()
	if got := b.output("version"); got != version {
		b.errorf("version %q runs, want %q", got, version)
	}
	if failed := b.output("units"); failed != "" {
		b.errorf("units have failed:\n%s", failed)
	}
	if cmdline := b.output("cmdline"); !strings.Contains(cmdline, "console=ttyS0,115200") || !strings.Contains(cmdline, "panic=1") {
		b.errorf("the kernel arguments %q lack those that the image wants", cmdline)
	}
}

// wantDeployments checks the deployments at the start of a boot.
func (b *bootCheck) wantDeployments(wants ...want) {
	b.t.Helper()
	booted := b.deployments("", wants)
	if root := path.Base(b.output("root")); root != booted.name() {
		b.errorf("the kernel arguments lead to the deployment %s, and %s is said to be booted", root, booted.name())
	}
}

// wantDeploymentsAfter checks the deployments at the end of a boot.
func (b *bootCheck) wantDeploymentsAfter(wants ...want) {
	b.t.Helper()
	b.deployments("-after", wants)
}

// deployments compares the output of status with the expected deployments and with ostree's. It returns the booted one.
func (b *bootCheck) deployments(suffix string, wants []want) (booted deployment) {
	b.t.Helper()
	var status struct{ Deployments []deployment }
	if err := json.Unmarshal([]byte(b.output("status"+suffix)), &status); err != nil {
		b.t.Fatalf("boot %s: read status: %v\n%s", b.name, err, b.output("status"+suffix))
	}
	var got []want
	var lines []string
	for _, d := range status.Deployments {
		w := want{image: path.Base(d.Image), booted: d.Booted, staged: d.Staged, pending: d.Pending && !d.Staged, rollback: d.Rollback}
		if d.Tries != nil {
			w.tries = fmt.Sprintf("%d-%d", d.Tries.Left, d.Tries.Done)
		}
		got = append(got, w)
		lines = append(lines, ostreeLine(d))
		if d.Booted {
			booted = d
		}
		if versions[path.Base(d.Image)] != d.Version {
			b.errorf("the deployment of %s has the version %q", d.Image, d.Version)
		}
	}
	if !slices.Equal(got, wants) {
		b.errorf("status%s: got the deployments\n%+v\nwant\n%+v", suffix, got, wants)
	}
	if said := ostreeLines(b.output("ostree" + suffix)); !slices.Equal(said, lines) {
		b.errorf("status%s: ostree says\n%s\nand status means\n%s", suffix, strings.Join(said, "\n"), strings.Join(lines, "\n"))
	}
	return booted
}

// versions are the versions of the images.
var versions = map[string]string{
	"os:1": "1", "os:2": "2", "os:broken": "3",
	"selinux:1": "1", "selinux:2": "2", "selinux:3": "3",
	"composefs:1": "1", "composefs:2": "2",
}

// ostreeLine matches the line of a deployment in "ostree admin status".
func ostreeLine(d deployment) string {
	mark, state := " ", ""
	switch {
	case d.Booted:
		mark = "*"
	case d.Staged:
		state = " (staged)"
	case d.Pending:
		state = " (pending)"
	case d.Rollback:
		state = " (rollback)"
	}
	return fmt.Sprintf("%s %s %s%s, version %s", mark, d.Stateroot, d.name(), state, d.Version)
}

var statusLine = regexp.MustCompile(`^[* ] \S+ [0-9a-f]{64}\.\d+( \(\w+\))?$`)

// ostreeLines returns these lines of ostree's output.
func ostreeLines(text string) (lines []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if !statusLine.MatchString(line) && statusLine.MatchString("  "+line) { // the first line was trimmed
			line = "  " + line
		}
		if statusLine.MatchString(line) {
			lines = append(lines, line)
		} else if version, ok := strings.CutPrefix(strings.TrimSpace(line), "Version: "); ok && len(lines) > 0 {
			lines[len(lines)-1] += ", version " + version
		}
	}
	return lines
}

// wantMounts checks mount points, and which of them are writable.
func (b *bootCheck) wantMounts() {
	b.t.Helper()
	got := make(map[string][]string)
	for line := range strings.Lines(b.output("mounts")) {
		if f := strings.Fields(line); len(f) == 4 {
			got[f[0]] = f[1:]
		}
	}
	root := strings.TrimPrefix(b.output("root"), "/sysroot")
	for point, source := range map[string]string{
		"/":     root,
		"/usr":  root + "/usr",
		"/var":  path.Join(path.Dir(path.Dir(root)), "var"),
		"/boot": "/boot",
	} {
		if m := got[point]; m == nil || !strings.HasSuffix(m[0], "["+source+"]") || m[1] != "ext4" {
			b.errorf("mounted at %s is %q, want %s", point, m, source)
		}
	}
	if m := got["/usr"]; m != nil && !slices.Contains(strings.Split(m[2], ","), "ro") {
		b.errorf("/usr is mounted with %s, want ro", m[2])
	}
	if !strings.Contains(b.output("mounts"), "/efi /dev/vda1 vfat ") {
		b.errorf("mounted are\n%s\nwant the first partition at /efi", b.output("mounts"))
	}
	if got, want := b.output("writable"), "/etc\n/var\n/boot"; got != want {
		b.errorf("can be written to:\n%s\nwant\n%s", got, want)
	}
}

// wantEtc checks the files in /etc/example, each of which has one line.
func (b *bootCheck) wantEtc(want map[string]string) {
	b.t.Helper()
	got := make(map[string]string)
	for line := range strings.Lines(b.output("etc")) {
		name, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		got[name] = text
	}
	if !reflect.DeepEqual(got, want) {
		b.errorf("/etc/example has %q, want %q", got, want)
	}
}

// wantShared checks that a file of the deployment shares its inode with an image layer.
func (b *bootCheck) wantShared() {
	b.t.Helper()
	deployed, pulled := b.output("deployed"), strings.Fields(b.output("pulled"))
	if !slices.Contains(pulled, deployed) {
		b.errorf("the file of the deployment is the inode %s, those of the layers are %q", deployed, pulled)
	}
}

// wantSaid checks that the output of a command contains a text.
func (b *bootCheck) wantSaid(name, text string) {
	b.t.Helper()
	if got := b.output(name); !strings.Contains(got, text) {
		b.errorf("%s: got\n%s\nwant it to have %q", name, got, text)
	}
}

// wantConsole checks the number of console lines that contain a text.
func (b *bootCheck) wantConsole(text string, want int) {
	b.t.Helper()
	got, err := b.Count(text)
	if err != nil {
		b.t.Fatal(err)
	}
	if got != want {
		b.errorf("%q is on the console %d times, want %d", text, got, want)
	}
}
