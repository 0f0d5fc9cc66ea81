package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// TestCard is one of the numbers that the sandbox knows: of a card, of a bank
// account, or a name that stands for a wallet's account.
type TestCard struct {
	Number string
	// Type is Stripe's payment_method.type. Default: card.
	Type  string
	Brand string
	// Wallet, Bank, Country and Email are the payment method's.
	Wallet, Bank, Country, Email string
	Behavior                     CardBehavior
	// Declined is true for the card that cannot be added.
	Declined bool
	// Text says what it does.
	Text string
}

// TestCards are Stripe's test cards that the sandbox knows
// (docs.stripe.com/testing). No other number is taken.
var TestCards = []TestCard{
	{Number: "4242424242424242", Brand: "visa", Country: "US", Behavior: CardWorks, Text: "Works"},
	{Number: "5555555555554444", Brand: "mastercard", Country: "US", Behavior: CardWorks, Text: "Works"},
	{Number: "4000000000000341", Brand: "visa", Country: "US", Behavior: CardDeclinesCharges, Text: "Can be added, and is declined when it is charged"},
	{Number: "4000000000009995", Brand: "visa", Country: "US", Behavior: CardInsufficientFunds, Text: "Can be added, and has insufficient funds when it is charged"},
	{Number: "4000000000000069", Brand: "visa", Country: "US", Behavior: CardExpired, Text: "Can be added, and is declined as expired when it is charged"},
	{Number: "4000000000009987", Brand: "visa", Country: "US", Behavior: CardLost, Text: "Can be added, and is declined as lost when it is charged"},
	{Number: "4000002500003155", Brand: "visa", Country: "US", Behavior: CardAsks, Text: "Asks you to confirm payments (3-D Secure)"},
	{Number: "4000002760003184", Brand: "visa", Country: "US", Behavior: CardAsksAlways, Text: "Asks you to confirm every payment, renewals too"},
	{Number: "4000000000000002", Brand: "visa", Declined: true, Text: "Is declined when it is added"},
}

// TestAccounts are the other ways to pay that the sandbox knows: Stripe's test
// bank accounts (docs.stripe.com/payments/sepa-debit/accept-a-payment,
// docs.stripe.com/payments/ach-direct-debit/accept-a-payment), and names of the
// sandbox's own for what Stripe asks for on pages of its own.
var TestAccounts = []TestCard{
	{Number: "DE89370400440532013000", Type: "sepa_debit", Bank: "37040044", Country: "DE", Behavior: CardWorks, Text: "SEPA debit: works, days later"},
	{Number: "DE62370400440532013001", Type: "sepa_debit", Bank: "37040044", Country: "DE", Behavior: DebitReturned, Text: "SEPA debit: fails, days later"},
	{Number: "000123456789", Type: "us_bank_account", Bank: "STRIPE TEST BANK", Country: "US", Behavior: CardWorks, Text: "US bank account: works, days later"},
	{Number: "000222222227", Type: "us_bank_account", Bank: "STRIPE TEST BANK", Country: "US", Behavior: CardInsufficientFunds, Text: "US bank account: has insufficient funds, days later"},
	{Number: "apple_pay", Brand: "visa", Wallet: "apple_pay", Country: "US", Behavior: CardWorks, Text: "Apple Pay: works"},
	{Number: "google_pay", Brand: "mastercard", Wallet: "google_pay", Country: "US", Behavior: CardWorks, Text: "Google Pay: works"},
	{Number: "link", Type: "link", Email: "wallet@example.com", Behavior: CardWorks, Text: "Link: works"},
	{Number: "paypal", Type: "paypal", Email: "wallet@example.com", Country: "US", Behavior: CardWorks, Text: "PayPal: works"},
	{Number: "bank_transfer", Type: "customer_balance", Behavior: CardDeclinesCharges, Text: "Bank transfer: waits for you to send the money"},
}

