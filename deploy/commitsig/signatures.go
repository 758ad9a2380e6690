package commitsig

import (
	"errors"
	"fmt"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// Limits of detached metadata.
const (
	maxMeta       = 10 << 20 // bytes; ostree's limit of metadata
	maxSignatures = 64       // of a kind
	maxSignature  = 64 << 10 // bytes
)

// Keys of signatures in detached metadata, and the type of their values: a list of byte strings.
const (
	keyGPG     = "ostree.gpgsigs"
	keyEd25519 = "ostree.sign.ed25519"
	listType   = "aay"
)

// Signatures are the signatures of a commit, unchecked.
type Signatures struct {
	GPG     [][]byte // binary OpenPGP packets
	Ed25519 [][]byte
}

// ErrInvalid marks errors in detached metadata.
var ErrInvalid = errors.New("detached metadata of the commit is invalid")

// Parse returns the signatures in detached metadata, the bytes of an a{sv}, which they refer to. Errors are an ErrInvalid.
func Parse(meta []byte) (*Signatures, error) {
	if len(meta) > maxMeta {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrInvalid, len(meta), maxMeta)
	}
	entries, err := gvariant.ParseDict(meta)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s := new(Signatures)
	seen := make(map[string]bool)
	for _, e := range entries {
		var to *[][]byte
		switch {
		case e.Key == keyGPG && e.Value.Type == listType:
			to = &s.GPG
		case e.Key == keyEd25519 && e.Value.Type == listType:
			to = &s.Ed25519
		default:
			continue // ostree does not look at a value of another type either
		}
		if seen[e.Key] {
			return nil, fmt.Errorf("%w: two values of %s", ErrInvalid, e.Key)
		}
		seen[e.Key] = true
		if *to, err = list(e.Value.Data); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, e.Key, err)
		}
	}
	return s, nil
}

var signatureList = gvariant.MustType(listType)

// list returns the elements of an aay.
func list(data []byte) ([][]byte, error) {
	elements, err := signatureList.Elements(data)
	if err != nil {
		return nil, err
	}
	if n := elements.Len(); n > maxSignatures {
		return nil, fmt.Errorf("%d signatures, at most %d are allowed", n, maxSignatures)
	}
	sigs := make([][]byte, elements.Len())
	for i := range sigs {
		if sigs[i] = elements.At(i); len(sigs[i]) > maxSignature {
			return nil, fmt.Errorf("a signature of %d bytes, at most %d are allowed", len(sigs[i]), maxSignature)
		}
	}
	return sigs, nil
}
