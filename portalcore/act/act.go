// Package act is the corridor that every change walks through, from pages, the
// customer's JSON and unlocked requests alike: pinned preview, ownership on the
// fresh account, policy, journal, provider, settle. Nothing else calls
// Provider.Execute.
package act

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// PinLife is how long a preview can be confirmed.
const PinLife = 15 * time.Minute

const (
	// executeTimeout bounds one provider call. The browser going away does not
	// end it.
	executeTimeout = 40 * time.Second
	// attempts is how often a step is sent in one go before it is "being
	// checked"; always with the same key.
	attempts = 3
	// resend is how long after the first sending recovery sends the same key
	// again; later it reads first, so that a click is not carried out hours
	// after it was made.
	resend = 10 * time.Minute
	// clickLife is how long after the customer confirmed an action a step that
	// does not rest on the others may be sent for the first time: nobody expects
	// an invoice to be paid days after they clicked, when what held it up ended.
	clickLife = time.Hour
	// quiet is how long a process must have seen "not applied" by reading, and
	// nothing sent, until it is believed: longer than a request may be on its way
	// and the provider may still be working on it.
	quiet = 2 * time.Minute
	// sendWithin is how long writing a step down as sent may take: what was
	// written longer ago is not sent, because others may count from then.
	sendWithin = 10 * time.Second
	// recoverAtOnce is how many intents recovery has in hand at a time, where
	// Corridor.AtOnce does not say.
	recoverAtOnce = 4
	// giveUp is when an intent that cannot be settled by reading goes to a
	// person.
	giveUp = 72 * time.Hour
	// longest is when an intent goes to a person that waits for something
	// without an end of its own: longer than any bank debit takes.
	longest = 30 * 24 * time.Hour
	// lookAgain is the longest time between two looks at an open intent.
	lookAgain = 10 * time.Minute
)

var (
	// ErrNotFound says that the object is not the customer's, or is not there.
	ErrNotFound = errors.New("act: no such object of this customer")
	// ErrChanged says that the object changed since the page was drawn.
	ErrChanged = errors.New("act: the object changed since the page was drawn")
	// ErrNoPin says that a nonce is unknown, of another session, or too old.
	ErrNoPin = errors.New("act: no such preview, or it is too old")
	// ErrNothingSent says that the provider or the store failed before anything
	// was sent: nothing changed.
	ErrNothingSent = errors.New("act: nothing was sent, nothing changed")
	// ErrNonce says that the nonce does not have the form of one.
	ErrNonce = errors.New("act: malformed nonce")
)

// DeniedError carries the policy's decision.
type DeniedError struct{ Decision policy.Decision }

func (e *DeniedError) Error() string {
	return "act: " + policy.ErrDenied.Error() + ": " + e.Decision.Why
}
func (e *DeniedError) Unwrap() error { return policy.ErrDenied }

// InvalidError says that the action itself is wrong: Field is the input,
// Code a message key, Args its numbers:
//
//   - "quantity": "quantity_min" (Min), "quantity_max" (Max); "price":
//     "price_unknown", "nothing_changes"
//   - "invoices": "required", "too_many" (Max), "twice", "not_open",
//     "processing"
//   - "use": "invalid"
//   - "name", "email", "phone", "line1", "line2", "city", "state",
//     "postal_code", "country", "locale", "invoice_fields",
//     "invoice_field_1_name", "invoice_field_1_value" and so on, "tax_id_type",
//     "tax_id": "required", "too_long" (Count), "too_many" (Max), "invalid"
//   - "tax_id", "details": "nothing_changes"
type InvalidError struct {
	Field string
	Code  string
	Args  map[string]any
}

func (e *InvalidError) Error() string { return "act: " + e.Field + ": " + e.Code }

// RefusedError says that the provider would not do it; nothing was sent to be
// carried out.
type RefusedError struct {
	Code string
	Err  error
}

