package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/event"
)

// The kinds of steps that Preview freezes. Their Params are the parameters of
// the Ledger's call of that name as JSON.
const (
	stepSubscriptionUpdate = "subscription.update"     // SubscriptionUpdate
	stepInvoiceVoid        = "invoice.void"            // none
	stepInvoicePay         = "invoice.pay"             // PayParams
	stepCustomerUpdate     = "customer.update"         // CustomerParams
	stepSessionCreate      = "checkout_session.create" // SessionParams
	stepMethodDetach       = "payment_method.detach"   // none
	stepTaxIDCreate        = "tax_id.create"           // taxIDParams
	stepTaxIDDelete        = "tax_id.delete"           // taxIDParams
)

// refPaymentMethod names the card that a finished card page supplies.
const refPaymentMethod = "payment_method"

// Bounds of an Account.
const (
	latestInvoices      = 6
	endedSubscriptions  = 10
	nextRenewals        = 3
	shownPaymentMethods = 100
)

// Provider is billing.Provider over a Ledger.
type Provider struct {
	ledger  *Ledger
	faults  *Faults
	pages   string
	secrets []string
}

// ProviderOptions configure a Provider.
type ProviderOptions struct {
	// Pages is the URL under which the ledger's Pages are mounted.
	Pages string
	// WebhookSecrets are those that events may be signed with; what Webhooks
	// signs with is one of them. Default: none, and ParseEvent says
	// billing.ErrNoWebhook.
	WebhookSecrets []string
}

// NewProvider makes a provider over l. faults may be nil.
func NewProvider(l *Ledger, faults *Faults, opts ProviderOptions) *Provider {
	return &Provider{ledger: l, faults: faults, pages: strings.TrimSuffix(opts.Pages, "/"), secrets: slices.Clone(opts.WebhookSecrets)}
}

// Capabilities implements billing.Provider.
func (p *Provider) Capabilities() billing.Capabilities {
	return billing.Capabilities{Name: "Sandbox", KeyWindow: 23 * time.Hour, Exponent: Exponent}
}

// wait sleeps for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rateLimited is how often a read is refused for the time being before it
// gives up.
const rateLimited = 8

// reading lets the faults of a read happen. ops are its names.
func (p *Provider) reading(ctx context.Context, ops ...string) error {
	for attempt := 1; ; attempt++ {
		f, ok := p.faults.Take(ops...)
		if !ok {
			return nil
		}
		err := wait(ctx, f.Latency)
		switch {
		case f.Kind == FaultRateLimit && attempt == rateLimited:
			return &billing.Error{Fault: billing.Unavailable, Code: "rate_limit", Err: errors.New("injected fault")}
		case f.Kind == FaultRateLimit && err == nil:
			continue
		case f.Kind != FaultLatency:
			return &billing.Error{Fault: billing.Unavailable, Err: fmt.Errorf("injected fault: %s", f.Kind)}
		case err != nil:
			return &billing.Error{Fault: billing.Unavailable, Err: err}
		}
		return nil
	}
}

// readError is the provider's error for a failed read of the ledger.
func readError(err error) error {
	var e *Error
	var b *billing.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &b):
		return b
	case errors.As(err, &e):
		return refusal(e)
	}
	return &billing.Error{Fault: billing.Unavailable, Err: err}
}

// refusal is the provider's error for a definite no of the ledger.
func refusal(e *Error) *billing.Error {
	b := &billing.Error{Fault: billing.Refused, Code: e.Code, Param: e.Param, Err: e}
	switch {
	case e.Code == "resource_missing":
		b.Fault = billing.NotFound
	case e.Type == IdempotencyError: // something else was done under this key
		b.Fault = billing.Unknown
	case e.Type == CardError:
		b.Code = billing.DeclineCode(e.Code, e.DeclineCode)
	case e.Code == "currency_mismatch", e.Code == "tax_id_invalid":
	case e.Code == "payment_intent_unexpected_state", e.Code == "invalid_canceled_subscription_fields", e.Code == "invoice_not_open", e.Code == "session_not_open":
		b.Code = "not_changeable"
	default:
		b.Code = "invalid_request"
	}
	return b
}

func notFound(param string) *billing.Error {
	return &billing.Error{Fault: billing.NotFound, Code: "resource_missing", Param: param}
}

func refused(code, param, why string) *billing.Error {
	return &billing.Error{Fault: billing.Refused, Code: code, Param: param, Err: errors.New(why)}
}

// Prices implements billing.Provider. Tiered and metered prices are left out, as
// the catalogue sells by the unit.
func (p *Provider) Prices(ctx context.Context) ([]billing.Price, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return nil, err
	}
	list, err := read(ctx, p.ledger, func(w *work) ([]billing.Price, error) {
		prices, err := all[Price](w, "price")
		if err != nil {
			return nil, err
		}
		var list []billing.Price
		for _, pr := range prices {
			b, err := w.price(pr)
			if err != nil {
				return nil, err
			}
			if b.Active && !b.Metered && len(b.Tiers) == 0 {
				list = append(list, b)
			}
		}
		return list, nil
	})
	return list, readError(err)
}

