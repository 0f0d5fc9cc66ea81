package billing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Provider is the system that holds subscriptions and money.
//
// Every method about a customer takes the customer's id, and an adapter
// refuses an object that is not that customer's with a NotFound error before
// it changes anything: it holds a key that can touch every customer, so
// ownership is checked here as well as above. Reads fail with NotFound or
// Unavailable.
//
// Methods are safe for concurrent use and start no goroutine that outlives
// them. They honour ctx.
type Provider interface {
	// Capabilities are constant for the provider's life.
	Capabilities() Capabilities

	// Prices lists the active recurring prices that can be sold, with lookup
	// keys and metadata: what the catalogue is made from.
	Prices(ctx context.Context) ([]Price, error)

	// Find returns the customer with that id. NotFound where there is none or
	// it was deleted.
	Find(ctx context.Context, customer string) (Customer, error)

	// Search returns the customers with exactly that reference or e-mail,
	// newest first, at most 20: for the vendor's staff. An empty list where
	// there is none.
	Search(ctx context.Context, q CustomerQuery) ([]Customer, error)

	// Account reads what the overview shows. Independent reads run in
	// parallel; the longest chain of dependent calls is two. A section that
	// cannot be read is named in Failed, and the rest is there.
	Account(ctx context.Context, customer string) (Account, error)

	// Invoices reads one page, newest first, without drafts. cursor is "" or
	// one that an earlier page gave. limit is 1 to 100.
	Invoices(ctx context.Context, customer, cursor string, limit int) (InvoicePage, error)

	// Invoice reads one invoice with everything about it. NotFound also for a
	// draft.
	Invoice(ctx context.Context, customer, invoice string) (InvoiceDetail, error)

	// Document opens the PDF of an invoice or of a credit note. The caller
	// closes Body. "not_ready" is the code of an Unavailable error where the
	// provider has not made it yet.
	Document(ctx context.Context, customer string, ref DocumentRef) (Document, error)

	// Usage reads what a subscription's metered items counted. No meters where
	// it has none.
	Usage(ctx context.Context, customer string, q UsageQuery) (Usage, error)

	// Balance reads the customer's balance, credit grants and one page of what
	// moved them. cursor is "" or one that an earlier page gave. limit is 1 to
	// 100.
	Balance(ctx context.Context, customer, cursor string, limit int) (BalancePage, error)

	// Preview works out what action would do and freezes the steps that do
	// it. at is the proration moment to use, or zero to choose the provider's
	// now; the same at gives the same numbers as long as nothing else changed.
	// It changes nothing. A change that the provider would not carry out is a
	// Refused error.
	Preview(ctx context.Context, customer string, action Action, at time.Time) (Preview, error)

	// Execute carries out one step. It has effect at most once per key within
	// Capabilities.KeyWindow. A nil error is a definite answer. Errors say
	// which of three things happened: Refused, Retryable or Unknown; an error
	// of any other make counts as Unknown.
	Execute(ctx context.Context, customer string, step Step, key string) (Result, error)

	// Outcome reads whether a step that was sent under key took effect, by
	// object version and target state. It changes nothing. For a step whose
	// Result was AwaitingCustomer or Processing it says Applied with a new
	// Result: in the same state while it still waits, Done once the customer has
	// done their part; and NotApplied once they no longer can.
	Outcome(ctx context.Context, customer string, step Step, key string, last *Result) (Outcome, Result, error)

	// ParseEvent reads what the provider posted to the portal's webhook: header
	// and body are those of the request, the body byte for byte. now is the
	// portal's clock. It asks nobody. ErrNoWebhook where there is no secret to
	// check with; an error that wraps ErrSignature where the request was not
	// proven to be the provider's, and now; one that wraps ErrEvent where it is
	// and cannot be read, or is not about this account. Errors hold no secret
	// and no part of the body.
	ParseEvent(header http.Header, body []byte, now time.Time) (Event, error)
}

// Event is the provider's word that something happened. It says "look again"
// and nothing else: events come late, twice, in any order and sometimes never,
// so nothing but the reason to read anew is taken from one.
type Event struct {
	// ID is the same however often the event is sent.
	ID string
	// Type is the provider's name of what happened: "invoice.paid".
	Type string
	// Customer is whose account it may have changed; "" where it changed
	// nobody's, or nothing that the portal shows.
	Customer string
	// Invoice is the invoice that it is about, or "".
	Invoice  string
	Created  time.Time
	LiveMode bool
}

var (
	// ErrSignature says that a posted event was not proven to come from the
	// provider just now: no signature, a wrong one, or one that is too old or
	// from the future.
	ErrSignature = errors.New("billing: event is not signed by the provider")
	// ErrNoWebhook says that no secret to check events with is configured.
	ErrNoWebhook = errors.New("billing: no webhook secret is configured")
	// ErrEvent says that the provider signed what it posted, and it is not an
	// event that this provider can be asked about.
	ErrEvent = errors.New("billing: not an event of this account")
)

// Outcome is what a provider says about a step that was sent.
type Outcome string

const (
	Applied       Outcome = "applied"
	NotApplied    Outcome = "not_applied"
	OutcomeUnsure Outcome = "unknown"
)

// Capabilities is what a provider can do, as one value.
type Capabilities struct {
	// Name is shown to customers: "Stripe".
	Name string
	// LiveMode is false where no real money moves.
	LiveMode bool
	// KeyWindow is how long after its first use a key is safe to send again.
	KeyWindow time.Duration
	// Exponent is how many decimals the provider's minor unit of a currency
	// (lower case) has. It is the provider's table, not ISO 4217's.
	Exponent func(currency string) int
}

// CustomerQuery names a customer. One member is set.
type CustomerQuery struct {
	// Reference is the vendor's own id of the customer, or the provider's.
	Reference string
	Email     string
}

// DocumentRef names a document: the invoice's own, or that of one of its credit
// notes.
type DocumentRef struct {
	Invoice    string
	CreditNote string
}

// Document is an open file.
type Document struct {
	ContentType string
	Size        int64 // -1 where unknown
	Body        io.ReadCloser
}

// Fault says what an error means for the customer's money.
type Fault string

const (
	// Refused: a definite no. Nothing changed.
	Refused Fault = "refused"
	// Retryable: nothing is known to have changed; the same step may be sent
	// again with the same key.
	Retryable Fault = "retryable"
	// Unknown: the step may have changed something.
	Unknown Fault = "unknown"
	// NotFound: there is no such object, or it is another customer's.
	NotFound Fault = "not_found"
	// Unavailable: a read did not get an answer.
	Unavailable Fault = "unavailable"
)

// Error is an error from a provider.
type Error struct {
	Fault Fault
	// Code is a stable word: "card_declined", "insufficient_funds",
	// "expired_card", "authentication_required", "currency_mismatch",
	// "rate_limit", "not_changeable", "invalid_request", "in_use",
	// "last_payment_method", "payment_method_required", "tax_id_invalid", "not_ready".
	Code string
	// Param names the object or parameter, for logs and messages at a field.
	Param string
	// RequestID is the provider's id of the call, for the log.
	RequestID string
	// Err is the cause, for the log only: customers see a text for Code.
	Err error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("provider: %s", e.Fault)
	if e.Code != "" {
		s += ": " + e.Code
	}
	if e.Param != "" {
		s += " (" + e.Param + ")"
	}
	if e.RequestID != "" {
		s += " [request " + e.RequestID + "]"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// FaultOf returns the fault of err: Unknown for an error of any other make,
// "" for nil.
func FaultOf(err error) Fault {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Fault
	}
	return Unknown
}

// CodeOf returns the code of err, or "".
func CodeOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}