func (e *RefusedError) Error() string { return "act: refused by the provider: " + e.Code }
func (e *RefusedError) Unwrap() error { return e.Err }

// Corridor carries actions out for one tenant.
type Corridor struct {
	Store    store.Store
	Tenant   string
	Provider billing.Provider
	Accounts *account.Accounts
	Journal  *journal.Journal
	// Policy returns the policy with that name; nil (which denies) for a name
	// that is not configured.
	Policy func(name string) *policy.Policy
	// Catalogue is what is offered now; nil while that is not known, and then
	// nothing is carried out.
	Catalogue func() *billing.Catalogue
	// ReturnURL is where the provider's page for confirming a payment leads
	// back to, for an intent. Optional.
	ReturnURL func(intent string) string
	Now       func() time.Time
	Rand      io.Reader
	Log       *zap.Logger

	// Pause waits between attempts until d has passed or ctx ended, by the real
	// clock where it is nil.
	Pause func(ctx context.Context, d time.Duration) error
	// Elapsed is a clock that goes at an even pace and that nobody sets, from any
	// moment on: the monotonic clock that Now has, where it is nil.
	Elapsed func() time.Duration
	// AtOnce is how many intents Recover has in hand at a time. Zero means 4. With
	// one it starts no goroutine.
	AtOnce int

	watched watched
}

// Who acts: the session, the customer's account version that was read with it,
// and the request's id for the audit trail.
type Who struct {
	session.Session
	Version   uint64
	RequestID string
}

// Pin is a preview that waits for its confirmation, on the server.
type Pin struct {
	Nonce   string          `json:"-"`
	Preview billing.Preview `json:"preview"`
	Account billing.Account `json:"-"` // as read for this preview; zero when read back
	Created time.Time       `json:"created"`
	Expires time.Time       `json:"expires"`
	// Restored is the guard's Restored when the pin was made: a store that was
	// put back since does not know what became of it.
	Restored time.Time `json:"restored"`
	// Moved is the sum that the customer saw before the numbers moved.
	Moved  bool          `json:"moved,omitempty"`
	Before billing.Money `json:"before"`
}

// NewNonce makes the nonce of a form: 128 bits, one intent at most.
func NewNonce(random io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("act: making a nonce: %w", err)
	}
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:])), nil
}

const nonceLen = 26

func validNonce(n string) bool {
	if len(n) != nonceLen {
		return false
	}
	for i := range len(n) {
		if c := n[i]; (c < '0' || c > '9') && (c < 'a' || c > 'v') {
			return false
		}
	}
	return true
}

// IntentID is the intent that a nonce of a session stands for. However often
// the form is posted, it is the same one; another session's nonce is another.
func IntentID(tenant, sessionHash, nonce string) string {
	h := sha256.Sum256([]byte("intent\x00" + tenant + "\x00" + sessionHash + "\x00" + nonce))
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(h[:20]))
}

func (c *Corridor) pinKey(who Who, nonce string) []byte {
	return store.Key(c.Tenant, "pin", who.Hash, nonce)
}

// Prepare previews an action that moves money and pins the preview: what the
// customer then confirms is this, and no other number. It checks ownership and
// policy on the fresh account first.
func (c *Corridor) Prepare(ctx context.Context, who Who, a billing.Action) (Pin, error) {
	acct, err := c.fresh(ctx, who)
	if err != nil {
		return Pin{}, err
	}
	if err := c.check(ctx, who, a, &acct); err != nil {
		return Pin{}, err
	}
	if err := c.notBusy(ctx, who, a); err != nil {
		return Pin{}, err
	}
	preview, err := c.preview(ctx, who, a, time.Time{})
	if err != nil {
		return Pin{}, err
	}
	pin, err := c.pin(ctx, who, preview, nil)
	if err != nil {
		return Pin{}, err
	}
	pin.Account = acct
	return pin, nil
}

