// Package sandbox is a payment provider of its own: a ledger with customers,
// prices, subscriptions, prorations, invoices, test cards and a clock that
// can be moved, in a store of its own. It is what the demo and the tests run
// on; no real money moves. It is right rather than complete: what it knows, it
// does as Stripe does it.
package sandbox

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Ledger is the sandbox's book of accounts. Its methods are safe for
// concurrent use and are Stripe's API calls as Go functions.
//
// A call that changes something runs in one store transaction: the change,
// the answer saved under its idempotency key, and its Effect are there
// together or not at all. A key used again within 24 hours of ledger time with
// the same operation and parameters replays the first answer, also a decline;
// with others it is refused with an IdempotencyError. Calls refused with an
// InvalidRequest are not saved. Calls run one after another, so a key in use
// waits where Stripe answers with idempotency_key_in_use.
//
// Ledger time is Options.Now plus a durable offset that Advance moves. It has
// whole seconds and never goes back. Before any call, all that fell due by
// then is carried out in order, each at its own time.
//
// One Ledger at a time may use a store.
type Ledger struct {
	db   store.Store
	opts Options
	mu   sync.Mutex // held from a call's catching up to its commit

	webhooks atomic.Pointer[Webhooks] // told of effects; nil for none
}

// Options configure a Ledger.
type Options struct {
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Rand makes ids. Default: crypto/rand.
	Rand io.Reader
	// Logger gets one line per effect at debug level. Default: none.
	Logger *zap.Logger
}

const (
	keyRetention = 24 * time.Hour // docs.stripe.com/api/idempotent_requests
	maxKey       = 255
	maxAdvance   = 10 * 366 * 24 * time.Hour
)

// book is the ledger's own record. Every update reads and writes it, so that
// the store serializes them all, those of another process too.
type book struct {
	Offset time.Duration `json:"offset"`
	Last   time.Time     `json:"last"`    // the latest time anything was done for
	Made   int64         `json:"made"`    // objects made: orders what has equal times
	Seq    int64         `json:"effects"` // effects written
}

var bookKey = store.Key("sandbox", "book")

// Open opens the ledger in db, an empty one where there is none.
func Open(ctx context.Context, db store.Store, opts Options) (*Ledger, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Rand == nil {
		opts.Rand = rand.Reader
	}
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	l := &Ledger{db: db, opts: opts}
	if _, err := l.Now(ctx); err != nil {
		return nil, fmt.Errorf("opening the sandbox's ledger: %w", err)
	}
	return l, nil
}

// Now is the ledger's time.
func (l *Ledger) Now(ctx context.Context) (time.Time, error) {
	var now time.Time
	err := l.db.View(ctx, func(tx store.Tx) error {
		b, err := readBook(tx)
		now = l.time(b)
		return err
	})
	return now, err
}

func (l *Ledger) time(b book) time.Time {
	now := l.opts.Now().Add(b.Offset).UTC().Truncate(time.Second)
	if now.Before(b.Last) {
		return b.Last
	}
	return now
}

