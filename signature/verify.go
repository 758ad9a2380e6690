package signature

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// A Form is a form of signatures.
type Form uint8

// The forms.
const (
	Simple     Form = 1 << iota // an OpenPGP message with the name and digest of an image, from a lookaside
	Attachment                  // cosign's: the name and digest of an image, with a signature in annotations
	Bundle                      // a sigstore bundle, in which a statement about digests is signed
)

func (f Form) String() string {
	var names []string
	for _, n := range []struct {
		form Form
		name string
	}{{Simple, "simple signing"}, {Attachment, "cosign attachment"}, {Bundle, "sigstore bundle"}} {
		if f&n.form != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ", ")
}

// A Signature is what was found beside an image, in one of the forms. Nothing of it is checked.
type Signature struct {
	Form        Form
	Origin      string // where it was found, for a person
	Data        []byte // the message, the payload or the bundle
	Annotations map[string]string
}

// A Source has signatures of images.
type Source interface {
	// Signatures returns the signatures of a manifest or index in any of some forms, in the repository that the name is
	// of. No signature is no error. An error means that there could be a signature that cannot be read now.
	Signatures(ctx context.Context, name reference.Named, digest digest.Digest, forms Form) ([]Signature, error)
}

// A SourceError reports that signatures cannot be read: that a registry does not answer, not that it has none.
type SourceError struct {
	Name string
	Err  error
}

func (e *SourceError) Error() string { return "read signatures of " + e.Name + ": " + e.Err.Error() }
func (e *SourceError) Unwrap() error { return e.Err }

// An Image is an image to check.
type Image struct {
	Name   reference.Named // by [ParseName]
	Digest digest.Digest   // of the manifest that is used
	Index  digest.Digest   // of the index that names the manifest, whose signature counts for it too; or ""
}

// NewImage returns the image of a manifest, for the digest that its name has: the same, that of an index which names the
// manifest, or "" if it is not known.
func NewImage(name reference.Named, manifest, target digest.Digest) Image {
	if target == manifest {
		target = ""
	}
	return Image{Name: name, Digest: manifest, Index: target}
}

// A Verdict is what a policy says of an image.
type Verdict struct {
	Accepted bool
	Image    Image
	Policy   string // file
	Scope    string // the rule that decided: a scope of the transport docker, that itself, or "default"
	Results  []Result
}

// A Result is what one requirement of a rule says.
type Result struct {
	Requirement string // its type, such as "sigstoreSigned"
	Met         bool
	By          *Acceptance // the signature that met it, if it needs one
	Tried       []Trial     // the signatures that did not
	Reason      string      // why it is not met

	forms Form // of the signatures that meet it
}

// An Acceptance says which signature met a requirement.
type Acceptance struct {
	Signature
	Digest   digest.Digest // that it is about
	Key      string        // the key: its file or place in the policy, with a fingerprint
	Identity string        // of the signer's certificate, or ""
	Logged   bool          // a transparency log of the policy has recorded it
}

// A Trial says why a signature did not meet a requirement.
type Trial struct {
	Signature
	Err error
}

// A RefusedError reports that a policy refuses an image.
type RefusedError struct{ Verdict *Verdict }

func (e *RefusedError) Error() string {
	v := e.Verdict
	return fmt.Sprintf("image %s is refused by rule %q of the signature policy: %s", v.Image.Name, v.Scope, v.Reason())
}

// Reason returns why an image is refused.
func (v *Verdict) Reason() string {
	for _, r := range v.Results {
		if !r.Met {
			return r.Requirement + ": " + r.Reason
		}
	}
	return ""
}

// Unsigned returns the forms of which an image has no signature, for want of which it is refused; 0 if there are other
// reasons.
func (v *Verdict) Unsigned() Form {
	var forms Form
	for _, r := range v.Results {
		if !r.Met && len(r.Tried) == 0 {
			forms |= r.forms
		}
	}
	return forms
}

