package signature

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"go.yaml.in/yaml/v3"
)

// DefaultPlacesDir is the directory that says where signatures are.
const DefaultPlacesDir = "/etc/containers/registries.d"

// defaultLookaside has the simple signatures of registries that no file names.
const defaultLookaside = "file:///var/lib/containers/sigstore"

// Places says where signatures are, by containers-registries.d(5).
type Places struct {
	def    *place
	scopes map[string]place
}

type place struct {
	Lookaside      string `yaml:"lookaside"`
	SigStore       string `yaml:"sigstore"` // the former name
	UseAttachments *bool  `yaml:"use-sigstore-attachments"`
}

// LoadPlaces reads the files of a directory. One that does not exist has none.
func LoadPlaces(dir string) (*Places, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || lostLink(dir) != "") {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	p := &Places{scopes: make(map[string]place)}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".yaml" {
			continue
		}
		name := filepath.Join(dir, e.Name())
		b, err := readConfig(name)
		if err == nil {
			err = p.add(b)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	return p, nil
}

// add adds a file. No scope may be in two files.
func (p *Places) add(data []byte) error {
	var doc struct {
		Default *place           `yaml:"default-docker"`
		Docker  map[string]place `yaml:"docker"`
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return err
	}
	if doc.Default != nil {
		if p.def != nil {
			return errors.New("another file has default-docker too")
		}
		p.def = doc.Default
	}
	for scope, pl := range doc.Docker {
		if _, ok := p.scopes[scope]; ok {
			return fmt.Errorf("another file has %q too", scope)
		}
		p.scopes[scope] = pl
	}
	return nil
}

// find returns the narrowest place for a name for which has reports true.
func (p *Places) find(name reference.Named, has func(place) bool) (place, bool) {
	for _, scope := range scopesOf(name) {
		if pl, ok := p.scopes[scope]; ok && has(pl) {
			return pl, true
		}
	}
	if p.def != nil && has(*p.def) {
		return *p.def, true
	}
	return place{}, false
}

// attachments reports whether signatures in the registry count. They do unless a file denies it: a policy that demands
// them is met by no other.
func (p *Places) attachments(name reference.Named) bool {
	pl, ok := p.find(name, func(pl place) bool { return pl.UseAttachments != nil })
	return !ok || *pl.UseAttachments
}

// base returns the URL below which the signatures of a repository are.
func (p *Places) base(name reference.Named) (*url.URL, error) {
	text := defaultLookaside
	if pl, ok := p.find(name, func(pl place) bool { return pl.Lookaside != "" || pl.SigStore != "" }); ok {
		if text = pl.Lookaside; text == "" {
			text = pl.SigStore
		}
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("lookaside %q: %w", text, err)
	}
	u.Path += "/" + reference.Path(name)
	return u, nil
}

// lookaside returns the simple signatures of a digest. They are numbered from 1, and the first that is absent ends them.
func (p *Places) lookaside(ctx context.Context, name reference.Named, dgst digest.Digest) ([]Signature, error) {
	base, err := p.base(name)
	if err != nil {
		return nil, err
	}
	var found []Signature
	for n := 1; ; n++ {
		u := *base
		u.Path += fmt.Sprintf("@%s=%s/signature-%d", dgst.Algorithm(), dgst.Encoded(), n)
		b, err := readURL(ctx, &u)
		if errors.Is(err, fs.ErrNotExist) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("lookaside: %w", err)
		}
		if n > maxSignatures {
			return nil, fmt.Errorf("lookaside: %s has more than %d signatures", base.Redacted(), maxSignatures)
		}
		found = append(found, Signature{Form: Simple, Origin: u.Redacted(), Data: b})
	}
}

// lookasideTime is how long one signature may take.
const lookasideTime = 30 * time.Second

// readURL reads a file or what a server has. It is an fs.ErrNotExist only if there is none.
func readURL(ctx context.Context, u *url.URL) (_ []byte, err error) {
	var body io.ReadCloser
	switch u.Scheme {
	case "file":
		body, err = os.Open(u.Path)
	case "http", "https":
		ctx, cancel := context.WithTimeout(ctx, lookasideTime)
		defer cancel()
		body, err = get(ctx, u)
	default:
		err = fmt.Errorf("%s: the scheme is not file, http or https", u.Redacted())
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxSignature+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", u.Redacted(), err)
	}
	if len(b) > maxSignature {
		return nil, fmt.Errorf("%s has more than %d bytes", u.Redacted(), maxSignature)
	}
	return b, nil
}

func get(ctx context.Context, u *url.URL) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.Body, nil
	case http.StatusNotFound:
		err = fs.ErrNotExist
	default:
		err = errors.New(resp.Status)
	}
	return nil, errors.Join(fmt.Errorf("read %s: %w", u.Redacted(), err), resp.Body.Close())
}
