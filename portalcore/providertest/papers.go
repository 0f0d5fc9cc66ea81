package providertest

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox/oracletest"
)

func init() {
	maps.Copy(scenarios, map[string]func(*scene){
		"papers/plain invoice":                          papersPlain,
		"papers/invoice with tax":                       papersTax,
		"papers/invoice paid by balance":                papersFromBalance,
		"papers/invoice that adds to the balance":       papersToBalance,
		"papers/invoice that failed and was paid":       papersFailed,
		"papers/invoice that waits for confirmation":    papersWaiting,
		"papers/invoice by hand":                        papersSendInvoice,
		"papers/as the customer was then":               papersSnapshot,
		"papers/another customer's invoice, or none":    papersOwner,
		"papers/fault":                                  papersFault,
		"papers/credit note refunded":                   notesRefunded,
		"papers/credit note to the balance":             notesToBalance,
		"papers/credit note of an open invoice":         notesOpen,
		"papers/credit note that pays the rest":         notesRest,
		"papers/credit note's document":                 notesDocument,
		"papers/another customer's credit note":         notesOwner,
		"tax id/added and verified":                     taxIDAdded,
		"tax id/replaced":                               taxIDReplaced,
		"tax id/removed":                                taxIDRemoved,
		"tax id/invalid":                                taxIDInvalid,
		"tax id/not verified":                           taxIDNotVerified,
		"tax id/type that no office is asked about":     taxIDNoOffice,
		"tax id/another customer's":                     taxIDOwner,
		"tax id/fault at each step":                     taxIDFaults,
		"tax id/one too many":                           taxIDTooMany,
		"tax id/nothing to do":                          taxIDNothing,
		"details/invoice fields set and cleared":        fieldsChanged,
		"details/invoice fields that do not fit":        fieldsRefused,
		"details/language":                              detailsLanguage,
		"details/hostile names":                         detailsHostile,
		"search/by e-mail":                              searchEmail,
		"search/by reference":                           searchReference,
		"search/by id":                                  searchID,
		"search/hostile":                                searchHostile,
		"search/nothing asked, or the provider is down": searchNothing,
	})
}

// papersIn are the currencies whose minor units are counted in a way of their
// own, and two that are not, with an amount that is no round one.
var papersIn = []struct{ name, unit string }{
	{"usd", "1999"}, {"eur", "2333"}, {"jpy", "1205"}, {"kwd", "12340"}, {"isk", "123400"}, {"ugx", "5000000"}, {"mga", "45001"},
}

// papersInEach runs fn for each currency, with a price in it.
func papersInEach(s *scene, fn func(price, unit string)) {
	s.Helper()
	for _, c := range papersIn {
		id := "price_paper_" + c.name
		s.World.Price(id, c.name, c.unit, billing.Month)
		fn(id, c.unit)
	}
}

// detail reads an invoice and notes it.
func (s *scene) detail(customer, invoice string) billing.InvoiceDetail {
	s.Helper()
	d, err := s.Provider.Invoice(s.ctx, customer, invoice)
	s.must(err)
	q := d
	q.Invoice = seenInvoice(d.Invoice)
	s.note("invoice", q)
	return d
}

// newest is the customer's latest invoice.
func (s *scene) newest(customer string) billing.Invoice {
	s.Helper()
	p, err := s.Provider.Invoices(s.ctx, customer, "", 1)
	s.must(err)
	if len(p.Invoices) != 1 {
		s.Fatal("the customer has no invoice")
	}
	return p.Invoices[0]
}

// issued checks an invoice against the oracle.
func (s *scene) issued(d billing.InvoiceDetail, p oracletest.Paper) oracletest.Sums {
	s.Helper()
	want := oracletest.Issue(p)
	s.sums(d, want)
	return want
}

// sums checks what an invoice comes to.
func (s *scene) sums(d billing.InvoiceDetail, want oracletest.Sums) {
	s.Helper()
	got := oracletest.Sums{
		Subtotal: d.Subtotal.Amount, Tax: d.Tax.Amount, Total: d.Total.Amount, Due: d.AmountDue.Amount, FromBalance: d.FromBalance.Amount,
	}
	for _, l := range d.Lines {
		got.Lines = append(got.Lines, l.Amount.Amount)
	}
	if !slices.Equal(got.Lines, want.Lines) || got.Subtotal != want.Subtotal || got.Tax != want.Tax || got.Total != want.Total || got.Due != want.Due || got.FromBalance != want.FromBalance {
		s.Errorf("%s: %+v, the oracle says %+v", d.Total.Currency, got, want)
	}
}

