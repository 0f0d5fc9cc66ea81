package stripe

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// expandable is a field that holds an id, or the object where it was
// expanded.
type expandable[T any] struct {
	ID  string
	Obj *T
}

func (e *expandable[T]) UnmarshalJSON(b []byte) error {
	*e = expandable[T]{}
	if len(b) == 0 || b[0] == 'n' {
		return nil
	}
	if b[0] == '"' {
		return json.Unmarshal(b, &e.ID)
	}
	var id struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(b, &id); err != nil {
		return err
	}
	e.ID = id.ID
	e.Obj = new(T)
	return json.Unmarshal(b, e.Obj)
}

// stamp is a Unix time in seconds; 0 and null are "none".
type stamp int64

func (s stamp) time() time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(int64(s), 0).UTC()
}

type list[T any] struct {
	Object  string `json:"object"`
	Data    []T    `json:"data"`
	HasMore bool   `json:"has_more"`
}

type testClock struct {
	FrozenTime stamp `json:"frozen_time"`
}

// now is the provider's time at an answer: the frozen time of the test clock
// the object stands on, else the Date header.
func (a *answer) now(clock expandable[testClock]) time.Time {
	if clock.Obj != nil && clock.Obj.FrozenTime != 0 {
		return clock.Obj.FrozenTime.time()
	}
	return a.at
}

type address struct {
	Line1      string `json:"line1"`
	Line2      string `json:"line2"`
	City       string `json:"city"`
	State      string `json:"state"`
	PostalCode string `json:"postal_code"`
	Country    string `json:"country"`
}

type customer struct {
	Object          string               `json:"object"`
	ID              string               `json:"id"`
	Deleted         bool                 `json:"deleted"`
	Name            string               `json:"name"`
	Email           string               `json:"email"`
	Phone           string               `json:"phone"`
	Address         address              `json:"address"`
	Locales         []string             `json:"preferred_locales"`
	Balance         int64                `json:"balance"`
	Currency        string               `json:"currency"`
	DefaultSource   expandable[struct{}] `json:"default_source"`
	InvoiceSettings struct {
		DefaultPaymentMethod expandable[paymentMethod] `json:"default_payment_method"`
		CustomFields         []billing.InvoiceField    `json:"custom_fields"`
	} `json:"invoice_settings"`
	Created   stamp                 `json:"created"`
	Metadata  map[string]string     `json:"metadata"`
	TaxIDs    list[taxID]           `json:"tax_ids"`
	TestClock expandable[testClock] `json:"test_clock"`
}

func (c *customer) convert() billing.Customer {
	out := billing.Customer{
		ID: c.ID, Name: c.Name, Email: c.Email, Phone: c.Phone, Address: billing.Address(c.Address),
		Balance:              billing.Money{Amount: c.Balance, Currency: c.Currency},
		DefaultPaymentMethod: c.InvoiceSettings.DefaultPaymentMethod.ID,
	}
	if len(c.Locales) > 0 {
		out.Locale = c.Locales[0]
	}
	out.TaxIDs, out.InvoiceFields, out.Reference = c.taxIDs(), c.InvoiceSettings.CustomFields, c.Metadata[metaReference]
	out.Version = version(out.Name, out.Email, out.Phone, out.Address, out.DefaultPaymentMethod, out.Locale, out.TaxIDs, out.InvoiceFields)
	return out
}

// version is a short digest of what a change depends on.
func version(parts ...any) string {
	b, _ := json.Marshal(parts) // strings, numbers, booleans and structs of them: cannot fail
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}

type product struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Active   bool              `json:"active"`
	Deleted  bool              `json:"deleted"`
	Metadata map[string]string `json:"metadata"`
}

type price struct {
	Object            string              `json:"object"`
	ID                string              `json:"id"`
	Active            bool                `json:"active"`
	BillingScheme     string              `json:"billing_scheme"`
	Currency          string              `json:"currency"`
	LookupKey         string              `json:"lookup_key"`
	Metadata          map[string]string   `json:"metadata"`
	Product           expandable[product] `json:"product"`
	UnitAmount        *int64              `json:"unit_amount"`
	UnitAmountDecimal string              `json:"unit_amount_decimal"`
	TransformQuantity json.RawMessage     `json:"transform_quantity"`
	Recurring         *struct {
		Interval      string `json:"interval"`
		IntervalCount int    `json:"interval_count"`
		UsageType     string `json:"usage_type"`
		Meter         string `json:"meter"`
	} `json:"recurring"`
	TiersMode string `json:"tiers_mode"`
	// Tiers are there where they were expanded, or filled in by setTiers.
	Tiers []priceTier `json:"tiers"`
}

