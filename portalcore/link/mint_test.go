package link_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
)

func ownKey(t *testing.T) link.Key {
	t.Helper()
	k, err := link.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ownClaims() link.Claims {
	return link.Claims{
		Issuer: "portal", Audience: audience, Subject: "cus_1", ID: "0123456789abcdef", Generation: "g1",
		IssuedAt: at, Expires: at.Add(time.Minute),
	}
}

func TestMintVerifies(t *testing.T) {
	k := ownKey(t)
	ec := link.Key{ID: "ec", Algorithm: link.ES256, Public: ecPair.public(), Private: ecPair.ec}
	tr, err := link.NewTrust(audience, link.Issuer{Name: "portal", Keys: []link.Key{k, ec}, Own: true})
	if err != nil {
		t.Fatal(err)
	}
	full := ownClaims()
	full.ReturnURL, full.Locale, full.Configuration, full.Role = "https://app.example.com/?a=1&b=<2>", "en", "enterprise", "viewer"
	full.Actor = link.Actor{ID: "u1", Email: "ann@example.com", Name: "Ann \u2028 李"}
	full.Permissions = []string{"change_plan"}
	none := ownClaims()
	none.Permissions = []string{}
	for name, c := range map[string]link.Claims{"least": ownClaims(), "full": full, "nothing permitted": none} {
		for _, key := range []link.Key{k, ec} {
			tok, err := link.Mint(key, c)
			if err != nil {
				t.Fatal(name, err)
			}
			got, is, err := tr.Verify(tok, at)
			if err != nil {
				t.Fatal(name, err)
			}
			if !reflect.DeepEqual(got, c) || !is.Own {
				t.Errorf("%s: got %+v\nwant %+v", name, got, c)
			}
		}
	}
}

func TestMintRefuses(t *testing.T) {
	k := ownKey(t)
	other := ownKey(t)
	crossed := k
	crossed.Public = other.Public
	relabelled := k
	relabelled.Algorithm = link.ES256
	for name, c := range map[string]struct {
		key    link.Key
		change func(*link.Claims)
		want   string
	}{
		"lifetime over 300 s":     {k, func(c *link.Claims) { c.Expires = at.Add(301 * time.Second) }, "lifetime"},
		"no lifetime":             {k, func(c *link.Claims) { c.Expires = at }, "exp is not after iat"},
		"zero times":              {k, func(c *link.Claims) { c.IssuedAt, c.Expires = time.Time{}, time.Time{} }, "iat"},
		"short id":                {k, func(c *link.Claims) { c.ID = "short" }, "jti"},
		"no issuer":               {k, func(c *link.Claims) { c.Issuer = "" }, "iss"},
		"no audience":             {k, func(c *link.Claims) { c.Audience = "" }, "aud"},
		"no subject":              {k, func(c *link.Claims) { c.Subject = "" }, "sub"},
		"subject with a space":    {k, func(c *link.Claims) { c.Subject = "cus 1" }, "sub"},
		"unknown role":            {k, func(c *link.Claims) { c.Role = "admin" }, "role"},
		"empty permission":        {k, func(c *link.Claims) { c.Permissions = []string{""} }, "permissions"},
		"CRLF in a name":          {k, func(c *link.Claims) { c.Actor.Name = "a\r\nb" }, "actor"},
		"NUL in a name":           {k, func(c *link.Claims) { c.Actor.Name = "a\x00b" }, "NUL"},
		"text that is not UTF-8":  {k, func(c *link.Claims) { c.Actor.Name = "a\xffb" }, "UTF-8"},
		"too long as a token":     {k, func(c *link.Claims) { c.ReturnURL = strings.Repeat("u", 2048); c.Permissions = manyPermissions() }, "at most 4096"},
		"return URL too long":     {k, func(c *link.Claims) { c.ReturnURL = strings.Repeat("u", 2049) }, "return_url"},
		"generation with a space": {k, func(c *link.Claims) { c.Generation = "g 1" }, "gen"},
		"public key":              {link.Key{ID: k.ID, Algorithm: k.Algorithm, Public: k.Public}, func(*link.Claims) {}, "private"},
		"no key":                  {link.Key{}, func(*link.Claims) {}, "private"},
		"pair that is not one":    {crossed, func(*link.Claims) {}, "does not belong"},
		"key of other algorithm":  {relabelled, func(*link.Claims) {}, "P-256"},
	} {
		cl := ownClaims()
		c.change(&cl)
		if tok, err := link.Mint(c.key, cl); err == nil || tok != "" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
}

func manyPermissions() []string {
	p := make([]string, 30)
	for i := range p {
		p[i] = strings.Repeat("p", 60)
	}
	return p
}

// A token of exactly the longest length is accepted, so minting up to the
// limit never makes a link that cannot be opened.
func TestLongestToken(t *testing.T) {
	k := ownKey(t)
	tr, err := link.NewTrust(audience, link.Issuer{Name: "portal", Keys: []link.Key{k}, Own: true})
	if err != nil {
		t.Fatal(err)
	}
	c := ownClaims()
	c.Permissions = manyPermissions()[:14]
	longest := 0
	for n := 1; n <= 2048; n++ {
		c.ReturnURL = strings.Repeat("u", n)
		tok, err := link.Mint(k, c)
		if err != nil {
			if longest < link.MaxToken-2 {
				t.Fatalf("refused after %d bytes: %v", longest, err)
			}
			return
		}
		if longest = len(tok); longest > link.MaxToken {
			t.Fatalf("minted %d bytes", longest)
		}
		if n%64 == 0 || longest > link.MaxToken-4 {
			if _, _, err := tr.Verify(tok, at); err != nil {
				t.Fatalf("%d bytes: %v", longest, err)
			}
		}
	}
	t.Fatalf("never reached the limit: %d bytes", longest)
}

func TestNewID(t *testing.T) {
	form := regexp.MustCompile(`^[A-Za-z0-9_-]{22}$`)
	seen := map[string]bool{}
	for range 1000 {
		id, err := link.NewID(rand.Reader)
		if err != nil || !form.MatchString(id) || seen[id] {
			t.Fatalf("%q, %v", id, err)
		}
		seen[id] = true
	}
	if id, err := link.NewID(bytes.NewReader(make([]byte, 15))); err == nil {
		t.Fatalf("made %q of too little randomness", id)
	}
	broken := errors.New("broken")
	if _, err := link.NewID(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Fatal(err)
	}
}