// Find implements billing.Provider.
func (p *Provider) Find(ctx context.Context, customer string) (billing.Customer, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return billing.Customer{}, err
	}
	c, err := p.ledger.Customer(ctx, customer)
	if err != nil {
		return billing.Customer{}, readError(err)
	}
	return customerOf(c), nil
}

// Account implements billing.Provider. It is one snapshot, but for the sections
// that a fault takes away.
func (p *Provider) Account(ctx context.Context, customer string) (billing.Account, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return billing.Account{}, err
	}
	var failed []billing.Section
	for _, s := range []billing.Section{billing.SectionDebts, billing.SectionInvoices, billing.SectionPaymentMethods, billing.SectionUpcoming} {
		if p.reading(ctx, string(s)) != nil {
			failed = append(failed, s)
		}
	}
	if err := ctx.Err(); err != nil {
		return billing.Account{}, &billing.Error{Fault: billing.Unavailable, Err: err}
	}
	a, err := read(ctx, p.ledger, func(w *work) (billing.Account, error) {
		c, err := get[Customer](w, "customer", customer)
		if err != nil {
			return billing.Account{}, err
		}
		a := billing.Account{Customer: customerOf(c), AsOf: w.now}
		subs, err := listOf[Subscription](w, "subscription", customer)
		if err != nil {
			return a, err
		}
		slices.SortStableFunc(subs, func(x, y Subscription) int { return cmp.Compare(boolInt(x.ended()), boolInt(y.ended())) })
		if over := slices.IndexFunc(subs, func(s Subscription) bool { return s.ended() }); over >= 0 {
			subs = subs[:min(len(subs), over+endedSubscriptions)]
		}
		for _, s := range subs {
			b, err := p.subscription(w, s)
			if err != nil {
				return a, err
			}
			a.Subscriptions = append(a.Subscriptions, b)
		}
		slices.SortStableFunc(subs, func(x, y Subscription) int { return x.periodEnd().Compare(y.periodEnd()) })
		for _, s := range subs {
			if s.ended() {
				continue
			}
			up, err := w.upcoming(s.ID)
			if err != nil {
				return a, err
			}
			if up != nil {
				a.Upcoming = append(a.Upcoming, *up)
			}
			if len(a.Upcoming) == nextRenewals {
				break
			}
		}
		slices.SortStableFunc(a.Upcoming, func(x, y billing.Upcoming) int { return x.Due.Compare(y.Due) })
		if a.PaymentMethods, err = w.methods(customer); err != nil {
			return a, err
		}
		a.PaymentMethods = a.PaymentMethods[:min(len(a.PaymentMethods), shownPaymentMethods)]
		if a.Debts, err = p.debts(w, customer); err != nil {
			return a, err
		}
		err = ofCustomer(w, "invoice", customer, "", false, func(inv Invoice) bool {
			i := slices.IndexFunc(a.Debts, func(v billing.Invoice) bool { return v.ID == inv.ID })
			if i >= 0 {
				a.Invoices = append(a.Invoices, a.Debts[i])
			} else {
				a.Invoices = append(a.Invoices, p.invoice(inv))
			}
			return len(a.Invoices) < latestInvoices
		})
		return a, err
	})
	a.Failed = failed
	for _, s := range failed {
		switch s {
		case billing.SectionDebts:
			a.Debts = nil
		case billing.SectionInvoices:
			a.Invoices = nil
		case billing.SectionPaymentMethods:
			a.PaymentMethods = nil
		case billing.SectionUpcoming:
			a.Upcoming = nil
		}
	}
	return a, readError(err)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// upcoming is the next regular invoice of a subscription, or nil.
func (w *work) upcoming(id string) (*billing.Upcoming, error) {
	then := *w
	inv, err := then.preview(PreviewParams{Subscription: id})
	var e *Error
	if errors.As(err, &e) && e.Code == "invoice_upcoming_none" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return upcomingOf(inv), nil
}

func upcomingOf(inv Invoice) *billing.Upcoming {
	b := invoiceOf(inv)
	return &billing.Upcoming{Subscription: inv.Subscription, Due: inv.Created, Lines: b.Lines, Subtotal: b.Subtotal, Tax: b.Tax, Total: b.Total, AmountDue: b.AmountDue}
}

