// Package billing holds the nouns and verbs of the portal: what a customer
// has at the vendor's payment provider, what can be asked for, and the
// Provider interface that every payment provider's adapter implements. It does
// no I/O. Names follow Stripe's object names where Stripe has the thing.
package billing

import (
	"slices"
	"time"

	"github.com/shopspring/decimal"
)

// Money is an amount in the minor unit of its currency as the provider counts
// it (see Capabilities.Exponent): 1999 USD is $19.99. Negative amounts are
// credits.
type Money struct {
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"` // ISO 4217, lower case: "usd"
}

// Neg returns -m.
func (m Money) Neg() Money { return Money{-m.Amount, m.Currency} }

// Interval is the unit of a billing period.
type Interval string

// Intervals, as Stripe names them (price.recurring.interval).
const (
	Day   Interval = "day"
	Week  Interval = "week"
	Month Interval = "month"
	Year  Interval = "year"
)

// Price is what one unit costs for one billing period.
type Price struct {
	ID        string `json:"id"`
	LookupKey string `json:"lookup_key,omitempty"`
	Product   string `json:"product"`
	// ProductName is the provider's name of the product: what a page shows
	// for a price that is in no plan of the catalogue.
	ProductName   string          `json:"product_name"`
	Currency      string          `json:"currency"`
	UnitAmount    decimal.Decimal `json:"unit_amount"` // minor units, exact, may have decimals
	Interval      Interval        `json:"interval"`
	IntervalCount int             `json:"interval_count"`
	Active        bool            `json:"active"`
	// Metadata is the price's own metadata over its product's. The catalogue
	// is made from it where the config has none.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// SubscriptionStatus is Stripe's subscription.status.
type SubscriptionStatus string

// The states of a subscription.
const (
	Incomplete        SubscriptionStatus = "incomplete"
	IncompleteExpired SubscriptionStatus = "incomplete_expired"
	Trialing          SubscriptionStatus = "trialing"
	Active            SubscriptionStatus = "active"
	PastDue           SubscriptionStatus = "past_due"
	Canceled          SubscriptionStatus = "canceled"
	Unpaid            SubscriptionStatus = "unpaid"
	Paused            SubscriptionStatus = "paused"
)

// Item is one price with a quantity in a subscription.
type Item struct {
	ID          string    `json:"id"`
	Price       Price     `json:"price"`
	Quantity    int64     `json:"quantity"`
	PeriodStart time.Time `json:"period_start"`
	PeriodEnd   time.Time `json:"period_end"`
}

// PendingUpdate is a change that waits for a payment: it applies when its
// invoice is paid and is dropped at ExpiresAt.
type PendingUpdate struct {
	Items     []Item    `json:"items"`
	InvoiceID string    `json:"invoice"`
	AmountDue Money     `json:"amount_due"`
	ExpiresAt time.Time `json:"expires_at"`
	// ConfirmURL, when not empty, is a page at the provider where the customer
	// confirms the waiting payment (3-D Secure).
	ConfirmURL string `json:"confirm_url,omitempty"`
}

// Subscription is one agreement to pay for some items periodically. Zero
// times mean "none".
type Subscription struct {
	ID                   string             `json:"id"`
	Status               SubscriptionStatus `json:"status"`
	Items                []Item             `json:"items"`
	Currency             string             `json:"currency"`
	Created              time.Time          `json:"created"`
	TrialEnd             time.Time          `json:"trial_end"`
	CancelAtPeriodEnd    bool               `json:"cancel_at_period_end"`
	CancelAt             time.Time          `json:"cancel_at"`
	CanceledAt           time.Time          `json:"canceled_at"`
	EndedAt              time.Time          `json:"ended_at"`
	DefaultPaymentMethod string             `json:"default_payment_method,omitempty"` // "": the customer's
	// SendInvoice is true where the customer pays invoices by hand
	// (collection_method=send_invoice).
	SendInvoice bool `json:"send_invoice"`
	// Scheduled is true where a subscription schedule drives the
	// subscription; this build shows such a one and does not touch it.
	Scheduled bool           `json:"scheduled"`
	Pending   *PendingUpdate `json:"pending_update,omitempty"`
	// Version changes whenever anything above that a change depends on
	// changes. Opaque; compare for equality.
	Version string `json:"version"`
}

// Ended reports whether nothing will be billed on s any more.
func (s *Subscription) Ended() bool {
	return s.Status == Canceled || s.Status == IncompleteExpired
}

// Ends is when a cancelled subscription stops, or zero where it goes on.
func (s *Subscription) Ends() time.Time {
	switch {
	case !s.EndedAt.IsZero():
		return s.EndedAt
	case !s.CancelAt.IsZero():
		return s.CancelAt
	case s.CancelAtPeriodEnd:
		return s.PeriodEnd()
	}
	return time.Time{}
}

// PeriodEnd is the end of the current period: the earliest of its items'.
func (s *Subscription) PeriodEnd() time.Time {
	var end time.Time
	for _, it := range s.Items {
		if end.IsZero() || it.PeriodEnd.Before(end) {
			end = it.PeriodEnd
		}
	}
	return end
}

// PaymentMethod is a stored way to pay. It never holds a card number.
type PaymentMethod struct {
	ID       string `json:"id"`
	Type     string `json:"type"`            // "card", "sepa_debit", …
	Brand    string `json:"brand,omitempty"` // "visa"
	Last4    string `json:"last4,omitempty"`
	ExpMonth int    `json:"exp_month,omitempty"` // 1 to 12, 0 where it does not expire
	ExpYear  int    `json:"exp_year,omitempty"`
}

// Address is a postal address.
type Address struct {
	Line1      string `json:"line1"`
	Line2      string `json:"line2"`
	City       string `json:"city"`
	State      string `json:"state"`
	PostalCode string `json:"postal_code"`
	Country    string `json:"country"` // ISO 3166-1 alpha-2, upper case
}

// IsZero reports whether nothing of the address is known.
func (a Address) IsZero() bool { return a == Address{} }

// Customer is the vendor's customer as the provider knows it.
type Customer struct {
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	Email   string  `json:"email"`
	Phone   string  `json:"phone"`
	Address Address `json:"address"`
	Locale  string  `json:"locale,omitempty"` // preferred language, BCP 47
	// Balance below zero is credit that the next invoice uses up; above zero
	// is added to it.
	Balance              Money  `json:"balance"`
	DefaultPaymentMethod string `json:"default_payment_method,omitempty"`
	// Version changes with name, e-mail, phone, address and default payment
	// method. Opaque.
	Version string `json:"version"`
}

// InvoiceStatus is Stripe's invoice.status.
type InvoiceStatus string

// The states of an invoice. Drafts are not shown to customers.
const (
	InvoiceDraft         InvoiceStatus = "draft"
	InvoiceOpen          InvoiceStatus = "open"
	InvoicePaid          InvoiceStatus = "paid"
	InvoiceVoid          InvoiceStatus = "void"
	InvoiceUncollectible InvoiceStatus = "uncollectible"
)

// Line is one line of an invoice or a preview.
type Line struct {
	Description string    `json:"description"`
	Price       string    `json:"price,omitempty"` // price id
	Quantity    int64     `json:"quantity,omitempty"`
	Amount      Money     `json:"amount"` // without exclusive tax
	PeriodStart time.Time `json:"period_start"`
	PeriodEnd   time.Time `json:"period_end"`
	Proration   bool      `json:"proration"`
}

// Invoice is one bill. Total includes tax; AmountDue is what was to be
// collected after the customer's balance was applied.
type Invoice struct {
	ID              string        `json:"id"`
	Number          string        `json:"number"`
	Status          InvoiceStatus `json:"status"`
	Subscription    string        `json:"subscription,omitempty"`
	Description     string        `json:"description"` // what it is for, in one line
	Created         time.Time     `json:"created"`
	DueDate         time.Time     `json:"due_date"`
	Lines           []Line        `json:"lines,omitempty"`
	Subtotal        Money         `json:"subtotal"`
	Tax             Money         `json:"tax"`
	Total           Money         `json:"total"`
	AmountDue       Money         `json:"amount_due"`
	AmountPaid      Money         `json:"amount_paid"`
	AmountRemaining Money         `json:"amount_remaining"`
	// Attempted is true once a payment of it was tried.
	Attempted bool `json:"attempted"`
	// NextAttempt is when the provider tries again by itself, or zero.
	NextAttempt time.Time `json:"next_attempt"`
	// ForPendingUpdate marks the invoice of a change that waits: it is not a
	// debt, and paying it is confirming the change.
	ForPendingUpdate bool `json:"for_pending_update"`
	HasDocument      bool `json:"has_document"`
}

// Upcoming is the next invoice of one subscription as things stand now.
type Upcoming struct {
	Subscription string    `json:"subscription"`
	Due          time.Time `json:"due"`
	Lines        []Line    `json:"lines"`
	Subtotal     Money     `json:"subtotal"`
	Tax          Money     `json:"tax"`
	Total        Money     `json:"total"`
	AmountDue    Money     `json:"amount_due"` // after the customer's balance
}

// Account is what the overview and the change pages show about one customer,
// bounded in size. Long lists are paged reads of their own.
type Account struct {
	Customer       Customer        `json:"customer"`
	Subscriptions  []Subscription  `json:"subscriptions"` // newest first, ended ones last
	PaymentMethods []PaymentMethod `json:"payment_methods"`
	Invoices       []Invoice       `json:"invoices"` // the latest few, newest first, without drafts
	Upcoming       []Upcoming      `json:"upcoming"` // by due date
	// AsOf is the provider's time of the read; it drives all billing dates.
	AsOf time.Time `json:"as_of"`
}

// Subscription returns the account's subscription with that id.
func (a *Account) Subscription(id string) (*Subscription, bool) {
	i := slices.IndexFunc(a.Subscriptions, func(s Subscription) bool { return s.ID == id })
	if i < 0 {
		return nil, false
	}
	return &a.Subscriptions[i], true
}

// PaymentMethod returns the account's payment method with that id.
func (a *Account) PaymentMethod(id string) (*PaymentMethod, bool) {
	i := slices.IndexFunc(a.PaymentMethods, func(m PaymentMethod) bool { return m.ID == id })
	if i < 0 {
		return nil, false
	}
	return &a.PaymentMethods[i], true
}

// Pays returns the payment method that pays for s: its own or the customer's.
func (a *Account) Pays(s *Subscription) (*PaymentMethod, bool) {
	if s != nil && s.DefaultPaymentMethod != "" {
		return a.PaymentMethod(s.DefaultPaymentMethod)
	}
	return a.PaymentMethod(a.Customer.DefaultPaymentMethod)
}

// InvoicePage is one page of a customer's invoices, newest first.
type InvoicePage struct {
	Invoices []Invoice
	// Newer and Older are cursors for the pages on both sides, or empty.
	Newer, Older string
}
