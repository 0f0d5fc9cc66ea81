package outbox_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/outbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	tenant = "billing.example.com"
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	second = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	target = "https://app.example.com/hooks?key=vendors-own"
)

var start = time.Date(2026, time.November, 22, 10, 0, 0, 0, time.UTC)

// attempt is one request that reached the receiver.
type attempt struct {
	id, customer, kind string
	at                 time.Time
	body               string
	header             http.Header
}

// receiver is the vendor's backend. It verifies what it gets with the
// specification's own library, and does what says is told.
type receiver struct {
	t     *testing.T
	clock func() time.Time
	keys  []string // any of which must fit

	mu  sync.Mutex
	got []attempt
	// says is the answer: a status, 0 for a connection that breaks once the
	// request was read. nil: 200.
	says   func(attempt) int
	header http.Header
	body   io.Reader
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Error(err)
	}
	if req.Method != http.MethodPost || req.URL.String() != target || req.Header.Get("Content-Type") != "application/json" {
		r.t.Errorf("%s %s %v", req.Method, req.URL, req.Header)
	}
	fits := false
	for _, k := range r.keys {
		w, err := standardwebhooks.NewWebhook(k)
		if err != nil {
			r.t.Error(err)
		}
		fits = fits || w.VerifyIgnoringTimestamp(body, req.Header) == nil
	}
	if !fits {
		r.t.Errorf("the signature %q does not fit", req.Header.Get("webhook-signature"))
	}
	if ts := req.Header.Get("webhook-timestamp"); ts != strconv.FormatInt(r.clock().Unix(), 10) {
		r.t.Errorf("timestamp %s, it is %d", ts, r.clock().Unix())
	}
	var v struct {
		Type      string
		Timestamp time.Time
		Data      struct{ Customer string }
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil || v.Type == "" || v.Timestamp.IsZero() {
		r.t.Errorf("body %s: %v", body, err)
	}
	a := attempt{id: req.Header.Get("webhook-id"), customer: v.Data.Customer, kind: v.Type, at: r.clock(), body: string(body), header: req.Header.Clone()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, a)
	status := 200
	if r.says != nil {
		status = r.says(a)
	}
	if status == 0 {
		return nil, errors.New("connection reset by peer")
	}
	res := &http.Response{StatusCode: status, Header: r.header, Body: http.NoBody}
	if r.header == nil {
		res.Header = http.Header{}
	}
	if r.body != nil {
		res.Body = io.NopCloser(r.body)
	}
	return res, nil
}

// ids are the ids received, in order.
func (r *receiver) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for _, a := range r.got {
		ids = append(ids, a.id)
	}
	return ids
}

