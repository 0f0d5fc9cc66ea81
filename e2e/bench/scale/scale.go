package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/stripetest"
)

const (
	origin    = "https://billing.example.com"
	portalKey = "bpk_scale_0123456789abcdef"
	stripeKey = "rk_test_scale0123456789"
	bigOne    = "cus_big"
	smallOne  = "cus_small"
)

// sizes say how large the measurement is.
type sizes struct {
	subscriptions, invoices, methods int
	latency                          time.Duration // of every request to the provider
	rounds                           int           // cold overviews
	warm                             int           // warm overviews of each account
	crowd, rate                      int           // customers at once, requests a second that the provider takes
}

// figure is a measured value with its bound.
type figure struct {
	what       string
	got, bound float64
	unit       string
}

func (f figure) ok() bool { return f.got <= f.bound }

func (f figure) String() string {
	verdict := "ok"
	if !f.ok() {
		verdict = "OVER"
	}
	return fmt.Sprintf("%-62s %8.2f%s (bound %g%s) %s", f.what, f.got, f.unit, f.bound, f.unit, verdict)
}

// world is a portal over Stripe's adapter, over stripetest.
type world struct {
	ledger   *sandbox.Ledger
	front    *front
	provider *stripe.Provider
	portal   *portalcore.Portal
	closers  []func()
}

func (w *world) close() {
	for _, f := range slices.Backward(w.closers) {
		f()
	}
}

// front stands before stripetest: it delays, counts, and refuses what is over
// the rate, as Stripe does.
type front struct {
	next http.Handler

	mu      sync.Mutex
	latency time.Duration
	rate    int // 0: any
	begun   []time.Time
	refused int
	calls   []call
}

type call struct {
	path string
	took time.Duration
}

// over reports whether a request is over the rate.
func (f *front) over(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun = slices.DeleteFunc(f.begun, func(t time.Time) bool { return now.Sub(t) >= time.Second })
	if f.rate > 0 && len(f.begun) >= f.rate {
		f.refused++
		return true
	}
	f.begun = append(f.begun, now)
	return false
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	if f.over(begin) {
		w.Header().Set("Stripe-Should-Retry", "true")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = w.Write([]byte(`{"error":{"type":"invalid_request_error","code":"rate_limit","message":"Request rate limit exceeded."}}`))
		return
	}
	f.mu.Lock()
	latency := f.latency
	f.mu.Unlock()
	time.Sleep(latency)
	f.next.ServeHTTP(w, r)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call{r.URL.Path, time.Since(begin)})
}

// set changes what the front does and forgets what it saw.
func (f *front) set(latency time.Duration, rate int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.latency, f.rate, f.refused, f.calls = latency, rate, 0, nil
}

func openStore(w *world) (store.Store, error) {
	dir, err := os.MkdirTemp("", "portal-scale-")
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, func() { _ = os.RemoveAll(dir) })
	sealer, err := store.NewSealer(make([]byte, 32))
	if err != nil {
		return nil, err
	}
	s, err := badger.Open(dir, badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, func() { _ = s.Close() })
	return s, nil
}

func newWorld(ctx context.Context, z sizes) (_ *world, err error) {
	w := &world{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	book, err := openStore(w)
	if err != nil {
		return nil, err
	}
	if w.ledger, err = sandbox.Open(ctx, book, sandbox.Options{}); err != nil {
		return nil, err
	}
	if err := w.seed(ctx, z); err != nil {
		return nil, fmt.Errorf("seeding: %w", err)
	}
	w.front = &front{next: stripetest.New(w.ledger, nil, stripetest.Options{Key: stripeKey})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: w.front, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	w.closers = append(w.closers, func() { _ = srv.Close() })
	w.provider, err = stripe.New(stripe.Options{Key: stripeKey, BaseURL: "http://" + l.Addr().String(), RequestsPerSecond: z.rate})
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, func() { _ = w.provider.Close() })
	own, err := openStore(w)
	if err != nil {
		return nil, err
	}
	w.portal, err = portalcore.New(portalcore.Options{
		Tenant: portalcore.Tenant{
			Origin: origin, APIKeys: []string{portalKey}, ReturnTo: []string{"https://app.example.com/settings"},
			Policies: map[string][]policy.Rule{"": {{Verdict: policy.Allow, Actions: []string{policy.ChangePlan, policy.Cancel}}}},
			Brand:    portalcore.Brand{Name: "Acme"},
		},
		Store: own, Provider: w.provider, Logger: zap.NewNop(), Process: "scale", ExclusiveStore: true,
	})
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, w.portal.Close)
	return w, w.portal.Start(ctx)
}

