// Package journal is the durable record of confirmed actions. An intent is an
// ordered list of frozen steps; each is written down as sent before a byte of
// it leaves, so that after a crash it is known what may have happened. The
// journal asks no provider: package act does, and tells it.
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// State is where an intent stands.
type State string

// The states. Terminal ones are marked; see Terminal.
const (
	// Planned: written down, nothing sent.
	Planned State = "planned"
	// Sent: a step was, or is about to be, sent; no answer yet.
	Sent State = "sent"
	// AwaitingCustomer: the provider waits for the customer, until Until.
	AwaitingCustomer State = "awaiting_customer"
	// Processing: the provider accepted and will say later.
	Processing State = "processing"
	// Unknown: a step was sent and no definite answer came.
	Unknown State = "unknown"
	// Reconciling: like Unknown, but only reading is still allowed.
	Reconciling State = "reconciling"
	// Succeeded: every step took effect. Terminal.
	Succeeded State = "succeeded"
	// Refused: a definite no; nothing changed. Terminal.
	Refused State = "refused"
	// Partial: some steps took effect, others did not. Terminal.
	Partial State = "partial"
	// NotApplied: proven not to have taken effect. Terminal.
	NotApplied State = "not_applied"
	// Cancelled: planned and never sent, found by recovery. Terminal.
	Cancelled State = "cancelled"
	// Manual: could not be settled by reading; a person must look. Terminal
	// for the portal.
	Manual State = "manual"
)

// Terminal reports whether the portal is done with an intent in that state.
func (s State) Terminal() bool {
	switch s {
	case Succeeded, Refused, Partial, NotApplied, Cancelled, Manual:
		return true
	}
	return false
}

// Locks reports whether an intent in that state keeps other actions off its
// objects.
func (s State) Locks() bool {
	switch s {
	case Planned, Sent, Unknown, Reconciling:
		return true
	}
	return false
}

// Step is a frozen step and how it went.
type Step struct {
	billing.Step
	Key      string          `json:"key"`
	SentAt   time.Time       `json:"sent_at"` // first time, zero: never
	LastSent time.Time       `json:"last_sent"`
	Attempts int             `json:"attempts"`
	Result   *billing.Result `json:"result,omitempty"`
	// Done is set when the step is known to have taken effect.
	Done bool `json:"done"`
	// Ended is set when the step is known not to take effect any more: Refused,
	// NotApplied, or Cancelled where it was never sent, because it rests on one
	// that did not take effect or because too long had passed. Intents of an
	// earlier build have it on no step; StateOf knows them too.
	Ended State `json:"ended,omitempty"`
	// Code says why it was refused, or what it waited for, as billing.Error's.
	Code string `json:"code,omitempty"`
}

func (s *Step) settled() bool { return s.Done || s.Ended != "" }

// Processing reports whether the provider accepted the step and says later what
// became of it.
func (s *Step) Processing() bool {
	return !s.settled() && s.Result != nil && s.Result.State == billing.Processing
}

// Intent is a confirmed action.
type Intent struct {
	ID       string          `json:"id"`
	Customer string          `json:"customer"`
	Actor    link.Actor      `json:"actor"`
	Role     string          `json:"role"`
	Session  string          `json:"session"` // hash
	Action   billing.Action  `json:"action"`
	Preview  billing.Preview `json:"preview"` // as confirmed; Steps empty
	Object   string          `json:"object"`
	// Objects are all objects that the intent locks, Object first, where there
	// are more than that one.
	Objects []string  `json:"objects,omitempty"`
	Steps   []Step    `json:"steps"`
	State   State     `json:"state"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	// Due is when recovery looks at it next; zero in terminal states.
	Due time.Time `json:"due"`
	// Owner and Lease say who works on it: another takes over only when the
	// owner's process is gone or the lease ran out.
	Owner string    `json:"owner,omitempty"`
	Lease time.Time `json:"lease"`
	Until time.Time `json:"until"` // AwaitingCustomer
	// Code says why it was refused, or what it waits for.
	Code string `json:"code,omitempty"`
	// LastError is for operators.
	LastError string `json:"last_error,omitempty"`
	// Differs is set where the invoice differs from what was confirmed.
	Differs   bool   `json:"differs,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	// FromPlan and ToPlan are plan names for the receipt.
	FromPlan string `json:"from_plan,omitempty"`
	ToPlan   string `json:"to_plan,omitempty"`
	// Rev goes up with every write: a writer that read an older one fails.
	Rev uint64 `json:"rev"`
	// Stamp names the write that made this Rev: a writer whose commit's reply
	// was lost sees by it whether the write is its own.
	Stamp string `json:"stamp"`
	// Restored is the guard's Restored when the intent was planned. Where the
	// store's is another one, the store was put back since, and what happened
	// after the backup is not known here. No clock takes part.
	Restored time.Time `json:"restored"`
	// ReadOnly is set, for good, on an open intent that a restored store
	// brought back, and on one that was left between its steps for long: steps
	// that stand as not sent may have been, so none is sent any more.
	ReadOnly bool `json:"read_only,omitempty"`
	// SettledBy is the operator who settled a manual intent, and Note what they
	// wrote about it.
	SettledBy string `json:"settled_by,omitempty"`
	Note      string `json:"note,omitempty"`
}

