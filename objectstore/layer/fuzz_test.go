package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// FuzzImport imports anything. The result is a layer, whose checkout matches its image, or an error that blames the
// tar.
func FuzzImport(f *testing.F) {
	testenv.NeedsRoot(f)
	for _, tt := range tarCases() {
		b := tt.raw
		if b == nil {
			b = makeTar(f, tt.entries...)
		}
		if len(b) < 1<<20 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = withChecksums(b)
		if size := tarContent(b); size > 8<<20 {
			t.Skip("sparse files would fill the disk") //nolint:forbidigo // the input is rejected, whatever the machine
		}
		root := testenv.MemoryDir(t)
		dir, err := atfs.Open(root)
		testenv.Must(t, err)
		defer dir.Close()
		testenv.Must(t, dir.Mkdir("repo", 0o700))
		repoDir, err := dir.OpenDir("repo")
		testenv.Must(t, err)
		defer repoDir.Close()
		repo, err := objectstore.Create(repoDir, objectstore.ModeBare)
		testenv.Must(t, err)
		defer repo.Close()
		s, err := Open(dir, repo, Options{Workers: 1, MaxEntries: 10_000})
		testenv.Must(t, err)
		defer s.Close()

		h, err := s.Import(t.Context(), bytes.NewReader(b), ImportOptions{})
		if err != nil {
			// ENOSPC: ext4 has no room for extended attributes larger than a block.
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("Import: got error %v, want one that is %v", err, ErrInvalid)
			}
			wantNoRefs(t, s)
			return
		}
		testenv.Must(t, h.Release())
		if report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{Workers: 1}); err != nil || len(report.Problems) > 0 {
			t.Fatalf("fsck: %v, %v", report, err)
		}
		name, _, err := s.Checkout(t.Context(), []objectstore.Checksum{h.ID})
		switch {
		case errors.Is(err, errNoLinkTarget), errors.Is(err, unix.ENOSPC):
			return
		case err != nil:
			t.Fatalf("Checkout: %v", err)
		}
		testenv.Must(t, s.VerifyCheckout(t.Context(), name, []objectstore.Checksum{h.ID}))
		testenv.Must(t, s.Prove(t.Context(), h.ID))
		image, _, err := s.resolved(t.Context(), h.ID, nil, true)
		testenv.Must(t, err)
		d, err := dir.OpenDir(name)
		testenv.Must(t, err)
		checkOutIs(t, d, image)
	})
}

