package portalcore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// hooked is the sandbox whose events anybody can make, and which does not tell
// what became of a step until it is allowed to.
type hooked struct {
	*provider
	silent   atomic.Bool
	outcomes atomic.Int64
}

func (h *hooked) ParseEvent(_ http.Header, body []byte, _ time.Time) (billing.Event, error) {
	if string(body) == "forged" {
		return billing.Event{}, billing.ErrSignature
	}
	return billing.Event{ID: string(body), Type: "invoice.paid", Customer: "cus_northwind"}, nil
}

func (h *hooked) Execute(ctx context.Context, customer string, step billing.Step, key string) (billing.Result, error) {
	r, err := h.provider.Execute(ctx, customer, step, key)
	if h.silent.Load() {
		return billing.Result{}, &billing.Error{Fault: billing.Unknown, Err: errors.New("connection reset")}
	}
	return r, err
}

func (h *hooked) Outcome(ctx context.Context, customer string, step billing.Step, key string, last *billing.Result) (billing.Outcome, billing.Result, error) {
	h.outcomes.Add(1)
	if h.silent.Load() {
		return "", billing.Result{}, &billing.Error{Fault: billing.Unavailable, Err: errors.New("connection refused")}
	}
	return h.provider.Outcome(ctx, customer, step, key, last)
}

const eventsSecret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// vendor collects the events it gets.
type vendor struct {
	*httptest.Server
	mu  sync.Mutex
	got []string
}

func newVendor(t *testing.T) *vendor {
	t.Helper()
	v := new(vendor)
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e struct {
			Type string
			Data struct{ Customer, State string }
		}
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		v.got = append(v.got, e.Type+" "+e.Data.Customer+" "+r.Header.Get("webhook-id"))
	}))
	t.Cleanup(v.Close)
	return v
}

func (v *vendor) events() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]string(nil), v.got...)
}

// running starts a portal and its background work, which ends with the test.
func running(t *testing.T, o portalcore.Options) *portalcore.Portal {
	t.Helper()
	o.Process, o.ExclusiveStore = "test", true
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	portal, err := portalcore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := portal.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { portal.Run(ctx); close(done) }()
	t.Cleanup(func() {
		stop()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Error("the background work does not end")
		}
		portal.Close()
	})
	return portal
}

// signIn returns the cookie of a session.
func signIn(t *testing.T, h http.Handler) string {
	t.Helper()
	w := do(t, h, http.MethodPost, origin+"/v1/billing_portal/sessions", "", url.Values{"customer": {"cus_northwind"}})
	var link struct{ URL string }
	if err := json.Unmarshal(w.Body.Bytes(), &link); err != nil || link.URL == "" {
		t.Fatalf("minting: %d %s", w.Code, w.Body)
	}
	w = do(t, h, http.MethodGet, link.URL, "", nil)
	cookie, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
	if w.Code != http.StatusSeeOther || cookie == "" {
		t.Fatalf("entering: %d %v", w.Code, w.Header())
	}
	return cookie
}

// cancel confirms a cancellation and returns where its receipt is.
func cancel(t *testing.T, h http.Handler, cookie string) string {
	t.Helper()
	w := do(t, h, http.MethodGet, origin+"/cancel?subscription=sub_northwind", cookie, nil)
	form := url.Values{"subscription": {"sub_northwind"}}
	for _, name := range []string{"nonce", "version"} {
		_, value, ok := strings.Cut(w.Body.String(), `name="`+name+`" value="`)
		if !ok {
			t.Fatalf("the cancel page has no %s: %d\n%s", name, w.Code, w.Body)
		}
		value, _, _ = strings.Cut(value, `"`)
		form.Set(name, value)
	}
	w = do(t, h, http.MethodPost, origin+"/cancel", cookie, form)
	if w.Code != http.StatusSeeOther || !strings.HasPrefix(w.Header().Get("Location"), "/done/") {
		t.Fatalf("cancelling: %d %v\n%s", w.Code, w.Header(), w.Body)
	}
	return w.Header().Get("Location")
}