// perUnit reports whether a price costs a fixed sum per unit and period, the
// only kind that this build sells.
func (p *price) perUnit() bool {
	return p.Recurring != nil && p.Recurring.UsageType != "metered" && p.BillingScheme != "tiered" &&
		(p.UnitAmount != nil || p.UnitAmountDecimal != "") &&
		(len(p.TransformQuantity) == 0 || string(p.TransformQuantity) == "null")
}

func (p *price) convert(products map[string]product) (billing.Price, error) {
	out := billing.Price{
		ID: p.ID, LookupKey: p.LookupKey, Product: p.Product.ID, Currency: p.Currency, Active: p.Active,
		Metadata: map[string]string{},
	}
	pr := p.Product.Obj
	if q, ok := products[p.Product.ID]; ok && pr == nil {
		pr = &q
	}
	if pr != nil {
		out.ProductName = pr.Name
		maps.Copy(out.Metadata, pr.Metadata)
	}
	maps.Copy(out.Metadata, p.Metadata)
	if p.Recurring != nil {
		out.Interval, out.IntervalCount = billing.Interval(p.Recurring.Interval), p.Recurring.IntervalCount
		out.Metered, out.Meter = p.metered(), p.Recurring.Meter
	}
	if err := p.convertTiers(&out); err != nil {
		return billing.Price{}, err
	}
	switch {
	case p.UnitAmountDecimal != "":
		d, err := decimal.NewFromString(p.UnitAmountDecimal)
		if err != nil {
			return billing.Price{}, fmt.Errorf("price %s: unit_amount_decimal is not a number", p.ID)
		}
		out.UnitAmount = d
	case p.UnitAmount != nil:
		out.UnitAmount = decimal.NewFromInt(*p.UnitAmount)
	}
	return out, nil
}

type subscriptionItem struct {
	ID          string `json:"id"`
	Price       price  `json:"price"`
	Quantity    int64  `json:"quantity"`
	PeriodStart stamp  `json:"current_period_start"`
	PeriodEnd   stamp  `json:"current_period_end"`
}

type pendingUpdate struct {
	ExpiresAt stamp              `json:"expires_at"`
	Items     []subscriptionItem `json:"subscription_items"`
	Metadata  map[string]string  `json:"metadata"`
}

type subscription struct {
	Object               string                    `json:"object"`
	ID                   string                    `json:"id"`
	Customer             expandable[customer]      `json:"customer"`
	Status               string                    `json:"status"`
	Currency             string                    `json:"currency"`
	Created              stamp                     `json:"created"`
	Items                list[subscriptionItem]    `json:"items"`
	TrialEnd             stamp                     `json:"trial_end"`
	CancelAt             stamp                     `json:"cancel_at"`
	CancelAtPeriodEnd    bool                      `json:"cancel_at_period_end"`
	CanceledAt           stamp                     `json:"canceled_at"`
	EndedAt              stamp                     `json:"ended_at"`
	CollectionMethod     string                    `json:"collection_method"`
	DefaultPaymentMethod expandable[paymentMethod] `json:"default_payment_method"`
	DefaultSource        expandable[struct{}]      `json:"default_source"`
	LatestInvoice        expandable[invoice]       `json:"latest_invoice"`
	Metadata             map[string]string         `json:"metadata"`
	PauseCollection      *struct {
		Behavior string `json:"behavior"`
	} `json:"pause_collection"`
	PendingUpdate *pendingUpdate        `json:"pending_update"`
	Schedule      expandable[struct{}]  `json:"schedule"`
	TestClock     expandable[testClock] `json:"test_clock"`
	Anchor        stamp                 `json:"billing_cycle_anchor"`
}

