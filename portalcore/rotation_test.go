package portalcore_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
)

// Two nodes on one store: one of them makes the next signing key, and the other
// one has not asked for keys since.
func TestLinksOfANodeThatRotatesOpenOnOthers(t *testing.T) {
	st, prov := openStore(t), newProvider(t)
	var ahead atomic.Int64
	node := func(name string) *portalcore.Portal {
		p, err := portalcore.New(portalcore.Options{
			Tenant: tenant(), Store: st, Provider: prov, Logger: zap.NewNop(), Process: name,
			Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return p
	}
	b := node("b")
	open := func(on, minted *portalcore.Portal) int {
		r := httptest.NewRequest(http.MethodPost, origin+"/v1/billing_portal/sessions", strings.NewReader(url.Values{"customer": {"cus_northwind"}}.Encode()))
		r.Header.Set("Authorization", "Bearer "+key)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		minted.ServeHTTP(w, r)
		var got struct{ URL string }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.URL == "" {
			t.Fatal(err, w.Body.String())
		}
		r = httptest.NewRequest(http.MethodGet, got.URL, nil)
		r.Header.Set("Sec-Fetch-Mode", "navigate")
		r.Header.Set("Sec-Fetch-Dest", "document")
		r.Header.Set("Sec-Fetch-Site", "same-site")
		w = httptest.NewRecorder()
		on.ServeHTTP(w, r)
		return w.Code
	}
	if code := open(b, b); code != http.StatusSeeOther {
		t.Fatal(code)
	}
	ahead.Store(int64(session.KeyLife + 24*time.Hour))
	a := node("a")
	if code := open(a, a); code != http.StatusSeeOther {
		t.Fatal(code)
	}
	if code := open(b, a); code != http.StatusSeeOther {
		t.Errorf("a good link of the other node: %d", code)
	}
	// The next one of the nodes knows both keys, whoever signs with which.
	ahead.Add(int64(session.KeyAhead))
	if c := node("c"); open(c, a) != http.StatusSeeOther || open(a, c) != http.StatusSeeOther {
		t.Error("a node that knows both keys refuses one of them")
	}
}