func soon(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestVendorIsTold carries a change out and finds its event at the vendor's
// backend, once, although the commit that settled it had to be done again.
func TestVendorIsTold(t *testing.T) {
	v := newVendor(t)
	tn := tenant()
	tn.EventsURL, tn.EventsSecrets = v.URL, []string{eventsSecret}
	twice := &twice{Store: openStore(t)}
	portal := running(t, portalcore.Options{Tenant: tn, Store: twice, Provider: newProvider(t)})
	place := cancel(t, portal, signIn(t, portal))
	want := "action.succeeded cus_northwind evt_" + strings.TrimPrefix(place, "/done/") + "_succeeded"
	soon(t, 10*time.Second, func() error {
		if got := v.events(); len(got) != 1 || got[0] != want {
			return fmt.Errorf("events %q, want %q", got, want)
		}
		return nil
	})
	if twice.differs.Load() != 0 {
		t.Errorf("%d transactions wrote something else when they ran again", twice.differs.Load())
	}
	page, err := portal.Intents(t.Context(), portalcore.IntentQuery{State: string(journal.Succeeded)})
	if err != nil || len(page.Intents) != 1 || page.Intents[0].Customer != "cus_northwind" {
		t.Errorf("intents: %+v %v", page, err)
	}
	time.Sleep(2500 * time.Millisecond) // two more rounds of delivery
	if got := v.events(); len(got) != 1 {
		t.Errorf("told again: %q", got)
	}
}

// twice runs every update's function twice in its transaction, as a store may,
// and compares which keys it wrote.
type twice struct {
	store.Store
	differs atomic.Int64
}

func (s *twice) Update(ctx context.Context, fn func(store.Tx) error) error {
	var first map[string]bool
	errAgain := errors.New("again")
	err := s.Store.Update(ctx, func(tx store.Tx) error {
		rec := &recorded{Tx: tx, wrote: map[string]bool{}}
		if err := fn(rec); err != nil {
			return err
		}
		first = rec.wrote
		return errAgain // nothing of it is kept
	})
	if !errors.Is(err, errAgain) {
		return err
	}
	return s.Store.Update(ctx, func(tx store.Tx) error {
		rec := &recorded{Tx: tx, wrote: map[string]bool{}}
		if err := fn(rec); err != nil {
			return err
		}
		for k := range rec.wrote {
			parts, ok := store.Parts([]byte(k))
			// The place of an event in its queue is the time it was put.
			if ok && !first[k] && parts[0] != "outbox" && (len(parts) < 2 || parts[1] != "event") {
				s.differs.Add(1)
			}
		}
		return nil
	})
}

type recorded struct {
	store.Tx
	wrote map[string]bool
}

func (r *recorded) Put(key, value []byte) error {
	r.wrote[string(key)] = true
	return r.Tx.Put(key, value)
}

// TestWebhookWakesRecovery settles an intent in doubt because an event of the
// provider came, long before it would have been looked at.
func TestWebhookWakesRecovery(t *testing.T) {
	h := &hooked{provider: newProvider(t)}
	portal := running(t, portalcore.Options{Tenant: tenant(), Store: openStore(t), Provider: h})
	cookie := signIn(t, portal)
	h.silent.Store(true)
	place := cancel(t, portal, cookie)
	state := func() string {
		t.Helper()
		page, err := portal.Intents(t.Context(), portalcore.IntentQuery{Customer: "cus_northwind"})
		if err != nil || len(page.Intents) != 1 {
			t.Fatal(page, err)
		}
		return page.Intents[0].State
	}
	if s := state(); s != string(journal.Unknown) {
		t.Fatalf("the change in doubt is %s", s)
	}
	if open, err := portal.Intents(t.Context(), portalcore.IntentQuery{State: portalcore.StateOpen}); err != nil || len(open.Intents) != 1 {
		t.Errorf("open intents: %+v %v", open, err)
	}
	h.silent.Store(false)

	post := func(host, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, origin+"/webhook", strings.NewReader(body))
		r.Host = host
		w := httptest.NewRecorder()
		portal.ServeHTTP(w, r)
		return w
	}
	if w := post("evil.example.com", "evt_1"); w.Code != http.StatusMisdirectedRequest {
		t.Errorf("under another host: %d", w.Code)
	}
	if w := post("billing.example.com", "forged"); w.Code != http.StatusBadRequest {
		t.Errorf("a forged event: %d", w.Code)
	}
	if w := do(t, portal, http.MethodGet, origin+"/webhook", "", nil); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Strict-Transport-Security") == "" {
		t.Errorf("GET: %d %v", w.Code, w.Header())
	}
	begun := time.Now()
	if w := post("billing.example.com", "evt_1"); w.Code != http.StatusOK {
		t.Fatalf("an event: %d %s", w.Code, w.Body)
	}
	soon(t, 10*time.Second, func() error {
		if s := state(); s != string(journal.Succeeded) {
			return fmt.Errorf("the change is %s", s)
		}
		return nil
	})
	// Without the wake the loop comes by every two seconds.
	t.Logf("settled %s after the event", time.Since(begun).Round(time.Millisecond))
	if took := time.Since(begun); took > 800*time.Millisecond {
		t.Errorf("settled only %s after the event: nobody was woken", took)
	}
	if w := do(t, portal, http.MethodGet, origin+place, cookie, nil); w.Code != http.StatusOK {
		t.Errorf("the receipt: %d", w.Code)
	}
}

// away fails every write and every read while it is set.
type away struct {
	store.Store
	on     atomic.Bool
	failed atomic.Int64
}

func (a *away) View(ctx context.Context, fn func(store.Tx) error) error {
	if a.on.Load() {
		a.failed.Add(1)
		return store.ErrUnavailable
	}
	return a.Store.View(ctx, fn)
}

func (a *away) Update(ctx context.Context, fn func(store.Tx) error) error {
	if a.on.Load() {
		a.failed.Add(1)
		return store.ErrUnavailable
	}
	return a.Store.Update(ctx, fn)
}

// TestStoreAway holds that a store that is away fills no log, that operators
// are told, and that the loops go on afterwards.
func TestStoreAway(t *testing.T) {
	core, logged := observer.New(zap.ErrorLevel)
	v := newVendor(t)
	tn := tenant()
	tn.EventsURL, tn.EventsSecrets = v.URL, []string{eventsSecret}
	st := &away{Store: openStore(t)}
	portal := running(t, portalcore.Options{Tenant: tn, Store: st, Provider: newProvider(t), Logger: zap.New(core)})
	cookie := signIn(t, portal)
	st.on.Store(true)
	soon(t, time.Minute, func() error { // about six rounds of delivery, three of recovery, one of the index
		if n := st.failed.Load(); n < 10 {
			return fmt.Errorf("only %d failures", n)
		}
		return nil
	})
	const loops = 5 // that may complain, each once
	if n := logged.FilterMessageSnippet("background work failed").Len(); n < 1 || n > loops {
		t.Errorf("%d lines about background work, want at most one of each loop", n)
	}
	if _, err := portal.Status(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("status: %v", err)
	}
	if _, err := portal.RevokeSessions(t.Context(), portalcore.Revocation{All: true, By: "ann"}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("revoking: %v", err)
	}
	st.on.Store(false)
	cancel(t, portal, cookie)
	soon(t, 10*time.Second, func() error {
		if len(v.events()) != 1 {
			return errors.New("no event after the store came back")
		}
		return nil
	})
}