type env struct {
	*outbox.Outbox
	t   *testing.T
	db  store.Store
	rcv *receiver
	log *observer.ObservedLogs
	opt outbox.Options

	mu  sync.Mutex
	now time.Time
	n   int
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

func openBadger(t *testing.T) store.Store {
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
	return db
}

func open(t *testing.T, db store.Store) *env {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	e := &env{t: t, db: db, log: logs, now: start}
	e.rcv = &receiver{t: t, clock: e.clock, keys: []string{secret}}
	e.opt = outbox.Options{
		Store: db, Tenant: tenant, Now: e.clock, Rand: rand.Reader, Process: "one", URL: target, Secrets: []string{secret},
		Transport: e.rcv, Log: zap.New(core),
	}
	e.Outbox = e.node("one", db)
	return e
}

// node is another outbox over the same store.
func (e *env) node(process string, db store.Store) *outbox.Outbox {
	e.t.Helper()
	o := e.opt
	o.Process, o.Store = process, db
	b, err := outbox.New(o)
	if err != nil {
		e.t.Fatal(err)
	}
	return b
}

// add puts an event of a customer and returns its id.
func (e *env) add(customer string) string {
	e.t.Helper()
	e.n++
	id := fmt.Sprintf("evt_%03d", e.n)
	err := e.db.Update(e.t.Context(), func(tx store.Tx) error {
		return e.Put(tx, outbox.Event{ID: id, Type: "action.succeeded", Time: e.clock(), Customer: customer, Data: json.RawMessage(`{"customer":"` + customer + `"}`)})
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return id
}

func (e *env) deliver(want int) {
	e.t.Helper()
	n, err := e.Deliver(e.t.Context())
	if err != nil || n != want {
		e.t.Fatalf("delivered %d, %v, want %d", n, err, want)
	}
}

// left counts the records of the outbox.
func (e *env) left() int {
	e.t.Helper()
	n := 0
	err := e.db.View(e.t.Context(), func(tx store.Tx) error {
		n = 0
		for _, prefix := range [][]byte{store.Key("outbox"), store.Key(tenant, "event"), store.Key(tenant, "event-queue")} {
			entries, err := tx.Scan(prefix, nil, 1000, false)
			if err != nil {
				return err
			}
			n += len(entries)
		}
		return nil
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return n
}

func (e *env) same(what string, got []string, want ...string) {
	e.t.Helper()
	if !slices.Equal(got, want) {
		e.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestDelivered(t *testing.T) { delivered(t, openBadger(t)) }

func delivered(t *testing.T, db store.Store) {
	e := open(t, db)
	e.deliver(0)
	a, b, c := e.add("cus_1"), e.add("cus_1"), e.add("cus_1")
	e.deliver(3)
	e.same("received", e.rcv.ids(), a, b, c)
	want := `{"type":"action.succeeded","timestamp":"2026-11-22T10:00:00Z","data":{"customer":"cus_1"}}`
	if got := e.rcv.got[0].body; got != want {
		t.Errorf("body %s, want %s", got, want)
	}
	if n := e.left(); n != 0 {
		t.Errorf("%d records are left", n)
	}
	e.deliver(0)
	d := e.add("cus_1")
	e.deliver(1)
	e.same("received", e.rcv.ids(), a, b, c, d)
	if e.log.Len() != 0 {
		t.Errorf("logged %v", e.log.All())
	}
}

// An event is there if and only if what it tells of is.
func TestPutIsAtomic(t *testing.T) {
	e := open(t, openBadger(t))
	no := errors.New("no")
	err := e.db.Update(t.Context(), func(tx store.Tx) error {
		if err := e.Put(tx, outbox.Event{ID: "evt_1", Type: "a", Customer: "cus_1", Data: json.RawMessage(`{}`)}); err != nil {
			return err
		}
		return no
	})
	if !errors.Is(err, no) || e.left() != 0 {
		t.Errorf("%v, %d records", err, e.left())
	}
	for name, bad := range map[string]outbox.Event{
		"no id":            {Type: "a", Customer: "c", Data: json.RawMessage(`{}`)},
		"id with a dot":    {ID: "a.b", Type: "a", Customer: "c", Data: json.RawMessage(`{}`)},
		"id too long":      {ID: strings.Repeat("a", 129), Type: "a", Customer: "c", Data: json.RawMessage(`{}`)},
		"no type":          {ID: "a", Customer: "c", Data: json.RawMessage(`{}`)},
		"type with spaces": {ID: "a", Type: "a b", Customer: "c", Data: json.RawMessage(`{}`)},
		"no customer":      {ID: "a", Type: "a", Data: json.RawMessage(`{}`)},
		"no data":          {ID: "a", Type: "a", Customer: "c"},
		"no JSON":          {ID: "a", Type: "a", Customer: "c", Data: json.RawMessage(`{`)},
		"too much":         {ID: "a", Type: "a", Customer: "c", Data: json.RawMessage(`"` + strings.Repeat("a", outbox.MaxData) + `"`)},
		"too much escaped": {ID: "a", Type: "a", Customer: "c", Data: json.RawMessage(`"` + strings.Repeat("<", outbox.MaxData-2) + `"`)},
	} {
		if err := e.db.Update(t.Context(), func(tx store.Tx) error { return e.Put(tx, bad) }); err == nil {
			t.Errorf("%s was put", name)
		}
	}
	if e.left() != 0 {
		t.Errorf("%d records", e.left())
	}
}

// Two secrets make two signatures; a receiver with either is content.
func TestRotation(t *testing.T) {
	for _, known := range []string{secret, second} {
		e := open(t, openBadger(t))
		e.rcv.keys = []string{known}
		e.opt.Secrets = []string{second, secret}
		e.Outbox = e.node("two", e.db)
		e.add("cus_1")
		e.deliver(1)
		if sigs := strings.Fields(e.rcv.got[0].header.Get("webhook-signature")); len(sigs) != 2 || sigs[0] == sigs[1] {
			t.Errorf("signatures %q", sigs)
		}
	}
}

// A failing event is sent on the specification's schedule, up to a fifth
// later, with the same id and body, and is dead at its end. The ones behind it
// wait, and go on then.
func TestSchedule(t *testing.T) {
	e := open(t, openBadger(t))
	e.rcv.says = func(a attempt) int {
		if a.id == "evt_001" {
			return 500
		}
		return 200
	}
	first, behind, other := e.add("cus_1"), e.add("cus_1"), e.add("cus_2")
	schedule := []time.Duration{
		0, 5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
	}
	for n := 0; e.clock().Before(start.Add(100 * time.Hour)); n++ {
		if _, err := e.Deliver(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Small steps where small waits are.
		step := time.Minute
		if n < 60 {
			step = time.Second / 2
		}
		e.advance(step)
	}
	var at []time.Time
	for _, a := range e.rcv.got {
		if a.id != first {
			continue
		}
		if at = append(at, a.at); a.body != e.rcv.got[0].body && a.customer == "cus_1" && a.id == e.rcv.got[0].id {
			t.Error("the body changed")
		}
	}
	if len(at) != len(schedule) {
		t.Fatalf("%d attempts, want %d: %v", len(at), len(schedule), at)
	}
	late := false
	for n := 1; n < len(at); n++ {
		d := at[n].Sub(at[n-1])
		if d < schedule[n] || d > schedule[n]*12/10+time.Minute {
			t.Errorf("attempt %d came %s after the one before, want %s to a fifth more", n+1, d, schedule[n])
		}
		late = late || d > schedule[n]+time.Minute
	}
	if !late {
		t.Error("no attempt was put off at random")
	}
	ids := e.rcv.ids()
	if ids[len(ids)-1] != behind || slices.Index(ids, behind) != len(ids)-1 {
		t.Errorf("the event behind was not sent last, and once: %v", ids)
	}
	if n := slices.Index(ids, other); n > 1 {
		t.Errorf("another customer's event was sent as number %d", n+1)
	}
	dead, err := e.Dead(t.Context(), 10)
	if err != nil || len(dead) != 1 || dead[0].ID != first || dead[0].Reason != "the receiver answered 500" || !dead[0].Put.Equal(start) || dead[0].Died.IsZero() {
		t.Fatalf("dead: %+v, %v", dead, err)
	}
	if e.log.FilterMessageSnippet("dead").Len() != 1 || e.log.FilterMessageSnippet("tried again").Len() != 9 {
		t.Errorf("logged %v", e.log.All())
	}
	for _, l := range e.log.All() {
		if s := fmt.Sprint(l.Message, l.ContextMap()); strings.Contains(s, "vendors-own") || strings.Contains(s, secret[6:]) {
			t.Errorf("the log says too much: %s", s)
		}
	}
	if e.left() != 0 {
		t.Errorf("%d records are left", e.left())
	}
}

// After an outage longer than the schedule, each event that waited is tried
// once more, not for three days of its own.
func TestOutage(t *testing.T) {
	e := open(t, openBadger(t))
	down := true
	e.rcv.says = func(attempt) int {
		if down {
			return 0
		}
		return 200
	}
	var ids []string
	for range 5 {
		ids = append(ids, e.add("cus_1"))
	}
	for e.clock().Before(start.Add(110 * time.Hour)) {
		if _, err := e.Deliver(t.Context()); err != nil {
			t.Fatal(err)
		}
		e.advance(10 * time.Minute)
	}
	dead, err := e.Dead(t.Context(), 10)
	if err != nil || len(dead) != 5 || dead[0].Reason == "" {
		t.Fatalf("%d dead, %v, want 5", len(dead), err)
	}
	for _, l := range e.log.All() {
		if text := fmt.Sprint(l.ContextMap()); strings.Contains(text, "vendors-own") {
			t.Fatalf("the log shows the URL: %s", text)
		}
	}
	if strings.Contains(dead[0].Reason, "vendors-own") {
		t.Errorf("the reason shows the URL: %s", dead[0].Reason)
	}
	down = false
	last := e.add("cus_1")
	e.deliver(1)

	if n, err := e.Resend(t.Context(), "evt_unknown"); n != 0 || !errors.Is(err, outbox.ErrNoEvent) {
		t.Errorf("resent %d, %v", n, err)
	}
	if n, err := e.Resend(t.Context(), ids[2]); n != 1 || err != nil {
		t.Errorf("resent %d, %v", n, err)
	}
	e.deliver(1)
	if n, err := e.Resend(t.Context(), ids[2]); n != 0 || !errors.Is(err, outbox.ErrNoEvent) {
		t.Errorf("resent again: %d, %v", n, err)
	}
	if n, err := e.Resend(t.Context(), ""); n != 4 || err != nil {
		t.Errorf("resent %d, %v", n, err)
	}
	e.deliver(4)
	got := e.rcv.ids()
	e.same("after the outage", got[len(got)-6:], last, ids[2], ids[0], ids[1], ids[3], ids[4])
	if n, err := e.Resend(t.Context(), ""); n != 0 || err != nil {
		t.Errorf("nothing is dead: resent %d, %v", n, err)
	}
	if e.left() != 0 {
		t.Errorf("%d records are left", e.left())
	}
}

// Many dead events are sent again in one go, and one that dies again while
// that is under way is not sent for ever.
func TestResendMany(t *testing.T) {
	e := open(t, openBadger(t))
	e.rcv.says = func(attempt) int { return 410 }
	const n = 700
	err := e.db.Update(t.Context(), func(tx store.Tx) error {
		for i := range n {
			if err := e.Put(tx, outbox.Event{ID: fmt.Sprintf("evt_%d", i), Type: "a", Time: start, Customer: fmt.Sprintf("cus_%d", i%97), Data: json.RawMessage(`{}`)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		e.deliver(0)
	}
	if dead, err := e.Dead(t.Context(), 1000); err != nil || len(dead) != n {
		t.Fatalf("%d dead, %v", len(dead), err)
	}
	e.advance(time.Second)
	if m, err := e.Resend(t.Context(), ""); m != n || err != nil {
		t.Errorf("resent %d, %v", m, err)
	}
	e.rcv.mu.Lock()
	e.rcv.says = nil
	e.rcv.mu.Unlock()
	total := 0
	for range 30 {
		m, err := e.Deliver(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		total += m
	}
	if total != n || e.left() != 0 {
		t.Errorf("%d delivered, %d records left", total, e.left())
	}
	// A dead event is swept after its time.
	e.rcv.says = func(attempt) int { return 410 }
	e.add("cus_1")
	e.deliver(0)
	for _, at := range []struct {
		after time.Duration
		dead  int
	}{{outbox.DeadLife - time.Second, 1}, {outbox.DeadLife + time.Second, 0}} {
		for swept := 1; swept > 0; {
			if swept, err = store.Sweep(t.Context(), e.db, tenant, e.clock().Add(at.after), 500); err != nil {
				t.Fatal(err)
			}
		}
		if dead, err := e.Dead(t.Context(), 10); err != nil || len(dead) != at.dead {
			t.Errorf("%d dead after %s, %v", len(dead), at.after, err)
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		status       int
		after        string
		taken, dead  bool
		wait, atMost time.Duration
	}{
		{200, "", true, false, 0, 0},
		{204, "", true, false, 0, 0},
		{299, "", true, false, 0, 0},
		{301, "", false, false, 5 * time.Second, 6 * time.Second},
		{307, "", false, false, 5 * time.Second, 6 * time.Second},
		{400, "", false, false, 5 * time.Second, 6 * time.Second},
		{404, "", false, false, 5 * time.Second, 6 * time.Second},
		{410, "", false, true, 0, 0},
		{429, "", false, false, 5 * time.Second, 6 * time.Second},
		{429, "120", false, false, 2 * time.Minute, 2 * time.Minute},
		{503, "86400", false, false, time.Hour, time.Hour},
		{503, "-1", false, false, 5 * time.Second, 6 * time.Second},
		{503, "Wed, 21 Oct 2026 07:28:00 GMT", false, false, 5 * time.Second, 6 * time.Second},
		{503, "99999999999999999999", false, false, 5 * time.Second, 6 * time.Second},
		{0, "", false, false, 5 * time.Second, 6 * time.Second},
	} {
		t.Run(fmt.Sprint(tc.status, tc.after), func(t *testing.T) {
			e := open(t, openBadger(t))
			status := tc.status
			e.rcv.says = func(attempt) int { return status }
			e.rcv.header = http.Header{"Retry-After": {tc.after}, "Location": {"https://elsewhere.example.com/"}}
			a := e.add("cus_1")
			n, err := e.Deliver(t.Context())
			dead, _ := e.Dead(t.Context(), 10)
			if err != nil || (n == 1) != tc.taken || (len(dead) == 1) != tc.dead {
				t.Fatalf("delivered %d, %v, %d dead", n, err, len(dead))
			}
			if tc.taken || tc.dead {
				return
			}
			status = 200
			if tc.wait > 0 {
				e.advance(tc.wait - time.Millisecond)
				e.deliver(0)
			}
			e.advance(tc.atMost - tc.wait + 2*time.Millisecond)
			e.deliver(1)
			e.same("received", e.rcv.ids(), a, a)
		})
	}
}

// endless is an answer that does not end.
type endless struct{ read int }

func (e *endless) Read(b []byte) (int, error) {
	e.read += len(b)
	return len(b), nil
}

func TestLongAnswer(t *testing.T) {
	e := open(t, openBadger(t))
	body := new(endless)
	e.rcv.body = body
	e.add("cus_1")
	e.deliver(1)
	if body.read > 8<<10 {
		t.Errorf("%d bytes of the answer were read", body.read)
	}
}

// Over a real connection: a redirect is not followed, and a server that does
// not answer is left after 15 s.
func TestRealServer(t *testing.T) {
	t.Parallel() // it waits
	hang := make(chan struct{})
	var mu sync.Mutex
	seen := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.URL.Path]++
		mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		wh, err := standardwebhooks.NewWebhook(secret)
		if err != nil || wh.Verify(body, r.Header) != nil { // with the real clock
			t.Error("the signature does not fit")
		}
		switch r.Header.Get("Webhook-Id") {
		case "evt_001":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "evt_002":
			<-hang
		}
	}))
	defer srv.Close()
	defer close(hang)
	e := open(t, openBadger(t))
	e.now = time.Now()
	e.opt.URL, e.opt.Transport = srv.URL+"/hook", nil
	e.Outbox = e.node("one", e.db)
	defer e.Close()
	e.add("cus_1")
	e.add("cus_2")
	e.add("cus_3")
	began := time.Now()
	e.deliver(1)
	if d := time.Since(began); d < 14*time.Second || d > 25*time.Second {
		t.Errorf("it took %s", d)
	}
	mu.Lock() // the request that hangs was left, not answered: nothing else orders it before this
	defer mu.Unlock()
	if seen["/elsewhere"] != 0 || seen["/hook"] != 3 {
		t.Errorf("requests: %v", seen)
	}
}

// One customer's receiver that hangs does not hold up the others, and of two
// nodes one sends.
func TestTwoNodes(t *testing.T) {
	db := openBadger(t)
	twoNodes(t, db, db)
}

// twoNodes has a store of its own for each node, over the same records.
func twoNodes(t *testing.T, db, theirs store.Store) {
	e := open(t, db)
	release := make(chan struct{})
	var ids []string
	for n := range 40 {
		ids = append(ids, e.add(fmt.Sprintf("cus_%d", n%20)))
	}
	e.opt.Transport = slow{e.rcv, func(id string) {
		if id == ids[0] {
			<-release
		}
	}}
	var other *outbox.Outbox
	e.Outbox, other = e.node("one", db), e.node("two", theirs)
	var wg sync.WaitGroup
	total := 0
	for _, b := range []*outbox.Outbox{e.Outbox, other} {
		wg.Go(func() {
			n, err := b.Deliver(t.Context())
			if err != nil {
				t.Error(err)
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			total += n
		})
	}
	for deadline := time.Now().Add(10 * time.Second); len(e.rcv.ids()) < 38; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d sent beside the one that hangs", len(e.rcv.ids()))
		}
	}
	if n, err := other.Deliver(t.Context()); n != 0 || err != nil {
		t.Errorf("delivered %d, %v while the first is leased", n, err)
	}
	close(release)
	wg.Wait()
	got := e.rcv.ids()
	slices.Sort(got)
	if total != 40 || !slices.Equal(got, ids) {
		t.Errorf("%d delivered, received %v", total, got)
	}
}

type slow struct {
	http.RoundTripper
	wait func(id string)
}

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	s.wait(r.Header.Get("Webhook-Id"))
	return s.RoundTripper.RoundTrip(r)
}

// One call does a bounded amount of work, and what it leaves over is due.
func TestBounded(t *testing.T) {
	e := open(t, openBadger(t))
	for range 80 {
		e.add("cus_1")
	}
	e.deliver(32)
	e.deliver(32)
	e.deliver(16)
	for n := range 130 {
		e.add(fmt.Sprintf("cus_%d", n))
	}
	e.deliver(64)
	e.deliver(64)
	e.deliver(2)
	// A receiver that wants nothing more costs one attempt for each customer.
	e.rcv.says = func(attempt) int { return 410 }
	for range 3 {
		e.add("cus_1")
	}
	for n := range 3 {
		before := len(e.rcv.ids())
		e.deliver(0)
		if after := len(e.rcv.ids()); after != before+1 {
			t.Errorf("call %d made %d attempts", n, after-before)
		}
	}
}

// A sender whose queue was taken over while its request was under way does not
// write down what came of it: the one who took over did.
func TestOvertaken(t *testing.T) {
	e := open(t, openBadger(t))
	a, b := e.add("cus_1"), e.add("cus_1")
	other := e.node("two", e.db)
	overtaken := false
	e.rcv.header = http.Header{}
	e.opt.Transport = slow{refuses{e.rcv}, func(string) {
		if overtaken {
			return
		}
		overtaken = true
		e.advance(2 * time.Minute)
		if n, err := other.Deliver(t.Context()); n != 2 || err != nil {
			t.Errorf("the other delivered %d, %v", n, err)
		}
		e.add("cus_1") // so that there is a queue again
	}}
	if n, err := e.node("one", e.db).Deliver(t.Context()); n != 0 || err != nil {
		t.Errorf("delivered %d, %v", n, err)
	}
	if dead, err := e.Dead(t.Context(), 10); err != nil || len(dead) != 0 {
		t.Errorf("what was delivered is dead: %v, %v", dead, err)
	}
	e.deliver(1)
	e.same("received", e.rcv.ids(), a, b, "evt_003")
}

// refuses is a receiver that is gone.
type refuses struct{ *receiver }

func (refuses) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusGone, Header: http.Header{}, Body: http.NoBody}, nil
}

// Events of other tenants stand in the same order of what is due; they are left
// alone, however many there are.
func TestTenants(t *testing.T) {
	e := open(t, openBadger(t))
	e.opt.Tenant = "other.example.com"
	stranger := e.node("one", e.db)
	for batch := range 12 { // more than one look goes through
		err := e.db.Update(t.Context(), func(tx store.Tx) error {
			for n := range 1000 {
				due := store.TimePart(start.UnixNano() - int64(batch*1000+n))
				if err := tx.Put(store.Key("outbox", due, "other.example.com", fmt.Sprintf("cus_%d", n)), []byte{}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err := e.db.Update(t.Context(), func(tx store.Tx) error {
		return stranger.Put(tx, outbox.Event{ID: "evt_other", Type: "a", Time: start, Customer: "cus_1", Data: json.RawMessage(`{}`)})
	})
	if err != nil {
		t.Fatal(err)
	}
	e.add("cus_1")
	e.advance(time.Second)
	e.deliver(0)
	e.deliver(1)
	e.same("received", e.rcv.ids(), "evt_001")
}

// A clock that goes back keeps the order, and does not make an event wait until
// the clock is where it was.
func TestClockGoesBack(t *testing.T) {
	e := open(t, openBadger(t))
	status := 500
	e.rcv.says = func(attempt) int { return status }
	a := e.add("cus_1")
	e.deliver(0)
	status = 200
	e.advance(-10 * 365 * 24 * time.Hour)
	b := e.add("cus_1")
	c := e.add("cus_2")
	e.deliver(3)
	got := slices.DeleteFunc(e.rcv.ids(), func(id string) bool { return id == c })
	e.same("received", got, a, a, b)
}

// What the clock put far ahead is found behind what is not due yet.
func TestClockGoesBackBehindOthers(t *testing.T) {
	e := open(t, openBadger(t))
	const decade = 10 * 365 * 24 * time.Hour
	e.rcv.says = func(attempt) int { return 500 }
	e.add("cus_1") // fails, and is due in five seconds
	e.deliver(0)
	e.rcv.says = nil
	e.advance(decade)
	b := e.add("cus_2")
	e.advance(-decade)
	e.deliver(1)
	got := e.rcv.ids()
	e.same("received last", got[len(got)-1:], b)
}

func TestNew(t *testing.T) {
	e := open(t, openBadger(t))
	for name, tc := range map[string]struct {
		spoil func(*outbox.Options)
		ok    bool
	}{
		"as it is":                      {func(*outbox.Options) {}, true},
		"loopback":                      {func(o *outbox.Options) { o.URL = "http://127.0.0.1:8080/x" }, true},
		"localhost":                     {func(o *outbox.Options) { o.URL = "http://app.localhost/" }, true},
		"http":                          {func(o *outbox.Options) { o.URL = "http://app.example.com/" }, false},
		"http to localhost.example.com": {func(o *outbox.Options) { o.URL = "http://localhost.example.com/" }, false},
		"no URL":                        {func(o *outbox.Options) { o.URL = "" }, false},
		"a path":                        {func(o *outbox.Options) { o.URL = "/hook" }, false},
		"a file":                        {func(o *outbox.Options) { o.URL = "file:///etc/passwd" }, false},
		"user and password":             {func(o *outbox.Options) { o.URL = "https://a:b@app.example.com/" }, false},
		"fragment":                      {func(o *outbox.Options) { o.URL = "https://app.example.com/#x" }, false},
		"no secret":                     {func(o *outbox.Options) { o.Secrets = nil }, false},
		"three secrets":                 {func(o *outbox.Options) { o.Secrets = []string{secret, second, secret} }, false},
		"secret bare":                   {func(o *outbox.Options) { o.Secrets = []string{secret[6:]} }, false},
		"secret short":                  {func(o *outbox.Options) { o.Secrets = []string{"whsec_c2hvcnQ="} }, false},
		"secret not base64":             {func(o *outbox.Options) { o.Secrets = []string{"whsec_!!!!"} }, false},
		"no process":                    {func(o *outbox.Options) { o.Process = "" }, false},
		"no store":                      {func(o *outbox.Options) { o.Store = nil }, false},
	} {
		o := e.opt
		tc.spoil(&o)
		_, err := outbox.New(o)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), secret[6:]) || strings.Contains(err.Error(), "c2hvcnQ")) {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

// mortal is a process that may die: from then on it reaches neither the store nor
// the network.
type mortal struct {
	store.Store
	http.RoundTripper
	mu     sync.Mutex
	rnd    *mrand.Rand
	faults float64
	dead   bool
}

var errDead = errors.New("the process is dead")

// fate is what happens to one operation.
func (m *mortal) fate() (before, after error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errDead, nil
	}
	if m.rnd.Float64() >= m.faults {
		return nil, nil
	}
	switch m.rnd.IntN(4) {
	case 0:
		return errors.New("the store is down for a moment"), nil
	case 1:
		return store.ErrUnknown, nil // not applied
	case 2:
		return nil, store.ErrUnknown // applied
	}
	m.dead = true
	if m.rnd.IntN(2) == 0 {
		return errDead, nil
	}
	return nil, errDead
}

func (m *mortal) Update(ctx context.Context, fn func(store.Tx) error) error {
	before, after := m.fate()
	if before != nil {
		return before
	}
	if err := m.Store.Update(ctx, fn); err != nil {
		return err
	}
	return after
}

func (m *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	dead := m.dead
	dies := !dead && m.rnd.Float64() < m.faults/4
	m.mu.Unlock()
	if dead {
		return nil, errDead
	}
	res, err := m.RoundTripper.RoundTrip(r)
	if dies { // after the receiver had it, before it was marked
		m.mu.Lock()
		m.dead = true
		m.mu.Unlock()
		return nil, errDead
	}
	return res, err
}

// Whatever fails, wherever: an event that was put is received or dead, and a
// customer's events are received first in the order they were put in.
func TestCrashes(t *testing.T) {
	seeds := uint64(100)
	if testing.Short() {
		seeds = 10
	}
	db := openBadger(t)
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { crashes(t, db, db, seed) })
	}
}

// TestPostgres does the same over a real PostgreSQL, with a pool of
// connections for each node.
func TestPostgres(t *testing.T) {
	srv := pgtest.Start(t, pgtest.NoSync())
	dsn := srv.DSN(srv.Database(t))
	sealer, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	var dbs [2]store.Store
	for i := range dbs {
		db, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn, Sealer: sealer})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		dbs[i] = db
	}
	t.Run("delivered", func(t *testing.T) { delivered(t, dbs[0]) })
	t.Run("two nodes", func(t *testing.T) { twoNodes(t, dbs[0], dbs[1]) })
	seeds := uint64(10)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { crashes(t, dbs[0], dbs[1], seed) })
	}
}

// crashes has two nodes, each with a store over the same records.
func crashes(t *testing.T, db, theirs store.Store, seed uint64) {
	rnd := mrand.New(mrand.NewPCG(seed, 1))
	e := open(t, db)
	base := e.rcv
	var receiving sync.Mutex
	base.says = func(attempt) int {
		receiving.Lock()
		defer receiving.Unlock()
		return []int{200, 200, 200, 200, 500, 0, 503}[rnd.IntN(7)]
	}
	faults := 0.15
	nodes := make([]*outbox.Outbox, 2)
	lives := make([]*mortal, 2)
	born := 0
	boot := func(i int) {
		born++
		lives[i] = &mortal{Store: []store.Store{db, theirs}[i], RoundTripper: base, rnd: mrand.New(mrand.NewPCG(seed, uint64(100+born))), faults: faults}
		e.opt.Transport = lives[i]
		nodes[i] = e.node(fmt.Sprint("process ", born), lives[i])
	}
	boot(0)
	boot(1)
	put := map[string][]string{}
	step := func() {
		var wg sync.WaitGroup
		for _, b := range nodes {
			wg.Go(func() { _, _ = b.Deliver(t.Context()) }) // its errors are the point
		}
		wg.Wait()
		for i := range nodes {
			if lives[i].dead {
				boot(i)
			}
		}
	}
	for range 25 {
		for range rnd.IntN(4) {
			c := fmt.Sprintf("cus_%d", rnd.IntN(3))
			put[c] = append(put[c], e.add(c))
		}
		step()
		e.advance(time.Duration(rnd.IntN(90)) * time.Second)
	}
	faults = 0
	boot(0)
	boot(1)
	base.says = nil
	for n := 0; e.left() > 0; n++ {
		if n > 200 {
			t.Fatalf("%d records are left", e.left())
		}
		step()
		e.advance(10 * time.Minute)
	}
	if dead, err := e.Dead(t.Context(), 10); err != nil || len(dead) != 0 {
		t.Fatalf("dead: %v, %v", dead, err)
	}
	first := map[string][]string{}
	seen := map[string]bool{}
	for _, a := range base.got {
		if !seen[a.id] {
			seen[a.id] = true
			first[a.customer] = append(first[a.customer], a.id)
		}
	}
	for c, want := range put {
		if !slices.Equal(first[c], want) {
			t.Errorf("%s received %v, put %v", c, first[c], want)
		}
	}
}

// After a crash between sending and marking, the event is sent again with the
// same id once the lease has run out, and not before.
func TestAbandoned(t *testing.T) {
	e := open(t, openBadger(t))
	life := &mortal{Store: e.db, RoundTripper: e.rcv, rnd: mrand.New(mrand.NewPCG(1, 1))}
	e.opt.Transport = kills{e.rcv, life}
	dying := e.node("dying", life)
	a, b := e.add("cus_1"), e.add("cus_1")
	if _, err := dying.Deliver(t.Context()); !errors.Is(err, errDead) {
		t.Fatalf("error %v", err)
	}
	e.same("received", e.rcv.ids(), a)
	e.advance(59 * time.Second)
	e.deliver(0)
	e.advance(2 * time.Second)
	e.deliver(2)
	e.same("received", e.rcv.ids(), a, a, b)
	if e.rcv.got[0].body != e.rcv.got[1].body {
		t.Error("the body changed")
	}
}

// kills lets the request through and kills the process before it sees the
// answer.
type kills struct {
	*receiver
	life *mortal
}

func (k kills) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := k.receiver.RoundTrip(r)
	k.life.mu.Lock()
	k.life.dead = true
	k.life.mu.Unlock()
	return res, err
}

// A sender that stood still longer than its lease sends nothing it leased.
func TestStoodStill(t *testing.T) {
	e := open(t, openBadger(t))
	e.add("cus_1")
	late := &stalls{Store: e.db, after: func() { e.advance(50 * time.Second) }}
	n, err := e.node("stalled", late).Deliver(t.Context())
	if n != 0 || err != nil || len(e.rcv.ids()) != 0 {
		t.Errorf("delivered %d, %v, received %v", n, err, e.rcv.ids())
	}
	e.advance(20 * time.Second)
	e.deliver(1)
}

type stalls struct {
	store.Store
	after func()
}

func (s *stalls) Update(ctx context.Context, fn func(store.Tx) error) error {
	err := s.Store.Update(ctx, fn)
	s.after()
	return err
}

// A caller that stops waiting leaves the event to the next one.
func TestCancelled(t *testing.T) {
	e := open(t, openBadger(t))
	ctx, cancel := context.WithCancel(t.Context())
	e.opt.Transport = slow{e.rcv, func(string) { cancel() }}
	a := e.add("cus_1")
	if _, err := e.node("one", e.db).Deliver(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	e.advance(2 * time.Minute)
	e.deliver(1)
	got := e.rcv.ids()
	e.same("received last", got[len(got)-1:], a)
}
