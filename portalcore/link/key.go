package link

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/lestrrat-go/jwx/v3/jwa"
)

// The signature algorithms (RFC 7518 section 3.4, RFC 8037 section 3.1). Both
// are asymmetric, so whoever can check a link cannot make one.
const (
	EdDSA = "EdDSA" // Ed25519
	ES256 = "ES256" // ECDSA with P-256 and SHA-256
)

// signatureSize is the length of a signature of either algorithm, in bytes.
const signatureSize = 64

// Key is a key that redirect tokens are signed with.
type Key struct {
	// ID is the "kid", 1 to 128 printable ASCII characters without spaces.
	// The default is the key's JWK thumbprint (RFC 7638, SHA-256).
	ID string
	// Algorithm is EdDSA or ES256, and the only one the key is used with.
	Algorithm string
	// Public is an ed25519.PublicKey or an *ecdsa.PublicKey on P-256.
	Public crypto.PublicKey
	// Private signs; nil in a key that only verifies. JSON leaves it out.
	Private crypto.Signer `json:"-"`
}

// String names the key.
func (k Key) String() string { return k.Algorithm + " key " + k.ID }

// Format prints the name whatever the verb, so that the private part gets into
// no log and no error, not even with %d.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// GenerateKey makes an EdDSA key out of 32 bytes of random, which is
// crypto/rand.Reader outside of tests. Its id is its thumbprint.
func GenerateKey(random io.Reader) (Key, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return Key{}, fmt.Errorf("reading randomness for a link key: %w", err)
	}
	return newPrivate(ed25519.NewKeyFromSeed(seed))
}

// MarshalPrivate returns the private key in PKCS #8 DER, to be sealed and
// stored. The id is not part of it, so it has to be the thumbprint, which
// ParsePrivate computes again.
func MarshalPrivate(k Key) ([]byte, error) {
	if k.Private == nil {
		return nil, errors.New("key has no private part: only the portal's own keys are stored")
	}
	id, err := Thumbprint(k.Private.Public())
	if err != nil {
		return nil, err
	}
	if id != k.ID {
		return nil, fmt.Errorf("key id %q is not the key's thumbprint and would be lost", k.ID)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.Private)
	if err != nil {
		return nil, fmt.Errorf("encoding a link key: %w", err)
	}
	return der, nil
}

// ParsePrivate reads what MarshalPrivate wrote.
func ParsePrivate(der []byte) (Key, error) {
	v, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return Key{}, errors.New("link key is not a PKCS #8 private key") // the cause may quote key bytes
	}
	s, ok := v.(crypto.Signer)
	if !ok {
		return Key{}, fmt.Errorf("link key is a %T: only Ed25519 and P-256 keys sign links", v)
	}
	return newPrivate(s)
}

func newPrivate(s crypto.Signer) (Key, error) {
	alg := EdDSA
	if _, ok := s.Public().(*ecdsa.PublicKey); ok {
		alg = ES256
	}
	k, err := newPublic(alg, s.Public())
	if err != nil {
		return Key{}, err
	}
	k.Private = s
	return k, nil
}

// ParsePublicKey reads the public key of a vendor for alg (EdDSA or ES256):
// one PEM block "PUBLIC KEY" (SubjectPublicKeyInfo, RFC 7468 section 13), or
// one JWK (RFC 7517, RFC 8037). The id is the JWK's "kid", or else the key's
// thumbprint; set ID to use another. A private key is refused: it has no
// business in the portal's configuration.
func ParsePublicKey(alg string, pemOrJWK []byte) (Key, error) {
	if _, ok := signatureAlgorithm(alg); !ok {
		return Key{}, fmt.Errorf("algorithm %q is not supported: use EdDSA or ES256", alg)
	}
	data := bytes.TrimSpace(pemOrJWK)
	if bytes.HasPrefix(data, []byte("{")) {
		return parseJWK(alg, data)
	}
	return parsePEM(alg, data)
}

var errPrivate = errors.New("this is a private key: give the public key, and treat the private one as disclosed if this file is shared")

func parsePEM(alg string, data []byte) (Key, error) {
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return Key{}, errPrivate
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return Key{}, errors.New("public key is neither PEM nor a JWK: give a block that begins with -----BEGIN PUBLIC KEY-----")
	}
	if block.Type != "PUBLIC KEY" {
		return Key{}, fmt.Errorf("PEM block is a %q: give a PUBLIC KEY (openssl pkey -pubout, or openssl x509 -pubkey for a certificate)", block.Type)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return Key{}, errors.New("there is something after the public key: give one key at a time")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Key{}, fmt.Errorf("reading the public key: %w", err)
	}
	return newPublic(alg, pub)
}

