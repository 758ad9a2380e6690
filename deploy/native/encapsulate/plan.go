package encapsulate

import (
	"fmt"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A Plan divides the files of a commit among layers above the lowest one, in order from below. The lowest one has those that
// are in no chunk, so that the empty plan is an image of a single layer.
type Plan []Chunk

// A Chunk is the content of one layer.
type Chunk struct {
	Name       string   // for people, in the image's history
	Components []string // what the files belong to, for later builds of the same image
	Files      []File   // in the order of [Commit.Files]
}

// rest returns the files that no chunk has. Each file must be one of the commit, and in one chunk.
func (p Plan) rest(files []File) ([]File, error) {
	in := make(map[string]objectstore.Checksum)
	for _, chunk := range p {
		for _, f := range chunk.Files {
			if _, twice := in[f.Path]; twice {
				return nil, fmt.Errorf("plan layers: /%s is in two chunks", f.Path)
			}
			in[f.Path] = f.Sum
		}
	}
	var rest []File
	for _, f := range files {
		if sum, ok := in[f.Path]; !ok || sum != f.Sum {
			rest = append(rest, f)
			continue
		}
		delete(in, f.Path)
	}
	for name := range in {
		return nil, fmt.Errorf("plan layers: /%s is not in the commit", name)
	}
	return rest, nil
}
