package link_test

import (
	"crypto/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
)

// A link for the vendor's staff names the person, whoever signed it.
func TestSupportNeedsAnActor(t *testing.T) {
	now := time.Date(2026, 5, 14, 15, 2, 0, 0, time.UTC)
	key, err := link.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := link.NewTrust("https://billing.example.com", link.Issuer{Name: "acme", Keys: []link.Key{key}})
	if err != nil {
		t.Fatal(err)
	}
	claims := link.Claims{
		Issuer: "acme", Audience: "https://billing.example.com", Subject: "cus_1", IssuedAt: now, Expires: now.Add(time.Minute),
		ID: "0123456789abcdef", Role: link.RoleSupport, Actor: link.Actor{ID: "emp_7"}, Reason: strings.Repeat("ü", 200),
	}
	token, err := link.Mint(key, claims)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := trust.Verify(token, now); err != nil || !reflect.DeepEqual(got, claims) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, change := range map[string]func(*link.Claims){
		"no actor":             func(c *link.Claims) { c.Actor = link.Actor{} },
		"an e-mail alone":      func(c *link.Claims) { c.Actor = link.Actor{Email: "sue@acme.example"} },
		"a long reason":        func(c *link.Claims) { c.Reason += "x" },
		"a line in the reason": func(c *link.Claims) { c.Reason = "a\nb" },
		"another spelling":     func(c *link.Claims) { c.Role = "Support" },
	} {
		c := claims
		change(&c)
		if _, err := link.Mint(key, c); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}
