package panics

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestPanics has a function panic in each way to run one. The panic is reported with its stack, and is the error.
func TestPanics(t *testing.T) {
	var reported []*Error
	old := Report
	Report = func(e *Error) { reported = append(reported, e) }
	defer func() { Report = old }()
	cause := errors.New("cause")
	for _, v := range []any{"boom", 1, cause} {
		boom := func() error { panic(v) }
		for name, run := range map[string]func() error{
			"Call": func() error { return Call(boom) },
			"Go":   func() error { return <-Go(boom) },
			"Group": func() error {
				g := NewGroup()
				g.Go(boom)
				return g.Wait()
			},
			"TryGo": func() error {
				g, ctx := WithContext(t.Context())
				if !g.TryGo(boom) {
					t.Error("TryGo: did not start")
				}
				<-ctx.Done()
				return g.Wait()
			},
			"Each": func() error { return Each(t.Context(), 1, 1, func(int) error { return boom() }) },
		} {
			reported = nil
			err := run()
			if want := fmt.Sprintf("panicked: %v", v); err == nil || err.Error() != want {
				t.Errorf("%s: got error %v, want %s", name, err, want)
			}
			if errors.Is(err, cause) != (v == any(cause)) {
				t.Errorf("%s: is the error %v: %t", name, cause, errors.Is(err, cause))
			}
			if len(reported) != 1 || !strings.Contains(string(reported[0].Stack), "TestPanics") {
				t.Errorf("%s: got %d reports, want one with the stack", name, len(reported))
			}
		}
	}
	if err := Call(func() error { return cause }); !errors.Is(err, cause) {
		t.Errorf("without a panic: got error %v, want %v", err, cause)
	}
}

// TestEach calls a function for each number once, up to the first error.
func TestEach(t *testing.T) {
	const n = 1000
	var calls [n]atomic.Int32
	testenv.Must(t, Each(t.Context(), n, 10, func(i int) error { calls[i].Add(1); return nil }))
	for i := range calls {
		if got := calls[i].Load(); got != 1 {
			t.Errorf("%d: %d calls, want 1", i, got)
		}
	}
	cause := errors.New("cause")
	var count atomic.Int32
	err := Each(t.Context(), n, n+1, func(int) error { count.Add(1); return cause })
	if !errors.Is(err, cause) || count.Load() != 1 {
		t.Errorf("got error %v after %d calls, want %v after 1", err, count.Load(), cause)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := Each(ctx, n, 1, func(int) error { t.Error("called"); return nil }); !errors.Is(err, cause) {
		t.Errorf("canceled: got error %v, want %v", err, cause)
	}
}

// TestGoroutines finds goroutines of the program that do not run by this package: go statements, groups of errgroup, and
// functions of sync.WaitGroup.Go or time.AfterFunc. The functions of those listed call Call, or cannot panic.
func TestGoroutines(t *testing.T) {
	root, err := filepath.Abs("../..")
	testenv.Must(t, err)
	known := map[string]string{
		"cmd/ostree-snapshotter/main.go: AfterFunc": "stop of signal.NotifyContext",
		"deploy/system.go: AfterFunc":               "prints a line",
		"objectstore/layer/journal.go: AfterFunc":   "Call",
		"objectstore/layer/stream.go: wg.Go":        "Call, for each block",
		"plugin/server.go: AfterFunc":               "stops the server",
		"plugin/server.go: background.Go":           "Call",
		"snapshotter/cleanup.go: AfterFunc":         "cancels a context",
		"snapshotter/commit.go: work.Go":            "Call",
		"snapshotter/rest.go: AfterFunc":            "cancels a context",
		"snapshotter/worker.go: AfterFunc":          "Call",
	}
	skipped := map[string]bool{"bench": true, "integration": true, "findings": true, "internal/process": true, "internal/panics": true, ".git": true, "plugin/containerd/containerdtest": true}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, name)
		switch {
		case err != nil:
			return err
		case d.IsDir() && skipped[rel]:
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		for _, found := range goroutines(t, name) {
			if key := rel + ": " + found; known[key] == "" {
				t.Errorf("%s starts a goroutine in which a panic would end the daemon", key)
			}
		}
		return nil
	})
	testenv.Must(t, err)
}

// goroutines returns what starts goroutines in a file, other than this package.
func goroutines(t *testing.T, name string) (found []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	testenv.Must(t, err)
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, "go")
		case *ast.ImportSpec:
			if strings.Contains(n.Path.Value, "errgroup") {
				found = append(found, "errgroup")
			}
		case *ast.SelectorExpr:
			if n.Sel.Name == "AfterFunc" {
				found = append(found, "AfterFunc")
			}
			if n.Sel.Name != "Go" {
				return true
			}
			switch x := n.X.(type) {
			case *ast.Ident:
				if x.Name == "background" || x.Name == "wg" {
					found = append(found, x.Name+".Go")
				}
			case *ast.SelectorExpr:
				if x.Sel.Name != "group" {
					found = append(found, x.Sel.Name+".Go")
				}
			}
		}
		return true
	})
	return found
}
