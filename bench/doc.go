// Package bench compares the product with baselines in one run. See README.md.
package bench