// Customer reads a customer. Code resource_missing where there is none.
func (l *Ledger) Customer(ctx context.Context, id string) (Customer, error) {
	return read(ctx, l, func(w *work) (Customer, error) { return get[Customer](w, "customer", id) })
}

// Customers lists all customers by id.
func (l *Ledger) Customers(ctx context.Context) ([]Customer, error) {
	return read(ctx, l, func(w *work) ([]Customer, error) { return all[Customer](w, "customer") })
}

// CreateCustomer is POST /v1/customers.
func (l *Ledger) CreateCustomer(ctx context.Context, c Call, p CustomerParams) (Customer, error) {
	return change(ctx, l, c, "customer.create", p, func(w *work) (Customer, error) { return w.createCustomer(p) })
}

func (w *work) createCustomer(p CustomerParams) (Customer, error) {
	c := Customer{ID: p.ID, Created: w.now, NextInvoiceSequence: 1}
	if c.ID == "" {
		c.ID = w.id("cus")
	}
	if _, found, err := lookup[Customer](w.tx, "customer", c.ID); err != nil {
		return c, err
	} else if found {
		return c, exists("id", c.ID)
	}
	sum := sha256.Sum256([]byte(c.ID))
	c.InvoicePrefix = strings.ToUpper(hex.EncodeToString(sum[:4]))
	if p.DefaultPaymentMethod != nil {
		return c, invalid("default_payment_method", "A new customer has no payment method yet.")
	}
	if err := w.applyCustomer(&c, p); err != nil {
		return c, err
	}
	if err := write(w.tx, "customer", c.ID, c); err != nil {
		return c, err
	}
	return c, w.effect("customer.create", c.ID, c.ID)
}

// UpdateCustomer is POST /v1/customers/{id}.
func (l *Ledger) UpdateCustomer(ctx context.Context, c Call, id string, p CustomerParams) (Customer, error) {
	return change(ctx, l, c, "customer.update", []any{id, p}, func(w *work) (Customer, error) { return w.updateCustomer(id, p) })
}

func (w *work) updateCustomer(id string, p CustomerParams) (Customer, error) {
	c, err := get[Customer](w, "customer", id)
	if err != nil {
		return c, err
	}
	if p.ID != "" {
		return c, invalid("id", "An id cannot be changed.")
	}
	if err := w.applyCustomer(&c, p); err != nil {
		return c, err
	}
	if err := write(w.tx, "customer", c.ID, c); err != nil {
		return c, err
	}
	return c, w.effect("customer.update", c.ID, c.ID)
}

func (w *work) applyCustomer(c *Customer, p CustomerParams) error {
	for _, f := range []struct {
		param string
		from  *string
		to    *string
		limit int
	}{
		{"name", p.Name, &c.Name, 256}, {"email", p.Email, &c.Email, 512}, {"phone", p.Phone, &c.Phone, 20},
	} {
		if f.from == nil {
			continue
		}
		if len(*f.from) > f.limit {
			return invalid(f.param, "Invalid string: it may have at most %d characters.", f.limit)
		}
		*f.to = *f.from
	}
	if p.Email != nil && *p.Email != "" {
		if local, host, ok := strings.Cut(*p.Email, "@"); !ok || local == "" || !strings.Contains(host, ".") || strings.ContainsAny(*p.Email, " \t\r\n") {
			return &Error{Status: 400, Type: InvalidRequest, Code: "email_invalid", Param: "email", Message: "Invalid email address."}
		}
	}
	if p.Address != nil {
		if n := len(p.Address.Country); n != 0 && n != 2 {
			return invalid("address[country]", "A country has two letters (ISO 3166-1 alpha-2).")
		}
		c.Address = *p.Address
	}
	if p.PreferredLocales != nil {
		c.PreferredLocales = slices.Clone(p.PreferredLocales)
	}
	if p.InvoiceFields != nil {
		if len(*p.InvoiceFields) > billing.MaxInvoiceFields {
			return invalid("invoice_settings[custom_fields]", "There are at most %d custom fields.", billing.MaxInvoiceFields)
		}
		for _, f := range *p.InvoiceFields {
			if !f.Valid() {
				return invalid("invoice_settings[custom_fields]", "A custom field has a name of 1 to 40 and a value of 1 to 140 characters.")
			}
		}
		c.InvoiceFields = slices.Clone(*p.InvoiceFields)
	}
	c.Metadata = mergeMetadata(c.Metadata, p.Metadata)
	if p.TaxPercent != nil {
		if p.TaxPercent.IsNegative() || p.TaxPercent.GreaterThan(decimal.NewFromInt(100)) || !p.TaxPercent.Equal(p.TaxPercent.Round(4)) {
			return invalid("tax_percent", "A tax rate is 0 to 100 with at most 4 decimals.")
		}
		c.TaxPercent = *p.TaxPercent
	}
	if p.DefaultPaymentMethod != nil {
		if err := w.owns(c.ID, *p.DefaultPaymentMethod); err != nil {
			return err
		}
		c.DefaultPaymentMethod = *p.DefaultPaymentMethod
	}
	return nil
}

