package encapsulate

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// ExampleCommit is the commit of the example.
const ExampleCommit = "3cb6170b6945065c2475bc16d7bebcc84f96b4c677811a6751e479b89f8c3770"

// exampleLayer is the blob of the example's layer with the commit.
const exampleLayer = "blobs/sha256/ee02768e65e6fb2bb7058282338896282910f3560de3e0d6cd9b1d5985e8360d"

//go:embed testdata/exampleos-derive-v2.ociarchive
var exampleArchive []byte

// Example returns the commit of an image in format V0 that ostree-ext wrote, with its objects.
func Example() (*Commit, error) {
	c, err := readExample()
	if err != nil {
		return nil, fmt.Errorf("read the example: %w", err)
	}
	return c, nil
}

func readExample() (*Commit, error) {
	blob, err := exampleFile(exampleLayer)
	if err != nil {
		return nil, err
	}
	plain, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	objects := make(tarObjects)
	err = eachFile(plain, func(h *tar.Header, data []byte) error {
		objects[h.Name] = tarObject{*h, data}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sum, err := objectstore.ParseChecksum(ExampleCommit)
	if err != nil {
		return nil, err
	}
	return Read(objects, sum)
}

// ExampleImage writes the example as it is, as an OCI layout into an empty directory.
func ExampleImage(dir string) (*images.Image, error) {
	err := eachFile(bytes.NewReader(exampleArchive), func(h *tar.Header, data []byte) error {
		name := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			return os.MkdirAll(name, 0o755)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return os.WriteFile(name, data, 0o644)
	})
	if err != nil {
		return nil, fmt.Errorf("write the example: %w", err)
	}
	return images.Open(dir)
}

// exampleFile returns a file of the archive.
func exampleFile(name string) (data []byte, err error) {
	err = eachFile(bytes.NewReader(exampleArchive), func(h *tar.Header, b []byte) error {
		if strings.TrimPrefix(h.Name, "./") == name {
			data = b
		}
		return nil
	})
	if err == nil && data == nil {
		err = fmt.Errorf("the archive has no file %s", name)
	}
	return data, err
}

// eachFile calls f for each entry of a tar, with its content.
func eachFile(r io.Reader, f func(h *tar.Header, data []byte) error) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := io.ReadAll(tr)
		if err == nil {
			err = f(h, data)
		}
		if err != nil {
			return err
		}
	}
}

// tarObjects are the entries of a layer in format V0.
type tarObjects map[string]tarObject

type tarObject struct {
	header tar.Header
	data   []byte
}

func (t tarObjects) get(name string) (tarObject, error) {
	o, ok := t[name]
	if !ok {
		return tarObject{}, fmt.Errorf("the layer has no entry %s", name)
	}
	return o, nil
}

func (t tarObjects) ReadMetadata(typ objectstore.ObjectType, sum objectstore.Checksum) ([]byte, error) {
	o, err := t.get(object(sum, typ.Ext()))
	return o.data, err
}

func (t tarObjects) FileMeta(sum objectstore.Checksum) (*objectstore.FileMeta, error) {
	o, err := t.get(object(sum, "file"))
	if err != nil {
		return nil, err
	}
	link, err := t.get(object(sum, "file.xattrs"))
	if err != nil {
		return nil, err
	}
	xattrs, err := t.get(link.header.Linkname)
	if err != nil {
		return nil, err
	}
	m := &objectstore.FileMeta{UID: uint32(o.header.Uid), GID: uint32(o.header.Gid), Mode: unix.S_IFREG | uint32(o.header.Mode)&0o7777}
	if o.header.Typeflag == tar.TypeSymlink {
		m.Mode, m.Target = unix.S_IFLNK|0o777, o.header.Linkname
	}
	m.Xattrs, err = parseXattrs(xattrs.data)
	return m, err
}

func (t tarObjects) Open(sum objectstore.Checksum) (io.ReadCloser, int64, error) {
	o, err := t.get(object(sum, "file"))
	return io.NopCloser(bytes.NewReader(o.data)), int64(len(o.data)), err
}

// parseXattrs is the inverse of xattrBytes.
func parseXattrs(data []byte) (list []objectstore.Xattr, err error) {
	elements, err := gvariant.MustType("a(ayay)").Elements(data)
	if err != nil {
		return nil, err
	}
	for i := range elements.Len() {
		pair, err := gvariant.MustType("(ayay)").Members(elements.At(i), nil)
		if err != nil {
			return nil, err
		}
		list = append(list, objectstore.Xattr{Name: strings.TrimSuffix(string(pair[0]), "\x00"), Value: pair[1]})
	}
	return list, nil
}
