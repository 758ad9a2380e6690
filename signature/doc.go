// Package signature decides by a policy whether an image may be used, from the signatures that were made of it.
//
// The policy is that of containers-policy.json(5), with registries.d for the places of signatures. A policy names, for
// each repository, the requirements that an image must meet. [Verify] takes an image by its digest, so that what was
// checked is what is used, and signatures from a [Source]: a registry, or a copy kept with the image.
//
// Three forms of signatures count: simple signing (an OpenPGP message, at a lookaside), cosign's attachments (a payload
// of the same shape, with a signature beside it) and sigstore bundles v0.3. All are read with bounds on size and number.
// Nothing but the source is asked: no transparency log, no trust root, no time server.
package signature
