package sandbox_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const (
	works    = "4242424242424242"
	declines = "4000000000000341"
	asks     = "4000002500003155"
	refuses  = "4000000000000002"
	day      = 24 * time.Hour
)

// wantCode fails unless err is a ledger's error with that type and code.
func wantCode(t *testing.T, err error, typ sandbox.ErrorType, code string) {
	t.Helper()
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Type != typ || e.Code != code {
		t.Errorf("got error %v, want %s %s", err, typ, code)
	}
}

func kinds(effects []sandbox.Effect) []string {
	var list []string
	for _, e := range effects {
		list = append(list, e.Kind)
	}
	return list
}

// TestRenewals runs a monthly subscription for a year from the 31st: months
// without that day end on their last, and the next one has it again.
func TestRenewals(t *testing.T) {
	b := newBench(t, time.Date(2027, 10, 31, 23, 30, 0, 0, time.UTC))
	b.customer("cus_a", works)
	s := b.subscribe("cus_a", "ten", 3)
	before := len(b.effects())
	b.advance(366 * day)
	var got []string
	list := b.invoices("cus_a")
	slices.Reverse(list)
	for i, inv := range list {
		got = append(got, inv.Created.Format("01-02"))
		if inv.Total != 3000 || inv.Status != billing.InvoicePaid || inv.AmountPaid != 3000 || inv.AmountRemaining != 0 || !strings.HasSuffix(inv.Number, fmt.Sprintf("-%04d", i+1)) {
			t.Errorf("invoice %d: %+v", i, inv)
		}
		if i > 0 && !inv.Lines[0].PeriodStart.Equal(list[i-1].Lines[0].PeriodEnd) {
			t.Errorf("invoice %d begins at %s", i, inv.Lines[0].PeriodStart)
		}
	}
	want := strings.Fields("10-31 11-30 12-31 01-31 02-29 03-31 04-30 05-31 06-30 07-31 08-31 09-30 10-31")
	if !slices.Equal(got, want) {
		t.Errorf("invoices on %v, want %v", got, want)
	}
	if s = b.sub(s.ID); s.Status != billing.Active || !s.Items[0].CurrentPeriodEnd.Equal(time.Date(2028, 11, 30, 23, 30, 0, 0, time.UTC)) {
		t.Errorf("subscription %+v", s)
	}
	if e := b.effects()[before:]; len(e) != 12 || e[0].Kind != "subscription.renew" || e[11].Object != s.ID || e[3].Time.Format("01-02") != "02-29" {
		t.Errorf("effects %+v", e)
	}
}

// TestRealTime shows that what falls due is done when real time passes, too,
// at its own time, and that a clock that goes backwards does not take ledger
// time with it.
func TestRealTime(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	s := b.subscribe("cus_a", "ten", 1)
	b.clock.set(noon.AddDate(0, 2, 1))
	list := b.invoices("cus_a")
	if len(list) != 3 || !list[1].Created.Equal(noon.AddDate(0, 1, 0)) {
		t.Fatalf("invoices %+v", list)
	}
	b.clock.set(noon)
	now, err := b.Now(t.Context())
	if err != nil || now.Before(noon.AddDate(0, 2, 0)) || len(b.invoices("cus_a")) != 3 || b.sub(s.ID).Status != billing.Active {
		t.Errorf("time went back to %s, %v", now, err)
	}
	_, err = b.Advance(t.Context(), -time.Hour)
	wantCode(t, err, sandbox.InvalidRequest, "parameter_invalid")
}

