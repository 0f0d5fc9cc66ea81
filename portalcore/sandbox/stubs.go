package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

var errUnbuilt = errors.New("ledger: not there yet")

// Open opens the ledger in db.
func Open(ctx context.Context, db store.Store, opts Options) (*Ledger, error) { return nil, errUnbuilt }

// Now is the ledger's time.
func (l *Ledger) Now(ctx context.Context) (time.Time, error) { return time.Time{}, errUnbuilt }

// Advance moves ledger time forward by d and carries out all that falls due on
// the way, in order. It returns the new time.
func (l *Ledger) Advance(ctx context.Context, d time.Duration) (time.Time, error) {
	return time.Time{}, errUnbuilt
}

// Effects returns every effect with Seq greater than after, oldest first.
func (l *Ledger) Effects(ctx context.Context, after int64) ([]Effect, error) { return nil, errUnbuilt }

// Saved returns what is kept under an idempotency key, however old.
func (l *Ledger) Saved(ctx context.Context, key string) (SavedCall, bool, error) {
	return SavedCall{}, false, errUnbuilt
}

// Reads. They fail with an *Error of code resource_missing where there is no
// such object. Lists are newest first unless said otherwise.

func (l *Ledger) Customer(ctx context.Context, id string) (Customer, error) {
	return Customer{}, errUnbuilt
}
func (l *Ledger) Customers(ctx context.Context) ([]Customer, error) { return nil, errUnbuilt }
func (l *Ledger) Product(ctx context.Context, id string) (Product, error) {
	return Product{}, errUnbuilt
}
func (l *Ledger) Price(ctx context.Context, id string) (Price, error) { return Price{}, errUnbuilt }
func (l *Ledger) Prices(ctx context.Context, f PriceFilter) ([]Price, error) {
	return nil, errUnbuilt
}
func (l *Ledger) Subscription(ctx context.Context, id string) (Subscription, error) {
	return Subscription{}, errUnbuilt
}

// Subscriptions lists all of a customer's, ended ones too.
func (l *Ledger) Subscriptions(ctx context.Context, customer string) ([]Subscription, error) {
	return nil, errUnbuilt
}
func (l *Ledger) PaymentMethod(ctx context.Context, id string) (PaymentMethod, error) {
	return PaymentMethod{}, errUnbuilt
}
func (l *Ledger) PaymentMethods(ctx context.Context, customer string) ([]PaymentMethod, error) {
	return nil, errUnbuilt
}
func (l *Ledger) Invoice(ctx context.Context, id string) (Invoice, error) {
	return Invoice{}, errUnbuilt
}

// Invoices returns one page and whether there are more.
func (l *Ledger) Invoices(ctx context.Context, f InvoiceFilter) ([]Invoice, bool, error) {
	return nil, false, errUnbuilt
}

// InvoicePDF is the invoice's document.
func (l *Ledger) InvoicePDF(ctx context.Context, id string) ([]byte, error) { return nil, errUnbuilt }
func (l *Ledger) PaymentIntent(ctx context.Context, id string) (PaymentIntent, error) {
	return PaymentIntent{}, errUnbuilt
}

// CheckoutSession reads a session by its id (cs_) or its setup intent's (seti_).
func (l *Ledger) CheckoutSession(ctx context.Context, id string) (CheckoutSession, error) {
	return CheckoutSession{}, errUnbuilt
}
func (l *Ledger) BalanceTransactions(ctx context.Context, customer string) ([]BalanceTransaction, error) {
	return nil, errUnbuilt
}

// Preview is POST /v1/invoices/create_preview. Code invoice_upcoming_none
// where there is no next invoice.
func (l *Ledger) Preview(ctx context.Context, p PreviewParams) (Invoice, error) {
	return Invoice{}, errUnbuilt
}

// Changes.

func (l *Ledger) CreateCustomer(ctx context.Context, c Call, p CustomerParams) (Customer, error) {
	return Customer{}, errUnbuilt
}
func (l *Ledger) UpdateCustomer(ctx context.Context, c Call, id string, p CustomerParams) (Customer, error) {
	return Customer{}, errUnbuilt
}

// AdjustBalance adds amount to the customer's balance (below zero: credit).
func (l *Ledger) AdjustBalance(ctx context.Context, c Call, customer string, amount int64, currency string) (BalanceTransaction, error) {
	return BalanceTransaction{}, errUnbuilt
}
func (l *Ledger) CreateProduct(ctx context.Context, c Call, p ProductParams) (Product, error) {
	return Product{}, errUnbuilt
}
func (l *Ledger) CreatePrice(ctx context.Context, c Call, p PriceParams) (Price, error) {
	return Price{}, errUnbuilt
}

// AddCard enters a test card and attaches it to the customer. CardError
// card_declined for the card that cannot be added.
func (l *Ledger) AddCard(ctx context.Context, c Call, customer string, p CardParams) (PaymentMethod, error) {
	return PaymentMethod{}, errUnbuilt
}
func (l *Ledger) CreateSession(ctx context.Context, c Call, p SessionParams) (CheckoutSession, error) {
	return CheckoutSession{}, errUnbuilt
}

// CompleteSession is what the customer does on the card page.
func (l *Ledger) CompleteSession(ctx context.Context, c Call, id string, p CardParams) (CheckoutSession, error) {
	return CheckoutSession{}, errUnbuilt
}

// ExpireSession is POST /v1/checkout/sessions/{id}/expire.
func (l *Ledger) ExpireSession(ctx context.Context, c Call, id string) (CheckoutSession, error) {
	return CheckoutSession{}, errUnbuilt
}
func (l *Ledger) CreateSubscription(ctx context.Context, c Call, p SubscriptionCreate) (Subscription, error) {
	return Subscription{}, errUnbuilt
}

// UpdateSubscription is POST /v1/subscriptions/{id}.
func (l *Ledger) UpdateSubscription(ctx context.Context, c Call, id string, p SubscriptionUpdate) (Subscription, error) {
	return Subscription{}, errUnbuilt
}

// CancelSubscription ends it now, without proration (DELETE; invoice_now and
// prorate are false).
func (l *Ledger) CancelSubscription(ctx context.Context, c Call, id string) (Subscription, error) {
	return Subscription{}, errUnbuilt
}

// PayInvoice is POST /v1/invoices/{id}/pay. CardError card_declined, or
// authentication_required where the customer has to confirm first.
func (l *Ledger) PayInvoice(ctx context.Context, c Call, id string, p PayParams) (Invoice, error) {
	return Invoice{}, errUnbuilt
}

// VoidInvoice voids an open invoice; balance it used comes back, and a pending
// update that waits for it is dropped.
func (l *Ledger) VoidInvoice(ctx context.Context, c Call, id string) (Invoice, error) {
	return Invoice{}, errUnbuilt
}

// ConfirmPayment is what the customer does on the confirmation page of a
// payment that requires action: confirm, which pays the invoice, or decline.
func (l *Ledger) ConfirmPayment(ctx context.Context, c Call, id string, confirm bool) (PaymentIntent, error) {
	return PaymentIntent{}, errUnbuilt
}
