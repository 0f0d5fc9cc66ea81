package link

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/lestrrat-go/jwx/v3/jws"
)

// ErrTooLong says that a token would be longer than MaxToken.
var ErrTooLong = errors.New("link token would be too long")

// Mint signs a redirect token of type Type with key, whose id becomes the
// "kid". IssuedAt and Expires count to the second. Claims that Verify would
// refuse are refused here: a lifetime over MaxLifetime, a bad ID or Subject, a
// token longer than MaxToken. Claims with a Generation are the portal's own.
func Mint(key Key, c Claims) (string, error) {
	alg, ok := signatureAlgorithm(key.Algorithm)
	if !ok || key.Private == nil || !isToken(key.ID, maxKeyID) {
		return "", errors.New("minting a link needs a private EdDSA or ES256 key with an id")
	}
	// A key labelled with another algorithm, or a pair that does not belong
	// together, would mint links that nobody accepts.
	pub, err := clonePublic(key.Algorithm, key.Private.Public())
	if err != nil {
		return "", fmt.Errorf("minting a link: %w", err)
	}
	if p, ok := pub.(interface{ Equal(x crypto.PublicKey) bool }); ok && key.Public != nil && !p.Equal(key.Public) {
		return "", errors.New("minting a link: the private key does not belong to the public one")
	}
	payload, err := encodeClaims(c)
	if err != nil {
		return "", err
	}
	h := jws.NewHeaders()
	if err := errors.Join(h.Set(jws.KeyIDKey, key.ID), h.Set(jws.TypeKey, Type)); err != nil {
		return "", fmt.Errorf("minting a link: %w", err)
	}
	token, err := jws.Sign(payload, jws.WithKey(alg, key.Private, jws.WithProtectedHeaders(h)))
	if err != nil {
		return "", fmt.Errorf("signing a link: %w", err)
	}
	if len(token) > MaxToken {
		return "", fmt.Errorf("%w: %d bytes, at most %d are accepted: shorten return_url or permissions", ErrTooLong, len(token), MaxToken)
	}
	return string(token), nil
}

// encodeClaims writes the payload, and reads it back with the reader that
// Verify uses, so that the two cannot drift apart.
func encodeClaims(c Claims) ([]byte, error) {
	type actor struct {
		ID    string `json:"id,omitempty"`
		Email string `json:"email,omitempty"`
		Name  string `json:"name,omitempty"`
	}
	v := struct {
		Issuer        string    `json:"iss"`
		Audience      string    `json:"aud"`
		Subject       string    `json:"sub"`
		IssuedAt      int64     `json:"iat"`
		Expires       int64     `json:"exp"`
		ID            string    `json:"jti"`
		Generation    string    `json:"gen,omitempty"`
		ReturnURL     string    `json:"return_url,omitempty"`
		Locale        string    `json:"locale,omitempty"`
		Configuration string    `json:"configuration,omitempty"`
		Actor         *actor    `json:"actor,omitempty"`
		Role          string    `json:"role,omitempty"`
		Permissions   *[]string `json:"permissions,omitempty"`
		Reason        string    `json:"reason,omitempty"`
	}{
		Issuer: c.Issuer, Audience: c.Audience, Subject: c.Subject, ID: c.ID,
		IssuedAt: c.IssuedAt.Unix(), Expires: c.Expires.Unix(), Generation: c.Generation,
		ReturnURL: c.ReturnURL, Locale: c.Locale, Configuration: c.Configuration, Role: c.Role, Reason: c.Reason,
	}
	if c.Actor != (Actor{}) {
		v.Actor = &actor{c.Actor.ID, c.Actor.Email, c.Actor.Name}
	}
	if c.Permissions != nil { // an empty list permits nothing and must be said
		v.Permissions = &c.Permissions
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // "&" of a URL as one byte, not six
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding a link: %w", err)
	}
	payload := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))

	m, reason := parseObject(payload, knownMembers)
	if reason != "" {
		return nil, errors.New("minting a link: payload " + reason)
	}
	got, reason := claimsFrom(m, c.Generation != "")
	if reason != "" {
		return nil, errors.New("minting a link: " + reason)
	}
	got.IssuedAt, got.Expires = c.IssuedAt, c.Expires
	if !reflect.DeepEqual(got, c) {
		return nil, errors.New("minting a link: a text is not valid UTF-8")
	}
	return payload, nil
}

// NewID returns a new "jti" of 128 random bits. random is crypto/rand.Reader
// outside of tests.
func NewID(random io.Reader) (string, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", fmt.Errorf("reading randomness for a link id: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}