func papersPlain(s *scene) {
	papersInEach(s, func(price, unit string) {
		m := s.World.Customer(Customer{Card: CardWorks, Price: price, Quantity: 3})
		d := s.detail(m.ID, s.newest(m.ID).ID)
		want := s.issued(d, oracletest.Paper{Sides: []oracletest.Side{side(unit, 3)}})
		if d.Status != billing.InvoicePaid || !d.PaidAt.Equal(s.World.Now()) || d.Name != "Acme" || d.Address.City != "Springfield" || !d.HasDocument {
			s.Errorf("%+v", d)
		}
		if len(d.Payments) != 1 || d.Payments[0].Status != billing.PaymentSucceeded || d.Payments[0].Amount.Amount != want.Due || d.Payments[0].Method == nil || d.Payments[0].Method.Last4 != "4242" {
			s.Errorf("payments %+v", d.Payments)
		}
		if len(d.TaxLines)+len(d.CreditNotes)+len(d.Discounts) != 0 || d.MoreLines {
			s.Errorf("%+v", d)
		}
	})
}

func papersTax(s *scene) {
	papersInEach(s, func(price, unit string) {
		m := s.World.Customer(Customer{Card: CardWorks, Price: price, Quantity: 3, TaxPercent: "8.875"})
		d := s.detail(m.ID, s.newest(m.ID).ID)
		want := s.issued(d, oracletest.Paper{Sides: []oracletest.Side{side(unit, 3)}, TaxPercent: big.NewRat(8875, 1000)})
		if len(d.TaxLines) != 1 {
			s.Fatalf("tax lines %+v", d.TaxLines)
		}
		if l := d.TaxLines[0]; l.Percent != "8.875" || l.Inclusive || l.Name == "" || l.Taxable.Amount != want.Subtotal || l.Amount.Amount != want.Tax {
			s.Errorf("tax line %+v", l)
		}
	})
}

func papersFromBalance(s *scene) {
	papersInEach(s, func(price, unit string) {
		m := s.World.Customer(Customer{Card: CardWorks, Price: price, Quantity: 1, TaxPercent: "19", Credit: 500})
		s.World.Advance(31 * 24 * time.Hour)
		d := s.detail(m.ID, s.newest(m.ID).ID)
		s.issued(d, oracletest.Paper{Sides: []oracletest.Side{side(unit, 1)}, TaxPercent: big.NewRat(19, 1), Balance: -500})
	})
}

func papersToBalance(s *scene) {
	m := s.World.Customer(Customer{Card: CardWorks, Price: team, Quantity: 4})
	s.World.Advance(by)
	s.carry(m.ID, s.preview(m.ID, change(m, basic, 1)), nil)
	d := s.detail(m.ID, s.newest(m.ID).ID)
	if d.Total.Amount >= 0 || d.FromBalance.Amount != d.Total.Amount || d.AmountDue.Amount != 0 || len(d.Payments) != 0 || d.Status != billing.InvoicePaid {
		s.Errorf("%+v", d)
	}
}

func papersFailed(s *scene) {
	m := s.World.Customer(Customer{Card: CardDeclines, Price: basic, Quantity: 2})
	s.World.Advance(31 * 24 * time.Hour)
	v := s.newest(m.ID)
	d := s.detail(m.ID, v.ID)
	if d.Status != billing.InvoiceOpen || len(d.Payments) == 0 || d.Payments[0].Status != billing.PaymentFailed || d.Payments[0].Failure != "card_declined" || !d.PaidAt.IsZero() {
		s.Errorf("declined: %+v", d)
	}
	a, err := s.Provider.Account(s.ctx, m.ID)
	s.must(err)
	works := a.PaymentMethods[slices.IndexFunc(a.PaymentMethods, func(pm billing.PaymentMethod) bool { return pm.ID != m.Card })].ID
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: works}), nil)
	s.World.Advance(8 * 24 * time.Hour) // it is tried again
	d = s.detail(m.ID, v.ID)
	if n := len(d.Payments); d.Status != billing.InvoicePaid || n < 2 || d.Payments[0].Status != billing.PaymentSucceeded || d.Payments[n-1].Status != billing.PaymentFailed ||
		d.Payments[0].Time.Before(d.Payments[n-1].Time) || !d.PaidAt.Equal(d.Payments[0].Time) {
		s.Errorf("paid: %+v", d)
	}
}

func papersWaiting(s *scene) {
	m := s.World.Customer(Customer{Card: CardAsks, Price: basic, Quantity: 2})
	s.World.Advance(by)
	r := s.carry(m.ID, s.preview(m.ID, change(m, team, 2)), nil)
	v := s.newest(m.ID)
	d := s.detail(m.ID, v.ID)
	if len(d.Payments) != 1 || d.Payments[0].Status != billing.PaymentWaiting || !d.ForPendingUpdate || d.Payments[0].Method == nil {
		s.Errorf("%+v", d)
	}
	s.World.Confirm(r.GoTo, true)
	if d = s.detail(m.ID, v.ID); len(d.Payments) != 1 || d.Payments[0].Status != billing.PaymentSucceeded || d.Status != billing.InvoicePaid {
		s.Errorf("%+v", d)
	}
}

