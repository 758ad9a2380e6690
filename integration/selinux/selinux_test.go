// Package selinux compares the labels of deploy/selinux with those of several versions of libselinux, and commits with labels
// with those of several releases of ostree.
package selinux

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// policy is the directory of the policy below the root.
const policy = "etc/selinux"

// local are lines as semanage-fcontext(8) writes them, for paths and patterns that the policy has too.
var local = map[string]string{
	".local": `/srv/www(/.*)?    system_u:object_r:httpd_sys_content_t:s0
/usr/bin/passwd    --    system_u:object_r:bin_t:s0
/var/log/[^/]*\.log    --    system_u:object_r:var_log_t:s0
/root/\.k5login    --    system_u:object_r:etc_t:s0
/etc/motd    <<none>>
/data/a|/data/b    system_u:object_r:usr_t:s0
`,
	".subs": "/srv/home /home\n/data/usr /usr\n/srv/home/deep /etc\n",
}

// ties are paths that several files of the policy spell out, as they are in the last of these files, with the label of the
// first. libselinux 3.8 and 3.9 follow the first file, other versions and deploy/selinux the last.
var ties = map[string]string{
	"/usr/bin/passwd": "system_u:object_r:passwd_exec_t:s0",
	`/root/\.k5login`: "system_u:object_r:krb5_home_t:s0",
}

// types are the types of files that matchpathcon knows.
var types = []struct {
	name string
	mode fs.FileMode
}{
	{"file", 0},
	{"dir", fs.ModeDir},
	{"lnk_file", fs.ModeSymlink},
	{"chr_file", fs.ModeDevice | fs.ModeCharDevice},
	{"blk_file", fs.ModeDevice},
	{"pipe", fs.ModeNamedPipe},
	{"sock_file", fs.ModeSocket},
}

// TestLikeLibselinux compares labels of generated paths, most of which the policy's patterns match.
func TestLikeLibselinux(t *testing.T) {
	testenv.SkipShort(t, "needs a policy")
	testenv.NeedsRoot(t) // to build the policy
	built, err := testhost.SELinuxPolicy(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	for name, extra := range map[string]map[string]string{"plain": nil, "with local lines": local} {
		t.Run(name, func(t *testing.T) {
			root, specs := copyPolicy(t, built, extra)
			ours, err := selinux.Load(os.DirFS(root).(fs.ReadFileFS).ReadFile, policy)
			if err != nil {
				t.Fatal(err)
			}
			for _, typ := range types {
				paths := generate(rand.New(rand.NewPCG(1, uint64(typ.mode))), specs, testenv.Scale(3000, 100_000))
				paths = append(paths, "/usr/bin/passwd", "/root/.k5login", "/srv/data/b", "/data/b", "/data/x/data/b")
				for _, release := range testhost.LibselinuxReleases {
					compare(t, ours, release, root, typ.name, typ.mode, paths)
				}
			}
		})
	}
}

// TestVersionsDiffer looks up the paths on which versions of libselinux differ. deploy/selinux follows the newest.
func TestVersionsDiffer(t *testing.T) {
	testenv.SkipShort(t, "needs versions of libselinux")
	testenv.NeedsRoot(t) // to unpack them
	root := t.TempDir()
	const contexts = policy + "/x/contexts/files"
	testenv.Must(t, os.MkdirAll(filepath.Join(root, contexts), 0o755))
	for name, text := range map[string]string{
		policy + "/config": "SELINUX=enforcing\nSELINUXTYPE=x\n",
		contexts + "/file_contexts": `/.* u:o:root
/a/b/.* <<none>>
/a/.* u:o:label
/files u:o:first
/typed -- u:o:typed
/typed u:o:any
/untyped u:o:any
/untyped -- u:o:typed
`,
		contexts + "/file_contexts.local": "/files u:o:last\n",
	} {
		testenv.Must(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
	}
	paths := []string{"/a/b/x", "/files", "/typed", "/untyped"}
	for release, want := range map[string][]string{
		"bookworm": {"u:o:label", "u:o:last", "u:o:any", "u:o:typed"},
		"trixie":   {"<<none>>", "u:o:first", "u:o:typed", "u:o:typed"},
		"forky":    {"<<none>>", "u:o:last", "u:o:typed", "u:o:any"},
	} {
		got := matchpathcon(t, release, filepath.Join(root, contexts, "file_contexts"), "file", paths)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", release, got, want)
		}
		if release != "forky" {
			continue
		}
		ours, err := selinux.Load(os.DirFS(root).(fs.ReadFileFS).ReadFile, policy)
		testenv.Must(t, err)
		for i, path := range paths {
			if m, _ := ours.Lookup(path, 0); m.Context != want[i] {
				t.Errorf("%s: got %s, want %s", path, m.Context, want[i])
			}
		}
	}
}

// matchpathcon returns the labels of files of a type by a release's libselinux.
func matchpathcon(t *testing.T, release, contexts, typ string, paths []string) (labels []string) {
	t.Helper()
	dir, err := testhost.Matchpathcon(t.Context(), t.Output(), release)
	testenv.Must(t, err)
	args := append([]string{"-f", contexts, "-m", typ}, paths...)
	out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "matchpathcon"), args...).CombinedOutput()
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if err != nil || len(lines) != len(paths) {
		t.Fatalf("matchpathcon of %s: %v: %d lines for %d paths:\n%.2000s", release, err, len(lines), len(paths), out)
	}
	for _, line := range lines {
		_, label, _ := strings.Cut(line, "\t")
		labels = append(labels, label)
	}
	return labels
}

