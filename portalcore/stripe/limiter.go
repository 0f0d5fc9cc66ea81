package stripe

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// How many requests a second a Provider makes by default. Stripe allows an
// account 25 in a sandbox and 100 in live mode; the rest of the 100 is for the
// vendor's own backend.
// Source: https://docs.stripe.com/rate-limits.
const (
	defaultTestRate = 25
	defaultLiveRate = 80
	maxRate         = 10_000
)

const (
	// window is what the rate is counted over: a second, and a margin for
	// requests that were on their way for unequal times.
	window = 1100 * time.Millisecond
	// inFlight is how many reads of one customer are on their way at once. An
	// account's widest stage fits.
	inFlight = 8
	// maxWaiting is how many requests of one customer may wait in each lane.
	maxWaiting = 64
	// maxAttempts bounds how often a read is sent that Stripe has no time for.
	maxAttempts = 8
	// minPause and maxPause bound how long all wait after such an answer; it
	// doubles while they go on.
	minPause, maxPause = 250 * time.Millisecond, 4 * time.Second
	// lockPause is how long a read waits whose object was locked.
	lockPause = 200 * time.Millisecond
)

// turn is whose turn a request takes.
type turn struct {
	customer string // "": nobody's in particular
	urgent   bool   // before all that is not
	// within bounds one attempt, from when it is sent; zero: Options.Timeout.
	within time.Duration
}

type turnKey struct{}

// forCustomer lets the requests under ctx queue as a customer's.
func forCustomer(ctx context.Context, customer string) context.Context {
	t := turnOf(ctx)
	t.customer = customer
	return context.WithValue(ctx, turnKey{}, t)
}

// forChange is forCustomer for changes and for what they wait for.
func forChange(ctx context.Context, customer string) context.Context {
	t := turnOf(ctx)
	t.customer, t.urgent = customer, true
	return context.WithValue(ctx, turnKey{}, t)
}

// within bounds each request under ctx, from when it is sent.
func within(ctx context.Context, d time.Duration) context.Context {
	t := turnOf(ctx)
	t.within = d
	return context.WithValue(ctx, turnKey{}, t)
}

func turnOf(ctx context.Context) turn {
	t, _ := ctx.Value(turnKey{}).(turn)
	return t
}

// limiter keeps all requests under one key within the rate that Stripe allows
// it: at most so many begin in any window. Where more want to, customers take
// turns, each with its oldest request, so that one with a thousand objects
// holds up nobody; changes go before reads. It runs nothing of its own but a
// timer while somebody waits.
type limiter struct {
	mu       sync.Mutex
	rates    map[*Provider]int // what each open Provider allows
	rate     int               // the lowest of them
	allowed  int               // up to rate; less for a while after Stripe had no time
	answers  int               // since allowed changed
	begun    []time.Time       // the requests of the last window, oldest first
	pausedAt time.Time
	paused   time.Time // until when
	pause    time.Duration
	queues   map[string]*queue
	lanes    [2][]*queue // urgent and other: who waits, whose turn is next first
	timer    *time.Timer
}

const (
	urgentLane = iota
	otherLane
)

// queue is one customer's.
type queue struct {
	customer string
	inFlight int // reads
	waiting  [2][]*waiter
}

type waiter struct{ ready chan struct{} }

var errQueue = errors.New("too many requests for this customer wait already")

// limiters are those in use in this process: tenants that share a key share its
// rate, and so do the configs before and after a reload.
var limiters = struct {
	sync.Mutex
	by map[[32]byte]*limiter
}{by: map[[32]byte]*limiter{}}

func (p *Provider) limiterKey() [32]byte { return sha256.Sum256([]byte(p.key + "\x00" + p.base)) }

// limiter joins p's limiter with the first request.
func (p *Provider) limiter() *limiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit != nil {
		return p.limit
	}
	limiters.Lock()
	defer limiters.Unlock()
	key := p.limiterKey()
	l := limiters.by[key]
	if l == nil {
		l = &limiter{rates: map[*Provider]int{}, queues: map[string]*queue{}}
		limiters.by[key] = l
	}
	l.setRate(p, p.rate)
	p.limit = l
	return l
}

// leave gives p's part of its limiter back.
func (p *Provider) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit == nil {
		return
	}
	limiters.Lock()
	defer limiters.Unlock()
	if key := p.limiterKey(); p.limit.setRate(p, 0) == 0 && limiters.by[key] == p.limit {
		delete(limiters.by, key)
	}
}

// setRate notes what p allows, 0 for no more at all, and returns how many
// Providers are left.
func (l *limiter) setRate(p *Provider, rate int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rate == 0 {
		delete(l.rates, p)
	} else {
		l.rates[p] = rate
	}
	if len(l.rates) == 0 {
		return 0 // what is on its way ends at the old rate
	}
	before := l.rate
	l.rate = 0
	for _, r := range l.rates {
		if l.rate == 0 || r < l.rate {
			l.rate = r
		}
	}
	if l.allowed == before || l.allowed > l.rate {
		l.allowed = l.rate
	}
	l.dispatch()
	return len(l.rates)
}

