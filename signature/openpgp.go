package signature

import (
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// openpgpConfig returns how OpenPGP messages are read: at a time, and without what makes small messages large.
func openpgpConfig(now time.Time) *packet.Config {
	limit := int64(maxSignature)
	return &packet.Config{
		Time:                       func() time.Time { return now },
		MaxDecompressedMessageSize: &limit,
	}
}