func (c *Corridor) pin(ctx context.Context, who Who, preview billing.Preview, before *billing.Money) (Pin, error) {
	nonce, err := NewNonce(c.Rand)
	if err != nil {
		return Pin{}, err
	}
	now := c.Now().UTC()
	pin := Pin{Nonce: nonce, Preview: preview, Created: now, Expires: now.Add(PinLife)}
	if before != nil {
		pin.Moved, pin.Before = true, *before
	}
	err = c.Store.Update(ctx, func(tx store.Tx) error {
		var err error
		if pin.Restored, err = journal.Restored(tx); err != nil {
			return err
		}
		value, err := json.Marshal(pin)
		if err != nil {
			return err
		}
		return store.PutExpiring(tx, c.Tenant, c.pinKey(who, nonce), value, pin.Expires.Add(time.Hour))
	})
	if err != nil {
		return Pin{}, fmt.Errorf("%w: %w", ErrNothingSent, err)
	}
	return pin, nil
}

// ReadPin reads a pinned preview of this session.
func (c *Corridor) ReadPin(ctx context.Context, who Who, nonce string) (Pin, error) {
	if !validNonce(nonce) {
		return Pin{}, ErrNoPin
	}
	var value []byte
	var restored time.Time
	err := c.Store.View(ctx, func(tx store.Tx) (err error) {
		if value, err = tx.Get(c.pinKey(who, nonce)); err == nil {
			restored, err = journal.Restored(tx)
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return Pin{}, ErrNoPin
	}
	if err != nil {
		return Pin{}, err
	}
	var pin Pin
	if err := json.Unmarshal(value, &pin); err != nil {
		return Pin{}, fmt.Errorf("act: reading a preview: %w", err)
	}
	if !pin.Restored.Equal(restored) {
		return Pin{}, ErrNoPin
	}
	pin.Nonce = nonce
	if !c.Now().Before(pin.Expires) {
		return pin, ErrNoPin
	}
	return pin, nil
}

// Confirmed is what became of a confirmation: an intent, or a new preview
// where the numbers moved and nothing was sent.
type Confirmed struct {
	Intent journal.Intent
	Fresh  *Pin
}

// Confirm carries out a pinned preview. Posting the same nonce again returns
// the same intent. Where anything moved since the pin was made, nothing is
// sent and a fresh pin is returned instead.
func (c *Corridor) Confirm(ctx context.Context, who Who, nonce string) (Confirmed, error) {
	if !validNonce(nonce) {
		return Confirmed{}, ErrNoPin
	}
	if i, ok, err := c.existing(ctx, who, nonce); err != nil || ok {
		return Confirmed{Intent: i}, err
	}
	var fresh *Pin
	i, err := c.decide(ctx, who, nonce, func(who Who) (p billing.Preview, acct billing.Account, err error) {
		p, acct, fresh, err = c.reconsider(ctx, who, nonce)
		if err == nil && fresh != nil {
			err = errFresh
		}
		return p, acct, err
	})
	if errors.Is(err, errFresh) {
		return Confirmed{Fresh: fresh}, nil
	}
	return Confirmed{Intent: i}, err
}

// errFresh ends a decision in a fresh pin instead of an intent.
var errFresh = errors.New("act: the preview is not what was pinned")

// deciding is how often a decision is made again because another change of the
// customer's was settled while it was being made.
const deciding = 3

// decide looks at the account, decides, and begins the intent, so that nothing
// settled in between: what is allowed and what it costs rests on how things are
// when the object's lock is taken, not on how they were a moment before.
func (c *Corridor) decide(ctx context.Context, who Who, nonce string, look func(Who) (billing.Preview, billing.Account, error)) (journal.Intent, error) {
	for range deciding {
		seen, err := c.Journal.Seen(ctx, who.Customer)
		if err != nil {
			return journal.Intent{}, fmt.Errorf("%w: %w", ErrNothingSent, err)
		}
		who.Version = seen
		p, acct, err := look(who)
		if err != nil {
			// Where another posting of the same form got ahead meanwhile, what it
			// did is why things look different now: its intent is the answer.
			if i, ok, err := c.existing(ctx, who, nonce); err == nil && ok {
				return i, nil
			}
			return journal.Intent{}, err
		}
		i, err := c.begin(ctx, who, nonce, p, &acct, seen)
		if !errors.Is(err, journal.ErrStale) {
			return i, err
		}
	}
	return journal.Intent{}, fmt.Errorf("%w: the account changed %d times while it was looked at", ErrNothingSent, deciding)
}

// reconsider makes a pinned preview again, right before it is carried out. It
// returns a fresh pin instead where that is not the same one.
func (c *Corridor) reconsider(ctx context.Context, who Who, nonce string) (billing.Preview, billing.Account, *Pin, error) {
	fail := func(err error) (billing.Preview, billing.Account, *Pin, error) {
		return billing.Preview{}, billing.Account{}, nil, err
	}
	pin, err := c.ReadPin(ctx, who, nonce)
	old := errors.Is(err, ErrNoPin) && pin.Nonce != ""
	if err != nil && !old {
		return fail(err)
	}
	acct, err := c.fresh(ctx, who)
	if err != nil {
		return fail(err)
	}
	a := pin.Preview.Action
	if err := c.check(ctx, who, a, &acct); err != nil {
		if errors.Is(err, ErrNotFound) && a.Kind == billing.PayInvoices {
			err = fmt.Errorf("%w: %w", ErrChanged, err) // it was theirs and open when it was shown
		}
		return fail(err)
	}
	if !old {
		// Only now is the intent known that a page of the provider's (3-D Secure)
		// leads back to.
		if c.ReturnURL != nil && (a.Kind == billing.ChangePlan || a.Kind == billing.PayInvoices) {
			a.ReturnURL = c.ReturnURL(IntentID(c.Tenant, who.Hash, nonce))
		}
		again, err := c.preview(ctx, who, a, pin.Preview.At)
		if err != nil {
			return fail(err)
		}
		if pin.Preview.SameTerms(again) {
			return again, acct, nil, nil
		}
	}
	// Too old, or moved. The proration moment may be the reason (a renewal in
	// between), so the fresh one chooses its own.
	if err := c.notBusy(ctx, who, a); err != nil {
		return fail(err)
	}
	now, err := c.preview(ctx, who, a, time.Time{})
	if err != nil {
		return fail(err)
	}
	var before *billing.Money
	if !old || now.DueNow != pin.Preview.DueNow {
		before = &pin.Preview.DueNow
	}
	fresh, err := c.pin(ctx, who, now, before)
	if err != nil {
		return fail(err)
	}
	fresh.Account = acct
	return billing.Preview{}, billing.Account{}, &fresh, nil
}

// Do carries out an action that moves no money now, so that the page itself
// was the preview. version is the object version the page was drawn from; ""
// does not compare. nonce makes the form good for one intent.
func (c *Corridor) Do(ctx context.Context, who Who, nonce, version string, a billing.Action) (journal.Intent, error) {
	if !validNonce(nonce) {
		return journal.Intent{}, ErrNonce
	}
	if i, ok, err := c.existing(ctx, who, nonce); err != nil || ok {
		return i, err
	}
	if a.Kind == billing.AddPaymentMethod {
		return c.addPaymentMethod(ctx, who, nonce, a, func(who Who) (billing.Preview, billing.Account, error) {
			return c.consider(ctx, who, version, a)
		})
	}
	return c.decide(ctx, who, nonce, func(who Who) (billing.Preview, billing.Account, error) {
		return c.consider(ctx, who, version, a)
	})
}

// cardPageLife is how long a session is sent to the card page that it was sent
// to before, instead of to a new one: well within how long providers keep one.
const cardPageLife = time.Hour

// addPaymentMethod sends a session that already has an open card page for the
// same purpose there again: however often it is asked for, one waits.
func (c *Corridor) addPaymentMethod(ctx context.Context, who Who, nonce string, a billing.Action, look func(Who) (billing.Preview, billing.Account, error)) (journal.Intent, error) {
	key := store.Key(c.Tenant, "card-page", who.Hash)
	values, err := c.Store.GetAll(ctx, key)
	if err != nil {
		return journal.Intent{}, fmt.Errorf("%w: %w", ErrNothingSent, err)
	}
	if values[0] != nil {
		open, err := c.Journal.Get(ctx, who.Customer, string(values[0]))
		if err == nil && open.State == journal.AwaitingCustomer && open.Next() == 0 && open.Action.Same(a) && c.Now().Sub(open.Created) < cardPageLife {
			if _, _, err := look(who); err != nil { // still allowed, and the account still there
				return journal.Intent{}, err
			}
			return open, nil
		}
	}
	i, err := c.decide(ctx, who, nonce, look)
	if err != nil || i.State != journal.AwaitingCustomer {
		return i, err
	}
	// Where this is lost, the next one gets a page of its own.
	if err := c.Store.Update(ctx, func(tx store.Tx) error {
		return store.PutExpiring(tx, c.Tenant, key, []byte(i.ID), who.Expires.Add(time.Hour))
	}); err != nil {
		c.Log.Warn("could not note an open card page", zap.String("intent", i.ID), zap.Error(err))
	}
	return i, nil
}

func (c *Corridor) consider(ctx context.Context, who Who, version string, a billing.Action) (billing.Preview, billing.Account, error) {
	fail := func(err error) (billing.Preview, billing.Account, error) {
		return billing.Preview{}, billing.Account{}, err
	}
	acct, err := c.fresh(ctx, who)
	if err != nil {
		return fail(err)
	}
	if err := c.check(ctx, who, a, &acct); err != nil {
		return fail(err)
	}
	preview, err := c.preview(ctx, who, a, time.Time{})
	if err != nil {
		return fail(err)
	}
	if version != "" && preview.ObjectVersion != version {
		return fail(ErrChanged)
	}
	if a.Kind == billing.ChangePlan || len(a.Invoices) > 0 || preview.DueNow.Amount > 0 {
		return fail(ErrNoPin) // nobody pays what they were not shown
	}
	return preview, acct, nil
}

// existing returns the intent of a nonce that was posted before, once whoever
// carries it out had a little time.
func (c *Corridor) existing(ctx context.Context, who Who, nonce string) (journal.Intent, bool, error) {
	i, err := c.Journal.Get(ctx, who.Customer, IntentID(c.Tenant, who.Hash, nonce))
	switch {
	case err == nil:
		i, err = c.follow(ctx, i)
		return i, true, err
	case errors.Is(err, store.ErrNotFound):
		return journal.Intent{}, false, nil
	}
	return journal.Intent{}, false, fmt.Errorf("%w: %w", ErrNothingSent, err)
}

// fresh reads the account for a decision. A failure is before anything left.
func (c *Corridor) fresh(ctx context.Context, who Who) (billing.Account, error) {
	acct, err := c.Accounts.Fresh(ctx, who.Customer, who.Version)
	if err != nil {
		return billing.Account{}, fmt.Errorf("%w: %w", ErrNothingSent, err)
	}
	return acct, nil
}

func (c *Corridor) preview(ctx context.Context, who Who, a billing.Action, at time.Time) (billing.Preview, error) {
	p, err := c.Provider.Preview(ctx, who.Customer, a, at)
	switch billing.FaultOf(err) {
	case "":
		p.Action = a // what was checked, whatever the provider makes of it
		return p, nil
	case billing.NotFound:
		return billing.Preview{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	case billing.Refused:
		return billing.Preview{}, &RefusedError{Code: billing.CodeOf(err), Err: err}
	}
	return billing.Preview{}, fmt.Errorf("%w: %w", ErrNothingSent, err)
}

// notBusy says early that another change is being checked; begin decides.
func (c *Corridor) notBusy(ctx context.Context, who Who, a billing.Action) error {
	objects := a.Objects(who.Customer)
	held, err := c.Journal.Busy(ctx, who.Customer, objects...)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNothingSent, err)
	}
	for _, object := range objects {
		if id := held[object]; id != "" {
			return &journal.BusyError{Intent: id}
		}
	}
	return nil
}

// check is ownership, sense and policy of an action, on the fresh account.
func (c *Corridor) check(ctx context.Context, who Who, a billing.Action, acct *billing.Account) error {
	if who.Support() {
		// Whatever form they found: they look, and change nothing.
		if err := c.auditDenied(ctx, who, a); err != nil {
			return err
		}
		return &DeniedError{Decision: policy.Decision{Verdict: policy.Deny, Why: "role"}}
	}
	if c.Catalogue() == nil {
		// A rule that denies for a plan could not be told from one that does not
		// apply.
		return fmt.Errorf("%w: the provider has not said yet what is sold", ErrNothingSent)
	}
	req := policy.Request{Action: policy.ActionOf(a.Kind), Role: who.Role, Permissions: who.Permissions}
	if unread(a, acct) {
		return fmt.Errorf("%w: a part of the account could not be read: %v", ErrNothingSent, acct.Failed)
	}
	if err := sensibleInvoices(a, acct); err != nil {
		return err
	}
	sub, err := owned(a, acct)
	if err != nil {
		return err
	}
	switch a.Kind {
	case billing.DropPending, billing.Cancel, billing.Resume:
		req.From = c.planKey(sub)
	case billing.ChangePlan:
		req.From = c.planKey(sub)
		if !ownItems(sub, a.Items) {
			return ErrNotFound
		}
		parts, ok := policy.PartsOf(c.Catalogue(), sub, a.Items)
		if !ok {
			return &InvalidError{Field: "price", Code: "price_unknown"}
		}
		if err := c.sensible(sub, a, parts); err != nil {
			return err
		}
		req.Parts = parts
	default:
		if err := sense(a, acct); err != nil {
			return err
		}
	}
	req.AnyDirection = a.Kind == billing.DropPending
	d := c.Policy(who.Configuration).Decide(req)
	if d.Allowed() && a.Kind == billing.AddPaymentMethod && len(a.Invoices) > 0 {
		req.Action = policy.PayInvoices
		d = c.Policy(who.Configuration).Decide(req)
	}
	if !d.Allowed() {
		if err := c.auditDenied(ctx, who, a); err != nil {
			return err
		}
		return &DeniedError{Decision: d}
	}
	return nil
}

// ownItems reports whether the changes are of the subscription's own items, each
// named once: a second change of one item would be judged against the item as
// it is, not as the first one leaves it.
func ownItems(sub *billing.Subscription, changes []billing.ItemChange) bool {
	seen := map[string]bool{}
	for _, ch := range changes {
		if seen[ch.Item] || !slices.ContainsFunc(sub.Items, func(it billing.Item) bool { return it.ID == ch.Item }) {
			return false
		}
		seen[ch.Item] = true
	}
	return len(changes) > 0
}

// sensible checks a change against the catalogue and the subscription.
func (c *Corridor) sensible(sub *billing.Subscription, a billing.Action, parts []policy.Part) error {
	if sub.Ended() {
		return ErrNotFound
	}
	cat := c.Catalogue()
	for _, ch := range a.Items {
		lo, hi := int64(1), int64(billing.MaxQuantity)
		if p, ok := cat.PlanOf(ch.Price); ok {
			lo = max(p.MinQuantity, 1)
			if p.MaxQuantity > 0 {
				hi = min(p.MaxQuantity, hi)
			}
		}
		switch {
		case ch.Quantity < lo:
			return &InvalidError{Field: "quantity", Code: "quantity_min", Args: map[string]any{"Min": lo}}
		case ch.Quantity > hi:
			return &InvalidError{Field: "quantity", Code: "quantity_max", Args: map[string]any{"Max": hi}}
		}
		if price, ok := cat.Price(ch.Price); ok && price.Currency != sub.Currency {
			return &InvalidError{Field: "price", Code: "price_unknown"}
		}
	}
	if len(parts) == 0 {
		return &InvalidError{Field: "price", Code: "nothing_changes"}
	}
	return nil
}

func (c *Corridor) planKey(sub *billing.Subscription) string {
	for _, it := range sub.Items {
		if p, ok := c.Catalogue().PlanOf(it.Price.ID); ok {
			return p.Key
		}
	}
	return ""
}

func (c *Corridor) planName(items []billing.Item) string {
	for _, it := range items {
		if p, ok := c.Catalogue().PlanOf(it.Price.ID); ok {
			return p.Name
		}
	}
	for _, it := range items {
		return it.Price.ProductName
	}
	return ""
}

func (c *Corridor) auditDenied(ctx context.Context, who Who, a billing.Action) error {
	id, err := NewNonce(c.Rand)
	if err != nil {
		return err
	}
	r := audit.Record{
		ID: id, Time: c.Now().UTC(), Customer: who.Customer, Actor: who.Actor, Role: who.Role,
		Event: "denied", Action: string(a.Kind), Object: a.Object(who.Customer), Objects: several(a.Objects(who.Customer)), RequestID: who.RequestID,
	}
	err = c.Store.Update(ctx, func(tx store.Tx) error { return audit.Put(tx, c.Tenant, r) })
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNothingSent, err)
	}
	return nil
}