func crowdID(i int) string { return fmt.Sprintf("cus_crowd%03d", i) }

// seed makes the big account, a small one and the crowd.
func (w *world) seed(ctx context.Context, z sizes) error {
	if _, err := sandbox.Seed(ctx, w.ledger); err != nil {
		return err
	}
	prices := []string{"price_basic_monthly", "price_team_monthly", "price_business_monthly", "price_basic_yearly", "price_team_yearly"}
	customer := func(id string, cards, subs int) ([]string, error) {
		name := "Company " + id
		if _, err := w.ledger.CreateCustomer(ctx, sandbox.Call{}, sandbox.CustomerParams{ID: id, Name: &name}); err != nil {
			return nil, err
		}
		var last string
		for range cards {
			pm, err := w.ledger.AddCard(ctx, sandbox.Call{}, id, sandbox.CardParams{Number: "4242424242424242"})
			if err != nil {
				return nil, err
			}
			last = pm.ID
		}
		if _, err := w.ledger.UpdateCustomer(ctx, sandbox.Call{}, id, sandbox.CustomerParams{DefaultPaymentMethod: &last}); err != nil {
			return nil, err
		}
		var ids []string
		for i := range subs {
			n := int64(1 + i%9)
			s, err := w.ledger.CreateSubscription(ctx, sandbox.Call{}, sandbox.SubscriptionCreate{
				Customer: id, Items: []sandbox.ItemParams{{Price: prices[i%len(prices)], Quantity: &n}},
			})
			if err != nil {
				return nil, err
			}
			ids = append(ids, s.ID)
		}
		return ids, nil
	}
	subs, err := customer(bigOne, z.methods, z.subscriptions)
	if err != nil {
		return err
	}
	now, err := w.ledger.Now(ctx)
	if err != nil {
		return err
	}
	var past []sandbox.PastInvoice
	for i := range z.invoices - z.subscriptions {
		past = append(past, sandbox.PastInvoice{Subscription: subs[i%len(subs)], Created: now.Add(-time.Duration(i+1) * 12 * time.Hour)})
	}
	if _, err := w.ledger.ImportInvoices(ctx, bigOne, past); err != nil {
		return err
	}
	for _, id := range append([]string{smallOne}, crowd(z.crowd)...) {
		if _, err := customer(id, 1, 1); err != nil {
			return err
		}
	}
	return nil
}

func crowd(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = crowdID(i)
	}
	return ids
}

// visitor is a browser that is signed in.
type visitor struct {
	portal http.Handler
	cookie string
}

// signIn mints a link and opens it: a new session reads the account anew.
func (w *world) signIn(customer string) (*visitor, error) {
	r := httptest.NewRequest(http.MethodPost, origin+"/v1/billing_portal/sessions", strings.NewReader(url.Values{"customer": {customer}}.Encode()))
	r.Header.Set("Authorization", "Bearer "+portalKey)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	rec := httptest.NewRecorder()
	w.portal.ServeHTTP(rec, r)
	var link struct{ URL string }
	if err := json.Unmarshal(rec.Body.Bytes(), &link); err != nil || link.URL == "" {
		return nil, fmt.Errorf("minting a link: %d %s", rec.Code, rec.Body)
	}
	r = httptest.NewRequest(http.MethodGet, link.URL, nil)
	for k, v := range map[string]string{"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "same-site"} {
		r.Header.Set(k, v)
	}
	rec = httptest.NewRecorder()
	w.portal.ServeHTTP(rec, r)
	for _, c := range rec.Result().Cookies() {
		if c.Value != "" {
			return &visitor{w.portal, c.Name + "=" + c.Value}, nil
		}
	}
	return nil, fmt.Errorf("opening the link: %d without a cookie", rec.Code)
}

// overview reads the overview and fails where it is not whole and current.
func (v *visitor) overview() (string, time.Duration, error) {
	r := httptest.NewRequest(http.MethodGet, origin+"/", nil)
	r.Header.Set("Cookie", v.cookie)
	rec := httptest.NewRecorder()
	begin := time.Now()
	v.portal.ServeHTTP(rec, r)
	took := time.Since(begin)
	body := rec.Body.String()
	switch {
	case rec.Code != http.StatusOK:
		return "", took, fmt.Errorf("the overview answers %d", rec.Code)
	case strings.Contains(body, "couldn’t load"), strings.Contains(body, "It may have changed since"):
		return "", took, errors.New("a section of the overview is missing or old")
	}
	return body, took, nil
}

