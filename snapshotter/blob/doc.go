// Package blob turns the blob of a layer into its plain tar, and the tar into a layer of the store.
//
// Nothing in a descriptor or a blob is trusted. A layer is accepted when the decompressor has ended without complaint
// and the digest of the compressed bytes is the descriptor's; until then nothing refers to it.
package blob
