package commitsig

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/commitsig"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// A world has keys, and a commit to sign.
type world struct {
	gpg    *gnupg
	repo   string // of mode archive, with the ref os
	sum    objectstore.Checksum
	commit []byte
	keys   map[string]string                  // fingerprints by name
	ed     map[string]ed25519.PrivateKey      // by name
	sigs   map[string]func(*testing.T) []byte // OpenPGP signatures by name
}

// Verdicts of both.
const (
	accepted = true
	refused  = false
)

// A scene is what a remote has and what a commit carries.
type scene struct {
	remote string            // lines of the remote's configuration
	files  map[string]string // in the root file system, besides the repository
	own    []string          // keys in the remote's keyring
	gpg    []string          // names of signatures
	ed     []string          // names of keys that sign
	want   bool
}

const hour = time.Hour

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{gpg: newGnuPG(t), keys: make(map[string]string), ed: make(map[string]ed25519.PrivateKey)}
	dir := t.TempDir()
	w.repo = filepath.Join(dir, "repo")
	tree := filepath.Join(dir, "tree")
	testenv.Must(t, os.Mkdir(tree, 0o755))
	testenv.Must(t, os.WriteFile(filepath.Join(tree, "f"), []byte("f\n"), 0o644))
	run(t, "ostree", "--repo="+w.repo, "init", "--mode=archive")
	var err error
	w.sum, err = objectstore.ParseChecksum(strings.TrimSpace(run(t, "ostree", "--repo="+w.repo, "commit", "-b", "os", "--tree=dir="+tree)))
	testenv.Must(t, err)
	w.commit, err = os.ReadFile(filepath.Join(w.repo, "objects", objectstore.LoosePath(w.sum, objectstore.TypeCommit)))
	testenv.Must(t, err)
	w.makeKeys(t)
	for _, name := range []string{"ed", "other"} {
		w.ed[name] = opensslKey(t)
	}
	return w
}

// makeKeys makes OpenPGP keys and signatures.
func (w *world) makeKeys(t *testing.T) {
	t.Helper()
	g := w.gpg
	now := time.Now()
	ago := now.Add(-72 * hour)
	w.keys["a"] = g.generate("a", "ed25519", "sign", "never", ago)
	w.keys["b"] = g.generate("b", "ed25519", "sign", "never", ago)
	w.keys["rsa"] = g.generate("rsa", "rsa2048", "sign", "never", ago)
	w.keys["expired"] = g.generate("expired", "ed25519", "sign", "seconds=86400", ago)
	w.keys["revoked"] = g.generate("revoked", "ed25519", "sign", "never", ago)
	w.keys["young"] = g.generate("young", "ed25519", "sign", "never", now.Add(-hour))
	for _, name := range []string{"sub", "sub-expired", "sub-revoked", "primary-expired"} {
		expire, subExpire := "never", "never"
		switch name {
		case "sub-expired":
			subExpire = "seconds=86400"
		case "primary-expired":
			expire = "seconds=86400"
		}
		w.keys[name] = g.generate(name, "ed25519", "cert", expire, ago)
		g.at(ago, "--quick-add-key", w.keys[name], "ed25519", "sign", subExpire)
	}
	early := ago.Add(hour)
	sign := func(key string, at time.Time, args ...string) func(*testing.T) []byte {
		data := g.sign(w.commit, key, at, args...)
		return func(*testing.T) []byte { return data }
	}
	fixed := func(data []byte) func(*testing.T) []byte { return func(*testing.T) []byte { return data } }
	w.sigs = map[string]func(*testing.T) []byte{
		"by a":               sign("a", now),
		"by b":               sign("b", now),
		"by rsa":             sign("rsa", now),
		"sha1":               sign("rsa", now, "--digest-algo", "SHA1"),
		"sha512":             sign("rsa", now, "--digest-algo", "SHA512"),
		"text":               sign("a", now, "--textmode"),
		"expired":            sign("a", early, "--default-sig-expire", "seconds=3600"),
		"not expired":        sign("a", early, "--default-sig-expire", "1y"),
		"future":             sign("a", now.Add(48*hour)),
		"by expired":         sign("expired", early),
		"by revoked":         sign("revoked", early),
		"before its key":     sign("young", early, "--ignore-time-conflict"),
		"by sub":             sign("sub", early),
		"by sub-expired":     sign("sub-expired", early),
		"by sub-revoked":     sign("sub-revoked", early),
		"by primary-expired": sign("primary-expired", early),
		"of another commit":  fixed(g.sign([]byte("another"), "a", now)),
		"garbage":            fixed([]byte("garbage")),
		"empty":              fixed(nil),
	}
	damaged := bytes.Clone(w.sigs["by a"](t))
	damaged[len(damaged)-3] ^= 1
	w.sigs["damaged"] = fixed(damaged)
	w.sigs["truncated"] = fixed(damaged[:len(damaged)/2])
	w.sigs["b and a in one"] = fixed(slices.Concat(w.sigs["by b"](t), w.sigs["by a"](t)))
	g.revoke(w.keys["revoked"])
	g.edit(w.keys["sub-revoked"], "key 1\nrevkey\ny\n0\n\ny\nsave\n")
}