// Invoices implements billing.Provider. A cursor is "older:" or "newer:" and
// the id of the invoice at that end of the page.
func (p *Provider) Invoices(ctx context.Context, customer, cursor string, limit int) (billing.InvoicePage, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return billing.InvoicePage{}, err
	}
	f := InvoiceFilter{Customer: customer, Limit: limit}
	direction, id, ok := strings.Cut(cursor, ":")
	switch {
	case cursor == "":
	case ok && direction == "older" && id != "":
		f.StartingAfter = id
	case ok && direction == "newer" && id != "":
		f.EndingBefore = id
	default:
		return billing.InvoicePage{}, notFound("cursor")
	}
	list, more, err := p.ledger.Invoices(ctx, f)
	if err != nil {
		return billing.InvoicePage{}, readError(err)
	}
	var page billing.InvoicePage
	for _, inv := range list {
		page.Invoices = append(page.Invoices, p.invoice(inv))
	}
	if len(list) == 0 {
		return page, nil
	}
	if more || direction == "newer" {
		page.Older = "older:" + list[len(list)-1].ID
	}
	if more && direction == "newer" || direction == "older" {
		page.Newer = "newer:" + list[0].ID
	}
	return page, nil
}

// Document implements billing.Provider.
func (p *Provider) Document(ctx context.Context, customer string, ref billing.DocumentRef) (billing.Document, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return billing.Document{}, err
	}
	inv, err := p.ledger.Invoice(ctx, ref.Invoice)
	if err != nil {
		return billing.Document{}, readError(err)
	}
	if inv.Customer != customer {
		return billing.Document{}, notFound(ref.Invoice)
	}
	var pdf []byte
	if ref.CreditNote == "" {
		pdf, err = renderPDF(inv)
	} else {
		var n CreditNote
		if n, err = p.ledger.CreditNote(ctx, ref.CreditNote); err != nil {
			return billing.Document{}, readError(err)
		}
		if n.Customer != customer || n.Invoice != inv.ID {
			return billing.Document{}, notFound(ref.CreditNote)
		}
		pdf, err = renderCreditNote(inv, n)
	}
	if err != nil {
		return billing.Document{}, readError(err)
	}
	return billing.Document{ContentType: "application/pdf", Size: int64(len(pdf)), Body: io.NopCloser(bytes.NewReader(pdf))}, nil
}

// Preview implements billing.Provider.
//
// A subscription with a pending update refuses another change until that one
// is paid or dropped.
func (p *Provider) Preview(ctx context.Context, customer string, action billing.Action, at time.Time) (billing.Preview, error) {
	if err := p.reading(ctx, "preview"); err != nil {
		return billing.Preview{}, err
	}
	v, err := read(ctx, p.ledger, func(w *work) (billing.Preview, error) {
		cus, err := get[Customer](w, "customer", customer)
		if err != nil {
			return billing.Preview{}, err
		}
		at := at.UTC().Truncate(time.Second)
		if at.IsZero() {
			at = w.now
		}
		v := billing.Preview{Action: action, At: at, Effective: at, ObjectVersion: customerOf(cus).Version}
		if action.ReturnURL != "" && !isWebURL(action.ReturnURL) {
			return v, refused("invalid_request", "return_url", "not an http or https URL")
		}
		switch action.Kind {
		case billing.UpdateDetails:
			return p.previewDetails(w, v, cus)
		case billing.UpdateTaxID:
			return p.previewTaxID(v, cus)
		case billing.SetDefaultPaymentMethod, billing.AddPaymentMethod, billing.RemovePaymentMethod, billing.PayInvoices:
			return p.previewMethod(w, v, cus)
		default: // about a subscription
		}
		s, err := get[Subscription](w, "subscription", action.Subscription)
		if err != nil || s.Customer != customer {
			return v, cmp.Or[error](err, notFound(action.Subscription))
		}
		b, err := p.subscription(w, s)
		if err != nil {
			return v, err
		}
		v.ObjectVersion, v.Items = b.Version, b.Items
		if s.ended() {
			return v, refused("not_changeable", s.ID, "the subscription has ended")
		}
		return p.previewSubscription(w, v, s)
	})
	if err != nil {
		return billing.Preview{}, readError(err)
	}
	return v, nil
}

func (p *Provider) previewSubscription(w *work, v billing.Preview, s Subscription) (billing.Preview, error) {
	var err error
	one := func(kind, object string, params any) error {
		st, err := step(kind, object, params)
		v.Steps = []billing.Step{st}
		return err
	}
	switch v.Action.Kind {
	case billing.ChangePlan:
		return p.previewChange(w, v, s)
	case billing.DropPending:
		if s.PendingUpdate == nil {
			return v, refused("not_changeable", s.ID, "no change is waiting")
		}
		if v.Next, err = w.upcoming(s.ID); err != nil {
			return v, err
		}
		return v, one(stepInvoiceVoid, s.PendingUpdate.Invoice, struct{}{})
	case billing.Cancel:
		if s.CancelAtPeriodEnd {
			return v, refused("not_changeable", s.ID, "the subscription is cancelled already")
		}
		yes := true
		v.Effective = s.periodEnd()
		if s.metered() { // a last invoice for what was used
			then := *w
			inv, err := then.preview(PreviewParams{Subscription: s.ID, CancelAtPeriodEnd: &yes})
			var e *Error
			switch {
			case err == nil:
				v.Next = upcomingOf(inv)
			case !errors.As(err, &e) || e.Code != "invoice_upcoming_none":
				return v, err
			}
		}
		return v, one(stepSubscriptionUpdate, s.ID, SubscriptionUpdate{CancelAtPeriodEnd: &yes})
	case billing.Resume:
		if !s.CancelAtPeriodEnd {
			return v, refused("not_changeable", s.ID, "the subscription is not cancelled")
		}
		no := false
		then := *w
		inv, err := then.preview(PreviewParams{Subscription: s.ID, CancelAtPeriodEnd: &no})
		if err != nil {
			return v, err
		}
		v.Next = upcomingOf(inv)
		return v, one(stepSubscriptionUpdate, s.ID, SubscriptionUpdate{CancelAtPeriodEnd: &no})
	default:
		return v, refused("invalid_request", "kind", fmt.Sprintf("the sandbox does not know the action %q", v.Action.Kind))
	}
}

