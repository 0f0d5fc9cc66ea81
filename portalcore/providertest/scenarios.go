package providertest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox/oracletest"
)

// The prices of every scenario.
const (
	basic     = "price_basic"
	team      = "price_team"
	teamYear  = "price_team_year"
	storage   = "price_storage"
	fraction  = "price_fraction"
	euro      = "price_euro"
	yen       = "price_yen"
	dinar     = "price_dinar"
	dinarMore = "price_dinar_more"
)

func (s *scene) catalogue() {
	for _, p := range []struct {
		id, currency, amount string
		interval             billing.Interval
	}{
		{basic, "usd", "1000", billing.Month},
		{team, "usd", "2500", billing.Month},
		{teamYear, "usd", "25000", billing.Year},
		{storage, "usd", "333", billing.Month},
		{fraction, "usd", "0.123456789", billing.Month},
		{euro, "eur", "900", billing.Month},
		{yen, "jpy", "1200", billing.Month},
		{dinar, "kwd", "4500", billing.Month},
		{dinarMore, "kwd", "12340", billing.Month},
	} {
		s.World.Price(p.id, p.currency, p.amount, p.interval)
	}
}

// scenarios are the suite, by name.
var scenarios = map[string]func(*scene){
	"read/account":                         readAccount,
	"read/account without subscription":    readBare,
	"read/account without customer":        readNobody,
	"read/find":                            readFind,
	"read/prices":                          readPrices,
	"read/invoices page by page":           readInvoices,
	"read/bad cursor":                      readBadCursor,
	"read/document":                        readDocument,
	"read/fault":                           readFault,
	"read/section fails alone":             readSections,
	"read/rate limit is waited out":        readRateLimit,
	"read/trial":                           readTrial,
	"owner/subscription":                   ownerSubscription,
	"owner/item":                           ownerItem,
	"owner/payment method":                 ownerPaymentMethod,
	"owner/invoice":                        ownerInvoice,
	"owner/step":                           ownerStep,
	"change/upgrade":                       inEach(changeUpgrade),
	"change/downgrade":                     inEach(changeDowngrade),
	"change/interval":                      inEach(changeInterval),
	"change/quantity":                      inEach(changeQuantity),
	"change/one of two items":              inEach(changeOneOfTwo),
	"change/with tax":                      inEach(changeTax),
	"change/paid by balance":               inEach(changeBalance),
	"change/dinar":                         changeDinar,
	"change/fraction of the minor unit":    inEach(changeFraction),
	"change/in trial":                      inEach(changeTrial),
	"change/paid by invoice":               inEach(changeSendInvoice),
	"change/at a given moment":             inEach(changeAt),
	"change/other currency":                changeCurrency,
	"change/bad quantity":                  changeBadQuantity,
	"change/no such price":                 changeNoPrice,
	"change/preview fault":                 changePreviewFault,
	"declined/waits and is dropped":        declinedDropped,
	"declined/paid by another card":        inEach(declinedPaid),
	"declined/expires":                     declinedExpires,
	"declined/blocks another change":       declinedBlocks,
	"confirmed/yes":                        inEach(confirmedYes),
	"confirmed/no":                         confirmedNo,
	"confirmed/card added while it waits":  confirmedOnPay,
	"cancel/and resume":                    cancelResume,
	"cancel/twice":                         cancelTwice,
	"cancel/comes true":                    cancelComesTrue,
	"card/added and default on each level": cardAdded,
	"card/not entered":                     cardNotEntered,
	"card/first of a bare customer":        cardFirst,
	"card/other made default":              cardDefault,
	"details/changed":                      detailsChanged,
	"details/address replaced":             detailsAddress,
	"execute/same key twice":               executeTwice,
	"execute/same key at once":             executeAtOnce,
	"execute/same key, other step":         executeOtherStep,
	"execute/reference missing":            executeNoRef,
	"execute/no key":                       executeNoKey,
	"fault/latency":                        func(s *scene) { fault(s, sandbox.FaultLatency, "", 1) },
	"fault/timeout before":                 func(s *scene) { fault(s, sandbox.FaultTimeoutBefore, billing.Unknown, 0) },
	"fault/timeout after":                  func(s *scene) { fault(s, sandbox.FaultTimeoutAfter, billing.Unknown, 1) },
	"fault/500 before":                     func(s *scene) { fault(s, sandbox.Fault500Before, billing.Unknown, 0) },
	"fault/500 after":                      func(s *scene) { fault(s, sandbox.Fault500After, billing.Unknown, 1) },
	"fault/rate limit":                     func(s *scene) { fault(s, sandbox.FaultRateLimit, billing.Retryable, 0) },
	"fault/garbage":                        func(s *scene) { fault(s, sandbox.FaultGarbage, billing.Unknown, 1) },
	"fault/declined and timeout after":     faultDeclined,
	"fault/card page and timeout after":    faultCardPage,
	"fault/every other step":               faultOthers,
	"event/genuine":                        eventGenuine,
	"event/signed with either secret":      eventRotation,
	"event/not the provider's":             eventForged,
	"event/old and future":                 eventTime,
	"event/nothing to look at":             eventNothing,
	"event/cannot be used":                 eventUnusable,
}

func on(price string) Customer { return Customer{Card: CardWorks, Price: price, Quantity: 2} }

func readAccount(s *scene) {
	m := s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 3, OwnDefault: true})
	s.World.Advance(40 * 24 * time.Hour)
	a := s.account(m.ID)
	sub, ok := a.Subscription(m.Subscription)
	if !ok || sub.Status != billing.Active || len(sub.Items) != 1 || sub.Items[0].Quantity != 3 || sub.Items[0].Price.ProductName == "" {
		s.Errorf("subscription %+v", sub)
	}
	if pm, ok := a.Pays(sub); !ok || pm.Last4 != "4242" {
		s.Errorf("it is paid with %+v", pm)
	}
	if len(a.Invoices) != 2 || a.Invoices[0].Created.Before(a.Invoices[1].Created) {
		s.Errorf("%d invoices, want 2, newest first", len(a.Invoices))
	}
	if len(a.Upcoming) != 1 || a.Upcoming[0].Total.Amount != 3000 || !a.Upcoming[0].Due.Equal(sub.PeriodEnd()) {
		s.Errorf("upcoming %+v", a.Upcoming)
	}
	if !a.AsOf.Equal(s.World.Now()) {
		s.Errorf("as of %s, the provider's time is %s", a.AsOf, s.World.Now())
	}
	if again, err := s.Provider.Account(s.ctx, m.ID); err != nil || again.Subscriptions[0].Version != sub.Version || again.Customer.Version != a.Customer.Version {
		s.Error("the versions changed and nothing else did")
	}
}

func readBare(s *scene) {
	m := s.World.Customer(Customer{})
	a := s.account(m.ID)
	if len(a.Subscriptions)+len(a.Invoices)+len(a.PaymentMethods)+len(a.Upcoming) != 0 || a.Customer.Name == "" {
		s.Errorf("account %+v", a)
	}
	p, err := s.Provider.Invoices(s.ctx, m.ID, "", 10)
	s.must(err)
	if len(p.Invoices) != 0 || p.Newer != "" || p.Older != "" {
		s.Errorf("invoices %+v", p)
	}
}

func readNobody(s *scene) {
	_, err := s.Provider.Account(s.ctx, "cus_nobody")
	s.fails("account", err, billing.NotFound)
	_, err = s.Provider.Find(s.ctx, "cus_nobody")
	s.fails("find", err, billing.NotFound)
	_, err = s.Provider.Find(s.ctx, "../prices")
	s.fails("find", err, billing.NotFound)
	_, err = s.Provider.Preview(s.ctx, "cus_nobody", billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Name: new(string)}}, time.Time{})
	s.fails("preview", err, billing.NotFound)
}