// withChecksums gives each block that may be a header the checksum it needs.
func withChecksums(b []byte) []byte {
	b = slices.Clone(b)
	for h := range slices.Chunk(b, 512) {
		if len(h) < 512 || !bytes.HasPrefix(h[257:], []byte("ustar")) {
			continue
		}
		sum := 8 * int(' ')
		for i, c := range h {
			if i < 148 || i >= 156 {
				sum += int(c)
			}
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
	return b
}

// tarContent adds up the sizes of a tar's files.
func tarContent(b []byte) (size int64) {
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err != nil {
			return size
		}
		if size += h.Size; size > 1<<40 || size < 0 {
			return 1 << 40
		}
	}
}

// checkOutIs compares names, types, owners and modes of a directory with those of an image, and closes it.
func checkOutIs(t *testing.T, d *atfs.Dir, n *composefs.Inode) {
	t.Helper()
	defer d.Close()
	names, err := d.ReadNames()
	testenv.Must(t, err)
	slices.Sort(names)
	var want []string
	for _, e := range n.Entries {
		want = append(want, e.Name)
	}
	if !slices.Equal(names, want) {
		t.Fatalf("%s: got names %q, want %q", d.Path(), names, want)
	}
	for _, e := range n.Entries {
		st, err := d.Lstat(e.Name)
		testenv.Must(t, err)
		if _, link := external(e.Inode); link {
			continue
		}
		if st.Mode != e.Inode.Mode || st.Uid != e.Inode.UID || st.Gid != e.Inode.GID || st.Mtim != e.Inode.Mtime && !e.Inode.IsDir() {
			t.Fatalf("%s/%s: got %o %d:%d %v, want %o %d:%d %v", d.Path(), e.Name, st.Mode, st.Uid, st.Gid, st.Mtim, e.Inode.Mode, e.Inode.UID, e.Inode.GID, e.Inode.Mtime)
		}
		if e.Inode.IsDir() {
			sub, err := d.OpenDir(e.Name)
			testenv.Must(t, err)
			checkOutIs(t, sub, e.Inode)
		}
	}
}

// FuzzNormalACL compares with the kernel: normalACL's result is what the kernel returns from a file of that mode, and
// both reject the same ACLs.
func FuzzNormalACL(f *testing.F) {
	for _, v := range []string{"", acl(), userACL(5, 7, 7, 7, 7), userACL(noID, 7, 7, 7, 7), userACL(5, 8, 0, 0, 0), acl(aclUserObj, 7, noID), acl(aclUserObj, 7, noID, aclGroupObj, 5, 0, aclOther, 0, 9), acl(aclUserObj, 7, noID, aclGroupObj, 5, noID, aclMask, 5, noID, aclOther, 0, noID), "\x01\x00\x00\x00", "\x02\x00\x00\x00\x01"} {
		f.Add([]byte(v), uint16(0o640), false)
		f.Add([]byte(v), uint16(0o755), true)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, v []byte, perm uint16, isDir bool) {
		mode := uint32(perm&0o7777) | unix.S_IFREG
		name := aclAccess
		p := filepath.Join(dir, "file")
		if isDir {
			mode = uint32(perm&0o7777) | unix.S_IFDIR
			name = aclDefault
			p = filepath.Join(dir, "dir")
			testenv.Must(t, os.Mkdir(p, 0o700))
		} else {
			testenv.Must(t, os.WriteFile(p, nil, 0o600))
		}
		defer os.Remove(p)
		got, err := normalACL(name, v, mode)
		kerr := unix.Lsetxattr(p, name, v, 0)
		if errors.Is(kerr, unix.ENOTSUP) {
			testenv.Unsupported(t, "needs ACLs in the temporary directory")
		}
		if errors.Is(kerr, unix.ENOSPC) || errors.Is(kerr, unix.E2BIG) || errors.Is(kerr, unix.ERANGE) {
			return
		}
		if (err != nil) != (kerr != nil) {
			t.Fatalf("ACL %x: got error %v, the kernel's is %v", v, err, kerr)
		}
		if err != nil {
			return
		}
		testenv.Must(t, unix.Chmod(p, mode&0o7777))
		buf := make([]byte, 64<<10)
		n, kerr := unix.Lgetxattr(p, name, buf)
		if errors.Is(kerr, unix.ENODATA) {
			n = 0
		} else {
			testenv.Must(t, kerr)
		}
		if !bytes.Equal(got, buf[:n]) {
			t.Fatalf("ACL %x with mode %o: got %x, the kernel has %x", v, mode, got, buf[:n])
		}
		if again, err := normalACL(name, got, mode); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("ACL %x with mode %o: normal form %x becomes %x (%v)", v, mode, got, again, err)
		}
	})
}

