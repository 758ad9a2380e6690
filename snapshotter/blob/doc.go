// Package blob decompresses a layer's blob to its plain tar, verifies it, and imports the tar into the layer store.
//
// Nothing in a descriptor or a blob is trusted. A layer is accepted only after the blob was decompressed to its end
// without error and the digest of the compressed bytes matched the descriptor. Until then nothing refers to the layer.
package blob
