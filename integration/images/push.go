package images

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push pushes an image to a registry that speaks plain HTTP, under a reference such as "base:1". It does not send blobs
// that the registry has.
func (img *Image) Push(ctx context.Context, registry, ref string) error {
	name, tag, ok := strings.Cut(ref, ":")
	if !ok {
		return fmt.Errorf("push %s: the reference has no tag", ref)
	}
	base := "http://" + registry + "/v2/" + name
	for _, d := range append([]ocispec.Descriptor{img.Manifest.Config}, img.Manifest.Layers...) {
		if err := img.pushBlob(ctx, base, d); err != nil {
			return fmt.Errorf("push %s: blob %s: %w", ref, d.Digest, err)
		}
	}
	b, err := os.ReadFile(img.Blob(img.Descriptor.Digest))
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	_, err = request(ctx, http.MethodPut, base+"/manifests/"+tag, img.Descriptor.MediaType, strings.NewReader(string(b)), int64(len(b)), http.StatusCreated)
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

func (img *Image) pushBlob(ctx context.Context, base string, d ocispec.Descriptor) error {
	if _, err := request(ctx, http.MethodHead, base+"/blobs/"+d.Digest.String(), "", nil, 0, http.StatusOK); err == nil {
		return nil
	}
	location, err := request(ctx, http.MethodPost, base+"/blobs/uploads/", "", nil, 0, http.StatusAccepted)
	if err != nil {
		return err
	}
	query := location.Query()
	query.Set("digest", d.Digest.String())
	location.RawQuery = query.Encode()
	f, err := os.Open(img.Blob(d.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = request(ctx, http.MethodPut, location.String(), "application/octet-stream", f, d.Size, http.StatusCreated)
	return err
}

// request makes an HTTP request and returns the address in the Location header, if there is one.
func request(ctx context.Context, method, addr, contentType string, body io.Reader, size int64, want int) (*url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, method, addr, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, addr, resp.Status, text)
	}
	if resp.Header.Get("Location") == "" {
		return req.URL, nil
	}
	return resp.Location()
}