// acquire waits for a request's turn. The caller calls done when it is
// answered. The error says that nothing may be sent.
func (l *limiter) acquire(ctx context.Context, t turn) (done func(), err error) {
	lane := otherLane
	if t.urgent {
		lane = urgentLane
	}
	l.mu.Lock()
	q := l.queues[t.customer]
	if q == nil {
		q = &queue{customer: t.customer}
		l.queues[t.customer] = q
	}
	if len(q.waiting[lane]) >= maxWaiting {
		l.mu.Unlock()
		return nil, errQueue
	}
	w := &waiter{ready: make(chan struct{})}
	if q.waiting[lane] = append(q.waiting[lane], w); len(q.waiting[lane]) == 1 {
		l.lanes[lane] = append(l.lanes[lane], q)
	}
	l.dispatch()
	l.mu.Unlock()
	done = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if lane == otherLane {
			q.inFlight--
		}
		l.forget(q)
		l.dispatch()
	}
	select {
	case <-w.ready:
		return done, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	i := slices.Index(q.waiting[lane], w)
	if i >= 0 {
		q.waiting[lane] = slices.Delete(q.waiting[lane], i, i+1)
		if len(q.waiting[lane]) == 0 {
			l.lanes[lane] = slices.DeleteFunc(l.lanes[lane], func(x *queue) bool { return x == q })
		}
		l.forget(q)
		l.dispatch()
	}
	l.mu.Unlock()
	if i < 0 {
		done() // its turn came too late
	}
	return nil, context.Cause(ctx)
}

// forget drops the queue of a customer who asks for nothing.
func (l *limiter) forget(q *queue) {
	if q.inFlight == 0 && len(q.waiting[urgentLane]) == 0 && len(q.waiting[otherLane]) == 0 && l.queues[q.customer] == q {
		delete(l.queues, q.customer)
	}
}

// dispatch gives turns while there are any. The caller holds mu.
func (l *limiter) dispatch() {
	for {
		lane, i := l.next()
		if lane < 0 {
			if l.timer != nil {
				l.timer.Stop()
			}
			return
		}
		if d := l.wait(time.Now()); d > 0 {
			l.wake(d)
			return
		}
		q := l.lanes[lane][i]
		l.lanes[lane] = slices.Delete(l.lanes[lane], i, i+1)
		w := q.waiting[lane][0]
		if q.waiting[lane] = slices.Delete(q.waiting[lane], 0, 1); len(q.waiting[lane]) > 0 {
			l.lanes[lane] = append(l.lanes[lane], q) // behind all others
		}
		if lane == otherLane {
			q.inFlight++
		}
		l.begun = append(l.begun, time.Now())
		close(w.ready)
	}
}

// next is the place of the customer whose turn it is, or -1.
func (l *limiter) next() (lane, i int) {
	if len(l.lanes[urgentLane]) > 0 {
		return urgentLane, 0
	}
	if i = slices.IndexFunc(l.lanes[otherLane], func(q *queue) bool { return q.inFlight < inFlight }); i >= 0 {
		return otherLane, i
	}
	return -1, -1
}

// wait is how long no request may begin.
func (l *limiter) wait(now time.Time) time.Duration {
	old := 0
	for old < len(l.begun) && now.Sub(l.begun[old]) >= window {
		old++
	}
	l.begun = slices.Delete(l.begun, 0, old)
	d := l.paused.Sub(now)
	if n := len(l.begun); n >= l.allowed {
		d = max(d, l.begun[n-l.allowed].Add(window).Sub(now))
	}
	return max(d, 0)
}

func (l *limiter) wake(d time.Duration) {
	if l.timer != nil {
		l.timer.Reset(d)
		return
	}
	l.timer = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.dispatch()
	})
}

// refused notes that Stripe had no time for a request that began then: for a
// while nobody sends anything, and then half as much as before. Answers to
// requests that were on their way together count once.
func (l *limiter) refused(begun time.Time, a *answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !begun.Before(l.pausedAt) {
		l.pause = min(max(2*l.pause, minPause), maxPause)
		l.allowed, l.answers = max(l.allowed/2, 1), 0
		l.pausedAt = now
	}
	d := l.pause
	if s, err := strconv.Atoi(a.header.Get("Retry-After")); err == nil && s > 0 {
		d = max(d, min(time.Duration(s)*time.Second, 4*maxPause))
	}
	if until := now.Add(d); until.After(l.paused) {
		l.paused = until
	}
	l.dispatch()
}

// answered notes that Stripe had time for a request that began then.
func (l *limiter) answered(begun time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if begun.Before(l.pausedAt) {
		return
	}
	l.pause = 0
	if l.answers++; l.answers >= l.allowed && l.allowed < l.rate {
		l.allowed, l.answers = l.allowed+1, 0
		l.dispatch()
	}
}

// customerIn is whose turn a request takes where its caller does not say: the
// customer that it names.
func customerIn(path, body string) string {
	if rest, ok := strings.CutPrefix(path, "/v1/customers/"); ok {
		id, _, _ := strings.Cut(rest, "/")
		return id
	}
	for pair := range strings.SplitSeq(body, "&") {
		if id, ok := strings.CutPrefix(pair, "customer="); ok {
			return id
		}
	}
	return ""
}

// isRead reports whether a request changes nothing, however often it is sent.
func isRead(method, path string) bool {
	return method == http.MethodGet || method == http.MethodPost && path == "/v1/invoices/create_preview"
}

// again reports whether a read with that answer is worth sending again, and
// whether only its object was busy.
func (a *answer) again() (again, locked bool) {
	if a.status != http.StatusTooManyRequests || a.header.Get("Stripe-Should-Retry") == "false" {
		return false, false
	}
	o, _ := a.errorObject()
	return true, o.Code == "lock_timeout"
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