func convertItems(in []subscriptionItem, products map[string]product) ([]billing.Item, error) {
	out := make([]billing.Item, 0, len(in))
	for _, it := range in {
		pr, err := it.Price.convert(products)
		if err != nil {
			return nil, err
		}
		out = append(out, billing.Item{
			ID: it.ID, Price: pr, Quantity: it.Quantity, PeriodStart: it.PeriodStart.time(), PeriodEnd: it.PeriodEnd.time(),
		})
	}
	return out, nil
}

// convert makes the portal's subscription. confirm is where a waiting payment
// is confirmed, or "".
func (s *subscription) convert(products map[string]product, confirm string) (billing.Subscription, error) {
	items, err := convertItems(s.Items.Data, products)
	if err != nil {
		return billing.Subscription{}, err
	}
	out := billing.Subscription{
		ID: s.ID, Status: billing.SubscriptionStatus(s.Status), Items: items, Currency: s.Currency, Created: s.Created.time(),
		TrialEnd: s.TrialEnd.time(), CancelAtPeriodEnd: s.CancelAtPeriodEnd, CancelAt: s.CancelAt.time(),
		CanceledAt: s.CanceledAt.time(), EndedAt: s.EndedAt.time(), DefaultPaymentMethod: s.DefaultPaymentMethod.ID,
		SendInvoice: s.CollectionMethod == "send_invoice", Scheduled: s.Schedule.ID != "",
	}
	if u := s.PendingUpdate; u != nil {
		pending, err := convertItems(u.Items, products)
		if err != nil {
			return billing.Subscription{}, err
		}
		out.Pending = &billing.PendingUpdate{Items: pending, InvoiceID: s.LatestInvoice.ID, ExpiresAt: u.ExpiresAt.time(), ConfirmURL: confirm}
		if inv := s.LatestInvoice.Obj; inv != nil {
			out.Pending.AmountDue = billing.Money{Amount: inv.AmountRemaining, Currency: inv.Currency}
		}
	}
	out.Version = s.version()
	return out, nil
}

func (s *subscription) version() string {
	parts := []any{s.Status, s.TrialEnd, s.CancelAt, s.CancelAtPeriodEnd, s.EndedAt, s.CollectionMethod, s.DefaultPaymentMethod.ID, s.Schedule.ID}
	add := func(items []subscriptionItem) {
		for _, it := range items {
			parts = append(parts, it.ID, it.Price.ID, it.Quantity, it.PeriodStart, it.PeriodEnd)
		}
	}
	add(s.Items.Data)
	if u := s.PendingUpdate; u != nil {
		parts = append(parts, "pending", u.ExpiresAt, s.LatestInvoice.ID)
		add(u.Items)
	}
	return version(parts...)
}

func (s *subscription) ended() bool {
	return s.Status == string(billing.Canceled) || s.Status == string(billing.IncompleteExpired)
}

// periodEnd is the end of the current period: the earliest of the items'.
func (s *subscription) periodEnd() time.Time {
	var end stamp
	for _, it := range s.Items.Data {
		if end == 0 || it.PeriodEnd < end {
			end = it.PeriodEnd
		}
	}
	return end.time()
}

// renews reports whether there will be another regular invoice.
func (s *subscription) renews() bool {
	switch billing.SubscriptionStatus(s.Status) {
	case billing.Active, billing.Trialing, billing.PastDue:
	default:
		return false
	}
	if s.CancelAtPeriodEnd || s.PauseCollection != nil {
		return false
	}
	return s.CancelAt == 0 || s.CancelAt.time().After(s.periodEnd())
}

type paymentMethod struct {
	Object   string               `json:"object"`
	ID       string               `json:"id"`
	Type     string               `json:"type"`
	Customer expandable[struct{}] `json:"customer"`
	Card     *struct {
		Brand    string `json:"brand"`
		Last4    string `json:"last4"`
		ExpMonth int    `json:"exp_month"`
		ExpYear  int    `json:"exp_year"`
		Country  string `json:"country"`
		Wallet   *struct {
			Type string `json:"type"`
		} `json:"wallet"`
	} `json:"card"`
	SEPADebit     *account `json:"sepa_debit"`
	USBankAccount *account `json:"us_bank_account"`
	BACSDebit     *account `json:"bacs_debit"`
	AUBECSDebit   *account `json:"au_becs_debit"`
	ACSSDebit     *account `json:"acss_debit"`
	Link          *account `json:"link"`
	PayPal        *account `json:"paypal"`
}