// TestFailedRenewal: past due, tried again after 3, 5 and 7 days, canceled; and
// active again where a card works in between.
func TestFailedRenewal(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		b := newBench(t, noon)
		b.customer("cus_a", works)
		s := b.subscribe("cus_a", "ten", 1)
		b.setCard("cus_a", declines)
		start := len(b.effects())
		b.advance(noon.AddDate(0, 1, 0).Sub(noon))
		s = b.sub(s.ID)
		inv := b.invoice(s.LatestInvoice)
		if s.Status != billing.PastDue || inv.Status != billing.InvoiceOpen || !inv.NextPaymentAttempt.Equal(inv.Created.AddDate(0, 0, 3)) || inv.AttemptCount != 1 {
			t.Fatalf("%+v %+v", s, inv)
		}
		b.advance(4 * day)
		if inv = b.invoice(inv.ID); inv.AttemptCount != 2 || !inv.NextPaymentAttempt.Equal(inv.Created.AddDate(0, 0, 5)) {
			t.Fatalf("%+v", inv)
		}
		if fixed {
			b.setCard("cus_a", works)
		}
		b.advance(60 * day)
		s, inv = b.sub(s.ID), b.invoice(inv.ID)
		if fixed {
			if s.Status != billing.Active || inv.Status != billing.InvoicePaid || inv.AttemptCount != 3 {
				t.Errorf("%+v %+v", s, inv)
			}
			continue
		}
		if s.Status != billing.Canceled || !s.EndedAt.Equal(inv.Created.AddDate(0, 0, 7)) || inv.Status != billing.InvoiceOpen || !inv.NextPaymentAttempt.IsZero() || inv.AttemptCount != 4 {
			t.Errorf("%+v %+v", s, inv)
		}
		if got := kinds(b.effects()[start:]); !slices.Equal(got, []string{"subscription.renew", "invoice.retry", "invoice.retry", "invoice.retry", "subscription.end_unpaid"}) {
			t.Errorf("effects %v", got)
		}
	}
}

// TestTrial: no invoice and no proration while it runs, in another interval
// too; the first invoice at its end.
func TestTrial(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	end := noon.AddDate(0, 0, 14)
	s, err := b.CreateSubscription(t.Context(), sandbox.Call{}, sandbox.SubscriptionCreate{Customer: "cus_a", Items: []sandbox.ItemParams{{Price: "price_ten"}}, TrialEnd: end})
	if err != nil || s.Status != billing.Trialing || !s.Items[0].CurrentPeriodEnd.Equal(end) {
		t.Fatal(s, err)
	}
	b.advance(5 * day)
	s, err = b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, change(s, "year", 4))
	if err != nil || s.Status != billing.Trialing || !s.TrialEnd.Equal(end) || s.Items[0].Quantity != 4 || len(b.invoices("cus_a")) != 0 {
		t.Fatal(s, err)
	}
	b.advance(9 * day)
	s = b.sub(s.ID)
	inv := b.invoice(s.LatestInvoice)
	if s.Status != billing.Active || inv.Total != 80000 || inv.Status != billing.InvoicePaid || !s.Items[0].CurrentPeriodEnd.Equal(end.AddDate(1, 0, 0)) {
		t.Errorf("%+v %+v", s, inv)
	}

	b.customer("cus_b", "")
	s, err = b.CreateSubscription(t.Context(), sandbox.Call{}, sandbox.SubscriptionCreate{Customer: "cus_b", Items: []sandbox.ItemParams{{Price: "price_ten"}}, TrialEnd: end.AddDate(0, 0, 14)})
	if err != nil {
		t.Fatal(err)
	}
	b.advance(14 * day)
	if s = b.sub(s.ID); s.Status != billing.PastDue {
		t.Errorf("a trial that ended without a card is %s", s.Status)
	}
}

func TestCancelAtPeriodEnd(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	s := b.subscribe("cus_a", "ten", 1)
	yes, no := true, false
	s, err := b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, sandbox.SubscriptionUpdate{CancelAtPeriodEnd: &yes})
	if err != nil || !s.CancelAt.Equal(noon.AddDate(0, 1, 0)) || !s.CanceledAt.Equal(noon) {
		t.Fatal(s, err)
	}
	_, err = b.Preview(t.Context(), sandbox.PreviewParams{Subscription: s.ID})
	wantCode(t, err, sandbox.InvalidRequest, "invoice_upcoming_none")
	if s, err = b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, sandbox.SubscriptionUpdate{CancelAtPeriodEnd: &no}); err != nil || !s.CancelAt.IsZero() || !s.CanceledAt.IsZero() {
		t.Fatal(s, err)
	}
	if _, err = b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, sandbox.SubscriptionUpdate{CancelAtPeriodEnd: &yes}); err != nil {
		t.Fatal(err)
	}
	b.advance(40 * day)
	if s = b.sub(s.ID); s.Status != billing.Canceled || !s.EndedAt.Equal(noon.AddDate(0, 1, 0)) || len(b.invoices("cus_a")) != 1 {
		t.Errorf("%+v", s)
	}
	_, err = b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, sandbox.SubscriptionUpdate{CancelAtPeriodEnd: &no})
	wantCode(t, err, sandbox.InvalidRequest, "invalid_canceled_subscription_fields")
}