// scenes are the matrix.
func (w *world) scenes() map[string]scene {
	a := w.gpg.export("a")
	b := w.gpg.export("b")
	armored := w.gpg.export("a", "--armor")
	pub := func(name string) string {
		return base64.StdEncoding.EncodeToString(w.ed[name].Public().(ed25519.PublicKey))
	}
	const global = "usr/share/ostree/trusted.gpg.d/"
	gpgOff := "gpg-verify=false\n"
	list := map[string]scene{
		"unsigned":                  {own: []string{"a"}},
		"no key":                    {gpg: []string{"by a"}},
		"wrong key":                 {own: []string{"a"}, gpg: []string{"by b"}},
		"either of two keys":        {own: []string{"a", "b"}, gpg: []string{"by b"}, want: accepted},
		"second signature":          {own: []string{"a"}, gpg: []string{"by b", "by a"}, want: accepted},
		"first signature":           {own: []string{"a"}, gpg: []string{"by a", "by b"}, want: accepted},
		"damaged and good":          {own: []string{"a"}, gpg: []string{"damaged", "by a"}},
		"good and damaged":          {own: []string{"a"}, gpg: []string{"by a", "damaged"}, want: accepted},
		"expired and good":          {own: []string{"a"}, gpg: []string{"expired", "by a"}},
		"expired key and good":      {own: []string{"a", "expired"}, gpg: []string{"by expired", "by a"}, want: accepted},
		"revoked subkey and good":   {own: []string{"a", "sub-revoked"}, gpg: []string{"by sub-revoked", "by a"}, want: accepted},
		"too young key and good":    {own: []string{"a", "young"}, gpg: []string{"before its key", "by a"}, want: accepted},
		"other commit and good":     {own: []string{"a"}, gpg: []string{"of another commit", "by a"}},
		"garbage and good":          {own: []string{"a"}, gpg: []string{"garbage", "by a"}},
		"good and garbage":          {own: []string{"a"}, gpg: []string{"by a", "garbage"}},
		"text and binary":           {own: []string{"a", "b"}, gpg: []string{"text", "by b"}, want: accepted},
		"two hashes":                {own: []string{"a", "rsa"}, gpg: []string{"sha512", "by a"}, want: accepted},
		"unknown, then other hash":  {own: []string{"a"}, gpg: []string{"sha512", "by a"}, want: accepted},
		"good after revoked":        {own: []string{"a", "revoked"}, gpg: []string{"by revoked", "by a"}, want: accepted},
		"good and empty":            {own: []string{"a"}, gpg: []string{"by a", "empty"}, want: accepted},
		"no signature in the list":  {own: []string{"a"}, gpg: []string{}},
		"keyring after revocation":  {own: []string{"revoked", "a"}, gpg: []string{"by revoked"}},
		"key in armor by path":      {remote: "gpgkeypath=/keys/a.asc\n", files: map[string]string{"keys/a.asc": armored}, gpg: []string{"by a"}, want: accepted},
		"keys by directory":         {remote: "gpgkeypath=/keys\n", files: map[string]string{"keys/a.asc": armored, "keys/b": b}, gpg: []string{"by b"}, want: accepted},
		"two paths":                 {remote: "gpgkeypath=/keys/b;/keys/a\n", files: map[string]string{"keys/a": a, "keys/b": b}, gpg: []string{"by a"}, want: accepted},
		"path without the key":      {remote: "gpgkeypath=/keys/b\n", files: map[string]string{"keys/b": b}, gpg: []string{"by a"}},
		"absent path":               {remote: "gpgkeypath=/keys/b\n", gpg: []string{"by a"}},
		"own keyring and path":      {remote: "gpgkeypath=/keys/b\n", own: []string{"a"}, files: map[string]string{"keys/b": b}, gpg: []string{"by b"}, want: accepted},
		"global key":                {files: map[string]string{global + "a.gpg": a}, gpg: []string{"by a"}, want: accepted},
		"global key, other ending":  {files: map[string]string{global + "a.key": a}, gpg: []string{"by a"}},
		"own keyring, not global":   {own: []string{"b"}, files: map[string]string{global + "a.gpg": a}, gpg: []string{"by a"}},
		"path and global":           {remote: "gpgkeypath=/keys/b\n", files: map[string]string{"keys/b": b, global + "a.gpg": a}, gpg: []string{"by a"}, want: accepted},
		"keyring beside the remote": {files: map[string]string{"etc/ostree/remotes.d/o.trustedkeys.gpg": a}, gpg: []string{"by a"}, want: accepted},

		"ed25519":                    {remote: gpgOff + "sign-verify=ed25519\nverification-ed25519-key=" + pub("ed") + "\n", ed: []string{"ed"}, want: accepted},
		"ed25519, true":              {remote: gpgOff + "sign-verify=true\nverification-ed25519-key=" + pub("ed") + "\n", ed: []string{"ed"}, want: accepted},
		"ed25519, wrong key":         {remote: gpgOff + "sign-verify=ed25519\nverification-ed25519-key=" + pub("ed") + "\n", ed: []string{"other"}},
		"ed25519, second signature":  {remote: gpgOff + "sign-verify=ed25519\nverification-ed25519-key=" + pub("ed") + "\n", ed: []string{"other", "ed"}, want: accepted},
		"ed25519, unsigned":          {remote: gpgOff + "sign-verify=ed25519\nverification-ed25519-key=" + pub("ed") + "\n"},
		"ed25519, file":              {remote: gpgOff + "sign-verify=ed25519\nverification-ed25519-file=/keys/ed\n", files: map[string]string{"keys/ed": pub("other") + "\n" + pub("ed") + "\n"}, ed: []string{"ed"}, want: accepted},
		"ed25519, file and key":      {remote: gpgOff + "sign-verify=ed25519\nverification-ed25519-file=/keys/ed\nverification-ed25519-key=" + pub("ed") + "\n", files: map[string]string{"keys/ed": pub("other") + "\n"}, ed: []string{"other"}, want: accepted},
		"ed25519, absent file":       {remote: gpgOff + "sign-verify=ed25519\nverification-ed25519-file=/keys/ed\n", ed: []string{"ed"}},
		"ed25519, system":            {remote: gpgOff + "sign-verify=true\n", files: map[string]string{"etc/ostree/trusted.ed25519": pub("ed") + "\n"}, ed: []string{"ed"}, want: accepted},
		"ed25519, system directory":  {remote: gpgOff + "sign-verify=true\n", files: map[string]string{"usr/share/ostree/trusted.ed25519.d/k": pub("ed") + "\n"}, ed: []string{"ed"}, want: accepted},
		"ed25519, revoked":           {remote: gpgOff + "sign-verify=true\n", files: map[string]string{"etc/ostree/trusted.ed25519": pub("ed") + "\n", "etc/ostree/revoked.ed25519": pub("ed") + "\n"}, ed: []string{"ed"}},
		"ed25519, revoked elsewhere": {remote: gpgOff + "sign-verify=true\n", files: map[string]string{"etc/ostree/trusted.ed25519": pub("ed") + "\n", "usr/share/ostree/revoked.ed25519.d/k": pub("ed") + "\n"}, ed: []string{"ed"}},
		"both":                       {own: []string{"a"}, remote: "sign-verify=ed25519\nverification-ed25519-key=" + pub("ed") + "\n", gpg: []string{"by a"}, ed: []string{"ed"}, want: accepted},
		"both, OpenPGP lacks":        {own: []string{"a"}, remote: "sign-verify=ed25519\nverification-ed25519-key=" + pub("ed") + "\n", ed: []string{"ed"}},
		"both, ed25519 lacks":        {own: []string{"a"}, remote: "sign-verify=ed25519\nverification-ed25519-key=" + pub("ed") + "\n", gpg: []string{"by a"}},
	}
	all := slices.Collect(maps.Keys(w.keys))
	good := []string{"by a", "by b", "by rsa", "sha1", "sha512", "text", "not expired", "by sub", "b and a in one", "future"}
	for name := range w.sigs {
		list["all keys, "+name] = scene{own: all, gpg: []string{name}, want: slices.Contains(good, name)}
	}
	return list
}

