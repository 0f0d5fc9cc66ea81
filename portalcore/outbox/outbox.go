// Package outbox tells the vendor's backend what became of its customers'
// changes. An event is written in the transaction of what it tells of, so that
// neither is there without the other, and is posted afterwards as a Standard
// Webhook (https://www.standardwebhooks.com, specification 1.0.0) until the
// receiver takes it.
//
// What is promised: every event is sent at least once, and again with the same
// webhook-id where it is not known whether it arrived; one customer's events
// are sent in the order in which they were put, each only when the one before
// it was taken or given up; customers do not wait for one another. An event
// that was given up is dead: it is kept for DeadLife, the ones behind it go on,
// and it goes to the end of its customer's queue when it is sent again by hand.
package outbox

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// schedule is how long after a failed attempt the next one follows, before
// jitter: the example schedule of the specification, 75 h 35 min 5 s in all.
// After the last attempt the event is dead.
var schedule = [...]time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

const (
	// Life is how long after it was put an event that fails is still tried
	// again. It is the schedule's length; an event that waited behind a failing
	// one has less of the schedule left.
	Life = 75*time.Hour + 35*time.Minute + 5*time.Second
	// DeadLife is how long a dead event is kept.
	DeadLife = 90 * 24 * time.Hour
	// MaxData is the largest Data, in bytes. The specification recommends less
	// than 20 KiB.
	MaxData = 32 << 10

	// timeout bounds one attempt, from dialling to the end of the answer.
	timeout = 15 * time.Second
	// leaseTime is how long a sender may go without writing before another one
	// takes the queue over.
	leaseTime = time.Minute
	// maxWait is longer than an attempt is ever put off. What is due later than
	// that was put off by a clock that went backwards since.
	maxWait = 30 * time.Hour
	// jitter is the largest part of a wait that is added to it.
	jitter = 0.2
	// maxRetryAfter bounds how far a receiver can put an attempt off.
	maxRetryAfter = time.Hour

	// Bounds of one Deliver.
	maxQueues = 64 // customers
	maxEvents = 32 // of one customer
	atOnce    = 8  // customers side by side
	page      = 256

	maxReason = 1 << 10
	maxAnswer = 4 << 10 // of an answer's body, which is thrown away
)

// ErrNoEvent says that there is no dead event with that id.
var ErrNoEvent = errors.New("outbox: there is no dead event with this id")

// Event is something to tell.
type Event struct {
	// ID is the webhook-id: unique, 1 to 128 letters, digits, "-" and "_".
	ID string `json:"id"`
	// Type is letters, digits and "_" in parts joined by ".": "action.succeeded".
	Type string `json:"type"`
	// Time is when it happened.
	Time time.Time `json:"time"`
	// Customer is whose queue it is sent in. It is not sent itself: what the
	// receiver must know is in Data.
	Customer string `json:"customer"`
	// Data is a JSON value of at most MaxData bytes.
	Data json.RawMessage `json:"data"`
}

// DeadEvent is an event that was given up.
type DeadEvent struct {
	Event
	// Put is when it was put or last sent again by hand, Died when it was given
	// up.
	Put  time.Time `json:"put"`
	Died time.Time `json:"died"`
	// Reason is why the last attempt failed.
	Reason string `json:"reason"`
}

// Options configure an Outbox.
type Options struct {
	Store  store.Store
	Tenant string
	Now    func() time.Time
	// Rand is the source of jitter.
	Rand io.Reader
	// Process names this operating-system process.
	Process string
	// URL is where events are posted: https, or http to a loopback host, without
	// user, password or fragment. It is the operator's word: no more than the
	// scheme is checked.
	URL string
	// Secrets sign: whsec_ and 24 to 64 bytes in base64. Every attempt carries a
	// signature of each; two while one is replaced. They are never logged.
	Secrets []string
	// Transport carries the requests. Default: a clone of
	// http.DefaultTransport.
	Transport http.RoundTripper
	// Log gets attempts that fail, and dead events. Default: nothing.
	Log *zap.Logger
}

// Outbox keeps a tenant's events and sends them. It starts nothing by itself:
// the portal calls Deliver.
type Outbox struct {
	o       Options
	signers []*standardwebhooks.Webhook
	client  *http.Client

	mu     sync.Mutex
	cursor []byte // where the next look for due queues begins, or nil
}