func papersSendInvoice(s *scene) {
	m := s.World.Customer(Customer{Price: basic, Quantity: 2, SendInvoice: true})
	d := s.detail(m.ID, s.newest(m.ID).ID)
	if d.Status != billing.InvoiceOpen || d.DueDate.IsZero() || len(d.Payments) != 0 || d.AmountRemaining.Amount != 2000 {
		s.Errorf("%+v", d)
	}
}

// papersSnapshot: an invoice keeps what the customer was called when it was
// made.
func papersSnapshot(s *scene) {
	m := s.World.Customer(on(basic))
	old := s.newest(m.ID)
	name, line := "Globex GmbH", "Hauptstraße 1"
	fields := []billing.InvoiceField{{Name: "PO number", Value: "PO-1"}, {Name: "Cost centre", Value: "42"}}
	for _, a := range []billing.Action{
		{Kind: billing.UpdateDetails, Details: &billing.Details{Name: &name, Address: &billing.Address{Line1: line, Country: "DE"}, InvoiceFields: &fields}},
		{Kind: billing.UpdateTaxID, TaxID: &billing.TaxIDChange{Type: "eu_vat", Value: "DE123456789"}},
	} {
		s.carry(m.ID, s.preview(m.ID, a), nil)
	}
	s.World.Advance(31 * 24 * time.Hour)
	now := s.newest(m.ID)
	if d := s.detail(m.ID, old.ID); d.Name != "Acme" || len(d.TaxIDs)+len(d.Fields) != 0 {
		s.Errorf("the old one: %+v", d)
	}
	d := s.detail(m.ID, now.ID)
	if d.Name != name || d.Address.Line1 != line || !slices.Equal(d.Fields, fields) || len(d.TaxIDs) != 1 || d.TaxIDs[0].Value != "DE123456789" || d.TaxIDs[0].Type != "eu_vat" {
		s.Errorf("the new one: %+v", d)
	}
}

func papersOwner(s *scene) {
	mine, other := s.World.Customer(on(basic)), s.World.Customer(on(basic))
	for _, id := range []string{s.newest(other.ID).ID, "in_none", "", "../customers/" + other.ID} {
		_, err := s.Provider.Invoice(s.ctx, mine.ID, id)
		s.fails("invoice", err, billing.NotFound)
	}
	s.detail(mine.ID, s.newest(mine.ID).ID)
}

func papersFault(s *scene) {
	m := s.World.Customer(on(basic))
	id := s.newest(m.ID).ID
	for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.Fault500Before, sandbox.FaultRateLimit, sandbox.FaultGarbage} {
		s.World.Fault(sandbox.Fault{On: "any", Times: 100, Kind: k})
		_, err := s.Provider.Invoice(s.ctx, m.ID, id)
		s.fails("invoice, "+string(k), err, billing.Unavailable)
		_, err = s.Provider.Document(s.ctx, m.ID, billing.DocumentRef{Invoice: id})
		s.fails("document, "+string(k), err, billing.Unavailable)
		s.World.ClearFaults()
	}
}

func notesRefunded(s *scene) {
	papersInEach(s, func(price, unit string) {
		m := s.World.Customer(Customer{Card: CardWorks, Price: price, Quantity: 3, TaxPercent: "19"})
		v := s.newest(m.ID)
		s.World.CreditNote(v.ID, 501, false)
		d := s.detail(m.ID, v.ID)
		want := s.issued(d, oracletest.Paper{Sides: []oracletest.Side{side(unit, 3)}, TaxPercent: big.NewRat(19, 1)})
		if len(d.CreditNotes) != 1 || d.CreditNotes[0].Total.Amount != 501 || d.CreditNotes[0].Void || d.CreditNotes[0].Number == "" {
			s.Errorf("credit notes %+v", d.CreditNotes)
		}
		if p := d.Payments[0]; p.Status != billing.PaymentSucceeded || p.Refunded.Amount != 501 {
			s.Errorf("payment %+v", p)
		}
		rest := want.Total - 501
		s.World.CreditNote(v.ID, rest, false)
		d = s.detail(m.ID, v.ID)
		if p := d.Payments[0]; p.Status != billing.PaymentRefunded || p.Refunded.Amount != want.Total || len(d.CreditNotes) != 2 || d.CreditNotes[0].Total.Amount != rest {
			s.Errorf("%+v, %+v", p, d.CreditNotes)
		}
		if d.Status != billing.InvoicePaid || d.AmountPaid.Amount != want.Total {
			s.Errorf("%s, paid %d", d.Status, d.AmountPaid.Amount)
		}
	})
}

