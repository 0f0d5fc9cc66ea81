package portalcore

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/outbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/vendorapi"
)

// What operators ask of a running portal. Everything here is bounded, names the
// operator where it changes something, and is safe beside requests and beside
// other nodes.

const (
	// DefaultList and MaxList bound how much one listing has.
	DefaultList = 100
	MaxList     = 1000
	// countTo is how far Status counts.
	countTo = 1000
	// scanAtMost is how many records one filtered listing looks at.
	scanAtMost = 5000

	maxOperator = 64
	maxNote     = 500
)

// InputError says what is wrong with what an operator asked for.
type InputError struct{ Field, Problem string }

func (e *InputError) Error() string { return e.Field + ": " + e.Problem }

// CheckOperator checks the name an operator gives.
func CheckOperator(by string) error { return checkText("by", by, 1, maxOperator) }

func checkText(field, text string, shortest, longest int) error {
	if len(strings.TrimSpace(text)) < shortest || len(text) > longest || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return &InputError{field, fmt.Sprintf("want %d to %d bytes of text on one line", shortest, longest)}
	}
	return nil
}

// IntentStatus is what operators see of an intent.
type IntentStatus struct {
	ID        string    `json:"id"`
	Reference string    `json:"reference"` // what the customer's receipt shows
	Customer  string    `json:"customer"`
	Actor     string    `json:"actor,omitempty"`
	Action    string    `json:"action"`
	Object    string    `json:"object"`
	State     string    `json:"state"`
	Created   time.Time `json:"created"`
	Updated   time.Time `json:"updated"`
	// Code says why it was refused, or what it waits for; LastError is the
	// provider's last word, for operators only.
	Code      string `json:"code,omitempty"`
	LastError string `json:"last_error,omitempty"`
	// ReadOnly is set where the store was put back to an earlier state since:
	// nothing of it is sent again.
	ReadOnly bool `json:"read_only,omitempty"`
	// SettledBy and Note are the operator who settled it and what they wrote.
	SettledBy string       `json:"settled_by,omitempty"`
	Note      string       `json:"note,omitempty"`
	Steps     []StepStatus `json:"steps"`
}

// StepStatus is one provider call of an intent.
type StepStatus struct {
	// Key is the idempotency key that the provider got.
	Key      string    `json:"key"`
	Kind     string    `json:"kind"`
	Object   string    `json:"object"`
	SentAt   time.Time `json:"sent_at"`
	Attempts int       `json:"attempts"`
	Done     bool      `json:"done"`
	// State is where the step stands: one of the states of an intent.
	State string `json:"state"`
	Code  string `json:"code,omitempty"`
}

func intentStatus(i *journal.Intent) IntentStatus {
	s := IntentStatus{
		ID: i.ID, Reference: i.Reference(), Customer: i.Customer, Actor: cmp.Or(i.Actor.ID, i.Actor.Email, i.Actor.Name),
		Action: string(i.Action.Kind), Object: i.Object, State: string(i.State),
		Created: i.Created, Updated: i.Updated, Code: i.Code, LastError: i.LastError,
		ReadOnly: i.ReadOnly, SettledBy: i.SettledBy, Note: i.Note, Steps: []StepStatus{},
	}
	for n, st := range i.Steps {
		s.Steps = append(s.Steps, StepStatus{
			Key: st.Key, Kind: st.Kind, Object: st.Object, SentAt: st.SentAt, Attempts: st.Attempts, Done: st.Done,
			State: string(i.StateOf(n)), Code: st.Code,
		})
	}
	return s
}

// StateOpen, as the state of an IntentQuery, means every intent that the portal
// is not done with.
const StateOpen = "open"

// intentStates are what an IntentQuery takes.
var intentStates = []string{
	StateOpen, string(journal.Manual), string(journal.Planned), string(journal.Sent), string(journal.AwaitingCustomer),
	string(journal.Processing), string(journal.Unknown), string(journal.Reconciling), string(journal.Succeeded),
	string(journal.Refused), string(journal.Partial), string(journal.NotApplied), string(journal.Cancelled),
}

