package sandbox

import (
	"fmt"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Call is what every operation that changes something takes besides its
// parameters.
type Call struct {
	// Key is the idempotency key, at most 255 bytes, or "" for a call without
	// one. See Ledger for what a key does.
	Key string
	// Replayed, where not nil, is set to whether the answer is a saved one
	// (Stripe's header Idempotent-Replayed).
	Replayed *bool
}

// ErrorType is Stripe's error.type.
type ErrorType string

// The error types that the ledger uses (docs.stripe.com/api/errors).
const (
	// InvalidRequest: the call was not carried out. It is not saved under its
	// key.
	InvalidRequest ErrorType = "invalid_request_error"
	// CardError: the call was carried out and the card did not pay. It is
	// saved under its key.
	CardError ErrorType = "card_error"
	// IdempotencyError: the key was used with other parameters.
	IdempotencyError ErrorType = "idempotency_error"
)

// Error is a definite no from the ledger, in the shape of Stripe's error
// object. Any other error comes from the store.
type Error struct {
	Status        int       `json:"status"` // the HTTP status Stripe would answer with
	Type          ErrorType `json:"type"`
	Code          string    `json:"code"` // "resource_missing", "card_declined", …
	DeclineCode   string    `json:"decline_code,omitempty"`
	Param         string    `json:"param,omitempty"`
	Message       string    `json:"message"`
	PaymentIntent string    `json:"payment_intent,omitempty"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("ledger: %s %s: %s", e.Type, e.Code, e.Message)
}

// CustomerParams make or change a customer; nil members stay as they are.
type CustomerParams struct {
	// ID chooses the id, on creation only. Default: a random one.
	ID               string            `json:"id,omitempty"`
	Name             *string           `json:"name,omitempty"`
	Email            *string           `json:"email,omitempty"`
	Phone            *string           `json:"phone,omitempty"`
	Address          *billing.Address  `json:"address,omitempty"`
	PreferredLocales []string          `json:"preferred_locales"`  // an empty list removes them
	Metadata         map[string]string `json:"metadata,omitempty"` // merged; "" removes a key
	// DefaultPaymentMethod must be attached to the customer; "" removes it.
	DefaultPaymentMethod *string `json:"default_payment_method,omitempty"`
	// TaxPercent is 0 to 100 with at most 4 decimals.
	TaxPercent *decimal.Decimal `json:"tax_percent,omitempty"`
	// InvoiceFields take the place of all that are there.
	InvoiceFields *[]billing.InvoiceField `json:"invoice_fields,omitempty"`
}

// ProductParams make a product.
type ProductParams struct {
	ID       string            `json:"id,omitempty"`
	Name     string            `json:"name"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// PriceParams make a price.
type PriceParams struct {
	ID            string            `json:"id,omitempty"`
	Product       string            `json:"product"`
	Currency      string            `json:"currency"`
	UnitAmount    decimal.Decimal   `json:"unit_amount"`
	Interval      billing.Interval  `json:"interval"`
	IntervalCount int               `json:"interval_count,omitempty"` // default 1; at most three years
	LookupKey     string            `json:"lookup_key,omitempty"`     // unique
	Metadata      map[string]string `json:"metadata,omitempty"`
	// Meter makes the price metered.
	Meter string `json:"meter,omitempty"`
	// Tiers, lowest first, the last one without UpTo, need TiersMode and take
	// the place of UnitAmount.
	Tiers     []billing.Tier    `json:"tiers,omitempty"`
	TiersMode billing.TiersMode `json:"tiers_mode,omitempty"`
}

// PriceFilter selects prices; zero members select all.
type PriceFilter struct {
	Active     *bool
	LookupKeys []string
	Product    string
}

// ItemParams is one entry of items in a subscription call. As at Stripe, an
// entry without ID adds an item, a new Price without Quantity sets the
// quantity to 1, and items not named stay.
type ItemParams struct {
	ID       string `json:"id,omitempty"`
	Price    string `json:"price,omitempty"`
	Quantity *int64 `json:"quantity,omitempty"`
	Deleted  bool   `json:"deleted,omitempty"`
}

// ProrationBehavior is Stripe's proration_behavior.
type ProrationBehavior string

// The proration behaviours. Stripe's default, create_prorations, leaves items
// for the next invoice; the ledger refuses it.
const (
	AlwaysInvoice ProrationBehavior = "always_invoice"
	NoProration   ProrationBehavior = "none"
)

// PaymentBehavior is Stripe's payment_behavior.
type PaymentBehavior string

// The payment behaviours; default_incomplete is refused.
const (
	AllowIncomplete     PaymentBehavior = "allow_incomplete" // the default
	PendingIfIncomplete PaymentBehavior = "pending_if_incomplete"
	ErrorIfIncomplete   PaymentBehavior = "error_if_incomplete"
)

// SubscriptionCreate makes a subscription.
type SubscriptionCreate struct {
	ID                   string            `json:"id,omitempty"`
	Customer             string            `json:"customer"`
	Items                []ItemParams      `json:"items"`
	TrialEnd             time.Time         `json:"trial_end,omitzero"` // zero: no trial
	DefaultPaymentMethod string            `json:"default_payment_method,omitempty"`
	CollectionMethod     CollectionMethod  `json:"collection_method,omitempty"` // default ChargeAutomatically
	DaysUntilDue         int               `json:"days_until_due,omitempty"`    // default 30 with SendInvoice
	CancelAtPeriodEnd    bool              `json:"cancel_at_period_end,omitempty"`
	Metadata             map[string]string `json:"metadata,omitempty"`
	// PaymentBehavior is AllowIncomplete (the subscription is incomplete, and
	// becomes incomplete_expired after 23 h without payment) or
	// ErrorIfIncomplete.
	PaymentBehavior PaymentBehavior `json:"payment_behavior,omitempty"`
}

// SubscriptionUpdate changes a subscription; nil and zero members stay.
type SubscriptionUpdate struct {
	Items []ItemParams `json:"items,omitempty"`
	// ProrationBehavior is needed where Items change money.
	ProrationBehavior ProrationBehavior `json:"proration_behavior,omitempty"`
	// ProrationDate is the moment prorations are worked out for: within the
	// current period, not with NoProration. Zero: now.
	ProrationDate        time.Time         `json:"proration_date,omitzero"`
	PaymentBehavior      PaymentBehavior   `json:"payment_behavior,omitempty"`
	CancelAtPeriodEnd    *bool             `json:"cancel_at_period_end,omitempty"`
	DefaultPaymentMethod *string           `json:"default_payment_method,omitempty"`
	Metadata             map[string]string `json:"metadata,omitempty"` // merged; "" removes a key
	// ReturnURL is where the confirmation page of the payment leads back to.
	// It is the sandbox's own: Stripe takes it when its payment intent is
	// confirmed.
	ReturnURL string `json:"return_url,omitempty"`
}

// PreviewParams are those of POST /v1/invoices/create_preview.
type PreviewParams struct {
	Subscription string `json:"subscription"`
	// Customer, where not "", must own the subscription.
	Customer string `json:"customer,omitempty"`
	// Items, with ProrationBehavior AlwaysInvoice, ask for the invoice that
	// the change makes at once. Without items, or with NoProration, the answer
	// is the next regular invoice after the change.
	Items             []ItemParams      `json:"items,omitempty"`
	ProrationBehavior ProrationBehavior `json:"proration_behavior,omitempty"`
	ProrationDate     time.Time         `json:"proration_date,omitzero"`
	CancelAtPeriodEnd *bool             `json:"cancel_at_period_end,omitempty"`
	// Recurring (preview_mode=recurring) asks for the next regular invoice
	// after the change, without prorations and without the balance.
	Recurring bool `json:"recurring,omitempty"`
}

// InvoiceFilter selects invoices; zero members select all.
type InvoiceFilter struct {
	Customer     string
	Subscription string
	Status       billing.InvoiceStatus
	// StartingAfter is the id of the last invoice of the page before.
	StartingAfter string
	// EndingBefore is the id of the first invoice of the page after: the page
	// before it is wanted. Not with StartingAfter; needs Customer or
	// Subscription.
	EndingBefore string
	Limit        int // 1 to 100; default 10
}

// PayParams are those of POST /v1/invoices/{id}/pay.
type PayParams struct {
	// PaymentMethod to charge. Default: the subscription's, then the
	// customer's.
	PaymentMethod string `json:"payment_method,omitempty"`
	// OffSession is true where the customer is not there (Stripe's default
	// for pay). A card that asks refuses then with authentication_required
	// on a customer's change; the payment intent waits for confirmation
	// either way.
	OffSession bool `json:"off_session,omitempty"`
	// ReturnURL: see SubscriptionUpdate.
	ReturnURL string `json:"return_url,omitempty"`
}

// SessionParams make a checkout session with mode=setup.
type SessionParams struct {
	Customer   string            `json:"customer"`
	SuccessURL string            `json:"success_url"`
	CancelURL  string            `json:"cancel_url,omitempty"` // default: SuccessURL
	ExpiresAt  time.Time         `json:"expires_at,omitzero"`  // 30 min to 24 h from now; default 24 h
	Metadata   map[string]string `json:"metadata,omitempty"`
}

// CardParams enter a test card. The number decides what the card does and is
// forgotten; TestCards lists the numbers.
type CardParams struct {
	Number   string `json:"number"`
	ExpMonth int    `json:"exp_month,omitempty"` // default 12
	ExpYear  int    `json:"exp_year,omitempty"`  // default: four years from now
}

// SavedCall is what the ledger keeps under an idempotency key.
type SavedCall struct {
	Key       string    `json:"key"`
	Operation string    `json:"operation"`
	Hash      string    `json:"hash"` // of operation and parameters
	Time      time.Time `json:"time"`
	// Result is the JSON of the object that the operation returned. It is
	// what was returned then, not what is now.
	Result []byte `json:"result,omitempty"`
	// Err is the definite failure that was returned instead.
	Err *Error `json:"err,omitempty"`
}
