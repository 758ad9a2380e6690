// Package ocilayout writes images as OCI image layouts, in directories and in archives.
//
// Whatever happens to the process, a layout has an image completely or not at all: a new directory and an archive get their
// name last, and in an existing layout index.json is replaced last. A process that is killed leaves a directory whose name
// begins with a dot and the layout's name beside a new layout, and unused blobs in an existing one. Writers to an existing
// layout wait for each other, by a flock of its directory.
package ocilayout

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// maxIndex is the size of the largest index.json that is read, in bytes.
const maxIndex = 4 << 20

const (
	fileMode = 0o644
	dirMode  = 0o755
	blobsDir = ocispec.ImageBlobsDir + "/" + string(digest.SHA256)
)

// A Dest is where an image is written.
type Dest struct {
	Archive bool // a tar of a layout, else a directory
	Path    string
	Tag     string // the image's name in the layout, "" for none
}

// ParseDest parses "oci:DIR[:TAG]" and "oci-archive:FILE[:TAG]". A colon in an existing path is not before a tag.
func ParseDest(text string) (Dest, error) {
	transport, name, _ := strings.Cut(text, ":")
	d := Dest{Archive: transport == "oci-archive", Path: name}
	if transport != "oci" && !d.Archive || name == "" {
		return d, fmt.Errorf("%q is neither oci:DIR[:TAG] nor oci-archive:FILE[:TAG]", text)
	}
	if _, err := os.Stat(name); err == nil {
		return d, nil
	}
	if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.Contains(name[i:], "/") {
		d.Path, d.Tag = name[:i], name[i+1:]
		if d.Path == "" || d.Tag == "" {
			return d, fmt.Errorf("%q has an empty path or tag", text)
		}
	}
	return d, nil
}

// A Writer writes one image. It is not safe for concurrent use.
type Writer struct {
	dest   Dest
	parent *atfs.Dir // has the layout or archive
	name   string    // of the layout or archive
	tmp    string    // of the directory beside it, in which it is made; "" for an existing layout
	dir    *atfs.Dir // the layout
	blobs  *atfs.Dir
	added  []string // blobs that an existing layout did not have
}

// Create starts writing an image. The directory of the destination must exist. What exists there must be an OCI layout, which
// gets one more image, or an empty directory, or, for an archive, a file, which is replaced. After Create, the caller must
// call Close. Create waits until no other Writer has the layout.
func Create(ctx context.Context, dest Dest) (*Writer, error) {
	parent, err := atfs.Open(filepath.Dir(dest.Path))
	if err != nil {
		return nil, err
	}
	return create(ctx, dest, parent)
}

// create is Create in an open directory, which it takes over.
func create(ctx context.Context, dest Dest, parent *atfs.Dir) (_ *Writer, err error) {
	w := &Writer{dest: dest, parent: parent, name: filepath.Base(dest.Path)}
	defer func() {
		if err != nil {
			err = fmt.Errorf("create image %s: %w", dest.Path, errors.Join(err, w.Close()))
		}
	}()
	exists, err := w.check()
	if err != nil {
		return nil, err
	}
	if exists {
		if w.dir, err = parent.OpenDir(w.name); err == nil {
			err = w.lock(ctx)
		}
	} else {
		tmp := "." + w.name + ".tmp-" + rand.Text()
		if err := parent.Mkdir(tmp, dirMode); err != nil {
			return nil, err
		}
		w.tmp = tmp
		w.dir, err = parent.OpenDir(w.tmp)
	}
	if err != nil {
		return nil, err
	}
	if err := w.dir.MkdirAll(blobsDir, dirMode); err != nil {
		return nil, err
	}
	w.blobs, err = w.dir.OpenDir(blobsDir)
	return w, err
}

const poll = 20 * time.Millisecond

// lock locks an existing layout until its directory is closed. Without it, one of two writers could lose the other's image
// from index.json, or remove blobs that the other's image has too.
func (w *Writer) lock(ctx context.Context) error {
	for {
		err := unix.Flock(w.dir.FD(), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for another writer: %w", context.Cause(ctx))
		case <-time.After(poll):
		}
	}
}

// check reports whether the destination is a layout.
func (w *Writer) check() (layout bool, err error) {
	st, err := w.parent.Lstat(w.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	want, what := uint32(unix.S_IFDIR), "a directory"
	if w.dest.Archive {
		want, what = unix.S_IFREG, "a regular file"
	}
	if st.Mode&unix.S_IFMT != want {
		return false, fmt.Errorf("it exists and is not %s", what)
	}
	if w.dest.Archive {
		return false, nil
	}
	dir, err := w.parent.OpenDir(w.name)
	if err != nil {
		return false, err
	}
	names, err := dir.ReadNames()
	if err = errors.Join(err, dir.Close()); err != nil {
		return false, err
	}
	if len(names) == 0 {
		return false, nil
	}
	for _, name := range []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile} {
		if !slices.Contains(names, name) {
			return false, fmt.Errorf("it is not empty and not an OCI layout: it has no %s", name)
		}
	}
	return true, nil
}

// Blob writes a blob, whose content is what f writes. A blob that exists is success.
func (w *Writer) Blob(mediaType string, f func(io.Writer) error) (ocispec.Descriptor, error) {
	desc, err := w.blob(mediaType, f)
	if err != nil {
		return desc, fmt.Errorf("write blob: %w", err)
	}
	return desc, nil
}