func readFind(s *scene) {
	m := s.World.Customer(on(basic))
	c, err := s.Provider.Find(s.ctx, m.ID)
	s.must(err)
	if c.ID != m.ID || c.Email != "billing@acme.example.com" || c.DefaultPaymentMethod != m.Card {
		s.Errorf("customer %+v", c)
	}
	if a := s.account(m.ID); a.Customer.Version != c.Version {
		s.Error("Find and Account give the customer different versions")
	}
}

func readPrices(s *scene) {
	ps, err := s.Provider.Prices(s.ctx)
	s.must(err)
	slices.SortFunc(ps, func(a, b billing.Price) int { return strings.Compare(a.ID, b.ID) })
	for i := range ps {
		ps[i].Product = ""
	}
	s.note("prices", ps)
	if len(ps) != 9 {
		s.Errorf("%d prices, want 9", len(ps))
	}
	for _, p := range ps {
		if p.ID == fraction && p.UnitAmount.String() != "0.123456789" {
			s.Errorf("the unit price lost digits: %s", p.UnitAmount)
		}
		if p.Metadata[billing.MetaPlan] != p.ID || p.LookupKey != "key_"+p.ID {
			s.Errorf("price %s has metadata %v, lookup key %q", p.ID, p.Metadata, p.LookupKey)
		}
	}
}

func readInvoices(s *scene) {
	m := s.World.Customer(on(basic))
	s.World.Customer(on(basic)) // whose invoices must not show
	s.World.Advance(130 * 24 * time.Hour)
	all, err := s.Provider.Invoices(s.ctx, m.ID, "", 100)
	s.must(err)
	if len(all.Invoices) != 5 || all.Newer != "" || all.Older != "" {
		s.Fatalf("%d invoices, cursors %q, %q", len(all.Invoices), all.Newer, all.Older)
	}
	for _, v := range all.Invoices {
		s.note("invoice", seenInvoice(v))
	}
	var seen []string
	var cursors []string
	p, err := s.Provider.Invoices(s.ctx, m.ID, "", 2)
	for {
		s.must(err)
		for _, v := range p.Invoices {
			seen = append(seen, v.ID)
		}
		if (len(cursors) == 0) != (p.Newer == "") {
			s.Errorf("page %d has a newer page: %v", len(cursors), p.Newer != "")
		}
		if p.Older == "" {
			break
		}
		cursors = append(cursors, p.Newer)
		p, err = s.Provider.Invoices(s.ctx, m.ID, p.Older, 2)
	}
	if len(cursors) != 2 || len(seen) != 5 {
		s.Errorf("%d pages with %d invoices", len(cursors)+1, len(seen))
	}
	for i, v := range all.Invoices {
		if i < len(seen) && seen[i] != v.ID {
			s.Errorf("invoice %d is another one when read page by page", i)
		}
	}
	// And back again.
	p, err = s.Provider.Invoices(s.ctx, m.ID, p.Newer, 2)
	s.must(err)
	if len(p.Invoices) != 2 || p.Invoices[0].ID != all.Invoices[2].ID || p.Newer == "" || p.Older == "" {
		s.Errorf("the page before the last one is %+v", p)
	}
	p, err = s.Provider.Invoices(s.ctx, m.ID, p.Newer, 2)
	s.must(err)
	if len(p.Invoices) != 2 || p.Invoices[0].ID != all.Invoices[0].ID || p.Newer != "" || p.Older == "" {
		s.Errorf("the first page, come back to, is %+v", p)
	}
}

func readBadCursor(s *scene) {
	m := s.World.Customer(on(basic))
	_, err := s.Provider.Invoices(s.ctx, m.ID, "not a cursor", 2)
	s.fails("cursor", err, billing.NotFound)
}

func readDocument(s *scene) {
	m := s.World.Customer(on(basic))
	a := s.account(m.ID)
	if !a.Invoices[0].HasDocument {
		s.Fatal("the invoice has no document")
	}
	d, err := s.Provider.Document(s.ctx, m.ID, billing.DocumentRef{Invoice: a.Invoices[0].ID})
	s.must(err)
	b, err := io.ReadAll(d.Body)
	s.must(errors.Join(err, d.Body.Close()))
	if d.ContentType != "application/pdf" || !bytes.HasPrefix(b, []byte("%PDF-")) || !bytes.Contains(b[max(0, len(b)-32):], []byte("%%EOF")) {
		s.Errorf("%s of %d bytes that begins with %.10q", d.ContentType, len(b), b)
	}
	if d.Size >= 0 && d.Size != int64(len(b)) {
		s.Errorf("size %d, %d bytes came", d.Size, len(b))
	}
}

func readFault(s *scene) {
	m := s.World.Customer(on(basic))
	for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.Fault500Before, sandbox.FaultGarbage} {
		// Many, as an HTTP client reads again by itself when a kept connection
		// breaks.
		s.World.Fault(sandbox.Fault{On: "any", Times: 100, Kind: k})
		_, err := s.Provider.Account(s.ctx, m.ID)
		s.fails("account, "+string(k), err, billing.Unavailable)
		_, err = s.Provider.Invoices(s.ctx, m.ID, "", 5)
		s.fails("invoices, "+string(k), err, billing.Unavailable)
		_, err = s.Provider.Find(s.ctx, m.ID)
		s.fails("find, "+string(k), err, billing.Unavailable)
		s.World.ClearFaults()
	}
	s.account(m.ID)
}

func readTrial(s *scene) {
	m := s.World.Customer(Customer{Card: CardWorks, Price: team, Quantity: 1, Trial: 14 * 24 * time.Hour})
	a := s.account(m.ID)
	sub, _ := a.Subscription(m.Subscription)
	if sub.Status != billing.Trialing || !sub.TrialEnd.Equal(s.World.Now().Add(14*24*time.Hour)) {
		s.Errorf("status %s, trial until %s", sub.Status, sub.TrialEnd)
	}
	if len(a.Upcoming) != 1 || !a.Upcoming[0].Due.Equal(sub.TrialEnd) || a.Upcoming[0].Total.Amount != 2500 {
		s.Errorf("upcoming %+v", a.Upcoming)
	}
}

func ownerSubscription(s *scene) {
	mine, other := s.World.Customer(on(basic)), s.World.Customer(on(basic))
	before := s.effects(other.ID)
	for _, a := range []billing.Action{
		change(other, team, 1),
		{Kind: billing.Cancel, Subscription: other.Subscription},
		{Kind: billing.Resume, Subscription: other.Subscription},
		{Kind: billing.DropPending, Subscription: other.Subscription},
	} {
		_, err := s.Provider.Preview(s.ctx, mine.ID, a, time.Time{})
		s.fails(string(a.Kind), err, billing.NotFound)
	}
	if s.effects(other.ID) != before {
		s.Error("the other customer saw an effect")
	}
}

func ownerItem(s *scene) {
	mine, other := s.World.Customer(on(basic)), s.World.Customer(on(basic))
	a := change(mine, team, 1)
	a.Items[0].Item = other.Items[0]
	_, err := s.Provider.Preview(s.ctx, mine.ID, a, time.Time{})
	s.fails("preview", err, billing.NotFound)
}

func ownerPaymentMethod(s *scene) {
	mine, other := s.World.Customer(on(basic)), s.World.Customer(on(basic))
	_, err := s.Provider.Preview(s.ctx, mine.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: other.Card}, time.Time{})
	s.fails("preview", err, billing.NotFound)
	_, err = s.Provider.Preview(s.ctx, mine.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_none"}, time.Time{})
	s.fails("preview", err, billing.NotFound)
}

