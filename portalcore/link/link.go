// Package link makes and checks redirect tokens: the compact JWS in
// "https://<portal>/enter?token=…" with which a vendor's customer enters the
// portal. The portal signs some of them itself (Mint), vendors sign others;
// both pass the same strict gate (Trust.Verify) in front of the signature
// check, because JOSE libraries, ours included, accept much that a token of
// this one kind never needs: other serializations, duplicate members,
// embedded keys, times as strings, non-canonical base64.
//
// The package does no I/O and keeps no state. That a token is redeemed once,
// is of the store's generation and was not revoked is decided where it is
// redeemed.
package link

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lestrrat-go/jwx/v3/jws"
)

const (
	// Type is the "typ" of every redirect token (RFC 8725, section 3.11): it
	// keeps a token made for something else by the same key from being one.
	Type = "portal-link+jwt"

	// PlainType is the "typ" that an Issuer with AllowPlainJWT may use too.
	PlainType = "JWT"

	// MaxLifetime is the most that may lie between "iat" and "exp".
	MaxLifetime = 300 * time.Second

	// Skew is how far the signer's clock and ours may differ.
	Skew = 5 * time.Second

	// MaxToken is the length of the longest token, in bytes.
	MaxToken = 4096
)

// Claims is what a redirect token says.
type Claims struct {
	// Issuer is "iss": the signer's name as configured.
	Issuer string
	// Audience is "aud": the origin of the tenant the token is for.
	Audience string
	// Subject is "sub": the customer's id at the payment provider, 1 to 255
	// printable ASCII characters without spaces.
	Subject string
	// IssuedAt and Expires are "iat" and "exp", to the second, in UTC.
	IssuedAt time.Time
	Expires  time.Time
	// ID is "jti": 16 to 128 characters of A-Z, a-z, 0-9, "-" and "_", chosen
	// anew for each token. (Issuer, ID) is redeemed once.
	ID string

	// Generation is "gen": the generation of the store that the portal had
	// when it signed the token. Tokens of the portal have it, others never.
	Generation string

	// ReturnURL is "return_url": where "back" leads, or "". It is not yet
	// checked against the tenant's return origins.
	ReturnURL string
	// Locale is "locale": the language asked for, or "".
	Locale string
	// Configuration is "configuration": the named policy asked for, or "".
	Configuration string

	// Actor is "actor": the person; zero where the token has none.
	Actor Actor
	// Role is "role": "owner", "billing" or "viewer"; "" where the token does
	// not say and the tenant's default holds. "support" is the vendor's own
	// staff, who may only look; Actor then has an ID.
	Role string
	// Reason is "reason": why the vendor's staff looks, at most 200 characters,
	// or "". It means nothing with another role, and is then left out.
	Reason string
	// Permissions is "permissions": what this session may do at most. It only
	// ever narrows the policy. Nil means that the token does not narrow;
	// an empty list that is not nil means that nothing is left.
	Permissions []string
}

// Actor is the person who acts for the customer. Its texts hold no control
// characters.
type Actor struct {
	ID    string // the person's id at the vendor, at most 255 bytes
	Email string // at most 320 bytes
	Name  string // at most 255 bytes
}

// Kind sorts refusals by what the visitor may be told.
type Kind int

const (
	// Invalid is a token that is malformed, not validly signed, not for here
	// or not understood: HTTP 401.
	Invalid Kind = iota
	// Expired is a good token in everything but its age: HTTP 410.
	Expired
)

// Error says why a token was refused.
type Error struct {
	Kind Kind
	// Reason is for the log. It is one of a fixed set of texts and holds
	// nothing of the token.
	Reason string
}

func (e *Error) Error() string { return "link refused: " + e.Reason }

func invalid(reason string) error { return &Error{Kind: Invalid, Reason: reason} }

// Issuer is one signer of redirect tokens and the keys it may sign with.
type Issuer struct {
	// Name is the exact "iss" of its tokens.
	Name string
	// Keys are its public keys, at least one. Every token names one by "kid".
	Keys []Key
	// Own marks the portal itself: its tokens carry "gen", others' must not.
	Own bool
	// AllowPlainJWT accepts the "typ" PlainType beside Type, for vendors
	// whose library cannot set it. With it, whatever else the same key signs
	// must differ from a link in "aud". Not for Own.
	AllowPlainJWT bool
}

