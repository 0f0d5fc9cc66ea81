package portalcore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
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
	Code      string       `json:"code,omitempty"`
	LastError string       `json:"last_error,omitempty"`
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
}

func intentStatus(i *journal.Intent) IntentStatus {
	s := IntentStatus{
		ID: i.ID, Reference: i.Reference(), Customer: i.Customer, Actor: cmp.Or(i.Actor.ID, i.Actor.Email, i.Actor.Name),
		Action: string(i.Action.Kind), Object: i.Object, State: string(i.State),
		Created: i.Created, Updated: i.Updated, Code: i.Code, LastError: i.LastError, Steps: []StepStatus{},
	}
	for _, st := range i.Steps {
		s.Steps = append(s.Steps, StepStatus{
			Key: st.Key, Kind: st.Kind, Object: st.Object, SentAt: st.SentAt, Attempts: st.Attempts, Done: st.Done,
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
	case q.Customer == "" && q.State == StateOpen:
		err = p.openIntents(ctx, q, &page)
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

// openIntents finds them by the work there is, however long the journal is.
func (p *Portal) openIntents(ctx context.Context, q IntentQuery, page *IntentPage) error {
	if q.After != "" {
		return &InputError{"after", "the list of open intents is not continued: ask for one customer's"}
	}
	refs, err := p.journal.Due(ctx, q.Limit+1, true)
	if err != nil {
		return err
	}
	if len(refs) > q.Limit {
		refs, page.Truncated = refs[:q.Limit], true
	}
	for _, ref := range refs {
		i, err := p.journal.Get(ctx, ref.Customer, ref.ID)
		if errors.Is(err, store.ErrNotFound) || err == nil && i.State.Terminal() {
			continue // settled meanwhile
		}
		if err != nil {
			return err
		}
		page.Intents = append(page.Intents, intentStatus(&i))
	}
	return nil
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
			if q.State == "" || q.State == string(i.State) || q.State == StateOpen && !i.State.Terminal() {
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
	s.OpenIntents = len(open)
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