func ownerInvoice(s *scene) {
	mine, other := s.World.Customer(on(basic)), s.World.Customer(on(basic))
	p, err := s.Provider.Invoices(s.ctx, other.ID, "", 1)
	s.must(err)
	_, err = s.Provider.Document(s.ctx, mine.ID, billing.DocumentRef{Invoice: p.Invoices[0].ID})
	s.fails("document", err, billing.NotFound)
	_, err = s.Provider.Document(s.ctx, mine.ID, billing.DocumentRef{Invoice: "in_none"})
	s.fails("document", err, billing.NotFound)
}

// ownerStep sends steps that were frozen for one customer as another one.
func ownerStep(s *scene) {
	mine := s.World.Customer(on(basic))
	other := s.World.Customer(Customer{Card: CardDeclines, Price: basic, Quantity: 2, OwnDefault: true})
	name := "Mallory"
	s.carry(other.ID, s.preview(other.ID, change(other, team, 2)), nil)
	before := s.effects(other.ID)
	for _, a := range []billing.Action{
		{Kind: billing.Cancel, Subscription: other.Subscription},
		{Kind: billing.DropPending, Subscription: other.Subscription},
		{Kind: billing.UpdateDetails, Details: &billing.Details{Name: &name}},
		{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: other.Card},
		{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/"},
	} {
		p, err := s.Provider.Preview(s.ctx, other.ID, a, time.Time{})
		s.must(err)
		for _, st := range p.Steps {
			if len(st.Needs) > 0 {
				st.Refs = map[string]string{st.Needs[0]: mine.Card}
			}
			_, err := s.Provider.Execute(s.ctx, mine.ID, st, s.key())
			s.fails(string(a.Kind), err, billing.NotFound)
		}
	}
	if s.effects(other.ID) != before {
		s.Error("the other customer saw an effect")
	}
}

// plan runs a change and checks that it was charged as previewed.
func plan(s *scene, m Made, price string, quantity int64) (billing.Preview, billing.Result) {
	s.Helper()
	p := s.preview(m.ID, change(m, price, quantity))
	r := s.carry(m.ID, p, nil)
	s.charged(p, r)
	a := s.account(m.ID)
	sub, _ := a.Subscription(m.Subscription)
	if sub.Items[0].Price.ID != price || sub.Items[0].Quantity != quantity || sub.Pending != nil {
		s.Errorf("after the change the item is %d × %s", sub.Items[0].Quantity, sub.Items[0].Price.ID)
	}
	if len(a.Upcoming) != 1 || p.Next == nil || a.Upcoming[0].Total != p.Next.Total || !a.Upcoming[0].Due.Equal(p.Next.Due) || a.Upcoming[0].AmountDue != p.Next.AmountDue {
		s.Errorf("the next invoice is %+v, the preview said %+v", a.Upcoming, p.Next)
	}
	for i := range p.Items {
		if !p.Items[i].PeriodEnd.Equal(sub.Items[i].PeriodEnd) || !p.Items[i].PeriodStart.Equal(sub.Items[i].PeriodStart) {
			s.Errorf("item %d runs %s to %s, the preview said %s to %s", i, sub.Items[i].PeriodStart, sub.Items[i].PeriodEnd, p.Items[i].PeriodStart, p.Items[i].PeriodEnd)
		}
	}
	return p, r
}

// by is an odd time into a period.
const by = 11*24*time.Hour + 7*time.Hour + 13*time.Minute + 29*time.Second

// side is a quantity of a monthly price, for the oracle.
func side(unit string, quantity int64) oracletest.Side {
	u, ok := new(big.Rat).SetString(unit)
	if !ok {
		panic("not a number: " + unit)
	}
	return oracletest.Side{Unit: u, Quantity: quantity, Interval: billing.Month, Count: 1}
}

func of(unit, quantity int64) oracletest.Side { return side(fmt.Sprint(unit), quantity) }

func yearly(x oracletest.Side) oracletest.Side { x.Interval = billing.Year; return x }

// oracle checks a preview, to the second and to the minor unit, against the
// exact fractions of an oracle that shares no code with any provider.
func oracle(s *scene, p billing.Preview, c oracletest.Change) oracletest.Bill {
	s.Helper()
	if c.TaxPercent == nil {
		c.TaxPercent = new(big.Rat)
	}
	c.At = p.At
	b := oracletest.Work(c)
	if p.Subtotal.Amount != b.Subtotal || p.Tax.Amount != b.Tax || p.Total.Amount != b.Total || p.DueNow.Amount != b.Due {
		s.Errorf("previewed %d + %d = %d, due %d; the oracle says %d + %d = %d, due %d", p.Subtotal.Amount, p.Tax.Amount, p.Total.Amount, p.DueNow.Amount, b.Subtotal, b.Tax, b.Total, b.Due)
	}
	var lines []int64
	for _, l := range p.Lines {
		lines = append(lines, l.Amount.Amount)
	}
	if !slices.Equal(lines, b.Lines) {
		s.Errorf("lines %d, the oracle says %d", lines, b.Lines)
	}
	if p.Next == nil || p.Next.Subtotal.Amount != b.NextSubtotal || p.Next.Tax.Amount != b.NextTax || p.Next.AmountDue.Amount != b.NextDue || !p.Next.Due.Equal(b.PeriodEnd) {
		s.Errorf("next %+v; the oracle says %d + %d, due %d at %s", p.Next, b.NextSubtotal, b.NextTax, b.NextDue, b.PeriodEnd)
	}
	if got := p.FromBalance.Amount - p.ToBalance.Amount; got != b.Balance-c.Balance {
		s.Errorf("the balance moves by %d, the oracle says %d", got, b.Balance-c.Balance)
	}
	return b
}

// invoiced checks every sum of a preview and of the invoice that came of it.
func (s *scene) invoiced(m Made, invoice, currency string, p billing.Preview, c oracletest.Change) billing.InvoiceDetail {
	s.Helper()
	b := oracle(s, p, c)
	d := s.detail(m.ID, invoice)
	s.sums(d, oracletest.Sums{Lines: b.Lines, Subtotal: b.Subtotal, Tax: b.Tax, Total: b.Total, Due: b.Due, FromBalance: b.Balance - c.Balance})
	if d.Total.Currency != currency || p.DueNow.Currency != currency || b.Due%step(currency) != 0 {
		s.Errorf("%v is due, %v invoiced; want %s that can be charged", p.DueNow, d.Total, currency)
	}
	return d
}

// changes runs a change in the middle of a period, and checks it all.
func (s *scene) changes(m Made, currency, price string, quantity int64, c oracletest.Change) (billing.Preview, billing.InvoiceDetail) {
	s.Helper()
	c.Start, c.End = s.into(m, currency)
	p, r := plan(s, m, price, quantity)
	return p, s.invoiced(m, r.Invoice.ID, currency, p, c)
}

// into goes into a period that just began: to an odd second, but where not every
// amount can be charged to the end of its first quarter.
func (s *scene) into(m Made, currency string) (start, end time.Time) {
	s.Helper()
	start, end = period(s, m)
	d := by
	if step(currency) > 1 {
		d = end.Sub(start) / 4
	}
	s.World.Advance(d)
	return start, end
}

// threefold is the change of two of a price to two of "more".
func threefold(unit int64) oracletest.Change {
	return oracletest.Change{Before: []oracletest.Side{of(unit, 2)}, After: []oracletest.Side{of(3*unit, 2)}}
}

func period(s *scene, m Made) (start, end time.Time) {
	a, err := s.Provider.Account(s.ctx, m.ID)
	s.must(err)
	sub, _ := a.Subscription(m.Subscription)
	return sub.Items[0].PeriodStart, sub.Items[0].PeriodEnd
}

func changeUpgrade(s *scene, currency string, unit int64) {
	m := s.World.Customer(on("price_" + currency))
	p, d := s.changes(m, currency, in(currency, "more"), 2, threefold(unit))
	if p.DueNow.Amount <= 0 || d.Status != billing.InvoicePaid || d.AmountPaid != p.DueNow {
		s.Errorf("due now %v, the invoice is %s with %v paid", p.DueNow, d.Status, d.AmountPaid)
	}
}

func changeDowngrade(s *scene, currency string, unit int64) {
	m := s.World.Customer(on(in(currency, "more")))
	p, _ := s.changes(m, currency, "price_"+currency, 2, oracletest.Change{Before: []oracletest.Side{of(3*unit, 2)}, After: []oracletest.Side{of(unit, 2)}})
	if p.DueNow.Amount != 0 || p.ToBalance.Amount != -p.Total.Amount || p.ToBalance.Amount <= 0 {
		s.Errorf("due %v, to the balance %v, total %v", p.DueNow, p.ToBalance, p.Total)
	}
	if a := s.account(m.ID); a.Customer.Balance != p.ToBalance.Neg() {
		s.Errorf("the balance is %v, the preview said %v of credit", a.Customer.Balance, p.ToBalance)
	}
}

func changeInterval(s *scene, currency string, unit int64) {
	m := s.World.Customer(on(in(currency, "more")))
	p, _ := s.changes(m, currency, in(currency, "year"), 2, oracletest.Change{Before: []oracletest.Side{of(3*unit, 2)}, After: []oracletest.Side{yearly(of(30*unit, 2))}})
	if want := p.At.AddDate(1, 0, 0); !p.Next.Due.Equal(want) {
		s.Errorf("next payment %s, want %s", p.Next.Due, want)
	}
}

func changeQuantity(s *scene, currency string, unit int64) {
	m := s.World.Customer(on("price_" + currency))
	s.changes(m, currency, "price_"+currency, 7, oracletest.Change{Before: []oracletest.Side{of(unit, 2)}, After: []oracletest.Side{of(unit, 7)}})
}

func changeOneOfTwo(s *scene, currency string, unit int64) {
	half := in(currency, "half")
	m := s.World.Customer(Customer{Card: CardWorks, Price: "price_" + currency, Quantity: 2, More: map[string]int64{half: 5}})
	s.changes(m, currency, in(currency, "more"), 2, oracletest.Change{
		Before: []oracletest.Side{of(unit, 2), of(unit/2, 5)}, After: []oracletest.Side{of(3*unit, 2), of(unit/2, 5)},
	})
	a := s.account(m.ID)
	if it := a.Subscriptions[0].Items[1]; it.Price.ID != half || it.Quantity != 5 {
		s.Errorf("the item that was not named is %d × %s now", it.Quantity, it.Price.ID)
	}
}

func changeTax(s *scene, currency string, unit int64) {
	m := s.World.Customer(Customer{Card: CardWorks, Price: "price_" + currency, Quantity: 2, TaxPercent: "19"})
	c := threefold(unit)
	c.TaxPercent = big.NewRat(19, 1)
	p, _ := s.changes(m, currency, in(currency, "more"), 2, c)
	if p.Tax.Amount <= 0 || p.Total.Amount != p.Subtotal.Amount+p.Tax.Amount || p.DueNow != p.Total {
		s.Errorf("subtotal %v, tax %v, total %v, due %v", p.Subtotal, p.Tax, p.Total, p.DueNow)
	}
}

func changeBalance(s *scene, currency string, unit int64) {
	m := s.World.Customer(Customer{Card: CardWorks, Price: "price_" + currency, Quantity: 2, Credit: 500})
	c := threefold(unit)
	c.Balance = -500
	p, _ := s.changes(m, currency, in(currency, "more"), 2, c)
	if p.FromBalance.Amount != 500 || p.DueNow.Amount != p.Total.Amount-500 {
		s.Errorf("total %v, from the balance %v, due %v", p.Total, p.FromBalance, p.DueNow)
	}
}

// changeDinar rounds to thousandths, at an odd second.
func changeDinar(s *scene) {
	m := s.World.Customer(on(dinar))
	s.World.Advance(by)
	start, end := period(s, m)
	p, _ := plan(s, m, dinarMore, 2)
	oracle(s, p, oracletest.Change{Before: []oracletest.Side{side("4500", 2)}, After: []oracletest.Side{side("12340", 2)}, Start: start, End: end})
	if e := s.Provider.Capabilities().Exponent("kwd"); p.DueNow.Currency != "kwd" || e != 3 {
		s.Errorf("due %v with exponent %d", p.DueNow, e)
	}
}

func changeFraction(s *scene, currency string, _ int64) {
	price, unit := in(currency, "fraction"), fractionOf(currency)
	m := s.World.Customer(Customer{Card: CardWorks, Price: price, Quantity: 800000})
	s.changes(m, currency, price, 960000, oracletest.Change{Before: []oracletest.Side{side(unit, 800000)}, After: []oracletest.Side{side(unit, 960000)}})
}

func changeTrial(s *scene, currency string, unit int64) {
	more := in(currency, "more")
	m := s.World.Customer(Customer{Card: CardWorks, Price: "price_" + currency, Quantity: 1, Trial: 14 * 24 * time.Hour})
	start, end := period(s, m)
	s.World.Advance(3 * 24 * time.Hour)
	p := s.preview(m.ID, change(m, more, 1))
	after := []oracletest.Side{of(3*unit, 1)}
	oracle(s, p, oracletest.Change{Before: []oracletest.Side{of(unit, 1)}, After: after, Start: start, End: end, Trial: true})
	if r := s.carry(m.ID, p, nil); r.State != billing.Done {
		s.Errorf("result %+v", r)
	}
	a := s.account(m.ID)
	if sub := a.Subscriptions[0]; sub.Status != billing.Trialing || sub.Items[0].Price.ID != more {
		s.Errorf("status %s on %s", sub.Status, sub.Items[0].Price.ID)
	}
	s.World.Advance(end.Add(time.Hour * 2).Sub(s.World.Now()))
	if d := s.detail(m.ID, s.newest(m.ID).ID); s.issued(d, oracletest.Paper{Sides: after}).Total != p.Next.Total.Amount || d.Total != p.Next.Total || d.Status != billing.InvoicePaid {
		s.Errorf("after the trial %v is %s, the preview said %v", d.Total, d.Status, p.Next.Total)
	}
}

func changeSendInvoice(s *scene, currency string, unit int64) {
	m := s.World.Customer(Customer{Price: "price_" + currency, Quantity: 2, SendInvoice: true})
	_, d := s.changes(m, currency, in(currency, "more"), 2, threefold(unit))
	if d.Status != billing.InvoiceOpen || d.DueDate.IsZero() || d.AmountRemaining != d.Total {
		s.Errorf("the invoice is %s, due %s", d.Status, d.DueDate)
	}
	if a := s.account(m.ID); !a.Subscriptions[0].SendInvoice || a.Subscriptions[0].Pending != nil {
		s.Errorf("subscription %+v", a.Subscriptions[0])
	}
}

// changeAt previews twice for one moment, with time between, and charges
// later: the numbers stay.
func changeAt(s *scene, currency string, unit int64) {
	m := s.World.Customer(on("price_" + currency))
	c := threefold(unit)
	c.Start, c.End = s.into(m, currency)
	to := change(m, in(currency, "more"), 2)
	p := s.preview(m.ID, to)
	s.World.Advance(9 * time.Minute)
	q, err := s.Provider.Preview(s.ctx, m.ID, to, p.At)
	s.must(err)
	if !p.SameTerms(q) {
		s.Errorf("the preview for the same moment has other terms: %+v, %+v", p, q)
	}
	s.World.Advance(time.Minute)
	r := s.carry(m.ID, q, nil)
	s.charged(p, r)
	s.invoiced(m, r.Invoice.ID, currency, p, c)
}

func changeCurrency(s *scene) {
	m := s.World.Customer(on(basic))
	_, err := s.Provider.Preview(s.ctx, m.ID, change(m, euro, 2), time.Time{})
	s.fails("preview", err, billing.Refused)
	s.noteErr("code", err)
}

func changeBadQuantity(s *scene) {
	m := s.World.Customer(on(basic))
	for _, q := range []int64{0, -1, billing.MaxQuantity + 1} {
		_, err := s.Provider.Preview(s.ctx, m.ID, change(m, team, q), time.Time{})
		s.fails("preview", err, billing.Refused)
		s.noteErr("code", err)
	}
}

func changeNoPrice(s *scene) {
	m := s.World.Customer(on(basic))
	_, err := s.Provider.Preview(s.ctx, m.ID, change(m, "price_none", 2), time.Time{})
	s.fails("preview", err, billing.NotFound)
}

func changePreviewFault(s *scene) {
	m := s.World.Customer(on(basic))
	before := s.effects(m.ID)
	for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.FaultTimeoutAfter, sandbox.Fault500Before, sandbox.FaultGarbage} {
		s.World.Fault(sandbox.Fault{On: "preview", Times: 1, Kind: k})
		_, err := s.Provider.Preview(s.ctx, m.ID, change(m, team, 2), time.Time{})
		s.fails(string(k), err, billing.Unavailable)
		s.World.ClearFaults()
	}
	if s.effects(m.ID) != before {
		s.Error("a preview had an effect")
	}
}

