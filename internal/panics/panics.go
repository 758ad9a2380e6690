// Package panics runs the goroutines of the daemon. A panic in one of them, which hostile input may cause, becomes an error
// of what the goroutine did, and does not end the process.
package panics

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Report is called with each panic that became an error. It may be replaced while no other goroutine runs.
var Report = func(e *Error) { slog.Error(e.Error(), "stack", string(e.Stack)) }

// An Error is a panic.
type Error struct {
	Value any    // that panic was called with
	Stack []byte // of the goroutine
}

func (e *Error) Error() string { return fmt.Sprintf("panicked: %v", e.Value) }

// Unwrap returns the value if it is an error.
func (e *Error) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Call returns the error of f. A panic in f is reported, and is an [Error].
func Call(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			e := &Error{Value: v, Stack: debug.Stack()}
			Report(e)
			err = e
		}
	}()
	return f()
}

// Go runs f in a goroutine. The channel that it returns gets the error of f, see [Call], and need not be read.
func Go(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- Call(f) }()
	return done
}

// A Group is an errgroup.Group whose functions may panic.
type Group struct{ *errgroup.Group }

// NewGroup returns a group without a context: no function that fails ends the others.
func NewGroup() *Group { return &Group{new(errgroup.Group)} }

// WithContext is errgroup.WithContext.
func WithContext(ctx context.Context) (*Group, context.Context) {
	g, ctx := errgroup.WithContext(ctx)
	return &Group{g}, ctx
}

// Go is as of an errgroup.Group. A panic in f is its error, see [Call].
func (g *Group) Go(f func() error) { g.Group.Go(func() error { return Call(f) }) }

// TryGo is as of an errgroup.Group. A panic in f is its error, see [Call].
func (g *Group) TryGo(f func() error) bool { return g.Group.TryGo(func() error { return Call(f) }) }

// Each calls f for the numbers below n, by several goroutines: at most one per processor, and one for each share of the numbers.
// After an error it starts no more calls, and returns that.
func Each(ctx context.Context, n, share int, f func(i int) error) error {
	group, ctx := WithContext(ctx)
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), 1+n/share) {
		group.Go(func() error {
			for i := int(next.Add(1) - 1); i < n; i = int(next.Add(1) - 1) {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := f(i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
