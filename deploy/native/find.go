package native

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/format"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// ErrInvalid marks errors in the ostree commit of an image.
var ErrInvalid = errors.New("ostree commit in the image is invalid")

// A Place is where an image has an ostree commit.
type Place struct {
	Commit  objectstore.Checksum
	DiffIDs []digest.Digest // of the layers that hold its objects, lowest first; the layers above are ordinary ones

	// Unmarked: the image does not name the last of these layers, as in the first version of the format. It is an
	// ordinary image unless its lowest layer has the commit, see [HasCommit].
	Unmarked bool
}

// Find returns where an image has an ostree commit by the labels of its configuration, or nil for an ordinary image.
func Find(config []byte) (*Place, error) {
	var c struct {
		Config struct {
			Labels map[string]string
		} `json:"config"`
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("%w: parse configuration: %w", ErrInvalid, err)
	}
	text, hasCommit := c.Config.Labels[format.LabelCommit]
	final, marked := c.Config.Labels[format.LabelFinal]
	if !hasCommit && !marked || len(c.RootFS.DiffIDs) == 0 {
		return nil, nil
	}
	commit, err := objectstore.ParseChecksum(text)
	if err != nil {
		if !marked {
			return nil, nil // an ordinary image may have any label
		}
		return nil, fmt.Errorf("%w: label %s=%.100q is not a checksum", ErrInvalid, format.LabelCommit, text)
	}
	if !marked {
		return &Place{Commit: commit, DiffIDs: c.RootFS.DiffIDs[:1], Unmarked: true}, nil
	}
	i := slices.Index(c.RootFS.DiffIDs, digest.Digest(final))
	switch {
	case i < 0:
		return nil, fmt.Errorf("%w: label %s names layer %.100q, which the image does not have", ErrInvalid, format.LabelFinal, final)
	case slices.Contains(c.RootFS.DiffIDs[i+1:], digest.Digest(final)):
		return nil, fmt.Errorf("%w: label %s names layer %s, which the image has twice", ErrInvalid, format.LabelFinal, final)
	}
	return &Place{Commit: commit, DiffIDs: c.RootFS.DiffIDs[:i+1]}, nil
}
