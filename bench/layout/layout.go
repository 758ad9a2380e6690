// Package layout opens OCI image layouts on the disk.
package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
)

// A Layout is an OCI image layout in a directory, with the manifests and indexes of one of its tags.
type Layout struct {
	blob.Files // provides the blobs
	Manifests  []ocispec.Descriptor
}

// A TagsError is the error for a layout with several tags, when the name has none.
type TagsError struct{ Tags []string } // quoted, sorted

func (e *TagsError) Error() string {
	return "the layout has several tags: " + strings.Join(e.Tags, ", ")
}

// Open opens DIR or DIR:TAG. Without a tag, the layout must not have more than one; otherwise the error is a
// [TagsError].
func Open(ctx context.Context, name string) (*Layout, error) {
	dir, tag := name, ""
	if _, err := os.Stat(name); err != nil {
		if i := strings.LastIndexByte(name, ':'); i > 0 {
			dir, tag = name[:i], name[i+1:]
		}
	}
	index, err := readIndex(ctx, dir)
	if err != nil {
		return nil, err
	}
	descs, err := tagged(index.Manifests, tag)
	if err != nil {
		return nil, err
	}
	return &Layout{Files: blob.Files(dir), Manifests: descs}, nil
}

// Target returns the only manifest or index of the layout.
func (l *Layout) Target() (ocispec.Descriptor, error) {
	if len(l.Manifests) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("the layout has %d manifests with this tag, want one manifest or index", len(l.Manifests))
	}
	return l.Manifests[0], nil
}

func readIndex(ctx context.Context, dir string) (_ *ocispec.Index, err error) {
	file, err := blob.File(filepath.Join(dir, ocispec.ImageIndexFile)).ReaderAt(ctx, ocispec.Descriptor{})
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%s is no OCI layout: it has no %s", dir, ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if file.Size() > containerd.MaxDocument {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", ocispec.ImageIndexFile, file.Size(), containerd.MaxDocument)
	}
	index := new(ocispec.Index)
	b := make([]byte, file.Size())
	if _, err := file.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := json.Unmarshal(b, index); err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	return index, nil
}

// tagged returns the manifests with a tag, or all of them if the tag is "" and the list has no more than one tag.
// Several manifests may share a tag, for different platforms.
func tagged(list []ocispec.Descriptor, tag string) ([]ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	var tags []string
	for _, desc := range list {
		name := desc.Annotations[ocispec.AnnotationRefName]
		if tag == "" || name == tag {
			found = append(found, desc)
		}
		tags = append(tags, fmt.Sprintf("%q", name))
	}
	slices.Sort(tags)
	tags = slices.Compact(tags)
	switch {
	case len(found) == 0 && len(tags) > 0:
		return nil, fmt.Errorf("the layout has no tag %q, but %s", tag, strings.Join(tags, ", "))
	case tag == "" && len(tags) > 1:
		return nil, &TagsError{tags}
	}
	return found, nil
}