// New checks o and makes an Outbox. It sends nothing.
func New(o Options) (*Outbox, error) {
	if o.Store == nil || o.Tenant == "" || o.Now == nil || o.Rand == nil || o.Process == "" {
		return nil, errors.New("outbox: Store, Tenant, Now, Rand and Process are required")
	}
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return nil, errors.New("outbox: the URL must be one like https://app.example.com/hooks/billing, without user, password and fragment")
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		return nil, errors.New("outbox: the URL must be https (http is for loopback hosts only)")
	}
	b := &Outbox{o: o}
	if len(o.Secrets) < 1 || len(o.Secrets) > 2 {
		return nil, errors.New("outbox: one secret is needed, and two while it is replaced")
	}
	for _, s := range o.Secrets {
		raw, ok := strings.CutPrefix(s, "whsec_")
		key, err := base64.StdEncoding.DecodeString(raw)
		if !ok || err != nil || len(key) < 24 || len(key) > 64 {
			return nil, errors.New("outbox: a secret must be whsec_ and 24 to 64 random bytes in base64, such as what `echo whsec_$(openssl rand -base64 32)` prints")
		}
		w, err := standardwebhooks.NewWebhookRaw(key)
		if err != nil {
			return nil, fmt.Errorf("outbox: %w", err)
		}
		b.signers = append(b.signers, w)
	}
	if b.o.Log == nil {
		b.o.Log = zap.NewNop()
	}
	t := o.Transport
	if t == nil {
		d := http.DefaultTransport.(*http.Transport).Clone()
		d.MaxIdleConnsPerHost = atOnce
		t = d
	}
	b.client = &http.Client{Transport: t, Timeout: timeout, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a redirect is a failure, says the specification
	}}
	return b, nil
}

// Close drops idle connections.
func (b *Outbox) Close() { b.client.CloseIdleConnections() }

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// entry is an event that waits.
type entry struct {
	Event
	Put time.Time `json:"put"`
}

// queue is the record of a customer with events that wait. It is written with
// every event that is put, so that a sender who found the queue empty, and
// wants to delete it, conflicts with one that is put meanwhile.
type queue struct {
	// Last is the place of the last event, in Unix nanoseconds. Places go up
	// even where clocks go back.
	Last int64 `json:"last"`
	// Due is when it is looked at next: the time in its work key.
	Due time.Time `json:"due"`
	// Failures is how often the first event failed.
	Failures int `json:"failures"`
	// Stamp names the sender who has it until Due; "" where nobody has.
	Stamp string `json:"stamp,omitempty"`
}

func (b *Outbox) queueKey(customer string) []byte {
	return store.Key(b.o.Tenant, "event-queue", customer)
}

func (b *Outbox) workKey(due time.Time, customer string) []byte {
	return store.Key("outbox", store.TimePart(due.UnixNano()), b.o.Tenant, customer)
}

func (b *Outbox) eventKey(customer string, place int64, id string) []byte {
	return store.Key(b.o.Tenant, "event", customer, store.TimePart(place), id)
}

func (b *Outbox) deadKey(died time.Time, id string) []byte {
	return store.Key(b.o.Tenant, "dead-event", store.TimePart(died.UnixNano()), id)
}

// Put writes an event down in the caller's transaction, behind all of its
// customer's that wait. Whoever makes events makes each ID once.
func (b *Outbox) Put(tx store.Tx, e Event) error {
	switch {
	case e.ID == "" || len(e.ID) > 128 || strings.ContainsFunc(e.ID, func(r rune) bool { return !alphanumeric(r) && r != '-' && r != '_' }):
		return fmt.Errorf("outbox: %q cannot be the id of an event", e.ID)
	case e.Type == "" || strings.ContainsFunc(e.Type, func(r rune) bool { return !alphanumeric(r) && r != '.' && r != '_' }):
		return fmt.Errorf("outbox: %q cannot be the type of an event", e.Type)
	case e.Customer == "":
		return errors.New("outbox: an event needs a customer")
	case len(e.Data) > MaxData || !json.Valid(e.Data):
		return fmt.Errorf("outbox: the data of event %s is not JSON of at most %d bytes", e.ID, MaxData)
	}
	return b.put(tx, e, b.o.Now().UTC())
}

