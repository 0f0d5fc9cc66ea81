package billing_test

import (
	"slices"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

func debt(id string, amount int64, currency string) billing.Invoice {
	return billing.Invoice{ID: id, Number: "N-" + id, Status: billing.InvoiceOpen, AmountRemaining: billing.Money{Amount: amount, Currency: currency}}
}

func TestPayWhat(t *testing.T) {
	processing := debt("in_p", 5, "usd")
	processing.Processing = true
	a := billing.Account{Debts: []billing.Invoice{debt("in_1", 1999, "usd"), debt("in_2", 1, "usd"), debt("in_k", 4500, "kwd"), processing}}
	nobody := func(string) error { return &billing.Error{Fault: billing.NotFound} }
	mine := func(string) error { return nil }
	many := slices.Repeat([]string{"in_1"}, billing.MaxPay+1)
	for _, c := range []struct {
		name     string
		invoices []string
		missing  func(string) error
		fault    billing.Fault
		code     string
	}{
		{"two", []string{"in_2", "in_1"}, nobody, "", ""},
		{"of two currencies", []string{"in_1", "in_k"}, nobody, billing.Refused, "currency_mismatch"},
		{"twice", []string{"in_1", "in_1"}, nobody, billing.Refused, "invalid_request"},
		{"too many", many, nobody, billing.Refused, "invalid_request"},
		{"being paid", []string{"in_p"}, nobody, billing.Refused, "not_changeable"},
		{"paid", []string{"in_9"}, mine, billing.Refused, "not_changeable"},
		{"another's", []string{"in_9"}, nobody, billing.NotFound, ""},
	} {
		got, err := a.PayWhat(billing.Action{Invoices: c.invoices}, c.missing)
		if billing.FaultOf(err) != c.fault || billing.CodeOf(err) != c.code || (err == nil) != (len(got) == len(c.invoices)) {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
	two, _ := a.PayWhat(billing.Action{Invoices: []string{"in_2", "in_1"}}, nobody)
	p := billing.Preview{ObjectVersion: "x"}
	p.Pays(two)
	if p.Total.Amount != 2000 || p.DueNow != p.Total || len(p.Lines) != 2 || p.Lines[0].Description != "N-in_2" {
		t.Errorf("%+v", p)
	}
	two[0].AmountRemaining.Amount = 0
	q := billing.Preview{ObjectVersion: "x"}
	q.Pays(two)
	if q.ObjectVersion == p.ObjectVersion || q.SameTerms(p) {
		t.Error("a debt moved and the version did not")
	}
}

func TestRemovable(t *testing.T) {
	sub := func(status billing.SubscriptionStatus, own string, byHand bool) billing.Subscription {
		return billing.Subscription{ID: "sub_1", Status: status, DefaultPaymentMethod: own, SendInvoice: byHand}
	}
	two := []billing.PaymentMethod{{ID: "pm_1"}, {ID: "pm_2"}}
	ownDebt := debt("in_1", 1, "usd")
	ownDebt.Subscription = "sub_1"
	byHand, debited := ownDebt, ownDebt
	byHand.SendInvoice = true
	debited.Processing, debited.Method = true, &two[1]
	for _, c := range []struct {
		name string
		a    billing.Account
		want string
	}{
		{"nothing", billing.Account{PaymentMethods: two[1:], Customer: billing.Customer{DefaultPaymentMethod: "pm_2"}}, ""},
		{"the customer's", billing.Account{PaymentMethods: two, Customer: billing.Customer{DefaultPaymentMethod: "pm_2"}, Subscriptions: []billing.Subscription{sub(billing.PastDue, "", false)}}, "in_use"},
		{"the customer's, not used", billing.Account{PaymentMethods: two, Customer: billing.Customer{DefaultPaymentMethod: "pm_2"}, Subscriptions: []billing.Subscription{sub(billing.Active, "pm_1", false)}}, ""},
		{"a subscription's", billing.Account{PaymentMethods: two, Subscriptions: []billing.Subscription{sub(billing.Paused, "pm_2", false)}}, "in_use"},
		{"an ended subscription's", billing.Account{PaymentMethods: two, Subscriptions: []billing.Subscription{sub(billing.Canceled, "pm_2", false)}}, ""},
		{"an ended subscription's debt", billing.Account{PaymentMethods: two, Subscriptions: []billing.Subscription{sub(billing.Canceled, "pm_2", false)}, Debts: []billing.Invoice{ownDebt}}, "in_use"},
		{"a debt paid by hand", billing.Account{PaymentMethods: two, Subscriptions: []billing.Subscription{sub(billing.Canceled, "pm_2", false)}, Debts: []billing.Invoice{byHand}}, ""},
		{"a payment on its way", billing.Account{PaymentMethods: two, Debts: []billing.Invoice{debited}}, "in_use"},
		{"the last", billing.Account{PaymentMethods: two[1:], Subscriptions: []billing.Subscription{sub(billing.Active, "", false)}}, "last_payment_method"},
		{"the last, paid by hand", billing.Account{PaymentMethods: two[1:], Customer: billing.Customer{DefaultPaymentMethod: "pm_2"}, Subscriptions: []billing.Subscription{sub(billing.Active, "", true)}}, ""},
		{"nobody's", billing.Account{PaymentMethods: two[:1]}, "resource_missing"},
	} {
		if err := c.a.Removable("pm_2"); billing.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestDeclineCodeSaysNothingOfFraud(t *testing.T) {
	for _, c := range [][3]string{
		{"card_declined", "lost_card", "card_declined"},
		{"card_declined", "stolen_card", "card_declined"},
		{"card_declined", "fraudulent", "card_declined"},
		{"card_declined", "merchant_blacklist", "card_declined"},
		{"card_declined", "insufficient_funds", "insufficient_funds"},
		{"expired_card", "", "expired_card"},
		{"payment_intent_authentication_failure", "", "authentication_required"},
		{"", "", "card_declined"},
		{"insufficient_funds", "", "insufficient_funds"},
		{"account_closed", "", "card_declined"},
	} {
		if got := billing.DeclineCode(c[0], c[1]); got != c[2] {
			t.Errorf("%s, %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
}