// owns checks that a payment method, where one is named, is the customer's.
func (w *work) owns(customer, paymentMethod string) error {
	if paymentMethod == "" {
		return nil
	}
	pm, err := get[PaymentMethod](w, "payment_method", paymentMethod)
	if err != nil {
		return err
	}
	if pm.Customer != customer {
		return missing("payment_method", paymentMethod)
	}
	return nil
}

func mergeMetadata(old, change map[string]string) map[string]string {
	m := maps.Clone(old)
	for k, v := range change {
		if m == nil {
			m = map[string]string{}
		}
		if v == "" {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	return m
}

func exists(param, id string) *Error {
	return &Error{Status: 400, Type: InvalidRequest, Code: "resource_already_exists", Param: param, Message: "There is already an object with id " + id + "."}
}

// AdjustBalance adds amount to the customer's balance (below zero: credit):
// POST /v1/customers/{id}/balance_transactions.
func (l *Ledger) AdjustBalance(ctx context.Context, c Call, customer string, amount int64, currency string) (BalanceTransaction, error) {
	return change(ctx, l, c, "balance.adjust", []any{customer, amount, currency}, func(w *work) (BalanceTransaction, error) {
		cus, err := get[Customer](w, "customer", customer)
		if err != nil {
			return BalanceTransaction{}, err
		}
		if amount == 0 || amount > 1e12 || amount < -1e12 {
			return BalanceTransaction{}, invalid("amount", "The amount must not be 0 or huge.")
		}
		if err := cus.use(currency); err != nil {
			return BalanceTransaction{}, err
		}
		t, err := w.moveBalance(&cus, amount, "adjustment", "")
		if err != nil {
			return t, err
		}
		if err := write(w.tx, "customer", cus.ID, cus); err != nil {
			return t, err
		}
		return t, w.effect("balance.adjust", cus.ID, t.ID)
	})
}

// use fixes the customer's currency, or refuses another one.
func (c *Customer) use(currency string) error {
	if len(currency) != 3 || strings.ToLower(currency) != currency {
		return invalid("currency", "Invalid currency: %q.", currency)
	}
	if c.Currency != "" && c.Currency != currency {
		return invalid("currency", "You cannot combine currencies on a single customer. This customer has %s.", c.Currency)
	}
	c.Currency = currency
	return nil
}

// moveBalance changes c, which the caller writes.
func (w *work) moveBalance(c *Customer, amount int64, kind, invoice string) (BalanceTransaction, error) {
	c.Balance += amount
	t := BalanceTransaction{ID: w.id("cbtxn"), Created: w.now, Customer: c.ID, Amount: amount, Currency: c.Currency, EndingBalance: c.Balance, Type: kind, Invoice: invoice}
	if err := write(w.tx, "balance_transaction", t.ID, t); err != nil {
		return t, err
	}
	return t, w.index("balance_transaction", c.ID, t.ID, t.Created)
}

// BalanceTransactions lists what moved the customer's balance, newest first.
func (l *Ledger) BalanceTransactions(ctx context.Context, customer string) ([]BalanceTransaction, error) {
	return read(ctx, l, func(w *work) ([]BalanceTransaction, error) {
		return listOf[BalanceTransaction](w, "balance_transaction", customer)
	})
}

// listOf is all of an existing customer's objects of one kind.
func listOf[T any](w *work, kind, customer string) ([]T, error) {
	if _, err := get[Customer](w, "customer", customer); err != nil {
		return nil, err
	}
	var list []T
	err := ofCustomer(w, kind, customer, "", false, func(v T) bool { list = append(list, v); return true })
	return list, err
}

// Product reads a product.
func (l *Ledger) Product(ctx context.Context, id string) (Product, error) {
	return read(ctx, l, func(w *work) (Product, error) { return get[Product](w, "product", id) })
}

// Products lists all products by id.
func (l *Ledger) Products(ctx context.Context) ([]Product, error) {
	return read(ctx, l, func(w *work) ([]Product, error) { return all[Product](w, "product") })
}

// CreateProduct is POST /v1/products.
func (l *Ledger) CreateProduct(ctx context.Context, c Call, p ProductParams) (Product, error) {
	return change(ctx, l, c, "product.create", p, func(w *work) (Product, error) { return w.createProduct(p) })
}

func (w *work) createProduct(p ProductParams) (Product, error) {
	pr := Product{ID: p.ID, Created: w.now, Name: p.Name, Active: true, Metadata: maps.Clone(p.Metadata)}
	if pr.ID == "" {
		pr.ID = w.id("prod")
	}
	if p.Name == "" {
		return pr, invalid("name", "A product needs a name.")
	}
	if _, found, err := lookup[Product](w.tx, "product", pr.ID); err != nil {
		return pr, err
	} else if found {
		return pr, exists("id", pr.ID)
	}
	if err := write(w.tx, "product", pr.ID, pr); err != nil {
		return pr, err
	}
	return pr, w.effect("product.create", "", pr.ID)
}

// Price reads a price.
func (l *Ledger) Price(ctx context.Context, id string) (Price, error) {
	return read(ctx, l, func(w *work) (Price, error) { return get[Price](w, "price", id) })
}

// Prices lists the prices that f selects, by id.
func (l *Ledger) Prices(ctx context.Context, f PriceFilter) ([]Price, error) {
	return read(ctx, l, func(w *work) ([]Price, error) {
		list, err := all[Price](w, "price")
		return slices.DeleteFunc(list, func(p Price) bool {
			return f.Active != nil && *f.Active != p.Active || f.Product != "" && f.Product != p.Product ||
				f.LookupKeys != nil && !slices.Contains(f.LookupKeys, p.LookupKey)
		}), err
	})
}

// CreatePrice is POST /v1/prices.
func (l *Ledger) CreatePrice(ctx context.Context, c Call, p PriceParams) (Price, error) {
	return change(ctx, l, c, "price.create", p, func(w *work) (Price, error) { return w.createPrice(p) })
}

func (w *work) createPrice(p PriceParams) (Price, error) {
	pr := Price{
		ID: p.ID, Created: w.now, Product: p.Product, Active: true, Currency: p.Currency, UnitAmount: p.UnitAmount,
		Interval: p.Interval, IntervalCount: max(p.IntervalCount, 1), LookupKey: p.LookupKey, Metadata: maps.Clone(p.Metadata),
		Meter: p.Meter, Tiers: slices.Clone(p.Tiers), TiersMode: p.TiersMode,
	}
	if pr.ID == "" {
		pr.ID = w.id("price")
	}
	limit, known := map[billing.Interval]int{billing.Day: 1095, billing.Week: 156, billing.Month: 36, billing.Year: 3}[p.Interval]
	switch {
	case !known || pr.IntervalCount > limit || p.IntervalCount < 0:
		return pr, invalid("recurring[interval]", "A price recurs every day, week, month or year, at most every three years.")
	case len(p.Currency) != 3 || strings.ToLower(p.Currency) != p.Currency:
		return pr, invalid("currency", "Invalid currency: %q.", p.Currency)
	case !unitAmount(p.UnitAmount):
		return pr, invalid("unit_amount_decimal", "A unit amount is 0 to 99999999 with at most 12 decimals.")
	}
	if err := w.checkTiers(&pr); err != nil {
		return pr, err
	}
	product, err := get[Product](w, "product", p.Product)
	if err != nil {
		return pr, err
	}
	pr.ProductName = product.Name
	others, err := all[Price](w, "price")
	if err != nil {
		return pr, err
	}
	for _, o := range others {
		if o.ID == pr.ID {
			return pr, exists("id", pr.ID)
		}
		if p.LookupKey != "" && o.LookupKey == p.LookupKey {
			return pr, exists("lookup_key", p.LookupKey)
		}
	}
	if err := write(w.tx, "price", pr.ID, pr); err != nil {
		return pr, err
	}
	return pr, w.effect("price.create", "", pr.ID)
}

// PaymentMethod reads a payment method.
func (l *Ledger) PaymentMethod(ctx context.Context, id string) (PaymentMethod, error) {
	return read(ctx, l, func(w *work) (PaymentMethod, error) { return get[PaymentMethod](w, "payment_method", id) })
}

// PaymentMethods lists a customer's payment methods, newest first.
func (l *Ledger) PaymentMethods(ctx context.Context, customer string) ([]PaymentMethod, error) {
	return read(ctx, l, func(w *work) ([]PaymentMethod, error) {
		return listOf[PaymentMethod](w, "payment_method", customer)
	})
}

// card reads the parameters of a card. It returns only what may be kept.
func (p CardParams) card(now time.Time) (PaymentMethod, *TestCard, error) {
	number := strings.ReplaceAll(p.Number, " ", "")
	known := slices.Concat(TestCards, TestAccounts)
	i := slices.IndexFunc(known, func(c TestCard) bool { return c.Number == number })
	if i < 0 {
		return PaymentMethod{}, nil, &Error{Status: 402, Type: InvalidRequest, Code: "incorrect_number", Param: "number", Message: "The sandbox takes its own test cards only."}
	}
	c := known[i]
	pm := PaymentMethod{Type: c.Type, Brand: c.Brand, Wallet: c.Wallet, Bank: c.Bank, Country: c.Country, Email: c.Email, ExpMonth: p.ExpMonth, ExpYear: p.ExpYear, Behavior: c.Behavior}
	switch {
	case c.Wallet != "":
		pm.Last4 = "4242"
	case number[len(number)-1] <= '9':
		pm.Last4 = number[len(number)-4:]
	}
	if pm.Type != "" {
		pm.ExpMonth, pm.ExpYear = 0, 0
		return pm, &c, nil
	}
	if pm.ExpMonth == 0 {
		pm.ExpMonth = 12
	}
	if pm.ExpYear == 0 {
		pm.ExpYear = now.Year() + 4
	}
	if pm.ExpMonth < 1 || pm.ExpMonth > 12 || pm.ExpYear > 9999 || pm.expired(now) {
		return PaymentMethod{}, nil, &Error{Status: 402, Type: InvalidRequest, Code: "invalid_expiry_month", Param: "exp_month", Message: "The card's expiry date is in the past or no date."}
	}
	return pm, &c, nil
}

// kind is Stripe's payment_method.type.
func (m PaymentMethod) kind() string {
	if m.Type == "" {
		return "card"
	}
	return m.Type
}

// debit reports whether a payment with m is known to have worked days later.
func (m PaymentMethod) debit() bool { return m.Type == "sepa_debit" || m.Type == "us_bank_account" }

// expired reports whether the month on the card is over.
func (m PaymentMethod) expired(now time.Time) bool {
	return m.ExpYear != 0 && !now.Before(time.Date(m.ExpYear, time.Month(m.ExpMonth)+1, 1, 0, 0, 0, 0, time.UTC))
}

// known is what the hash of a call's parameters covers: never the number.
func (p CardParams) known() []any {
	last := p.Number[:min(len(p.Number), 1)] + p.Number[max(len(p.Number)-4, 0):]
	return []any{last, p.ExpMonth, p.ExpYear}
}

// AddCard enters a test card and attaches it to the customer. CardError
// card_declined for the card that cannot be added.
func (l *Ledger) AddCard(ctx context.Context, c Call, customer string, p CardParams) (PaymentMethod, error) {
	return change(ctx, l, c, "payment_method.attach", []any{customer, p.known()}, func(w *work) (PaymentMethod, error) {
		pm, err := w.addCard(customer, p)
		if err != nil {
			return pm, err
		}
		return pm, w.effect("payment_method.attach", customer, pm.ID)
	})
}

func (w *work) addCard(customer string, p CardParams) (PaymentMethod, error) {
	pm, card, err := p.card(w.now)
	if err != nil {
		return pm, err
	}
	if _, err := get[Customer](w, "customer", customer); err != nil {
		return pm, err
	}
	if card.Declined {
		return pm, &Error{Status: 402, Type: CardError, Code: "card_declined", DeclineCode: "generic_decline", Message: "Your card was declined."}
	}
	pm.ID, pm.Created, pm.Customer = w.id("pm"), w.now, customer
	if err := write(w.tx, "payment_method", pm.ID, pm); err != nil {
		return pm, err
	}
	return pm, w.index("payment_method", customer, pm.ID, pm.Created)
}

// DetachPaymentMethod is POST /v1/payment_methods/{id}/detach. It is nobody's
// default any more.
func (l *Ledger) DetachPaymentMethod(ctx context.Context, c Call, id string) (PaymentMethod, error) {
	return change(ctx, l, c, "payment_method.detach", id, func(w *work) (PaymentMethod, error) {
		pm, err := get[PaymentMethod](w, "payment_method", id)
		if err != nil {
			return pm, err
		}
		customer := pm.Customer
		if customer == "" {
			return pm, invalid("payment_method", "The payment method you provided is not attached to a customer so detachment is impossible.")
		}
		cus, err := get[Customer](w, "customer", customer)
		if err != nil {
			return pm, err
		}
		if cus.DefaultPaymentMethod == id {
			cus.DefaultPaymentMethod = ""
			if err := write(w.tx, "customer", cus.ID, cus); err != nil {
				return pm, err
			}
		}
		subs, err := listOf[Subscription](w, "subscription", customer)
		if err != nil {
			return pm, err
		}
		for _, s := range subs {
			if s.DefaultPaymentMethod != id {
				continue
			}
			s.DefaultPaymentMethod = ""
			if err := w.putSubscription(&s); err != nil {
				return pm, err
			}
		}
		pm.Customer = ""
		if err := write(w.tx, "payment_method", pm.ID, pm); err != nil {
			return pm, err
		}
		if err := w.unindex("payment_method", pm.ID); err != nil {
			return pm, err
		}
		return pm, w.effect("payment_method.detach", customer, pm.ID)
	})
}

// CheckoutSession reads a session by its id (cs_) or its setup intent's
// (seti_).
func (l *Ledger) CheckoutSession(ctx context.Context, id string) (CheckoutSession, error) {
	return read(ctx, l, func(w *work) (CheckoutSession, error) {
		if strings.HasPrefix(id, "seti_") {
			session, found, err := lookup[string](w.tx, "setup_intent", id)
			if err != nil {
				return CheckoutSession{}, err
			}
			if !found {
				return CheckoutSession{}, missing("setup_intent", id)
			}
			id = session
		}
		return get[CheckoutSession](w, "session", id)
	})
}

// CreateSession is POST /v1/checkout/sessions with mode=setup.
func (l *Ledger) CreateSession(ctx context.Context, c Call, p SessionParams) (CheckoutSession, error) {
	return change(ctx, l, c, "checkout_session.create", p, func(w *work) (CheckoutSession, error) {
		s := CheckoutSession{
			ID: w.id("cs_test"), Created: w.now, ExpiresAt: p.ExpiresAt.UTC().Truncate(time.Second), Customer: p.Customer, Status: SessionOpen,
			SuccessURL: p.SuccessURL, CancelURL: p.CancelURL, SetupIntent: w.id("seti"), Metadata: maps.Clone(p.Metadata),
		}
		if _, err := get[Customer](w, "customer", p.Customer); err != nil {
			return s, err
		}
		if p.ExpiresAt.IsZero() {
			s.ExpiresAt = w.now.Add(24 * time.Hour)
		}
		if d := s.ExpiresAt.Sub(w.now); d < 30*time.Minute || d > 24*time.Hour {
			return s, invalid("expires_at", "A session expires 30 minutes to 24 hours from now.")
		}
		if s.CancelURL == "" {
			s.CancelURL = s.SuccessURL
		}
		for param, u := range map[string]string{"success_url": s.SuccessURL, "cancel_url": s.CancelURL} {
			if !isWebURL(u) {
				return s, &Error{Status: 400, Type: InvalidRequest, Code: "url_invalid", Param: param, Message: "Not a valid URL"}
			}
		}
		if err := w.putSession(CheckoutSession{}, s); err != nil {
			return s, err
		}
		if err := write(w.tx, "setup_intent", s.SetupIntent, s.ID); err != nil {
			return s, err
		}
		return s, w.effect("checkout_session.create", s.Customer, s.ID)
	})
}

func isWebURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil
}

func (w *work) putSession(old, s CheckoutSession) error {
	due := func(s CheckoutSession) time.Time {
		if s.Status == SessionOpen {
			return s.ExpiresAt
		}
		return time.Time{}
	}
	if err := w.schedule("session", s.ID, due(old), due(s)); err != nil {
		return err
	}
	return write(w.tx, "session", s.ID, s)
}

// openSession reads a session that still waits.
func (w *work) openSession(id string) (CheckoutSession, error) {
	s, err := get[CheckoutSession](w, "session", id)
	if err == nil && s.Status != SessionOpen {
		err = &Error{Status: 400, Type: InvalidRequest, Code: "session_not_open", Param: "id", Message: "This Checkout Session is " + string(s.Status) + "."}
	}
	return s, err
}

// CompleteSession is what the customer does on the card page. CardError
// card_declined leaves the session open.
func (l *Ledger) CompleteSession(ctx context.Context, c Call, id string, p CardParams) (CheckoutSession, error) {
	return change(ctx, l, c, "checkout_session.complete", []any{id, p.known()}, func(w *work) (CheckoutSession, error) {
		s, err := w.openSession(id)
		if err != nil {
			return s, err
		}
		pm, err := w.addCard(s.Customer, p)
		if err != nil {
			return s, err
		}
		old := s
		s.Status, s.PaymentMethod = SessionComplete, pm.ID
		if err := w.putSession(old, s); err != nil {
			return s, err
		}
		return s, w.effect("checkout_session.complete", s.Customer, s.ID)
	})
}

// ExpireSession is POST /v1/checkout/sessions/{id}/expire.
func (l *Ledger) ExpireSession(ctx context.Context, c Call, id string) (CheckoutSession, error) {
	return change(ctx, l, c, "checkout_session.expire", id, func(w *work) (CheckoutSession, error) { return w.expireSession(id) })
}

func (w *work) expireSession(id string) (CheckoutSession, error) {
	s, err := w.openSession(id)
	if err != nil {
		return s, err
	}
	old := s
	s.Status = SessionExpired
	if err := w.putSession(old, s); err != nil {
		return s, err
	}
	return s, w.effect("checkout_session.expire", s.Customer, s.ID)
}

func (w *work) sessionDue(id string) error {
	_, err := w.expireSession(id)
	return err
}