// IntentQuery says which intents to list.
type IntentQuery struct {
	// State is a journal.State or StateOpen; "" means all.
	State string
	// Customer is a customer's id; "" means all.
	Customer string
	// Limit is how many, 1 to MaxList. Default: DefaultList.
	Limit int
	// After is the Next of the page before.
	After string
}

// IntentPage is a part of a list, by creation.
type IntentPage struct {
	Intents []IntentStatus `json:"intents"`
	// Next continues the list where there is more; it can be set where this page
	// is short or empty.
	Next string `json:"next,omitempty"`
	// Truncated is set where there is more that cannot be continued: ask for one
	// customer's.
	Truncated bool `json:"truncated,omitempty"`
}

// Intents lists intents.
func (p *Portal) Intents(ctx context.Context, q IntentQuery) (IntentPage, error) {
	if q.State != "" && !slices.Contains(intentStates, q.State) {
		return IntentPage{}, &InputError{"state", fmt.Sprintf("%q is no state: there are %s", q.State, strings.Join(intentStates, ", "))}
	}
	limit, err := listLimit(q.Limit)
	if err != nil {
		return IntentPage{}, err
	}
	q.Limit = limit
	page := IntentPage{Intents: []IntentStatus{}}
	switch {
	case q.State == StateOpen && q.Customer == "":
		err = p.openIntents(ctx, q, &page)
	case q.State == StateOpen:
		err = p.indexedIntents(q, &page, func(n int) ([]journal.Intent, error) { return p.journal.Open(ctx, q.Customer, n) })
	case q.State == string(journal.Manual) && q.Customer == "":
		err = p.indexedIntents(q, &page, func(n int) ([]journal.Intent, error) { return p.journal.Manual(ctx, n) })
	default:
		err = p.scanIntents(ctx, q, &page)
	}
	if err != nil {
		return IntentPage{}, err
	}
	slices.SortStableFunc(page.Intents, func(a, b IntentStatus) int { return a.Created.Compare(b.Created) })
	return page, nil
}

func listLimit(n int) (int, error) {
	if n < 0 || n > MaxList {
		return 0, &InputError{"limit", fmt.Sprintf("want 1 to %d", MaxList)}
	}
	return cmp.Or(n, DefaultList), nil
}

var errNotContinued = &InputError{"after", "this list is not continued: ask for one customer's"}

// indexedIntents lists what an index of the journal has.
func (p *Portal) indexedIntents(q IntentQuery, page *IntentPage, read func(limit int) ([]journal.Intent, error)) error {
	if q.After != "" {
		return errNotContinued
	}
	list, err := read(q.Limit + 1)
	if err != nil {
		return err
	}
	if len(list) > q.Limit {
		list, page.Truncated = list[:q.Limit], true
	}
	for _, i := range list {
		page.Intents = append(page.Intents, intentStatus(&i))
	}
	return nil
}

// openIntents finds the tenant's by the work there is, however long the journal
// is.
func (p *Portal) openIntents(ctx context.Context, q IntentQuery, page *IntentPage) error {
	return p.indexedIntents(q, page, func(limit int) ([]journal.Intent, error) {
		refs, err := p.journal.Due(ctx, limit, true)
		if err != nil {
			return nil, err
		}
		var list []journal.Intent
		for _, ref := range refs {
			i, err := p.journal.Get(ctx, ref.Customer, ref.ID)
			if errors.Is(err, store.ErrNotFound) || err == nil && i.State.Terminal() {
				continue // settled meanwhile
			}
			if err != nil {
				return nil, err
			}
			list = append(list, i)
		}
		return list, nil
	})
}

func (p *Portal) scanIntents(ctx context.Context, q IntentQuery, page *IntentPage) error {
	page.Next = q.After
	for seen := 0; seen < scanAtMost && len(page.Intents) < q.Limit; {
		list, next, err := p.journal.Page(ctx, q.Customer, page.Next, q.Limit-len(page.Intents))
		if errors.Is(err, journal.ErrCursor) {
			return &InputError{"after", "want the next of the page before"}
		}
		if err != nil {
			return err
		}
		for _, i := range list {
			if q.State == "" || q.State == string(i.State) {
				page.Intents = append(page.Intents, intentStatus(&i))
			}
		}
		seen += len(list)
		if page.Next = next; next == "" {
			return nil
		}
	}
	return nil
}