func notesToBalance(s *scene) {
	papersInEach(s, func(price, unit string) {
		m := s.World.Customer(Customer{Card: CardWorks, Price: price, Quantity: 2})
		v := s.newest(m.ID)
		s.World.CreditNote(v.ID, 700, true)
		if c := s.account(m.ID).Customer; c.Balance.Amount != -700 {
			s.Errorf("balance %+v", c.Balance)
		}
		if d := s.detail(m.ID, v.ID); len(d.CreditNotes) != 1 || d.Payments[0].Refunded.Amount != 0 {
			s.Errorf("%+v", d)
		}
		s.World.Advance(31 * 24 * time.Hour)
		s.issued(s.detail(m.ID, s.newest(m.ID).ID), oracletest.Paper{Sides: []oracletest.Side{side(unit, 2)}, Balance: -700})
	})
}

func notesOpen(s *scene) {
	papersInEach(s, func(price, unit string) {
		m := s.World.Customer(Customer{Price: price, Quantity: 3, SendInvoice: true, TaxPercent: "20"})
		v := s.newest(m.ID)
		want := oracletest.Issue(oracletest.Paper{Sides: []oracletest.Side{side(unit, 3)}, TaxPercent: big.NewRat(20, 1)})
		id := s.World.CreditNote(v.ID, 399, false)
		if d := s.detail(m.ID, v.ID); d.Status != billing.InvoiceOpen || d.AmountRemaining.Amount != want.Due-399 || d.Total.Amount != want.Total {
			s.Errorf("remaining %+v of %+v, want %d", d.AmountRemaining, d.Total, want.Due-399)
		}
		s.World.VoidCreditNote(id)
		if d := s.detail(m.ID, v.ID); d.AmountRemaining.Amount != want.Due || len(d.CreditNotes) != 1 || !d.CreditNotes[0].Void {
			s.Errorf("%+v", d)
		}
	})
}

func notesRest(s *scene) {
	m := s.World.Customer(Customer{Price: basic, Quantity: 3, SendInvoice: true})
	v := s.newest(m.ID)
	s.World.CreditNote(v.ID, v.AmountRemaining.Amount, false)
	d := s.detail(m.ID, v.ID)
	if d.Status != billing.InvoicePaid || d.AmountRemaining.Amount != 0 || d.AmountPaid.Amount != 0 || len(d.Payments) != 0 || d.PaidAt.IsZero() {
		s.Errorf("%+v", d)
	}
}

// file reads a document.
func (s *scene) file(customer string, ref billing.DocumentRef) []byte {
	s.Helper()
	d, err := s.Provider.Document(s.ctx, customer, ref)
	s.must(err)
	b, err := io.ReadAll(d.Body)
	s.must(errors.Join(err, d.Body.Close()))
	if d.ContentType != "application/pdf" || !bytes.HasPrefix(b, []byte("%PDF-")) || !bytes.Contains(b[max(0, len(b)-32):], []byte("%%EOF")) {
		s.Errorf("%s of %d bytes that begins with %.10q", d.ContentType, len(b), b)
	}
	return b
}

func notesDocument(s *scene) {
	m := s.World.Customer(on(basic))
	v := s.newest(m.ID)
	id := s.World.CreditNote(v.ID, 500, false)
	note := s.file(m.ID, billing.DocumentRef{Invoice: v.ID, CreditNote: id})
	if whole := s.file(m.ID, billing.DocumentRef{Invoice: v.ID}); bytes.Equal(whole, note) {
		s.Error("the credit note's document is the invoice's")
	}
	s.note("documents", 2)
}

func notesOwner(s *scene) {
	mine, other := s.World.Customer(on(basic)), s.World.Customer(on(basic))
	v, w := s.newest(mine.ID), s.newest(other.ID)
	note, its := s.World.CreditNote(v.ID, 500, false), s.World.CreditNote(w.ID, 500, false)
	s.World.Advance(31 * 24 * time.Hour)
	for _, ref := range []billing.DocumentRef{
		{Invoice: v.ID, CreditNote: its},
		{Invoice: w.ID, CreditNote: its},
		{Invoice: w.ID, CreditNote: note},
		{Invoice: s.newest(mine.ID).ID, CreditNote: note},
		{Invoice: v.ID, CreditNote: "cn_none"},
		{CreditNote: note},
		{Invoice: v.ID, CreditNote: "../" + note},
	} {
		_, err := s.Provider.Document(s.ctx, mine.ID, ref)
		s.fails("document", err, billing.NotFound)
	}
	s.file(mine.ID, billing.DocumentRef{Invoice: v.ID, CreditNote: note})
}

func taxIDAction(remove, typ, value string) billing.Action {
	return billing.Action{Kind: billing.UpdateTaxID, TaxID: &billing.TaxIDChange{Remove: remove, Type: typ, Value: value}}
}

