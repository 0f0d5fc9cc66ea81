package stripe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newLimiter(rate int) *limiter {
	return &limiter{rates: map[*Provider]int{}, queues: map[string]*queue{}, rate: rate, allowed: rate}
}

// take acquires a turn, works for a while and is done. It returns when the
// turn came.
func take(t *testing.T, l *limiter, of turn, work time.Duration) time.Time {
	done, err := l.acquire(t.Context(), of)
	if err != nil {
		t.Error(err)
		return time.Time{}
	}
	at := time.Now()
	time.Sleep(work)
	done()
	return at
}

// TestLimiterRate holds that no window sees more than the rate, and that the
// rate is used.
func TestLimiterRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, n = 5, 100
		l := newLimiter(rate)
		begin := time.Now()
		var mu sync.Mutex
		var at []time.Time
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				x := take(t, l, turn{customer: fmt.Sprint(i % 10)}, 100*time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				at = append(at, x)
			})
		}
		wg.Wait()
		slices.SortFunc(at, time.Time.Compare)
		for i := rate; i < n; i++ {
			if d := at[i].Sub(at[i-rate]); d < window {
				t.Fatalf("%d requests began within %s", rate+1, d)
			}
		}
		if last := at[n-1].Sub(begin); last != (n/rate-1)*window {
			t.Errorf("the last began after %s", last)
		}
		if len(l.queues) != 0 || len(l.lanes[urgentLane])+len(l.lanes[otherLane]) != 0 {
			t.Errorf("left behind: %v", l.queues)
		}
	})
}

// TestLimiterFair holds that a customer with many requests holds up nobody
// else, that one customer's come in order, and that changes go first.
func TestLimiterFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 2
		l := newLimiter(rate)
		begin := time.Now()
		var wg sync.WaitGroup
		waits := map[string]time.Duration{}
		var mu sync.Mutex
		ask := func(name string, of turn) {
			wg.Go(func() {
				d := take(t, l, of, time.Millisecond).Sub(begin)
				mu.Lock()
				defer mu.Unlock()
				waits[name] = d
			})
			synctest.Wait()
		}
		for i := range 40 {
			ask(fmt.Sprintf("big %d", i), turn{customer: "big"})
		}
		for i := range 5 {
			ask(fmt.Sprintf("small %d", i), turn{customer: fmt.Sprintf("small %d", i)})
		}
		ask("change", turn{customer: "payer", urgent: true})
		wg.Wait()
		for i := range 5 {
			// 2 in the first window, then the change, one of big's and the five.
			if d := waits[fmt.Sprintf("small %d", i)]; d > 4*window {
				t.Errorf("small %d waited %s behind one that asks for much", i, d)
			}
		}
		if waits["change"] != window {
			t.Errorf("a change waited %s, want the next turn after %s", waits["change"], window)
		}
		for i := range 39 {
			if waits[fmt.Sprintf("big %d", i)] > waits[fmt.Sprintf("big %d", i+1)] {
				t.Errorf("one customer's request %d came after the next", i)
			}
		}
	})
}

// TestLimiterInFlight holds that a customer has few reads on their way at once,
// that others pass by meanwhile, and that changes are not held up by reads.
func TestLimiterInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1000)
		var mu sync.Mutex
		now, most := 0, 0
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				done, err := l.acquire(t.Context(), turn{customer: "a"})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				now--
				mu.Unlock()
				done()
			})
		}
		synctest.Wait()
		begin := time.Now()
		for _, of := range []turn{{customer: "b"}, {customer: "a", urgent: true}} {
			if at := take(t, l, of, 0); at.Sub(begin) != 0 {
				t.Errorf("%+v waited %s", of, at.Sub(begin))
			}
		}
		wg.Wait()
		if most != inFlight {
			t.Errorf("%d at once, want %d", most, inFlight)
		}
	})
}

// TestLimiterGivesUp holds that a wait ends with its context and leaves
// nothing behind, and that a customer's queue is bounded.
func TestLimiterGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1)
		take(t, l, turn{customer: "first"}, 0)
		ctx, cancel := context.WithTimeout(t.Context(), window/2)
		defer cancel()
		var wg sync.WaitGroup
		full := 0
		var mu sync.Mutex
		for range maxWaiting + 3 {
			wg.Go(func() {
				_, err := l.acquire(ctx, turn{customer: "a"})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, errQueue):
					full++
				case !errors.Is(err, context.DeadlineExceeded):
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		if full != 3 {
			t.Errorf("%d were turned away, want 3", full)
		}
		begin := time.Now()
		if at := take(t, l, turn{customer: "b"}, 0); at.Sub(begin) != window/2 {
			t.Errorf("who came after those that gave up waited %s", at.Sub(begin))
		}
		if len(l.queues) != 0 {
			t.Errorf("left behind: %v", l.queues)
		}
	})
}