// previewChange previews new prices and quantities. The step names every item
// with price and quantity, so that it means the same whenever it is sent.
func (p *Provider) previewChange(w *work, v billing.Preview, s Subscription) (billing.Preview, error) {
	if s.PendingUpdate != nil {
		return v, refused("not_changeable", s.ID, "a change is waiting for its payment; pay or drop it first")
	}
	want := map[string]billing.ItemChange{}
	for _, c := range v.Action.Items {
		if !slices.ContainsFunc(s.Items, func(it SubscriptionItem) bool { return it.ID == c.Item }) {
			return v, notFound(c.Item)
		}
		if c.Quantity < 1 || c.Quantity > billing.MaxQuantity {
			return v, refused("invalid_request", "quantity", fmt.Sprintf("quantity %d is not 1 to %d", c.Quantity, billing.MaxQuantity))
		}
		if _, twice := want[c.Item]; twice {
			return v, refused("invalid_request", "items", "an item is named twice")
		}
		want[c.Item] = c
	}
	if len(want) == 0 {
		return v, refused("invalid_request", "items", "no items given")
	}
	u := SubscriptionUpdate{ProrationBehavior: AlwaysInvoice, ProrationDate: v.At, PaymentBehavior: PendingIfIncomplete, ReturnURL: v.Action.ReturnURL}
	debit, err := w.debited(&s)
	if err != nil {
		return v, err
	}
	if debit || s.CollectionMethod == SendInvoice {
		u.PaymentBehavior = AllowIncomplete
	}
	for _, it := range s.Items {
		price, quantity := it.Price.ID, it.Quantity
		c, ok := want[it.ID]
		if it.Price.Meter != "" {
			if ok {
				return v, refused("not_changeable", it.ID, "what is used is not chosen")
			}
			u.Items = append(u.Items, ItemParams{ID: it.ID, Price: price})
			continue
		}
		if ok {
			if err := w.sellable(it.Price.ID, c.Price); err != nil {
				return v, err
			}
			price, quantity = c.Price, c.Quantity
		}
		u.Items = append(u.Items, ItemParams{ID: it.ID, Price: price, Quantity: &quantity})
	}
	params := PreviewParams{Subscription: s.ID, Items: u.Items, ProrationBehavior: AlwaysInvoice, ProrationDate: v.At}
	then := *w
	inv, err := then.preview(params)
	if err != nil {
		return v, err
	}
	b := invoiceOf(inv)
	v.Lines, v.Subtotal, v.Tax, v.Total, v.DueNow = b.Lines, b.Subtotal, b.Tax, b.Total, b.AmountDue
	v.ToBalance, v.FromBalance = billing.Money{Currency: s.Currency}, billing.Money{Currency: s.Currency}
	switch {
	case inv.Total < 0:
		v.ToBalance.Amount = -inv.Total
	case inv.StartingBalance < 0:
		v.FromBalance.Amount = min(inv.Total, -inv.StartingBalance)
	}

	after := s.clone()
	moment := *w
	moment.now = v.At
	r, err := moment.revise(&s, u.Items, AlwaysInvoice, v.At)
	if err != nil {
		return v, err
	}
	after.apply(r.items, r.anchor)
	if v.Items, err = w.items(after.Items); err != nil {
		return v, err
	}
	if !s.CancelAtPeriodEnd {
		params.Recurring = true
		then = *w
		next, err := then.preview(params)
		if err != nil {
			return v, err
		}
		v.Next = upcomingOf(next)
		v.Next.AmountDue.Amount = max(next.Total+inv.EndingBalance, 0)
	}
	st, err := step(stepSubscriptionUpdate, s.ID, u)
	v.Steps = []billing.Step{st}
	return v, err
}

func (p *Provider) previewDetails(w *work, v billing.Preview, cus Customer) (billing.Preview, error) {
	d := v.Action.Details
	if d == nil {
		return v, refused("invalid_request", "details", "no details given")
	}
	params := CustomerParams{Name: d.Name, Email: d.Email, Phone: d.Phone, Address: d.Address, InvoiceFields: d.InvoiceFields}
	switch l := d.Locale; {
	case l == nil || *l == "" && len(cus.PreferredLocales) == 0:
	case *l == "":
		return v, refused("invalid_request", "locale", "a language can be replaced and not unset")
	default:
		params.PreferredLocales = []string{*l}
	}
	if err := w.applyCustomer(&cus, params); err != nil {
		return v, err
	}
	st, err := step(stepCustomerUpdate, cus.ID, params)
	v.Steps = []billing.Step{st}
	return v, err
}