func (w *Writer) blob(mediaType string, f func(io.Writer) error) (desc ocispec.Descriptor, err error) {
	file, err := w.blobs.TmpFile(fileMode)
	if err != nil {
		return desc, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	sum := digest.SHA256.Digester()
	c := counter{w: io.MultiWriter(file, sum.Hash())}
	if err := f(&c); err != nil {
		return desc, err
	}
	if err := file.Chmod(fileMode); err != nil {
		return desc, err
	}
	desc = ocispec.Descriptor{MediaType: mediaType, Digest: sum.Digest(), Size: c.n}
	switch err := file.LinkTo(w.blobs, desc.Digest.Encoded()); {
	case err == nil:
		w.added = append(w.added, desc.Digest.Encoded())
		return desc, nil
	case !errors.Is(err, fs.ErrExist):
		return desc, err
	}
	st, err := w.blobs.Lstat(desc.Digest.Encoded())
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != desc.Size) {
		err = fmt.Errorf("%s exists with %d bytes, want %d", desc.Digest, st.Size, desc.Size)
	}
	return desc, err
}

// A counter counts bytes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// Document writes a blob from memory.
func (w *Writer) Document(mediaType string, data []byte) (ocispec.Descriptor, error) {
	return w.Blob(mediaType, func(to io.Writer) error {
		_, err := to.Write(data)
		return err
	})
}

// Commit makes the image with a manifest visible, durably. It replaces an image with the same tag. After an error the
// destination is as it was before Create, or has the image and only its durability is in doubt.
func (w *Writer) Commit(manifest ocispec.Descriptor) error {
	if err := w.commit(manifest); err != nil {
		return fmt.Errorf("write image %s: %w", w.dest.Path, err)
	}
	return nil
}

func (w *Writer) commit(manifest ocispec.Descriptor) error {
	if w.dest.Tag != "" {
		manifest.Annotations = map[string]string{ocispec.AnnotationRefName: w.dest.Tag}
	}
	index, err := w.index(manifest)
	if err != nil {
		return err
	}
	if w.tmp == "" {
		if err := w.dir.SyncFS(); err != nil {
			return err
		}
		if err := w.dir.WriteFile(ocispec.ImageIndexFile, index, fileMode, true); err != nil {
			if now, err2 := w.dir.ReadFile(ocispec.ImageIndexFile, maxIndex); err2 != nil || bytes.Equal(now, index) {
				w.added = nil // it names them, durably or not
			}
			return err
		}
		w.added = nil
		return nil
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := w.dir.WriteFile(ocispec.ImageLayoutFile, layout, fileMode, false); err != nil {
		return err
	}
	if err := w.dir.WriteFile(ocispec.ImageIndexFile, index, fileMode, false); err != nil {
		return err
	}
	if w.dest.Archive {
		return w.archive()
	}
	if err := w.dir.SyncFS(); err != nil {
		return err
	}
	if err := w.parent.Rename(w.tmp, w.parent, w.name, 0); err != nil {
		return err
	}
	w.tmp = ""
	w.added = nil
	return w.parent.Sync()
}

// index returns index.json with one more manifest.
func (w *Writer) index(manifest ocispec.Descriptor) ([]byte, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if w.tmp == "" {
		data, err := w.dir.ReadFile(ocispec.ImageIndexFile, maxIndex)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &index); err != nil {
			return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
		}
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return d.Annotations[ocispec.AnnotationRefName] == w.dest.Tag
		})
	}
	index.Manifests = append(index.Manifests, manifest)
	return json.Marshal(index)
}

// archive makes an archive of the layout.
func (w *Writer) archive() (err error) {
	name := w.tmp + ".tar"
	file, err := w.parent.OpenFile(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, file.Close())
		if err != nil {
			err = errors.Join(err, atfs.IgnoreNotExist(w.parent.Unlink(name)))
		}
	}()
	if err := w.writeTar(file); err != nil {
		return err
	}
	if err := errors.Join(file.Chmod(fileMode), file.Sync()); err != nil {
		return err
	}
	if err := w.parent.Rename(name, w.parent, w.name, 0); err != nil {
		return err
	}
	return w.parent.Sync()
}

func (w *Writer) writeTar(to io.Writer) error {
	t := tar.NewWriter(to)
	names := []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile}
	slices.Sort(w.added)
	for _, blob := range w.added {
		names = append(names, blobsDir+"/"+blob)
	}
	for _, name := range names {
		if err := w.writeEntry(t, name); err != nil {
			return err
		}
	}
	return t.Close()
}

func (w *Writer) writeEntry(t *tar.Writer, name string) (err error) {
	file, err := w.dir.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: st.Size, Mode: fileMode}); err != nil {
		return err
	}
	_, err = io.Copy(t, file)
	return err
}

// Close removes what was written unless Commit has succeeded, and releases the writer. A second call does nothing.
func (w *Writer) Close() error {
	var errs []error
	if w.blobs != nil && w.tmp == "" {
		for _, name := range w.added {
			errs = append(errs, atfs.IgnoreNotExist(w.blobs.Unlink(name)))
		}
		w.added = nil
	}
	for _, d := range []*atfs.Dir{w.blobs, w.dir} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	w.blobs, w.dir = nil, nil
	if w.tmp != "" {
		errs = append(errs, w.parent.RemoveAll(w.tmp))
		w.tmp = ""
	}
	if w.parent != nil {
		errs = append(errs, w.parent.Close())
		w.parent = nil
	}
	return errors.Join(errs...)
}
