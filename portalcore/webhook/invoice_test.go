package webhook_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/webhook"
)

// TestInvoiceNoted: an event about an invoice is passed on once, in the
// transaction that notes it, and not for strangers; where that fails nothing is
// noted, and it comes again.
func TestInvoiceNoted(t *testing.T) {
	sealer, err := store.NewSealer(bytes.Repeat([]byte{1}, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	db, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Update(t.Context(), func(tx store.Tx) error { return session.BumpVersion(tx, tenant, "cus_known") }); err != nil {
		t.Fatal(err)
	}
	event := billing.Event{ID: "evt_1", Type: "invoice.paid", Customer: "cus_known", Invoice: "in_1"}
	var noted []string
	var fails error
	h, err := webhook.New(webhook.Options{
		Store: db, Tenant: tenant, Now: time.Now, Rand: rand.Reader, Recover: func() {},
		Parse: func(http.Header, []byte, time.Time) (billing.Event, error) { return event, nil },
		Wake:  func(store.Tx, string, time.Time) error { return nil },
		Invoice: func(_ store.Tx, customer, invoice string, _ time.Time) error {
			noted = append(noted, customer+" "+invoice)
			return fails
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	post := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, webhook.Path, strings.NewReader("{}")))
		return w.Code
	}
	fails = errors.New("no room")
	if code := post(); code != 503 {
		t.Errorf("answered %d where the index did not take it", code)
	}
	noted, fails = nil, nil
	for _, e := range []billing.Event{event, event, {ID: "evt_2", Customer: "cus_stranger", Invoice: "in_2"}, {ID: "evt_3", Customer: "cus_known"}} {
		event = e
		if code := post(); code != 200 {
			t.Errorf("%s: %d", e.ID, code)
		}
	}
	if got := strings.Join(noted, ", "); got != "cus_known in_1" {
		t.Errorf("noted %q", got)
	}
}