// Err returns a [RefusedError] unless the image is accepted.
func (v *Verdict) Err() error {
	if v.Accepted {
		return nil
	}
	return &RefusedError{v}
}

// Verify asks a policy about an image. All requirements of the rule must be met, each by one signature of the manifest
// or of its index. The source is asked only if a requirement needs a signature.
//
// An image that is refused is no error: the verdict says so. An error is a [PolicyError] if a key cannot be read, and a
// [SourceError] if the source cannot be; the image must not be used then.
func Verify(ctx context.Context, p *Policy, img Image, src Source) (*Verdict, error) {
	digests := []digest.Digest{img.Digest}
	if img.Index != "" {
		digests = append(digests, img.Index)
	}
	for _, d := range digests {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return nil, fmt.Errorf("image %s: digest %q is not a sha256 digest", img.Name, d)
		}
	}
	if pinned, ok := img.Name.(reference.Digested); ok && !slices.Contains(digests, pinned.Digest()) {
		return nil, fmt.Errorf("image %s: it is not the one that the name demands, but %s", img.Name, img.Digest)
	}
	v := &Verdict{Image: img, Policy: p.File}
	scope, list := p.rule(img.Name)
	v.Scope = scope
	var found []candidate
	if forms := needs(list); forms != 0 {
		for _, d := range digests {
			sigs, err := src.Signatures(ctx, img.Name, d, forms)
			if err != nil {
				return nil, &SourceError{Name: img.Name.String(), Err: err}
			}
			for _, s := range sigs {
				found = append(found, candidate{s, d})
			}
		}
	}
	v.Accepted = len(list) > 0
	for _, r := range list {
		res, err := r.check(img, found)
		if err != nil {
			return nil, &PolicyError{File: p.File, Err: fmt.Errorf("rule %q: %w", v.Scope, err)}
		}
		v.Results = append(v.Results, res)
		v.Accepted = v.Accepted && res.Met
	}
	return v, nil
}

// A candidate is a signature that was found for a digest.
type candidate struct {
	Signature
	of digest.Digest
}

// needs returns the forms of signatures that requirements accept.
func needs(list []requirement) Form {
	var forms Form
	for _, r := range list {
		forms |= r.forms()
	}
	return forms
}

// tryAll returns the result of a requirement that one signature has to meet.
func tryAll(typ string, forms Form, list []candidate, try func(candidate) (*Acceptance, error)) Result {
	res := Result{Requirement: typ, forms: forms}
	for _, c := range list {
		if c.Form&forms == 0 {
			continue
		}
		by, err := try(c)
		if err != nil {
			res.Tried = append(res.Tried, Trial{c.Signature, bounded(err)})
			continue
		}
		by.Signature, by.Digest = c.Signature, c.of
		res.By, res.Met = by, true
		return res
	}
	res.Reason = reason(res.Tried)
	return res
}

// maxReason is the length of the longest error of a signature: errors quote what is in it.
const maxReason = 1024

// bounded returns an error with a text of bounded length.
func bounded(err error) error {
	text := err.Error()
	if len(text) <= maxReason {
		return err
	}
	return errors.New(strings.ToValidUTF8(text[:maxReason], "") + "...")
}

var errNoSignature = errors.New("it has no signature")

// maxReasons is how many signatures' errors are told in one line.
const maxReasons = 3

func reason(tried []Trial) string {
	if len(tried) == 0 {
		return errNoSignature.Error()
	}
	var texts []string
	for _, t := range tried {
		text := t.Err.Error()
		if !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	if n := len(texts) - maxReasons; n > 0 {
		texts = append(texts[:maxReasons], fmt.Sprintf("and %d more reasons", n))
	}
	if len(tried) == 1 {
		return texts[0]
	}
	return fmt.Sprintf("none of %d signatures is accepted: %s", len(tried), strings.Join(texts, "; "))
}