// defaultSteps make a payment method the default on every level, and pay the
// invoices that changes wait for with it. With "" the method is the one that
// an earlier step supplies. A bank debit takes longer than a change waits.
func (p *Provider) defaultSteps(w *work, customer, pm, returnURL string) ([]billing.Step, error) {
	debit := false
	if pm != "" {
		m, err := get[PaymentMethod](w, "payment_method", pm)
		if err != nil {
			return nil, err
		}
		debit = m.debit()
	}
	var needs []string
	if pm == "" {
		needs = []string{refPaymentMethod}
	}
	var steps []billing.Step
	add := func(kind, object string, params any) error {
		st, err := step(kind, object, params)
		st.Needs = needs
		steps = append(steps, st)
		return err
	}
	if err := add(stepCustomerUpdate, customer, CustomerParams{DefaultPaymentMethod: &pm}); err != nil {
		return nil, err
	}
	subs, err := listOf[Subscription](w, "subscription", customer)
	if err != nil {
		return nil, err
	}
	for _, s := range subs {
		if s.ended() || s.DefaultPaymentMethod == "" {
			continue
		}
		if err := add(stepSubscriptionUpdate, s.ID, SubscriptionUpdate{DefaultPaymentMethod: &pm}); err != nil {
			return nil, err
		}
	}
	for _, s := range subs {
		if s.PendingUpdate == nil || debit {
			continue
		}
		if err := add(stepInvoicePay, s.PendingUpdate.Invoice, PayParams{PaymentMethod: pm, ReturnURL: returnURL}); err != nil {
			return nil, err
		}
	}
	return steps, nil
}

func step(kind, object string, params any) (billing.Step, error) {
	raw, err := json.Marshal(params)
	return billing.Step{Kind: kind, Object: object, Params: raw}, err
}

// Execute implements billing.Provider.
func (p *Provider) Execute(ctx context.Context, customer string, st billing.Step, key string) (billing.Result, error) {
	if err := ctx.Err(); err != nil {
		return billing.Result{}, &billing.Error{Fault: billing.Retryable, Err: err}
	}
	f, faulty := p.faults.Take("execute")
	if !faulty {
		return p.execute(ctx, customer, st, key)
	}
	unknown := func(after string) error {
		return &billing.Error{Fault: billing.Unknown, Err: fmt.Errorf("injected fault: %s%s", f.Kind, after)}
	}
	switch f.Kind {
	case FaultRateLimit:
		return billing.Result{}, &billing.Error{Fault: billing.Retryable, Code: "rate_limit", Err: errors.New("injected fault")}
	case FaultTimeoutBefore, Fault500Before:
		err := wait(ctx, f.Latency)
		return billing.Result{}, unknown(suffix(err))
	case FaultTimeoutAfter, Fault500After, FaultGarbage:
		// The caller's patience does not stop what was sent.
		_, err := p.execute(context.WithoutCancel(ctx), customer, st, key)
		if werr := wait(ctx, f.Latency); err == nil {
			err = werr
		}
		return billing.Result{}, unknown(suffix(err))
	default: // FaultLatency
		if err := wait(ctx, f.Latency); err != nil {
			return billing.Result{}, &billing.Error{Fault: billing.Unknown, Err: err}
		}
		return p.execute(ctx, customer, st, key)
	}
}

