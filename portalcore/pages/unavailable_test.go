package pages

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// readOnly is a store that takes no writes now, as on a full disk.
type readOnly struct{ store.Store }

func (readOnly) Update(context.Context, func(store.Tx) error) error {
	return fmt.Errorf("%w: 3 MiB are left", store.ErrUnavailable)
}

// TestStoreTakesNoWrites holds what is left of the portal then: people read,
// nobody comes in, goes out or changes anything, and nothing is sent.
func TestStoreTakesNoWrites(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	path, confirm := b.previewed()
	cancel := formOf(t, b.get("/cancel").Body.String(), "/cancel")
	st := readOnly{e.store}
	e.sessions.Store, e.corridor.Store, e.corridor.Journal.Store = st, st, st

	refused := func(what string, w *httptest.ResponseRecorder) {
		t.Helper()
		body := w.Body.String()
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(body, "Nothing was changed and nothing was charged") {
			t.Errorf("%s: %d, Retry-After %q: %s", what, w.Code, w.Header().Get("Retry-After"), body)
		}
		if strings.Contains(body, "MiB") || strings.Contains(body, "answering") {
			t.Errorf("%s: says what it should not: %s", what, body)
		}
	}
	visitor := &browser{env: e}
	refused("a link", visitor.get("/enter?token="+e.token("cus_a"), navigation))
	if visitor.cookie != "" {
		t.Error("a session was handed out")
	}
	refused("a preview", b.post("/plan", url.Values{"subscription": {"sub_a"}, "price": {"price_team"}, "quantity": {"4"}}))
	refused("a confirmation", b.post(path, confirm))
	refused("a cancellation", b.post("/cancel", cancel))
	refused("a sign-out", b.post("/sign-out", nil))
	if len(e.provider.effects) != 0 {
		t.Errorf("effects %v", e.provider.effects)
	}
	// It is time to note that the session is in use, which cannot be noted.
	e.advance(session.DefaultIdle / 2)
	for _, page := range []string{"/", "/plan", "/payment", "/invoices"} {
		if w := b.get(page); w.Code != 200 {
			t.Errorf("%s: %d", page, w.Code)
		}
	}
	e.advance(session.DefaultIdle/2 + time.Second)
	if w := b.get("/"); w.Code != 401 {
		t.Errorf("after the idle time: %d, want 401", w.Code)
	}
}
