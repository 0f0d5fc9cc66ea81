package sandbox_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// TestImportInvoices enters more than one transaction's worth of history.
func TestImportInvoices(t *testing.T) {
	now := time.Date(2027, 10, 31, 12, 0, 0, 0, time.UTC)
	b := newBench(t, now)
	b.customer("cus_a", works)
	b.customer("cus_b", works)
	s := b.subscribe("cus_a", "ten", 3)
	other := b.subscribe("cus_b", "ten", 1)
	effects, balance := len(b.effects()), b.cus("cus_a").Balance
	var list []sandbox.PastInvoice
	for i := range 300 {
		p := sandbox.PastInvoice{Subscription: s.ID, Created: now.AddDate(0, -1-i, 0)}
		switch i {
		case 7:
			p.Status = billing.InvoiceVoid
		case 8:
			p.Status = billing.InvoiceUncollectible
		}
		list = append(list, p)
	}
	for name, wrong := range map[string]sandbox.PastInvoice{
		"resource_missing":  {Subscription: other.ID, Created: now.AddDate(0, -1, 0)},
		"parameter_invalid": {Subscription: s.ID, Created: now.Add(time.Hour)},
	} {
		_, err := b.ImportInvoices(t.Context(), "cus_a", append(slices.Clone(list), wrong))
		wantCode(t, err, sandbox.InvalidRequest, name)
	}
	_, err := b.ImportInvoices(t.Context(), "cus_a", []sandbox.PastInvoice{{Subscription: s.ID, Created: now.Add(-1), Status: billing.InvoiceOpen}})
	wantCode(t, err, sandbox.InvalidRequest, "parameter_invalid")
	if n := len(b.invoices("cus_a")); n != 1 {
		t.Fatalf("%d invoices after refused imports, want 1", n)
	}

	ids, err := b.ImportInvoices(t.Context(), "cus_a", list)
	if err != nil || len(ids) != 300 {
		t.Fatalf("%d invoices, %v", len(ids), err)
	}
	var all []sandbox.Invoice
	for f := (sandbox.InvoiceFilter{Customer: "cus_a", Limit: 100}); ; f.StartingAfter = all[len(all)-1].ID {
		page, more, err := b.Invoices(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, page...); !more {
			break
		}
	}
	if len(all) != 301 || all[0].ID != s.LatestInvoice || all[300].ID != ids[0] {
		t.Fatalf("%d invoices, the newest %s, the oldest %s", len(all), all[0].ID, all[len(all)-1].ID)
	}
	seen := map[string]bool{}
	for i, inv := range all[1:] {
		want, paid := billing.InvoicePaid, int64(3000)
		switch i {
		case 7:
			want, paid = billing.InvoiceVoid, 0
		case 8:
			want, paid = billing.InvoiceUncollectible, 0
		}
		if inv.Status != want || inv.Total != 3000 || inv.AmountPaid != paid || seen[inv.Number] || !strings.HasPrefix(inv.Lines[0].Description, "3 × ") ||
			i > 0 && inv.Number >= all[i].Number || !inv.NextPaymentAttempt.IsZero() {
			t.Errorf("invoice %d: %+v", i, inv)
		}
		seen[inv.Number] = true
		if pi, err := b.PaymentIntent(t.Context(), inv.PaymentIntent); err != nil || (pi.Status == sandbox.PaymentSucceeded) != (want == billing.InvoicePaid) || pi.Invoice != inv.ID {
			t.Errorf("payment of invoice %d: %+v, %v", i, pi, err)
		}
	}
	if b.cus("cus_a").Balance != balance || len(b.effects()) != effects {
		t.Error("the import moved the balance or left effects")
	}
	// The next regular invoice is numbered after them.
	b.advance(31 * day)
	next, _, err := b.Invoices(t.Context(), sandbox.InvoiceFilter{Customer: "cus_a", Limit: 1})
	if err != nil || !strings.HasSuffix(next[0].Number, "-0302") {
		t.Errorf("the next invoice is %+v, %v", next, err)
	}
}
