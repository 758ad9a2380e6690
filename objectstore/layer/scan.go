package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// ScanOptions are options of [Scan].
type ScanOptions struct {
	// MaxEntries is that of [Options].
	MaxEntries int
	// Content receives the content of each regular file that is not empty, and must read it to its end. Its result
	// becomes the file's Content. It also receives files that a later entry of the tar replaces.
	Content func(r io.Reader, size int64) (objectstore.Checksum, error)
	// Accept, if set, is that of [ImportOptions].
	Accept func(diffID digest.Digest, tarSize int64) error
}

// A Scanned is the layer that a tar makes.
type Scanned struct {
	DiffID  digest.Digest
	TarSize int64
	files   map[*inode]int // with their numbers of names
}

// A ScannedFile is any file of a layer but a directory. Hard links to each other are one ScannedFile.
type ScannedFile struct {
	*composefs.Inode
	Content objectstore.Checksum // result of ScanOptions.Content, zero for files without content
	Names   int
	Below   bool // hard link to a file of a lower layer, unknown here
}

// Files lists the layer's files other than directories, unordered. The inodes must not be changed.
func (s *Scanned) Files() iter.Seq[ScannedFile] {
	return func(yield func(ScannedFile) bool) {
		for n, names := range s.files {
			if !yield(ScannedFile{Inode: &n.Inode, Content: n.sum, Names: names, Below: n.external != ""}) {
				return
			}
		}
	}
}

// Scan reads a plain tar to the end of the stream like [Store.Import], and by the same rules: the result is what the
// layer would have in a store. It keeps no content and needs no store. Errors in the tar are ErrInvalid.
//
// Memory is bounded as in Import, without the content in flight.
func Scan(ctx context.Context, r io.Reader, o ScanOptions) (*Scanned, error) {
	opts := Options{MaxEntries: o.MaxEntries}
	opts.setDefaults()
	d := newDigester(ctx, r, scanBlocks, false)
	defer d.Close()
	entries := &tarEntries{src: d}
	in := tarReader{entries: entries, tree: newTree(opts.MaxEntries), store: func(n *inode, _ *tar.Header) (err error) {
		source := &sourceReader{r: entries.content()}
		if n.sum, err = o.Content(source, n.Size); source.err != nil {
			return &readError{source.err}
		}
		if err != nil {
			return &storeError{err}
		}
		return nil
	}}
	if err := in.readTar(ctx); err != nil {
		return nil, fmt.Errorf("scan layer: %w", err)
	}
	diffID, size, err := d.Finish()
	if err != nil {
		return nil, fmt.Errorf("scan layer: %w", err)
	}
	if o.Accept != nil {
		if err := o.Accept(diffID, size); err != nil {
			return nil, fmt.Errorf("scan layer: %w", err)
		}
	}
	s := &Scanned{DiffID: diffID, TarSize: size, files: make(map[*inode]int)}
	s.collect(in.tree.root)
	return s, nil
}

func (s *Scanned) collect(dir *inode) {
	for _, n := range dir.children {
		if n.IsDir() {
			s.collect(n)
		} else {
			s.files[n]++
		}
	}
}

// sourceReader tells errors of its source from those of its user.
type sourceReader struct {
	r   io.Reader
	err error
}

func (r *sourceReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}