// TestPendingUpdate: a declined or unconfirmed upgrade waits and leaves the
// subscription as it was.
func TestPendingUpdate(t *testing.T) {
	start := func(t *testing.T, card string) (*bench, sandbox.Subscription, sandbox.Invoice) {
		b := newBench(t, noon)
		b.customer("cus_a", works)
		s := b.subscribe("cus_a", "ten", 2)
		if _, err := b.AdjustBalance(t.Context(), sandbox.Call{}, "cus_a", -100, "usd"); err != nil {
			t.Fatal(err)
		}
		b.setCard("cus_a", card)
		b.advance(5 * day)
		s, err := b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, change(s, "twenty", 3))
		if err != nil {
			t.Fatal(err)
		}
		inv := b.invoice(s.LatestInvoice)
		if s.Items[0].Price.ID != "price_ten" || s.Items[0].Quantity != 2 || s.Status != billing.Active || s.PendingUpdate == nil ||
			s.PendingUpdate.Invoice != inv.ID || inv.Status != billing.InvoiceOpen || !inv.ForPendingUpdate || !inv.NextPaymentAttempt.IsZero() ||
			!s.PendingUpdate.ExpiresAt.Equal(noon.AddDate(0, 0, 5).Add(23*time.Hour)) || inv.AmountDue != inv.Total-100 {
			t.Fatalf("%+v %+v", s, inv)
		}
		return b, s, inv
	}
	applied := func(t *testing.T, b *bench, s sandbox.Subscription, inv sandbox.Invoice) {
		t.Helper()
		s, inv = b.sub(s.ID), b.invoice(inv.ID)
		if s.PendingUpdate != nil || s.Items[0].Price.ID != "price_twenty" || s.Items[0].Quantity != 3 || inv.Status != billing.InvoicePaid || b.cus("cus_a").Balance != 0 {
			t.Errorf("%+v %+v", s, inv)
		}
	}
	dropped := func(t *testing.T, b *bench, s sandbox.Subscription, inv sandbox.Invoice) {
		t.Helper()
		s, inv = b.sub(s.ID), b.invoice(inv.ID)
		if s.PendingUpdate != nil || s.Items[0].Price.ID != "price_ten" || s.Items[0].Quantity != 2 || inv.Status != billing.InvoiceVoid || b.cus("cus_a").Balance != -100 {
			t.Errorf("%+v %+v", s, inv)
		}
	}
	t.Run("paid with another card", func(t *testing.T) {
		b, s, inv := start(t, declines)
		_, err := b.PayInvoice(t.Context(), sandbox.Call{}, inv.ID, sandbox.PayParams{})
		wantCode(t, err, sandbox.CardError, "card_declined")
		if b.invoice(inv.ID).AttemptCount != 2 {
			t.Error("the second attempt was not counted")
		}
		b.setCard("cus_a", works)
		if _, err = b.PayInvoice(t.Context(), sandbox.Call{}, inv.ID, sandbox.PayParams{}); err != nil {
			t.Fatal(err)
		}
		applied(t, b, s, inv)
	})
	t.Run("confirmed", func(t *testing.T) {
		b, s, inv := start(t, asks)
		if _, err := b.ConfirmPayment(t.Context(), sandbox.Call{}, inv.PaymentIntent, true); err != nil {
			t.Fatal(err)
		}
		applied(t, b, s, inv)
		_, err := b.ConfirmPayment(t.Context(), sandbox.Call{}, inv.PaymentIntent, true)
		wantCode(t, err, sandbox.InvalidRequest, "payment_intent_unexpected_state")
	})
	t.Run("declined by the customer, then asked again", func(t *testing.T) {
		b, s, inv := start(t, asks)
		if _, err := b.ConfirmPayment(t.Context(), sandbox.Call{}, inv.PaymentIntent, false); err != nil {
			t.Fatal(err)
		}
		if s = b.sub(s.ID); s.PendingUpdate == nil {
			t.Error("the update is gone")
		}
		_, err := b.PayInvoice(t.Context(), sandbox.Call{}, inv.ID, sandbox.PayParams{})
		wantCode(t, err, sandbox.CardError, "authentication_required")
		if _, err := b.ConfirmPayment(t.Context(), sandbox.Call{}, inv.PaymentIntent, true); err != nil {
			t.Fatal(err)
		}
		applied(t, b, s, inv)
	})
	t.Run("voided", func(t *testing.T) {
		b, s, inv := start(t, declines)
		if _, err := b.VoidInvoice(t.Context(), sandbox.Call{}, inv.ID); err != nil {
			t.Fatal(err)
		}
		dropped(t, b, s, inv)
		_, err := b.VoidInvoice(t.Context(), sandbox.Call{}, inv.ID)
		wantCode(t, err, sandbox.InvalidRequest, "invoice_not_open")
	})
	t.Run("expired", func(t *testing.T) {
		b, s, inv := start(t, declines)
		b.advance(23*time.Hour - time.Second)
		if b.sub(s.ID).PendingUpdate == nil {
			t.Error("it expired too soon")
		}
		b.advance(time.Second)
		dropped(t, b, s, inv)
		if e := b.effects(); e[len(e)-1].Kind != "subscription.pending_update_expire" {
			t.Errorf("effects %v", kinds(e))
		}
	})
	t.Run("replaced", func(t *testing.T) {
		b, s, inv := start(t, declines)
		s, err := b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, change(s, "ten", 1))
		if err != nil || s.PendingUpdate != nil || s.Items[0].Quantity != 1 || b.invoice(inv.ID).Status != billing.InvoiceVoid {
			t.Errorf("%+v %v", s, err)
		}
	})
	t.Run("ends with the period", func(t *testing.T) {
		b := newBench(t, noon)
		b.customer("cus_a", works)
		s := b.subscribe("cus_a", "ten", 2)
		b.setCard("cus_a", declines)
		end := s.Items[0].CurrentPeriodEnd
		b.advance(end.Add(-time.Hour).Sub(noon))
		s, err := b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, change(s, "year", 2))
		if err != nil || !s.PendingUpdate.ExpiresAt.Equal(end) {
			t.Fatalf("%+v %v", s, err)
		}
		b.setCard("cus_a", works)
		b.advance(2 * time.Hour)
		if s = b.sub(s.ID); s.PendingUpdate != nil || s.Status != billing.Active || s.Items[0].Price.ID != "price_ten" {
			t.Errorf("%+v", s)
		}
	})
}