// account is a bank's or a wallet's account; each type has some of it.
type account struct {
	Last4      string `json:"last4"`
	BankName   string `json:"bank_name"`
	BankCode   string `json:"bank_code"`
	Country    string `json:"country"`
	Email      string `json:"email"`
	PayerEmail string `json:"payer_email"`
}

func (m *paymentMethod) convert() billing.PaymentMethod {
	out := billing.PaymentMethod{ID: m.ID, Type: m.Type}
	if c := m.Card; c != nil {
		out.Brand, out.Last4, out.ExpMonth, out.ExpYear, out.Country = c.Brand, c.Last4, c.ExpMonth, c.ExpYear, c.Country
		if c.Wallet != nil {
			out.Wallet = c.Wallet.Type
		}
	}
	for _, a := range []*account{m.SEPADebit, m.USBankAccount, m.BACSDebit, m.AUBECSDebit, m.ACSSDebit, m.Link, m.PayPal} {
		if a != nil {
			out.Last4, out.Country, out.Bank, out.Email = a.Last4, a.Country, cmp.Or(a.BankName, a.BankCode), cmp.Or(a.Email, a.PayerEmail)
		}
	}
	if m.USBankAccount != nil {
		out.Country = "US"
	}
	return out
}

// delayed reports whether a payment with m is only known to have worked days
// later. Such ones cannot hold a change back (pending updates).
func (m *paymentMethod) delayed() bool {
	switch m.Type {
	case "acss_debit", "au_becs_debit", "bacs_debit", "boleto", "customer_balance", "konbini", "multibanco", "nz_bank_account", "sepa_debit", "us_bank_account":
		return true
	}
	return false
}

type invoiceLine struct {
	ID          string `json:"id"`
	Description string `json:"description"`
	Amount      int64  `json:"amount"`
	Currency    string `json:"currency"`
	Quantity    int64  `json:"quantity"`
	Period      struct {
		Start stamp `json:"start"`
		End   stamp `json:"end"`
	} `json:"period"`
	Pricing *struct {
		PriceDetails *struct {
			Price expandable[struct{}] `json:"price"`
		} `json:"price_details"`
	} `json:"pricing"`
	Parent *struct {
		InvoiceItemDetails *struct {
			Proration bool `json:"proration"`
		} `json:"invoice_item_details"`
		SubscriptionItemDetails *struct {
			Proration bool `json:"proration"`
		} `json:"subscription_item_details"`
	} `json:"parent"`
}

func (l *invoiceLine) convert() billing.Line {
	out := billing.Line{
		Description: l.Description, Quantity: l.Quantity, Amount: billing.Money{Amount: l.Amount, Currency: l.Currency},
		PeriodStart: l.Period.Start.time(), PeriodEnd: l.Period.End.time(),
	}
	if l.Pricing != nil && l.Pricing.PriceDetails != nil {
		out.Price = l.Pricing.PriceDetails.Price.ID
	}
	if l.Parent != nil {
		out.Proration = l.Parent.InvoiceItemDetails != nil && l.Parent.InvoiceItemDetails.Proration ||
			l.Parent.SubscriptionItemDetails != nil && l.Parent.SubscriptionItemDetails.Proration
	}
	return out
}

type invoice struct {
	Object               string               `json:"object"`
	ID                   string               `json:"id"`
	Customer             expandable[struct{}] `json:"customer"`
	Number               string               `json:"number"`
	Status               string               `json:"status"`
	CollectionMethod     string               `json:"collection_method"`
	DefaultPaymentMethod expandable[struct{}] `json:"default_payment_method"`
	DefaultSource        expandable[struct{}] `json:"default_source"`
	Payments             list[invoicePayment] `json:"payments"`
	Description          string               `json:"description"`
	BillingReason        string               `json:"billing_reason"`
	Created              stamp                `json:"created"`
	DueDate              stamp                `json:"due_date"`
	Currency             string               `json:"currency"`
	Subtotal             int64                `json:"subtotal"`
	Total                int64                `json:"total"`
	AmountDue            int64                `json:"amount_due"`
	AmountPaid           int64                `json:"amount_paid"`
	AmountRemaining      int64                `json:"amount_remaining"`
	StartingBalance      int64                `json:"starting_balance"`
	TotalTaxes           []struct {
		Amount int64 `json:"amount"`
	} `json:"total_taxes"`
	Attempted   bool              `json:"attempted"`
	NextAttempt stamp             `json:"next_payment_attempt"`
	PDF         string            `json:"invoice_pdf"`
	HostedURL   string            `json:"hosted_invoice_url"`
	Lines       list[invoiceLine] `json:"lines"`
	Parent      *struct {
		SubscriptionDetails *struct {
			Subscription expandable[struct{}] `json:"subscription"`
		} `json:"subscription_details"`
	} `json:"parent"`
}