func suffix(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// execute sends a step to the ledger and reads what came of it.
func (p *Provider) execute(ctx context.Context, customer string, st billing.Step, key string) (billing.Result, error) {
	if key == "" {
		return billing.Result{}, refused("invalid_request", "key", "a step needs a key")
	}
	if err := p.owned(ctx, customer, st); err != nil {
		return billing.Result{}, sendError(err)
	}
	if err := p.send(ctx, st, Call{Key: key}); err != nil {
		var e *Error
		if !errors.As(err, &e) || e.Type != CardError {
			return billing.Result{}, sendError(err)
		}
	}
	// What was done is saved, so from here on an error leaves it unknown only
	// until the same key is sent again.
	saved, found, err := p.ledger.Saved(ctx, key)
	if err != nil || !found {
		return billing.Result{}, &billing.Error{Fault: billing.Unknown, Err: cmp.Or(err, errors.New("the answer was not saved"))}
	}
	applied, res, err := p.settle(ctx, st, saved)
	switch {
	case err != nil:
		return billing.Result{}, &billing.Error{Fault: billing.Unknown, Err: err}
	case applied:
		return res, nil
	case saved.Err != nil:
		return billing.Result{}, refusal(saved.Err)
	}
	return billing.Result{}, refused("not_changeable", st.Object, "it was dropped since")
}

// sendError is the provider's error for a call that may change something and
// failed.
func sendError(err error) error {
	var e *Error
	var b *billing.Error
	switch {
	case errors.As(err, &b):
		return b
	case errors.As(err, &e):
		return refusal(e)
	case errors.Is(err, store.ErrUnknown):
		return &billing.Error{Fault: billing.Unknown, Err: err}
	}
	// A store's other errors say that nothing changed.
	return &billing.Error{Fault: billing.Retryable, Err: err}
}

// owned checks that the object of a step is the customer's.
func (p *Provider) owned(ctx context.Context, customer string, st billing.Step) error {
	_, err := read(ctx, p.ledger, func(w *work) (struct{}, error) {
		owner := st.Object
		switch st.Kind {
		case stepSubscriptionUpdate:
			s, err := get[Subscription](w, "subscription", st.Object)
			if err != nil {
				return struct{}{}, err
			}
			owner = s.Customer
		case stepInvoiceVoid, stepInvoicePay:
			inv, err := get[Invoice](w, "invoice", st.Object)
			if err != nil {
				return struct{}{}, err
			}
			owner = inv.Customer
		case stepMethodDetach:
			pm, err := get[PaymentMethod](w, "payment_method", st.Object)
			if err != nil {
				return struct{}{}, err
			}
			owner = cmp.Or(pm.Customer, customer) // detached already: nobody's
		case stepTaxIDDelete:
			var u taxIDParams
			if err := json.Unmarshal(st.Params, &u); err != nil {
				return struct{}{}, refused("invalid_request", st.Kind, err.Error())
			}
			owner = u.Customer
		}
		if owner != customer {
			return struct{}{}, notFound(st.Object)
		}
		return struct{}{}, nil
	})
	return err
}

// send makes the ledger's call of a step.
func (p *Provider) send(ctx context.Context, st billing.Step, c Call) error {
	var pm *string
	if slices.Contains(st.Needs, refPaymentMethod) {
		id := st.Refs[refPaymentMethod]
		if id == "" {
			return refused("invalid_request", refPaymentMethod, "the step was sent before the payment method it needs was known")
		}
		pm = &id
	}
	params := func(v any) error {
		d := json.NewDecoder(bytes.NewReader(st.Params))
		d.DisallowUnknownFields()
		if err := d.Decode(v); err != nil {
			return refused("invalid_request", st.Kind, err.Error())
		}
		return nil
	}
	var err error
	switch st.Kind {
	case stepSubscriptionUpdate:
		var u SubscriptionUpdate
		if err = params(&u); err != nil {
			return err
		}
		if pm != nil {
			u.DefaultPaymentMethod = pm
		}
		_, err = p.ledger.UpdateSubscription(ctx, c, st.Object, u)
	case stepInvoiceVoid:
		_, err = p.ledger.VoidInvoice(ctx, c, st.Object)
	case stepMethodDetach:
		if _, err = p.ledger.DetachPaymentMethod(ctx, c, st.Object); err != nil {
			if e, ok := errors.AsType[*Error](err); ok && e.Code == "parameter_invalid" {
				return refused("not_changeable", st.Object, e.Message)
			}
		}
	case stepInvoicePay:
		var u PayParams
		if err = params(&u); err != nil {
			return err
		}
		if pm != nil {
			u.PaymentMethod = *pm
		}
		if err = p.canWait(ctx, st.Object, u.PaymentMethod); err != nil {
			return err
		}
		_, err = p.ledger.PayInvoice(ctx, c, st.Object, u)
	case stepCustomerUpdate:
		var u CustomerParams
		if err = params(&u); err != nil {
			return err
		}
		if pm != nil {
			u.DefaultPaymentMethod = pm
		}
		_, err = p.ledger.UpdateCustomer(ctx, c, st.Object, u)
	case stepSessionCreate:
		var u SessionParams
		if err = params(&u); err != nil {
			return err
		}
		if u.Customer != st.Object {
			return notFound(u.Customer)
		}
		_, err = p.ledger.CreateSession(ctx, c, u)
	case stepTaxIDCreate:
		var u taxIDParams
		if err = params(&u); err != nil {
			return err
		}
		_, err = p.ledger.CreateTaxID(ctx, c, st.Object, u.Type, u.Value)
	case stepTaxIDDelete:
		var u taxIDParams
		if err = params(&u); err != nil {
			return err
		}
		_, err = p.ledger.DeleteTaxID(ctx, c, u.Customer, st.Object)
	default:
		return refused("invalid_request", "kind", fmt.Sprintf("the sandbox does not know the step %q", st.Kind))
	}
	return err
}

// settle says what came of a step whose answer is saved, as things stand now.
// False says that it changed nothing, or that what it began was given up.
func (p *Provider) settle(ctx context.Context, st billing.Step, saved SavedCall) (bool, billing.Result, error) {
	res := billing.Result{State: billing.Done, Object: st.Object}
	applied, err := read(ctx, p.ledger, func(w *work) (bool, error) {
		var waiting string
		switch st.Kind {
		case stepSubscriptionUpdate:
			var u SubscriptionUpdate
			var s Subscription
			if err := cmp.Or(json.Unmarshal(st.Params, &u), unmarshalResult(saved, &s)); err != nil {
				return false, err
			}
			if saved.Err != nil || len(u.Items) == 0 {
				return saved.Err == nil, nil
			}
			if s.PendingUpdate == nil {
				inv, found, err := lookup[Invoice](w.tx, "invoice", s.LatestInvoice)
				if found && inv.BillingReason == ReasonSubscriptionUpdate && inv.Created.Equal(saved.Time) {
					b := invoiceOf(inv)
					res.Invoice = &b
					if inv.Processing {
						res.State = billing.Processing
					}
				}
				return true, err
			}
			waiting = s.PendingUpdate.Invoice
		case stepInvoicePay, stepInvoiceVoid:
			if saved.Err != nil && saved.Err.Code != "authentication_required" {
				return false, nil
			}
			waiting = st.Object
		case stepSessionCreate:
			var s CheckoutSession
			if err := unmarshalResult(saved, &s); err != nil || saved.Err != nil {
				return false, err
			}
			s, err := get[CheckoutSession](w, "session", s.ID)
			res.Object = s.ID
			switch s.Status {
			case SessionComplete:
				res.Refs = map[string]string{refPaymentMethod: s.PaymentMethod}
			case SessionOpen:
				res.State, res.GoTo, res.Until, res.Reason = billing.AwaitingCustomer, p.pages+"/card/"+s.ID, s.ExpiresAt, "enter_card"
			default:
				return false, err
			}
			return true, err
		default:
			return saved.Err == nil, nil
		}

		inv, err := get[Invoice](w, "invoice", waiting)
		if err != nil {
			return false, err
		}
		b := invoiceOf(inv)
		res.Invoice = &b
		if st.Kind == stepInvoiceVoid || inv.Status == billing.InvoicePaid {
			return true, nil
		}
		if inv.Status != billing.InvoiceOpen {
			return false, nil
		}
		if inv.Processing {
			res.State = billing.Processing
			return true, nil
		}
		res.State, res.Reason = billing.AwaitingCustomer, "card_declined"
		if res.GoTo, err = p.confirmURL(w, inv); err != nil {
			return false, err
		}
		if res.GoTo != "" {
			res.Reason = "authentication_required"
		} else if st.Kind == stepInvoicePay { // declined on the confirmation page
			return false, nil
		}
		s, err := get[Subscription](w, "subscription", inv.Subscription)
		switch {
		case s.PendingUpdate != nil && s.PendingUpdate.Invoice == inv.ID:
			res.Until = s.PendingUpdate.ExpiresAt
		case st.Kind == stepInvoicePay:
			res.Until = saved.Time.Add(billing.ConfirmWithin)
			return w.now.Before(res.Until), err
		}
		return true, err
	})
	return applied, res, err
}

func unmarshalResult(s SavedCall, v any) error {
	if s.Err != nil {
		return nil
	}
	return json.Unmarshal(s.Result, v)
}

// confirmURL is where the customer confirms the payment of inv, or "".
func (p *Provider) confirmURL(w *work, inv Invoice) (string, error) {
	if inv.PaymentIntent == "" {
		return "", nil
	}
	pi, err := get[PaymentIntent](w, "payment_intent", inv.PaymentIntent)
	if err != nil || pi.Status != RequiresAction {
		return "", err
	}
	return p.pages + "/confirm/" + pi.ID, nil
}

// Outcome implements billing.Provider. It reads what the ledger keeps under
// the key, which it keeps for good, and the objects as they are now. A step
// that still waits for the customer is Applied with a Result that says
// AwaitingCustomer.
func (p *Provider) Outcome(ctx context.Context, customer string, st billing.Step, key string, _ *billing.Result) (billing.Outcome, billing.Result, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return billing.OutcomeUnsure, billing.Result{}, err
	}
	if err := p.owned(ctx, customer, st); err != nil {
		return billing.OutcomeUnsure, billing.Result{}, readError(err)
	}
	saved, found, err := p.ledger.Saved(ctx, key)
	if err != nil {
		return billing.OutcomeUnsure, billing.Result{}, readError(err)
	}
	if !found {
		return billing.NotApplied, billing.Result{}, nil
	}
	if saved.Operation != st.Kind {
		return billing.OutcomeUnsure, billing.Result{}, nil
	}
	applied, res, err := p.settle(ctx, st, saved)
	switch {
	case err != nil:
		return billing.OutcomeUnsure, billing.Result{}, readError(err)
	case !applied:
		return billing.NotApplied, billing.Result{}, nil
	}
	return billing.Applied, res, nil
}