// chain is how long the calls took that had to wait for each other: the pages
// of subscriptions, and then the slowest of what depends on them.
func chain(calls []call) time.Duration {
	var pages, behind time.Duration
	for _, c := range calls {
		switch c.path {
		case "/v1/subscriptions":
			pages += c.took
		case "/v1/products", "/v1/invoices/create_preview":
			behind = max(behind, c.took)
		}
	}
	return pages + behind
}

// big measures the account with many objects.
func (w *world) big(ctx context.Context, z sizes) ([]figure, error) {
	ratio, cold, longest := 0.0, time.Duration(0), time.Duration(0)
	for range z.rounds {
		// What earlier rounds sent does not count against this one's rate.
		time.Sleep(1200 * time.Millisecond)
		v, err := w.signIn(bigOne)
		if err != nil {
			return nil, err
		}
		w.front.set(z.latency, 0)
		body, took, err := v.overview()
		if err != nil {
			return nil, err
		}
		if want := fmt.Sprintf("All %d plans", z.subscriptions); !strings.Contains(body, want) {
			return nil, fmt.Errorf("the overview does not say %q", want)
		}
		w.front.mu.Lock()
		c := chain(w.front.calls)
		w.front.mu.Unlock()
		if r := took.Seconds() / c.Seconds(); ratio == 0 || r < ratio {
			ratio, cold, longest = r, took, c // the machine may be busy with something else
		}
	}
	fmt.Printf("cold overview %s, its longest chain of provider calls %s\n", cold.Round(time.Millisecond), longest.Round(time.Millisecond))

	w.front.set(0, 0)
	warm := 0.0
	for range z.rounds {
		p99 := map[string]time.Duration{}
		visitors := map[string]*visitor{}
		times := map[string][]time.Duration{}
		for _, id := range []string{bigOne, smallOne} {
			v, err := w.signIn(id)
			if err != nil {
				return nil, err
			}
			if _, _, err := v.overview(); err != nil {
				return nil, err
			}
			visitors[id] = v
		}
		for range z.warm {
			for id, v := range visitors {
				_, took, err := v.overview()
				if err != nil {
					return nil, err
				}
				times[id] = append(times[id], took)
			}
		}
		for id, list := range times {
			slices.Sort(list)
			p99[id] = list[len(list)*99/100]
		}
		if r := float64(p99[bigOne]) / float64(p99[smallOne]); warm == 0 || r < warm {
			warm = r
			fmt.Printf("warm p99 %s, of a small account %s\n", p99[bigOne], p99[smallOne])
		}
	}

	const copies = 8
	held := make([]billing.Account, copies)
	before := heap()
	for i := range held {
		var err error
		if held[i], err = w.provider.Account(ctx, bigOne); err != nil {
			return nil, err
		}
	}
	memory := float64(heap()-before) / copies / (1 << 20)
	if n := len(held[0].Subscriptions); n != z.subscriptions {
		return nil, fmt.Errorf("the account has %d subscriptions", n)
	}
	runtime.KeepAlive(held)
	return []figure{
		{"cold overview / longest chain of provider calls", ratio, 1.2, ""},
		{"warm p99 / warm p99 of a small account", warm, 3, ""},
		{"memory that the account holds", memory, 20, " MB"},
	}, nil
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// rush measures many customers at once before a provider that is limited.
func (w *world) rush(z sizes) ([]figure, error) {
	visitors := make([]*visitor, z.crowd)
	for i := range visitors {
		var err error
		if visitors[i], err = w.signIn(crowdID(i)); err != nil {
			return nil, err
		}
	}
	time.Sleep(1200 * time.Millisecond)
	w.front.set(20*time.Millisecond, z.rate)
	waits := make([]time.Duration, z.crowd)
	errs := make([]error, z.crowd)
	var wg sync.WaitGroup
	for i, v := range visitors {
		wg.Go(func() { _, waits[i], errs[i] = v.overview() })
	}
	wg.Wait()
	reached := 0
	for _, err := range errs {
		if err != nil {
			reached++
		}
	}
	slices.Sort(waits)
	median, slowest := waits[len(waits)/2], waits[len(waits)-1]
	w.front.mu.Lock()
	refused, answered := w.front.refused, len(w.front.calls)
	w.front.mu.Unlock()
	fmt.Printf("%d customers at once: %d calls answered, %d refused with 429; waits: fastest %s, median %s, slowest %s\n",
		z.crowd, answered, refused, waits[0].Round(time.Millisecond), median.Round(time.Millisecond), slowest.Round(time.Millisecond))
	return []figure{
		{"overviews that a 429 reached, or that are not whole", float64(reached), 0, ""},
		{"slowest wait / median wait", slowest.Seconds() / median.Seconds(), 2, ""},
	}, errors.Join(errs...)
}