// customer reads a customer and notes its tax ids.
func (s *scene) customer(id string) billing.Customer {
	s.Helper()
	c, err := s.Provider.Find(s.ctx, id)
	s.must(err)
	q := c
	q.Version = ""
	s.note("customer", q)
	return c
}

func taxIDAdded(s *scene) {
	m := s.World.Customer(on(basic))
	before := s.customer(m.ID)
	s.carry(m.ID, s.preview(m.ID, taxIDAction("", "eu_vat", "DE 123 456 789")), nil)
	c := s.customer(m.ID)
	if len(c.TaxIDs) != 1 || c.TaxIDs[0].Value != "DE123456789" || c.TaxIDs[0].Country != "DE" || c.TaxIDs[0].Status != billing.TaxIDPending || c.Version == before.Version {
		s.Errorf("%+v", c)
	}
	s.World.Advance(time.Minute)
	d := s.customer(m.ID)
	if d.TaxIDs[0].Status != billing.TaxIDVerified || d.TaxIDs[0].VerifiedName != "Acme" || d.Version == c.Version {
		s.Errorf("%+v", d)
	}
	if a := s.account(m.ID).Customer; a.Version != d.Version || len(a.TaxIDs) != 1 {
		s.Errorf("in the account: %+v", a)
	}
	s.carry(m.ID, s.preview(m.ID, taxIDAction("", "us_ein", "12-3456789")), nil)
	if d = s.customer(m.ID); len(d.TaxIDs) != 2 || d.TaxIDs[0].Type != "eu_vat" {
		s.Errorf("not the oldest first: %+v", d.TaxIDs)
	}
}

func taxIDReplaced(s *scene) {
	m := s.World.Customer(on(basic))
	s.carry(m.ID, s.preview(m.ID, taxIDAction("", "eu_vat", "DE123456789")), nil)
	old := s.customer(m.ID).TaxIDs[0]
	p := s.preview(m.ID, taxIDAction(old.ID, "eu_vat", "ATU12345678"))
	if len(p.Steps) != 2 {
		s.Fatalf("%d steps", len(p.Steps))
	}
	_, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], s.key())
	s.must(err)
	if c := s.customer(m.ID); len(c.TaxIDs) != 2 {
		s.Errorf("between the steps the customer has %+v", c.TaxIDs)
	}
	_, err = s.Provider.Execute(s.ctx, m.ID, p.Steps[1], s.key())
	s.must(err)
	if c := s.customer(m.ID); len(c.TaxIDs) != 1 || c.TaxIDs[0].Value != "ATU12345678" || c.TaxIDs[0].ID == old.ID {
		s.Errorf("%+v", c.TaxIDs)
	}
}

func taxIDRemoved(s *scene) {
	m := s.World.Customer(on(basic))
	s.carry(m.ID, s.preview(m.ID, taxIDAction("", "gb_vat", "GB123456789")), nil)
	s.carry(m.ID, s.preview(m.ID, taxIDAction(s.customer(m.ID).TaxIDs[0].ID, "", "")), nil)
	if c := s.customer(m.ID); len(c.TaxIDs) != 0 {
		s.Errorf("%+v", c.TaxIDs)
	}
	s.World.Advance(time.Hour) // the office's answer finds it gone
	s.customer(m.ID)
}

func taxIDInvalid(s *scene) {
	m := s.World.Customer(on(basic))
	s.carry(m.ID, s.preview(m.ID, taxIDAction("", "eu_vat", "DE123456789")), nil)
	old := s.customer(m.ID).TaxIDs[0]
	for _, value := range []string{"DE12", "not an id", "DE123456789012345"} {
		p := s.preview(m.ID, taxIDAction(old.ID, "eu_vat", value))
		_, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], s.key())
		s.noteErr("create", err)
		if billing.FaultOf(err) != billing.Refused || billing.CodeOf(err) != "tax_id_invalid" {
			s.Errorf("%q: %v", value, err)
		}
	}
	_, err := s.Provider.Preview(s.ctx, m.ID, taxIDAction("", "eu_vat", strings.Repeat("9", 10_000)), time.Time{})
	s.noteErr("too long", err)
	if billing.CodeOf(err) != "tax_id_invalid" {
		s.Errorf("too long: %v", err)
	}
	if c := s.customer(m.ID); len(c.TaxIDs) != 1 || c.TaxIDs[0].ID != old.ID {
		s.Errorf("%+v", c.TaxIDs)
	}
}