func alphanumeric(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

func (b *Outbox) put(tx store.Tx, e Event, now time.Time) error {
	q, err := b.readQueue(tx, e.Customer)
	switch {
	case errors.Is(err, store.ErrNotFound):
		q = queue{Due: now}
		if err := tx.Put(b.workKey(q.Due, e.Customer), []byte{}); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	q.Last = max(q.Last+1, now.UnixNano())
	value, err := json.Marshal(entry{Event: e, Put: now})
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	if len(value) > store.MaxValue-maxReason-1<<10 { // what stands around it when it is dead
		return fmt.Errorf("outbox: event %s is too large", e.ID)
	}
	if err := tx.Put(b.eventKey(e.Customer, q.Last, e.ID), value); err != nil {
		return err
	}
	return b.writeQueue(tx, e.Customer, q)
}

func (b *Outbox) readQueue(tx store.Tx, customer string) (queue, error) {
	var q queue
	value, err := tx.Get(b.queueKey(customer))
	if err != nil {
		return q, err
	}
	if err := json.Unmarshal(value, &q); err != nil {
		return q, fmt.Errorf("outbox: reading a queue: %w", err)
	}
	return q, nil
}

func (b *Outbox) writeQueue(tx store.Tx, customer string, q queue) error {
	value, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	return tx.Put(b.queueKey(customer), value)
}

// move writes the queue with another due time.
func (b *Outbox) move(tx store.Tx, customer string, q queue, due time.Time) error {
	if err := tx.Delete(b.workKey(q.Due, customer)); err != nil {
		return err
	}
	q.Due = due.UTC()
	if err := tx.Put(b.workKey(q.Due, customer), []byte{}); err != nil {
		return err
	}
	return b.writeQueue(tx, customer, q)
}

// Deliver sends what is due, once, and reports how many events were taken by
// the receiver. It does a bounded amount of work, so that one call leaves over
// what the next one does. An error is the store's: events that could not be
// sent are no error.
func (b *Outbox) Deliver(ctx context.Context) (int, error) {
	customers, err := b.due(ctx)
	if err != nil {
		return 0, fmt.Errorf("outbox: looking for what is due: %w", err)
	}
	var sent atomic.Int64
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	errs := make([]error, len(customers))
	for i, c := range customers {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = b.deliver(ctx, c, &sent)
		})
	}
	wg.Wait()
	return int(sent.Load()), errors.Join(errs...)
}

// due finds customers whose queue is due. The work entries of all tenants stand
// in one order; after a look that went through too many of others', the next
// one goes on where it ended.
func (b *Outbox) due(ctx context.Context) ([]string, error) {
	const maxPages = 40
	b.mu.Lock()
	from := b.cursor
	b.mu.Unlock()
	now := b.o.Now()
	var found []string
	var next []byte
	err := b.o.Store.View(ctx, func(tx store.Tx) error {
		found, next = nil, nil
		at := from
		last := store.TimePart(now.UnixNano())
		late := store.Key("outbox", store.TimePart(now.Add(maxWait+leaseTime).UnixNano()))
		for range maxPages {
			entries, err := tx.Scan(store.Key("outbox"), at, page, false)
			if err != nil {
				return err
			}
			more := len(entries) == page
			for _, e := range entries {
				parts, ok := store.Parts(e.Key)
				if !ok || len(parts) != 4 {
					return errors.New("malformed key under outbox")
				}
				if parts[1] > last && bytes.Compare(e.Key, late) < 0 {
					at, more = late, true // what lies between is not due yet
					break
				}
				at = append(e.Key, 0)
				if parts[2] != b.o.Tenant {
					continue
				}
				if found = append(found, parts[3]); len(found) == maxQueues {
					return nil
				}
			}
			if !more {
				return nil
			}
		}
		next = at
		return nil
	})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.cursor = next
	b.mu.Unlock()
	return found, nil
}

// stamps counts the leases of this process, over all outboxes in it.
var stamps atomic.Uint64

// job is one event that this sender has to send.
type job struct {
	key   []byte
	entry entry
	stamp string
	until time.Time // of the lease
}

// errLost says that somebody else has the queue, or had it meanwhile.
var errLost = errors.New("outbox: somebody else sends this customer's events")

// deliver sends a customer's events until none is left, one fails, or enough
// were sent for once.
func (b *Outbox) deliver(ctx context.Context, customer string, sent *atomic.Int64) error {
	stamp := b.o.Process + "." + strconv.FormatUint(stamps.Add(1), 10)
	begun := b.o.Now()
	j, err := b.take(ctx, customer, stamp)
	for n := 1; err == nil && j != nil; n++ {
		now := b.o.Now()
		if now.Add(timeout).After(j.until) {
			return nil // this process stood still, and another may have the queue by now
		}
		result := b.send(ctx, &j.entry.Event)
		if ctx.Err() != nil {
			return ctx.Err() // the lease runs out, and it is sent again
		}
		if result.err == nil {
			sent.Add(1)
		}
		j, err = b.settle(ctx, customer, j, result, n == maxEvents || now.Sub(begun) > timeout)
	}
	if errors.Is(err, errLost) {
		return nil
	}
	return err
}