func parseJWK(alg string, data []byte) (Key, error) {
	m, reason := parseObject(data, nil)
	if reason != "" {
		return Key{}, errors.New("JWK " + reason)
	}
	if _, ok := m["keys"]; ok {
		return Key{}, errors.New("this is a JWK set: give one key at a time")
	}
	if m["kty"] == "oct" {
		return Key{}, errors.New("this is a symmetric key: links are signed with EdDSA or ES256 keys")
	}
	if _, ok := m["d"]; ok {
		return Key{}, errPrivate
	}
	if v, ok := m["alg"]; ok && v != alg {
		return Key{}, fmt.Errorf("JWK's alg is not %s", alg)
	}
	if v, ok := m["use"]; ok && v != "sig" {
		return Key{}, errors.New(`JWK's use is not "sig"`)
	}
	if v, ok := m["key_ops"]; ok {
		if ops, _ := v.([]any); !slices.Contains(ops, any("verify")) {
			return Key{}, errors.New(`JWK's key_ops does not list "verify"`)
		}
	}

	var k Key
	var err error
	switch {
	case m["kty"] == "OKP" && m["crv"] == "Ed25519":
		x, ok := jwkBytes(m["x"])
		if !ok {
			return Key{}, errors.New("JWK's x is not 32 bytes in base64url")
		}
		k, err = newPublic(alg, ed25519.PublicKey(x))
	case m["kty"] == "EC" && m["crv"] == "P-256":
		x, okX := jwkBytes(m["x"])
		y, okY := jwkBytes(m["y"])
		if !okX || !okY {
			return Key{}, errors.New("JWK's x or y is not 32 bytes in base64url")
		}
		pub, perr := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if perr != nil {
			return Key{}, fmt.Errorf("JWK's point is not on the curve P-256: %w", perr)
		}
		k, err = newPublic(alg, pub)
	default:
		return Key{}, errors.New("JWK is neither OKP with Ed25519 nor EC with P-256")
	}
	if err != nil {
		return Key{}, err
	}
	if v, ok := m["kid"]; ok {
		id, _ := v.(string)
		if !isToken(id, maxKeyID) {
			return Key{}, fmt.Errorf("JWK's kid must have 1 to %d printable ASCII characters and no spaces", maxKeyID)
		}
		k.ID = id
	}
	return k, nil
}

func jwkBytes(v any) ([]byte, bool) {
	s, _ := v.(string)
	b, ok := decodeSegment(s)
	return b, ok && len(b) == 32
}

func newPublic(alg string, pub crypto.PublicKey) (Key, error) {
	pub, err := clonePublic(alg, pub)
	if err != nil {
		return Key{}, err
	}
	id, err := Thumbprint(pub)
	if err != nil {
		return Key{}, err
	}
	return Key{ID: id, Algorithm: alg, Public: pub}, nil
}

// Thumbprint returns the JWK thumbprint of an Ed25519 or P-256 public key:
// SHA-256 in base64url (RFC 7638, RFC 8037 section 2).
func Thumbprint(pub crypto.PublicKey) (string, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	var jwk string
	switch p := pub.(type) {
	case ed25519.PublicKey:
		jwk = `{"crv":"Ed25519","kty":"OKP","x":"` + b64(p) + `"}`
	case *ecdsa.PublicKey:
		point, err := p.Bytes()
		if err != nil || p.Curve != elliptic.P256() {
			return "", errors.New("public key is not a point on P-256")
		}
		jwk = `{"crv":"P-256","kty":"EC","x":"` + b64(point[1:33]) + `","y":"` + b64(point[33:]) + `"}`
	default:
		return "", fmt.Errorf("public key is a %T: only Ed25519 and P-256 keys sign links", pub)
	}
	sum := sha256.Sum256([]byte(jwk))
	return b64(sum[:]), nil
}

// clonePublic returns a copy of pub that nobody else can change, if it is a
// sound key for alg.
func clonePublic(alg string, pub crypto.PublicKey) (crypto.PublicKey, error) {
	switch alg {
	case EdDSA:
		p, ok := pub.(ed25519.PublicKey)
		if !ok || len(p) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("algorithm EdDSA needs an Ed25519 public key, not a %s", describe(pub))
		}
		if smallOrder(p) {
			return nil, errors.New("this Ed25519 public key is one of the few that anybody can sign for (small order): generate a new pair")
		}
		return slices.Clone(p), nil
	case ES256:
		p, ok := pub.(*ecdsa.PublicKey)
		if !ok || p == nil || p.Curve != elliptic.P256() {
			return nil, fmt.Errorf("algorithm ES256 needs an ECDSA public key on P-256, not a %s", describe(pub))
		}
		point, err := p.Bytes()
		if err != nil {
			return nil, fmt.Errorf("public key is not a point on P-256: %w", err)
		}
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	}
	return nil, fmt.Errorf("algorithm %q is not supported: use EdDSA or ES256", alg)
}

func describe(pub crypto.PublicKey) string {
	if p, ok := pub.(*ecdsa.PublicKey); ok && p != nil && p.Curve != nil {
		return "key on " + p.Curve.Params().Name
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", pub), "*")
}

// smallOrderPoints are the Ed25519 points of order 1, 2, 4 and 8 in every
// encoding that decoders take, without the sign bit. Under such a key one
// signature fits one message in eight or more. The all-zero key, a likely
// placeholder, is the first.
var smallOrderPoints = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

func smallOrder(p ed25519.PublicKey) bool {
	q := slices.Clone(p)
	q[31] &= 0x7f
	return slices.Contains(smallOrderPoints, hex.EncodeToString(q))
}

func signatureAlgorithm(name string) (jwa.SignatureAlgorithm, bool) {
	switch name {
	case EdDSA:
		return jwa.EdDSA(), true
	case ES256:
		return jwa.ES256(), true
	}
	return jwa.SignatureAlgorithm{}, false
}
