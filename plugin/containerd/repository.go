package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/reference"
	refdocker "github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// A Repository reads manifests and blobs from a repository of a registry. It is a [signature.Repository].
type Repository struct {
	name  string // registry and path
	spec  reference.Spec
	hosts []docker.RegistryHost
}

// hostsDir returns the directory that describes registries, "" if there is none.
func (r *Registry) hostsDir() string {
	dir := cmp.Or(r.HostsDir, DefaultHostsDir)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && r.HostsDir == "" {
		return ""
	}
	return dir
}

// Repository returns the repository of a name. The registry is not asked for anything. HostsDir defaults to
// [DefaultHostsDir] if that exists.
func (r *Registry) Repository(ctx context.Context, name refdocker.Named) (*Repository, error) {
	spec, err := reference.Parse(name.String())
	if err != nil {
		return nil, &RegistryError{Op: "reach the registry of", Ref: name.String(), Err: err}
	}
	var opts config.HostOptions
	if dir := r.hostsDir(); dir != "" {
		opts.HostDir = config.HostDirFromRoot(dir)
	}
	if r.PlainHTTP {
		opts.DefaultScheme = "http"
	}
	if r.User != "" || r.Credentials != nil {
		opts.Credentials = func(host string) (string, string, error) {
			c, err := r.GetCredentials(ctx, "", host)
			return c.Username, c.Secret, err
		}
	}
	hosts, err := config.ConfigureHosts(Silent(ctx), opts)(spec.Hostname())
	if err != nil {
		return nil, &RegistryError{Op: "reach the registry of", Ref: name.String(), Err: err}
	}
	return &Repository{name: name.Name(), spec: spec, hosts: hosts}, nil
}

// manifestTypes are the types of documents that a registry is asked for.
var manifestTypes = strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
}, ", ")

// Manifest implements [signature.Repository].
func (r *Repository) Manifest(ctx context.Context, ref string, limit int64) ([]byte, error) {
	b, err := r.get(ctx, docker.HostCapabilityPull, "manifests/"+ref, manifestTypes, limit)
	if dgst, err2 := digest.Parse(ref); err == nil && err2 == nil {
		err = r.check(dgst, b)
	}
	return b, err
}

// Blob implements [signature.Repository].
func (r *Repository) Blob(ctx context.Context, dgst digest.Digest, limit int64) ([]byte, error) {
	if err := dgst.Validate(); err != nil {
		return nil, err
	}
	b, err := r.get(ctx, docker.HostCapabilityPull, "blobs/"+dgst.String(), "*/*", limit)
	if err == nil {
		err = r.check(dgst, b)
	}
	return b, err
}

func (r *Repository) check(dgst digest.Digest, b []byte) error {
	if dgst.Algorithm().FromBytes(b) != dgst {
		return &RegistryError{Op: "read " + dgst.String() + " of", Ref: r.name, Err: errors.New("its content has another digest")}
	}
	return nil
}

// Referrers implements [signature.Repository].
func (r *Repository) Referrers(ctx context.Context, dgst digest.Digest, limit int64) ([]byte, error) {
	return r.get(ctx, docker.HostCapabilityReferrers, "referrers/"+dgst.String(), ocispec.MediaTypeImageIndex, limit)
}

// get asks one host after the other, until one has a document. It is a [signature.ErrNotFound] only if each host has
// answered that it does not have it.
func (r *Repository) get(ctx context.Context, can docker.HostCapabilities, path, accept string, limit int64) ([]byte, error) {
	ctx, err := docker.ContextWithRepositoryScope(Silent(ctx), r.spec, false)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, host := range r.hosts {
		if !host.Capabilities.Has(can) {
			continue
		}
		b, err := r.getFrom(ctx, host, can, path, accept, limit)
		if err == nil {
			return b, nil
		}
		if !errors.Is(err, signature.ErrNotFound) {
			failed = errors.Join(failed, err)
		}
	}
	if failed == nil {
		return nil, fmt.Errorf("%s: %w", path, signature.ErrNotFound)
	}
	return nil, &RegistryError{Op: "ask the registry for " + path + " of", Ref: r.name, Err: failed}
}

// requestTime is how long one document may take, with all tries. The system is locked meanwhile.
var requestTime = time.Minute

// maxTries is how often a request is made: without credentials, and with those that the registry demands.
const maxTries = 3

func (r *Repository) getFrom(ctx context.Context, host docker.RegistryHost, can docker.HostCapabilities, path, accept string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	_, repo, _ := strings.Cut(r.name, "/")
	url := host.Scheme + "://" + host.Host + host.Path + "/" + repo + "/" + path
	if ns := r.spec.Hostname(); host.Host != ns && (ns != "docker.io" || host.Host != "registry-1.docker.io") {
		url += "?ns=" + ns // it is a mirror
	}
	var last *http.Response
	for range maxTries {
		resp, err := r.request(ctx, host, url, accept, last)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusUnauthorized && host.Authorizer != nil {
			_ = resp.Body.Close() // the header says all
			last = resp
			continue
		}
		return readResponse(resp, limit, can)
	}
	return nil, fmt.Errorf("%s: %s", host.Host, last.Status)
}

// request makes a request, with the credentials that the answer to the last one demands.
func (r *Repository) request(ctx context.Context, host docker.RegistryHost, url, accept string, last *http.Response) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	for k, v := range host.Header {
		req.Header[k] = v
	}
	req.Header.Set("Accept", accept)
	if host.Authorizer != nil {
		if last != nil {
			if err := host.Authorizer.AddResponses(ctx, []*http.Response{last}); err != nil {
				return nil, err
			}
		}
		if err := host.Authorizer.Authorize(ctx, req); err != nil {
			return nil, err
		}
	}
	client := http.DefaultClient
	if host.Client != nil {
		client = host.Client
	}
	return client.Do(req)
}

// unknownAPI are the statuses by which registries say that they do not know the API of referrers.
var unknownAPI = []int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable}

func readResponse(resp *http.Response, limit int64, can docker.HostCapabilities) (_ []byte, err error) {
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
	case code == http.StatusNotFound, can == docker.HostCapabilityReferrers && slices.Contains(unknownAPI, code):
		return nil, signature.ErrNotFound
	default:
		return nil, fmt.Errorf("%s: %s", resp.Request.URL.Host, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", resp.Request.URL.Path, limit)
	}
	return b, err
}
