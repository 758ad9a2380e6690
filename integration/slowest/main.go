// Command slowest reads the output of "go test -json" and prints the time of each package and the slowest tests. It fails if a
// test failed, and prints the output of that test.
//
//	go test -json ./... | go run ./integration/slowest -n 10
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	n := flag.Int("n", 10, "number of tests to print")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *n); err != nil {
		fmt.Fprintf(os.Stderr, "slowest: error: %v\n", err)
		os.Exit(1)
	}
}

// An event is a line of "go test -json".
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// errFailed is the error of a failed test, which has been printed.
var errFailed = errors.New("tests failed")

func run(r io.Reader, w io.Writer, n int) error {
	var packages, tests []event
	output := make(map[string]*strings.Builder) // of each test or package
	failed := false
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("line %q: %w", line, err)
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output":
			if output[key] == nil {
				output[key] = new(strings.Builder)
			}
			output[key].WriteString(e.Output)
			continue
		case "fail":
			failed = true
			if out := output[key]; out != nil {
				fmt.Fprint(w, out)
			}
		case "pass":
		default:
			continue
		}
		delete(output, key)
		if e.Test == "" {
			packages = append(packages, e)
		} else if !strings.Contains(e.Test, "/") {
			tests = append(tests, e)
		}
	}
	show(w, packages, len(packages))
	fmt.Fprintln(w)
	show(w, tests, n)
	if failed {
		return errFailed
	}
	return nil
}

// show prints the n slowest events.
func show(w io.Writer, events []event, n int) {
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(b.Elapsed, a.Elapsed) })
	for _, e := range events[:min(n, len(events))] {
		fmt.Fprintf(w, "%8.1f s  %s\n", e.Elapsed, strings.TrimSpace(e.Package+" "+e.Test))
	}
}