// TestLimiterBacksOff holds that after a 429 nobody sends anything for a while,
// that the rate is halved and comes back, and that answers to requests that
// were on their way together count once.
func TestLimiterBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(8)
		begun := time.Now()
		time.Sleep(time.Millisecond)
		none := &answer{status: http.StatusTooManyRequests, header: http.Header{}}
		for range 5 {
			l.refused(begun, none)
		}
		if l.allowed != 4 || l.pause != minPause {
			t.Errorf("after one burst: %d allowed, %s", l.allowed, l.pause)
		}
		at := time.Now()
		if got := take(t, l, turn{customer: "a"}, 0).Sub(at); got != minPause {
			t.Errorf("waited %s, want %s", got, minPause)
		}
		l.refused(time.Now(), none)
		if l.allowed != 2 || l.pause != 2*minPause {
			t.Errorf("after another: %d allowed, %s", l.allowed, l.pause)
		}
		at = time.Now()
		l.refused(time.Now(), &answer{status: 429, header: http.Header{"Retry-After": {"3"}}})
		if got := take(t, l, turn{customer: "a"}, 0).Sub(at); got != 3*time.Second {
			t.Errorf("waited %s, Retry-After says 3 s", got)
		}
		for range 100 {
			l.answered(time.Now())
		}
		if l.allowed != l.rate || l.pause != 0 {
			t.Errorf("after a hundred answers %d of %d are allowed", l.allowed, l.rate)
		}
	})
}

func TestLimiterIsShared(t *testing.T) {
	open := func(key, base string, rate int) *Provider {
		p, err := New(Options{Key: key, BaseURL: base, RequestsPerSecond: rate})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	const one, two = "rk_test_oneoneone", "rk_test_twotwotwo"
	a, b := open(one, "", 20), open(one, "", 10)
	other, elsewhere, live := open(two, "", 0), open(one, "http://127.0.0.1:1", 0), open("rk_live_oneoneone", "", 0)
	l := a.limiter()
	if b.limiter() != l || other.limiter() == l || elsewhere.limiter() == l {
		t.Error("providers with one key and address share a limiter, others do not")
	}
	if l.rate != 10 || l.allowed != 10 || other.limiter().rate != 25 || live.limiter().rate != 80 || elsewhere.limiter().rate != maxRate {
		t.Errorf("rates %d, %d, %d, %d", l.rate, other.limiter().rate, live.limiter().rate, elsewhere.limiter().rate)
	}
	if err := b.Close(); err != nil || l.rate != 20 || l.allowed != 20 {
		t.Errorf("after the lower one closed: %d, %v", l.rate, err)
	}
	if first, again := a.Close(), a.Close(); first != nil || again != nil {
		t.Error("close")
	}
	c := open(one, "", 5)
	if c.limiter() == l {
		t.Error("a limiter that nobody uses was kept")
	}
	if a.Close() != nil || limiters.by[c.limiterKey()] != c.limiter() {
		t.Error("a closed provider took away another's limiter")
	}
	for _, p := range []*Provider{c, other, elsewhere, live} {
		_ = p.Close()
	}
	if len(limiters.by) != 0 {
		t.Errorf("%d limiters are left", len(limiters.by))
	}
	if _, err := New(Options{Key: one, RequestsPerSecond: -1}); err == nil {
		t.Error("a negative rate is taken")
	}
}

func TestCustomerIn(t *testing.T) {
	for _, tt := range [][3]string{
		{"/v1/customers/cus_1", "", "cus_1"},
		{"/v1/customers/cus_1/payment_methods", "limit=100", "cus_1"},
		{"/v1/invoices", "limit=1&customer=cus_2&status=open", "cus_2"},
		{"/v1/invoices", "other_customer=cus_2", ""},
		{"/v1/prices", "", ""},
	} {
		if got := customerIn(tt[0], tt[1]); got != tt[2] {
			t.Errorf("%s?%s is %q's, want %q", tt[0], tt[1], got, tt[2])
		}
	}
}