// TestPaymentBehaviors: error_if_incomplete changes nothing but keeps its
// answer; allow_incomplete applies and owes.
func TestPaymentBehaviors(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	s := b.subscribe("cus_a", "ten", 1)
	b.setCard("cus_a", declines)
	effects, invoices := len(b.effects()), len(b.invoices("cus_a"))
	u := change(s, "twenty", 1)
	u.PaymentBehavior = sandbox.ErrorIfIncomplete
	for range 2 {
		_, err := b.UpdateSubscription(t.Context(), sandbox.Call{Key: "k"}, s.ID, u)
		wantCode(t, err, sandbox.CardError, "card_declined")
		b.setCard("cus_a", works) // the saved answer stays
		effects += 2
	}
	if got := b.sub(s.ID); got.Items[0].Price.ID != "price_ten" || got.LatestInvoice != s.LatestInvoice || len(b.invoices("cus_a")) != invoices || len(b.effects()) != effects {
		t.Errorf("something stayed: %+v %v", got, kinds(b.effects()))
	}
	b.setCard("cus_a", declines)
	u.PaymentBehavior = ""
	s, err := b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, u)
	if err != nil || s.Status != billing.PastDue || s.Items[0].Price.ID != "price_twenty" {
		t.Errorf("%+v %v", s, err)
	}
	b.setCard("cus_a", works)
	if _, err := b.PayInvoice(t.Context(), sandbox.Call{}, s.LatestInvoice, sandbox.PayParams{}); err != nil || b.sub(s.ID).Status != billing.Active {
		t.Errorf("%+v %v", b.sub(s.ID), err)
	}
}

