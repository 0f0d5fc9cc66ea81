package sandbox_test

import (
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox/oracletest"
)

// TestCreditNotes: each divides into amount and tax as the oracle says, and
// together they never take off more than there is.
func TestCreditNotes(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	tax := decimal.RequireFromString("8.875")
	if _, err := b.UpdateCustomer(t.Context(), sandbox.Call{}, "cus_a", sandbox.CustomerParams{TaxPercent: &tax}); err != nil {
		t.Fatal(err)
	}
	inv := b.invoice(b.subscribe("cus_a", "ten", 7).LatestInvoice)
	want := oracletest.Issue(oracletest.Paper{
		Sides: []oracletest.Side{{Unit: big.NewRat(1000, 1), Quantity: 7, Interval: billing.Month, Count: 1}}, TaxPercent: big.NewRat(8875, 1000),
	})
	if inv.Total != want.Total {
		t.Fatalf("total %d, the oracle says %d", inv.Total, want.Total)
	}
	left := inv.Total
	for _, amount := range []int64{1, 5, 999, 1234, 3} {
		n, err := b.CreateCreditNote(t.Context(), sandbox.Call{}, sandbox.CreditNoteParams{Invoice: inv.ID, Amount: amount, ToBalance: amount%2 == 0})
		if err != nil {
			t.Fatal(err)
		}
		subtotal, taxes := oracletest.CreditNote(want, amount)
		if n.Subtotal != subtotal || n.Tax != taxes || n.Refunded+n.ToBalance+n.Reduced != amount {
			t.Errorf("%d: %+v, the oracle says %d + %d", amount, n, subtotal, taxes)
		}
		left -= amount
	}
	for _, p := range []sandbox.CreditNoteParams{
		{Invoice: inv.ID, Amount: left + 1}, {Invoice: inv.ID, Amount: 0}, {Invoice: inv.ID, Amount: -1}, {Invoice: inv.ID, Amount: 1, Reason: "x"},
	} {
		_, err := b.CreateCreditNote(t.Context(), sandbox.Call{}, p)
		wantCode(t, err, sandbox.InvalidRequest, "parameter_invalid")
	}
	_, err := b.VoidCreditNote(t.Context(), sandbox.Call{}, "cn_none")
	wantCode(t, err, sandbox.InvalidRequest, "resource_missing")
	if c := b.cus("cus_a"); c.Balance != -1234 {
		t.Errorf("balance %d", c.Balance)
	}
}

// text is what pdftotext reads.
func text(t *testing.T, pdf []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.pdf")
	if err := os.WriteFile(file, pdf, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("pdftotext", "-layout", file, "-").CombinedOutput()
	if err != nil {
		t.Fatalf("pdftotext (Debian: poppler-utils): %v: %s", err, out)
	}
	return string(out)
}

// TestDocumentOfHostileCustomer: whatever a customer is called, the invoice and
// its credit note can be printed and read, and nothing turns what follows.
func TestDocumentOfHostileCustomer(t *testing.T) {
	b := newBench(t, noon)
	b.customer("cus_a", works)
	name := "\u202eevil\u202c\u200f😀\x01\r\nŻółć" + strings.Repeat("Ω", 100)
	fields := []billing.InvoiceField{{Name: "PO number", Value: "PO-4711\u2066"}, {Name: strings.Repeat("n", 40), Value: strings.Repeat("v", 140)}}
	if _, err := b.UpdateCustomer(t.Context(), sandbox.Call{}, "cus_a", sandbox.CustomerParams{
		Name: &name, InvoiceFields: &fields, Address: &billing.Address{Line1: strings.Repeat("long ", 2_000), City: "Łódź\u202e", PostalCode: "90-001", Country: "PL"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateTaxID(t.Context(), sandbox.Call{}, "cus_a", "eu_vat", "PL1234567890"); err != nil {
		t.Fatal(err)
	}
	inv := b.invoice(b.subscribe("cus_a", "ten", 3).LatestInvoice)
	n, err := b.CreateCreditNote(t.Context(), sandbox.Call{}, sandbox.CreditNoteParams{Invoice: inv.ID, Amount: 1250, Reason: "order_change", Memo: "Sorry\u202e"})
	if err != nil {
		t.Fatal(err)
	}
	whole, err := b.InvoicePDF(t.Context(), inv.ID)
	if err != nil {
		t.Fatal(err)
	}
	note, err := b.CreditNotePDF(t.Context(), n.ID)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		text string
		want []string
	}{
		"invoice":     {text(t, whole), []string{inv.Number, "evil", "Żółć", "Łódź", "90-001", "PL1234567890", "PO number", "PO-4711", "$30.00", "Amount paid"}},
		"credit note": {text(t, note), []string{n.Number, inv.Number, "evil", "order change", "Sorry", "$12.50", "Refunded", "PL1234567890"}},
	} {
		for _, want := range c.want {
			if !strings.Contains(c.text, want) {
				t.Errorf("the %s lacks %q:\n%s", what, want, c.text)
			}
		}
		if i := strings.IndexFunc(c.text, func(r rune) bool {
			return r < ' ' && r != '\n' && r != '\f' || r == '\u202e' || r == '\u200f' || r == '\u2066'
		}); i >= 0 {
			t.Errorf("the %s has %q in it", what, c.text[i:i+4])
		}
		if len(c.text) > 10_000 {
			t.Errorf("the %s has %d characters", what, len(c.text))
		}
	}
}