// meta returns detached metadata with a scene's signatures; nil for none.
func (w *world) meta(t *testing.T, s *scene) []byte {
	t.Helper()
	var entries []gvariant.Entry
	add := func(key string, sigs [][]byte) {
		if sigs != nil {
			data := gvariant.AppendArray(nil, 1, len(sigs), func(b []byte, i int) []byte { return append(b, sigs[i]...) })
			entries = append(entries, gvariant.Entry{Key: key, Value: gvariant.Variant{Type: "aay", Data: data}})
		}
	}
	var gpg, ed [][]byte
	if s.gpg != nil {
		gpg = [][]byte{}
	}
	for _, name := range s.gpg {
		gpg = append(gpg, w.sigs[name](t))
	}
	for _, name := range s.ed {
		ed = append(ed, opensslSign(t, w.ed[name], w.commit))
	}
	add("ostree.gpgsigs", gpg)
	add("ostree.sign.ed25519", ed)
	if entries == nil {
		return nil
	}
	return gvariant.AppendDict(nil, entries)
}

// stage makes the files of a scene in a directory: the repository with the remote, and the source that it pulls from.
func (w *world) stage(t *testing.T, s *scene, dir string, meta []byte) {
	t.Helper()
	run(t, "cp", "-a", w.repo, filepath.Join(dir, "src"))
	if meta != nil {
		name := filepath.Join(dir, "src/objects", objectstore.LoosePath(w.sum, objectstore.TypeCommitMeta))
		testenv.Must(t, os.WriteFile(name, meta, 0o644))
	}
	testenv.Must(t, os.Mkdir(filepath.Join(dir, "ostree"), 0o755))
	run(t, "ostree", "--repo="+filepath.Join(dir, "ostree/repo"), "init", "--mode=archive")
	config := filepath.Join(dir, "ostree/repo/config")
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	testenv.Must(t, err)
	_, err = fmt.Fprintf(f, "\n[remote \"o\"]\nurl=file:///src\n%s", s.remote)
	testenv.Must(t, err)
	testenv.Must(t, f.Close())
	if len(s.own) > 0 {
		var keys []byte
		for _, name := range s.own {
			keys = append(keys, w.gpg.export(name)...)
		}
		testenv.Must(t, os.WriteFile(filepath.Join(dir, "ostree/repo/o.trustedkeys.gpg"), keys, 0o644))
	}
	for name, text := range s.files {
		name = filepath.Join(dir, name)
		testenv.Must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		testenv.Must(t, os.WriteFile(name, []byte(text), 0o644))
	}
}