func taxIDNotVerified(s *scene) {
	for _, x := range []struct {
		value string
		want  [2]billing.TaxIDStatus
	}{
		{"DE111111111", [2]billing.TaxIDStatus{billing.TaxIDUnverified, billing.TaxIDUnverified}},
		{"DE222222222", [2]billing.TaxIDStatus{billing.TaxIDPending, billing.TaxIDPending}},
		{"DE333333333", [2]billing.TaxIDStatus{billing.TaxIDPending, billing.TaxIDUnavailable}},
	} {
		value, want := x.value, x.want
		m := s.World.Customer(Customer{})
		s.carry(m.ID, s.preview(m.ID, taxIDAction("", "eu_vat", value)), nil)
		for i, wait := range []time.Duration{time.Minute, 2 * time.Hour} {
			s.World.Advance(wait)
			c, err := s.Provider.Find(s.ctx, m.ID)
			s.must(err)
			if got := c.TaxIDs[0]; got.Status != want[i] || got.VerifiedName != "" {
				s.Errorf("%s after %s: %+v", value, wait, got)
			}
		}
	}
}

func taxIDNoOffice(s *scene) {
	m := s.World.Customer(Customer{})
	s.carry(m.ID, s.preview(m.ID, taxIDAction("", "ch_vat", "CHE123456789MWST")), nil)
	s.World.Advance(2 * time.Hour)
	if c := s.customer(m.ID); c.TaxIDs[0].Status != "" || c.TaxIDs[0].Country != "CH" || c.TaxIDs[0].Value != "CHE-123.456.789 MWST" {
		s.Errorf("%+v", c.TaxIDs)
	}
}

func taxIDOwner(s *scene) {
	mine, other := s.World.Customer(on(basic)), s.World.Customer(on(basic))
	s.carry(other.ID, s.preview(other.ID, taxIDAction("", "eu_vat", "DE123456789")), nil)
	its := s.customer(other.ID).TaxIDs[0].ID
	before := s.effects(other.ID)
	for _, remove := range []string{its, "txi_none", "../../customers"} {
		_, err := s.Provider.Preview(s.ctx, mine.ID, taxIDAction(remove, "", ""), time.Time{})
		s.fails("preview", err, billing.NotFound)
	}
	// Steps that were frozen for the other one, sent as mine.
	for _, st := range s.preview(other.ID, taxIDAction(its, "eu_vat", "ATU12345678")).Steps {
		key := s.key()
		_, err := s.Provider.Execute(s.ctx, mine.ID, st, key)
		s.fails("execute", err, billing.NotFound)
		o, _, err := s.Provider.Outcome(s.ctx, mine.ID, st, key, nil)
		s.fails("outcome", err, billing.NotFound)
		if o == billing.Applied {
			s.Error("another customer's step is told to have been applied")
		}
	}
	if s.effects(other.ID) != before || len(s.customer(mine.ID).TaxIDs) != 0 {
		s.Error("something changed")
	}
}

func taxIDFaults(s *scene) {
	m := s.World.Customer(on(basic))
	s.carry(m.ID, s.preview(m.ID, taxIDAction("", "eu_vat", "DE123456789")), nil)
	before := s.effects(m.ID)
	for i, st := range s.preview(m.ID, taxIDAction(s.customer(m.ID).TaxIDs[0].ID, "eu_vat", "DE 123.456.789")).Steps {
		key := s.key()
		for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.FaultTimeoutAfter} {
			s.World.Fault(sandbox.Fault{On: "execute", Times: 1, Kind: k})
			_, err := s.Provider.Execute(s.ctx, m.ID, st, key)
			s.fails("execute", err, billing.Unknown)
			o, _, err := s.Provider.Outcome(s.ctx, m.ID, st, key, nil)
			s.must(err)
			s.note("outcome", o)
			if want := map[sandbox.FaultKind]billing.Outcome{sandbox.FaultTimeoutBefore: billing.NotApplied, sandbox.FaultTimeoutAfter: billing.Applied}[k]; o != want {
				s.Errorf("step %d, %s: outcome %s", i, k, o)
			}
		}
		if r, err := s.Provider.Execute(s.ctx, m.ID, st, key); err != nil || r.State != billing.Done {
			s.Errorf("step %d, the same key again: %+v, %v", i, r, err)
		}
	}
	if n := s.effects(m.ID) - before; n != 2 || len(s.customer(m.ID).TaxIDs) != 1 {
		s.Errorf("%d effects", n)
	}
}

func taxIDTooMany(s *scene) {
	m := s.World.Customer(Customer{})
	for i := range sandbox.MaxTaxIDs {
		s.carry(m.ID, s.preview(m.ID, taxIDAction("", "eu_vat", "DE10000000"+string(rune('0'+i)))), nil)
	}
	p := s.preview(m.ID, taxIDAction("", "eu_vat", "DE200000000"))
	_, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], s.key())
	s.fails("execute", err, billing.Refused)
	if c := s.customer(m.ID); len(c.TaxIDs) != sandbox.MaxTaxIDs || c.TaxIDs[0].Value != "DE100000000" {
		s.Errorf("%+v", c.TaxIDs)
	}
}

