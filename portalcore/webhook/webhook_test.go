package webhook_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	stripewebhook "github.com/stripe/stripe-go/v85/webhook"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
	"github.com/portalcore/caddy-billing-portal/portalcore/webhook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	tenant = "billing.example.com"
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
)

var start = time.Date(2026, time.November, 22, 10, 0, 0, 0, time.UTC)

// faulty is a store that fails when it is told to.
type faulty struct {
	store.Store
	updates atomic.Int64
	fail    atomic.Pointer[failure]
}

type failure struct {
	err     error
	applied bool // the commit stands, its reply is lost
	reads   bool
}

func (f *faulty) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	if x := f.fail.Load(); x != nil && x.reads {
		return nil, x.err
	}
	return f.Store.GetAll(ctx, keys...)
}

func (f *faulty) Update(ctx context.Context, fn func(store.Tx) error) error {
	f.updates.Add(1)
	x := f.fail.Load()
	if x != nil && !x.applied {
		return x.err
	}
	err := f.Store.Update(ctx, fn)
	if x != nil && err == nil {
		return x.err
	}
	return err
}

type env struct {
	*webhook.Handler
	t        *testing.T
	db       *faulty
	log      *observer.ObservedLogs
	mu       sync.Mutex
	now      time.Time
	recovers atomic.Int64
}

func (e *env) clock() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now
}

func (e *env) advance(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now = e.now.Add(d)
}

var wokenKey = func(customer string) []byte { return store.Key(tenant, "woken", customer) }

