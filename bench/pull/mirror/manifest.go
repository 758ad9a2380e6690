package mirror

import (
	"encoding/json"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest is how many bytes of a manifest are read, the limit of registries.
const maxManifest = 4 << 20

// manifestType returns the media type of a manifest or index: that of its descriptor, or else what it says itself. An OCI
// manifest need not say it; what it has tells then.
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