// FuzzNormalCaps compares with the kernel in the same way.
func FuzzNormalCaps(f *testing.F) {
	for _, v := range []string{"", netRaw, caps(capsRevision3, 1, 0, 0, 0, 0), caps(capsRevision3|capsEffective, 1, 0, 0, 0, 1000), caps(capsRevision3, 1, 0, 0, 0, noID), caps(0x01000000, 1, 0)} {
		f.Add([]byte(v))
	}
	p := filepath.Join(f.TempDir(), "file")
	f.Fuzz(func(t *testing.T, v []byte) {
		testenv.Must(t, os.WriteFile(p, nil, 0o600))
		defer os.Remove(p)
		got, err := normalCaps(v)
		if len(v) == 0 {
			if got != nil || err != nil {
				t.Fatalf("no capabilities: got %x (%v)", got, err)
			}
			return
		}
		kerr := unix.Lsetxattr(p, xattrCaps, v, 0)
		if errors.Is(kerr, unix.ENOTSUP) || errors.Is(kerr, unix.EPERM) {
			testenv.Unsupported(t, "needs file capabilities in the temporary directory: %v", kerr)
		}
		if (err != nil) != (kerr != nil) {
			t.Fatalf("capabilities %x: got error %v, the kernel's is %v", v, err, kerr)
		}
		if err != nil {
			return
		}
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(p, xattrCaps, buf)
		testenv.Must(t, err)
		if !bytes.Equal(got, buf[:n]) {
			t.Fatalf("capabilities %x: got %x, the kernel has %x", v, got, buf[:n])
		}
	})
}

func FuzzSplitName(f *testing.F) {
	for _, name := range []string{"", "/", ".", "./", "a", "/a/b", "a//b/.", "../a", "a/..", "a/...", name255, name256, longPath + name255, "a\x00b", ".wh.a", ".wh." + name255, ".wh." + name256, ".wh.", "\xff"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		parent, base, err := splitName(name)
		dir := components(parent)
		if err != nil {
			if parent != "" || base != "" {
				t.Fatalf("%q: got %q, %q with error %v", name, dir, base, err)
			}
			return
		}
		if base == "" && len(dir) > 0 {
			t.Fatalf("%q: got directories %q and no name", name, dir)
		}
		if base == "" {
			return
		}
		parts := append(slices.Clone(dir), base)
		parts[len(parts)-1] = strings.TrimPrefix(base, ".wh.")
		for i, p := range parts {
			if p == "" && i < len(dir) || p == "." || p == ".." || len(p) > maxName || strings.ContainsAny(p, "/\x00") {
				t.Fatalf("%q: got component %q", name, p)
			}
		}
		parts[len(parts)-1] = base
		if got, want := strings.Join(parts, "/"), strings.TrimPrefix(path.Clean("/"+name), "/"); got != want {
			t.Fatalf("%q: got %q, want %q", name, got, want)
		}
	})
}

// FuzzDigestRef makes ref names from digests as a manifest may have them.
func FuzzDigestRef(f *testing.F) {
	for _, s := range []string{
		string(someBlob), "sha256:" + strings.Repeat("0", 64), "sha512:" + strings.Repeat("0", 128), "sha256:../../x", "", ":", "sha256:",
		"sha256:" + strings.Repeat("A", 64), "../x:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 63) + "\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := digestRef(refBlob, digest.Digest(s))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: got %v, want %v", s, err, ErrInvalid)
			}
			return
		}
		name, ok := strings.CutPrefix(ref, refBlob)
		if _, err := objectstore.ParseChecksum(name); !ok || err != nil || "sha256:"+name != s || objectstore.ValidateRef(ref) != nil {
			t.Fatalf("%q becomes ref %q", s, ref)
		}
	})
}

// FuzzPayloadSum reads paths of objects as a damaged layer image may have them.
func FuzzPayloadSum(f *testing.F) {
	for _, s := range []string{"ab/" + strings.Repeat("0", 62) + ".file", "../" + strings.Repeat("0", 61) + ".file", "ab/" + strings.Repeat("0", 62), "", ".file"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sum, err := PayloadSum(s)
		if err != nil {
			if !errors.Is(err, objectstore.ErrCorrupt) {
				t.Fatalf("%q: got %v, want %v", s, err, objectstore.ErrCorrupt)
			}
			return
		}
		if got := objectstore.LoosePath(sum, objectstore.TypeFile); got != s {
			t.Fatalf("%q is taken for %q", s, got)
		}
	})
}