// declined makes an upgrade that the card does not pay.
func declined(s *scene) (Made, billing.Step, string, billing.Result) {
	s.Helper()
	m := s.World.Customer(Customer{Card: CardDeclines, Price: basic, Quantity: 2})
	s.World.Advance(by)
	p, key, r := declines(s, m, team)
	return m, p.Steps[0], key, r
}

// declines changes a customer's plan to another one that the card does not pay.
func declines(s *scene, m Made, price string) (billing.Preview, string, billing.Result) {
	s.Helper()
	p := s.preview(m.ID, change(m, price, 2))
	key := s.key()
	r, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.must(err)
	s.result("result", r)
	if r.State != billing.AwaitingCustomer || r.Reason != "card_declined" || !r.Until.After(s.World.Now()) {
		s.Errorf("a declined upgrade gives %+v", r)
	}
	a := s.account(m.ID)
	sub := a.Subscriptions[0]
	if sub.Pending == nil || sub.Pending.AmountDue != p.DueNow || sub.Items[0].Price.ID == price || sub.Pending.Items[0].Price.ID != price {
		s.Fatalf("pending %+v", sub.Pending)
	}
	if v := a.Invoices[0]; v.ID != sub.Pending.InvoiceID || !v.ForPendingUpdate || v.Status != billing.InvoiceOpen {
		s.Errorf("its invoice is %+v", v)
	}
	page, err := s.Provider.Invoices(s.ctx, m.ID, "", 5)
	s.must(err)
	if !page.Invoices[0].ForPendingUpdate {
		s.Error("the list of invoices does not mark the invoice of the waiting change")
	}
	return p, key, r
}