// Trust is the set of signers one tenant accepts. It does not change after
// NewTrust and is safe for concurrent use; to rotate a key, make a new one.
type Trust struct {
	audience string
	issuers  map[string]*trusted
}

type trusted struct {
	Issuer
	keys map[string]Key
}

// NewTrust returns the set of issuers whose tokens for audience (the tenant's
// origin, exactly as it stands in "aud") are accepted. The issuers and their
// keys are copied; private keys are left out. It is an error if a name is
// there twice, an issuer has no key, two keys of an issuer have one id, or a
// key does not fit its algorithm.
func NewTrust(audience string, issuers ...Issuer) (*Trust, error) {
	if audience == "" {
		return nil, errors.New("trust needs an audience: give the origin of the portal")
	}
	if len(issuers) == 0 {
		return nil, errors.New("trust needs an issuer: without one every link would be refused")
	}
	t := &Trust{audience: audience, issuers: make(map[string]*trusted, len(issuers))}
	own := false
	for _, is := range issuers {
		if !isText(is.Name, 1, maxName) {
			return nil, fmt.Errorf("issuer name %q must have 1 to %d bytes and no control characters", is.Name, maxName)
		}
		if t.issuers[is.Name] != nil {
			return nil, fmt.Errorf("issuer %q is there twice: put all its keys into one", is.Name)
		}
		if len(is.Keys) == 0 {
			return nil, fmt.Errorf("issuer %q has no key: give at least one public key", is.Name)
		}
		if is.Own && (own || is.AllowPlainJWT) {
			return nil, fmt.Errorf("issuer %q: only one issuer is the portal's own, and it never signs plain JWTs", is.Name)
		}
		own = own || is.Own
		tr := &trusted{Issuer: is, keys: make(map[string]Key, len(is.Keys))}
		tr.Keys = make([]Key, 0, len(is.Keys))
		for _, k := range is.Keys {
			if !isToken(k.ID, maxKeyID) {
				return nil, fmt.Errorf("issuer %q: key id must have 1 to %d printable ASCII characters and no spaces", is.Name, maxKeyID)
			}
			pub, err := clonePublic(k.Algorithm, k.Public)
			if err != nil {
				return nil, fmt.Errorf("issuer %q, key %q: %w", is.Name, k.ID, err)
			}
			if _, ok := tr.keys[k.ID]; ok {
				return nil, fmt.Errorf("issuer %q has two keys with the id %q: give each its own", is.Name, k.ID)
			}
			k = Key{ID: k.ID, Algorithm: k.Algorithm, Public: pub}
			tr.keys[k.ID] = k
			tr.Keys = append(tr.Keys, k)
		}
		t.issuers[is.Name] = tr
	}
	return t, nil
}

