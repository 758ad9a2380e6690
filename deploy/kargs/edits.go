package kargs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrEdit marks edits that a list does not allow, or that no list allows.
var ErrEdit = errors.New("kernel arguments cannot be edited like that")

// An editError is an ErrEdit.
type editError struct{ error }

func (e editError) Is(target error) bool { return target == ErrEdit }
func (e editError) Unwrap() error        { return e.error }

// Edits are changes of a list of kernel arguments. They are made in the order of the fields, and within each field in
// order.
type Edits struct {
	Set     []string // KEY[=VALUE], replaces all arguments with the key; several with one key are all set
	Append  []string // KEY[=VALUE], see [List.Append]
	Replace []string // KEY=VALUE or KEY=OLD=NEW, see [List.Replace]
	Delete  []string // KEY[=VALUE], see [List.Delete]
}

// Empty reports whether there are no edits.
func (e *Edits) Empty() bool { return len(e.Set)+len(e.Append)+len(e.Replace)+len(e.Delete) == 0 }

// Check returns an ErrEdit for arguments that would break a boot entry, and for ostree=, which a deployment sets
// itself.
func (e *Edits) Check() error {
	for _, arg := range slices.Concat(e.Set, e.Append, e.Replace, e.Delete) {
		switch key := Key(arg); {
		case key == "":
			return editError{fmt.Errorf("%q is not a kernel argument", arg)}
		case key == "ostree", Sets(arg, "ostree") && !slices.Contains(e.Delete, arg):
			return editError{fmt.Errorf("kernel argument %q: it names the deployment, and is set for each", arg)}
		case strings.ContainsFunc(arg, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return editError{fmt.Errorf("kernel argument %q has a control character", arg)}
		}
	}
	return nil
}

// Apply returns the edited list. An argument that cannot be replaced or deleted is an ErrEdit.
func (e *Edits) Apply(list List) (List, error) {
	for _, arg := range e.Set {
		list = list.Without(Key(arg))
	}
	list = list.Append(e.Set...).Append(e.Append...)
	var err error
	for _, arg := range e.Replace {
		if list, err = list.Replace(arg); err != nil {
			return nil, editError{err}
		}
	}
	for _, arg := range e.Delete {
		if list, err = list.Delete(arg); err != nil {
			return nil, editError{err}
		}
	}
	return list, nil
}