// several is objects where there are more than the one that stands alone.
func several(objects []string) []string {
	if len(objects) == 1 {
		return nil
	}
	return objects
}

// begin writes the intent down and runs it.
func (c *Corridor) begin(ctx context.Context, who Who, nonce string, p billing.Preview, acct *billing.Account, seen uint64) (journal.Intent, error) {
	i := journal.Intent{
		ID: IntentID(c.Tenant, who.Hash, nonce), Customer: who.Customer, Actor: who.Actor, Role: who.Role,
		Session: who.Hash, Action: p.Action, Preview: p, Object: p.Action.Object(who.Customer),
		Objects: several(p.Action.Objects(who.Customer)), RequestID: who.RequestID,
	}
	i.Preview.Steps = nil
	for n, s := range p.Steps {
		i.Steps = append(i.Steps, journal.Step{Step: s, Key: journal.StepKey(i.ID, n)})
	}
	if sub, ok := acct.Subscription(p.Action.Subscription); ok {
		i.FromPlan = c.planName(sub.Items)
		i.ToPlan = i.FromPlan
		if len(p.Items) > 0 {
			i.ToPlan = c.planName(p.Items)
		}
	}
	i, created, err := c.Journal.Plan(ctx, i, seen)
	if err != nil {
		var busy *journal.BusyError
		if errors.As(err, &busy) || errors.Is(err, journal.ErrStale) {
			return journal.Intent{}, err
		}
		return journal.Intent{}, fmt.Errorf("%w: %w", ErrNothingSent, err)
	}
	if !created {
		return c.follow(ctx, i)
	}
	// From here on the browser going away changes nothing.
	return c.run(context.WithoutCancel(ctx), i)
}

// follow waits a short while for an intent that another request of the same
// form is carrying out, so that a double click ends on the receipt.
func (c *Corridor) follow(ctx context.Context, i journal.Intent) (journal.Intent, error) {
	for range 40 {
		if i.State != journal.Planned && i.State != journal.Sent {
			break
		}
		if c.rest(ctx, 100*time.Millisecond) != nil {
			return i, nil
		}
		again, err := c.Journal.Get(ctx, i.Customer, i.ID)
		if err != nil {
			return i, nil //nolint:nilerr // the receipt looks again
		}
		i = again
	}
	return i, nil
}