// TestIdempotency holds what Stripe's idempotency keys promise.
func TestIdempotency(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	s := b.subscribe("cus_a", "ten", 1)
	b.advance(10 * day)
	start := len(b.effects())

	var wg sync.WaitGroup
	got := make([]sandbox.Subscription, 32)
	replayed := make([]bool, 32)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = b.UpdateSubscription(t.Context(), sandbox.Call{Key: "k1", Replayed: &replayed[i]}, s.ID, change(s, "twenty", 2)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	first := 0
	for i := range got {
		if got[i].LatestInvoice != got[0].LatestInvoice || got[i].Items[0].Quantity != 2 {
			t.Errorf("answer %d: %+v", i, got[i])
		}
		if !replayed[i] {
			first++
		}
	}
	if e := b.effects()[start:]; first != 1 || len(e) != 1 || e[0].IdempotencyKey != "k1" || e[0].Customer != "cus_a" || e[0].Object != s.ID {
		t.Errorf("%d were carried out, effects %+v", first, e)
	}
	_, err := b.UpdateSubscription(t.Context(), sandbox.Call{Key: "k1"}, s.ID, change(s, "twenty", 3))
	wantCode(t, err, sandbox.IdempotencyError, "idempotency_error")
	_, err = b.CancelSubscription(t.Context(), sandbox.Call{Key: "k1"}, s.ID)
	wantCode(t, err, sandbox.IdempotencyError, "idempotency_error")

	// A call that was refused before it was carried out may be mended.
	u := change(s, "nothing", 1)
	_, err = b.UpdateSubscription(t.Context(), sandbox.Call{Key: "k2"}, s.ID, u)
	wantCode(t, err, sandbox.InvalidRequest, "resource_missing")
	if _, err = b.UpdateSubscription(t.Context(), sandbox.Call{Key: "k2"}, s.ID, change(s, "ten", 1)); err != nil {
		t.Error(err)
	}
	// After 24 hours the key is new.
	b.advance(24*time.Hour - time.Second)
	again := true
	if _, err = b.UpdateSubscription(t.Context(), sandbox.Call{Key: "k1", Replayed: &again}, s.ID, change(s, "twenty", 2)); err != nil || !again {
		t.Error(again, err)
	}
	if b.sub(s.ID).Items[0].Price.ID != "price_ten" {
		t.Error("a replay changed something")
	}
	b.advance(time.Second)
	if _, err = b.UpdateSubscription(t.Context(), sandbox.Call{Key: "k1", Replayed: &again}, s.ID, change(s, "twenty", 2)); err != nil || again || b.sub(s.ID).Items[0].Price.ID != "price_twenty" {
		t.Error(again, err)
	}
	_, err = b.CancelSubscription(t.Context(), sandbox.Call{Key: strings.Repeat("k", 256)}, s.ID)
	wantCode(t, err, sandbox.InvalidRequest, "parameter_invalid")
	if saved, found, err := b.Saved(t.Context(), "k1"); err != nil || !found || saved.Operation != "subscription.update" {
		t.Error(saved, found, err)
	}
}

// TestStoreFails: an update that the store does not take leaves nothing.
func TestStoreFails(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	s := b.subscribe("cus_a", "ten", 1)
	size := len(b.db.data)
	b.db.fail = store.ErrUnknown
	if _, err := b.UpdateSubscription(t.Context(), sandbox.Call{Key: "k"}, s.ID, change(s, "twenty", 1)); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("got %v", err)
	}
	b.db.fail = nil
	if _, found, err := b.Saved(t.Context(), "k"); found || err != nil || len(b.db.data) != size {
		t.Error("something stayed", found, err)
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	b.customer("cus_b", works)
	s := b.subscribe("cus_a", "ten", 1)
	b.price("inactive", "1.00", billing.Month)
	if _, err := b.CreatePrice(t.Context(), sandbox.Call{}, sandbox.PriceParams{ID: "price_euro", Product: "prod_x", Currency: "eur", UnitAmount: decimal.NewFromInt(100), Interval: billing.Month}); err != nil {
		t.Fatal(err)
	}
	foreign := b.cus("cus_b").DefaultPaymentMethod
	update := func(f func(*sandbox.SubscriptionUpdate)) error {
		u := change(s, "twenty", 2)
		f(&u)
		_, err := b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, u)
		return err
	}
	huge, negative := int64(billing.MaxQuantity+1), int64(-1)
	for name, c := range map[string]struct {
		err  error
		code string
	}{
		"other currency":         {update(func(u *sandbox.SubscriptionUpdate) { u.Items[0].Price = "price_euro" }), "currency_mismatch"},
		"unknown item":           {update(func(u *sandbox.SubscriptionUpdate) { u.Items[0].ID = "si_x" }), "resource_missing"},
		"huge quantity":          {update(func(u *sandbox.SubscriptionUpdate) { u.Items[0].Quantity = &huge }), "parameter_invalid"},
		"negative quantity":      {update(func(u *sandbox.SubscriptionUpdate) { u.Items[0].Quantity = &negative }), "parameter_invalid"},
		"before the period":      {update(func(u *sandbox.SubscriptionUpdate) { u.ProrationDate = noon.Add(-time.Second) }), "invalid_proration_date"},
		"at the period's end":    {update(func(u *sandbox.SubscriptionUpdate) { u.ProrationDate = noon.AddDate(0, 1, 0) }), "invalid_proration_date"},
		"date without proration": {update(func(u *sandbox.SubscriptionUpdate) { u.ProrationBehavior, u.ProrationDate = sandbox.NoProration, noon }), "parameter_invalid"},
		"pending and cancel":     {update(func(u *sandbox.SubscriptionUpdate) { u.CancelAtPeriodEnd = new(bool) }), "parameter_invalid"},
		"foreign card": {update(func(u *sandbox.SubscriptionUpdate) {
			u.PaymentBehavior, u.DefaultPaymentMethod = "", &foreign
		}), "resource_missing"},
		"last item":     {update(func(u *sandbox.SubscriptionUpdate) { u.Items[0].Deleted = true }), "parameter_invalid"},
		"mixed":         {update(func(u *sandbox.SubscriptionUpdate) { u.Items[0] = sandbox.ItemParams{Price: "price_year"} }), "parameter_invalid"},
		"same twice":    {update(func(u *sandbox.SubscriptionUpdate) { u.Items[0] = sandbox.ItemParams{Price: "price_ten"} }), "parameter_invalid"},
		"no proration?": {update(func(u *sandbox.SubscriptionUpdate) { u.ProrationBehavior = "create_prorations" }), "parameter_invalid"},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, c.err, sandbox.InvalidRequest, c.code) })
	}
	_, err := b.AddCard(t.Context(), sandbox.Call{}, "cus_a", sandbox.CardParams{Number: refuses})
	wantCode(t, err, sandbox.CardError, "card_declined")
	_, err = b.AddCard(t.Context(), sandbox.Call{}, "cus_a", sandbox.CardParams{Number: "4111111111111111"})
	wantCode(t, err, sandbox.InvalidRequest, "incorrect_number")
	_, err = b.AddCard(t.Context(), sandbox.Call{}, "cus_a", sandbox.CardParams{Number: works, ExpMonth: 2, ExpYear: 2026})
	wantCode(t, err, sandbox.InvalidRequest, "invalid_expiry_month")
	_, err = b.Customer(t.Context(), "cus_x")
	wantCode(t, err, sandbox.InvalidRequest, "resource_missing")
	bad := decimal.RequireFromString("1.00001")
	_, err = b.UpdateCustomer(t.Context(), sandbox.Call{}, "cus_a", sandbox.CustomerParams{TaxPercent: &bad})
	wantCode(t, err, sandbox.InvalidRequest, "parameter_invalid")
	if got := b.sub(s.ID); got.Items[0].Price.ID != "price_ten" || len(b.invoices("cus_a")) != 1 {
		t.Errorf("something was changed: %+v", got)
	}
	// The store holds no card number.
	for k, v := range b.db.data {
		if strings.Contains(k+string(v), works) {
			t.Errorf("a card's number is in %q", k)
		}
	}
}