// Verify checks a token at the moment now and returns what it says and who
// signed it. The issuer belongs to the Trust and must not be changed.
//
// It is a pure function of its arguments, does no network call, and works on
// at most MaxToken bytes. A refusal is an *Error. For one of Kind Expired the
// claims and the issuer are returned too, so that the page can lead back to
// where the customer came from; for Kind Invalid they are zero.
func (t *Trust) Verify(token string, now time.Time) (Claims, *Issuer, error) {
	if len(token) > MaxToken {
		return Claims{}, nil, invalid("token is longer than 4096 bytes")
	}
	h, p, s, ok := split(token)
	if !ok {
		return Claims{}, nil, invalid("token does not have three segments")
	}
	rawHeader, ok := decodeSegment(h)
	if !ok {
		return Claims{}, nil, invalid("header is not canonical base64url")
	}
	rawPayload, ok := decodeSegment(p)
	if !ok {
		return Claims{}, nil, invalid("payload is not canonical base64url")
	}
	sig, ok := decodeSegment(s)
	if !ok {
		return Claims{}, nil, invalid("signature is not canonical base64url")
	}
	hd, err := decodeHeader(rawHeader)
	if err != nil {
		return Claims{}, nil, err
	}

	// The payload is read before its signature is checked, because "iss" and
	// "kid" together name the key. The reader is strict and bounded, and the
	// bytes that jws.Verify hands back must be the ones read here.
	body, reason := parseObject(rawPayload, knownMembers)
	if reason != "" {
		return Claims{}, nil, invalid("payload " + reason)
	}
	iss, ok := body["iss"].(string)
	if !ok {
		return Claims{}, nil, invalid("iss is missing or not a string")
	}
	is := t.issuers[iss]
	if is == nil {
		return Claims{}, nil, invalid("iss is not a trusted issuer")
	}
	if hd.typ != Type && (!is.AllowPlainJWT || hd.typ != PlainType) {
		return Claims{}, nil, invalid("typ is not that of a redirect token")
	}
	key, ok := is.keys[hd.kid]
	if !ok {
		return Claims{}, nil, invalid("kid is not a key of this issuer")
	}
	// The algorithm comes from the configuration; the label only has to agree
	// with it. So neither "none" nor another family can be chosen by a token.
	if hd.alg != key.Algorithm {
		return Claims{}, nil, invalid("alg is not the one pinned for this key")
	}
	if len(sig) != signatureSize {
		return Claims{}, nil, invalid("signature is not 64 bytes long")
	}
	alg, ok := signatureAlgorithm(key.Algorithm)
	if !ok {
		return Claims{}, nil, invalid("alg is not supported")
	}
	signed, err := jws.Verify([]byte(token), jws.WithKey(alg, key.Public), jws.WithCompact(), jws.WithCritValidation(true))
	if err != nil {
		return Claims{}, nil, invalid("signature does not verify")
	}
	if !bytes.Equal(signed, rawPayload) {
		return Claims{}, nil, invalid("signed payload is not the one that was read")
	}

	c, reason := claimsFrom(body, is.Own)
	if reason != "" {
		return Claims{}, nil, invalid(reason)
	}
	if c.Audience != t.audience {
		return Claims{}, nil, invalid("aud is not this portal")
	}
	if c.IssuedAt.After(now.Add(Skew)) {
		return Claims{}, nil, invalid("iat is in the future")
	}
	if v, ok := body["nbf"]; ok {
		nbf, ok := unixTime(v)
		if !ok {
			return Claims{}, nil, invalid("nbf is not a plain integer in range")
		}
		if nbf.After(now.Add(Skew)) {
			return Claims{}, nil, invalid("nbf is in the future")
		}
	}
	if !now.Before(c.Expires.Add(Skew)) {
		return c, &is.Issuer, &Error{Kind: Expired, Reason: "exp has passed"}
	}
	return c, &is.Issuer, nil
}

func split(token string) (header, payload, signature string, ok bool) {
	header, rest, ok := strings.Cut(token, ".")
	if !ok {
		return "", "", "", false
	}
	payload, signature, ok = strings.Cut(rest, ".")
	if !ok || strings.Contains(signature, ".") {
		return "", "", "", false
	}
	return header, payload, signature, true
}

// decodeSegment decodes the only base64url spelling there is of some bytes.
// The alphabet is checked apart because encoding/base64 skips CR and LF.
func decodeSegment(s string) ([]byte, bool) {
	for i := range len(s) {
		if !isURLSafe(s[i]) {
			return nil, false
		}
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return b, err == nil
}

type header struct{ alg, kid, typ string }

// decodeHeader takes exactly the three members a token needs. Everything else
// is refused rather than ignored: "jku", "x5u", "jwk" and "x5c" would bring a
// key along, "crit", "b64" and "zip" would change what was signed.
func decodeHeader(raw []byte) (header, error) {
	m, reason := parseObject(raw, headerMembers)
	if reason != "" {
		return header{}, invalid("header " + reason)
	}
	var h header
	for name, v := range m {
		s, ok := v.(string)
		switch name {
		case "alg":
			h.alg = s
		case "kid":
			h.kid = s
		case "typ":
			h.typ = s
		default:
			return header{}, invalid("header has a member other than alg, kid and typ")
		}
		if !ok || s == "" {
			return header{}, invalid("header has a member that is empty or not a string")
		}
	}
	if len(m) != len(headerMembers) {
		return header{}, invalid("header lacks alg, kid or typ")
	}
	return h, nil
}
