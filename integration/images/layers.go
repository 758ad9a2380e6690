package images

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// applets are busybox's commands in images without other tools.
var applets = []string{
	"sh", "ls", "cat", "cp", "mv", "rm", "mkdir", "rmdir", "ln", "stat", "find", "sleep", "echo", "touch", "chmod", "chown",
	"sync", "true", "false", "test", "id", "sha256sum", "dd", "df", "mount", "env", "printf", "seq", "wc", "sort", "head",
	"tail", "grep", "readlink", "od", "date", "uname", "hostname", "ps", "kill", "du", "cmp", "mknod", "tee",
}

// addBusybox adds busybox's commands, and other files that containers need.
func addBusybox(l *layerWriter) {
	for _, name := range applets {
		if name == "sh" || name == "cat" {
			l.link("./bin/"+name, "./bin/busybox")
			continue
		}
		l.symlink("./bin/"+name, "busybox")
	}
	l.file("./etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
	l.file("./etc/group", "root:x:0:\nnogroup:x:65534:\n")
	l.dir("./tmp", mode(0o1777))
}

// appLayers are the layers of an application on base:1.
var appLayers = []func(*layerWriter){
	func(l *layerWriter) {
		l.dir("srv")
		l.dir("srv/app")
		l.file("srv/app/main.py", "import json, numpy, config\nprint(json.dumps({'sum': int(numpy.arange(10).sum()), 'name': config.NAME}))\n")
		l.file("srv/app/config.py", "NAME = 'first'\n")
		for i := range 40 {
			l.file(fmt.Sprintf("srv/app/data%02d.txt", i), strings.Repeat(fmt.Sprintf("line %d of the data\n", i), 100+i))
		}
	},
	func(l *layerWriter) {
		l.file("srv/app/config.py", "NAME = 'second'\n", later(time.Hour))
		l.whiteout("srv/app/data00.txt")
		l.whiteout("usr/share/perl")
		l.file("etc/motd", "an application\n")
	},
}

// smallLayers returns n layers of an application: each has a directory of its own with 40 sources and a compressed file,
// 640 KB together. No two have a file in common, nor layers of images with another n.
func smallLayers(n int) []func(*layerWriter) {
	layers := make([]func(*layerWriter), n)
	for i := range layers {
		layers[i] = func(l *layerWriter) {
			dir := fmt.Sprintf("srv/small-%d-%d", n, i)
			l.dir("srv")
			l.dir(dir)
			for k := range 40 {
				l.file(fmt.Sprintf("%s/source%02d.py", dir, k), strings.Repeat(fmt.Sprintf("print('line %d of %s')\n", k, dir), 20*(k+1)))
			}
			r := rand.NewChaCha8([32]byte{byte(n), byte(i)})
			l.stream(dir+"/data.bin", io.LimitReader(r, 80_000), 80_000)
		}
	}
	return layers
}

// changeLayers change content of lower layers. The lowest makes the tree that the others change. The root file system
// below has /usr/share/zoneinfo, /etc and busybox.
var changeLayers = []func(*layerWriter){
	func(l *layerWriter) {
		for _, dir := range []string{
			"data", "data/opaque", "data/opaque/sub", "data/late-opaque", "data/dir-to-file", "data/dir-to-link",
			"data/deleted", "data/deleted/deep", "data/recreated", "data/modes", "data/recreated/old-sub",
			"data/merged", "data/hidden-parent", "data/hidden-parent/child",
		} {
			l.dir(dir)
		}
		for _, name := range []string{
			"data/opaque/below", "data/opaque/sub/below", "data/late-opaque/below", "data/dir-to-file/inside",
			"data/dir-to-link/inside", "data/deleted/one", "data/deleted/deep/two", "data/recreated/old",
			"data/recreated/old-sub/older", "data/file-to-dir", "data/file-to-link", "data/file-to-fifo",
			"data/gone", "data/kept", "data/merged/lower", "data/hidden-parent/child/file",
		} {
			l.file(name, "content of "+name+"\n")
		}
		l.file("data/modes/file", strings.Repeat("the same content\n", 500))
		l.file("data/modes/owner", "the same content, other owner\n")
		l.file("data/modes/time", "the same content, other time\n")
		l.file("data/modes/xattr", "the same content, other attributes\n", xattr("user.first", "1"))
		l.dir("data/modes/dir")
		l.file("data/modes/dir/inside", "stays\n")
		l.symlink("data/link-to-dir", "kept")
		l.symlink("data/link-to-link", "kept")
		l.symlink("data/link-to-file", "kept")
		l.file("data/linked-1", "one file under three names, from the lowest layer\n")
		l.link("data/linked-2", "data/linked-1")
		l.link("data/merged/linked-3", "data/linked-1")
		l.file("data/empty-1", "")
		l.file("data/empty-2", "")
		l.link("data/empty-3", "data/empty-1")
	},
	func(l *layerWriter) { // deletions
		l.dir("data", later(time.Minute))
		l.whiteout("data/gone")
		l.whiteout("data/deleted")
		l.whiteout("usr/share/zoneinfo/Europe/Berlin")
		l.whiteout("usr/share/zoneinfo/UTC")
		l.whiteout("data/linked-2")
		l.whiteout("data/never-was-there")
	},
	func(l *layerWriter) { // opaque directories: with the marker first, and after the new entries
		l.dir("data/opaque", mode(0o750), owner(7, 8))
		l.opaque("data/opaque")
		l.file("data/opaque/new", "only this is left\n")
		l.dir("data/late-opaque")
		l.file("data/late-opaque/new", "only this is left, the marker comes late\n")
		l.opaque("data/late-opaque")
		l.dir("usr/share/zoneinfo/America")
		l.opaque("usr/share/zoneinfo/America")
		l.file("usr/share/zoneinfo/America/README", "the others are hidden\n")
	},
	func(l *layerWriter) { // replaced types
		l.file("data/dir-to-file", "a file now\n")
		l.symlink("data/dir-to-link", "kept")
		l.dir("data/file-to-dir")
		l.file("data/file-to-dir/inside", "a directory now\n")
		l.symlink("data/file-to-link", "merged/lower")
		l.node(tar.TypeFifo, "data/file-to-fifo", 0, 0)
		l.dir("data/link-to-dir")
		l.file("data/link-to-dir/inside", "a directory now\n")
		l.symlink("data/link-to-link", "opaque")
		l.file("data/link-to-file", "a file now\n")
		l.dir("data/recreated", mode(0o700))
		l.opaque("data/recreated")
		l.file("data/recreated/new", "made anew\n")
	},
	func(l *layerWriter) { // attributes only
		l.file("data/modes/file", strings.Repeat("the same content\n", 500), mode(0o600))
		l.file("data/modes/owner", "the same content, other owner\n", owner(1000, 1001))
		l.file("data/modes/time", "the same content, other time\n", later(1500*time.Millisecond))
		l.file("data/modes/xattr", "the same content, other attributes\n", xattr("user.second", "2"))
		l.dir("data/modes/dir", mode(0o1777), owner(3, 4), later(time.Hour), xattr("user.dir", "yes"))
	},
	func(*layerWriter) {}, // nothing
	func(l *layerWriter) { // hard links in one layer, parents without an entry, a directory after its content
		l.file("data/merged/upper-1", strings.Repeat("linked in the uppermost layer\n", 300), mode(0o640))
		l.link("data/merged/upper-2", "data/merged/upper-1")
		l.link("data/link-to-dir/upper-3", "data/merged/upper-1")
		l.file("data/no/entry/for/parents", "made by the applier\n")
		l.file("data/after/inside", "before its directory\n")
		l.dir("data/after", mode(0o711), owner(5, 6))
		l.file("data/hidden-parent/child/other", "a parent that only a lower layer has an entry for\n")
		l.file("data/kept", "content of data/kept\n") // unchanged
	},
}

// capability returns the value of security.capability, version 2, with the given permitted and effective capabilities.
func capability(permitted uint32) string {
	b := make([]byte, 20)
	binary.LittleEndian.PutUint32(b[0:], 0x02000001)
	binary.LittleEndian.PutUint32(b[4:], permitted)
	return string(b)
}

// oddLayers contain every kind of file. GNU's own sparse format is left out because containerd refuses it.
var oddLayers = []func(*layerWriter){
	oddFiles,
	func(l *layerWriter) { l.gnuTar(sparseFile("odd/sparse"), "--format=pax", "--sparse") },
}

func oddFiles(l *layerWriter) {
	exact := time.Date(2031, 7, 9, 1, 2, 3, 123456789, time.UTC)
	l.dir("odd", mtime(exact))
	l.file("odd/capability", "#!/bin/sh\nexec /bin/true\n", mode(0o755), xattr("security.capability", capability(1<<10|1<<13)))
	l.file("odd/setuid", "#!/bin/sh\n", mode(0o4755))
	l.file("odd/setgid", "#!/bin/sh\n", mode(0o2755), owner(0, 42))
	l.file("odd/no-permissions", "secret\n", mode(0))
	l.file("odd/everything", "x\n", mode(0o7777))
	l.dir("odd/sticky", mode(0o1777))
	l.dir("odd/setgid-dir", mode(0o2775), owner(0, 50))
	l.file("odd/owned", "of others\n", owner(1234, 5678))
	l.file("odd/big-ids", "of users above 65535\n", owner(165536, 4000000000))
	l.symlink("odd/link-owned", "owned", owner(100000, 100001), mtime(exact))
	l.symlink("odd/dangling", "/no/such/file")
	l.symlink("odd/absolute", "/odd/owned")
	l.symlink("odd/long-link", strings.Repeat("long/", 600)+"target")
	l.node(tar.TypeChar, "odd/char", 1, 3, mode(0o666))
	l.node(tar.TypeChar, "odd/char-large", 240, 70000, mode(0o600), owner(1, 2))
	l.node(tar.TypeBlock, "odd/block", 7, 1, mode(0o660), owner(0, 6))
	l.node(tar.TypeFifo, "odd/fifo", 0, 0, mode(0o620), later(time.Hour))

	l.file("odd/linked-a", "one file, four names\n", mode(0o604), xattr("user.linked", "yes"))
	l.dir("odd/elsewhere")
	l.link("odd/linked-b", "odd/linked-a")
	l.link("odd/elsewhere/linked-c", "odd/linked-a")
	l.link("odd/elsewhere/linked-d", "odd/linked-b")
	l.node(tar.TypeFifo, "odd/fifo-linked-a", 0, 0)
	l.link("odd/fifo-linked-b", "odd/fifo-linked-a")
	l.symlink("odd/symlink-linked-a", "owned")
	l.link("odd/symlink-linked-b", "odd/symlink-linked-a")

	l.file("odd/empty-a", "")
	l.file("odd/empty-b", "", mode(0o600))
	l.file("odd/empty-c", "", owner(9, 9), later(time.Second))
	l.file("odd/same-a", strings.Repeat("equal content, equal everything\n", 200))
	l.file("odd/same-b", strings.Repeat("equal content, equal everything\n", 200))
	l.file("odd/same-other-time", strings.Repeat("equal content, equal everything\n", 200), mtime(exact))
	l.file("odd/same-other-mode", strings.Repeat("equal content, equal everything\n", 200), mode(0o600))
	l.file("odd/time-nanoseconds", "exact\n", mtime(exact))
	l.file("odd/time-zero", "1970\n", mtime(time.Unix(0, 0)))
	l.file("odd/time-before-1970", "1950\n", mtime(time.Unix(-600000000, 0)))
	l.file("odd/time-far", "2100\n", mtime(time.Date(2100, 1, 1, 0, 0, 0, 1, time.UTC)))
	l.file("odd/one-byte", "x")

	l.file("odd/"+strings.Repeat("n", 255), "the longest name\n")
	l.file("odd/"+strings.Repeat("ü", 127), "the longest name in two-byte letters\n")
	long := "odd/deep"
	l.dir(long)
	for i := range 12 {
		long += "/" + strings.Repeat(string(rune('a'+i)), 200)
		l.dir(long, mode(0o711))
	}
	l.file(long+"/bottom", "at the end of a long path\n")
	for _, name := range []string{"Grüße", "日本語", "sp ace", "new\nline", "tab\t", "quote'\"", "back\\slash", "-dash", "*", "a:b,c=d", "latin1-\xe9", "\u0065\u0301", "é"} {
		l.file("odd/names/"+name, "named "+name+"\n")
	}
	l.file("odd/.whale", "not a whiteout\n")
	l.file("odd/xattrs", "with attributes\n", xattr("user.one", "1"), xattr("user.binary", "\x00\x01\xff"),
		xattr("user.long", strings.Repeat("v", 1000)), xattr("user.ünicode", "ü"), xattr("trusted.test", "t"))
	l.dir("odd/xattrs-dir", xattr("user.dir", "1"), xattr("trusted.dir", "2"))

	r := rand.NewChaCha8([32]byte{1})
	l.stream("odd/large-random", io.LimitReader(r, 24<<20), 24<<20, mode(0o444))
	l.stream("odd/large-zero", io.LimitReader(zeros{}, 64<<20), 64<<20)
	l.stream("odd/large-zero-odd-size", io.LimitReader(zeros{}, 8<<20+1), 8<<20+1, mode(0o640))
}

// sparseFile returns a function that makes a file with holes below dir.
func sparseFile(name string) func(dir string) error {
	return func(dir string) error {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		for i := range int64(5) {
			if _, err := f.WriteAt(bytes.Repeat([]byte{byte('a' + i)}, 5000), i*3<<20); err != nil {
				return err
			}
		}
		if err := f.Truncate(20 << 20); err != nil {
			return err
		}
		return f.Close()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