func (v *invoice) money(n int64) billing.Money {
	return billing.Money{Amount: n, Currency: v.Currency}
}

func (v *invoice) tax() billing.Money {
	var n int64
	for _, t := range v.TotalTaxes {
		n += t.Amount
	}
	return v.money(n)
}

func (v *invoice) lines() []billing.Line {
	out := make([]billing.Line, 0, len(v.Lines.Data))
	for i := range v.Lines.Data {
		out = append(out, v.Lines.Data[i].convert())
	}
	return out
}

func (v *invoice) subscription() string {
	if v.Parent == nil || v.Parent.SubscriptionDetails == nil {
		return ""
	}
	return v.Parent.SubscriptionDetails.Subscription.ID
}

// convert makes the portal's invoice. pending holds the ids of the invoices
// that a waiting change depends on.
func (v *invoice) convert(pending map[string]bool) billing.Invoice {
	out := billing.Invoice{
		ID: v.ID, Number: v.Number, Status: billing.InvoiceStatus(v.Status), Subscription: v.subscription(),
		Description: v.Description, Created: v.Created.time(), DueDate: v.DueDate.time(), Lines: v.lines(),
		Subtotal: v.money(v.Subtotal), Tax: v.tax(), Total: v.money(v.Total), AmountDue: v.money(v.AmountDue),
		AmountPaid: v.money(v.AmountPaid), AmountRemaining: v.money(v.AmountRemaining), Attempted: v.Attempted,
		NextAttempt: v.NextAttempt.time(), ForPendingUpdate: pending[v.ID], HasDocument: v.PDF != "" && v.Status != "draft",
		SendInvoice: v.CollectionMethod == "send_invoice",
	}
	if out.Description == "" && len(out.Lines) > 0 {
		// The dearest line says best what a bill is for.
		out.Description = slices.MaxFunc(out.Lines, func(a, b billing.Line) int {
			return cmp.Compare(a.Amount.Amount, b.Amount.Amount)
		}).Description
	}
	return out
}

type setupIntent struct {
	ID            string               `json:"id"`
	Status        string               `json:"status"`
	Customer      expandable[struct{}] `json:"customer"`
	PaymentMethod expandable[struct{}] `json:"payment_method"`
}

type checkoutSession struct {
	Object      string                  `json:"object"`
	ID          string                  `json:"id"`
	Customer    expandable[struct{}]    `json:"customer"`
	Mode        string                  `json:"mode"`
	Status      string                  `json:"status"`
	URL         string                  `json:"url"`
	ExpiresAt   stamp                   `json:"expires_at"`
	Metadata    map[string]string       `json:"metadata"`
	SetupIntent expandable[setupIntent] `json:"setup_intent"`
}

type paymentIntent struct {
	Object        string                    `json:"object"`
	Created       stamp                     `json:"created"`
	Amount        int64                     `json:"amount"`
	ID            string                    `json:"id"`
	Status        string                    `json:"status"`
	PaymentMethod expandable[paymentMethod] `json:"payment_method"`
	NextAction    *struct {
		RedirectToURL *struct {
			URL string `json:"url"`
		} `json:"redirect_to_url"`
	} `json:"next_action"`
	LastPaymentError *struct {
		Code          string         `json:"code"`
		DeclineCode   string         `json:"decline_code"`
		PaymentMethod *paymentMethod `json:"payment_method"`
	} `json:"last_payment_error"`
}

type invoicePayment struct {
	Status    string `json:"status"`
	IsDefault bool   `json:"is_default"`
	Payment   struct {
		PaymentIntent expandable[paymentIntent] `json:"payment_intent"`
	} `json:"payment"`
}
