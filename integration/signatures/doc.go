// Package signatures tests signature policies against skopeo, podman and two releases of cosign: the table of cases says
// what a policy must answer, and each program that reads the form must answer the same.
package signatures