// Next is the index of the step in hand: the first that is not settled and may
// be worked on, which an independent one may be while the provider is processing
// those before it. Where all that are left are being processed it is the first
// of them; len(Steps) where none is left.
func (i *Intent) Next() int {
	clear, processing := true, len(i.Steps)
	for n := range i.Steps {
		s := &i.Steps[n]
		if s.Done {
			continue
		}
		switch {
		case s.Ended != "":
		case s.Processing():
			processing = min(processing, n)
		case clear || s.Independent:
			return n
		}
		clear = false
	}
	return processing
}

// StateOf is where step n stands, in the words for intents: Planned (not sent
// yet), Sent, AwaitingCustomer, Processing, Unknown or Reconciling (being
// checked), Succeeded, Refused, NotApplied, Cancelled (never sent), Manual.
func (i *Intent) StateOf(n int) State {
	s := &i.Steps[n]
	switch {
	case s.Done:
		return Succeeded
	case s.Ended != "":
		return s.Ended
	case i.SettledBy != "" && i.State != Partial:
		return i.State // the operator saw it
	case i.SettledBy != "", i.State == Manual && !s.SentAt.IsZero():
		return Manual
	case i.State.Terminal() && (s.SentAt.IsZero() || i.Next() != n):
		return Cancelled
	case i.State == Partial: // of an earlier build: the step in hand was refused
		return Refused
	case i.State.Terminal():
		return i.State
	case s.Result != nil && s.Result.State == billing.AwaitingCustomer:
		return AwaitingCustomer
	case s.Result != nil:
		return Processing
	case s.SentAt.IsZero():
		return Planned
	}
	return i.State
}

// Conclusion is the state of an intent whose steps are all settled.
func (i *Intent) Conclusion() State {
	done, how := 0, Cancelled
	for _, s := range i.Steps {
		switch {
		case s.Done:
			done++
		case s.Ended == Refused, s.Ended == NotApplied && how != Refused:
			how = s.Ended
		}
	}
	switch done {
	case len(i.Steps):
		return Succeeded
	case 0:
		return how
	}
	return Partial
}

func (i *Intent) settledSteps() (n int) {
	for m := range i.Steps {
		if i.Steps[m].settled() {
			n++
		}
	}
	return n
}

func (i *Intent) locks() []string {
	if len(i.Objects) > 0 {
		return i.Objects
	}
	return []string{i.Object}
}

// Reference is the intent's short name for people.
func (i *Intent) Reference() string {
	if len(i.ID) < 12 {
		return i.ID
	}
	return i.ID[:4] + "-" + i.ID[4:8] + "-" + i.ID[8:12]
}

var (
	// ErrBusy says that another intent holds the object.
	ErrBusy = errors.New("journal: another change of this object is not settled yet")
	// ErrStale says that the customer's account may have changed since the
	// decision that a new intent rests on.
	ErrStale = errors.New("journal: the account may have changed since it was looked at")
	// ErrMoved says that somebody else wrote the intent since it was read.
	ErrMoved = errors.New("journal: intent was changed by somebody else")
	// ErrLeased says that somebody else works on the intent right now.
	ErrLeased = errors.New("journal: somebody else works on this intent")
	// ErrNotManual says that an intent does not wait for a person.
	ErrNotManual = errors.New("journal: this intent does not wait for an operator")
)

// BusyError is ErrBusy with the intent in the way.
type BusyError struct{ Intent string }

func (e *BusyError) Error() string { return ErrBusy.Error() + ": " + e.Intent }
func (e *BusyError) Unwrap() error { return ErrBusy }

// clockSlack is how far two clocks may disagree. What lies further in the
// future than anything is ever put was written by a clock that went backwards
// since, and must not wait until the clock is there again.
const clockSlack = 10 * time.Minute

// maxWait is longer than any look is put off.
const maxWait = time.Hour

// stamps counts the writes of this process, over all journals in it.
var stamps atomic.Uint64