// now checks what a step that waited has become.
func now(s *scene, m Made, st billing.Step, key string, last billing.Result, want billing.Outcome, state billing.ResultState) {
	s.Helper()
	o, r, err := s.Provider.Outcome(s.ctx, m.ID, st, key, &last)
	s.must(err)
	s.note("outcome", o)
	s.result("result", r)
	if o != want || r.State != state {
		s.Errorf("the step that waited is %s %q, want %s %q", o, r.State, want, state)
	}
}

func declinedDropped(s *scene) {
	m, st, key, r := declined(s)
	now(s, m, st, key, r, billing.Applied, billing.AwaitingCustomer)
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.DropPending, Subscription: m.Subscription}), nil)
	a := s.account(m.ID)
	if a.Subscriptions[0].Pending != nil || a.Subscriptions[0].Items[0].Price.ID != basic || a.Invoices[0].Status != billing.InvoiceVoid {
		s.Errorf("after dropping: %+v, invoice %s", a.Subscriptions[0], a.Invoices[0].Status)
	}
	now(s, m, st, key, r, billing.NotApplied, "")
	_, err := s.Provider.Preview(s.ctx, m.ID, billing.Action{Kind: billing.DropPending, Subscription: m.Subscription}, time.Time{})
	s.fails("drop again", err, billing.Refused)
	s.noteErr("code", err)
}

func declinedPaid(s *scene, currency string, unit int64) {
	m := s.World.Customer(Customer{Card: CardDeclines, Price: "price_" + currency, Quantity: 2})
	c := threefold(unit)
	c.Start, c.End = s.into(m, currency)
	p, key, r := declines(s, m, in(currency, "more"))
	add := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/back"})
	s.carry(m.ID, add, func(r billing.Result) { s.World.EnterCard(r.GoTo, CardOther) })
	a := s.account(m.ID)
	if sub := a.Subscriptions[0]; sub.Pending != nil || sub.Items[0].Price.ID != in(currency, "more") {
		s.Errorf("paid by another card, the change is %+v", sub)
	}
	s.waited(m, currency, p, key, r, c)
}

// waited checks a change that waited and is paid now.
func (s *scene) waited(m Made, currency string, p billing.Preview, key string, r billing.Result, c oracletest.Change) {
	s.Helper()
	now(s, m, p.Steps[0], key, r, billing.Applied, billing.Done)
	if d := s.invoiced(m, s.newest(m.ID).ID, currency, p, c); d.Status != billing.InvoicePaid || d.AmountPaid != p.DueNow || d.AmountPaid.Amount <= 0 {
		s.Errorf("the invoice is %s with %v paid, the preview said %v", d.Status, d.AmountPaid, p.DueNow)
	}
}

func declinedExpires(s *scene) {
	m, st, key, r := declined(s)
	s.World.Advance(24 * time.Hour)
	now(s, m, st, key, r, billing.NotApplied, "")
	if a := s.account(m.ID); a.Subscriptions[0].Pending != nil || a.Subscriptions[0].Items[0].Price.ID != basic {
		s.Errorf("after a day: %+v", a.Subscriptions[0])
	}
}

func declinedBlocks(s *scene) {
	m, _, _, _ := declined(s)
	_, err := s.Provider.Preview(s.ctx, m.ID, change(m, basic, 9), time.Time{})
	s.fails("another change", err, billing.Refused)
	s.noteErr("code", err)
}

// asked makes an upgrade that the customer has to confirm.
func asked(s *scene) (Made, billing.Step, string, billing.Result) {
	s.Helper()
	m := s.World.Customer(Customer{Card: CardAsks, Price: basic, Quantity: 2})
	s.World.Advance(by)
	p, key, r := asks(s, m, team)
	return m, p.Steps[0], key, r
}

// asks changes a customer's plan to another one, which has to be confirmed.
func asks(s *scene, m Made, price string) (billing.Preview, string, billing.Result) {
	s.Helper()
	p := s.preview(m.ID, change(m, price, 2))
	key := s.key()
	r, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.must(err)
	s.result("result", r)
	if r.State != billing.AwaitingCustomer || r.Reason != "authentication_required" || r.GoTo == "" {
		s.Fatalf("a card that asks gives %+v", r)
	}
	a := s.account(m.ID)
	if sub := a.Subscriptions[0]; sub.Pending == nil || sub.Pending.ConfirmURL == "" {
		s.Fatalf("pending %+v", sub.Pending)
	}
	return p, key, r
}

