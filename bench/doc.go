// Package bench measures what the product promises, beside baselines, in one run: see README.md.
package bench
