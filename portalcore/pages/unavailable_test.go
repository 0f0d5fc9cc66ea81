package pages

import (
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// TestOwnStoreIsNotTheProvider holds that a change that our own store is in the
// way of is not said to be the provider's fault, nor left open.
func TestOwnStoreIsNotTheProvider(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	path, confirm := b.previewed()
	cancel := formOf(t, b.get("/cancel").Body.String(), "/cancel")
	full := readOnly{e.store, fmt.Errorf("%w: 3 MiB are left", store.ErrUnavailable)}
	e.sessions.Store, e.corridor.Store, e.corridor.Journal.Store = full, full, full
	for what, w := range map[string]*httptest.ResponseRecorder{
		"a preview":      b.post("/plan", url.Values{"subscription": {"sub_a"}, "price": {"price_team"}, "quantity": {"4"}}),
		"a confirmation": b.post(path, confirm),
		"a cancellation": b.post("/cancel", cancel),
	} {
		body := w.Body.String()
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(body, "Nothing was changed and nothing was charged") {
			t.Errorf("%s: %d, Retry-After %q: %s", what, w.Code, w.Header().Get("Retry-After"), body)
		}
		if strings.Contains(body, "MiB") || strings.Contains(body, "answering") {
			t.Errorf("%s: says what it should not: %s", what, body)
		}
	}
	if len(e.provider.effects) != 0 {
		t.Errorf("effects %v", e.provider.effects)
	}
}