// take leases a customer's queue. No job where nothing is to be done.
func (b *Outbox) take(ctx context.Context, customer, stamp string) (*job, error) {
	now := b.o.Now()
	var j *job
	err := b.o.Store.Update(ctx, func(tx store.Tx) error {
		j = nil
		q, err := b.readQueue(tx, customer)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if q.Due.After(now) && q.Due.Before(now.Add(maxWait+leaseTime)) {
			return errLost // taken since it was found
		}
		j, err = b.next(tx, customer, q, stamp, now)
		return err
	})
	// Where the reply was lost the lease may stand; it runs out by itself.
	return j, err
}

// next leases the queue for its first event, or deletes the queue where there
// is none.
func (b *Outbox) next(tx store.Tx, customer string, q queue, stamp string, now time.Time) (*job, error) {
	first, err := tx.Scan(store.Key(b.o.Tenant, "event", customer), nil, 1, false)
	if err != nil {
		return nil, err
	}
	if len(first) == 0 {
		if err := tx.Delete(b.workKey(q.Due, customer)); err != nil {
			return nil, err
		}
		return nil, tx.Delete(b.queueKey(customer))
	}
	j := &job{key: first[0].Key, stamp: stamp, until: now.Add(leaseTime)}
	if err := json.Unmarshal(first[0].Value, &j.entry); err != nil {
		return nil, fmt.Errorf("outbox: reading an event: %w", err)
	}
	q.Stamp = stamp
	return j, b.move(tx, customer, q, j.until)
}

// outcome is what came of an attempt.
type outcome struct {
	err error // nil: taken
	// gone is set where the receiver wants no more of it.
	gone bool
	// after is the least wait that the receiver asked for.
	after time.Duration
}

// settle writes down what came of an attempt, and takes the next event where
// this one was taken. enough gives the queue back instead; so does a death, as
// the next attempt is likely to take its time and fail, too.
func (b *Outbox) settle(ctx context.Context, customer string, j *job, result outcome, enough bool) (*job, error) {
	now := b.o.Now().UTC()
	spread, err := b.random()
	if err != nil {
		return nil, err
	}
	var next *job
	var died bool
	var wait time.Duration
	err = b.o.Store.Update(ctx, func(tx store.Tx) error {
		next, died, wait = nil, false, 0
		q, err := b.readQueue(tx, customer)
		if errors.Is(err, store.ErrNotFound) || err == nil && q.Stamp != j.stamp {
			return errLost
		}
		if err != nil {
			return err
		}
		q.Stamp = ""
		if result.err != nil {
			q.Failures++
			wait = pause(q.Failures, spread, result.after)
			died = result.gone || q.Failures > len(schedule) || !now.Before(j.entry.Put.Add(Life))
			if !died {
				return b.move(tx, customer, q, now.Add(wait))
			}
			if err := b.bury(tx, j, result.err, now); err != nil {
				return err
			}
		}
		q.Failures = 0
		if err := tx.Delete(j.key); err != nil {
			return err
		}
		if enough || died {
			return b.move(tx, customer, q, now)
		}
		next, err = b.next(tx, customer, q, j.stamp, now)
		return err
	})
	if err != nil {
		return nil, err
	}
	fields := []zap.Field{zap.String("event", j.entry.ID), zap.String("type", j.entry.Type), zap.NamedError("reason", result.err)}
	switch {
	case died:
		b.o.Log.Error("an event for the vendor is dead: it is kept, and sent again when it is told to", fields...)
	case result.err != nil:
		b.o.Log.Warn("an event for the vendor could not be sent; it is tried again", append(fields, zap.Duration("in", wait))...)
	}
	return next, nil
}

// pause is how long to wait after so many failures; spread is 0 to 1.
func pause(failures int, spread float64, atLeast time.Duration) time.Duration {
	d := schedule[min(failures, len(schedule))-1]
	d += time.Duration(float64(d) * jitter * spread)
	return max(d, min(atLeast, maxRetryAfter))
}

// random is a number from 0 to 1.
func (b *Outbox) random() (float64, error) {
	var raw [4]byte
	if _, err := io.ReadFull(b.o.Rand, raw[:]); err != nil {
		return 0, fmt.Errorf("outbox: reading randomness: %w", err)
	}
	return float64(binary.BigEndian.Uint32(raw[:])) / (1 << 32), nil
}

func (b *Outbox) bury(tx store.Tx, j *job, why error, now time.Time) error {
	reason := why.Error()
	value, err := json.Marshal(DeadEvent{Event: j.entry.Event, Put: j.entry.Put, Died: now, Reason: reason[:min(len(reason), maxReason/6)]}) // six bytes at most for one in JSON
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	return store.PutExpiring(tx, b.o.Tenant, b.deadKey(now, j.entry.ID), value, now.Add(DeadLife))
}