// hash is a version: equal for equal parts.
func hash(parts ...any) (string, error) {
	raw, err := json.Marshal(parts)
	sum := sha256.Sum256(raw)
	return base64.RawURLEncoding.EncodeToString(sum[:12]), err
}

func customerOf(c Customer) billing.Customer {
	b := billing.Customer{
		ID: c.ID, Name: c.Name, Email: c.Email, Phone: c.Phone, Address: c.Address,
		Balance: billing.Money{Amount: c.Balance, Currency: c.Currency}, DefaultPaymentMethod: c.DefaultPaymentMethod,
	}
	if len(c.PreferredLocales) > 0 {
		b.Locale = c.PreferredLocales[0]
	}
	for _, t := range c.TaxIDs {
		b.TaxIDs = append(b.TaxIDs, t.convert())
	}
	b.InvoiceFields, b.Reference = slices.Clone(c.InvoiceFields), c.Metadata[MetaReference]
	b.Version, _ = hash(c.Name, c.Email, c.Phone, c.Address, c.DefaultPaymentMethod, b.Locale, b.TaxIDs, b.InvoiceFields) // strings and times always encode
	return b
}

func (w *work) price(pr Price) (billing.Price, error) {
	product, err := get[Product](w, "product", pr.Product)
	return billing.Price{
		ID: pr.ID, LookupKey: pr.LookupKey, Product: pr.Product, ProductName: product.Name, Currency: pr.Currency, UnitAmount: pr.UnitAmount,
		Interval: pr.Interval, IntervalCount: pr.IntervalCount, Active: pr.Active, Metadata: mergeMetadata(product.Metadata, pr.Metadata),
		Metered: pr.Meter != "", Meter: pr.Meter, Tiers: pr.Tiers, TiersMode: pr.TiersMode,
	}, err
}