// Journal keeps a tenant's intents.
type Journal struct {
	Store  store.Store
	Tenant string
	Now    func() time.Time
	// Process names this operating-system process. It stays the same over a
	// reload of the config, so that a reload takes no live intent.
	Process string
	// Exclusive is true where no other process can have the store open: an
	// intent of another process is then free at once.
	Exclusive bool
	// LeaseTime is how long one owner may work on an intent without writing.
	LeaseTime time.Duration
	// Changed notes, in the transaction that moves an intent on, that the
	// customer's account may have changed at the provider.
	Changed func(tx store.Tx, tenant, customer string) error
	// Version is what Changed moves: the customer's account version.
	Version func(tx store.Tx, tenant, customer string) (uint64, error)
	// Settled is called in the transaction that ends an intent, and again in
	// the one in which an operator settles a manual one. It must be pure, like
	// every closure of the store, and leave the intent as it is. Optional.
	Settled func(tx store.Tx, i *Intent) error
}

func (j *Journal) intentKey(customer, id string) []byte {
	return store.Key(j.Tenant, "intent", customer, id)
}

func (j *Journal) lockKey(customer, object string) []byte {
	return store.Key(j.Tenant, "lock", customer, object)
}

// openKey is the index of a customer's open intents.
func (j *Journal) openKey(customer, id string) []byte {
	return store.Key(j.Tenant, "open", customer, id)
}

// manualKey is the index of the intents that wait for an operator.
func (j *Journal) manualKey(customer, id string) []byte {
	return store.Key(j.Tenant, "manual", customer, id)
}

func (j *Journal) workKey(due time.Time, customer, id string) []byte {
	return store.Key("work", store.TimePart(due.UnixNano()), j.Tenant, customer, id)
}

// Get reads an intent of a customer; store.ErrNotFound where there is none.
func (j *Journal) Get(ctx context.Context, customer, id string) (Intent, error) {
	var i Intent
	err := j.Store.View(ctx, func(tx store.Tx) (err error) {
		i, err = j.get(tx, customer, id)
		return err
	})
	return i, err
}

func (j *Journal) get(tx store.Tx, customer, id string) (Intent, error) {
	value, err := tx.Get(j.intentKey(customer, id))
	if err != nil {
		return Intent{}, err
	}
	var i Intent
	if err := json.Unmarshal(value, &i); err != nil {
		return Intent{}, fmt.Errorf("journal: reading intent %s: %w", id, err)
	}
	return i, nil
}

// Plan writes a new intent down and takes the locks of its objects. Where the
// intent is there already it is returned with created false: one nonce, one
// intent. BusyError where another intent holds one of the objects.
//
// seen is the account version that was read, with Seen, before the account was
// looked at to decide. ErrStale where it moved since: another change was settled
// meanwhile, and what was decided rests on how things were before it.
func (j *Journal) Plan(ctx context.Context, i Intent, seen uint64) (_ Intent, created bool, err error) {
	now := j.Now().UTC()
	i.State, i.Created, i.Updated, i.Stamp = Planned, now, now, j.stamp()
	j.lease(&i, now)
	var got Intent
	err = j.Store.Update(ctx, func(tx store.Tx) error {
		created = false
		old, err := j.get(tx, i.Customer, i.ID)
		if err == nil {
			got = old
			return nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err := j.takeLock(tx, &i); err != nil {
			return err
		}
		version, err := j.Version(tx, j.Tenant, i.Customer)
		if err != nil {
			return err
		}
		if version != seen {
			return ErrStale
		}
		if err := j.audit(tx, &i, "confirmed", now); err != nil {
			return err
		}
		got, created = i, true
		if got.Restored, err = Restored(tx); err != nil {
			return err
		}
		return j.put(tx, nil, &got)
	})
	if j.landed(ctx, err, &got) {
		err = nil
	}
	return got, created, err
}

// Restored reads when the store was last put back to an earlier state; zero for
// never.
func Restored(tx store.Tx) (time.Time, error) {
	g, err := store.ReadGuard(tx)
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil // such a store accepts no link
	}
	return g.Restored, err
}

// Seen reads a customer's account version. What is decided on an account that
// is read after it holds as long as the version does not move.
func (j *Journal) Seen(ctx context.Context, customer string) (uint64, error) {
	var version uint64
	err := j.Store.View(ctx, func(tx store.Tx) (err error) {
		version, err = j.Version(tx, j.Tenant, customer)
		return err
	})
	return version, err
}

func (j *Journal) stamp() string {
	return j.Process + "." + strconv.FormatUint(stamps.Add(1), 10)
}

// landed tells, after a commit whose reply was lost, whether the write is
// there. That it is not there yet proves nothing.
func (j *Journal) landed(ctx context.Context, err error, wrote *Intent) bool {
	if !errors.Is(err, store.ErrUnknown) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	got, err := j.Get(ctx, wrote.Customer, wrote.ID)
	return err == nil && got.Stamp == wrote.Stamp
}

