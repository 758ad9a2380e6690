package mirror

import (
	"encoding/json"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds the bytes of a manifest that are read. It is the limit of registries.
const maxManifest = 4 << 20

// manifestType returns the media type of a manifest or index: that of its descriptor, or that in the document. An OCI
// manifest may lack it; then its fields decide.
func manifestType(desc ocispec.Descriptor, r io.Reader) (string, error) {
	if desc.MediaType != "" {
		return desc.MediaType, nil
	}
	var m struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		return "", fmt.Errorf("read manifest %s: %w", desc.Digest, err)
	}
	switch {
	case m.MediaType != "":
		return m.MediaType, nil
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	}
	return ocispec.MediaTypeImageManifest, nil
}