// TestItems holds Stripe's traps: no id adds an item, a new price without
// quantity means 1; and a removed item is credited.
func TestItems(t *testing.T) {
	b := newBench(t, time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC))
	b.customer("cus_a", works)
	s := b.subscribe("cus_a", "ten", 5)
	b.advance(15 * day)
	u := sandbox.SubscriptionUpdate{ProrationBehavior: sandbox.AlwaysInvoice, Items: []sandbox.ItemParams{{Price: "price_twenty"}}}
	s, err := b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, u)
	if err != nil || len(s.Items) != 2 || b.invoice(s.LatestInvoice).Total != 1000 {
		t.Fatalf("%+v %v", s, err)
	}
	u.Items = []sandbox.ItemParams{{ID: s.Items[0].ID, Deleted: true}}
	s, err = b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, u)
	if err != nil || len(s.Items) != 1 || b.invoice(s.LatestInvoice).Total != -2500 || b.cus("cus_a").Balance != -2500 {
		t.Fatalf("%+v %v", s, err)
	}
	three := int64(3)
	u.Items = []sandbox.ItemParams{{ID: s.Items[0].ID, Quantity: &three}}
	if s, err = b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, u); err != nil {
		t.Fatal(err)
	}
	u.Items = []sandbox.ItemParams{{ID: s.Items[0].ID, Price: "price_ten"}}
	s, err = b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, u)
	if err != nil || s.Items[0].Quantity != 1 {
		t.Errorf("%+v %v", s, err)
	}
	moves, err := b.BalanceTransactions(t.Context(), "cus_a")
	if err != nil || len(moves) != 3 {
		t.Fatal(moves, err)
	}
	var sum int64
	for _, m := range moves {
		sum += m.Amount
	}
	if sum != b.cus("cus_a").Balance || moves[0].EndingBalance != sum {
		t.Errorf("balance %d, moves %+v", b.cus("cus_a").Balance, moves)
	}
}

