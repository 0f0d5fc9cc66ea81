package templates

import (
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Invoices is /invoices.
type Invoices struct {
	// Invoices are those of this page.
	Invoices             []billing.Invoice
	NewerHref, OlderHref string
	Failed               bool
	// Pay is set where this person may pay open ones.
	Pay bool
	// Now is the provider's time, which says what is overdue.
	Now time.Time

	// Search is nil where there is no index to search in.
	Search *InvoiceSearch
	// Totals is nil until every invoice is known.
	Totals *InvoiceTotals
	// Count is how many invoices are on the list that this is a page of, From
	// and To which of them are on it; 0 where that is not known.
	Count, From, To int
	// Downloads is how many invoices the downloads have.
	Downloads int
	CSVHref   string // or ""
	ZIPHref   string // or ""
	// ZIPMost is set, in ZIPHref's place, where there are more documents than
	// one ZIP takes: how many it takes.
	ZIPMost int
}

// InvoiceSearch is the form above the list, and what it found.
type InvoiceSearch struct {
	// Active is set where anything narrows the list.
	Active        bool
	Text          string
	Year          int // 0: all
	Status        string
	Subscription  string
	Years         []int
	Statuses      []string
	Subscriptions []SubscriptionChoice // none where there is no choice
	// IndexedTo is how far back invoices can be searched; zero where all can.
	// Reading is set while more are being read.
	IndexedTo time.Time
	Reading   bool
}

// SubscriptionChoice is a subscription that invoices can be of.
type SubscriptionChoice struct {
	ID, Name string
	// Since tells subscriptions of one name apart; else zero.
	Since time.Time
}

// InvoiceTotals are sums over all invoices, one per currency.
type InvoiceTotals struct {
	Open, Overdue, Paid []billing.Money
	Year                int // that Paid is for
}

// Invoice is /invoices/{id}.
type Invoice struct {
	Invoice billing.InvoiceDetail
	Plan    string // of its subscription, or ""
	// PayHref and ReceiptHref are "" where there is nothing to pay or nothing
	// was paid.
	PayHref, ReceiptHref string
}

// PaymentReceipt is /invoices/{id}/receipt: what was paid, with what, for what.
type PaymentReceipt struct {
	Invoice billing.InvoiceDetail
	// Payments are those that worked, the first one first.
	Payments []billing.Payment
	// Paid is their sum, without what was given back.
	Paid billing.Money
}

// Paths of one invoice, below PathInvoices.
const (
	PathInvoicesCSV = "/invoices.csv"
	PathInvoicesZIP = "/invoices.zip"
)

// The names of the fields of InvoiceSearch.
const (
	FieldSearch        = "q"
	FieldYear          = "year"
	FieldInvoiceStatus = "status"
	FieldSubscription  = "subscription"
)

// InvoicePath is the page of an invoice.
func InvoicePath(id string) string { return PathInvoices + "/" + id }

// InvoicePDFPath is the path of an invoice's document.
func InvoicePDFPath(id string) string { return InvoicePath(id) + "/pdf" }

// CreditNotePDFPath is the path of a credit note's document.
func CreditNotePDFPath(invoice, creditNote string) string {
	return InvoicePath(invoice) + "/credit-notes/" + creditNote + "/pdf"
}

// ReceiptPath is the receipt of what was paid on an invoice.
func ReceiptPath(id string) string { return InvoicePath(id) + "/receipt" }

// PayPath is where an invoice is paid.
func PayPath(id string) string { return "/pay/" + id }
