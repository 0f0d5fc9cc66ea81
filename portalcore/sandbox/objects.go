package sandbox

import (
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// The objects below have the names and meanings of Stripe's objects of the
// same name at API version 2026-08-26.dahlia (docs.stripe.com/api). Amounts
// are integer minor units of the object's currency as Exponent counts them.
// Times are UTC with whole seconds; a zero time means null. Values that the
// Ledger returns are copies: changing them changes nothing.

// Customer is Stripe's customer.
type Customer struct {
	ID               string            `json:"id"`
	Created          time.Time         `json:"created"`
	Name             string            `json:"name"`
	Email            string            `json:"email"`
	Phone            string            `json:"phone"`
	Address          billing.Address   `json:"address"`
	PreferredLocales []string          `json:"preferred_locales"`
	Metadata         map[string]string `json:"metadata"`
	// Balance is applied to the next invoice: below zero is credit, above
	// zero is owed. It is in Currency.
	Balance int64 `json:"balance"`
	// Currency is the currency of the first subscription or balance, "" until
	// then. As at Stripe a customer has one currency.
	Currency string `json:"currency"`
	// DefaultPaymentMethod is invoice_settings.default_payment_method.
	DefaultPaymentMethod string `json:"default_payment_method"`
	// InvoicePrefix begins the numbers of the customer's invoices, and
	// NextInvoiceSequence ends the next one: "4F2A91BC-0001".
	InvoicePrefix       string `json:"invoice_prefix"`
	NextInvoiceSequence int64  `json:"next_invoice_sequence"`
	// TaxPercent is the exclusive tax rate of the customer's subscriptions in
	// percent, at most 4 decimals; zero means no tax. It stands for Stripe's
	// default_tax_rates with one rate.
	TaxPercent decimal.Decimal `json:"tax_percent"`
	// TaxIDs are the customer's tax ids, oldest first.
	TaxIDs []TaxID `json:"tax_ids,omitempty"`
	// InvoiceFields is invoice_settings.custom_fields.
	InvoiceFields []billing.InvoiceField `json:"invoice_fields,omitempty"`
}

// Product is Stripe's product.
type Product struct {
	ID       string            `json:"id"`
	Created  time.Time         `json:"created"`
	Name     string            `json:"name"`
	Active   bool              `json:"active"`
	Metadata map[string]string `json:"metadata"`
}

// Price is Stripe's price: recurring, with exclusive tax. Prices are the same for
// good but for Active.
type Price struct {
	ID            string            `json:"id"`
	Created       time.Time         `json:"created"`
	Product       string            `json:"product"`
	ProductName   string            `json:"product_name"` // the product's name when the price was made
	Active        bool              `json:"active"`
	Currency      string            `json:"currency"`
	UnitAmount    decimal.Decimal   `json:"unit_amount"` // unit_amount_decimal: minor units, at most 12 decimals
	Interval      billing.Interval  `json:"interval"`
	IntervalCount int               `json:"interval_count"`
	LookupKey     string            `json:"lookup_key"`
	Metadata      map[string]string `json:"metadata"`
	// Meter is recurring.meter of a metered price (recurring.usage_type), ""
	// for a licensed one.
	Meter string `json:"meter,omitempty"`
	// Tiers, with TiersMode, take the place of UnitAmount.
	Tiers     []billing.Tier    `json:"tiers,omitempty"`
	TiersMode billing.TiersMode `json:"tiers_mode,omitempty"`
}

// CardBehavior is what a test payment method does when it is charged.
type CardBehavior string

// The behaviours of test payment methods (docs.stripe.com/testing).
const (
	// CardWorks is always paid; a bank debit days later.
	CardWorks CardBehavior = "works"
	// CardDeclinesCharges can be stored and is declined whenever it is
	// charged.
	CardDeclinesCharges CardBehavior = "declines_charges"
	// CardAsks asks the customer to confirm (3-D Secure) whenever the charge
	// comes from something the customer did. Charges without the customer
	// (renewals, ends of trials, retries) go through, as they do at Stripe for
	// a card that was set up for them.
	CardAsks CardBehavior = "asks"
	// CardAsksAlways asks for charges without the customer as well.
	CardAsksAlways CardBehavior = "asks_always"
	// CardInsufficientFunds, CardExpired and CardLost are like
	// CardDeclinesCharges, with another decline code. A bank debit fails with
	// it days later.
	CardInsufficientFunds CardBehavior = "insufficient_funds"
	CardExpired           CardBehavior = "expired_card"
	CardLost              CardBehavior = "lost_card"
	// DebitReturned is a bank debit that the bank sends back days later.
	DebitReturned CardBehavior = "debit_not_authorized"
)

// PaymentMethod is Stripe's payment_method. The number of a card or an account
// is never stored.
type PaymentMethod struct {
	ID       string       `json:"id"`
	Created  time.Time    `json:"created"`
	Customer string       `json:"customer"`       // "" once it is detached
	Type     string       `json:"type,omitempty"` // as Stripe's; "" is a card
	Brand    string       `json:"brand"`          // "visa"
	Last4    string       `json:"last4"`
	ExpMonth int          `json:"exp_month"` // 0 for what does not expire
	ExpYear  int          `json:"exp_year"`
	Wallet   string       `json:"wallet,omitempty"` // that the card is in: "apple_pay"
	Bank     string       `json:"bank,omitempty"`
	Country  string       `json:"country,omitempty"`
	Email    string       `json:"email,omitempty"`
	Behavior CardBehavior `json:"behavior"`
}

// CollectionMethod says how invoices are collected.
type CollectionMethod string

// Stripe's collection methods.
const (
	ChargeAutomatically CollectionMethod = "charge_automatically"
	SendInvoice         CollectionMethod = "send_invoice"
)

// SubscriptionItem is Stripe's subscription_item.
type SubscriptionItem struct {
	ID                 string    `json:"id"`
	Created            time.Time `json:"created"`
	Price              Price     `json:"price"` // as it was when the item took it
	Quantity           int64     `json:"quantity"`
	CurrentPeriodStart time.Time `json:"current_period_start"`
	CurrentPeriodEnd   time.Time `json:"current_period_end"`
}

// PendingUpdate is Stripe's subscription.pending_update: a change that
// applies when the invoice (the subscription's LatestInvoice) is paid, and is
// dropped when the invoice is voided or at ExpiresAt.
type PendingUpdate struct {
	Items     []SubscriptionItem `json:"subscription_items"`
	ExpiresAt time.Time          `json:"expires_at"`
	// BillingCycleAnchor is the new anchor where the change sets one.
	BillingCycleAnchor time.Time `json:"billing_cycle_anchor"`
	Invoice            string    `json:"invoice"`
}

// Subscription is Stripe's subscription. All items share currency, interval
// and interval count.
type Subscription struct {
	ID                   string                     `json:"id"`
	Created              time.Time                  `json:"created"`
	Customer             string                     `json:"customer"`
	Status               billing.SubscriptionStatus `json:"status"`
	Currency             string                     `json:"currency"`
	CollectionMethod     CollectionMethod           `json:"collection_method"`
	DaysUntilDue         int                        `json:"days_until_due"` // send_invoice only
	BillingCycleAnchor   time.Time                  `json:"billing_cycle_anchor"`
	TrialStart           time.Time                  `json:"trial_start"`
	TrialEnd             time.Time                  `json:"trial_end"`
	CancelAtPeriodEnd    bool                       `json:"cancel_at_period_end"`
	CancelAt             time.Time                  `json:"cancel_at"`
	CanceledAt           time.Time                  `json:"canceled_at"`
	EndedAt              time.Time                  `json:"ended_at"`
	DefaultPaymentMethod string                     `json:"default_payment_method"` // "": the customer's
	LatestInvoice        string                     `json:"latest_invoice"`
	Items                []SubscriptionItem         `json:"items"`
	PendingUpdate        *PendingUpdate             `json:"pending_update"`
	Metadata             map[string]string          `json:"metadata"`
}

// InvoiceLine is Stripe's line_item of an invoice.
type InvoiceLine struct {
	ID              string          `json:"id"`
	Description     string          `json:"description"`
	Price           string          `json:"price"`
	Product         string          `json:"product"`
	UnitAmount      decimal.Decimal `json:"unit_amount"` // of the price
	Quantity        int64           `json:"quantity"`    // without a fraction
	QuantityDecimal decimal.Decimal `json:"quantity_decimal"`
	Amount          int64           `json:"amount"` // without tax
	Tax             int64           `json:"tax"`    // on Amount less Credits, rounded by line
	Metered         bool            `json:"metered,omitempty"`
	// Credits are pretax_credit_amounts: what credit grants pay of Amount.
	Credits          []LineCredit `json:"credits,omitempty"`
	Proration        bool         `json:"proration"`
	SubscriptionItem string       `json:"subscription_item"`
	PeriodStart      time.Time    `json:"period_start"`
	PeriodEnd        time.Time    `json:"period_end"`
}

// BillingReason is Stripe's invoice.billing_reason.
type BillingReason string

// The billing reasons that the ledger uses.
const (
	ReasonSubscriptionCreate BillingReason = "subscription_create"
	ReasonSubscriptionCycle  BillingReason = "subscription_cycle"
	ReasonSubscriptionUpdate BillingReason = "subscription_update"
	ReasonUpcoming           BillingReason = "upcoming" // previews
)

// PaymentStatus is Stripe's payment_intent.status.
type PaymentStatus string

// The states of a payment intent that the ledger uses.
const (
	RequiresPaymentMethod PaymentStatus = "requires_payment_method"
	RequiresAction        PaymentStatus = "requires_action"
	PaymentProcessing     PaymentStatus = "processing"
	PaymentSucceeded      PaymentStatus = "succeeded"
	PaymentCanceled       PaymentStatus = "canceled"
)

// PaymentIntent is Stripe's payment_intent of one invoice.
type PaymentIntent struct {
	ID            string        `json:"id"`
	Created       time.Time     `json:"created"`
	Customer      string        `json:"customer"`
	Invoice       string        `json:"invoice"`
	Amount        int64         `json:"amount"`
	Currency      string        `json:"currency"`
	Status        PaymentStatus `json:"status"`
	PaymentMethod string        `json:"payment_method"` // of the last attempt
	// LastErrorCode is last_payment_error.code: "card_declined",
	// "authentication_required", or "" before the first failure.
	LastErrorCode   string `json:"last_error_code"`
	LastDeclineCode string `json:"last_decline_code,omitempty"`
	// SettlesAt is when a payment that is processing has worked or failed.
	SettlesAt time.Time `json:"settles_at,omitzero"`
	// ReturnURL is where the confirmation page leads back to.
	ReturnURL string `json:"return_url"`
}

// Invoice is Stripe's invoice. It has no draft state: the ledger finalizes an
// invoice when it makes it, where Stripe waits about an hour.
type Invoice struct {
	ID               string                 `json:"id"` // "" in previews
	Number           string                 `json:"number"`
	Created          time.Time              `json:"created"`
	Customer         string                 `json:"customer"`
	CustomerName     string                 `json:"customer_name"`
	CustomerEmail    string                 `json:"customer_email"`
	CustomerAddress  billing.Address        `json:"customer_address"`
	CustomerTaxIDs   []TaxID                `json:"customer_tax_ids,omitempty"` // as they were then
	CustomFields     []billing.InvoiceField `json:"custom_fields,omitempty"`
	Subscription     string                 `json:"subscription"`
	Status           billing.InvoiceStatus  `json:"status"` // open, paid, void, uncollectible; draft in previews
	BillingReason    BillingReason          `json:"billing_reason"`
	CollectionMethod CollectionMethod       `json:"collection_method"`
	Currency         string                 `json:"currency"`
	DueDate          time.Time              `json:"due_date"` // send_invoice only
	PeriodStart      time.Time              `json:"period_start"`
	PeriodEnd        time.Time              `json:"period_end"`
	Lines            []InvoiceLine          `json:"lines"`
	TaxPercent       decimal.Decimal        `json:"tax_percent"`
	Subtotal         int64                  `json:"subtotal"`
	Tax              int64                  `json:"tax"`
	Credits          int64                  `json:"credits,omitempty"` // of all lines
	Total            int64                  `json:"total"`             // Subtotal - Credits + Tax; below zero goes to the balance
	StartingBalance  int64                  `json:"starting_balance"`
	EndingBalance    int64                  `json:"ending_balance"`
	AmountDue        int64                  `json:"amount_due"` // max(0, Total + StartingBalance)
	AmountPaid       int64                  `json:"amount_paid"`
	AmountRemaining  int64                  `json:"amount_remaining"`
	AttemptCount     int                    `json:"attempt_count"`
	Attempted        bool                   `json:"attempted"`
	// NextPaymentAttempt is when the ledger tries again by itself.
	NextPaymentAttempt time.Time `json:"next_payment_attempt"`
	PaidAt             time.Time `json:"paid_at"`
	VoidedAt           time.Time `json:"voided_at"`
	// Processing is true while a bank debit that pays it is on its way.
	Processing bool `json:"processing,omitempty"`
	// ForPendingUpdate marks the invoice of a pending update.
	ForPendingUpdate bool   `json:"for_pending_update"`
	PaymentIntent    string `json:"payment_intent"` // "" where nothing is to be collected by card
}

// SessionStatus is Stripe's checkout.session.status.
type SessionStatus string

// The states of a checkout session.
const (
	SessionOpen     SessionStatus = "open"
	SessionComplete SessionStatus = "complete"
	SessionExpired  SessionStatus = "expired"
)

// CheckoutSession is Stripe's checkout.session with mode=setup, together with
// its setup_intent.
type CheckoutSession struct {
	ID          string        `json:"id"`
	Created     time.Time     `json:"created"`
	ExpiresAt   time.Time     `json:"expires_at"`
	Customer    string        `json:"customer"`
	Status      SessionStatus `json:"status"`
	SuccessURL  string        `json:"success_url"`
	CancelURL   string        `json:"cancel_url"`
	SetupIntent string        `json:"setup_intent"` // seti_…; succeeded when the session is complete
	// PaymentMethod is set when the session is complete. It is attached to the
	// customer and is nobody's default yet.
	PaymentMethod string            `json:"payment_method"`
	Metadata      map[string]string `json:"metadata"`
}

// BalanceTransaction is Stripe's customer_balance_transaction.
type BalanceTransaction struct {
	ID            string    `json:"id"`
	Created       time.Time `json:"created"`
	Customer      string    `json:"customer"`
	Amount        int64     `json:"amount"` // below zero: credit given
	Currency      string    `json:"currency"`
	EndingBalance int64     `json:"ending_balance"`
	// Type is "adjustment", "applied_to_invoice", "unapplied_from_invoice" or
	// "credit_note".
	Type    string `json:"type"`
	Invoice string `json:"invoice"`
}

// Effect is one change that the ledger applied: one operation that was
// carried out, or one thing that fell due. Failed calls and replays leave
// none.
type Effect struct {
	Seq      int64     `json:"seq"` // 1, 2, 3 …
	Time     time.Time `json:"time"`
	Customer string    `json:"customer"`
	// Kind is the operation ("subscription.update", "invoice.pay", …) or what
	// fell due ("subscription.renew", "invoice.retry", …).
	Kind   string `json:"kind"`
	Object string `json:"object"`
	// IdempotencyKey is the key that the operation was called with, or "".
	IdempotencyKey string `json:"idempotency_key"`
}