// Settlement is what an operator found at the provider about an intent that
// could not be settled by reading.
type Settlement struct {
	// Intent is its id, or the reference on the customer's receipt.
	Intent string
	// Customer is whose it is. Optional, but where more than 1,000 wait.
	Customer string
	// State is journal.Succeeded, journal.Partial or journal.NotApplied.
	State string
	// By names the operator, Note says what they saw.
	By, Note string
}

// settledStates are what a Settlement takes.
var settledStates = []string{string(journal.Succeeded), string(journal.Partial), string(journal.NotApplied)}

// SettleManual ends an intent that waits for an operator. The customer's receipt
// says so from then on, and the vendor's backend hears of it.
// journal.ErrNotManual where the intent is in another state, store.ErrNotFound
// where there is none.
func (p *Portal) SettleManual(ctx context.Context, s Settlement) (IntentStatus, error) {
	fail := func(err error) (IntentStatus, error) { return IntentStatus{}, err }
	if !slices.Contains(settledStates, s.State) {
		return fail(&InputError{"state", fmt.Sprintf("%q: want one of %s", s.State, strings.Join(settledStates, ", "))})
	}
	if s.Intent == "" {
		return fail(&InputError{"intent", "want the id of an intent, or its reference"})
	}
	if err := errors.Join(CheckOperator(s.By), checkText("note", s.Note, 0, maxNote)); err != nil {
		return fail(err)
	}
	customer, id, err := p.findManual(ctx, s.Customer, s.Intent)
	if err != nil {
		return fail(err)
	}
	i, err := p.journal.SettleManual(ctx, customer, id, journal.State(s.State), s.By, s.Note)
	if err != nil {
		return fail(err)
	}
	p.log.Info("an operator settled an intent", zap.String("by", s.By), zap.String("intent", i.ID), zap.String("state", string(i.State)))
	p.wakeDelivery()
	return intentStatus(&i), nil
}