func taxIDNothing(s *scene) {
	m := s.World.Customer(Customer{})
	for _, a := range []billing.Action{{Kind: billing.UpdateTaxID}, taxIDAction("", "", ""), taxIDAction("", "eu_vat", ""), taxIDAction("", "", "DE123456789")} {
		_, err := s.Provider.Preview(s.ctx, m.ID, a, time.Time{})
		s.fails("preview", err, billing.Refused)
	}
}

func fieldsAction(fields ...billing.InvoiceField) billing.Action {
	if fields == nil {
		fields = []billing.InvoiceField{}
	}
	return billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{InvoiceFields: &fields}}
}

func fieldsChanged(s *scene) {
	m := s.World.Customer(on(basic))
	full := []billing.InvoiceField{
		{Name: strings.Repeat("Ä", 40), Value: strings.Repeat("ß", 140)}, {Name: "PO", Value: "= 1 & 2"}, {Name: "a", Value: "b"}, {Name: "c", Value: "d"},
	}
	version := s.customer(m.ID).Version
	for _, fields := range [][]billing.InvoiceField{full, full[1:2], nil} {
		p := s.preview(m.ID, fieldsAction(fields...))
		key := s.key()
		o, _, err := s.Provider.Outcome(s.ctx, m.ID, p.Steps[0], key, nil)
		s.must(err)
		s.note("before", o)
		_, err = s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
		s.must(err)
		o, _, err = s.Provider.Outcome(s.ctx, m.ID, p.Steps[0], key, nil)
		s.must(err)
		s.note("after", o)
		c := s.customer(m.ID)
		if o != billing.Applied || !slices.Equal(c.InvoiceFields, fields) || c.Version == version || c.Name != "Acme" {
			s.Errorf("%s: %+v, want %+v", o, c.InvoiceFields, fields)
		}
		version = c.Version
	}
}

func fieldsRefused(s *scene) {
	m := s.World.Customer(on(basic))
	s.carry(m.ID, s.preview(m.ID, fieldsAction(billing.InvoiceField{Name: "PO", Value: "1"})), nil)
	x := billing.InvoiceField{Name: "a", Value: "b"}
	for _, bad := range [][]billing.InvoiceField{
		{x, x, x, x, x},
		{{Name: strings.Repeat("a", 41), Value: "b"}},
		{{Name: "a", Value: strings.Repeat("b", 141)}},
		{{Name: "", Value: "b"}},
		{{Name: "a", Value: ""}},
		{x, {Name: "a\x00", Value: "b"}},
		{{Name: "a", Value: "b\r\nc"}},
		{{Name: "a", Value: "\xff"}},
	} {
		_, err := s.Provider.Preview(s.ctx, m.ID, fieldsAction(bad...), time.Time{})
		s.noteErr("preview", err)
		if billing.FaultOf(err) != billing.Refused {
			s.Errorf("%q: %v", bad, err)
		}
	}
	if c := s.customer(m.ID); len(c.InvoiceFields) != 1 {
		s.Errorf("%+v", c.InvoiceFields)
	}
}

func detailsLanguage(s *scene) {
	m := s.World.Customer(on(basic))
	version := s.customer(m.ID).Version
	name, none := "Globex", ""
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Name: &name, Locale: &none}}), nil)
	for _, l := range []string{"de", "pt-BR"} {
		s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Locale: &l}}), nil)
		c := s.customer(m.ID)
		if c.Locale != l || c.Version == version {
			s.Errorf("%q, want %q", c.Locale, l)
		}
		version = c.Version
	}
	_, err := s.Provider.Preview(s.ctx, m.ID, billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Locale: &none}}, time.Time{})
	s.fails("unset", err, billing.Refused)
}

// detailsHostile: what is in a name comes back as it was, and does no harm on
// the way: in the request, in an invoice, in its document.
func detailsHostile(s *scene) {
	m := s.World.Customer(on(basic))
	for _, name := range []string{
		"\u202eevil\u202c \u200f\u2066x\u2069", "=HYPERLINK(\"http://evil\")", "a&b=c%00[d]+e#?/\\", "<script>alert(1)</script>", "😀 \x01\x02\x7f\u0000 x", strings.Repeat("Ω", 128),
	} {
		s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{
			Name: &name, Address: &billing.Address{Line1: strings.Repeat("x", 2_000), City: name, Country: "DE"},
		}}), nil)
		if c := s.customer(m.ID); c.Name != name || c.Address.City != name {
			s.Errorf("%q came back as %q", name, c.Name)
		}
		s.World.Advance(31 * 24 * time.Hour)
		v := s.newest(m.ID)
		if d := s.detail(m.ID, v.ID); d.Name != name {
			s.Errorf("the invoice says %q", d.Name)
		}
		s.file(m.ID, billing.DocumentRef{Invoice: v.ID})
	}
	name := strings.Repeat("x", 10_000)
	p, err := s.Provider.Preview(s.ctx, m.ID, billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Name: &name}}, time.Time{})
	if err == nil { // only Stripe itself says how long a name may be
		_, err = s.Provider.Execute(s.ctx, m.ID, p.Steps[0], s.key())
	}
	s.fails("10 kB", err, billing.Refused)
	s.customer(m.ID)
}

