package tenants

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A lender is a repository of the host, written by ostree, that a user of the host has got into.
type lender struct {
	t         *testing.T
	dir, repo string
	home      string // the user's
}

func newLender(t *testing.T) *lender {
	t.Helper()
	dir, err := os.MkdirTemp("", "osl")
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, os.RemoveAll(dir)) })
	l := &lender{t: t, dir: dir, repo: dir + "/repo", home: dir + "/home"}
	testenv.Must(t, errors.Join(os.Chmod(dir, 0o755), os.Mkdir(l.home, 0o755), os.Chown(l.home, user, user)))
	l.ostree("init", "--mode=bare")
	return l
}

func (l *lender) ostree(args ...string) string {
	l.t.Helper()
	cmd := exec.CommandContext(l.t.Context(), "ostree", append(args, "--repo="+l.repo)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("ostree %q: %v\n%s", args, err, &stderr)
	}
	return string(out)
}

// commit commits the regular files of a layer without attributes, all with one time.
func (l *lender) commit(branch string, layer []byte) {
	l.t.Helper()
	root, err := os.MkdirTemp(l.dir, "tree")
	testenv.Must(l.t, err)
	eachFile(l.t, layer, func(h *tar.Header, content []byte) {
		name := filepath.Join(root, h.Name)
		testenv.Must(l.t, errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, content, 0o600),
			os.Chown(name, h.Uid, h.Gid), os.Chmod(name, h.FileInfo().Mode())))
	})
	l.ostree("commit", "--branch="+branch, "--tree=dir="+root)
}

// eachFile calls f for the regular files of a layer that have no attributes.
func eachFile(t *testing.T, layer []byte, f func(h *tar.Header, content []byte)) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		testenv.Must(t, err)
		content, err := io.ReadAll(r)
		testenv.Must(t, err)
		if h.Typeflag == tar.TypeReg && len(h.PAXRecords) == 0 {
			f(h, content)
		}
	}
}

// object returns the path of the object of a committed file.
func (l *lender) object(branch, name string) string {
	l.t.Helper()
	fields := strings.Fields(l.ostree("ls", "--checksum", branch, "/"+name))
	if len(fields) < 6 {
		l.t.Fatalf("ostree ls %s: %q", name, fields)
	}
	s := fields[4]
	return filepath.Join(l.repo, "objects", s[:2], s[2:]+".file")
}

// wrong writes a file of the user's, of the size that the right one has.
func (l *lender) wrong(name string, size int64) error {
	content := []byte(strings.Repeat("wrong ", int(size)/6+1))[:size]
	return errors.Join(os.WriteFile(name, content, 0o644), os.Chown(name, user, user))
}

// TestLender unpacks Alice's image with a repository in dedup_repos in which most objects are not what their name says,
// or can be changed by a user. The image is right, and stays so while the user changes what he can.
func TestLender(t *testing.T) {
	for _, checkout := range []string{"composefs", "hardlink"} {
		t.Run(checkout, func(t *testing.T) {
			t.Parallel()
			testenv.SkipShort(t, "needs a real containerd")
			testenv.NeedsRoot(t)
			l := newLender(t)
			l.commit("common", commonLayer(t))
			l.commit("own", ownLayer(t))
			l.commit("later", laterLayer(t))
			object := func(name string) string { return l.object("common", name) }
			size := func(path string) int64 {
				fi, err := os.Stat(path)
				testenv.Must(t, err)
				return fi.Size()
			}
			tool, library := object("usr/bin/tool"), object("usr/bin/library")
			shadow, linked := object("etc/shadow"), object("etc/linked")
			testenv.Must(t, errors.Join(
				// Another content of the same size, in a file of root's.
				l.wrong(tool, size(tool)), os.Chown(tool, 0, 0), os.Chmod(tool, 0o755),
				// A link to a file of the user's.
				l.wrong(l.home+"/library", size(library)), os.Remove(library), os.Symlink(l.home+"/library", library),
				// A directory that is a link to one of the user's.
				os.Rename(filepath.Dir(shadow), l.home+"/objects"), os.Symlink(l.home+"/objects", filepath.Dir(shadow)),
				os.Chown(l.home+"/objects", user, user),
				// The object of another file.
				os.Remove(linked), os.Link(object("etc/passwd"), linked),
			))

			w := start(t, checkout, ownStore, fmt.Sprintf("dedup_repos = [%q]\nmtime = \"canonical\"\n", l.repo))
			right := func(files tree.Tree, layer []byte) {
				t.Helper()
				eachFile(t, layer, func(h *tar.Header, content []byte) {
					if e := files[filepath.Clean(h.Name)]; e == nil || e.SHA256 != sum(string(content)) || int(e.UID) != h.Uid {
						t.Errorf("%s is %v, want it as in the layer", h.Name, e)
					}
				})
			}
			right(w.view, commonLayer(t))
			borrowed, err := os.Stat(object("etc/passwd"))
			testenv.Must(t, err)
			for name, lent := range map[string]bool{
				"etc/passwd": true, "usr/bin/tool": false, "home/user/file": false, "srv/world": false, "srv/group": false, "usr/bin/su": false,
			} {
				path := object(name)
				ours, err := os.Stat(w.repo + strings.TrimPrefix(path, l.repo))
				testenv.Must(t, err)
				theirs, err := os.Stat(path)
				testenv.Must(t, err)
				if got := os.SameFile(ours, theirs); got != lent {
					t.Errorf("%s is the lender's file: %t, want %t", name, got, lent)
				}
			}
			w.attackAs(user, Order{Write: []string{l.repo, l.home}})
			w.unharmed()
			if now, err := os.Stat(object("etc/passwd")); err != nil || !os.SameFile(borrowed, now) {
				t.Errorf("the borrowed object is another file: %v", err)
			}

			pull := func(name string, layer []byte) (read func()) {
				t.Helper()
				w.must(w.add(alice, name, layer))
				id, err := w.ChainID(t.Context(), alice, name)
				w.must(err)
				return func() {
					t.Helper()
					files, err := w.ReadView(t.Context(), alice, id)
					w.must(err)
					right(files, layer)
				}
			}

			// The user has files open that become the lender's, and root's, with the right content.
			home := l.home + "/held"
			w.must(os.Mkdir(home, 0o755))
			held := w.startAs(user, home, Order{Hold: home, Ready: home + "/ready", Go: home + "/go"})
			w.must(await(home + "/ready"))
			for name := range heldFiles {
				path := l.object("later", name)
				w.must(errors.Join(os.Rename(filepath.Join(home, name), path), os.Chown(path, 0, 0)))
			}
			read := pull("example.org/alice/later:1", laterLayer(t))
			read()
			w.must(os.WriteFile(home+"/go", nil, 0o644))
			held()
			read()

			// The user gets the directories while the daemon runs, and puts his own files there.
			w.must(os.Chown(l.repo+"/objects", user, user))
			eachFile(t, ownLayer(t), func(h *tar.Header, content []byte) {
				path := l.object("own", h.Name)
				w.must(errors.Join(os.Chown(filepath.Dir(path), user, user), os.Remove(path), l.wrong(path, int64(len(content)))))
			})
			read = pull("example.org/alice/own:1", ownLayer(t))
			read()
			w.attackAs(user, Order{Write: []string{l.repo, l.home}})
			read()
			w.unharmed()
			w.ours("fsck", "--deep")
		})
	}
}
