package billing

import (
	"cmp"
	"encoding/json"
	"reflect"
	"slices"
	"time"
)

// ActionKind names a change that a customer can ask for.
type ActionKind string

// The actions of this build.
const (
	// ChangePlan sets price and quantity of a subscription's items, at once.
	ChangePlan ActionKind = "change_plan"
	// DropPending drops a change that waits for its payment.
	DropPending ActionKind = "drop_pending"
	// Cancel ends a subscription with its current period.
	Cancel ActionKind = "cancel"
	// Resume takes a Cancel back before the period ends.
	Resume ActionKind = "resume"
	// AddPaymentMethod sends the customer to the provider's page to enter a
	// card and makes it the default, for the customer and for each of its
	// subscriptions that has a default of its own.
	AddPaymentMethod ActionKind = "add_payment_method"
	// SetDefaultPaymentMethod makes a stored payment method the default on
	// every level, or of one subscription where the action names one.
	SetDefaultPaymentMethod ActionKind = "set_default_payment_method"
	// RemovePaymentMethod takes a stored payment method away. One that pays for
	// something that goes on, or that is the last of a customer with a
	// subscription, is Refused ("in_use", "last_payment_method").
	RemovePaymentMethod ActionKind = "remove_payment_method"
	// PayInvoices pays open invoices, one step each: one that is declined does
	// not stop the others.
	PayInvoices ActionKind = "pay_invoices"
	// UpdateDetails changes name, e-mail, phone, address, the fields printed on
	// invoices or their language.
	UpdateDetails ActionKind = "update_details"
	// UpdateTaxID adds, replaces or removes a tax id.
	UpdateTaxID ActionKind = "update_tax_id"
)

// MaxPay is how many invoices one PayInvoices may name.
const MaxPay = 20

// Use says what a payment method that is added will pay for.
type Use string

const (
	// UseEverything makes it the default on every level, and pays what changes
	// wait for. It is the zero value.
	UseEverything Use = ""
	// UseSubscription makes it the default of Action.Subscription alone.
	UseSubscription Use = "subscription"
	// UseNothing keeps it and changes no default.
	UseNothing Use = "nothing"
)

// Action is a change the customer asks for, as a value. Which members count
// depends on Kind.
type Action struct {
	Kind ActionKind `json:"kind"`
	// Subscription is the subscription's id (ChangePlan, DropPending, Cancel,
	// Resume; SetDefaultPaymentMethod and AddPaymentMethod for one alone).
	Subscription string `json:"subscription,omitempty"`
	// Items are the subscription's items that change (ChangePlan). Items not
	// named stay as they are.
	Items []ItemChange `json:"items,omitempty"`
	// PaymentMethod is the id to make default (SetDefaultPaymentMethod), to
	// remove (RemovePaymentMethod) or to pay with (PayInvoices; "" is the one
	// that each invoice is paid with anyway).
	PaymentMethod string `json:"payment_method,omitempty"`
	// Use is what an AddPaymentMethod is for.
	Use Use `json:"use,omitempty"`
	// Invoices are the ids of open invoices, at most MaxPay and each once: those
	// to pay (PayInvoices), or to pay with the new method once it is there
	// (AddPaymentMethod).
	Invoices []string `json:"invoices,omitempty"`
	// TaxID is the change of an UpdateTaxID.
	TaxID *TaxIDChange `json:"tax_id,omitempty"`
	// Details are the new details (UpdateDetails); nil members stay.
	Details *Details `json:"details,omitempty"`
	// ReturnURL is where the provider's page leads back to, done or not: a URL
	// of the portal (AddPaymentMethod; ChangePlan and PayInvoices where the provider
	// has a page for confirming the payment that can lead back, else it is
	// ignored).
	ReturnURL string `json:"return_url,omitempty"`
}

// Object is the id of what the action is about: the first of Objects.
func (a Action) Object(customer string) string { return a.Objects(customer)[0] }

