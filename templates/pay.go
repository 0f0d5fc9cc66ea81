package templates

import (
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Pay is /pay and /pay/{invoice}: what is owed, and the buttons that pay it.
type Pay struct {
	// One is set on the page of one invoice, which is then all of Debts.
	One bool
	// Debts are to be paid now, oldest first; Later those that are not due
	// yet, that a payment is on its way for, or is being checked.
	Debts, Later []Debt
	// Sums has one entry, and one button, per currency.
	Sums []PaySum
	// Form is posted by each of the buttons.
	Form Form
	// Methods can be paid with; Chosen is the id of the one that pays by
	// itself.
	Methods []Method
	Chosen  string
	// Moved is set where the sums are not those that were agreed to: Before was.
	Moved  bool
	Before billing.Money
	// Started is a payment of these that the customer began and did not finish.
	Started *Started
	Permit  Permit
	// Add says whether a new method can be entered.
	Add Permit
}

// Debt is an open invoice on the page that pays it.
type Debt struct {
	billing.Invoice
	Plan string // what it is for, where the plan is known
	// Since is since when it is or, where it is not late, when it is due; zero
	// where nothing says so.
	Since time.Time
	Late  bool
	// Href is its own page, "" on that page and where nobody here may pay.
	Href string
	// CheckingHref is the receipt of a payment of it that is being checked, or
	// "".
	CheckingHref string
	// TransferHref leads to the provider's page about it, with bank details
	// where it can be paid by transfer.
	TransferHref string
}

// PaySum is what one button of Pay pays.
type PaySum struct {
	Amount billing.Money
	Count  int
	// Whole is false where more is owed in this currency than one button pays.
	Whole bool
	// Method is what it is paid with where there is no choice.
	Method *billing.PaymentMethod
	// NewCardHref leads to entering another method that then pays it, or "".
	NewCardHref string
}

// Started is a payment that waits for the customer.
type Started struct {
	Time time.Time
	Href string
}

// UseMethod is /payment/use/{method}: what a payment method shall pay for.
type UseMethod struct {
	Method billing.PaymentMethod
	// Plans can be paid with it alone, by subscription id.
	Plans   []PlanChoice
	Confirm Form
	Permit  Permit
	Errors  []FieldError
	// Waits are what changes wait for: paid at once with what becomes the default.
	Waits []billing.Money
}

// PlanChoice is a subscription to choose.
type PlanChoice struct {
	ID   string // of the subscription
	Name string
	// Method pays for it now, nil where nothing does.
	Method *billing.PaymentMethod
}

// RemoveMethod is /payment/remove/{method}.
type RemoveMethod struct {
	Method  billing.PaymentMethod
	Confirm Form
	Permit  Permit
	// Why it cannot be removed now: "last" (with a plan that goes on),
	// "in_use" (by Plans, or by an open invoice where there are none), "" where
	// it can.
	Why   string
	Plans []string
}

// PaidInvoice is one invoice on the receipt of a payment.
type PaidInvoice struct {
	ID     string
	Number string // "" where not known
	Amount billing.Money
	// State: "paid", "declined", "waiting" (for the customer's bank),
	// "processing", "checking", "not_sent", "closed" (it did not work, and is not
	// owed any more: paid otherwise or late, or voided).
	State string
	// Reason is the code of a decline.
	Reason      string
	HasDocument bool
	// Href is the page that pays it, where it is still to be paid.
	Href string
}

// Where the pages about paying are.
const (
	PathPay          = "/pay" // and "/pay/{invoice}"
	PathUseMethod    = "/payment/use/"
	PathRemoveMethod = "/payment/remove/"
	PathTransfer     = "/transfer/" // + an invoice: leaves for the provider's page about it
)

// The fields of the forms about paying. Those of Pay come once per currency,
// with its code behind them.
const (
	FieldMethod   = "payment_method"
	FieldUse      = "use"      // UseMethod, AddMethod
	FieldCurrency = "currency" // Pay: on the button
	FieldAmount   = "amount_"
	FieldInvoices = "invoices_"
	FieldAgreed   = "nonce_"
)

// The values of FieldUse that are no subscription's id.
const (
	UseAll  = "all"
	UseNone = "none"
)
