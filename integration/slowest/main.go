// Command slowest reads the output of "go test -json" and prints the time of each package and the slowest tests. It
// fails if a test failed, and prints the output of that test.
//
// As the program of "go test -exec", it also measures processor time.
//
//	go build -o bin/slowest ./integration/slowest
//	go test -json -exec "$PWD/bin/slowest -exec" ./... | bin/slowest -n 10
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
	"strconv"
	"strings"
)

func main() {
	n := flag.Int("n", 10, "number of tests to print")
	program := flag.Bool("exec", false, "run a test program and measure its processor time")
	flag.Parse()
	if *program && flag.NArg() > 0 {
		status, err := execute(flag.Args(), os.Stdout)
		if err != nil {
			fmt.Fprintf(os.Stderr, "slowest: error: run tests: %v\n", err)
			status = 1
		}
		os.Exit(status)
	}
	if err := run(os.Stdin, os.Stdout, *n); err != nil {
		fmt.Fprintf(os.Stderr, "slowest: error: %v\n", err)
		os.Exit(1)
	}
}

// An event is a line of "go test -json".
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds

	processor float64 // seconds of processor time, 0 if not measured
}

// errFailed is the error of a failed test, which has been printed.
var errFailed = errors.New("tests failed")

func run(r io.Reader, w io.Writer, n int) error {
	var packages, tests []event
	output := make(map[string]*strings.Builder) // of each test or package
	processor := make(map[string]float64)
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
			if seconds, test, ok := readTime(e.Output); ok {
				processor[e.Package+" "+test] = seconds
				continue
			}
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
	// A package prints the times of its tests after their end.
	for _, events := range [][]event{packages, tests} {
		for i, e := range events {
			events[i].processor = processor[e.Package+" "+e.Test]
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

// readTime reads a line of [execute]. The test is "" for the time of a package.
func readTime(line string) (seconds float64, test string, ok bool) {
	text, ok := strings.CutPrefix(strings.TrimSpace(line), timePrefix)
	if !ok {
		return 0, "", false
	}
	number, test, _ := strings.Cut(text, " ")
	seconds, err := strconv.ParseFloat(number, 64)
	return seconds, test, err == nil
}

// show prints the n slowest events, with the processor time if it was measured.
func show(w io.Writer, events []event, n int) {
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(b.Elapsed, a.Elapsed) })
	for _, e := range events[:min(n, len(events))] {
		processor := ""
		if e.processor > 0 {
			processor = fmt.Sprintf("%8.1f s of a processor  ", e.processor)
		}
		fmt.Fprintf(w, "%8.1f s  %s%s\n", e.Elapsed, processor, strings.TrimSpace(e.Package+" "+e.Test))
	}
}
