// Package workload reads lists of images for benchmarks. A workload is a named list, in a TOML file.
//
//	name = "debian"
//	description = "a distribution, its update, and an application on each"
//
//	[[images]]
//	ref = "oci:base-1"          # an OCI layout, or an image of a registry
//	name = "base:1"             # what reports call it; default: ref
//
// Images are pulled in this order. An OCI layout is "oci:DIR" or "oci:DIR:TAG". A relative DIR is below a directory
// that the user names; see [Workload.Resolve]. Some workloads are built in.
package workload