// TestSendInvoice: nothing is charged, the invoice waits with a due date.
func TestSendInvoice(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", "")
	s, err := b.CreateSubscription(t.Context(), sandbox.Call{}, sandbox.SubscriptionCreate{Customer: "cus_a", CollectionMethod: sandbox.SendInvoice, Items: []sandbox.ItemParams{{Price: "price_ten"}}})
	inv := b.invoice(s.LatestInvoice)
	if err != nil || s.Status != billing.Active || inv.Status != billing.InvoiceOpen || !inv.DueDate.Equal(noon.AddDate(0, 0, 30)) || inv.Attempted {
		t.Errorf("%+v %+v %v", s, inv, err)
	}
	b.advance(45 * day)
	if s = b.sub(s.ID); s.Status != billing.Active || len(b.invoices("cus_a")) != 2 {
		t.Errorf("%+v", s)
	}
}

// TestInvoicePages walks all pages in both directions.
func TestInvoicePages(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	b.customer("cus_b", works)
	b.subscribe("cus_a", "ten", 1)
	other := b.subscribe("cus_b", "ten", 1)
	b.advance(250 * day)
	all := b.invoices("cus_a")
	var down, up []sandbox.Invoice
	for after, more := "", true; more; after = down[len(down)-1].ID {
		var page []sandbox.Invoice
		var err error
		page, more, err = b.Invoices(t.Context(), sandbox.InvoiceFilter{Customer: "cus_a", StartingAfter: after, Limit: 4})
		if err != nil || len(page) == 0 {
			t.Fatal(err)
		}
		down = append(down, page...)
	}
	for before, more := all[len(all)-1].ID, true; more; before = up[0].ID {
		var page []sandbox.Invoice
		var err error
		page, more, err = b.Invoices(t.Context(), sandbox.InvoiceFilter{Customer: "cus_a", EndingBefore: before, Limit: 3})
		if err != nil || len(page) == 0 {
			t.Fatal(err)
		}
		up = append(page, up...)
	}
	ids := func(list []sandbox.Invoice) (ids []string) {
		for _, inv := range list {
			ids = append(ids, inv.ID)
		}
		return ids
	}
	if len(all) != 9 || !slices.Equal(ids(down), ids(all)) || !slices.Equal(ids(up), ids(all[:8])) {
		t.Errorf("all %v\ndown %v\nup %v", ids(all), ids(down), ids(up))
	}
	_, _, err := b.Invoices(t.Context(), sandbox.InvoiceFilter{Customer: "cus_a", StartingAfter: other.LatestInvoice})
	wantCode(t, err, sandbox.InvalidRequest, "resource_missing")
	if list, _, err := b.Invoices(t.Context(), sandbox.InvoiceFilter{Status: billing.InvoicePaid, Limit: 100}); err != nil || len(list) != 18 {
		t.Error(len(list), err)
	}
}