// takeLock takes the locks of all of an intent's objects, or none.
func (j *Journal) takeLock(tx store.Tx, i *Intent) error {
	for _, object := range i.locks() {
		key := j.lockKey(i.Customer, object)
		holder, err := tx.Get(key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			if err := tx.Put(key, []byte(i.ID)); err != nil {
				return err
			}
		case err != nil:
			return err
		case string(holder) != i.ID:
			return &BusyError{Intent: string(holder)}
		}
	}
	return nil
}

func (j *Journal) releaseLock(tx store.Tx, i *Intent) error {
	for _, object := range i.locks() {
		key := j.lockKey(i.Customer, object)
		holder, err := tx.Get(key)
		if errors.Is(err, store.ErrNotFound) || err == nil && string(holder) != i.ID {
			continue
		}
		if err != nil {
			return err
		}
		if err := tx.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

func (j *Journal) lease(i *Intent, now time.Time) {
	i.Owner, i.Lease = j.Process, now.Add(j.LeaseTime)
	i.Due = i.Lease
}

// put writes the intent, keeps its work entry at its due time and the indexes
// at its state. old is the intent as it is in the store, or nil.
func (j *Journal) put(tx store.Tx, old, i *Intent) error {
	if old != nil && !old.Due.IsZero() {
		if err := tx.Delete(j.workKey(old.Due, old.Customer, old.ID)); err != nil {
			return err
		}
	}
	if i.State.Terminal() {
		i.Due, i.Owner, i.Lease = time.Time{}, "", time.Time{}
	}
	i.Rev++
	value, err := json.Marshal(i)
	if err != nil {
		return err
	}
	if err := tx.Put(j.intentKey(i.Customer, i.ID), value); err != nil {
		return err
	}
	if err := j.index(tx, i, old != nil && old.State == Manual); err != nil {
		return err
	}
	if i.Due.IsZero() {
		return nil
	}
	return tx.Put(j.workKey(i.Due, i.Customer, i.ID), []byte(i.ID))
}

// index keeps the entries of an intent by its state. An open one's is written
// every time: one that an earlier build wrote has none.
func (j *Journal) index(tx store.Tx, i *Intent, wasManual bool) error {
	open, manual := j.openKey(i.Customer, i.ID), j.manualKey(i.Customer, i.ID)
	switch {
	case !i.State.Terminal():
		return tx.Put(open, []byte(i.ID))
	case i.State == Manual:
		if err := tx.Put(manual, []byte(i.ID)); err != nil {
			return err
		}
	case wasManual:
		return tx.Delete(manual)
	}
	return tx.Delete(open)
}

// write replaces the intent as the caller read it by what change makes of it.
// The lock, the account version and the audit trail follow the state in the
// same transaction.
func (j *Journal) write(ctx context.Context, i *Intent, change func(*Intent, time.Time)) error {
	now, stamp := j.Now().UTC(), j.stamp()
	var out Intent
	err := j.Store.Update(ctx, func(tx store.Tx) error {
		old, err := j.get(tx, i.Customer, i.ID)
		if err != nil {
			return err
		}
		if old.Rev != i.Rev {
			return ErrMoved
		}
		out = old
		out.Steps = slices.Clone(old.Steps) // changes replace what a step points to
		change(&out, now)
		if old.State.Terminal() && (old.State != Manual || out.SettledBy == "") {
			return ErrMoved // settled is settled
		}
		out.Updated, out.Stamp = now, stamp
		if out.State.Locks() {
			if err := j.takeLock(tx, &out); err != nil {
				return err
			}
		} else if old.State.Locks() {
			if err := j.releaseLock(tx, &out); err != nil {
				return err
			}
		}
		// Whatever may have reached the provider makes the cached account old.
		if out.settledSteps() != old.settledSteps() || out.State != old.State && out.State != Sent && out.State != Cancelled {
			if err := j.Changed(tx, j.Tenant, i.Customer); err != nil {
				return err
			}
		}
		if err := j.put(tx, &old, &out); err != nil || !out.State.Terminal() || out.State == old.State {
			return err
		}
		event := "settled"
		if old.State == Manual {
			event = "settled_by_operator"
		}
		if err := j.audit(tx, &out, event, now); err != nil || j.Settled == nil {
			return err
		}
		return j.Settled(tx, &out)
	})
	if err != nil && !j.landed(ctx, err, &out) {
		return err
	}
	*i = out
	return nil
}

func (j *Journal) audit(tx store.Tx, i *Intent, event string, now time.Time) error {
	return audit.Put(tx, j.Tenant, audit.Record{
		ID: i.ID + "-" + event, Time: now, Customer: i.Customer, Actor: i.Actor, Role: i.Role,
		Event: event, Action: string(i.Action.Kind), Object: i.Object, Objects: i.Objects, Intent: i.ID,
		State: string(i.State), RequestID: i.RequestID, By: i.SettledBy, Note: i.Note,
	})
}

// Send notes, durably, that step n is about to be sent. Only after it returned
// nil may a byte leave. refs are the values that the step needs from earlier
// ones.
func (j *Journal) Send(ctx context.Context, i *Intent, n int, refs map[string]string) error {
	return j.write(ctx, i, func(i *Intent, now time.Time) {
		s := &i.Steps[n]
		if s.SentAt.IsZero() {
			s.SentAt = now
		}
		if s.Refs == nil {
			s.Refs = refs
		}
		s.LastSent = now
		s.Attempts++
		i.State = Sent
		j.lease(i, now)
	})
}

// Done notes that step n took effect. Where it was the last one that was left,
// that settles the intent; else the next step follows, and may only be read where
// the intent is ReadOnly.
func (j *Journal) Done(ctx context.Context, i *Intent, n int, r billing.Result, differs bool) error {
	return j.write(ctx, i, func(i *Intent, now time.Time) {
		inHand := i.Next() == n
		s := &i.Steps[n]
		s.Done, s.Result = true, &r
		i.Differs = i.Differs || differs
		j.advance(i, inHand, now)
	})
}

// End notes that step n did not take effect and never will: Refused or
// NotApplied, or Cancelled where it was not sent. code says why, cause is for
// the log. Later steps that rest on it, because they are not independent or need
// a value that it would have given, are Cancelled with it.
func (j *Journal) End(ctx context.Context, i *Intent, n int, how State, code string, cause error) error {
	return j.write(ctx, i, func(i *Intent, now time.Time) {
		inHand := i.Next() == n
		s := &i.Steps[n]
		s.Ended, s.Code = how, code
		for m := n + 1; m < len(i.Steps); m++ {
			// What rests on it cannot have been sent, whatever stands here.
			if s := &i.Steps[m]; !s.settled() && s.Result == nil && i.bereft(m) {
				s.Ended = Cancelled
			}
		}
		j.advance(i, inHand, now)
		i.LastError = text(cause)
	})
}

// bereft reports whether step n can never be sent.
func (i *Intent) bereft(n int) bool {
	before := i.Steps[:n]
	if !slices.ContainsFunc(before, func(s Step) bool { return s.Ended != "" }) {
		return false
	}
	if !i.Steps[n].Independent {
		return true
	}
	return slices.ContainsFunc(i.Steps[n].Needs, func(name string) bool {
		return !slices.ContainsFunc(before, func(s Step) bool {
			return !s.settled() || s.Done && s.Result != nil && s.Result.Refs[name] != ""
		})
	})
}

// advance moves an intent on from a step that was settled: to its end, or to
// the next step if it was the one in hand.
func (j *Journal) advance(i *Intent, inHand bool, now time.Time) {
	n := i.Next()
	switch {
	case n == len(i.Steps):
		i.State, i.Code, i.LastError = i.Conclusion(), "", ""
		for _, s := range i.Steps {
			if s.Ended != "" {
				i.Code = s.Code
				break
			}
		}
	case inHand:
		i.Code, i.LastError = "", ""
		j.goOn(i, n, now)
	}
}

// goOn makes step n the one in hand.
func (j *Journal) goOn(i *Intent, n int, now time.Time) {
	if r := i.Steps[n].Result; r != nil {
		i.State = Processing
		if r.State == billing.AwaitingCustomer {
			i.State = AwaitingCustomer
		}
		i.Until, i.Code = r.Until, r.Reason
		i.Due, i.Owner, i.Lease = now.Add(lookSoon), "", time.Time{}
		return
	}
	i.State = Sent
	if i.ReadOnly {
		i.State = Reconciling
	}
	j.lease(i, now)
}

// lookSoon is when an intent is looked at that waits for steps which were
// answered before.
const lookSoon = time.Minute

// Await notes that step n waits for the customer (or, with Processing, for the
// provider), and looks again at look. Independent steps follow at once one that
// the provider is processing.
func (j *Journal) Await(ctx context.Context, i *Intent, n int, r billing.Result, look time.Time) error {
	return j.write(ctx, i, func(i *Intent, now time.Time) {
		i.Steps[n].Result = &r
		if next := i.Next(); next != n && i.Steps[next].Result == nil {
			j.goOn(i, next, now)
			return
		}
		i.State = AwaitingCustomer
		if r.State == billing.Processing {
			i.State = Processing
		}
		i.Until, i.Code = r.Until, r.Reason
		i.Due, i.Owner, i.Lease = look.UTC(), "", time.Time{}
	})
}

// Unsure notes that the step in hand has no definite answer, because of cause
// where there is a new one, and looks again at look. readOnly forbids, for good, to send it again.
func (j *Journal) Unsure(ctx context.Context, i *Intent, readOnly bool, cause error, look time.Time) error {
	return j.write(ctx, i, func(i *Intent, now time.Time) {
		i.State = Unknown
		if readOnly {
			i.State = Reconciling
			// A clock that went backwards would count from a time to come.
			if n := i.Next(); n < len(i.Steps) {
				s := &i.Steps[n]
				if s.SentAt.After(now) {
					s.SentAt = now
				}
				if s.LastSent.After(now) {
					s.LastSent = now
				}
			}
		}
		if cause != nil {
			i.LastError = text(cause)
		}
		if billing.FaultOf(cause) == billing.Refused {
			i.Code = billing.CodeOf(cause)
		}
		i.Due, i.Owner, i.Lease = look.UTC(), "", time.Time{}
	})
}

// Settle ends the intent in a terminal state.
func (j *Journal) Settle(ctx context.Context, i *Intent, state State, code string, cause error) error {
	if !state.Terminal() {
		return fmt.Errorf("journal: %s does not settle an intent", state)
	}
	return j.write(ctx, i, func(i *Intent, _ time.Time) {
		i.State, i.Code, i.LastError = state, code, text(cause)
	})
}

// maxNote is the longest note of an operator that is kept, in bytes.
const maxNote = 1000

// SettleManual ends an intent that waits for a person in the state that the
// person found it in at the provider: Succeeded, Partial or NotApplied. by
// names the operator, note says what they saw, at most 1,000 bytes of it.
// ErrNotManual where the intent is in another state, store.ErrNotFound where
// there is none.
func (j *Journal) SettleManual(ctx context.Context, customer, id string, state State, by, note string) (Intent, error) {
	switch {
	case state != Succeeded && state != Partial && state != NotApplied:
		return Intent{}, fmt.Errorf("journal: an operator settles an intent as %s, %s or %s, not as %q", Succeeded, Partial, NotApplied, state)
	case by == "":
		return Intent{}, errors.New("journal: say who settles the intent")
	}
	i, err := j.Get(ctx, customer, id)
	if err != nil {
		return Intent{}, err
	}
	if i.State != Manual {
		return i, fmt.Errorf("%w: it is %s", ErrNotManual, i.State)
	}
	err = j.write(ctx, &i, func(i *Intent, _ time.Time) {
		i.State, i.SettledBy, i.Note = state, by, note[:min(len(note), maxNote)]
	})
	if errors.Is(err, ErrMoved) { // another operator was faster
		err = fmt.Errorf("%w: %w", ErrNotManual, err)
	}
	return i, err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error()
	return s[:min(len(s), 1000)]
}

// Take gives the caller the intent to work on, or ErrLeased where somebody
// else does. One that a restored store brought back is ReadOnly from then on,
// and so is one that was left for so long that its next step would surprise.
func (j *Journal) Take(ctx context.Context, customer, id string) (Intent, error) {
	var i Intent
	var back time.Time
	err := j.Store.View(ctx, func(tx store.Tx) (err error) {
		if i, err = j.get(tx, customer, id); err == nil {
			back, err = Restored(tx)
		}
		return err
	})
	if err != nil {
		return Intent{}, err
	}
	if i.State.Terminal() {
		return i, nil
	}
	if !j.free(&i, j.Now()) {
		return i, ErrLeased
	}
	err = j.write(ctx, &i, func(i *Intent, now time.Time) {
		j.lease(i, now)
		if restored := !i.Restored.Equal(back); !i.ReadOnly && (restored || left(i, now)) {
			readOnly(i, now, restored)
		}
	})
	return i, err
}

const (
	// rollForward is how long after an intent was last written its next step, if
	// it was never sent, may follow.
	rollForward = 10 * time.Minute
	// followUp is how long after a step was first sent without an answer that was
	// written down the next one may follow: less than providers keep idempotency
	// keys.
	followUp = 12 * time.Hour
)

// left reports whether nothing of an intent may be sent any more because of the
// time that has passed: the customer does not expect it now, and if the store
// was put back unnoticed, it may have been sent already, too long ago for its
// key to tell. now need not be of the clock that the intent was written with.
func left(i *Intent, now time.Time) bool {
	n := i.Next()
	if n == len(i.Steps) {
		return false
	}
	since, bound := i.Updated, rollForward
	switch s := i.Steps[n]; {
	case s.Result != nil || i.State == Planned:
		return false // waits for the customer, or ends without having been sent
	case !s.SentAt.IsZero():
		since, bound = s.SentAt, followUp
	}
	age := now.Sub(since)
	return age < -time.Minute || age > bound
}

// readOnly notes that an intent is from before the store was put back, or was
// left for long: each step that is not done may have been sent until now, whatever stands here.
func readOnly(i *Intent, now time.Time, restored bool) {
	i.ReadOnly = true
	for n := range i.Steps {
		s := &i.Steps[n]
		if s.settled() {
			continue
		}
		if restored || s.SentAt.IsZero() {
			s.LastSent = now
		}
		if s.SentAt.IsZero() {
			s.SentAt = now
		}
	}
	if i.State.Locks() {
		i.State = Reconciling
	}
}

// Wake makes a customer's open intents due now, in the caller's transaction,
// except those that somebody works on: the provider said that something
// changed. An intent's Rev stays, so that nobody who read it is disturbed.
func (j *Journal) Wake(tx store.Tx, customer string, now time.Time) error {
	list, err := j.indexed(tx, store.Key(j.Tenant, "open", customer), wakeAtOnce)
	if err != nil {
		return err
	}
	for _, i := range list {
		if i.State.Terminal() || !j.free(&i, now) || !i.Due.After(now) {
			continue
		}
		if err := tx.Delete(j.workKey(i.Due, i.Customer, i.ID)); err != nil {
			return err
		}
		i.Due = now.UTC()
		value, err := json.Marshal(i)
		if err != nil {
			return err
		}
		if err := tx.Put(j.intentKey(i.Customer, i.ID), value); err != nil {
			return err
		}
		if err := tx.Put(j.workKey(i.Due, i.Customer, i.ID), []byte(i.ID)); err != nil {
			return err
		}
	}
	return nil
}

// wakeAtOnce bounds what one Wake writes; the others are looked at in turn.
const wakeAtOnce = 20

// indexed reads the intents that the entries under prefix name.
func (j *Journal) indexed(tx store.Tx, prefix []byte, limit int) ([]Intent, error) {
	entries, err := tx.Scan(prefix, nil, limit, false)
	if err != nil {
		return nil, err
	}
	list := make([]Intent, 0, len(entries))
	for _, e := range entries {
		parts, ok := store.Parts(e.Key)
		if !ok || len(parts) != 4 {
			return nil, fmt.Errorf("journal: malformed key in an index: %q", e.Key)
		}
		i, err := j.get(tx, parts[2], parts[3])
		if err != nil {
			return nil, err
		}
		list = append(list, i)
	}
	return list, nil
}

// Open lists a customer's intents that are not settled, the newest first.
// Where there are more than limit it is not said which ones.
func (j *Journal) Open(ctx context.Context, customer string, limit int) ([]Intent, error) {
	return j.listed(ctx, store.Key(j.Tenant, "open", customer), limit)
}

// Manual lists the tenant's intents that wait for an operator, the newest
// first. Where there are more than limit it is not said which ones.
func (j *Journal) Manual(ctx context.Context, limit int) ([]Intent, error) {
	return j.listed(ctx, store.Key(j.Tenant, "manual"), limit)
}

func (j *Journal) listed(ctx context.Context, prefix []byte, limit int) ([]Intent, error) {
	var list []Intent
	err := j.Store.View(ctx, func(tx store.Tx) (err error) {
		list, err = j.indexed(tx, prefix, limit)
		return err
	})
	slices.SortFunc(list, func(a, b Intent) int { return b.Created.Compare(a.Created) })
	return list, err
}

// Index writes the entries of the indexes that intents of an earlier build
// lack. It reads all of the tenant's intents the first time it is called on a
// store and nothing after that.
func (j *Journal) Index(ctx context.Context) error {
	marker := store.Key(j.Tenant, "intents-indexed")
	values, err := j.Store.GetAll(ctx, marker)
	if err != nil || values[0] != nil {
		return err
	}
	const page = 100
	var from []byte
	for {
		var entries []store.Entry
		err := j.Store.View(ctx, func(tx store.Tx) (err error) {
			entries, err = tx.Scan(store.Key(j.Tenant, "intent"), from, page, false)
			return err
		})
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := j.indexAgain(ctx, e.Value); err != nil {
				return err
			}
		}
		if len(entries) < page {
			break
		}
		from = append(entries[len(entries)-1].Key, 0)
	}
	return j.Store.Update(ctx, func(tx store.Tx) error { return tx.Put(marker, []byte{1}) })
}

// indexAgain writes an intent's entries as it is now.
func (j *Journal) indexAgain(ctx context.Context, value []byte) error {
	var old Intent
	if err := json.Unmarshal(value, &old); err != nil {
		return fmt.Errorf("journal: reading an intent: %w", err)
	}
	if old.State.Terminal() && old.State != Manual {
		return nil
	}
	return j.Store.Update(ctx, func(tx store.Tx) error {
		i, err := j.get(tx, old.Customer, old.ID)
		if err != nil {
			return err
		}
		return j.index(tx, &i, false)
	})
}

// Leave gives an intent that was taken back as it is, to be looked at again at
// look.
func (j *Journal) Leave(ctx context.Context, i *Intent, look time.Time) error {
	return j.write(ctx, i, func(i *Intent, _ time.Time) {
		i.Due, i.Owner, i.Lease = look.UTC(), "", time.Time{}
	})
}

func (j *Journal) free(i *Intent, now time.Time) bool {
	return i.Owner == "" || !now.Before(i.Lease) || j.Exclusive && i.Owner != j.Process ||
		i.Lease.After(now.Add(j.LeaseTime+clockSlack))
}

// Ref names an intent.
type Ref struct{ Customer, ID string }

// Due lists at most limit of the tenant's intents that wait to be looked at,
// the longest due first. With all it lists those that are not due too; that is
// for the start, which looks for what gone processes left behind.
func (j *Journal) Due(ctx context.Context, limit int, all bool) ([]Ref, error) {
	now := j.Now()
	var refs []Ref
	err := j.Store.View(ctx, func(tx store.Tx) error {
		refs = nil
		if all {
			return j.scan(tx, &refs, nil, "", limit)
		}
		if err := j.scan(tx, &refs, nil, store.TimePart(now.UnixNano()), limit); err != nil {
			return err
		}
		// Nothing is put off that long: the clock went backwards since.
		return j.scan(tx, &refs, store.Key("work", store.TimePart(now.Add(maxWait+j.LeaseTime).UnixNano())), "", limit)
	})
	return refs, err
}

// scan appends the tenant's entries from a key on, up to those due at last, or
// all where last is "". Entries of all tenants stand in one order.
func (j *Journal) scan(tx store.Tx, refs *[]Ref, from []byte, last string, limit int) error {
	const page = 256
	prefix := store.Key("work")
	for len(*refs) < limit {
		entries, err := tx.Scan(prefix, from, page, false)
		if err != nil {
			return err
		}
		for _, e := range entries {
			parts, ok := store.Parts(e.Key)
			if !ok || len(parts) != 5 {
				return errors.New("journal: malformed key under work")
			}
			if last != "" && parts[1] > last {
				return nil
			}
			if parts[2] == j.Tenant && len(*refs) < limit {
				*refs = append(*refs, Ref{Customer: parts[3], ID: parts[4]})
			}
		}
		if len(entries) < page {
			return nil
		}
		from = append(entries[len(entries)-1].Key, 0)
	}
	return nil
}

// List reads a customer's intents, in no order that matters; customer "" reads
// all of the tenant's.
func (j *Journal) List(ctx context.Context, customer string, limit int) ([]Intent, error) {
	prefix := store.Key(j.Tenant, "intent")
	if customer != "" {
		prefix = store.Key(j.Tenant, "intent", customer)
	}
	var list []Intent
	err := j.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		entries, err := tx.Scan(prefix, nil, limit, false)
		if err != nil {
			return err
		}
		for _, e := range entries {
			var i Intent
			if err := json.Unmarshal(e.Value, &i); err != nil {
				return fmt.Errorf("journal: reading an intent: %w", err)
			}
			list = append(list, i)
		}
		return nil
	})
	return list, err
}

// Busy returns, in one read, the intents that hold objects of a customer, by
// object. An object that nobody holds is not in it.
func (j *Journal) Busy(ctx context.Context, customer string, objects ...string) (map[string]string, error) {
	keys := make([][]byte, len(objects))
	for n, o := range objects {
		keys[n] = j.lockKey(customer, o)
	}
	values, err := j.Store.GetAll(ctx, keys...)
	if err != nil {
		return nil, err
	}
	held := map[string]string{}
	for n, v := range values {
		if v != nil {
			held[objects[n]] = string(v)
		}
	}
	return held, nil
}

// StepKey is the idempotency key of step n of an intent.
func StepKey(intent string, n int) string { return intent + "." + strconv.Itoa(n) }

// Orphan reports whether an intent is due, or was left behind by a process
// that is gone: what recovery looks at when the portal starts.
func (j *Journal) Orphan(ctx context.Context, ref Ref) bool {
	i, err := j.Get(ctx, ref.Customer, ref.ID)
	if err != nil || i.State.Terminal() {
		return false
	}
	now := j.Now()
	return !now.Before(i.Due) || i.Due.After(now.Add(maxWait+j.LeaseTime)) || i.Owner != "" && j.free(&i, now)
}