// findManual finds the intent that an operator names.
func (p *Portal) findManual(ctx context.Context, customer, name string) (_, id string, err error) {
	list, err := p.journal.Manual(ctx, MaxList)
	if err != nil {
		return "", "", err
	}
	var found []journal.Intent
	for _, i := range list {
		if (customer == "" || customer == i.Customer) && (i.ID == name || strings.EqualFold(i.Reference(), name)) {
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 1:
		return found[0].Customer, found[0].ID, nil
	case len(found) > 1:
		return "", "", &InputError{"intent", "that reference stands for several intents: give the whole id"}
	case customer == "":
		return "", "", fmt.Errorf("no intent %q waits for an operator: %w", name, store.ErrNotFound)
	}
	return customer, name, nil // the journal says what is wrong
}

// SessionStatus is what operators see of a session. Nobody can sign in with it.
type SessionStatus struct {
	ID       string    `json:"id"`
	Customer string    `json:"customer"`
	Actor    string    `json:"actor,omitempty"`
	Role     string    `json:"role"`
	Reason   string    `json:"reason,omitempty"` // of support
	Device   string    `json:"device"`
	Created  time.Time `json:"created"`
	Seen     time.Time `json:"seen"`
	Expires  time.Time `json:"expires"`
}

// Sessions lists a customer's live sessions, newest first.
func (p *Portal) Sessions(ctx context.Context, customer string) ([]SessionStatus, error) {
	if customer == "" {
		return nil, &InputError{"customer", "want the id of a customer"}
	}
	list, err := p.sessions.List(ctx, customer, MaxList)
	if err != nil {
		return nil, err
	}
	out := make([]SessionStatus, 0, len(list))
	for _, s := range list {
		out = append(out, SessionStatus{
			ID: s.ID(), Customer: s.Customer, Actor: cmp.Or(s.Actor.ID, s.Actor.Email, s.Actor.Name), Role: s.Role, Reason: s.Reason,
			Device: s.Device.String(), Created: s.Created, Seen: s.Seen, Expires: s.Expires,
		})
	}
	return out, nil
}

// CustomerStatus is what tells customers apart.
type CustomerStatus struct {
	ID        string `json:"id"`
	Name      string `json:"name,omitempty"`
	Email     string `json:"email,omitempty"`
	Reference string `json:"reference,omitempty"`
}

// Customers asks the provider for the customers with exactly that reference or
// e-mail, newest first, at most 20. A Retryable or Unavailable billing.Error
// where it does not answer.
func (p *Portal) Customers(ctx context.Context, q billing.CustomerQuery) ([]CustomerStatus, error) {
	if param, why := vendorapi.CheckQuery(q); param != "" {
		return nil, &InputError{param, why}
	}
	list, err := p.opt.Provider.Search(ctx, q)
	if err != nil {
		return nil, err
	}
	out := make([]CustomerStatus, 0, len(list))
	for _, c := range list {
		out = append(out, CustomerStatus{ID: c.ID, Name: c.Name, Email: c.Email, Reference: c.Reference})
	}
	return out, nil
}

// Revocation says whose sessions end: exactly one of Session, Customer and All,
// or a Session with the Customer whose it has to be.
type Revocation struct {
	Session, Customer string
	All               bool
	// By names the operator.
	By string
}

// RevokeSessions ends sessions, on their next request on every node. known is
// false where all of a customer's were to end and nobody with that id was ever
// here, which may be a slip of the pen. session.ErrNone where there is no such
// session.
func (p *Portal) RevokeSessions(ctx context.Context, r Revocation) (known bool, err error) {
	if err := CheckOperator(r.By); err != nil {
		return false, err
	}
	if r.All == (r.Session != "" || r.Customer != "") {
		return false, &InputError{"session, customer, all", "want one of them"}
	}
	// The order is written down first: an order that could not be carried out is
	// told to the operator, one that left no trace to nobody.
	if err := p.auditOperator(ctx, "sessions_revoked", r.By, r.Customer, r.Session, ""); err != nil {
		return false, err
	}
	what := "all of the tenant's"
	known = true
	switch {
	case r.All:
		if err := p.sessions.RevokeTenant(ctx); err != nil {
			return false, err
		}
	case r.Session != "":
		what = r.Session
		if err := p.sessions.Revoke(ctx, r.Customer, r.Session); err != nil {
			return false, err
		}
	default:
		what = "all of " + r.Customer
		if known, err = p.sessions.Known(ctx, r.Customer); err != nil {
			return false, err
		}
		if err := p.sessions.RevokeCustomer(ctx, r.Customer); err != nil {
			return false, err
		}
	}
	p.log.Info("an operator ended sessions", zap.String("by", r.By), zap.String("sessions", what), zap.Bool("known", known))
	return known, nil
}

// auditOperator writes down what an operator orders.
func (p *Portal) auditOperator(ctx context.Context, event, by, customer, object, note string) error {
	var b [10]byte
	if _, err := io.ReadFull(p.opt.Rand, b[:]); err != nil {
		return fmt.Errorf("making an id: %w", err)
	}
	rec := audit.Record{
		ID: event + "-" + hex.EncodeToString(b[:]), Time: p.opt.Now().UTC(), Customer: customer,
		Actor: link.Actor{ID: "operator:" + by}, Role: "operator", Event: event, Object: object, By: by, Note: note,
	}
	return p.opt.Store.Update(ctx, func(tx store.Tx) error { return audit.Put(tx, p.tenant.Name, rec) })
}

// NoteRestored writes into the tenant's audit trail that an operator put the
// store back to an earlier state (store.MarkRestored).
func (p *Portal) NoteRestored(ctx context.Context, by, note string) error {
	if err := errors.Join(CheckOperator(by), checkText("note", note, 0, maxNote)); err != nil {
		return err
	}
	return p.auditOperator(ctx, "store_restored", by, "", "", note)
}

// ErrNoEvents says that the tenant tells nobody of events.
var ErrNoEvents = errors.New("the tenant has no events block, so it sends no events")

// DeadEvents lists the events that the vendor's backend did not take, the one
// that was given up last first. limit is 1 to MaxList, 0 means DefaultList.
func (p *Portal) DeadEvents(ctx context.Context, limit int) ([]outbox.DeadEvent, error) {
	if p.outbox == nil {
		return nil, ErrNoEvents
	}
	limit, err := listLimit(limit)
	if err != nil {
		return nil, err
	}
	list, err := p.outbox.Dead(ctx, limit)
	if list == nil {
		list = []outbox.DeadEvent{}
	}
	return list, err
}

// ResendEvents sends a dead event again, or with id "" all of them, and reports
// how many. outbox.ErrNoEvent where there is none with that id.
func (p *Portal) ResendEvents(ctx context.Context, id, by string) (int, error) {
	if p.outbox == nil {
		return 0, ErrNoEvents
	}
	if err := CheckOperator(by); err != nil {
		return 0, err
	}
	if err := p.auditOperator(ctx, "events_resent", by, "", id, ""); err != nil {
		return 0, err
	}
	n, err := p.outbox.Resend(ctx, id)
	if n > 0 {
		p.log.Info("an operator sends dead events again", zap.String("by", by), zap.Int("events", n))
		wake(p.wakeDeliver)
	}
	return n, err
}

// Status says how a tenant is doing.
type Status struct {
	Tenant   string `json:"tenant"`
	Origin   string `json:"origin"`
	Provider string `json:"provider"`
	LiveMode bool   `json:"live_mode"`
	// Selling is false until the provider has said what the plans cost; nothing
	// can be changed until then.
	Selling bool `json:"selling"`
	// OpenIntents are not settled yet, ManualIntents wait for an operator. Both
	// are counted up to 1,000.
	OpenIntents   int `json:"open_intents"`
	ManualIntents int `json:"manual_intents"`
	// Events says whether the vendor's backend is told of events, and DeadEvents
	// how many it did not take, counted up to 1,000.
	Events     bool `json:"events"`
	DeadEvents int  `json:"dead_events"`
}

// Status looks at the tenant's store.
func (p *Portal) Status(ctx context.Context) (Status, error) {
	caps := p.opt.Provider.Capabilities()
	s := Status{
		Tenant: p.tenant.Name, Origin: p.tenant.Origin, Provider: caps.Name, LiveMode: caps.LiveMode,
		Selling: p.catalogue.Load() != nil,
	}
	open, err := p.journal.Due(ctx, countTo, true)
	if err != nil {
		return Status{}, err
	}
	manual, err := p.journal.Manual(ctx, countTo)
	if err != nil {
		return Status{}, err
	}
	s.OpenIntents, s.ManualIntents = len(open), len(manual)
	if p.outbox != nil {
		dead, err := p.outbox.Dead(ctx, countTo)
		if err != nil {
			return Status{}, err
		}
		s.Events, s.DeadEvents = true, len(dead)
	}
	return s, nil
}

// sessionSecrets are the kinds of records that a backup leaves out: who has
// them could act as a customer who is signed in, or make links. All of them are
// worth nothing once the store was restored.
var sessionSecrets = []string{
	"session", "pin", "card-page", // a customer who is signed in
	"idempotency", // links that were made
	"link-keys",   // what makes them; the portal never exports its keys
}

// LeaveOutOfBackup reports whether a backup leaves a record out, as
// store.BackupOptions wants it: the secrets of sessions and links.
func LeaveOutOfBackup(key []byte) bool {
	parts, ok := store.Parts(key)
	if !ok || len(parts) < 2 || parts[0] == "" || parts[0] == "work" {
		return false
	}
	if parts[1] == "sweep" && len(parts) == 4 {
		// When it expires, and the key of what does.
		return LeaveOutOfBackup([]byte(parts[3]))
	}
	return slices.Contains(sessionSecrets, parts[1])
}
