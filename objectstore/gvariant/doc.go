// Package gvariant encodes and decodes GVariant, the serialisation of ostree's metadata objects.
//
// It covers every type in little-endian byte order; values of type double are carried, but not interpreted. The format
// is that of the GVariant specification. ostree's additions, such as big-endian integers inside, are left to the
// callers.
// # Encoding
//
// Encoders append to a byte slice. A container is written member by member with [Pad] in between, and closed by
// [AppendOffsets] with the end offsets of its members; [AppendArray] does both for arrays. Offsets and padding count
// from the start of the container, so a container must begin at a multiple of its alignment, which Pad of the enclosing
// container ensures.
//
// # Decoding
//
// A [Type] takes serialised values apart: [Type.Members] and [Type.Elements] return subslices of the input and verify
// the framing of one level, [Type.Check] verifies a whole value. Only normal form is accepted, the one serialisation
// that the encoder produces: minimal offsets, zero padding, strings of valid UTF-8 with exactly one NUL. Any other
// value is [ErrNotNormal], and no input makes a decoder panic. Decoding allocates only the slices of members that it
// returns and, for each variant that Check meets, the parsed type, whose size is bounded by 255 bytes of type string.
package gvariant
