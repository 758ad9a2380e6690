package signature

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// An identity decides which names in a signature fit an image.
type identity struct {
	kind                 string
	given                bool            // by the policy; else it is the default
	ref                  reference.Named // of exactReference and exactRepository
	prefix, signedPrefix string          // of remapIdentity
}

// The kinds of identities.
const (
	matchExact        = "matchExact"
	matchDigestOrTag  = "matchRepoDigestOrExact"
	matchRepository   = "matchRepository"
	exactReference    = "exactReference"
	exactRepository   = "exactRepository"
	remapIdentityKind = "remapIdentity"
)

func parseIdentity(data []byte) (identity, error) {
	if data == nil {
		return identity{kind: matchDigestOrTag}, nil
	}
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return identity{}, fmt.Errorf("signedIdentity: %w", err)
	}
	id := identity{kind: head.Type, given: true}
	var name string
	fields := map[string]any{"type": &head.Type}
	switch head.Type {
	case matchExact, matchDigestOrTag, matchRepository:
	case exactReference:
		fields["dockerReference"] = &name
	case exactRepository:
		fields["dockerRepository"] = &name
	case remapIdentityKind:
		fields["prefix"], fields["signedPrefix"] = &id.prefix, &id.signedPrefix
	default:
		return identity{}, fmt.Errorf("signedIdentity: unknown type %q", head.Type)
	}
	if err := decodeExactly(data, fields); err != nil {
		return identity{}, fmt.Errorf("signedIdentity: %w", err)
	}
	if err := id.complete(name); err != nil {
		return identity{}, fmt.Errorf("signedIdentity %s: %w", id.kind, err)
	}
	return id, nil
}

func (id *identity) complete(name string) (err error) {
	switch id.kind {
	case exactReference, exactRepository:
		if id.ref, err = reference.ParseNormalizedNamed(name); err != nil {
			return err
		}
		if id.kind == exactReference && reference.IsNameOnly(id.ref) {
			return fmt.Errorf("%q has neither a tag nor a digest", name)
		}
	case remapIdentityKind:
		return errors.Join(validPrefix(id.prefix), validPrefix(id.signedPrefix))
	}
	return nil
}

// validPrefix checks a prefix of repositories: a registry, or one and the first parts of a repository.
func validPrefix(prefix string) error {
	named, err := reference.ParseNamed(prefix)
	if err != nil { // a registry alone is no name
		named, err = reference.ParseNamed(prefix + "/x")
		if err == nil && named.Name() != prefix+"/x" {
			err = errors.New("it is not a registry")
		}
	} else if named.String() != prefix || !reference.IsNameOnly(named) {
		err = errors.New("it has a tag or digest")
	}
	if err != nil {
		return fmt.Errorf("prefix %q: %w", prefix, err)
	}
	return nil
}

// matches reports whether a signature for a name counts for an image.
func (id *identity) matches(image reference.Named, signed string) bool {
	ref, err := reference.ParseNormalizedNamed(signed)
	if err != nil {
		return false
	}
	switch id.kind {
	case matchExact:
		return sameReference(image, ref)
	case matchRepository:
		return ref.Name() == image.Name()
	case exactReference:
		return sameReference(id.ref, ref)
	case exactRepository:
		return ref.Name() == id.ref.Name()
	case remapIdentityKind:
		if image, err = id.remap(image); err != nil {
			return false
		}
	}
	// matchRepoDigestOrExact, and the same after remapping.
	if reference.IsNameOnly(ref) {
		return false
	}
	if _, ok := image.(reference.Tagged); ok {
		return sameReference(image, ref)
	}
	_, pinned := image.(reference.Digested)
	return pinned && ref.Name() == image.Name()
}

// sameReference reports whether two references are the same, with a tag or digest.
func sameReference(a, b reference.Named) bool {
	return !reference.IsNameOnly(a) && !reference.IsNameOnly(b) && a.String() == b.String()
}

// remap returns the name that an image is signed by, for one below prefix.
func (id *identity) remap(image reference.Named) (reference.Named, error) {
	rest, ok := strings.CutPrefix(image.Name(), id.prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return image, nil
	}
	return reference.ParseNamed(id.signedPrefix + strings.TrimPrefix(image.String(), id.prefix))
}

// check returns why a signature for a name does not count for an image.
func (id *identity) check(image reference.Named, signed string) error {
	if id.matches(image, signed) {
		return nil
	}
	hint := ""
	if ref, err := reference.ParseNormalizedNamed(signed); err == nil && reference.IsNameOnly(ref) &&
		ref.Name() == image.Name() && (id.kind == matchDigestOrTag || id.kind == matchExact) {
		hint = `; it names the repository alone, which "signedIdentity": {"type": "matchRepository"} accepts`
	}
	return fmt.Errorf("it is for %q, which %s does not accept for %s%s", signed, id.kind, image, hint)
}

// checkUnnamed returns why a signature that names no repository does not count. One counts only where the policy
// demands no identity: it would be a demand that is dropped.
func (id *identity) checkUnnamed() error {
	if !id.given {
		return nil
	}
	return fmt.Errorf("it names no repository, and signedIdentity %s demands one; cosign's bundles need a rule without signedIdentity", id.kind)
}
