package link

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits in bytes; all far inside MaxToken together with each other.
const (
	maxName          = 255 // "iss" and "aud"
	maxSubject       = 255
	maxKeyID         = 128
	minID, maxID     = 16, 128
	maxGeneration    = 128
	maxReturnURL     = 2048
	maxLocale        = 35 // RFC 5646, section 4.4.1
	maxConfiguration = 128
	maxActorID       = 255
	maxActorEmail    = 320 // RFC 3696, erratum 1690, rounded up to 64 + 1 + 255
	maxActorName     = 255
	maxPermission    = 64
	maxPermissions   = 64
	maxReason        = 200 // characters
)

// headerMembers are all the members a header has.
var headerMembers = []string{"alg", "kid", "typ"}

// knownMembers are the members of a payload that mean something to us.
var knownMembers = append([]string{
	"iss", "aud", "sub", "iat", "exp", "nbf", "jti", "gen",
	"return_url", "locale", "configuration", "actor", "role", "permissions", "reason",
}, unsupportedMembers...)

// unsupportedMembers are part of the format but not yet of this build. A link
// that has one is refused: it may be there to narrow what the session may do.
var unsupportedMembers = []string{"facts", "flow"}

// roles are the values of "role".
var roles = []string{"owner", "billing", "viewer", RoleSupport}

// RoleSupport is the role of the vendor's own staff.
const RoleSupport = "support"

// claimsFrom takes the claims out of a payload and checks all of them that can
// be checked without a clock and an audience; own says whether the portal
// itself is the signer. The reason is "" or says what is wrong.
func claimsFrom(m map[string]any, own bool) (c Claims, reason string) {
	for _, name := range unsupportedMembers {
		if _, ok := m[name]; ok {
			return Claims{}, name + " is not supported by this build"
		}
	}
	var ok bool
	if c.Issuer, ok = m["iss"].(string); !ok || !isText(c.Issuer, 1, maxName) {
		return Claims{}, "iss is missing or not a string"
	}
	if c.Audience, ok = m["aud"].(string); !ok || !isText(c.Audience, 1, maxName) {
		return Claims{}, "aud is missing or not one string"
	}
	if c.Subject, ok = m["sub"].(string); !ok || !isToken(c.Subject, maxSubject) {
		return Claims{}, "sub is missing or not a customer id"
	}
	if c.ID, ok = m["jti"].(string); !ok || !isID(c.ID) {
		return Claims{}, "jti is missing or not 16 to 128 URL-safe characters"
	}
	if c.IssuedAt, ok = unixTime(m["iat"]); !ok {
		return Claims{}, "iat is missing or not a plain integer in range"
	}
	if c.Expires, ok = unixTime(m["exp"]); !ok {
		return Claims{}, "exp is missing or not a plain integer in range"
	}
	switch life := c.Expires.Sub(c.IssuedAt); {
	case life <= 0:
		return Claims{}, "exp is not after iat"
	case life > MaxLifetime:
		return Claims{}, "lifetime is over 300 seconds"
	}
	_, has := m["gen"]
	if c.Generation, ok = m["gen"].(string); has != own || has && (!ok || !isToken(c.Generation, maxGeneration)) {
		if own {
			return Claims{}, "gen is missing or not a generation"
		}
		return Claims{}, "gen is only for the portal's own links"
	}

	if v, has := m["return_url"]; has {
		if c.ReturnURL, ok = v.(string); !ok || !isText(c.ReturnURL, 1, maxReturnURL) {
			return Claims{}, "return_url is not text of 1 to 2048 bytes"
		}
	}
	if v, has := m["locale"]; has {
		if c.Locale, ok = v.(string); !ok || !isToken(c.Locale, maxLocale) {
			return Claims{}, "locale is not a language tag"
		}
	}
	if v, has := m["configuration"]; has {
		if c.Configuration, ok = v.(string); !ok || !isToken(c.Configuration, maxConfiguration) {
			return Claims{}, "configuration is not a policy name"
		}
	}
	if v, has := m["actor"]; has {
		if c.Actor, ok = actorFrom(v); !ok {
			return Claims{}, "actor is not an object of short texts"
		}
	}
	if v, has := m["role"]; has {
		if c.Role, ok = v.(string); !ok || !slices.Contains(roles, c.Role) {
			return Claims{}, "role is not owner, billing, viewer or support"
		}
	}
	if c.Role == RoleSupport {
		if c.Actor.ID == "" {
			return Claims{}, "role support needs an actor with an id"
		}
		if v, has := m["reason"]; has {
			if c.Reason, ok = v.(string); !ok || !isText(c.Reason, 0, 4*maxReason) || utf8.RuneCountInString(c.Reason) > maxReason {
				return Claims{}, "reason is not text of at most 200 characters"
			}
		}
	}
	if v, has := m["permissions"]; has {
		if c.Permissions, ok = permissionsFrom(v); !ok {
			return Claims{}, "permissions is not a list of action names"
		}
	}
	return c, ""
}

func actorFrom(v any) (Actor, bool) {
	m, ok := v.(map[string]any)
	if !ok {
		return Actor{}, false
	}
	var a Actor
	for _, f := range []struct {
		name string
		to   *string
		max  int
	}{
		{"id", &a.ID, maxActorID},
		{"email", &a.Email, maxActorEmail},
		{"name", &a.Name, maxActorName},
	} {
		v, has := m[f.name]
		if !has {
			continue
		}
		if *f.to, ok = v.(string); !ok || !isText(*f.to, 0, f.max) {
			return Actor{}, false
		}
	}
	return a, true
}

func permissionsFrom(v any) ([]string, bool) {
	list, ok := v.([]any)
	if !ok || len(list) > maxPermissions {
		return nil, false
	}
	names := make([]string, 0, len(list)) // not nil: an empty list permits nothing
	for _, e := range list {
		s, ok := e.(string)
		if !ok || !isToken(s, maxPermission) {
			return nil, false
		}
		names = append(names, s)
	}
	return names, true
}

// unixTime reads an integer number of seconds, written with digits only: no
// sign, fraction, exponent or quotes. Eleven digits reach past the year 5000
// and leave milliseconds out.
func unixTime(v any) (time.Time, bool) {
	n, ok := v.(json.Number)
	if !ok || len(n) > 11 {
		return time.Time{}, false
	}
	for i := range len(n) {
		if n[i] < '0' || n[i] > '9' {
			return time.Time{}, false
		}
	}
	s, err := strconv.ParseInt(string(n), 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	return time.Unix(s, 0).UTC(), true
}

// isToken says whether s has 1 to limit printable ASCII characters, no spaces.
func isToken(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// isID says whether s can be a "jti".
func isID(s string) bool {
	if len(s) < minID || len(s) > maxID {
		return false
	}
	for i := range len(s) {
		if !isURLSafe(s[i]) {
			return false
		}
	}
	return true
}

// isURLSafe says whether c is of the base64url alphabet.
func isURLSafe(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// isText says whether s has lo to hi bytes of valid UTF-8 without control
// characters, which could forge lines of a log.
func isText(s string, lo, hi int) bool {
	if len(s) < lo || len(s) > hi || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}
