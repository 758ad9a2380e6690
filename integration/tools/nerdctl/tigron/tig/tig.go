// Package tig stands in for nerdctl's test library of this name.
//
// The command nerdctl 2.3 imports one type of it through a file of test helpers that is not named _test.go. The module
// is not published on its own (nerdctl replaces it by a folder of its repository), so that an ordinary build of the
// published nerdctl module needs this file.
package tig

import "testing"

// T is what nerdctl's helpers call on a test.
type T = testing.TB