// TestDocument reads an invoice's PDF back with pdftotext.
func TestDocument(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	name, tax := "Żółć & Söhne ΑΕ", decimal.RequireFromString("8.875")
	if _, err := b.UpdateCustomer(t.Context(), sandbox.Call{}, "cus_a", sandbox.CustomerParams{Name: &name, TaxPercent: &tax, Address: &billing.Address{Line1: "1 Main St", City: "Łódź", PostalCode: "90-001", Country: "PL"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.AdjustBalance(t.Context(), sandbox.Call{}, "cus_a", -250, "usd"); err != nil {
		t.Fatal(err)
	}
	s := b.subscribe("cus_a", "ten", 120)
	raw, err := b.InvoicePDF(t.Context(), s.LatestInvoice)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.InvoicePDF(t.Context(), s.LatestInvoice)
	if err != nil || string(again) != string(raw) {
		t.Error("the same invoice gave two documents", err)
	}
	file := filepath.Join(t.TempDir(), "invoice.pdf")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("pdftotext", "-layout", file, "-").CombinedOutput()
	if err != nil {
		t.Fatalf("pdftotext (Debian: poppler-utils): %v: %s", err, out)
	}
	for _, want := range []string{
		b.invoice(s.LatestInvoice).Number, "10 March 2026", name, "Łódź", "120 × Plan X (at $10.00 / month)", "10 March 2026 – 10 April 2026",
		"$1,200.00", "Tax 8.875%", "$106.50", "$1,306.50", "-$2.50", "$1,304.00", "no real money",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the document lacks %q:\n%s", want, out)
		}
	}
}

func TestExponent(t *testing.T) {
	for currency, want := range map[string]int{"usd": 2, "eur": 2, "jpy": 0, "krw": 0, "kwd": 3, "tnd": 3, "isk": 2, "ugx": 2, "mga": 0, "huf": 2} {
		if got := sandbox.Exponent(currency); got != want {
			t.Errorf("%s has %d decimals, want %d", currency, got, want)
		}
	}
}

// TestIncomplete: a first invoice that is not paid leaves the subscription
// incomplete, for 23 hours.
func TestIncomplete(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", declines)
	first, second := b.subscribe("cus_a", "ten", 1), b.subscribe("cus_a", "twenty", 1)
	if first.Status != billing.Incomplete {
		t.Fatalf("%+v", first)
	}
	b.setCard("cus_a", works)
	if _, err := b.PayInvoice(t.Context(), sandbox.Call{}, first.LatestInvoice, sandbox.PayParams{}); err != nil {
		t.Fatal(err)
	}
	b.advance(23 * time.Hour)
	if s := b.sub(first.ID); s.Status != billing.Active {
		t.Errorf("%+v", s)
	}
	if s := b.sub(second.ID); s.Status != billing.IncompleteExpired || b.invoice(s.LatestInvoice).Status != billing.InvoiceVoid {
		t.Errorf("%+v", s)
	}
}
