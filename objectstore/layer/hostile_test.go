package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// outside, in names and targets of a tarCase, stands for a directory outside the store, without its leading slash.
const outside = "{outside}"

// A tarCase is a tar and the expected result.
type tarCase struct {
	name    string
	entries []tarEntry
	raw     []byte // instead of entries
	opts    Options

	tree     []string // the checkout, in the form of treeLines
	err      error    // of Import
	entry    string   // the entry that err names; "" if it names none
	checkout error    // of Checkout
	unlisted bool     // the checkout's paths are too long to list

	// differs is the reason why containerd's applier treats the tar differently. Empty: it does not.
	differs string
}

const (
	whyError    = "we refuse what the applier bends into shape"
	whyLenient  = "the applier fails"
	whyOpaque   = "the applier leaves a plain directory, through which what was removed shows"
	whyResolved = "the applier has no hard links to lower layers"
	whyOwner    = "we drop what only the host may set"
)

var (
	name255 = strings.Repeat("n", 255)
	name256 = strings.Repeat("n", 256)

	// Through l a name can be longer than any in a tar.
	longPath = strings.Repeat(name255+"/", 15)
)

func tarCases() []tarCase {
	return []tarCase{
		// Names.
		{name: "dot-dot", entries: []tarEntry{file("../"+outside+"/planted", "inside")}, tree: []string{"tmp: dir 755", outside + ": dir 755", outside + `/planted: file 644 "inside"`}},
		{name: "dot and dot-dot", entries: []tarEntry{dir("./.."), dir("./../etc"), file("./../etc/conf", "x"), file("./../../top", "y")}, tree: []string{"etc: dir 755", `etc/conf: file 644 "x"`, `top: file 644 "y"`}},
		{name: "dot-dot inside", entries: []tarEntry{file("a/../../x", "inside")}, tree: []string{`x: file 644 "inside"`}},
		{name: "dot-dot after a link", entries: []tarEntry{dir("d/e"), symlink("l", "d/e"), file("l/../x", "inside")}, tree: []string{"d: dir 755", "d/e: dir 755", `l: link "d/e"`, `x: file 644 "inside"`}},
		{name: "whiteout with dot-dot", entries: []tarEntry{whiteout("../d", "a")}, tree: []string{"d: dir 755", "d/a: whiteout"}},
		{name: "dot-dot alone", entries: []tarEntry{dir("..", mode(0o700), owner(7, 7)), file("../..", "x")}, tree: []string{}},
		{name: "absolute name", entries: []tarEntry{file("/"+outside+"/planted", "inside")}, tree: []string{"tmp: dir 755", outside + ": dir 755", outside + `/planted: file 644 "inside"`}},
		{name: "slashes and dots", entries: []tarEntry{file(".//a/./b", "x")}, tree: []string{"a: dir 755", `a/b: file 644 "x"`}},
		{name: "root entry", entries: []tarEntry{dir("./", mode(0o700), owner(7, 7), withXattr("user.a", "b")), file("a", "x")}, tree: []string{`a: file 644 "x"`}},
		{name: "root entry of a file", raw: slices.Concat(rawPAX("path", "/"), rawHeader('0', "x", 0, nil), endOfTar), tree: []string{}},
		{name: "name of 255 bytes", entries: []tarEntry{file(name255, "x")}, tree: []string{name255 + `: file 644 "x"`}},
		{name: "name of 256 bytes", entries: []tarEntry{file(name256, "x")}, err: errNameLong, entry: name256},
		{name: "directory name of 256 bytes", entries: []tarEntry{file(name256+"/x", "x")}, err: errNameLong, entry: name256 + "/x"},
		{name: "name of 256 bytes in a link target", entries: []tarEntry{symlink("l", name256), file("l/x", "x")}, err: errNameLong, entry: "l/x"},
		{name: "path of 4096 bytes", entries: []tarEntry{file(longPath+name255+"x", "x")}, err: errNameLong, entry: longPath + name255 + "x"},
		{name: "path of 4095 bytes through a link", entries: []tarEntry{symlink("l", longPath), file("l/"+name255, "x")}, unlisted: true, differs: "the applier needs a path that is short from the root of the host"},
		{name: "path of 4096 bytes through a link", entries: []tarEntry{symlink("l", "x/"+longPath), file("l/"+name255, "x")}, err: errNameLong, entry: "l/" + name255},
		{name: "not UTF-8", entries: []tarEntry{file("\xff\xfe", "x"), symlink("l", "\xff")}, tree: []string{"\xff\xfe" + `: file 644 "x"`, `l: link "\xff"`}},
		{name: "newline and quotes", entries: []tarEntry{file("a\n\"b", "x")}, tree: []string{"a\n\"b" + `: file 644 "x"`}},
		{name: "NUL in name", raw: slices.Concat(rawPAX("path", "a\x00b"), rawHeader('0', "x", 0, nil), endOfTar), err: tar.ErrHeader},
		{name: "NUL in link", raw: slices.Concat(rawPAX("linkpath", "a\x00b"), rawHeader('2', "x", 0, nil), endOfTar), err: tar.ErrHeader},

		// Symbolic links as parents.
		{name: "parent is a link", entries: []tarEntry{dir("d"), symlink("l", "d"), file("l/f", "x")}, tree: []string{"d: dir 755", `d/f: file 644 "x"`, `l: link "d"`}},
		{name: "parent is a link to outside", entries: []tarEntry{symlink("l", "/"+outside), file("l/planted", "x")}, tree: []string{"tmp: dir 755", outside + ": dir 755", outside + `/planted: file 644 "x"`, `l: link "/` + outside + `"`}},
		{name: "parent is a link up", entries: []tarEntry{symlink("l", "../../../../../../../../"+outside), file("l/planted", "x")}, tree: []string{"tmp: dir 755", outside + ": dir 755", outside + `/planted: file 644 "x"`, `l: link "../../../../../../../../` + outside + `"`}},
		{name: "parent is a link to the root", entries: []tarEntry{symlink("l", "/"), file("l/f", "x")}, tree: []string{`f: file 644 "x"`, `l: link "/"`}},
		{name: "parent is a link in a link", entries: []tarEntry{dir("a/b"), symlink("a/up", ".."), symlink("l", "a/up/a/b"), file("l/f", "x")}, tree: []string{"a: dir 755", "a/b: dir 755", `a/b/f: file 644 "x"`, `a/up: link ".."`, `l: link "a/up/a/b"`}},
		{name: "parent becomes a file", entries: []tarEntry{file("d/e/x", "x"), file("d/e", "file"), file("d/e/y", "y")}, err: errNotDir, entry: "d/e/y"},
		{name: "link to the parent becomes a file", entries: []tarEntry{dir("a"), symlink("a/l", "."), file("a/l/x", "x"), file("a/l/l", "file"), file("a/l/y", "y")}, err: errNotDir, entry: "a/l/y"},
		{name: "parent is a loop", entries: []tarEntry{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}, err: errLinkLoop, entry: "a/f"},
		{name: "parent is a link to itself", entries: []tarEntry{symlink("a", "a"), file("a/f", "x")}, err: errLinkLoop, entry: "a/f"},
		{name: "parent is a link that grows", entries: []tarEntry{symlink("a", strings.Repeat("a/", 2000)), file("a/f", "x")}, err: errLinkLoop, entry: "a/f"},
		{name: "parent is a dangling link", entries: []tarEntry{symlink("l", "d/e"), file("l/f", "x")}, tree: []string{"d: dir 755", "d/e: dir 755", `d/e/f: file 644 "x"`, `l: link "d/e"`}},
		{name: "link replaced after use", entries: []tarEntry{symlink("l", "d"), file("l/x", "1"), dir("l"), file("l/y", "2")}, tree: []string{"d: dir 755", `d/x: file 644 "1"`, "l: dir 755", `l/y: file 644 "2"`}},
		{name: "directory replaced by a link", entries: []tarEntry{dir("d", at(when.Add(time.Hour))), file("d/x", "1"), symlink("d", "/"+outside), file("d/planted", "2")}, tree: []string{"tmp: dir 755", outside + ": dir 755", outside + `/planted: file 644 "2"`, `d: link "/` + outside + `"`}},
		{name: "parent is a file", entries: []tarEntry{file("a", "x"), file("a/b", "y")}, err: errNotDir, entry: "a/b"},
		{name: "parent is a fifo", entries: []tarEntry{fifo("a"), file("a/b", "y")}, err: errNotDir, entry: "a/b"},
		{name: "parent is a link to a file", entries: []tarEntry{file("a", "x"), symlink("l", "a"), file("l/b", "y")}, err: errNotDir, entry: "l/b"},
		{name: "empty link", entries: []tarEntry{symlink("l", "")}, err: errSymlink, entry: "l"},
		{name: "link of 4096 bytes", entries: []tarEntry{symlink("l", strings.Repeat("x", 4096))}, err: errSymlink, entry: "l"},

		// Hard links.
		{name: "hard link", entries: []tarEntry{file("a", "x"), hardlink("b", "a"), hardlink("d/c", "/b")}, tree: []string{`a: file 644 "x" = a`, `b: file 644 "x" = a`, "d: dir 755", `d/c: file 644 "x" = a`}},
		{name: "hard link up", entries: []tarEntry{hardlink("h", "../../"+outside+"/planted")}, checkout: errNoLinkTarget},
		{name: "hard link with dot-dot", entries: []tarEntry{file("a", "x"), hardlink("../h", "./../a")}, tree: []string{`a: file 644 "x" = a`, `h: file 644 "x" = a`}},
		{name: "hard link up from a link", entries: []tarEntry{dir("d/e"), file("d/f", "x"), symlink("l", "d/e"), hardlink("h", "l/../f")}, tree: []string{"d: dir 755", "d/e: dir 755", `d/f: file 644 "x" = d/f`, `h: file 644 "x" = d/f`, `l: link "d/e"`}},
		{name: "hard link to dot-dot", entries: []tarEntry{dir("d"), hardlink("h", "d/..")}, err: errLinkDir, entry: "h"},
		{name: "hard link to outside", entries: []tarEntry{hardlink("h", "/"+outside+"/planted")}, checkout: errNoLinkTarget},
		{name: "hard link through a link to outside", entries: []tarEntry{symlink("l", "/"+outside), hardlink("h", "l/planted")}, checkout: errNoLinkTarget},
		{name: "hard link through a link", entries: []tarEntry{symlink("l", "d"), file("d/f", "x"), hardlink("h", "l/f")}, tree: []string{"d: dir 755", `d/f: file 644 "x" = d/f`, `h: file 644 "x" = d/f`, `l: link "d"`}},
		{name: "hard link to a directory", entries: []tarEntry{dir("d"), hardlink("h", "d")}, err: errLinkDir, entry: "h"},
		{name: "hard link to the root", entries: []tarEntry{hardlink("h", "/")}, err: errLinkDir, entry: "h"},
		{name: "hard link to nothing", entries: []tarEntry{hardlink("h", "")}, err: errLinkDir, entry: "h"},
		{name: "hard link to a missing name", entries: []tarEntry{hardlink("h", "no/such")}, checkout: errNoLinkTarget},
		{name: "hard link forwards", entries: []tarEntry{hardlink("h", "a"), file("a", "x")}, checkout: errNoLinkTarget},
		{name: "hard link to a link", entries: []tarEntry{symlink("l", "/"+outside+"/planted"), hardlink("h", "l")}, tree: []string{`h: link "/` + outside + `/planted" = h`, `l: link "/` + outside + `/planted" = h`}},
		{name: "hard link to itself", entries: []tarEntry{file("a", "x"), hardlink("a", "a")}, tree: []string{`a: file 644 "x"`}, differs: whyLenient},
		{name: "hard link chain", entries: []tarEntry{file("a", "x"), hardlink("b", "a"), hardlink("c", "b"), hardlink("d", "c")}, tree: []string{`a: file 644 "x" = a`, `b: file 644 "x" = a`, `c: file 644 "x" = a`, `d: file 644 "x" = a`}},
		{name: "hard link over its target's directory", entries: []tarEntry{file("d/f", "x"), hardlink("d", "d/f")}, tree: []string{`d: file 644 "x"`}, differs: whyLenient},
		{name: "hard link through a file", entries: []tarEntry{file("a", "x"), hardlink("h", "a/b")}, err: errNotDir, entry: "h"},
		{name: "hard link in a loop", entries: []tarEntry{symlink("a", "a"), hardlink("h", "a/b")}, err: errLinkLoop, entry: "h"},
		{name: "hard link to a whiteout", entries: []tarEntry{whiteout("", "a"), hardlink("h", "a")}, err: errLinkWhiteout, entry: "h", differs: "the applier links the device"},
		{name: "hard link to a replaced file", entries: []tarEntry{file("a", "1"), hardlink("b", "a"), file("a", "2")}, tree: []string{`a: file 644 "2"`, `b: file 644 "1"`}},
		{name: "hard link to an empty file", entries: []tarEntry{file("a", ""), hardlink("b", "a"), file("c", "")}, tree: []string{`a: file 644 "" = a`, `b: file 644 "" = a`, `c: file 644 ""`}},
		{name: "hard link changes attributes", entries: []tarEntry{file("a", "x", mode(0o4755), owner(1, 2)), hardlink("b", "a", mode(0o600), owner(3, 4), at(when.Add(time.Hour)))}, tree: []string{`a: file 600 3:4 "x" = a`, `b: file 600 3:4 "x" = a`}},
		{name: "hard link to a fifo", entries: []tarEntry{fifo("a"), hardlink("b", "a", mode(0o600))}, tree: []string{"a: fifo 600 = a", "b: fifo 600 = a"}},

		// Whiteouts.
		{name: "whiteout", entries: []tarEntry{whiteout("", "a"), whiteout("d", "b")}, tree: []string{"a: whiteout", "d: dir 755", "d/b: whiteout"}},
		{name: "whiteout of a name of 252 bytes", entries: []tarEntry{whiteout("", name255[3:])}, tree: []string{name255[3:] + ": whiteout"}},
		{name: "whiteout of a name of 255 bytes", entries: []tarEntry{whiteout("d", name255)}, tree: []string{"d: dir 755", "d/" + name255 + ": whiteout"}},
		{name: "whiteout of a name of 256 bytes", entries: []tarEntry{whiteout("", name256)}, err: errNameLong, entry: ".wh." + name256},
		{name: "whiteout in a path of 4095 bytes", entries: []tarEntry{symlink("l", longPath), whiteout("l", name255)}, unlisted: true, differs: "the applier needs a path that is short from the root of the host"},
		{name: "directory below a whiteout's name of 259 bytes", entries: []tarEntry{file(".wh."+name255+"/x", "x")}, err: errNameLong, entry: ".wh." + name255 + "/x"},
		{name: "hard link to a whiteout's name of 259 bytes", entries: []tarEntry{hardlink("h", ".wh."+name255)}, err: errNameLong, entry: "h"},
		{name: "whiteout of nothing", entries: []tarEntry{file(".wh.", "")}, err: errWhiteout, entry: ".wh."},
		{name: "whiteout of dot", entries: []tarEntry{file("d/.wh..", "")}, err: errWhiteout, entry: "d/.wh.."},
		{name: "whiteout of dot-dot", entries: []tarEntry{file("d/.wh...", "")}, err: errWhiteout, entry: "d/.wh..."},
		{name: "whiteout of a name with dots", entries: []tarEntry{file(".wh....", "")}, tree: []string{"...: whiteout"}},
		{name: "whiteout through a link to outside", entries: []tarEntry{symlink("l", "/"+outside), whiteout("l", "planted")}, tree: []string{"tmp: dir 755", outside + ": dir 755", outside + "/planted: whiteout", `l: link "/` + outside + `"`}},
		{name: "whiteout twice", entries: []tarEntry{whiteout("", "a"), whiteout("", "a")}, tree: []string{"a: whiteout"}, differs: whyLenient},
		{name: "whiteout with content", entries: []tarEntry{file(".wh.a", "content"), file("b", "x")}, tree: []string{"a: whiteout", `b: file 644 "x"`}},
		{name: "whiteout that is a directory", entries: []tarEntry{dir(".wh.a")}, tree: []string{"a: whiteout"}},
		{name: "aufs bookkeeping", entries: []tarEntry{file(".wh..wh.aufs", ""), file("a", "x")}, tree: []string{`a: file 644 "x"`}, differs: "the applier hides a file called .wh.aufs"},
		{name: "below a whiteout's name", entries: []tarEntry{file(".wh.a/f", "x")}, tree: []string{".wh.a: dir 755", `.wh.a/f: file 644 "x"`}},
		{name: "opaque before content", entries: []tarEntry{dir("d"), file("d/.wh..wh..opq", ""), file("d/f", "x")}, tree: []string{`d: dir 755 trusted.overlay.opaque="y"`, `d/f: file 644 "x"`}},
		{name: "opaque after content", entries: []tarEntry{dir("d"), file("d/f", "x"), file("d/.wh..wh..opq", "")}, tree: []string{`d: dir 755 trusted.overlay.opaque="y"`, `d/f: file 644 "x"`}},
		{name: "opaque without directory", entries: []tarEntry{file("d/.wh..wh..opq", "")}, tree: []string{`d: dir 755 trusted.overlay.opaque="y"`}},
		{name: "opaque root", entries: []tarEntry{file(".wh..wh..opq", ""), file("f", "x")}, tree: []string{`.: dir 755 trusted.overlay.opaque="y"`, `f: file 644 "x"`}},
		{name: "opaque and whiteouts", entries: []tarEntry{dir("d"), file("d/.wh..wh..opq", ""), whiteout("d", "a"), whiteout("d/e", "b"), file("d/f", "x")}, tree: []string{`d: dir 755 trusted.overlay.opaque="y"`, "d/e: dir 755", `d/f: file 644 "x"`}, differs: "the applier's whiteouts are seen in a directory that is not merged"},
		{name: "whiteout then file", entries: []tarEntry{whiteout("", "a"), file("a", "x")}, tree: []string{`a: file 644 "x"`}},
		{name: "whiteout then directory", entries: []tarEntry{whiteout("", "a"), dir("a")}, tree: []string{`a: dir 755 trusted.overlay.opaque="y"`}, differs: whyOpaque},
		{name: "whiteout then content below", entries: []tarEntry{whiteout("", "a"), file("a/b", "x")}, tree: []string{`a: dir 755 trusted.overlay.opaque="y"`, `a/b: file 644 "x"`}, differs: whyLenient},
		{name: "file then whiteout", entries: []tarEntry{file("a", "x"), whiteout("", "a")}, tree: []string{`a: file 644 "x"`}, differs: whyLenient},
		{name: "directory then whiteout", entries: []tarEntry{dir("a"), file("a/f", "x"), whiteout("", "a")}, tree: []string{`a: dir 755 trusted.overlay.opaque="y"`, `a/f: file 644 "x"`}, differs: whyLenient},

		// The same name again.
		{name: "file replaced by directory", entries: []tarEntry{file("a", "x"), dir("a"), file("a/b", "y")}, tree: []string{"a: dir 755", `a/b: file 644 "y"`}},
		{name: "directory replaced by file", entries: []tarEntry{file("a/b/c", "y"), file("a", "x")}, tree: []string{`a: file 644 "x"`}},
		{name: "file twice", entries: []tarEntry{file("a", "1", withXattr("user.a", "1")), file("a", "22", mode(0o600))}, tree: []string{`a: file 600 "22"`}},
		{name: "directory twice", entries: []tarEntry{dir("d", mode(0o700), withXattr("user.a", "1")), file("d/f", "x"), dir("d", owner(1, 2), withXattr("user.b", "2"), at(when.Add(time.Hour)))}, tree: []string{`d: dir 755 1:2 user.a="1" user.b="2"`, `d/f: file 644 "x"`}},
		{name: "directory after content", entries: []tarEntry{file("d/f", "x"), dir("d", mode(0o1777))}, tree: []string{"d: dir 1777", `d/f: file 644 "x"`}},

		// Content and headers.
		{name: "empty stream", raw: []byte{}, tree: []string{}},
		{name: "empty tar", raw: endOfTar, tree: []string{}},
		{name: "no end blocks", raw: slices.Concat(rawHeader('0', "a", 1, nil), pad([]byte("x"))), tree: []string{`a: file 644 "x"`}},
		{name: "size beyond the end", raw: slices.Concat(rawHeader('0', "a", 1000, nil), []byte("xy")), err: io.ErrUnexpectedEOF},
		{name: "large size beyond the end", raw: slices.Concat(rawHeader('0', "a", 5<<20, nil), make([]byte, 3<<20)), err: io.ErrUnexpectedEOF},
		{name: "truncated header", raw: rawHeader('0', "a", 0, nil)[:300], err: io.ErrUnexpectedEOF},
		{name: "garbage header", raw: bytes.Repeat([]byte("garbage!"), 128), err: tar.ErrHeader},
		{name: "bad checksum", raw: slices.Concat(rawHeader('0', "a", 0, nil)[:100], bytes.Repeat([]byte{'7'}, 412), endOfTar), err: tar.ErrHeader},
		{name: "negative size", raw: slices.Concat(rawHeader('0', "a", 0, func(h []byte) { copy(h[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") }), endOfTar), err: tar.ErrHeader},
		{name: "GNU sparse", raw: sparseGNU(nil), tree: []string{fmt.Sprintf(`s: file 644 "10000 bytes %x"`, sha256.Sum256([]byte(sparseContent)))}, differs: whyLenient},
		{name: "PAX sparse", raw: sparsePAX("s", sparseMap), tree: []string{fmt.Sprintf(`s: file 644 "10000 bytes %x"`, sha256.Sum256([]byte(sparseContent)))}},
		{name: "GNU sparse, longer than its data", raw: sparseGNU(func(h []byte) { copy(h[398:], "00000000077") }), err: ErrInvalid},
		{name: "GNU sparse, map of 1 MiB", raw: slices.Concat(sparseGNU(func(h []byte) { h[482] = 1 })[:512], bytes.Repeat(sparseExtension, 2048)), err: ErrInvalid},
		{name: "PAX sparse, map that does not end", raw: sparsePAX("s", "99999999\n"), err: io.ErrUnexpectedEOF},
		{name: "global header", entries: []tarEntry{{&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "x", "uid": "77"}}, ""}, file("a", "x")}, tree: []string{`a: file 644 "x"`}},
		{name: "unknown type", entries: []tarEntry{{&tar.Header{Typeflag: 'Z', Name: "z", ModTime: time.Unix(1, 0)}, ""}}, err: errType, entry: "z"},
		{name: "contiguous file", raw: slices.Concat(rawHeader('7', "c", 0, nil), endOfTar), err: errType, entry: "c"},
		{name: "too many entries", opts: Options{MaxEntries: 2}, entries: []tarEntry{file("a", ""), file("b", ""), file("c", "")}, err: errTooMany, entry: "c", differs: whyError},
		{name: "too many implied directories", opts: Options{MaxEntries: 2}, entries: []tarEntry{file("a/b/c/d", "")}, err: errTooMany, entry: "a/b/c/d", differs: whyError},
		{name: "names that are too long together", opts: Options{MaxEntries: 3}, entries: []tarEntry{file(name255, ""), file("d/"+name255, "")}, err: errTooMuch, entry: "d/" + name255, differs: whyError},
		{name: "targets that are too long together", opts: Options{MaxEntries: 2}, entries: []tarEntry{symlink("a", name255), symlink("b", "x")}, err: errTooMuch, entry: "b", differs: whyError},
		{name: "targets in lower layers that are too long together", opts: Options{MaxEntries: 2}, entries: []tarEntry{hardlink("a", name255), hardlink("b", "x")}, err: errTooMuch, entry: "b"},
		{name: "attributes that are too long together", opts: Options{MaxEntries: 2}, entries: []tarEntry{file("a", "", withXattr("user.a", "1")), file("b", "", withXattr("user.b", name255))}, err: errTooMuch, entry: "b", differs: whyError},
		{name: "attributes of one file from many hard links", entries: []tarEntry{file("a", "", withXattr("user.a", strings.Repeat("x", 40<<10))), hardlink("b", "a", withXattr("user.b", strings.Repeat("x", 40<<10)))}, err: errXattr, entry: "b"},
		{name: "attributes of one directory from many entries", entries: []tarEntry{dir("a", withXattr("user.a", strings.Repeat("x", 40<<10))), dir("a", withXattr("user.b", strings.Repeat("x", 40<<10)))}, err: errXattr, entry: "a"},
		{name: "too many whiteouts", opts: Options{MaxEntries: 1}, entries: []tarEntry{whiteout("", "a"), whiteout("", "b")}, err: errTooMany, entry: ".wh.b", differs: whyError},

		// Owners, modes, devices, times.
		{name: "owner", entries: []tarEntry{file("a", "x", owner(1<<32-2, 65536)), symlinkWith("l", "a", owner(5, 6)), dir("d", owner(7, 8))}, tree: []string{`a: file 644 4294967294:65536 "x"`, `l: link 5:6 "a"`, "d: dir 755 7:8"}},
		{name: "negative owner", entries: []tarEntry{file("a", "x", gnu, owner(-1, 0))}, err: errOwner, entry: "a", differs: whyError},
		{name: "negative group", entries: []tarEntry{file("a", "x", gnu, owner(0, -5))}, err: errOwner, entry: "a", differs: whyError},
		{name: "owner that means none", entries: []tarEntry{file("a", "x", owner(1<<32-1, 7)), file("b", "x", owner(7, 1<<32-1)), dir("d", owner(1<<32-1, 1<<32-1))}, tree: []string{`a: file 644 0:7 "x"`, `b: file 644 7:0 "x"`, "d: dir 755"}},
		{name: "owner that means none, again", entries: []tarEntry{file("a", "x", owner(5, 6)), hardlink("b", "a", owner(1<<32-1, 1<<32-1)), dir("d", owner(7, 8)), dir("d", owner(1<<32-1, 9))}, tree: []string{`a: file 644 5:6 "x" = a`, `b: file 644 5:6 "x" = a`, "d: dir 755 7:9"}},
		{name: "huge owner", entries: []tarEntry{file("a", "x", owner(1<<40, 0))}, err: errOwner, entry: "a", differs: whyError},
		{name: "mode with a type", entries: []tarEntry{file("a", "x", mode(0o120777)), dir("d", mode(0o100644))}, tree: []string{`a: file 777 "x"`, "d: dir 644"}},
		{name: "set-id bits", entries: []tarEntry{file("a", "x", mode(0o6755), owner(1, 2)), dir("d", mode(0o3777), owner(1, 2)), file("e", "", mode(0o4711), owner(9, 9))}, tree: []string{`a: file 6755 1:2 "x"`, "d: dir 3777 1:2", `e: file 4711 9:9 ""`}},
		{name: "below a directory with the set-group-ID bit", entries: []tarEntry{dir("d", mode(0o2755), owner(1, 2)), file("d/e/f", "x")}, tree: []string{"d: dir 2755 1:2", "d/e: dir 755", `d/e/f: file 644 "x"`}, differs: "the applier's implied directories inherit the group"},
		{name: "devices", entries: []tarEntry{device(tar.TypeChar, "c", 1, 3), device(tar.TypeBlock, "b", 259, 70000), fifo("p", mode(0o622), owner(3, 4))}, tree: []string{"c: chr 644 1,3", "b: blk 644 259,70000", "p: fifo 622 3:4"}},
		{name: "largest device", entries: []tarEntry{device(tar.TypeBlock, "b", 4095, 1<<20-1)}, tree: []string{"b: blk 644 4095,1048575"}},
		{name: "device 0:0 is a whiteout", entries: []tarEntry{device(tar.TypeChar, "c", 0, 0)}, tree: []string{"c: whiteout"}},
		{name: "device with major 4096", entries: []tarEntry{device(tar.TypeChar, "c", 4096, 0)}, err: errDevice, entry: "c", differs: "the kernel cuts the number"},
		{name: "device with minor 1<<20", entries: []tarEntry{device(tar.TypeChar, "c", 0, 1<<20)}, err: errDevice, entry: "c", differs: "the kernel cuts the number"},
		{name: "negative device", entries: []tarEntry{device(tar.TypeChar, "c", -1, 0)}, err: errDevice, entry: "c"},
		{name: "time before 1970", entries: []tarEntry{file("a", "x", at(time.Unix(-100, 5)))}, tree: []string{`a: file 644 "x"`}},
		{name: "far-future time", entries: []tarEntry{file("a", "x", at(time.Unix(1<<40, 0))), dir("d", at(time.Unix(1<<40, 0)))}, tree: []string{`a: file 644 "x"`, "d: dir 755"}},

		// Extended attributes.
		{name: "user attributes", entries: []tarEntry{file("a", "x", withXattr("user.b", "2"), withXattr("user.a", "1\x00\xff")), dir("d", withXattr("user.c", "3"))}, tree: []string{`a: file 644 "x" user.a="1\x00\xff" user.b="2"`, `d: dir 755 user.c="3"`}},
		{name: "empty attribute", entries: []tarEntry{file("a", "x", withXattr("user.a", "")), file("b", "x"), file("e", "", withXattr("user.a", "")), dir("d", withXattr("user.a", ""))}, tree: []string{`a: file 644 "x" user.a=""`, `b: file 644 "x"`, `e: file 644 "" user.a=""`, `d: dir 755 user.a=""`}},
		{name: "overlay attributes", entries: []tarEntry{
			dir("d", withXattr("trusted.overlay.opaque", "y"), withXattr("trusted.overlay.redirect", "/etc"), withXattr("trusted.ostree.implicit", "1")),
			file("a", "x", withXattr("trusted.overlay.metacopy", ""), withXattr("trusted.ostree.hardlink", "etc/shadow"), withXattr("trusted.overlay.overlay.opaque", "y")),
		}, tree: []string{"d: dir 755", `a: file 644 "x"`}},
		{name: "user overlay attributes", entries: []tarEntry{dir("d", withXattr("user.overlay.opaque", "y")), whiteout("d", "x")}, tree: []string{"d: dir 755", "d/x: whiteout"}, differs: whyOwner},
		{name: "SELinux label", entries: []tarEntry{file("a", "x", withXattr("security.selinux", "system_u:object_r:etc_t:s0\x00"))}, tree: []string{`a: file 644 "x"`}, differs: whyOwner},
		{name: "capabilities", entries: []tarEntry{file("a", "x", withXattr(xattrCaps, netRaw), owner(1, 1), mode(0o755))}, tree: []string{fmt.Sprintf(`a: file 755 1:1 "x" %s=%q`, xattrCaps, netRaw)}},
		{name: "capabilities for the first user namespace", entries: []tarEntry{file("a", "x", withXattr(xattrCaps, caps(capsRevision3|capsEffective, 1<<13, 0, 0, 0, 0)))}, tree: []string{fmt.Sprintf(`a: file 644 "x" %s=%q`, xattrCaps, netRaw)}},
		{name: "capabilities for a user namespace", entries: []tarEntry{file("a", "x", withXattr(xattrCaps, caps(capsRevision3, 1, 0, 0, 0, 1000)))}, tree: []string{fmt.Sprintf(`a: file 644 "x" %s=%q`, xattrCaps, caps(capsRevision3, 1, 0, 0, 0, 1000))}},
		{name: "malformed capabilities", entries: []tarEntry{file("a", "x", withXattr(xattrCaps, "root"))}, err: errCaps, entry: "a"},
		{name: "capabilities of an unknown revision", entries: []tarEntry{file("a", "x", withXattr(xattrCaps, caps(0x04000000, 1, 0, 0, 0)))}, err: errCaps, entry: "a"},
		{name: "capabilities for nobody", entries: []tarEntry{file("a", "x", withXattr(xattrCaps, caps(capsRevision3, 1, 0, 0, 0, noID)))}, err: errCaps, entry: "a"},
		{name: "attribute of 64 KiB", entries: []tarEntry{file("a", "x", withXattr("user.a", strings.Repeat("x", 64<<10)))}, err: errXattr, entry: "a"},
		{name: "attributes of 64 KiB together", entries: []tarEntry{dir("a", withXattr("user.a", strings.Repeat("x", 40<<10)), withXattr("user.b", strings.Repeat("x", 40<<10)))}, err: errXattr, entry: "a"},
		{name: "attribute name of 256 bytes", entries: []tarEntry{file("a", "x", withXattr("user."+strings.Repeat("x", 251), "1"))}, err: errXattr, entry: "a"},
		{name: "unknown attributes", entries: []tarEntry{file("a", "x", withXattr("foo.bar", "1"), withXattr("plain", "1"), withXattr("system.nfs4_acl", "1"))}, tree: []string{`a: file 644 "x"`}},
		{name: "user attribute on a link", entries: []tarEntry{symlinkWith("l", "a", withXattr("user.a", "1"), withXattr("security.foo", "2"))}, tree: []string{`l: link "a" security.foo="2"`}},
		{name: "user attribute on a fifo", entries: []tarEntry{fifo("p", withXattr("user.a", "1"))}, tree: []string{"p: fifo 644"}},
		{name: "ACL", entries: []tarEntry{file("a", "x", mode(0o640), withXattr(aclAccess, userACL(5, 7, 7, 7, 7)))}, tree: []string{fmt.Sprintf(`a: file 640 "x" %s=%q`, aclAccess, userACL(5, 6, 7, 4, 0))}},
		{name: "ACL that says no more than the mode", entries: []tarEntry{file("a", "x", mode(0o640), withXattr(aclAccess, acl(aclUserObj, 7, noID, aclGroupObj, 7, noID, aclOther, 7, noID)))}, tree: []string{`a: file 640 "x"`}},
		{name: "ACL of nothing", entries: []tarEntry{file("a", "x", withXattr(aclAccess, acl())), file("b", "y", withXattr(aclAccess, ""))}, tree: []string{`a: file 644 "x"`, `b: file 644 "y"`}},
		{name: "default ACL", entries: []tarEntry{dir("d", withXattr(aclDefault, userACL(5, 7, 5, 5, 5))), file("d/f", "x"), dir("d/e")}, tree: []string{fmt.Sprintf(`d: dir 755 %s=%q`, aclDefault, userACL(5, 7, 5, 5, 5)), `d/f: file 644 "x"`, "d/e: dir 755"}, differs: "the applier lets files inherit the ACL that their directory is given"},
		{name: "default ACL on a file", entries: []tarEntry{file("a", "x", withXattr(aclDefault, userACL(5, 7, 5, 5, 5)))}, tree: []string{`a: file 644 "x"`}, differs: whyLenient},
		{name: "malformed ACL", entries: []tarEntry{file("a", "x", withXattr(aclAccess, "\x02\x00\x00\x00\x01"))}, err: errACL, entry: "a"},
		{name: "ACL without owner", entries: []tarEntry{file("a", "x", withXattr(aclAccess, acl(aclGroupObj, 7, noID, aclOther, 7, noID)))}, err: errACL, entry: "a"},
		{name: "ACL for nobody", entries: []tarEntry{file("a", "x", withXattr(aclAccess, userACL(noID, 7, 7, 7, 7)))}, err: errACL, entry: "a"},
		{name: "ACL and a hard link with another mode", entries: []tarEntry{file("a", "x", mode(0o664), withXattr(aclAccess, userACL(5, 6, 6, 6, 4))), hardlink("b", "a", mode(0o600))}, tree: []string{fmt.Sprintf(`a: file 600 "x" %s=%q = a`, aclAccess, userACL(5, 6, 6, 0, 0)), fmt.Sprintf(`b: file 600 "x" %s=%q = a`, aclAccess, userACL(5, 6, 6, 0, 0))}},
		{name: "ACL and the directory again", entries: []tarEntry{dir("d", withXattr(aclAccess, userACL(5, 7, 5, 7, 5))), dir("d", mode(0o700))}, tree: []string{fmt.Sprintf(`d: dir 700 %s=%q`, aclAccess, userACL(5, 7, 5, 0, 0))}},
		{name: "capabilities and a hard link", entries: []tarEntry{file("a", "x", withXattr(xattrCaps, netRaw)), hardlink("b", "a", mode(0o755))}, tree: []string{fmt.Sprintf(`a: file 755 "x" %s=%q = a`, xattrCaps, netRaw), fmt.Sprintf(`b: file 755 "x" %s=%q = a`, xattrCaps, netRaw)}, differs: "chown(2) takes the applier's capabilities away"},
	}
}

// TestTars imports each tar, and compares its checkout with the table and with the result of containerd's applier.
// Whatever a tar contains, nothing outside the store changes.
func TestTars(t *testing.T) {
	for _, tt := range tarCases() {
		t.Run(tt.name, func(t *testing.T) { testTar(t, tt) })
	}
}

func init() {
	if err := log.SetLevel("error"); err != nil { // the applier warns of each extended attribute it ignores
		panic(err)
	}
}

func testTar(t *testing.T, tt tarCase) {
	t.Helper()
	outsideDir, err := os.MkdirTemp("/tmp", "outside")
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, os.RemoveAll(outsideDir)) })
	writeTree(t, outsideDir, [2]string{"planted", "planted"}, [2]string{"d/", ""})
	before := listTree(t, outsideDir)
	tt = tt.outside(outsideDir)
	b := tt.raw
	if b == nil {
		b = makeTar(t, tt.entries...)
	}

	s, root := newStore(t, tt.opts)
	p, got := tt.run(t, s, root, b)
	if diff := diffTrees(listTree(t, outsideDir), before, never); diff != nil {
		t.Errorf("outside: %s", strings.Join(diff, "\n"))
	}
	compareWithApplier(t, tt, s, b, p, got)
	if diff := diffTrees(listTree(t, outsideDir), before, never); diff != nil {
		t.Fatalf("outside, changed by containerd's applier: %s", strings.Join(diff, "\n"))
	}
}

// outside replaces the word outside by the name of a directory.
func (tt tarCase) outside(dir string) tarCase {
	r := strings.NewReplacer(outside, strings.TrimPrefix(dir, "/"))
	for _, e := range tt.entries {
		e.Name, e.Linkname = r.Replace(e.Name), r.Replace(e.Linkname)
	}
	tt.tree = slices.Clone(tt.tree)
	for i := range tt.tree {
		tt.tree[i] = r.Replace(tt.tree[i])
	}
	tt.entry = r.Replace(tt.entry)
	return tt
}

// run imports the tar and checks the result. It returns the checkout, unless there is an error.
func (tt tarCase) run(t *testing.T, s *Store, root string, b []byte) (string, error) {
	t.Helper()
	if tt.err != nil {
		err := importErr(t, s, bytes.NewReader(b), ImportOptions{})
		if !errors.Is(err, tt.err) || !errors.Is(err, ErrInvalid) {
			t.Errorf("Import: got error %v, want %v and ErrInvalid", err, tt.err)
		}
		var e *EntryError
		if errors.As(err, &e) != (tt.entry != "") || e != nil && e.Name != tt.entry {
			t.Errorf("Import: got error %v, want one about entry %q", err, tt.entry)
		}
		wantNoRefs(t, s)
		return "", err
	}
	l := importTar(t, s, b)
	if want := digest.FromBytes(b); l.DiffID != want || l.TarSize != int64(len(b)) {
		t.Errorf("got diff ID %s of %d bytes, want %s of %d", l.DiffID, l.TarSize, want, len(b))
	}
	_, _, err := s.Checkout(t.Context(), []objectstore.Checksum{l.ID})
	if tt.checkout != nil {
		var e *EntryError
		if !errors.Is(err, tt.checkout) || !errors.As(err, &e) || e.Name != "h" {
			t.Errorf("Checkout: got error %v, want %v about entry h", err, tt.checkout)
		}
		return "", err
	}
	testenv.Must(t, err)
	p := checkOut(t, s, root, l.ID)
	if !tt.unlisted {
		wantTree(t, p, tt.tree...)
	}
	return p, nil
}

// compareWithApplier unpacks the tar with containerd's applier too. Either it does the same, or the case gives the
// reason.
func compareWithApplier(t *testing.T, tt tarCase, s *Store, b []byte, ours string, ourErr error) {
	t.Helper()
	dir := t.TempDir()
	err := apply(t.Context(), dir, b)
	var diff []string
	switch {
	case (err != nil) != (ourErr != nil):
		diff = []string{fmt.Sprintf("error %v, ours %v", err, ourErr)}
	case err == nil && !tt.unlisted:
		diff = diffTrees(listTree(t, ours), listTree(t, dir), timeless(t, s))
	}
	if len(diff) > 0 && tt.differs == "" {
		t.Errorf("differs from containerd's applier:\n\t%s", strings.Join(diff, "\n\t"))
	}
	if len(diff) == 0 && tt.differs != "" {
		t.Errorf("does not differ from containerd's applier, although %s", tt.differs)
	}
}

// apply applies a tar to an upper directory as the overlayfs snapshotter does.
func apply(ctx context.Context, dir string, b []byte, parents ...string) error {
	_, err := archive.Apply(ctx, dir, bytes.NewReader(b), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(parents))
	return err
}

// timeless reports files whose time comes from no tar: whiteouts, the root, and directories without an entry in the
// store's only layer.
func timeless(t *testing.T, s *Store) func(string, *node) bool {
	t.Helper()
	layers, err := s.Layers(t.Context())
	testenv.Must(t, err)
	implicit := make(map[string]bool)
	for _, l := range layers {
		root, err := s.Image(t.Context(), l.ID)
		testenv.Must(t, err)
		walkImage(root, "", func(name string, n *composefs.Inode) { implicit[name] = implicit[name] || isImplicit(n) })
	}
	return func(name string, n *node) bool {
		return name == "." || implicit[name] || n.mode&unix.S_IFMT == unix.S_IFCHR && n.rdev == 0
	}
}

func walkImage(dir *composefs.Inode, name string, f func(string, *composefs.Inode)) {
	for _, e := range dir.Entries {
		p := filepath.Join(name, e.Name)
		f(p, e.Inode)
		walkImage(e.Inode, p, f)
	}
}

// TestTrailingBytes imports tars with bytes behind their end, which count only for the diff ID.
func TestTrailingBytes(t *testing.T) {
	tarball := makeTar(t, file("a", "x"))
	for name, tail := range map[string][]byte{
		"zeros":       make([]byte, 100_000),
		"garbage":     bytes.Repeat([]byte("garbage"), 100_000),
		"another tar": makeTar(t, file("b", "y")),
	} {
		t.Run(name, func(t *testing.T) {
			s, root := newStore(t, Options{})
			b := slices.Concat(tarball, tail)
			l := importTar(t, s, b)
			if want := digest.FromBytes(b); l.DiffID != want || l.TarSize != int64(len(b)) {
				t.Errorf("got diff ID %s of %d bytes, want %s of %d", l.DiffID, l.TarSize, want, len(b))
			}
			wantTree(t, checkOut(t, s, root, l.ID), `a: file 644 "x"`)
		})
	}
}

// TestDeepTree imports names with as many directories as a path can have, and one more.
func TestDeepTree(t *testing.T) {
	s, root := newStore(t, Options{})
	const levels = 2000
	l := importTar(t, s, makeTar(t, file(deepName(levels), "deep")))
	d, err := atfs.Open(checkOut(t, s, root, l.ID))
	testenv.Must(t, err)
	for range levels - 1 {
		sub, err := d.OpenDir("d")
		testenv.Must(t, errors.Join(err, d.Close()))
		d = sub
	}
	got, err := d.ReadFile("f", 10)
	if testenv.Must(t, errors.Join(err, d.Close())); string(got) != "deep" {
		t.Errorf("got %q, want %q", got, "deep")
	}
	err = importErr(t, s, bytes.NewReader(makeTar(t, file(deepName(2049), ""))), ImportOptions{})
	if !errors.Is(err, errNameLong) {
		t.Errorf("2,049 levels: got error %v, want %v", err, errNameLong)
	}
}

// TestOpenBadMtime opens a store with an unknown option value.
func TestOpenBadMtime(t *testing.T) {
	s, path := newStore(t, Options{})
	root, err := atfs.Open(path)
	testenv.Must(t, err)
	defer root.Close()
	if _, err := Open(root, s.Repo(), Options{Mtime: "never"}); err == nil {
		t.Error("Open: got a store, want an error")
	}
}

// TestTimes checks times that the table of tars cannot express.
func TestTimes(t *testing.T) {
	s, root := newStore(t, Options{})
	l := importTar(t, s, makeTar(t,
		dir("d", at(when.Add(3*time.Second))), file("d/f", "x", at(when.Add(time.Nanosecond))),
		file("old", "x", at(time.Unix(-5, 0))), file("far", "y", at(time.Unix(1<<40, 0))),
		file("empty", "", at(time.Unix(77, 88))), symlinkWith("l", "x", at(time.Unix(99, 1))),
		file("implied/f", "x"), whiteout("", "gone")))
	p := checkOut(t, s, root, l.ID)
	for name, want := range map[string]unix.Timespec{
		"d": {Sec: when.Unix() + 3, Nsec: 123_456_789}, "d/f": {Sec: when.Unix(), Nsec: 123_456_790},
		"old": {}, "far": {}, "empty": {Sec: 77, Nsec: 88}, "l": {Sec: 99, Nsec: 1}, "implied": {}, "gone": {}, ".": {},
	} {
		if got := mtimeOf(t, filepath.Join(p, name)); got != want {
			t.Errorf("%s: got mtime %v, want %v", name, got, want)
		}
	}
}