func open(t *testing.T, secrets ...string) *env {
	t.Helper()
	sealer, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	db, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	p, err := stripe.New(stripe.Options{Key: "rk_test_123", WebhookSecrets: secrets})
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	e := &env{t: t, db: &faulty{Store: db}, log: logs, now: start}
	e.Handler, err = webhook.New(webhook.Options{
		Store: e.db, Tenant: tenant, Parse: p.ParseEvent, Now: e.clock, Rand: rand.Reader, Log: zap.New(core),
		// A counter in the store stands for the journal: it shows how often a
		// commit that stands woke.
		Wake: func(tx store.Tx, customer string, now time.Time) error {
			n, err := tx.Get(wokenKey(customer))
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			return tx.Put(wokenKey(customer), append(n, 'x'))
		},
		// And another one for the invoice index.
		Invoice: func(tx store.Tx, customer, invoice string, now time.Time) error {
			return tx.Put(store.Key(tenant, "invoice", customer, invoice), []byte{})
		},
		Recover: func() { e.recovers.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	// The customer was here once.
	if err := db.Update(t.Context(), func(tx store.Tx) error { return session.BumpVersion(tx, tenant, "cus_known") }); err != nil {
		t.Fatal(err)
	}
	return e
}

func body(id, kind, customer string) string {
	return fmt.Sprintf(`{"id":%q,"object":"event","created":%d,"livemode":false,"type":%q,"data":{"object":{"object":"subscription","id":"sub_1","customer":%q}}}`,
		id, start.Unix(), kind, customer)
}

func (e *env) request(body string) *http.Request {
	s := stripewebhook.GenerateTestSignedPayload(&stripewebhook.UnsignedPayload{Payload: []byte(body), Secret: secret, Timestamp: e.clock()})
	r := httptest.NewRequest(http.MethodPost, webhook.Path, strings.NewReader(body))
	r.Header.Set("Stripe-Signature", s.Header)
	return r
}

func (e *env) do(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	e.ServeHTTP(rec, r)
	return rec
}

func (e *env) post(body string) int { return e.do(e.request(body)).Code }

// seen is the account version and how often a customer's intents were woken.
func (e *env) seen(customer string) (version uint64, woken int) {
	e.t.Helper()
	err := e.db.View(e.t.Context(), func(tx store.Tx) (err error) {
		if version, err = session.Version(tx, tenant, customer); err != nil {
			return err
		}
		n, err := tx.Get(wokenKey(customer))
		woken = len(n)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return version, woken
}

func (e *env) want(customer string, version uint64, woken int, recovers int64) {
	e.t.Helper()
	if v, w := e.seen(customer); v != version || w != woken || e.recovers.Load() != recovers {
		e.t.Errorf("version %d, woken %d times, %d recoveries; want %d, %d, %d", v, w, e.recovers.Load(), version, woken, recovers)
	}
}

func TestNoted(t *testing.T) {
	e := open(t, secret)
	rec := e.do(e.request(body("evt_1", "customer.subscription.updated", "cus_known")))
	if rec.Code != 200 || rec.Header().Get("X-Request-Id") == "" || rec.Header().Get("Cache-Control") != "no-store" || !rec.Flushed {
		t.Errorf("status %d, flushed %v, header %v", rec.Code, rec.Flushed, rec.Header())
	}
	e.want("cus_known", 2, 1, 1)
	// Stripe sends it again, byte for byte and drawn anew.
	for range 3 {
		if code := e.post(body("evt_1", "customer.subscription.updated", "cus_known")); code != 200 {
			t.Errorf("again: %d", code)
		}
		e.advance(time.Hour)
	}
	if code := e.post(body("evt_1", "customer.subscription.deleted", "cus_known")); code != 200 {
		t.Errorf("the same id with another body: %d", code)
	}
	e.want("cus_known", 2, 1, 1)
	// Any other event is a reason of its own, in whatever order.
	for i, kind := range []string{"customer.subscription.deleted", "customer.subscription.created"} {
		if code := e.post(body(fmt.Sprintf("evt_%d", i+2), kind, "cus_known")); code != 200 {
			t.Errorf("%s: %d", kind, code)
		}
	}
	e.want("cus_known", 4, 3, 3)
}

// What is about nobody who was ever here is taken and leaves nothing behind:
// not even a commit.
func TestNothingToDo(t *testing.T) {
	e := open(t, secret)
	for _, b := range []string{
		body("evt_1", "customer.subscription.updated", "cus_stranger"),
		body("evt_2", "customer.subscription.updated", ""),
		strings.Replace(body("evt_3", "sprocket.turned", "cus_known"), `"object":"subscription"`, `"object":"sprocket"`, 1),
	} {
		if code := e.post(b); code != 200 {
			t.Errorf("%s: %d", b, code)
		}
	}
	e.want("cus_known", 1, 0, 0)
	e.want("cus_stranger", 0, 0, 0)
	if n := e.db.updates.Load(); n != 0 {
		t.Errorf("%d updates", n)
	}
	// Once they have been here, the same event counts.
	if err := e.db.Store.Update(t.Context(), func(tx store.Tx) error { return session.BumpVersion(tx, tenant, "cus_stranger") }); err != nil {
		t.Fatal(err)
	}
	if code := e.post(body("evt_1", "customer.subscription.updated", "cus_stranger")); code != 200 {
		t.Error(code)
	}
	e.want("cus_stranger", 2, 1, 1)
}

func TestRefused(t *testing.T) {
	big := strings.Repeat(" ", 1<<20)
	ok := body("evt_1", "invoice.paid", "cus_known")
	for name, tc := range map[string]struct {
		request func(e *env) *http.Request
		status  int
		logged  bool
	}{
		"GET":          {func(*env) *http.Request { return httptest.NewRequest(http.MethodGet, webhook.Path, nil) }, 405, false},
		"HEAD":         {func(*env) *http.Request { return httptest.NewRequest(http.MethodHead, webhook.Path, nil) }, 405, false},
		"PUT":          {func(e *env) *http.Request { r := e.request(ok); r.Method = http.MethodPut; return r }, 405, false},
		"no signature": {func(e *env) *http.Request { r := e.request(ok); r.Header.Del("Stripe-Signature"); return r }, 400, true},
		"tampered": {func(e *env) *http.Request {
			r := e.request(ok)
			r.Body = io.NopCloser(strings.NewReader(strings.Replace(ok, "cus_known", "cus_other", 1)))
			return r
		}, 400, true},
		"old":             {func(e *env) *http.Request { r := e.request(ok); e.advance(301 * time.Second); return r }, 400, true},
		"from the future": {func(e *env) *http.Request { r := e.request(ok); e.advance(-301 * time.Second); return r }, 400, true},
		"not an event":    {func(e *env) *http.Request { return e.request(`{}`) }, 400, true},
		"a connected account's": {func(e *env) *http.Request {
			return e.request(strings.Replace(ok, `"created"`, `"account":"acct_1","created"`, 1))
		}, 400, true},
		"empty":     {func(e *env) *http.Request { return e.request("") }, 400, true},
		"too large": {func(e *env) *http.Request { return e.request(ok + big) }, 413, true},
		"too large and chunked": {func(e *env) *http.Request {
			r := e.request(ok + big)
			r.ContentLength = -1
			return r
		}, 413, true},
		"as large as can be": {func(e *env) *http.Request { return e.request(ok + big[:1<<20-len(ok)]) }, 200, false},
		"compressed": {func(e *env) *http.Request {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			z.Write([]byte(ok))
			z.Close()
			r := e.request(b.String())
			r.Header.Set("Content-Encoding", "gzip")
			return r
		}, 415, true},
		"identity": {func(e *env) *http.Request { r := e.request(ok); r.Header.Set("Content-Encoding", "identity"); return r }, 200, false},
		"cut off": {func(e *env) *http.Request {
			r := e.request(ok)
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader(ok[:10]), brokenReader{}))
			return r
		}, 400, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := open(t, secret)
			rec := e.do(tc.request(e))
			if rec.Code != tc.status {
				t.Errorf("status %d, want %d", rec.Code, tc.status)
			}
			if tc.status == 405 && rec.Header().Get("Allow") != "POST" {
				t.Errorf("Allow: %q", rec.Header().Get("Allow"))
			}
			if tc.status == 400 && strings.TrimSpace(rec.Body.String()) != "Not an event of the payment provider." && name != "cut off" {
				t.Errorf("the sender is told %q", rec.Body)
			}
			lines := e.log.FilterMessage("webhook refused").All()
			if (len(lines) == 1) != tc.logged || len(lines) > 1 {
				t.Fatalf("%d lines logged, want one: %v", len(lines), tc.logged)
			}
			for _, l := range lines {
				f := l.ContextMap()
				if f["request_id"] != rec.Header().Get("X-Request-Id") || f["reason"] == "" {
					t.Errorf("logged %v", f)
				}
				if s := fmt.Sprint(f); strings.Contains(s, secret[6:]) || strings.Contains(s, "cus_") {
					t.Errorf("the log says too much: %s", s)
				}
			}
			if tc.status != 200 {
				e.want("cus_known", 1, 0, 0)
			}
		})
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestNoWebhook(t *testing.T) {
	e := open(t)
	if code := e.post(body("evt_1", "invoice.paid", "cus_known")); code != 404 {
		t.Errorf("status %d", code)
	}
	e.want("cus_known", 1, 0, 0)
}

// A store that fails makes Stripe send the event again, and then it counts
// once, whether or not the commit of the first one stands.
func TestStoreFails(t *testing.T) {
	for name, f := range map[string]failure{
		"cannot be read":            {err: errors.New("down"), reads: true},
		"cannot be written":         {err: errors.New("disk full")},
		"reply lost, not applied":   {err: store.ErrUnknown},
		"reply lost, and it stands": {err: store.ErrUnknown, applied: true},
	} {
		t.Run(name, func(t *testing.T) {
			e := open(t, secret)
			e.db.fail.Store(&f)
			rec := e.do(e.request(body("evt_1", "invoice.paid", "cus_known")))
			if rec.Code != 503 || rec.Header().Get("Retry-After") == "" {
				t.Errorf("status %d, %v", rec.Code, rec.Header())
			}
			if n := e.log.FilterMessageSnippet("could not note").Len(); n != 1 {
				t.Errorf("%d lines logged", n)
			}
			e.db.fail.Store(nil)
			if code := e.post(body("evt_1", "invoice.paid", "cus_known")); code != 200 {
				t.Errorf("sent again: %d", code)
			}
			if v, w := e.seen("cus_known"); v != 2 || w != 1 {
				t.Errorf("version %d, woken %d times, want 2 and 1", v, w)
			}
		})
	}
}

func TestConcurrentDuplicates(t *testing.T) {
	e := open(t, secret)
	var wg sync.WaitGroup
	for n := range 60 {
		r := e.request(body(fmt.Sprintf("evt_%d", n%3), "invoice.paid", "cus_known"))
		wg.Go(func() {
			if code := e.do(r).Code; code != 200 {
				t.Errorf("status %d", code)
			}
		})
	}
	wg.Wait()
	e.want("cus_known", 4, 3, 3)
}

// An id is forgotten after a week, and what it leaves is swept.
func TestRemember(t *testing.T) {
	e := open(t, secret)
	e.post(body("evt_1", "invoice.paid", "cus_known"))
	if n, err := store.Sweep(t.Context(), e.db, tenant, start.Add(webhook.Remember-time.Second), 10); n != 0 || err != nil {
		t.Errorf("swept %d early, %v", n, err)
	}
	if n, err := store.Sweep(t.Context(), e.db, tenant, start.Add(webhook.Remember+time.Second), 10); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	e.post(body("evt_1", "invoice.paid", "cus_known"))
	e.want("cus_known", 3, 2, 2)
}

// Ten thousand requests with a bad signature cost ten lines a minute in the
// log and nothing in the store.
func TestFlood(t *testing.T) {
	e := open(t, secret)
	const n = 10_000
	b := body("evt_1", "invoice.paid", "cus_known")
	began := time.Now()
	for range n {
		r := httptest.NewRequest(http.MethodPost, webhook.Path, strings.NewReader(b))
		r.Header.Set("Stripe-Signature", fmt.Sprintf("t=%d,v1=%s", start.Unix(), strings.Repeat("0", 64)))
		if code := e.do(r).Code; code != 400 {
			t.Fatalf("status %d", code)
		}
	}
	t.Logf("%d refused in %s", n, time.Since(began))
	if lines := e.log.Len(); lines != 10 {
		t.Errorf("%d lines, want 10", lines)
	}
	if e.db.updates.Load() != 0 {
		t.Error("the flood wrote to the store")
	}
	// The next minute says how many there were.
	e.advance(time.Minute)
	r := httptest.NewRequest(http.MethodPost, webhook.Path, strings.NewReader(b))
	e.do(r)
	if f := e.log.All()[10].ContextMap(); f["unlogged"] != uint64(n-10) {
		t.Errorf("logged %v", f)
	}
	// And a genuine one is taken all along.
	if code := e.post(b); code != 200 {
		t.Errorf("status %d", code)
	}
}

// Strangers who send slowly keep no usual event out, and large ones only until
// they are cut off.
func TestSlowBodies(t *testing.T) {
	t.Parallel() // it waits
	e := open(t, secret)
	srv := httptest.NewServer(e)
	defer srv.Close()
	for range 64 {
		for _, begun := range []string{"{", "{" + strings.Repeat(" ", 64<<10)} {
			c, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprintf(c, "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n%s", begun)
		}
	}
	n := 0
	post := func(pad int) int {
		n++
		b := body(fmt.Sprintf("evt_%d", n), "invoice.paid", "cus_known") + strings.Repeat(" ", pad)
		r, err := http.NewRequest(http.MethodPost, srv.URL+webhook.Path, strings.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = e.request(b).Header
		res, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	full := false
	for range 100 {
		if got := post(0); got != http.StatusOK {
			t.Fatalf("a usual event beside slow senders: %d", got)
		}
		if full = post(100<<10) == http.StatusServiceUnavailable; full {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if !full {
		t.Error("a sixty-fifth large event was read beside sixty-four slow ones")
	}
	for deadline := time.Now().Add(30 * time.Second); post(100<<10) != http.StatusOK; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the slow ones were not cut off")
		}
	}
}

// The answer is on its way before recovery is woken.
func TestAnswersFirst(t *testing.T) {
	e := open(t, secret)
	answered, done := make(chan struct{}), make(chan struct{})
	o := webhook.Options{
		Store: e.db, Tenant: tenant, Now: e.clock, Rand: rand.Reader,
		Parse: func(http.Header, []byte, time.Time) (billing.Event, error) {
			return billing.Event{ID: "evt_1", Type: "x", Customer: "cus_known"}, nil
		},
		Wake:    func(store.Tx, string, time.Time) error { return nil },
		Invoice: func(store.Tx, string, string, time.Time) error { return nil },
		Recover: func() {
			select {
			case <-answered:
			case <-time.After(10 * time.Second):
				t.Error("recovery was woken before the answer was sent")
			}
			close(done)
		},
	}
	h, err := webhook.New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	res, err := srv.Client().Post(srv.URL, "application/json", strings.NewReader("{}"))
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	close(answered)
	<-done
	res.Body.Close()
	for _, spoil := range []func(*webhook.Options){
		func(o *webhook.Options) { o.Store = nil }, func(o *webhook.Options) { o.Tenant = "" }, func(o *webhook.Options) { o.Parse = nil },
		func(o *webhook.Options) { o.Wake = nil }, func(o *webhook.Options) { o.Recover = nil }, func(o *webhook.Options) { o.Rand = nil },
	} {
		bad := o
		spoil(&bad)
		if _, err := webhook.New(bad); err == nil {
			t.Error("made without something that is required")
		}
	}
}
