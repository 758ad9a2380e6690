// Package workload reads what a benchmark pulls: a workload is a named list of images, as a TOML file.
//
//	name = "debian"
//	description = "a distribution, its update, and an application on each"
//
//	[[images]]
//	ref = "oci:base-1"          # an OCI layout, or an image of a registry
//	name = "base:1"             # what reports call it; default: ref
//
// They are pulled in this order. An OCI layout is "oci:DIR" or "oci:DIR:TAG", a relative DIR being below a directory that
// the user names (see [Workload.Resolve]). Some workloads are built in.
package workload