func confirmedYes(s *scene, currency string, unit int64) {
	m := s.World.Customer(Customer{Card: CardAsks, Price: "price_" + currency, Quantity: 2})
	c := threefold(unit)
	c.Start, c.End = s.into(m, currency)
	p, key, r := asks(s, m, in(currency, "more"))
	now(s, m, p.Steps[0], key, r, billing.Applied, billing.AwaitingCustomer)
	s.World.Confirm(r.GoTo, true)
	if a := s.account(m.ID); a.Subscriptions[0].Items[0].Price.ID != in(currency, "more") {
		s.Error("confirmed, and the plan is the old one")
	}
	s.waited(m, currency, p, key, r, c)
}

func confirmedNo(s *scene) {
	m, st, key, r := asked(s)
	s.World.Confirm(r.GoTo, false)
	now(s, m, st, key, r, billing.Applied, billing.AwaitingCustomer)
	if a := s.account(m.ID); a.Subscriptions[0].Items[0].Price.ID != basic || a.Subscriptions[0].Pending == nil || a.Subscriptions[0].Pending.ConfirmURL != "" {
		s.Errorf("declined on the page: %+v", a.Subscriptions[0])
	}
}

// confirmedOnPay pays a waiting change with a new card that asks.
func confirmedOnPay(s *scene) {
	m, st, key, r := declined(s)
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/back"})
	pages := 0
	last := s.carry(m.ID, p, func(r billing.Result) {
		pages++
		if r.Reason == "enter_card" {
			s.World.EnterCard(r.GoTo, CardAsks)
			return
		}
		if r.Reason != "authentication_required" || r.Until.IsZero() {
			s.Errorf("the payment waits as %+v", r)
		}
		s.World.Confirm(r.GoTo, true)
	})
	if pages != 2 || last.State != billing.Done || last.Invoice == nil || last.Invoice.Status != billing.InvoicePaid {
		s.Errorf("%d pages, then %+v", pages, last)
	}
	now(s, m, st, key, r, billing.Applied, billing.Done)
}

func cancelResume(s *scene) {
	m := s.World.Customer(on(basic))
	s.World.Advance(by)
	p := s.preview(m.ID, billing.Action{Kind: billing.Cancel, Subscription: m.Subscription})
	s.carry(m.ID, p, nil)
	a := s.account(m.ID)
	sub := a.Subscriptions[0]
	if !sub.CancelAtPeriodEnd || !sub.Ends().Equal(sub.PeriodEnd()) || !p.Effective.Equal(sub.PeriodEnd()) || len(a.Upcoming) != 0 {
		s.Errorf("cancelled: %+v, upcoming %v", sub, a.Upcoming)
	}
	p = s.preview(m.ID, billing.Action{Kind: billing.Resume, Subscription: m.Subscription})
	if p.Next == nil || p.Next.Total.Amount != 2000 {
		s.Errorf("resuming, the next payment is %+v", p.Next)
	}
	s.carry(m.ID, p, nil)
	if a := s.account(m.ID); a.Subscriptions[0].CancelAtPeriodEnd || !a.Subscriptions[0].Ends().IsZero() || len(a.Upcoming) != 1 {
		s.Errorf("resumed: %+v", a.Subscriptions[0])
	}
}

func cancelTwice(s *scene) {
	m := s.World.Customer(on(basic))
	_, err := s.Provider.Preview(s.ctx, m.ID, billing.Action{Kind: billing.Resume, Subscription: m.Subscription}, time.Time{})
	s.fails("resume", err, billing.Refused)
	s.noteErr("code", err)
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.Cancel, Subscription: m.Subscription}), nil)
	_, err = s.Provider.Preview(s.ctx, m.ID, billing.Action{Kind: billing.Cancel, Subscription: m.Subscription}, time.Time{})
	s.fails("cancel", err, billing.Refused)
	s.noteErr("code", err)
}

func cancelComesTrue(s *scene) {
	m := s.World.Customer(on(basic))
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.Cancel, Subscription: m.Subscription}), nil)
	s.World.Advance(35 * 24 * time.Hour)
	a := s.account(m.ID)
	if a.Subscriptions[0].Status != billing.Canceled || a.Subscriptions[0].EndedAt.IsZero() {
		s.Errorf("subscription %+v", a.Subscriptions[0])
	}
	if len(a.Invoices) != 1 || len(a.Upcoming) != 0 || a.Customer.Balance.Amount != 0 { // no money moves
		s.Errorf("invoices %+v, upcoming %+v, balance %v", a.Invoices, a.Upcoming, a.Customer.Balance)
	}
	for _, act := range []billing.Action{change(m, team, 2), {Kind: billing.Cancel, Subscription: m.Subscription}, {Kind: billing.Resume, Subscription: m.Subscription}} {
		_, err := s.Provider.Preview(s.ctx, m.ID, act, time.Time{})
		s.fails(string(act.Kind), err, billing.Refused)
		s.noteErr("code", err)
	}
}

func cardAdded(s *scene) {
	m := s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 1, OwnDefault: true})
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/back"})
	s.carry(m.ID, p, func(r billing.Result) {
		if r.Reason != "enter_card" || r.GoTo == "" || !r.Until.After(s.World.Now()) {
			s.Errorf("the card page is %+v", r)
		}
		s.World.EnterCard(r.GoTo, CardOther)
	})
	a := s.account(m.ID)
	if a.Customer.DefaultPaymentMethod == m.Card || a.Subscriptions[0].DefaultPaymentMethod != a.Customer.DefaultPaymentMethod {
		s.Errorf("defaults: customer %s, subscription %s", a.Customer.DefaultPaymentMethod, a.Subscriptions[0].DefaultPaymentMethod)
	}
	if pm, ok := a.Pays(&a.Subscriptions[0]); !ok || pm.Last4 != "4444" || pm.Brand != "mastercard" {
		s.Errorf("it is paid with %+v", pm)
	}
}

func cardNotEntered(s *scene) {
	m := s.World.Customer(on(basic))
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/back"})
	key := s.key()
	r, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.must(err)
	now(s, m, p.Steps[0], key, r, billing.Applied, billing.AwaitingCustomer)
	s.World.Advance(25 * time.Hour)
	now(s, m, p.Steps[0], key, r, billing.NotApplied, "")
	if a := s.account(m.ID); a.Customer.DefaultPaymentMethod != m.Card {
		s.Error("the default changed")
	}
}

func cardFirst(s *scene) {
	m := s.World.Customer(Customer{})
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/back"})
	s.carry(m.ID, p, func(r billing.Result) { s.World.EnterCard(r.GoTo, CardWorks) })
	if a := s.account(m.ID); len(a.PaymentMethods) != 1 || a.Customer.DefaultPaymentMethod != a.PaymentMethods[0].ID {
		s.Errorf("methods %+v, default %s", a.PaymentMethods, a.Customer.DefaultPaymentMethod)
	}
}

func cardDefault(s *scene) {
	m := s.World.Customer(Customer{Card: CardOther, Price: basic, Quantity: 1, OwnDefault: true})
	a := s.account(m.ID)
	var first string
	for _, pm := range a.PaymentMethods {
		if pm.ID != m.Card {
			first = pm.ID
		}
	}
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: first}), nil)
	if a := s.account(m.ID); a.Customer.DefaultPaymentMethod != first || a.Subscriptions[0].DefaultPaymentMethod != first {
		s.Errorf("defaults: customer %s, subscription %s, want %s", a.Customer.DefaultPaymentMethod, a.Subscriptions[0].DefaultPaymentMethod, first)
	}
}

func detailsChanged(s *scene) {
	m := s.World.Customer(on(basic))
	name, email, phone := "Globex & Söhne", "accounts+1@globex.example.com", "+49 30 1234"
	before, err := s.Provider.Find(s.ctx, m.ID)
	s.must(err)
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Name: &name, Email: &email, Phone: &phone}}), nil)
	c := s.account(m.ID).Customer
	if c.Name != name || c.Email != email || c.Phone != phone || c.Address.City != "Springfield" || c.Version == before.Version {
		s.Errorf("customer %+v", c)
	}
}

