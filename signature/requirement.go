package signature

import (
	"encoding/json"
	"errors"
	"fmt"
)

// A requirement is one of those that a rule lists.
type requirement interface {
	// forms returns the forms of signatures that meet it, 0 if it needs none.
	forms() Form
	// check tries the signatures one after the other. An error means that the policy cannot be used.
	check(img Image, list []candidate) (Result, error)
}

// The types of requirements.
const (
	typeAccept   = "insecureAcceptAnything"
	typeReject   = "reject"
	typeSignedBy = "signedBy"
	typeSigstore = "sigstoreSigned"
)

func parseRequirement(data []byte) (requirement, error) {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, err
	}
	switch head.Type {
	case typeAccept:
		return new(acceptAnything), decodeExactly(data, map[string]any{"type": &head.Type})
	case typeReject:
		return new(reject), decodeExactly(data, map[string]any{"type": &head.Type})
	case typeSignedBy:
		return parseSignedBy(data)
	case typeSigstore:
		return parseSigstore(data)
	}
	return nil, fmt.Errorf("unknown type %q", head.Type)
}

type acceptAnything struct{}

func (*acceptAnything) forms() Form { return 0 }

func (*acceptAnything) check(Image, []candidate) (Result, error) {
	return Result{Requirement: typeAccept, Met: true}, nil
}

type reject struct{}

func (*reject) forms() Form { return 0 }

func (*reject) check(Image, []candidate) (Result, error) {
	return Result{Requirement: typeReject, Reason: "no image of this rule is accepted"}, nil
}

// keySources are the places that a requirement names for the keys of one purpose.
type keySources struct {
	path  string
	paths []string
	data  []byte
	datas [][]byte

	given []string // the keys of the policy that occur
}

// A blob is the content of a file of configuration, or data in the policy.
type blob struct {
	name string
	data []byte
}

// field returns the destination for a key of the policy: prefix and Path, Paths, Data or Datas.
func (k *keySources) field(prefix, key string) any {
	var dst any
	switch key {
	case prefix + "Path":
		dst = &k.path
	case prefix + "Paths":
		dst = &k.paths
	case prefix + "Data":
		dst = &k.data
	case prefix + "Datas":
		dst = &k.datas
	default:
		return nil
	}
	k.given = append(k.given, key)
	return dst
}

// validate checks that at most one place is given, and that it is not empty.
func (k *keySources) validate() error {
	switch {
	case len(k.given) > 1:
		return fmt.Errorf("%q and %q exclude each other", k.given[0], k.given[1])
	case len(k.given) == 1 && k.path == "" && len(k.paths) == 0 && len(k.data) == 0 && len(k.datas) == 0:
		return fmt.Errorf("%q is empty", k.given[0])
	}
	return nil
}

// load reads the keys.
func (k *keySources) load() ([]blob, error) {
	var list []blob
	files := k.paths
	if k.path != "" {
		files = []string{k.path}
	}
	for _, f := range files {
		b, err := readConfig(f)
		if err != nil {
			return nil, err
		}
		list = append(list, blob{f, b})
	}
	datas := k.datas
	if k.data != nil {
		datas = [][]byte{k.data}
	}
	for i, b := range datas {
		name := k.given[0]
		if len(datas) > 1 {
			name = fmt.Sprintf("%s %d", name, i+1)
		}
		list = append(list, blob{name, b})
	}
	return list, nil
}

var errNoKey = errors.New("it names no key")
