// Package tig stands in for nerdctl's test library of this name.
//
// The command nerdctl 2.3 imports one of its types in a file of test helpers that is not named _test.go. The module is
// not published separately (nerdctl replaces it with a directory of its repository), so an ordinary build of the
// published nerdctl module needs this file.
package tig

import "testing"

// T is the type of the test in nerdctl's helpers.
type T = testing.TB