// Objects are the ids that the action locks, each once: two actions on one
// object never run at the same time. A payment locks its invoices and the method
// that it names, not the customer: one that is being checked keeps nobody from
// anything else.
func (a Action) Objects(customer string) []string {
	var out []string
	add := func(ids ...string) {
		for _, id := range ids {
			if id != "" && !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	switch a.Kind {
	case PayInvoices:
		add(a.Invoices...)
		add(a.PaymentMethod)
	case RemovePaymentMethod:
		add(a.PaymentMethod, customer)
	case AddPaymentMethod:
		add(a.Subscription, customer)
		add(a.Invoices...)
	case SetDefaultPaymentMethod:
		add(cmp.Or(a.Subscription, customer), a.PaymentMethod)
	default:
		add(a.Subscription)
	}
	if len(out) == 0 {
		add(customer)
	}
	return out
}

// ItemChange is the new price and quantity of one item.
type ItemChange struct {
	Item     string `json:"item"`
	Price    string `json:"price"` // price id
	Quantity int64  `json:"quantity"`
}

// Details are contact details to change; nil members stay as they are.
type Details struct {
	Name    *string  `json:"name,omitempty"`
	Email   *string  `json:"email,omitempty"`
	Phone   *string  `json:"phone,omitempty"`
	Address *Address `json:"address,omitempty"`
	// InvoiceFields are all fields to print on invoices from now on, at most
	// MaxInvoiceFields; an empty list takes them off.
	InvoiceFields *[]InvoiceField `json:"invoice_fields,omitempty"`
	// Locale is the language of invoices and of the provider's mail, BCP 47.
	// Stripe can replace one and not unset it: "" is Refused where one is set,
	// and changes nothing where none is.
	Locale *string `json:"locale,omitempty"`
}

// TaxIDChange adds Type and Value, removes the tax id with the id Remove, or
// with both replaces it: the new one is there before the old one goes.
type TaxIDChange struct {
	Remove string `json:"remove,omitempty"`
	Type   string `json:"type,omitempty"` // as Stripe names them: "eu_vat"
	Value  string `json:"value,omitempty"`
}

// Step is one provider call of an action, frozen: everything it needs is in
// it, so that it can be sent again, byte for byte, after a crash.
type Step struct {
	// Kind is the adapter's own word for the call: "subscription.update".
	Kind string `json:"kind"`
	// Object is the id of the object it changes.
	Object string `json:"object"`
	// Params are the call's parameters in the adapter's own encoding.
	Params json.RawMessage `json:"params,omitempty"`
	// Needs are names of values that only an earlier step's Result.Refs can
	// supply. The journal fills Refs, durably, before the step is sent.
	Needs []string `json:"needs,omitempty"`
	// Independent steps are carried out whatever becomes of those before them:
	// invoices that are paid one by one.
	Independent bool              `json:"independent,omitempty"`
	Refs        map[string]string `json:"refs,omitempty"`
}

// Preview is what an action would do, before it is confirmed.
type Preview struct {
	Action Action `json:"action"`
	// At is the provider's time that the numbers hold for: the proration
	// moment, which the charge uses too.
	At time.Time `json:"at"`
	// ObjectVersion is the version of the subscription (or customer) that the
	// preview was made for.
	ObjectVersion string `json:"object_version"`
	// Lines, Tax and DueNow are what is invoiced today. DueNow is what will be
	// collected after the balance was used. All zero for actions that move no
	// money.
	Lines    []Line `json:"lines,omitempty"`
	Subtotal Money  `json:"subtotal"`
	Tax      Money  `json:"tax"`
	Total    Money  `json:"total"`
	DueNow   Money  `json:"due_now"`
	// ToBalance is credit that goes to the customer's balance, as a positive
	// amount.
	ToBalance Money `json:"to_balance"`
	// FromBalance is the part of the total that the balance pays, positive.
	FromBalance Money `json:"from_balance"`
	// EndsTrial is true where the change ends a trial.
	EndsTrial bool `json:"ends_trial"`
	// Effective is when the action takes effect.
	Effective time.Time `json:"effective"`
	// Next is the next regular invoice after the action, or nil where there is
	// none.
	Next *Upcoming `json:"next,omitempty"`
	// Items are the subscription's items after the action.
	Items []Item `json:"items,omitempty"`
	// Steps are the provider calls that carry the action out, frozen.
	Steps []Step `json:"steps"`
}

// Same reports whether a and b ask for the same change, wherever the provider's
// page leads back to.
func (a Action) Same(b Action) bool {
	return a.Kind == b.Kind && a.Subscription == b.Subscription && slices.Equal(a.Items, b.Items) &&
		a.PaymentMethod == b.PaymentMethod && a.Use == b.Use && slices.Equal(a.Invoices, b.Invoices) &&
		reflect.DeepEqual(a.TaxID, b.TaxID) && reflect.DeepEqual(a.Details, b.Details)
}

// SameTerms reports whether a customer who agreed to p agreed to q: the same
// action on the same object version with the same sums today and from the
// next invoice on. What metered items add to the next invoice is an estimate
// that moves while the customer reads it; nobody agrees to that.
func (p Preview) SameTerms(q Preview) bool {
	next := func(p Preview) (Money, time.Time) {
		if p.Next == nil {
			return Money{}, time.Time{}
		}
		if !slices.ContainsFunc(p.Items, func(it Item) bool { return it.Price.Metered }) {
			return p.Next.Total, p.Next.Due
		}
		sum := Money{Currency: p.Next.Total.Currency}
		for _, l := range p.Next.Lines {
			if !slices.ContainsFunc(p.Items, func(it Item) bool { return it.Price.Metered && it.Price.ID == l.Price }) {
				sum.Amount += l.Amount.Amount
			}
		}
		return sum, p.Next.Due
	}
	pm, pt := next(p)
	qm, qt := next(q)
	return p.Action.Same(q.Action) && p.ObjectVersion == q.ObjectVersion &&
		p.DueNow == q.DueNow && p.Total == q.Total && p.Tax == q.Tax && p.ToBalance == q.ToBalance &&
		p.FromBalance == q.FromBalance && p.EndsTrial == q.EndsTrial && pm == qm && pt.Equal(qt)
}

// ResultState says how far a step got.
type ResultState string

const (
	// Done: the step took effect.
	Done ResultState = "done"
	// AwaitingCustomer: the provider waits for the customer, at GoTo if it is
	// set, until Until.
	AwaitingCustomer ResultState = "awaiting_customer"
	// Processing: the provider accepted and will say later (bank debits).
	Processing ResultState = "processing"
)

// Result is a provider's definite answer to a step.
type Result struct {
	State ResultState `json:"state"`
	// GoTo is a page at the provider for the customer to visit.
	GoTo  string    `json:"go_to,omitempty"`
	Until time.Time `json:"until"`
	// Object is the id of what was changed or made.
	Object string `json:"object,omitempty"`
	// Invoice is the invoice that the step made, where there is one, to be
	// compared with the preview.
	Invoice *Invoice `json:"invoice,omitempty"`
	// Reason is a code for the customer's page where State is
	// AwaitingCustomer: "card_declined", "authentication_required",
	// "enter_card".
	Reason string `json:"reason,omitempty"`
	// Refs are values that later steps may need.
	Refs map[string]string `json:"refs,omitempty"`
}
