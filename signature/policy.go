package signature

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
)

// The system's policy: that of the host, or else the vendor's.
const (
	DefaultPolicyFile = "/etc/containers/policy.json"
	VendorPolicyFile  = "/usr/share/containers/policy.json"
)

var systemPolicies = []string{DefaultPolicyFile, VendorPolicyFile}

// maxConfig is the size of the largest file of configuration that is read: a policy, a key, a list of certificates.
const maxConfig = 4 << 20

// dockerTransport is the transport whose scopes are repositories of registries.
const dockerTransport = "docker"

// A PolicyError reports a policy that cannot be used. Nothing is accepted by such a policy.
type PolicyError struct {
	File string // "" for a policy that was not read from a file
	Err  error
}

func (e *PolicyError) Error() string {
	if e.File == "" {
		return "signature policy: " + e.Err.Error()
	}
	return "signature policy " + e.File + ": " + e.Err.Error()
}

func (e *PolicyError) Unwrap() error { return e.Err }

// A Policy says which images may be used.
type Policy struct {
	File string // that it was read from, or ""

	def    []requirement
	scopes map[string][]requirement // of the transport docker
}

// LoadPolicy reads a policy of containers-policy.json(5). With "", it is [DefaultPolicyFile], or [VendorPolicyFile] if that
// is absent; a policy of a user is never read. All errors are a [PolicyError], and that of an absent file is an
// fs.ErrNotExist: only that of one which is not there at all, and not of a link that leads nowhere.
func LoadPolicy(file string) (*Policy, error) {
	if file != "" {
		return loadPolicy(file)
	}
	var absent error
	for _, file := range systemPolicies {
		p, err := loadPolicy(file)
		if !errors.Is(err, fs.ErrNotExist) {
			return p, err
		}
		if absent == nil {
			absent = err
		}
	}
	return nil, absent
}

func loadPolicy(file string) (*Policy, error) {
	b, err := readConfig(file)
	if errors.Is(err, fs.ErrNotExist) {
		if link := lostLink(file); link != "" {
			err = fmt.Errorf("the link %s leads nowhere", link)
		}
	}
	if err != nil {
		return nil, &PolicyError{File: file, Err: err}
	}
	p, err := ParsePolicy(b)
	if err != nil {
		var perr *PolicyError
		if errors.As(err, &perr) {
			err = perr.Err
		}
		return nil, &PolicyError{File: file, Err: err}
	}
	p.File = file
	return p, nil
}

// lostLink returns the symbolic link for which a file cannot be found: itself, or a directory above it. It returns "" if
// the file is absent.
func lostLink(file string) string {
	for name := filepath.Clean(file); ; name = filepath.Dir(name) {
		if st, err := os.Lstat(name); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			if _, err := os.Stat(name); err != nil {
				return name
			}
		}
		if name == filepath.Dir(name) {
			return ""
		}
	}
}

// readConfig reads a file of configuration.
func readConfig(file string) (_ []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("read %s: it has more than %d bytes", file, maxConfig)
	}
	return b, err
}

// ParsePolicy parses a policy. It demands what containers-policy.json(5) demands: no unknown keys, and no key twice.
// Keys of signers are read when an image is checked. All errors are a [PolicyError].
func ParsePolicy(data []byte) (*Policy, error) {
	p := &Policy{scopes: make(map[string][]requirement)}
	if err := p.parse(data); err != nil {
		return nil, &PolicyError{Err: err}
	}
	return p, nil
}

func (p *Policy) parse(data []byte) error {
	var def json.RawMessage
	transports := make(map[string]*json.RawMessage)
	var all json.RawMessage
	err := decodeObject(data, func(key string) any {
		switch key {
		case "default":
			return &def
		case "transports":
			return &all
		}
		return nil
	})
	if err != nil {
		return err
	}
	if def == nil {
		return errors.New(`it has no "default"`)
	}
	if p.def, err = parseRequirements(def); err != nil {
		return fmt.Errorf("default: %w", err)
	}
	if all == nil {
		return nil
	}
	err = decodeObject(all, func(key string) any {
		raw := new(json.RawMessage)
		transports[key] = raw
		return raw
	})
	if err != nil {
		return fmt.Errorf("transports: %w", err)
	}
	for name, raw := range transports {
		scopes, err := parseScopes(*raw)
		if err != nil {
			return fmt.Errorf("transport %q: %w", name, err)
		}
		if name == dockerTransport {
			p.scopes = scopes
		}
	}
	return nil
}

func parseScopes(data []byte) (map[string][]requirement, error) {
	raw := make(map[string]*json.RawMessage)
	err := decodeObject(data, func(key string) any {
		r := new(json.RawMessage)
		raw[key] = r
		return r
	})
	if err != nil {
		return nil, err
	}
	scopes := make(map[string][]requirement, len(raw))
	for name, r := range raw {
		if scopes[name], err = parseRequirements(*r); err != nil {
			return nil, fmt.Errorf("scope %q: %w", name, err)
		}
	}
	return scopes, nil
}

func parseRequirements(data []byte) ([]requirement, error) {
	var raw []json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	if len(raw) == 0 {
		return nil, errors.New("the list of requirements is empty")
	}
	list := make([]requirement, 0, len(raw))
	for i, r := range raw {
		req, err := parseRequirement(r)
		if err != nil {
			return nil, fmt.Errorf("requirement %d: %w", i+1, err)
		}
		list = append(list, req)
	}
	return list, nil
}

// defaultScope is the name of the rule for images that no scope names.
const defaultScope = "default"

// rule returns the requirements for a name, and the scope that has them.
func (p *Policy) rule(name reference.Named) (scope string, list []requirement) {
	for _, scope := range scopesOf(name) {
		if list, ok := p.scopes[scope]; ok {
			return scope, list
		}
	}
	if list, ok := p.scopes[""]; ok {
		return dockerTransport, list
	}
	return defaultScope, p.def
}

// scopesOf returns the scopes that an image belongs to, the narrowest first: its name with the tag or digest, its
// repository, the parents of that, and wildcards for the parents of the registry's domain.
func scopesOf(name reference.Named) []string {
	scopes := []string{name.String()}
	n := name.Name()
	for {
		scopes = append(scopes, n)
		i := strings.LastIndexByte(n, '/')
		if i < 0 {
			break
		}
		n = n[:i]
	}
	host, _, _ := strings.Cut(n, ":")
	for {
		_, rest, ok := strings.Cut(host, ".")
		if !ok {
			return scopes
		}
		host = rest
		scopes = append(scopes, "*."+host)
	}
}

// AcceptsUnknown reports whether the policy accepts images that no scope names, signed or not: by its default, or for all
// registries.
func (p *Policy) AcceptsUnknown() bool {
	all, ok := p.scopes[""]
	return acceptsAnything(p.def) || ok && acceptsAnything(all)
}

func acceptsAnything(list []requirement) bool {
	for _, r := range list {
		if _, ok := r.(*acceptAnything); !ok {
			return false
		}
	}
	return true
}

// Demands reports whether the policy accepts an image only with a signature. It does not for one that is refused or
// accepted in any case.
func (p *Policy) Demands(name reference.Named) bool {
	_, list := p.rule(name)
	return needs(list) != 0
}

// ParseName returns the normalized name of an image: a registry, a repository, and a digest or else a tag, "latest" if
// there is neither. Of a tag and a digest only the digest counts.
func ParseName(name string) (reference.Named, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, fmt.Errorf("parse name %q: %w", name, err)
	}
	return ref, nil
}
