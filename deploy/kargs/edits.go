package kargs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrEdit marks errors about edits that a list does not allow, or that no list does.
var ErrEdit = errors.New("kernel arguments cannot be edited like that")

// An editError is an ErrEdit.
type editError struct{ error }

func (e editError) Is(target error) bool { return target == ErrEdit }
func (e editError) Unwrap() error        { return e.error }

// Edits are changes of a list of kernel arguments, in the order in which they are made. Within each the order is kept.
type Edits struct {
	Set     []string // KEY[=VALUE], in place of all arguments with that key; several with one key all stay
	Append  []string // KEY[=VALUE], see [List.Append]
	Replace []string // KEY=VALUE or KEY=OLD=NEW, see [List.Replace]
	Delete  []string // KEY[=VALUE], see [List.Delete]
}

// Empty reports whether nothing is to be changed.
func (e *Edits) Empty() bool { return len(e.Set)+len(e.Append)+len(e.Replace)+len(e.Delete) == 0 }

// Check refuses, as an ErrEdit, what would make something else of a boot entry, and ostree=, which a deployment sets itself.
func (e *Edits) Check() error {
	for _, arg := range slices.Concat(e.Set, e.Append, e.Replace, e.Delete) {
		switch key := Key(arg); {
		case key == "":
			return editError{fmt.Errorf("%q is no kernel argument", arg)}
		case key == "ostree":
			return editError{fmt.Errorf("kernel argument %q: it names the deployment, and is set for each", arg)}
		case strings.ContainsFunc(arg, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return editError{fmt.Errorf("kernel argument %q has a control character", arg)}
		}
	}
	return nil
}

// Apply returns a list with the changes made. What cannot be replaced or deleted is an ErrEdit.
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