// send makes one attempt. The errors name no part of the answer's body and no
// secret.
func (b *Outbox) send(ctx context.Context, e *Event) outcome {
	body, err := json.Marshal(struct {
		Type      string          `json:"type"`
		Timestamp time.Time       `json:"timestamp"`
		Data      json.RawMessage `json:"data"`
	}{e.Type, e.Time.UTC(), e.Data})
	if err != nil {
		return outcome{err: err}
	}
	now := b.o.Now()
	var signatures []string
	for _, s := range b.signers {
		sig, err := s.Sign(e.ID, now, body)
		if err != nil {
			return outcome{err: err}
		}
		signatures = append(signatures, sig)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.o.URL, bytes.NewReader(body))
	if err != nil {
		return outcome{err: errors.New("the URL cannot be asked")}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "caddy-billing-portal")
	req.Header.Set(standardwebhooks.HeaderWebhookID, e.ID)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	res, err := b.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // the URL may hold a secret of the vendor's
		}
		return outcome{err: err}
	}
	defer func() { _ = res.Body.Close() }()
	// A short answer is read to its end so that the connection can be used again;
	// whether it ends is not part of the answer.
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer))
	if res.StatusCode/100 == 2 {
		return outcome{}
	}
	out := outcome{err: fmt.Errorf("the receiver answered %d", res.StatusCode), gone: res.StatusCode == http.StatusGone}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		out.after = time.Duration(min(s, int(maxRetryAfter/time.Second))) * time.Second
	}
	return out
}

// Dead lists at most limit dead events, the one that died last first.
func (b *Outbox) Dead(ctx context.Context, limit int) ([]DeadEvent, error) {
	var list []DeadEvent
	err := b.o.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		entries, err := tx.Scan(store.Key(b.o.Tenant, "dead-event"), nil, limit, true)
		if err != nil {
			return err
		}
		for _, e := range entries {
			var d DeadEvent
			if err := json.Unmarshal(e.Value, &d); err != nil {
				return fmt.Errorf("reading a dead event: %w", err)
			}
			list = append(list, d)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("outbox: listing dead events: %w", err)
	}
	return list, nil
}

// Resend puts a dead event, or with id "" all that are dead now, at the end of
// their customers' queues, with the whole schedule before them, and reports how
// many. ErrNoEvent where there is none with that id. After an error it can be
// called again: what was put back already is dead no more.
func (b *Outbox) Resend(ctx context.Context, id string) (int, error) {
	prefix := store.Key(b.o.Tenant, "dead-event")
	begun := store.TimePart(b.o.Now().UnixNano()) // what dies from now on stays
	n := 0
	var from []byte
	for more := true; more; {
		var keys [][]byte
		var last store.Entry
		err := b.o.Store.View(ctx, func(tx store.Tx) error {
			keys = nil
			entries, err := tx.Scan(prefix, from, page, false)
			if err != nil {
				return err
			}
			for _, e := range entries {
				parts, ok := store.Parts(e.Key)
				if !ok || len(parts) != 4 {
					return errors.New("malformed key of a dead event")
				}
				if id == "" && parts[2] <= begun || id != "" && parts[3] == id {
					keys = append(keys, e.Key)
				}
			}
			if more = len(entries) == page; more {
				last = entries[page-1]
			}
			return nil
		})
		if err != nil {
			return n, fmt.Errorf("outbox: looking for dead events: %w", err)
		}
		for batch := range slices.Chunk(keys, 50) {
			m, err := b.revive(ctx, batch)
			if n += m; err != nil {
				return n, fmt.Errorf("outbox: sending dead events again: %w", err)
			}
		}
		more = more && (id == "" || n == 0)
		from = append(last.Key, 0)
	}
	if id != "" && n == 0 {
		return 0, ErrNoEvent
	}
	return n, nil
}

// revive puts dead events back, those that nobody else put back meanwhile.
func (b *Outbox) revive(ctx context.Context, keys [][]byte) (int, error) {
	now := b.o.Now().UTC()
	n := 0
	err := b.o.Store.Update(ctx, func(tx store.Tx) error {
		n = 0
		for _, key := range keys {
			value, err := tx.Get(key)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			var d DeadEvent
			if err := json.Unmarshal(value, &d); err != nil {
				return fmt.Errorf("reading a dead event: %w", err)
			}
			if err := tx.Delete(key); err != nil {
				return err
			}
			if err := b.put(tx, d.Event, now); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}