func detailsAddress(s *scene) {
	m := s.World.Customer(on(basic))
	ad := billing.Address{Line1: "Hauptstraße 1", City: "Berlin", PostalCode: "10115", Country: "DE"}
	p := s.preview(m.ID, billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Address: &ad}})
	key := s.key()
	o, _, err := s.Provider.Outcome(s.ctx, m.ID, p.Steps[0], key, nil)
	s.must(err)
	s.note("before", o)
	_, err = s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.must(err)
	o, _, err = s.Provider.Outcome(s.ctx, m.ID, p.Steps[0], key, nil)
	s.must(err)
	s.note("after", o)
	if c := s.account(m.ID).Customer; c.Address != ad || c.Name != "Acme" || o != billing.Applied {
		s.Errorf("%s: customer %+v", o, c)
	}
}

func executeTwice(s *scene) {
	m := s.World.Customer(on(basic))
	s.World.Advance(by)
	p := s.preview(m.ID, change(m, team, 2))
	before, key := s.effects(m.ID), s.key()
	for range 3 {
		r, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
		s.must(err)
		s.result("result", r)
		s.charged(p, r)
	}
	if n := s.effects(m.ID) - before; n != 1 {
		s.Errorf("one key, three times: %d effects", n)
	}
}

func executeAtOnce(s *scene) {
	m := s.World.Customer(on(basic))
	s.World.Advance(by)
	p := s.preview(m.ID, change(m, team, 2))
	before, key := s.effects(m.ID), s.key()
	results := make([]billing.Result, 8)
	errs := make([]error, len(results))
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { results[i], errs[i] = s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key) })
	}
	wg.Wait()
	for i, err := range errs {
		// A provider may ask those that came second to come again.
		if err != nil && billing.FaultOf(err) != billing.Retryable {
			s.Errorf("one of eight at once: %v", err)
		} else if err == nil {
			s.charged(p, results[i])
		}
	}
	if n := s.effects(m.ID) - before; n != 1 {
		s.Errorf("one key, eight times at once: %d effects", n)
	}
}

func executeOtherStep(s *scene) {
	m := s.World.Customer(on(basic))
	p, q := s.preview(m.ID, change(m, team, 2)), s.preview(m.ID, change(m, team, 3))
	key := s.key()
	_, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.must(err)
	before := s.effects(m.ID)
	_, err = s.Provider.Execute(s.ctx, m.ID, q.Steps[0], key)
	s.fails("other step", err, billing.Unknown)
	if code := billing.CodeOf(err); code != "idempotency_error" {
		s.Errorf("code %q", code)
	}
	if s.effects(m.ID) != before {
		s.Error("it had an effect")
	}
}

func executeNoRef(s *scene) {
	m := s.World.Customer(on(basic))
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/back"})
	before := s.effects(m.ID)
	for _, st := range p.Steps[1:] {
		_, err := s.Provider.Execute(s.ctx, m.ID, st, s.key())
		s.fails(st.Kind[:8], err, billing.Refused)
	}
	if s.effects(m.ID) != before {
		s.Error("a step without its reference had an effect")
	}
}

func executeNoKey(s *scene) {
	m := s.World.Customer(on(basic))
	p := s.preview(m.ID, change(m, team, 2))
	before := s.effects(m.ID)
	_, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], "")
	s.fails("no key", err, billing.Refused)
	if s.effects(m.ID) != before {
		s.Error("a step without a key had an effect")
	}
}

// fault sends a change into a fault, reads what came of it, and sends it
// again with the same key. effects is how many changes the first time makes.
func fault(s *scene, kind sandbox.FaultKind, want billing.Fault, effects int) {
	m := s.World.Customer(on(basic))
	s.World.Advance(by)
	p := s.preview(m.ID, change(m, team, 2))
	before, key := s.effects(m.ID), s.key()
	s.World.Fault(sandbox.Fault{On: "execute", Times: 1, Kind: kind, Latency: 20 * time.Millisecond})
	_, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.fails("execute", err, want)
	if n := s.effects(m.ID) - before; n != effects {
		s.Errorf("%d effects, want %d", n, effects)
	}
	o, r, err := s.Provider.Outcome(s.ctx, m.ID, p.Steps[0], key, nil)
	s.must(err)
	s.note("outcome", o)
	s.result("result", r)
	if (o == billing.Applied) != (effects == 1) || (o == billing.NotApplied) != (effects == 0) {
		s.Errorf("outcome %s of %d effects", o, effects)
	}
	if effects == 1 {
		s.charged(p, r)
	}
	r, err = s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	switch {
	case kind == sandbox.Fault500After && billing.FaultOf(err) == billing.Unknown:
		// Stripe keeps a 500 under its key: reading is the only way on.
	case err != nil:
		s.Errorf("the same key again: %v", err)
	default:
		s.charged(p, r)
	}
	if n := s.effects(m.ID) - before; n != 1 {
		s.Errorf("%d effects in the end", n)
	}
}

// faultDeclined loses the answer that says that a change waits.
func faultDeclined(s *scene) {
	m := s.World.Customer(Customer{Card: CardDeclines, Price: basic, Quantity: 2})
	s.World.Advance(by)
	p := s.preview(m.ID, change(m, team, 2))
	key := s.key()
	s.World.Fault(sandbox.Fault{On: "execute", Times: 1, Kind: sandbox.FaultTimeoutAfter})
	_, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.fails("execute", err, billing.Unknown)
	o, r, err := s.Provider.Outcome(s.ctx, m.ID, p.Steps[0], key, nil)
	s.must(err)
	s.note("outcome", o)
	s.result("result", r)
	if o != billing.Applied || r.State != billing.AwaitingCustomer || r.Reason != "card_declined" || r.Until.IsZero() {
		s.Errorf("outcome %s, %+v", o, r)
	}
}

// faultCardPage loses the answer that says where the card page is.
func faultCardPage(s *scene) {
	m := s.World.Customer(on(basic))
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/back"})
	key := s.key()
	o, _, err := s.Provider.Outcome(s.ctx, m.ID, p.Steps[0], key, nil)
	s.must(err)
	if o != billing.NotApplied {
		s.Errorf("before it was sent the outcome is %s", o)
	}
	s.World.Fault(sandbox.Fault{On: "execute", Times: 1, Kind: sandbox.FaultTimeoutAfter})
	_, err = s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.fails("execute", err, billing.Unknown)
	o, r, err := s.Provider.Outcome(s.ctx, m.ID, p.Steps[0], key, nil)
	s.must(err)
	s.note("outcome", o)
	s.result("result", r)
	if o != billing.Applied || r.State != billing.AwaitingCustomer || r.GoTo == "" {
		s.Fatalf("outcome %s, %+v", o, r)
	}
	s.World.EnterCard(r.GoTo, CardOther)
	now(s, m, p.Steps[0], key, r, billing.Applied, billing.Done)
}

