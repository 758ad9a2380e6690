// Package browser tests the benchmark's pages in a real browser. It is a module of its own, so that the product's go.mod does
// not name the library that drives the browser.
package browser
