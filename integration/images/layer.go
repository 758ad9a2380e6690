package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// epoch is the mtime of hand-made entries.
var epoch = time.Date(2024, 2, 29, 12, 30, 15, 0, time.UTC)

// A layerWriter writes the tar of a layer. After the first error, its methods do nothing.
type layerWriter struct {
	w    io.Writer
	tw   *tar.Writer
	seen map[string]tar.Header // the attributes for hard links
	err  error
}

// An option changes an entry.
type option func(*tar.Header)

func mode(m int64) option          { return func(h *tar.Header) { h.Mode = m } }
func owner(uid, gid int) option    { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }
func mtime(t time.Time) option     { return func(h *tar.Header) { h.ModTime, h.Format = t, tar.FormatPAX } }
func later(d time.Duration) option { return mtime(epoch.Add(d)) }

func xattr(name, value string) option {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
		h.Format = tar.FormatPAX
	}
}

// entry writes one entry.
func (l *layerWriter) entry(h *tar.Header, body io.Reader, options []option) {
	if l.err != nil {
		return
	}
	if h.ModTime.IsZero() {
		h.ModTime = epoch
	}
	for _, o := range options {
		o(h)
	}
	l.seen[h.Name] = *h
	if l.err = l.tw.WriteHeader(h); l.err != nil {
		l.err = fmt.Errorf("write entry %q: %w", h.Name, l.err)
		return
	}
	if body != nil {
		if _, err := io.Copy(l.tw, body); err != nil {
			l.err = fmt.Errorf("write entry %q: %w", h.Name, err)
		}
	}
}

func (l *layerWriter) dir(name string, options ...option) {
	l.entry(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix(name, "/") + "/", Mode: 0o755}, nil, options)
}

func (l *layerWriter) file(name, data string, options ...option) {
	l.stream(name, strings.NewReader(data), int64(len(data)), options...)
}

func (l *layerWriter) stream(name string, r io.Reader, size int64, options ...option) {
	l.entry(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}, r, options)
}

// fileFrom writes a file with the content of a file on disk.
func (l *layerWriter) fileFrom(name, source string, options ...option) {
	if l.err != nil {
		return
	}
	f, err := os.Open(source)
	if err != nil {
		l.err = err
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		l.err = err
		return
	}
	l.stream(name, f, st.Size(), options...)
}

func (l *layerWriter) symlink(name, target string, options ...option) {
	l.entry(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil, options)
}

// link writes a hard link to an earlier entry. Like tar, it repeats the attributes of the file, which containerd sets
// again.
func (l *layerWriter) link(name, target string) {
	h, ok := l.seen[target]
	if !ok && l.err == nil {
		l.err = fmt.Errorf("write entry %q: no entry %q before it", name, target)
	}
	h.Typeflag, h.Name, h.Linkname, h.Size = tar.TypeLink, name, target, 0
	l.entry(&h, nil, nil)
}

func (l *layerWriter) node(typ byte, name string, major, minor int64, options ...option) {
	l.entry(&tar.Header{Typeflag: typ, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}, nil, options)
}

// whiteout deletes a name of lower layers.
func (l *layerWriter) whiteout(name string) {
	dir, base := path.Split(name)
	l.file(dir+".wh."+base, "", mode(0))
}

// opaque hides the content of a directory in lower layers.
func (l *layerWriter) opaque(dir string) { l.file(dir+"/.wh..wh..opq", "", mode(0)) }

// copyRootfs copies the entries of a root file system that keep selects, or all if keep is nil. Times are truncated to
// seconds, like those of image builders. The entry of the root directory is kept.
func (l *layerWriter) copyRootfs(name string, keep func(*tar.Header) bool) {
	if l.err != nil {
		return
	}
	l.err = l.copyTar(name, keep)
}

func (l *layerWriter) copyTar(name string, keep func(*tar.Header) bool) error {
	return eachEntry(name, func(h *tar.Header, content io.Reader) error {
		if keep != nil && !keep(h) {
			return nil
		}
		h.ModTime = h.ModTime.Truncate(time.Second)
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		h.Format = tar.FormatUnknown
		for key := range h.PAXRecords {
			if !strings.HasPrefix(key, "SCHILY.xattr.") {
				delete(h.PAXRecords, key)
			}
		}
		l.entry(h, content, nil)
		return l.err
	})
}

// eachEntry calls f for each entry of a zstd-compressed tar.
func eachEntry(name string, f func(h *tar.Header, content io.Reader) error) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	dec, err := zstd.NewReader(file)
	if err != nil {
		return err
	}
	defer dec.Close()
	for tr := tar.NewReader(dec); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if err := f(h, tr); err != nil {
			return err
		}
	}
}

// gnuTar makes the whole layer with GNU tar, which writes formats that archive/tar does not. fill creates the files.
func (l *layerWriter) gnuTar(fill func(dir string) error, args ...string) {
	if l.err != nil {
		return
	}
	l.err = func() error {
		dir, err := os.MkdirTemp("", "layer")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := fill(dir); err != nil {
			return err
		}
		args = append([]string{"--create", "--numeric-owner", "--owner=0", "--group=0", "--sort=name", "--directory", dir}, args...)
		cmd := exec.Command("tar", append(args, "--mtime=2024-03-01T10:00:00Z", ".")...)
		cmd.Stdout, cmd.Stderr = l.w, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run tar: %w", err)
		}
		return nil
	}()
	l.tw = nil
}

// close finishes the tar.
func (l *layerWriter) close() error {
	if l.err != nil || l.tw == nil {
		return l.err
	}
	return l.tw.Close()
}
