package signature

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// certSigner demands a certificate for code signing by an authority, for an identity.
type certSigner struct {
	roots, intermediates keySources
	issuer               string // of OpenID Connect, which Fulcio records; "" if it does not matter
	email, host, uri     string // each "" if it does not matter
}

func (c *certSigner) subjectField(key string) any {
	switch key {
	case "subjectEmail":
		return &c.email
	case "subjectURI":
		return &c.uri
	}
	return nil
}

func parseFulcio(data []byte) (*certSigner, error) {
	c := new(certSigner)
	err := decodeObject(data, func(key string) any {
		switch key {
		case "oidcIssuer":
			return &c.issuer
		case "caPaths", "caDatas":
			return nil
		}
		if dst := c.subjectField(key); dst != nil {
			return dst
		}
		return c.roots.field("ca", key)
	})
	switch {
	case err != nil:
	case len(c.roots.given) == 0:
		err = errors.New("it names no caPath and no caData")
	case c.issuer == "":
		err = errors.New("it names no oidcIssuer")
	case c.email == "" && c.uri == "":
		err = errors.New("it names no subjectEmail and no subjectURI")
	default:
		err = c.roots.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("fulcio: %w", err)
	}
	return c, nil
}

func parsePKI(data []byte) (*certSigner, error) {
	c := new(certSigner)
	err := decodeObject(data, func(key string) any {
		switch key {
		case "subjectHostname":
			return &c.host
		case "caRootsPaths", "caRootsDatas", "caIntermediatesPaths", "caIntermediatesDatas":
			return nil
		}
		if dst := c.subjectField(key); dst != nil {
			return dst
		}
		if dst := c.roots.field("caRoots", key); dst != nil {
			return dst
		}
		return c.intermediates.field("caIntermediates", key)
	})
	switch {
	case err != nil:
	case len(c.roots.given) == 0:
		err = errors.New("it names no caRootsPath and no caRootsData")
	case c.email == "" && c.host == "" && c.uri == "":
		err = errors.New("it names no subjectEmail, no subjectHostname and no subjectURI")
	default:
		err = errors.Join(c.roots.validate(), c.intermediates.validate())
	}
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	return c, nil
}

// loadedSigner is a certSigner with the certificates of its authority.
type loadedSigner struct {
	*certSigner
	name          string // of the authority's file or place
	pool          *x509.CertPool
	intermediates []*x509.Certificate
}

func (c *certSigner) load() (*loadedSigner, error) {
	l := &loadedSigner{certSigner: c, pool: x509.NewCertPool()}
	roots, err := loadCerts(&c.roots)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("%s: no certificates", c.roots.given[0])
	}
	for _, cert := range roots {
		l.pool.AddCert(cert)
	}
	blobs, err := c.roots.load()
	if err != nil {
		return nil, err
	}
	l.name = blobs[0].name
	l.intermediates, err = loadCerts(&c.intermediates)
	return l, err
}

func loadCerts(src *keySources) ([]*x509.Certificate, error) {
	blobs, err := src.load()
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, b := range blobs {
		ders, err := decodePEMCerts(b.data)
		for _, der := range ders {
			cert, err2 := x509.ParseCertificate(der)
			err = errors.Join(err, err2)
			certs = append(certs, cert)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
	}
	return certs, nil
}

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// check returns whom a certificate is for, or why it is not accepted at a time.
func (l *loadedSigner) check(cert *x509.Certificate, chain [][]byte, at time.Time) (string, error) {
	between := x509.NewCertPool()
	for _, c := range l.intermediates {
		between.AddCert(c)
	}
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return "", fmt.Errorf("certificate chain: %w", err)
		}
		between.AddCert(c)
	}
	// Names of other kinds, which Fulcio gives to machines, are not known to x509. Whom the certificate is for is checked here.
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, oidSAN.Equal)
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: l.pool, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
	if err != nil {
		return "", fmt.Errorf("certificate: %w", err)
	}
	if l.issuer != "" {
		issuer, err := issuerOf(cert)
		if err != nil {
			return "", fmt.Errorf("certificate: %w", err)
		}
		if issuer != l.issuer {
			return "", fmt.Errorf("certificate: its identity is from %q, not %q", issuer, l.issuer)
		}
	}
	return l.subject(cert)
}

// subject returns whom a certificate is for. All that the policy demands of it must be there.
func (l *loadedSigner) subject(cert *x509.Certificate) (string, error) {
	var uris, who []string
	for _, u := range cert.URIs {
		uris = append(uris, u.String())
	}
	if l.email != "" {
		if !slices.Contains(cert.EmailAddresses, l.email) {
			return "", fmt.Errorf("certificate: it is for %q, not %q", append(cert.EmailAddresses, uris...), l.email)
		}
		who = append(who, l.email)
	}
	if l.uri != "" {
		if !slices.Contains(uris, l.uri) {
			return "", fmt.Errorf("certificate: it is for %q, not %q", append(uris, cert.EmailAddresses...), l.uri)
		}
		who = append(who, l.uri)
	}
	if l.host != "" {
		if err := cert.VerifyHostname(l.host); err != nil {
			return "", fmt.Errorf("certificate: %w", err)
		}
		who = append(who, l.host)
	}
	return strings.Join(who, ", "), nil
}

// Fulcio's extensions with the issuer of an identity: as bytes, and as a UTF8String.
var (
	oidIssuer   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}
	oidIssuerV2 = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}
)

func issuerOf(cert *x509.Certificate) (string, error) {
	var found []string
	for _, e := range cert.Extensions {
		switch {
		case e.Id.Equal(oidIssuer):
			found = append(found, string(e.Value))
		case e.Id.Equal(oidIssuerV2):
			var s string
			rest, err := asn1.Unmarshal(e.Value, &s)
			if err != nil || len(rest) > 0 {
				return "", errors.Join(errors.New("the issuer's extension is invalid"), err)
			}
			found = append(found, s)
		}
	}
	found = slices.Compact(found)
	if len(found) != 1 {
		return "", fmt.Errorf("it names the issuers %q of its identity, want one", found)
	}
	return found[0], nil
}

// rawCert is a certificate as a bundle has it.
type rawCert struct {
	RawBytes []byte `json:"rawBytes"`
}

func rawCerts(list []json.RawMessage) ([][]byte, error) {
	if len(list) > maxCerts {
		return nil, fmt.Errorf("it has more than %d certificates", maxCerts)
	}
	var certs [][]byte
	for _, raw := range list {
		var c rawCert
		if err := json.Unmarshal(raw, &c); err != nil {
			return nil, err
		}
		certs = append(certs, c.RawBytes)
	}
	return certs, nil
}