// Advance moves ledger time forward by d, up to ten years, and carries out all
// that falls due on the way, in order. It returns the new time.
func (l *Ledger) Advance(ctx context.Context, d time.Duration) (time.Time, error) {
	if d < 0 || d > maxAdvance {
		return time.Time{}, invalid("advance", "The clock moves forward only, by at most ten years.")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := l.Now(ctx)
	if err != nil {
		return time.Time{}, err
	}
	target := now.Add(d)
	if err := l.catchUp(ctx, target); err != nil {
		return time.Time{}, err
	}
	err = l.db.Update(ctx, func(tx store.Tx) error {
		b, err := readBook(tx)
		if err != nil {
			return err
		}
		b.Last = target
		b.Offset = target.Sub(l.opts.Now().Truncate(time.Second))
		return writeBook(tx, b)
	})
	return target, err
}

// Effects returns every effect with Seq greater than after, oldest first.
func (l *Ledger) Effects(ctx context.Context, after int64) ([]Effect, error) {
	if _, err := l.present(ctx); err != nil {
		return nil, err
	}
	effects := []Effect{}
	err := l.db.View(ctx, func(tx store.Tx) error {
		effects = effects[:0]
		return scan(tx, store.Key("sandbox", "effect"), store.Key("sandbox", "effect", store.TimePart(after+1)), false, func(e store.Entry) (bool, error) {
			var x Effect
			if err := json.Unmarshal(e.Value, &x); err != nil {
				return false, err
			}
			effects = append(effects, x)
			return true, nil
		})
	})
	return effects, err
}

// Saved returns what is kept under an idempotency key, however old.
func (l *Ledger) Saved(ctx context.Context, key string) (SavedCall, bool, error) {
	var s SavedCall
	var found bool
	err := l.db.View(ctx, func(tx store.Tx) error {
		var err error
		s, found, err = lookup[SavedCall](tx, "key", key)
		return err
	})
	return s, found, err
}

// present carries out what fell due and returns the ledger's time.
func (l *Ledger) present(ctx context.Context) (time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.presentLocked(ctx)
}

func (l *Ledger) presentLocked(ctx context.Context) (time.Time, error) {
	now, err := l.Now(ctx)
	if err != nil {
		return now, err
	}
	return now, l.catchUp(ctx, now)
}

// catchUp carries out what falls due until target, a few at a time so that no
// transaction grows too large. What a crash leaves is done by the next call.
func (l *Ledger) catchUp(ctx context.Context, target time.Time) error {
	for {
		due := false
		err := l.db.View(ctx, func(tx store.Tx) error {
			_, _, at, err := firstDue(tx)
			due = !at.IsZero() && !at.After(target)
			return err
		})
		if err != nil || !due {
			return err
		}
		err = l.update(ctx, target, "", func(w *work) error { return w.carryOutDue(target, 20) })
		if err != nil {
			return fmt.Errorf("carrying out what fell due: %w", err)
		}
	}
}

// update runs fn in one transaction at ledger time now.
func (l *Ledger) update(ctx context.Context, now time.Time, key string, fn func(*work) error) error {
	var seed [32]byte
	if _, err := io.ReadFull(l.opts.Rand, seed[:]); err != nil {
		return fmt.Errorf("reading randomness for ids: %w", err)
	}
	var done []Effect
	err := l.db.Update(ctx, func(tx store.Tx) error {
		b, err := readBook(tx)
		if err != nil {
			return err
		}
		w := &work{tx: tx, now: now, seed: seed, book: b, key: key}
		if err := fn(w); err != nil {
			return err
		}
		done = w.effects
		return writeBook(tx, w.book)
	})
	// Also where the reply was lost: it looks for itself.
	if w := l.webhooks.Load(); w != nil && len(done) > 0 {
		w.notice()
	}
	if err == nil {
		for _, e := range done {
			l.opts.Logger.Debug("sandbox: applied", zap.Int64("seq", e.Seq), zap.String("kind", e.Kind), zap.String("customer", e.Customer), zap.String("object", e.Object))
		}
	}
	return err
}

// undone wraps a card error after which nothing of the call must remain but
// the answer under its key.
type undone struct{ cause *Error }

func (u undone) Error() string { return u.cause.Error() }

// change runs one call that changes something; see Ledger. params must not
// hold a card's number: their hash is kept.
func change[T any](ctx context.Context, l *Ledger, c Call, op string, params any, fn func(*work) (T, error)) (T, error) {
	var out, zero T
	if c.Replayed != nil {
		*c.Replayed = false
	}
	if len(c.Key) > maxKey {
		return zero, invalid("Idempotency-Key", "An idempotency key has at most 255 characters.")
	}
	raw, err := json.Marshal([]any{op, params})
	if err != nil {
		return zero, fmt.Errorf("encoding the parameters: %w", err)
	}
	sum := sha256.Sum256(raw)
	hash := base64.RawURLEncoding.EncodeToString(sum[:])

	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := l.presentLocked(ctx)
	if err != nil {
		return zero, err
	}
	var failure *Error
	var replayed bool
	save := func(w *work, v *T) error {
		if c.Key == "" {
			return nil
		}
		s := SavedCall{Key: c.Key, Operation: op, Hash: hash, Time: now, Err: failure}
		if v != nil {
			raw, err := json.Marshal(v)
			if err != nil {
				return err
			}
			s.Result = raw
		}
		return write(w.tx, "key", c.Key, s)
	}
	err = l.update(ctx, now, c.Key, func(w *work) error {
		out, failure, replayed = zero, nil, false
		if c.Key != "" {
			s, found, err := lookup[SavedCall](w.tx, "key", c.Key)
			if err != nil {
				return err
			}
			if found && now.Before(s.Time.Add(keyRetention)) {
				if s.Hash != hash {
					return &Error{Status: 400, Type: IdempotencyError, Code: "idempotency_error", Message: "Keys for idempotent requests can only be used with the same parameters they were first used with."}
				}
				replayed, failure = true, s.Err
				if s.Err == nil {
					return json.Unmarshal(s.Result, &out)
				}
				return nil
			}
		}
		v, err := fn(w)
		if err != nil {
			var u undone
			if errors.As(err, &u) || !errors.As(err, &failure) || failure.Type != CardError {
				return err
			}
			return save(w, nil)
		}
		out = v
		return save(w, &v)
	})
	if u, ok := errors.AsType[undone](err); ok {
		failure = u.cause
		err = l.update(ctx, now, c.Key, func(w *work) error { return save(w, nil) })
	}
	if err != nil {
		return zero, err
	}
	if c.Replayed != nil {
		*c.Replayed = replayed
	}
	if failure != nil {
		return zero, failure
	}
	return out, nil
}

// read runs fn on a snapshot after what fell due was carried out.
func read[T any](ctx context.Context, l *Ledger, fn func(*work) (T, error)) (T, error) {
	var out T
	now, err := l.present(ctx)
	if err != nil {
		return out, err
	}
	err = l.db.View(ctx, func(tx store.Tx) error {
		var err error
		out, err = fn(&work{tx: tx, now: now})
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

// work is one transaction of the ledger at one time.
type work struct {
	tx      store.Tx
	now     time.Time
	seed    [32]byte
	drawn   uint64
	book    book
	key     string
	quiet   bool // history made by Seed leaves no effects
	effects []Effect
}

// id makes an id like Stripe's. It depends on the seed only, so that a
// transaction that runs again makes the same ids.
func (w *work) id(prefix string) string {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	b := append(w.seed[:], binary.BigEndian.AppendUint64(nil, w.drawn)...)
	w.drawn++
	sum := sha256.Sum256(b)
	id := []byte(prefix + "_")
	for _, c := range sum[:24] {
		id = append(id, letters[int(c)%len(letters)])
	}
	return string(id)
}

func (w *work) effect(kind, customer, object string) error {
	if w.quiet {
		return nil
	}
	w.book.Seq++
	e := Effect{Seq: w.book.Seq, Time: w.now, Customer: customer, Kind: kind, Object: object, IdempotencyKey: w.key}
	w.effects = append(w.effects, e)
	return write(w.tx, "effect", store.TimePart(e.Seq), e)
}

// index enters a new object in its customer's list.
func (w *work) index(kind, customer, id string, created time.Time) error {
	w.book.Made++
	k := store.Key("sandbox", "of", customer, kind, store.TimePart(created.UnixNano()), store.TimePart(w.book.Made))
	if err := w.tx.Put(k, []byte(id)); err != nil {
		return err
	}
	return w.tx.Put(store.Key("sandbox", "at", kind, id), k)
}

// unindex takes an object off its customer's list.
func (w *work) unindex(kind, id string) error {
	at := store.Key("sandbox", "at", kind, id)
	k, err := w.tx.Get(at)
	if err != nil {
		return err
	}
	if err := w.tx.Delete(k); err != nil {
		return err
	}
	return w.tx.Delete(at)
}

// ofCustomer reads a customer's objects until take returns false: newest
// first, or oldest first with upwards; from the one behind the object named
// behind in that direction, or from the first with "".
func ofCustomer[T any](w *work, kind, customer, behind string, upwards bool, take func(T) bool) error {
	var from []byte
	if behind != "" {
		k, err := w.tx.Get(store.Key("sandbox", "at", kind, behind))
		if errors.Is(err, store.ErrNotFound) {
			return missing(kind, behind)
		}
		if err != nil {
			return err
		}
		from = k
	}
	return scan(w.tx, store.Key("sandbox", "of", customer, kind), from, !upwards, func(e store.Entry) (bool, error) {
		if from != nil && string(e.Key) == string(from) {
			return true, nil
		}
		v, err := get[T](w, kind, string(e.Value))
		if err != nil {
			return false, err
		}
		return take(v), nil
	})
}

// schedule moves an object's place in the list of what falls due. Zero times
// are no place.
func (w *work) schedule(kind, id string, old, next time.Time) error {
	if old.Equal(next) {
		return nil
	}
	if !old.IsZero() {
		if err := w.tx.Delete(dueKey(old, kind, id)); err != nil {
			return err
		}
	}
	if next.IsZero() {
		return nil
	}
	return w.tx.Put(dueKey(next, kind, id), []byte{1})
}

func dueKey(at time.Time, kind, id string) []byte {
	return store.Key("sandbox", "due", store.TimePart(at.UnixNano()), kind, id)
}

// firstDue returns what falls due first, and a zero time where nothing does.
func firstDue(tx store.Tx) (kind, id string, at time.Time, err error) {
	entries, err := tx.Scan(store.Key("sandbox", "due"), nil, 1, false)
	if err != nil || len(entries) == 0 {
		return "", "", time.Time{}, err
	}
	parts, ok := store.Parts(entries[0].Key)
	if !ok || len(parts) != 5 {
		return "", "", time.Time{}, errors.New("the ledger's list of due things is damaged")
	}
	var ns int64
	if _, err := fmt.Sscanf(parts[2], "%d", &ns); err != nil {
		return "", "", time.Time{}, fmt.Errorf("the ledger's list of due things is damaged: %w", err)
	}
	return parts[3], parts[4], time.Unix(0, ns).UTC(), nil
}

// carryOutDue does up to n things that fall due by target, each at its time.
func (w *work) carryOutDue(target time.Time, n int) error {
	until := w.now
	defer func() { w.now = until }()
	for range n {
		kind, id, at, err := firstDue(w.tx)
		if err != nil || at.IsZero() || at.After(target) {
			return err
		}
		w.now = at
		if at.After(w.book.Last) && !w.quiet {
			w.book.Last = at
		}
		switch kind {
		case "subscription":
			err = w.subscriptionDue(id)
		case "invoice":
			err = w.invoiceDue(id)
		case "payment_intent":
			err = w.paymentDue(id)
		case "session":
			err = w.sessionDue(id)
		case "credit_grant":
			err = w.grantDue(id)
		case "tax_id":
			err = w.taxIDDue(id)
		}
		if err != nil {
			return fmt.Errorf("%s %s at %s: %w", kind, id, at.Format(time.RFC3339), err)
		}
	}
	return nil
}

func readBook(tx store.Tx) (book, error) {
	var b book
	raw, err := tx.Get(bookKey)
	if errors.Is(err, store.ErrNotFound) {
		return b, nil
	}
	if err != nil {
		return b, err
	}
	return b, json.Unmarshal(raw, &b)
}

func writeBook(tx store.Tx, b book) error {
	raw, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return tx.Put(bookKey, raw)
}

func lookup[T any](tx store.Tx, kind, id string) (v T, found bool, err error) {
	raw, err := tx.Get(store.Key("sandbox", kind, id))
	if errors.Is(err, store.ErrNotFound) {
		return v, false, nil
	}
	if err != nil {
		return v, false, err
	}
	return v, true, json.Unmarshal(raw, &v)
}

// get reads an object, or fails with resource_missing.
func get[T any](w *work, kind, id string) (T, error) {
	v, found, err := lookup[T](w.tx, kind, id)
	if err == nil && !found {
		err = missing(kind, id)
	}
	return v, err
}

func write(tx store.Tx, kind, id string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Put(store.Key("sandbox", kind, id), raw)
}

// scan reads all entries under prefix until take returns false.
func scan(tx store.Tx, prefix, from []byte, reverse bool, take func(store.Entry) (bool, error)) error {
	const page = 200
	for last := []byte(nil); ; {
		entries, err := tx.Scan(prefix, from, page, reverse)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if last != nil && string(e.Key) == string(last) {
				continue
			}
			if more, err := take(e); err != nil || !more {
				return err
			}
		}
		if len(entries) < page {
			return nil
		}
		last = entries[len(entries)-1].Key
		from = last
	}
}

func all[T any](w *work, kind string) ([]T, error) {
	var list []T
	err := scan(w.tx, store.Key("sandbox", kind), nil, false, func(e store.Entry) (bool, error) {
		var v T
		err := json.Unmarshal(e.Value, &v)
		list = append(list, v)
		return true, err
	})
	return list, err
}

func missing(kind, id string) *Error {
	return &Error{Status: 404, Type: InvalidRequest, Code: "resource_missing", Param: kind, Message: fmt.Sprintf("No such %s: '%s'", kind, id)}
}

func invalid(param, format string, args ...any) *Error {
	return &Error{Status: 400, Type: InvalidRequest, Code: "parameter_invalid", Param: param, Message: fmt.Sprintf(format, args...)}
}
