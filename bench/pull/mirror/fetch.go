package mirror

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fetch copies the image for this platform from its registry, without credentials, and returns the descriptor of its
// target. Blobs that the store has are not copied.
func Fetch(ctx context.Context, ref string, store content.Store) (ocispec.Descriptor, error) {
	name, target, err := resolver().Resolve(ctx, ref)
	if err != nil {
		return target, fmt.Errorf("fetch %s: %w", ref, err)
	}
	fetcher, err := resolver().Fetcher(ctx, name)
	if err != nil {
		return target, fmt.Errorf("fetch %s: %w", ref, err)
	}
	platform := platforms.Default()
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), platform), platform, 1)
	err = images.Dispatch(ctx, images.Handlers(remotes.FetchHandler(store, fetcher), children), nil, target)
	if err != nil {
		return target, fmt.Errorf("fetch %s: %w", ref, err)
	}
	return target, nil
}

func resolver() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithAuthorizer(docker.NewDockerAuthorizer()), docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
}