// faultOthers loses the answer, and the request, of every other kind of step.
func faultOthers(s *scene) {
	m := s.World.Customer(Customer{Card: CardDeclines, Price: basic, Quantity: 2, OwnDefault: true})
	s.World.Advance(by)
	s.carry(m.ID, s.preview(m.ID, change(m, team, 2)), nil)
	a, err := s.Provider.Account(s.ctx, m.ID)
	s.must(err)
	works := a.PaymentMethods[slices.IndexFunc(a.PaymentMethods, func(pm billing.PaymentMethod) bool { return pm.ID != m.Card })].ID
	name := "Globex"
	for _, act := range []billing.Action{
		{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: works}, // pays what waits, too
		{Kind: billing.Cancel, Subscription: m.Subscription},
		{Kind: billing.Resume, Subscription: m.Subscription},
		{Kind: billing.UpdateDetails, Details: &billing.Details{Name: &name}},
	} {
		for i, st := range s.preview(m.ID, act).Steps {
			key := s.key()
			for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.FaultTimeoutAfter} {
				s.World.Fault(sandbox.Fault{On: "execute", Times: 1, Kind: k})
				_, err := s.Provider.Execute(s.ctx, m.ID, st, key)
				s.fails(string(act.Kind), err, billing.Unknown)
				o, _, err := s.Provider.Outcome(s.ctx, m.ID, st, key, nil)
				s.must(err)
				s.note("outcome", o)
				want := billing.NotApplied
				if k == sandbox.FaultTimeoutAfter {
					want = billing.Applied
				}
				if o != want {
					s.Errorf("%s, step %d, %s: outcome %s", act.Kind, i, k, o)
				}
			}
			if r, err := s.Provider.Execute(s.ctx, m.ID, st, key); err != nil || r.State != billing.Done {
				s.Errorf("%s, step %d, the same key again: %+v, %v", act.Kind, i, r, err)
			}
		}
	}
	a = s.account(m.ID)
	if sub := a.Subscriptions[0]; sub.Pending != nil || sub.Items[0].Price.ID != team || sub.CancelAtPeriodEnd || a.Customer.Name != name {
		s.Errorf("in the end: %+v", sub)
	}
}

// The moment at which events arrive. The portal's clock, not the provider's.
var arrives = time.Date(2026, time.November, 22, 10, 0, 0, 0, time.UTC)

// eventOf is an event of a subscription.
func eventOf(customer string) string {
	return `{"id":"evt_1Q","object":"event","api_version":"2026-08-26.dahlia","created":1795341590,"livemode":false,` +
		`"type":"customer.subscription.updated","data":{"object":{"id":"sub_1","object":"subscription","customer":"` + customer + `"}}}`
}

// signEvent signs as Stripe does, with Stripe's own SDK.
func signEvent(body string, at time.Time, secrets ...string) http.Header {
	h := []string{fmt.Sprintf("t=%d", at.Unix())}
	for _, secret := range secrets {
		h = append(h, fmt.Sprintf("v1=%x", webhook.ComputeSignature(at, []byte(body), secret)))
	}
	return http.Header{"Stripe-Signature": {strings.Join(h, ",")}}
}

// takes parses an event that must be taken, and notes it.
func (s *scene) takes(what string, header http.Header, body string) billing.Event {
	s.Helper()
	e, err := s.Provider.ParseEvent(header, []byte(body), arrives)
	if err != nil {
		s.Errorf("%s: %v", what, err)
	}
	s.note(what, e)
	return e
}

// refuses parses an event that must not be taken.
func (s *scene) refuses(what string, header http.Header, body string, want error) {
	s.Helper()
	e, err := s.Provider.ParseEvent(header, []byte(body), arrives)
	if !errors.Is(err, want) || e != (billing.Event{}) {
		s.Errorf("%s: %+v, %v, want %v", what, e, err, want)
	}
	for _, secret := range s.Secrets {
		if err != nil && strings.Contains(err.Error(), strings.TrimPrefix(secret, "whsec_")) {
			s.Errorf("%s: the error shows a secret", what)
		}
	}
	s.note(what, want.Error())
}

func eventGenuine(s *scene) {
	body := eventOf("cus_1")
	e := s.takes("event", signEvent(body, arrives, s.Secrets[0]), body)
	want := billing.Event{
		ID: "evt_1Q", Type: "customer.subscription.updated", Customer: "cus_1", Created: time.Unix(1795341590, 0).UTC(),
		LiveMode: s.Provider.Capabilities().LiveMode,
	}
	if e != want {
		s.Errorf("event %+v, want %+v", e, want)
	}
	// It is the same event however often it comes.
	if again := s.takes("again", signEvent(body, arrives.Add(-time.Minute), s.Secrets[0]), body); again != e {
		s.Errorf("again it is %+v", again)
	}
}

func eventRotation(s *scene) {
	body := eventOf("cus_1")
	for _, secret := range s.Secrets {
		s.takes("one", signEvent(body, arrives, secret), body)
	}
	s.takes("both", signEvent(body, arrives, s.Secrets...), body)
	s.takes("both, the other way round", signEvent(body, arrives, s.Secrets[1], s.Secrets[0]), body)
	s.takes("one, and one that is gone", signEvent(body, arrives, "whsec_a-secret-that-is-gone", s.Secrets[1]), body)
}

func eventForged(s *scene) {
	body := eventOf("cus_1")
	good := signEvent(body, arrives, s.Secrets[0])
	s.refuses("tampered", good, eventOf("cus_2"), billing.ErrSignature)
	s.refuses("encoded otherwise", good, body+"\n", billing.ErrSignature)
	s.refuses("other secret", signEvent(body, arrives, "whsec_another-secret-of-somebody"), body, billing.ErrSignature)
	s.refuses("the secret's end only", signEvent(body, arrives, strings.TrimPrefix(s.Secrets[0], "whsec_")), body, billing.ErrSignature)
	s.refuses("no signature", http.Header{}, body, billing.ErrSignature)
	s.refuses("empty signature", http.Header{"Stripe-Signature": {""}}, body, billing.ErrSignature)
	s.refuses("two headers", http.Header{"Stripe-Signature": {good.Get("Stripe-Signature"), good.Get("Stripe-Signature")}}, body, billing.ErrSignature)
	s.refuses("weaker scheme", http.Header{"Stripe-Signature": {strings.Replace(good.Get("Stripe-Signature"), "v1=", "v0=", 1)}}, body, billing.ErrSignature)
}

func eventTime(s *scene) {
	body := eventOf("cus_1")
	for _, d := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		s.takes("within five minutes", signEvent(body, arrives.Add(d), s.Secrets[0]), body)
	}
	for _, d := range []time.Duration{-301 * time.Second, 301 * time.Second, -24 * time.Hour, 24 * time.Hour, -time.Duration(arrives.Unix()+1) * time.Second} {
		s.refuses("too far", signEvent(body, arrives.Add(d), s.Secrets[0]), body, billing.ErrSignature)
	}
	// The time is signed, too.
	old := signEvent(body, arrives.Add(-time.Hour), s.Secrets[0]).Get("Stripe-Signature")
	_, sig, _ := strings.Cut(old, ",")
	s.refuses("another time put before it", http.Header{"Stripe-Signature": {fmt.Sprintf("t=%d,%s", arrives.Unix(), sig)}}, body, billing.ErrSignature)
}

func eventNothing(s *scene) {
	for _, body := range []string{
		strings.Replace(strings.Replace(eventOf("cus_1"), "customer.subscription.updated", "sprocket.turned", 1), `"object":"subscription"`, `"object":"sprocket"`, 1),
		strings.Replace(eventOf("cus_1"), `"cus_1"`, `null`, 1),
	} {
		if e := s.takes("event", signEvent(body, arrives, s.Secrets[0]), body); e.Customer != "" {
			s.Errorf("event %+v", e)
		}
	}
}

func eventUnusable(s *scene) {
	for what, body := range map[string]string{
		"other mode":          strings.Replace(eventOf("cus_1"), `"livemode":false`, `"livemode":true`, 1),
		"a connected account": strings.Replace(eventOf("cus_1"), `"created"`, `"account":"acct_2","created"`, 1),
		"not an event":        `{"id":"sub_1","object":"subscription","customer":"cus_1"}`,
		"no JSON":             `hello`,
		"nothing":             ``,
	} {
		e, err := s.Provider.ParseEvent(signEvent(body, arrives, s.Secrets[0]), []byte(body), arrives)
		if !errors.Is(err, billing.ErrEvent) || e != (billing.Event{}) {
			s.Errorf("%s: %+v, %v", what, e, err)
		}
	}
	s.note("none", true)
}
