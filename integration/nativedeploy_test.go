package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/buildah"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/encapsulate"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
)

// bootable is a layer with what the example lacks to be deployed.
func bootable(w io.Writer) error {
	tw := tar.NewWriter(w)
	var errs []error
	put := func(h tar.Header) {
		h.ModTime = time.Unix(0, 0)
		errs = append(errs, tw.WriteHeader(&h))
	}
	const release = "ID=example\n"
	for _, dir := range []string{"boot", "dev", "etc", "proc", "run", "sys", "sysroot", "tmp", "var"} {
		put(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
	}
	put(tar.Header{Typeflag: tar.TypeSymlink, Name: "ostree", Linkname: "sysroot/ostree", Mode: 0o777})
	put(tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/os-release", Mode: 0o644, Size: int64(len(release))})
	_, err := io.WriteString(tw, release)
	return errors.Join(append(errs, err, tw.Close())...)
}

// ostree runs ostree on the repository of a system and returns its output.
func (s *system) ostree(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("ostree", append([]string{"--repo=" + filepath.Join(s.dir, "ostree/repo")}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("ostree %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// deployed pushes, pulls and deploys an image in a new system, with which ostree must agree.
func (e *env) deployed(ref string, img *images.Image) *system {
	e.t.Helper()
	e.must(img.Push(e.t.Context(), shared.registry.Address, ref))
	full := shared.registry.Address + "/" + ref
	e.must(e.Pull(e.t.Context(), defaultNS, full))
	s := newSystem(e)
	s.do(0, "deploy", "--init", full)
	e.ostreeAgrees(s)
	return s
}

// head returns the commit of the system's deployment, and its parent.
func (s *system) head() (commit, parent string) {
	s.t.Helper()
	for line := range strings.Lines(s.ostree("refs", "--list", "ostree/container/image")) {
		commit = s.ostree("rev-parse", strings.TrimSpace(line))
	}
	return commit, s.ostree("rev-parse", commit+"^")
}

// TestNativeDeployed deploys ostree-native images in every form. The commit inside is there bit by bit, and the image's own
// has the same tree if no layer changes it.
func TestNativeDeployed(t *testing.T) {
	t.Parallel()
	e := start(t, nil)
	example, err := encapsulate.ExampleImage(t.TempDir())
	e.must(err)
	example, err = encapsulate.Derive(t.TempDir(), example, bootable)
	e.must(err)
	made := map[string]*images.Image{"example:bootable-v0": example}
	want := map[string]string{"example:bootable-v0": encapsulate.ExampleCommit}
	commit, err := encapsulate.Example()
	e.must(err)
	made["example:bootable"], err = commit.Image(t.TempDir(), exampleForm, bootable)
	e.must(err)
	want["example:bootable"] = encapsulate.ExampleCommit
	commit = nativeCommit(t)
	for ref, o := range nativeForms {
		made[ref], err = commit.Image(t.TempDir(), o)
		e.must(err)
		want[ref] = commit.Checksum.String()
	}
	for ref, img := range made {
		t.Run(ref, func(t *testing.T) {
			e := &env{e.Stack, t}
			s := e.deployed(ref, img)
			merged, inside := s.head()
			if inside != want[ref] {
				t.Errorf("the commit inside is %s, want %s", inside, want[ref])
			}
			if _, ok := nativeForms[ref]; !ok {
				return
			}
			if got, want := s.ostree("ls", "-d", "-C", merged), s.ostree("ls", "-d", "-C", inside); got != want {
				t.Errorf("the tree of the image is %s, that of the commit inside %s", got, want)
			}
		})
	}
}

// deriveScript changes an image as administrators do: by writes into its files, and by replacing and deleting them.
const deriveScript = `
echo appended >>etc/shells
echo 'someone:x:1000:1000::/home/someone:/bin/sh' >>etc/passwd
sed -i s/first/changed/ etc/group
echo replaced >usr/share/new; mv usr/share/new usr/share/equal-1
echo changed >>usr/share/equal-2
rm usr/share/equal-3 usr/bin/alias-2 usr/share/empty-1
rm -r usr/lib/deep/deeper; mkdir usr/lib/deep/deeper; echo new >usr/lib/deep/deeper/file-1
echo not empty now >usr/share/empty-2
mkdir usr/lib/added; echo added >usr/lib/added/file
chmod 600 usr/lib/os-release
ln -sfn program-2 usr/bin/alias
`

// nativeBuilds are ways to derive an image. buildah's driver overlay gives directories that a layer does not name the mode
// 0755, so its base has layers that name them.
var nativeBuilds = []struct{ driver, base string }{{"vfs", "native:version-1"}, {"overlay", "native:version-2"}}

// TestNativeDerived pulls and deploys what buildah made of an ostree-native image. Containers see what "buildah mount"
// shows, and so does the deployment, but for the repository.
func TestNativeDerived(t *testing.T) {
	t.Parallel()
	e := start(t, nil)
	commit := nativeCommit(t)
	for _, build := range nativeBuilds {
		t.Run(build.driver, func(t *testing.T) {
			e := &env{e.Stack, t}
			base, err := commit.Image(t.TempDir(), nativeForms[build.base])
			e.must(err)
			derived, err := buildah.Derive(t.Context(), t.Output(), t.TempDir(), base, build.driver, deriveScript)
			e.must(err)
			want, err := tree.Read(t.Context(), derived.Root)
			e.must(err)
			ref := "native-derived:" + build.driver
			s := e.deployed(ref, derived.Image)
			seen := e.view(defaultNS, shared.registry.Address+"/"+ref)
			want["."] = seen["."] // in no layer
			e.sameButTimes(want, seen)

			if _, inside := s.head(); inside != commit.Checksum.String() {
				t.Errorf("the commit inside is %s, want %s", inside, commit.Checksum)
			}
			dir, err := filepath.EvalSymlinks(s.path("."))
			e.must(err)
			got, err := tree.Read(t.Context(), dir)
			e.must(err)
			leaveOut(want, "sysroot/ostree")
			leaveOut(want, "var/tmp") // of the stateroot
			defaults := make(tree.Tree)
			for path, entry := range got {
				if rest, ok := strings.CutPrefix(path, "usr/etc"); ok {
					defaults["etc"+rest] = entry
				}
			}
			leaveOut(got, "usr/etc")
			e.sameButTimes(want, got)
			maps.DeleteFunc(want, func(path string, _ *tree.Entry) bool { return !within(path, "etc") })
			e.sameButTimes(want, defaults)
		})
	}
}

// policyScript changes a system with an SELinux policy as administrators do, also the policy.
const policyScript = `
chroot . useradd --create-home someone
echo '# appended' >>etc/profile
cmp usr/bin/perl usr/bin/perl5.* # one file
echo replaced >usr/bin/new; mv usr/bin/new usr/bin/perl
rm usr/bin/factor; rm -r usr/share/perl5
mkdir -p usr/lib/site/deep; echo page >usr/lib/site/deep/page; ln -s deep/page usr/lib/site/page
echo '/usr/lib/site(/.*)?    system_u:object_r:httpd_sys_content_t:s0
/usr/bin/tail    --    system_u:object_r:passwd_exec_t:s0' >etc/selinux/default/contexts/files/file_contexts.local
`

// policyLabels are the types of files of the commit inside and of the image's, "" if it has no such file. The policy is in the
// tree of each.
var policyLabels = map[string]struct{ inside, merged string }{
	"/usr/bin/tail":                  {"bin_t", "passwd_exec_t"},
	"/usr/bin/perl":                  {"bin_t", "bin_t"},
	"/usr/bin/factor":                {"bin_t", ""},
	"/usr/lib/site/deep/page":        {"", "httpd_sys_content_t"},
	"/usr/lib/site/page":             {"", "httpd_sys_content_t"},
	"/usr/etc/shadow":                {"etc_t", "etc_t"},
	"/var/home":                      {"home_root_t", "home_root_t"},
	"/var/home/someone/.bash_logout": {"", "user_home_t"},
}

// TestNativeDerivedLabels deploys what buildah made of a whole Debian system with an SELinux policy. The image's commit has
// the tree that ostree makes of what "buildah mount" shows, with labels by the policy there.
func TestNativeDerivedLabels(t *testing.T) {
	t.Parallel()
	e := start(t, nil)
	base, err := encapsulate.LabelledOS(t.Context(), t.Output())
	e.must(err)
	derived, err := buildah.Derive(t.Context(), t.Output(), t.TempDir(), base, "overlay", policyScript)
	e.must(err)
	s := e.deployed("native-labels:derived", derived.Image)
	merged, inside := s.head()
	if want := base.Config.Config.Labels["ostree.commit"]; inside != want {
		t.Errorf("the commit inside is %s, want %s", inside, want)
	}

	for _, dir := range []string{"sysroot/ostree", "var/tmp"} { // not of the system
		e.must(os.RemoveAll(filepath.Join(derived.Root, dir)))
	}
	e.must(os.Chmod(derived.Root, 0o755)) // in no layer
	e.must(os.Rename(filepath.Join(derived.Root, "etc"), filepath.Join(derived.Root, "usr/etc")))
	// Before the checksum the host's libselinux says that it cannot read a compiled policy of a newer one.
	said := strings.Fields(s.ostree("commit", "--orphan", "--tree=dir="+derived.Root, "--selinux-policy="+derived.Root))
	theirs := said[len(said)-1]
	got, want := s.listed(merged), s.listed(theirs)
	for name, line := range want {
		if got[name] != line {
			t.Errorf("got  %q\nwant %q", got[name], line)
		}
	}
	for name, line := range got {
		if want[name] == "" {
			t.Errorf("got %q, which buildah does not show", line)
		}
	}

	first := s.listed(inside)
	for name, label := range policyLabels {
		for _, c := range []struct{ commit, line, label string }{{"inside", first[name], label.inside}, {"merged", got[name], label.merged}} {
			if (c.line == "") != (c.label == "") || !strings.Contains(c.line, c.label) {
				t.Errorf("commit %s, %s: got %q, want the label %q", c.commit, name, c.line, c.label)
			}
		}
	}
	label := make([]byte, 256)
	n, err := unix.Lgetxattr(s.path("etc/shadow"), "security.selinux", label)
	e.must(err)
	if got, want := string(label[:n]), "system_u:object_r:shadow_t:s0\x00"; got != want {
		t.Errorf("the deployment's /etc/shadow has the label %q, want %q", got, want)
	}
}

// listed returns the lines of "ostree ls" for the files of a commit, by path, with checksums and attributes.
func (s *system) listed(commit string) map[string]string {
	s.t.Helper()
	lines := make(map[string]string)
	for line := range strings.Lines(s.ostree("ls", "-RCX", commit)) {
		line = strings.TrimSuffix(line, "\n")
		name, _, _ := strings.Cut(line[strings.Index(line, " /")+1:], " -> ")
		lines[name] = line
	}
	return lines
}

// within reports whether a path is a directory or below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// leaveOut removes a directory from a tree.
func leaveOut(t tree.Tree, dir string) {
	maps.DeleteFunc(t, func(path string, _ *tree.Entry) bool { return within(path, dir) })
}

// sameButTimes compares trees without regard to times: buildah rounds those of files to seconds.
func (e *env) sameButTimes(want, got tree.Tree) {
	e.t.Helper()
	for path, w := range want {
		if g := got[path]; g != nil {
			w.Mtime = g.Mtime
		}
	}
	for _, line := range diffTrees(want, got, tree.Options{}) {
		e.t.Error(line)
	}
}

// damages are what can be wrong with the commit in an image.
var damages = map[string]struct {
	layer int // that is edited
	edit  func(b []byte) []byte
	label func(labels map[string]string)
	want  string // in the error
}{
	"content": {3, changeContent, nil, `layer 3 \(sha256:[0-9a-f]{64}\): object [0-9a-f]{64}\.file: its checksum is not its name`},
	"missing": {2, func([]byte) []byte { return make([]byte, 1024) }, nil, `layer 5 \(sha256:[0-9a-f]{64}\): object [0-9a-f]{64}\.file is missing`},
	"final": {0, nil, func(l map[string]string) {
		l["ostree.final-diffid"] = digest.FromString("another").String()
	}, `label ostree\.final-diffid names layer "sha256:[0-9a-f]{64}", which the image does not have`},
	"commit": {0, nil, func(l map[string]string) {
		l["ostree.commit"] = encapsulate.ExampleCommit
	}, `layer 0 \(sha256:[0-9a-f]{64}\): its commit is [0-9a-f]{64}, the label ostree\.commit names ` + encapsulate.ExampleCommit},
}

// changeContent changes a byte in the last file of a layer.
func changeContent(b []byte) []byte {
	b[bytes.LastIndexByte(b, '\n')]++
	return b
}

// edited returns a layer with other bytes.
func edited(l encapsulate.Layer, edit func(b []byte) []byte) encapsulate.Layer {
	return func(w io.Writer) error {
		var b bytes.Buffer
		err := l(&b)
		_, writeErr := w.Write(edit(b.Bytes()))
		return errors.Join(err, writeErr)
	}
}

// TestNativeMalformed deploys images whose commit is damaged. The error says what is wrong, and nothing is left. They run
// as containers nevertheless.
func TestNativeMalformed(t *testing.T) {
	t.Parallel()
	e := start(t, nil)
	commit := nativeCommit(t)
	good, err := commit.Image(t.TempDir(), nativeForms["native:version-1"])
	e.must(err)
	s := e.deployed("native-malformed:good", good)
	before, err := tree.Read(t.Context(), s.dir)
	e.must(err)
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			e := &env{e.Stack, t}
			layers := commit.Layers(nativeForms["native:version-1"])
			final := len(layers) - 1
			if damage.edit != nil {
				layers[damage.layer] = edited(layers[damage.layer], damage.edit)
			}
			img, err := encapsulate.Layout(t.TempDir(), layers, func(diffIDs []digest.Digest) map[string]string {
				labels := commit.Labels(diffIDs[final].String())
				if damage.label != nil {
					damage.label(labels)
				}
				return labels
			})
			e.must(err)
			ref := "native-malformed:" + name
			e.must(img.Push(t.Context(), shared.registry.Address, ref))
			full := shared.registry.Address + "/" + ref
			e.must(e.Pull(t.Context(), defaultNS, full))
			args := []string{"deploy", "--sysroot", s.dir, "--root", s.Root, "--daemon-address", s.Daemon, "--address", s.Containerd, full}
			_, err = s.Run(t.Context(), daemonBinary(t), args...)
			if status := exitStatus(err); status != 14 || !regexp.MustCompile(damage.want).MatchString(err.Error()) {
				t.Errorf("exit status is %d, want 14 and %q: %v", status, damage.want, err)
			}
			after, err := tree.Read(t.Context(), s.dir)
			e.must(err)
			for _, line := range diffTrees(before, after, tree.Options{IgnoreMtime: []string{"ostree"}}) {
				t.Errorf("after the failure: %s", line)
			}
		})
	}
}