// copyPolicy copies the text files of a policy, so that no version of libselinux uses compiled ones. It returns the new
// root and all specs.
func copyPolicy(t *testing.T, from string, extra map[string]string) (root string, specs []string) {
	t.Helper()
	root = t.TempDir()
	const contexts = policy + "/default/contexts/files"
	testenv.Must(t, os.MkdirAll(filepath.Join(root, contexts), 0o755))
	write := func(name string, data []byte) {
		t.Helper()
		testenv.Must(t, os.WriteFile(filepath.Join(root, name), data, 0o600))
		if strings.Contains(name, ".subs") {
			return
		}
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); len(fields) > 1 && !strings.HasPrefix(fields[0], "#") {
				specs = append(specs, fields[0])
			}
		}
	}
	for _, name := range []string{
		policy + "/config", contexts + "/file_contexts", contexts + "/file_contexts.homedirs", contexts + "/file_contexts.subs_dist",
	} {
		data, err := os.ReadFile(filepath.Join(from, name))
		testenv.Must(t, err)
		write(name, data)
	}
	for suffix, text := range extra {
		write(filepath.Join(contexts, "file_contexts"+suffix), []byte(text))
	}
	return root, specs
}

// generate returns n different paths.
func generate(rnd *rand.Rand, specs []string, n int) []string {
	seen := make(map[string]struct{})
	paths := make([]string, 0, n)
	for len(paths) < n {
		re, err := syntax.Parse(specs[rnd.IntN(len(specs))], syntax.Perl|syntax.DotNL)
		if err != nil {
			panic(err) // Load has parsed it
		}
		var b strings.Builder
		write(rnd, &b, re)
		p := change(rnd, b.String())
		if _, ok := seen[p]; ok || !strings.HasPrefix(p, "/") || len(p) > 4000 {
			continue
		}
		seen[p] = struct{}{}
		paths = append(paths, p)
	}
	return paths
}

// letters are those of "." in a path, with a character of two bytes.
var letters = []rune("abcz019._-/é")

// write writes a string that a regular expression matches.
func write(rnd *rand.Rand, b *strings.Builder, re *syntax.Regexp) {
	repeat := func(least, most int) {
		for range least + rnd.IntN(most-least+1) {
			write(rnd, b, re.Sub[0])
		}
	}
	switch re.Op {
	case syntax.OpLiteral:
		b.WriteString(string(re.Rune))
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteRune(letters[rnd.IntN(len(letters))])
	case syntax.OpCharClass:
		for range 100 {
			c := letters[rnd.IntN(len(letters))]
			if i := 2 * rnd.IntN(len(re.Rune)/2); re.Rune[i+1]-re.Rune[i] < 128 {
				c = re.Rune[i] + rnd.Int32N(re.Rune[i+1]-re.Rune[i]+1)
			}
			for i := 0; i < len(re.Rune); i += 2 {
				if c > ' ' && re.Rune[i] <= c && c <= re.Rune[i+1] {
					b.WriteRune(c)
					return
				}
			}
		}
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			write(rnd, b, sub)
		}
	case syntax.OpAlternate:
		write(rnd, b, re.Sub[rnd.IntN(len(re.Sub))])
	case syntax.OpCapture:
		write(rnd, b, re.Sub[0])
	case syntax.OpStar:
		repeat(0, 5)
	case syntax.OpPlus:
		repeat(1, 4)
	case syntax.OpQuest:
		repeat(0, 1)
	case syntax.OpRepeat:
		repeat(re.Min, max(re.Min, re.Max, 3))
	default: // matches no character
	}
}

// change changes a path now and then, so that it matches another pattern, or is a substitution's.
func change(rnd *rand.Rand, p string) string {
	i := rnd.IntN(len(p) + 1)
	switch rnd.IntN(12) {
	case 0:
		return p + "/x"
	case 1:
		return p[:i]
	case 2:
		return p[:i] + "x" + p[i:]
	case 3:
		return p + "/"
	case 4:
		return p[:i] + "/" + p[i:]
	case 5:
		return strings.Replace(p, "/usr/", "/data/usr/", 1)
	case 6:
		return strings.Replace(p, "/home/", "/srv/home/", 1)
	case 7:
		return strings.Replace(p, "/usr/lib/", "/lib64/", 1)
	}
	return p
}

// compare compares labels with those of a release's libselinux.
func compare(t *testing.T, ours *selinux.Policy, release, root, typ string, mode fs.FileMode, paths []string) {
	t.Helper()
	wrong := 0
	for chunk := range slices.Chunk(paths, 2000) {
		labels := matchpathcon(t, release, filepath.Join(root, policy, "default/contexts/files/file_contexts"), typ, chunk)
		for i, want := range labels {
			m, ok := ours.Lookup(chunk[i], mode)
			got := m.Context
			if !ok {
				got = "<<none>>"
			}
			tied := release == "trixie" && want == ties[m.Spec] && filepath.Ext(m.File) != ""
			if got == want || tied {
				continue
			}
			if wrong++; wrong <= 10 {
				t.Errorf("%s: %s of type %s: got %s by %q (%s:%d), want %s",
					release, chunk[i], typ, got, m.Spec, filepath.Base(m.File), m.Line, want)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%s: %d of %d labels of type %s are wrong", release, wrong, len(paths), typ)
	}
}
