// Package billing holds the nouns and verbs of the portal: what a customer
// has at the vendor's payment provider, what can be asked for, and the
// Provider interface that every payment provider's adapter implements. It does
// no I/O. Names follow Stripe's object names where Stripe has the thing.
package billing

import (
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

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
	// Metered prices bill what was used in a period after it (Meter's sum)
	// instead of a quantity before it.
	Metered bool `json:"metered,omitempty"`
	// Meter is the id of the meter that a metered price counts with.
	Meter string `json:"meter,omitempty"`
	// Tiers, where there are any, take UnitAmount's place, lowest first; the
	// last one has no end. TiersMode says how they count.
	Tiers     []Tier    `json:"tiers,omitempty"`
	TiersMode TiersMode `json:"tiers_mode,omitempty"`
	// Metadata is the price's own metadata over its product's. The catalogue
	// is made from it where the config has none.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// TiersMode is Stripe's price.tiers_mode.
type TiersMode string

const (
	// Graduated: each unit costs what the tier that it falls in says.
	Graduated TiersMode = "graduated"
	// Volume: all units cost what the tier that the whole quantity falls in
	// says.
	Volume TiersMode = "volume"
)

// Tier is Stripe's price.tiers entry.
type Tier struct {
	// UpTo is the last unit of the tier; 0 for the last tier, which has none.
	UpTo       int64           `json:"up_to"`
	UnitAmount decimal.Decimal `json:"unit_amount"` // minor units, exact
	FlatAmount decimal.Decimal `json:"flat_amount"` // once, where the tier is reached
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

// PaymentMethod is a stored way to pay. It never holds the number of a card or
// an account. Members that its type does not have are empty.
type PaymentMethod struct {
	ID string `json:"id"`
	// Type is Stripe's payment_method.type: "card", "sepa_debit",
	// "us_bank_account", "link", "paypal", "customer_balance" (bank transfer) …
	Type     string `json:"type"`
	Brand    string `json:"brand,omitempty"`     // of a card: "visa"
	Last4    string `json:"last4,omitempty"`     // of a card or an account
	ExpMonth int    `json:"exp_month,omitempty"` // 1 to 12, 0 where it does not expire
	ExpYear  int    `json:"exp_year,omitempty"`
	Wallet   string `json:"wallet,omitempty"`  // that a card is in: "apple_pay", "google_pay"
	Bank     string `json:"bank,omitempty"`    // name or code of the bank of an account
	Country  string `json:"country,omitempty"` // of the card or the account, ISO 3166-1
	Email    string `json:"email,omitempty"`   // of a wallet of its own: link, paypal
}

// Debit reports whether a payment with m takes days until it is known to have
// worked.
func (m *PaymentMethod) Debit() bool {
	switch m.Type {
	case "sepa_debit", "us_bank_account", "bacs_debit", "acss_debit", "au_becs_debit":
		return true
	}
	return false
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
	// TaxIDs are the customer's tax ids, oldest first.
	TaxIDs []TaxID `json:"tax_ids,omitempty"`
	// InvoiceFields are printed on each invoice, in this order: a purchase order
	// number, a cost centre.
	InvoiceFields []InvoiceField `json:"invoice_fields,omitempty"`
	// Reference is the vendor's own id of the customer, where the provider holds
	// one.
	Reference string `json:"reference,omitempty"`
	// Version changes with name, e-mail, phone, address, language, tax ids,
	// invoice fields and default payment method. Opaque.
	Version string `json:"version"`
}

// TaxIDStatus is Stripe's tax_id.verification.status.
type TaxIDStatus string

// What the provider found out about a tax id. "" where it does not ask for
// that type.
const (
	TaxIDPending     TaxIDStatus = "pending"
	TaxIDVerified    TaxIDStatus = "verified"
	TaxIDUnverified  TaxIDStatus = "unverified"
	TaxIDUnavailable TaxIDStatus = "unavailable" // the office did not answer
)

// TaxID is a customer's tax id.
type TaxID struct {
	ID      string      `json:"id"`
	Type    string      `json:"type"`    // as Stripe names them: "eu_vat"
	Country string      `json:"country"` // ISO 3166-1, as far as the type says
	Value   string      `json:"value"`
	Status  TaxIDStatus `json:"status,omitempty"`
	// VerifiedName is who the tax office says it belongs to, or "".
	VerifiedName string    `json:"verified_name,omitempty"`
	Created      time.Time `json:"created"`
}

// MaxInvoiceFields is how many InvoiceFields a customer may have, as at Stripe.
const MaxInvoiceFields = 4

// InvoiceField is Stripe's invoice_settings.custom_fields entry: at most 40 and
// 140 characters.
type InvoiceField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Valid reports whether both are there, not too long and fit for print.
func (f InvoiceField) Valid() bool {
	fits := func(s string, limit int) bool {
		return s != "" && utf8.ValidString(s) && utf8.RuneCountInString(s) <= limit && !strings.ContainsFunc(s, unicode.IsControl)
	}
	return fits(f.Name, 40) && fits(f.Value, 140)
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
	// SendInvoice is true where the customer pays it by hand
	// (collection_method=send_invoice).
	SendInvoice bool `json:"send_invoice,omitempty"`
	// PaymentPage is a page of the provider's where the invoice can be paid,
	// with bank details where it is paid by transfer. Open invoices only; ""
	// where there is none. Its address is enough to see the invoice: it stays
	// out of logs.
	PaymentPage string `json:"payment_page,omitempty"`
	// Processing is true while a bank debit that pays it is on its way.
	Processing bool `json:"processing,omitempty"`
	// Failure is why the last payment of an open invoice did not work: a code
	// as Error's, "" where none was tried or it is not known.
	Failure string `json:"failure,omitempty"`
	// Method is what the last payment was tried with, nil where not known.
	Method *PaymentMethod `json:"method,omitempty"`
}

// Debt reports whether v is to be paid by the customer now: open, and not the
// invoice of a change that waits.
func (v *Invoice) Debt() bool {
	return v.Status == InvoiceOpen && !v.ForPendingUpdate && v.AmountRemaining.Amount > 0
}

// PastDue reports whether v is a debt that should have been paid by now: a
// payment of it failed, or its due date has passed.
func (v *Invoice) PastDue(now time.Time) bool {
	if !v.Debt() || v.Processing {
		return false
	}
	if v.SendInvoice {
		return !v.DueDate.IsZero() && now.After(v.DueDate)
	}
	return v.Attempted
}

// InvoiceDetail is an invoice with everything that its page shows.
type InvoiceDetail struct {
	Invoice
	// Name, Email, Address, TaxIDs and Fields are what is printed on it: those
	// of the customer when it was made.
	Name    string         `json:"name"`
	Email   string         `json:"email"`
	Address Address        `json:"address"`
	TaxIDs  []TaxID        `json:"tax_ids,omitempty"` // Type and Value only
	Fields  []InvoiceField `json:"fields,omitempty"`
	// Discounts are negative amounts, without tax.
	Discounts []Line    `json:"discounts,omitempty"`
	TaxLines  []TaxLine `json:"tax_lines,omitempty"`
	// FromBalance is the part of the total that the customer's balance paid,
	// positive; below zero it was added.
	FromBalance Money `json:"from_balance"`
	// FromCredits is the part that credit grants paid, positive.
	FromCredits Money `json:"from_credits"`
	// Payments are newest first, failed ones too, at most 20.
	Payments    []Payment    `json:"payments,omitempty"`
	CreditNotes []CreditNote `json:"credit_notes,omitempty"` // newest first, at most 20
	// MoreLines is true where Lines are not all of them.
	MoreLines bool `json:"more_lines,omitempty"`
	// PaidAt is when it was paid, or zero.
	PaidAt time.Time `json:"paid_at"`
}

// TaxLine is one tax of an invoice.
type TaxLine struct {
	Name string `json:"name"` // "VAT"
	// Percent is exact ("19", "8.875"), "" where not known.
	Percent   string `json:"percent,omitempty"`
	Inclusive bool   `json:"inclusive,omitempty"`
	Taxable   Money  `json:"taxable"`
	Amount    Money  `json:"amount"`
}

// PaymentStatus says how a payment went.
type PaymentStatus string

const (
	PaymentSucceeded  PaymentStatus = "succeeded"
	PaymentProcessing PaymentStatus = "processing"
	PaymentFailed     PaymentStatus = "failed"
	PaymentWaiting    PaymentStatus = "waiting" // for the customer
	PaymentRefunded   PaymentStatus = "refunded"
)

// Payment is one attempt to pay an invoice.
type Payment struct {
	ID     string         `json:"id"`
	Time   time.Time      `json:"time"`
	Amount Money          `json:"amount"`
	Status PaymentStatus  `json:"status"`
	Method *PaymentMethod `json:"method,omitempty"`
	// Failure is a code as Error's where it failed.
	Failure  string `json:"failure,omitempty"`
	Refunded Money  `json:"refunded"`
}

// CreditNote takes something off an invoice.
type CreditNote struct {
	ID          string    `json:"id"`
	Number      string    `json:"number"`
	Created     time.Time `json:"created"`
	Reason      string    `json:"reason,omitempty"` // Stripe's credit_note.reason
	Total       Money     `json:"total"`
	Void        bool      `json:"void,omitempty"`
	HasDocument bool      `json:"has_document"`
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

// Section is a part of an Account that is read by a call of its own.
type Section string

// The sections that can be missing from an Account. The customer and the
// subscriptions cannot: without them there is no Account.
const (
	SectionPaymentMethods Section = "payment_methods"
	SectionInvoices       Section = "invoices"
	SectionDebts          Section = "debts"
	SectionUpcoming       Section = "upcoming"
)

// Account is what the overview and the change pages show about one customer,
// bounded in size. Long lists are paged reads of their own.
type Account struct {
	Customer       Customer        `json:"customer"`
	Subscriptions  []Subscription  `json:"subscriptions"` // newest first, ended ones last
	PaymentMethods []PaymentMethod `json:"payment_methods"`
	Invoices       []Invoice       `json:"invoices"` // the latest few, newest first, without drafts
	// Debts are the open invoices that are Debts, oldest first, at most
	// MaxDebts.
	Debts    []Invoice  `json:"debts"`
	Upcoming []Upcoming `json:"upcoming"` // by due date, of the next three renewals
	// Failed are the sections that the provider did not answer for, and that
	// are empty for no other reason.
	Failed []Section `json:"failed,omitempty"`
	// AsOf is the provider's time of the read; it drives all billing dates.
	AsOf time.Time `json:"as_of"`
}

// MaxDebts bounds Account.Debts.
const MaxDebts = 100

// Missing reports whether a section was not read.
func (a *Account) Missing(s Section) bool { return slices.Contains(a.Failed, s) }

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

// Debt returns the account's debt with that id.
func (a *Account) Debt(id string) (*Invoice, bool) {
	i := slices.IndexFunc(a.Debts, func(v Invoice) bool { return v.ID == id })
	if i < 0 {
		return nil, false
	}
	return &a.Debts[i], true
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

// UsageQuery says which usage to read. Bounds are taken in whole minutes. One
// that Check refuses is Refused.
type UsageQuery struct {
	// Subscription is whose metered items are read.
	Subscription string
	// From and To bound the time; both zero for the current period of each
	// item. At most 13 months.
	From, To time.Time
	// By is the width of a point: Day or Month, in UTC.
	By Interval
}

// Usage is what a customer used, by meter.
type Usage struct {
	Meters []MeterUsage
	// UpTo is how far the provider has counted; later events still come in.
	UpTo time.Time
}

// MeterUsage is the usage of one metered item.
type MeterUsage struct {
	Meter string // id
	// Event is the name that the vendor reports events under ("api_calls"); a
	// plan's Limit of that name bounds it.
	Event string
	Name  string // what customers read: "API calls"
	Item  string // subscription item id
	Price Price
	// From and To are the bounds that Total and Points are for.
	From, To time.Time
	Total    decimal.Decimal
	Points   []UsagePoint // in order, without gaps
	// Cost is what Total costs by Price, without tax. Estimated as long as the
	// period is open. Nil where the bounds are not those of a period.
	Cost *Money
}

// UsagePoint is the usage in [Start, End).
type UsagePoint struct {
	Start, End time.Time
	Value      decimal.Decimal
}

// BalancePage is a customer's balance and a page of what moved it.
type BalancePage struct {
	// Balances are the customer's balance per currency as Customer.Balance
	// counts it: below zero is credit.
	Balances []Money
	// Grants are credits with a purpose and an end (Stripe's billing credit
	// grants), those that can still be used first, at most 100. First page
	// only.
	Grants []Grant
	// Entries are newest first.
	Entries      []BalanceEntry
	Newer, Older string
}

// Grant is a credit that was given.
type Grant struct {
	ID        string
	Name      string
	Paid      bool // bought, not given
	Amount    Money
	Left      Money
	Effective time.Time
	Expires   time.Time // zero: never
	Void      bool
}

// BalanceEntry is one movement of the balance or of a grant.
type BalanceEntry struct {
	ID   string
	Time time.Time
	// Type is Stripe's customer_balance_transaction.type ("adjustment",
	// "applied_to_invoice", "unapplied_from_invoice", "credit_note" …), or of a
	// grant "credits_granted", "credits_applied", "credits_expired",
	// "credits_voided".
	Type string
	// Amount below zero is credit for the customer, as Customer.Balance.
	Amount Money
	// After is the balance after it; nil for a grant's.
	After   *Money
	Invoice string // id, or ""
	Grant   string // id, or "" for the balance itself
}