// pull lays the directory upper in dir over a release's root, and has its ostree pull from the remote there. It reports
// whether ostree accepts the commit.
func pull(t *testing.T, root, dir string) (bool, string) {
	t.Helper()
	for _, sub := range []string{"work", "merged", "upper/proc", "upper/dev", "upper/tmp", "upper/root", "upper/etc", "upper/usr/share/ostree/trusted.gpg.d"} {
		testenv.Must(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "upper/etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644))
	const script = `set -e
cd "$2"
mount -t overlay -o "lowerdir=$1,upperdir=upper,workdir=work" overlay merged
cd merged
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs tmp
chroot . ostree --version >/dev/null
echo runs
exec chroot . ostree --repo=/ostree/repo pull o os`
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", script, "sh", root, dir)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	text, ok := strings.CutPrefix(string(out), "runs\n")
	if !ok {
		t.Fatalf("run ostree: %v\n%s", err, out)
	}
	return err == nil, text
}

// TestAgrees: this program and ostree of all releases accept and refuse the same.
func TestAgrees(t *testing.T) {
	testenv.SkipShort(t, "makes keys, and runs ostree some hundred times")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	for _, tool := range []string{"ostree", "gpg", "openssl", "unshare"} {
		testenv.NeedsTool(t, tool)
	}
	w := newWorld(t)
	roots := make(map[ostreehost.Release]string)
	for _, r := range ostreehost.Releases {
		root, err := ostreehost.Rootfs(t.Context(), t.Output(), r)
		testenv.Must(t, err)
		roots[r] = root
	}
	for name, s := range w.scenes() {
		t.Run(name, func(t *testing.T) {
			meta := w.meta(t, &s)
			dir := t.TempDir()
			w.stage(t, &s, dir, meta)
			host := commitsig.Host{Root: os.DirFS(dir), Repo: os.DirFS(filepath.Join(dir, "ostree/repo"))}
			var v *commitsig.Verdict
			remote, err := commitsig.Load(host, "o")
			if err == nil {
				v, err = remote.Verify(w.commit, meta, time.Now())
			}
			if (err == nil) != s.want {
				t.Errorf("accepted: got %t (%+v, %v), want %t", err == nil, v, err, s.want)
			}
			t.Logf("%+v, %v", v, err)
			if strings.Contains(s.remote, "sign-verify") {
				return // Debian's ostree is built without ed25519
			}
			for _, r := range ostreehost.Releases {
				dir := t.TempDir()
				upper := filepath.Join(dir, "upper")
				testenv.Must(t, os.Mkdir(upper, 0o755))
				w.stage(t, &s, upper, meta)
				got, out := pull(t, roots[r], dir)
				if got != s.want {
					t.Errorf("ostree of %s accepts it: got %t, want %t\n%s", r, got, s.want, out)
				}
			}
		})
	}
}
