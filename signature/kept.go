package signature

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Kept are the signatures that an image was accepted by, kept with it so that it can be checked again without a network.
// They are a [Source], and no more trusted than those of a registry.
type Kept []keptSignature

type keptSignature struct {
	Form        Form              `json:"form"`
	Of          digest.Digest     `json:"of"`
	Origin      string            `json:"origin"`
	Data        []byte            `json:"data"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// MaxKept is the size of the largest document with kept signatures.
const MaxKept = 4 << 20

// Kept returns the signatures that an image is accepted by; none for one that is refused, or that needs none.
func (v *Verdict) Kept() Kept {
	var list Kept
	for _, r := range v.Results {
		if v.Accepted && r.By != nil {
			list = append(list, keptSignature{r.By.Form, r.By.Digest, r.By.Origin, r.By.Data, usedAnnotations(r.By.Annotations)})
		}
	}
	return list
}

// usedAnnotations returns those of the annotations that are looked at. Whoever can push may add others of any size.
func usedAnnotations(all map[string]string) map[string]string {
	used := make(map[string]string)
	for _, name := range []string{annotationSignature, annotationCert, annotationChain, annotationBundle} {
		if v, ok := all[name]; ok {
			used[name] = v
		}
	}
	return used
}

// Encode returns the document that [ParseKept] reads.
func (k Kept) Encode() ([]byte, error) {
	b, err := json.Marshal(map[string]Kept{"signatures": k})
	if err == nil && len(b) > MaxKept {
		err = fmt.Errorf("keep signatures: they have more than %d bytes", MaxKept)
	}
	return b, err
}

// ParseKept parses a document of [Kept.Encode].
func ParseKept(data []byte) (k Kept, err error) {
	if len(data) > MaxKept {
		err = fmt.Errorf("they have more than %d bytes", MaxKept)
	}
	if err == nil {
		err = checkNesting(data)
	}
	if err == nil {
		err = decodeExactly(data, map[string]any{"signatures": &k})
	}
	if err == nil && len(k) > maxSignatures {
		err = fmt.Errorf("they are more than %d", maxSignatures)
	}
	if err != nil {
		return nil, fmt.Errorf("read kept signatures: %w", err)
	}
	return k, nil
}

// Signatures implements [Source].
func (k Kept) Signatures(_ context.Context, _ reference.Named, dgst digest.Digest, forms Form) ([]Signature, error) {
	var found []Signature
	for _, s := range k {
		if s.Of == dgst && s.Form&forms != 0 {
			found = append(found, Signature{Form: s.Form, Origin: s.Origin, Data: s.Data, Annotations: s.Annotations})
		}
	}
	return found, nil
}
