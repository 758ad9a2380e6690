// Package browser tests the benchmark's pages in a real browser. It is a separate module, so that the product's go.mod
// does not require the library that drives the browser.
package browser