// search searches and notes how many there are.
func (s *scene) search(q billing.CustomerQuery, want ...string) {
	s.Helper()
	list, err := s.Provider.Search(s.ctx, q)
	s.must(err)
	s.note("found", len(list))
	got := []string{}
	for _, c := range list {
		got = append(got, c.ID)
	}
	if list == nil || !slices.Equal(got, want) {
		s.Errorf("%+v finds %v, want %v", q, got, want)
	}
}

func (s *scene) rename(customer, email, reference string) {
	s.World.Details(customer, sandbox.CustomerParams{Email: &email, Metadata: map[string]string{sandbox.MetaReference: reference}})
}

func searchEmail(s *scene) {
	a, b, c := s.World.Customer(Customer{}), s.World.Customer(Customer{}), s.World.Customer(Customer{})
	s.rename(a.ID, "one+x@example.com", "")
	s.rename(b.ID, "one@example.com", "")
	s.World.Advance(time.Hour)
	d := s.World.Customer(Customer{})
	s.rename(d.ID, "one@example.com", "")
	s.search(billing.CustomerQuery{Email: "one@example.com"}, d.ID, b.ID)
	s.search(billing.CustomerQuery{Email: "one+x@example.com"}, a.ID)
	s.search(billing.CustomerQuery{Email: "billing@acme.example.com"}, c.ID)
	s.search(billing.CustomerQuery{Email: "ONE@example.com "})
	s.search(billing.CustomerQuery{Email: "one@example.co"})
	list, err := s.Provider.Search(s.ctx, billing.CustomerQuery{Email: "one+x@example.com"})
	s.must(err)
	if found, err := s.Provider.Find(s.ctx, a.ID); err != nil || list[0].Version != found.Version {
		s.Error("Search and Find give the customer different versions")
	}
}

func searchReference(s *scene) {
	a, b := s.World.Customer(on(basic)), s.World.Customer(Customer{})
	s.rename(a.ID, "a@example.com", "acct-4711")
	s.rename(b.ID, "b@example.com", "acct-47")
	if c := s.customer(a.ID); c.Reference != "acct-4711" {
		s.Errorf("reference %q", c.Reference)
	}
	s.search(billing.CustomerQuery{Reference: "acct-4711"}, a.ID)
	s.search(billing.CustomerQuery{Reference: "acct-47"}, b.ID)
	s.search(billing.CustomerQuery{Reference: "acct-4"})
}

func searchID(s *scene) {
	a, b := s.World.Customer(Customer{}), s.World.Customer(Customer{})
	s.rename(b.ID, "b@example.com", "cus_theirs")
	s.search(billing.CustomerQuery{Reference: a.ID}, a.ID)
	s.search(billing.CustomerQuery{Reference: "cus_theirs"}, b.ID)
	s.search(billing.CustomerQuery{Reference: "cus_none"})
}

func searchHostile(s *scene) {
	a := s.World.Customer(Customer{})
	for _, ref := range []string{`it's "his" \ 'hers'`, `'`, `\`, `\'`, `x' OR metadata['portal_reference']:'y`, "\u202eabc", `%27+&=#`, "cus_'", "cus_a/b"} {
		s.search(billing.CustomerQuery{Reference: ref})
		s.rename(a.ID, "a@example.com", ref)
		s.search(billing.CustomerQuery{Reference: ref}, a.ID)
	}
	s.rename(a.ID, "a@example.com", "x")
	for _, q := range []billing.CustomerQuery{
		{Reference: `y' OR metadata['portal_reference']:'x`},
		{Reference: "x\x00"},
		{Reference: "\xff"},
		{Reference: strings.Repeat("x", 10_000)},
		{Reference: "cus_\x01"},
		{Reference: "cus_../prices"},
		{Email: "a@example.com&limit=1"},
		{Email: strings.Repeat("x", 10_000)},
		{Email: "\r\na@example.com"},
		{Email: "*"},
	} {
		s.search(q)
	}
}

func searchNothing(s *scene) {
	s.World.Customer(Customer{})
	s.search(billing.CustomerQuery{})
	s.World.Fault(sandbox.Fault{On: "any", Times: 100, Kind: sandbox.Fault500Before})
	for _, q := range []billing.CustomerQuery{{Email: "a@example.com"}, {Reference: "x"}, {Reference: "cus_x"}} {
		_, err := s.Provider.Search(s.ctx, q)
		s.fails("search", err, billing.Unavailable)
	}
	s.World.ClearFaults()
}