func (w *work) items(items []SubscriptionItem) ([]billing.Item, error) {
	var list []billing.Item
	for _, it := range items {
		pr, err := w.price(it.Price)
		if err != nil {
			return nil, err
		}
		list = append(list, billing.Item{ID: it.ID, Price: pr, Quantity: it.Quantity, PeriodStart: it.CurrentPeriodStart, PeriodEnd: it.CurrentPeriodEnd})
	}
	return list, nil
}

func (p *Provider) subscription(w *work, s Subscription) (billing.Subscription, error) {
	b := billing.Subscription{
		ID: s.ID, Status: s.Status, Currency: s.Currency, Created: s.Created, TrialEnd: s.TrialEnd, CancelAtPeriodEnd: s.CancelAtPeriodEnd,
		CancelAt: s.CancelAt, CanceledAt: s.CanceledAt, EndedAt: s.EndedAt, DefaultPaymentMethod: s.DefaultPaymentMethod, SendInvoice: s.CollectionMethod == SendInvoice,
	}
	var err error
	if b.Items, err = w.items(s.Items); err != nil {
		return b, err
	}
	if u := s.PendingUpdate; u != nil {
		inv, err := get[Invoice](w, "invoice", u.Invoice)
		if err != nil {
			return b, err
		}
		b.Pending = &billing.PendingUpdate{InvoiceID: u.Invoice, AmountDue: billing.Money{Amount: inv.AmountDue, Currency: inv.Currency}, ExpiresAt: u.ExpiresAt}
		if b.Pending.Items, err = w.items(u.Items); err != nil {
			return b, err
		}
		if b.Pending.ConfirmURL, err = p.confirmURL(w, inv); err != nil {
			return b, err
		}
	}
	b.Version, err = hash(b)
	return b, err
}

func invoiceOf(inv Invoice) billing.Invoice {
	money := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: inv.Currency} }
	b := billing.Invoice{
		ID: inv.ID, Number: inv.Number, Status: inv.Status, Subscription: inv.Subscription, Created: inv.Created, DueDate: inv.DueDate,
		Subtotal: money(inv.Subtotal), Tax: money(inv.Tax), Total: money(inv.Total), AmountDue: money(inv.AmountDue), AmountPaid: money(inv.AmountPaid),
		AmountRemaining: money(inv.AmountRemaining), Attempted: inv.Attempted, NextAttempt: inv.NextPaymentAttempt, SendInvoice: inv.CollectionMethod == SendInvoice,
		ForPendingUpdate: inv.ForPendingUpdate, HasDocument: inv.Status != billing.InvoiceDraft,
	}
	for _, l := range inv.Lines {
		b.Lines = append(b.Lines, billing.Line{
			Description: l.Description, Price: l.Price, Quantity: l.Quantity, Amount: money(l.Amount),
			PeriodStart: l.PeriodStart, PeriodEnd: l.PeriodEnd, Proration: l.Proration,
		})
		b.Description = l.Description // the last line is what the customer has then
	}
	return b
}

// Interface guard.
// ParseEvent implements billing.Provider for the events that Webhooks sends.
func (p *Provider) ParseEvent(header http.Header, body []byte, now time.Time) (billing.Event, error) {
	return event.Parse(header, body, event.Options{Secrets: p.secrets, Now: now})
}

var _ billing.Provider = (*Provider)(nil)
