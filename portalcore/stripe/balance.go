package stripe

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// monetary is Stripe's amount of billing credits.
type monetary struct {
	Monetary *struct {
		Currency string `json:"currency"`
		Value    int64  `json:"value"`
	} `json:"monetary"`
}

func (m monetary) money() (billing.Money, bool) {
	if m.Monetary == nil {
		return billing.Money{}, false
	}
	return billing.Money{Amount: m.Monetary.Value, Currency: m.Monetary.Currency}, true
}

type creditGrant struct {
	Object    string               `json:"object"`
	ID        string               `json:"id"`
	Customer  expandable[struct{}] `json:"customer"`
	Created   stamp                `json:"created"`
	Name      string               `json:"name"`
	Category  string               `json:"category"`
	Amount    monetary             `json:"amount"`
	Effective stamp                `json:"effective_at"`
	Expires   stamp                `json:"expires_at"`
	VoidedAt  stamp                `json:"voided_at"`
}

// ended reports whether nothing can be left of g.
func (g *creditGrant) ended(now time.Time) bool {
	return g.VoidedAt != 0 || g.Expires != 0 && !g.Expires.time().After(now)
}

type creditTransaction struct {
	Object  string                  `json:"object"`
	ID      string                  `json:"id"`
	Created stamp                   `json:"created"`
	Grant   expandable[creditGrant] `json:"credit_grant"`
	Credit  *creditMove             `json:"credit"`
	Debit   *creditMove             `json:"debit"`
}

type creditMove struct {
	Type    string   `json:"type"`
	Amount  monetary `json:"amount"`
	Applied *struct {
		Invoice expandable[struct{}] `json:"invoice"`
	} `json:"credits_applied"`
	Reinstated *struct {
		Invoice expandable[struct{}] `json:"invoice"`
	} `json:"credits_application_invoice_voided"`
}

// entry makes the portal's entry: credits that come in count below zero, as on
// the balance.
func (t *creditTransaction) entry() (billing.BalanceEntry, error) {
	e := billing.BalanceEntry{ID: t.ID, Time: t.Created.time(), Grant: t.Grant.ID}
	m := t.Credit
	if m == nil {
		m = t.Debit
	}
	if m == nil {
		return e, errors.New("a movement of credits moves nothing")
	}
	amount, ok := m.Amount.money()
	if !ok {
		return e, errors.New("credits that are not money are not known")
	}
	e.Type, e.Amount = m.Type, amount
	if t.Credit != nil {
		e.Amount = amount.Neg()
	}
	if m.Applied != nil {
		e.Invoice = m.Applied.Invoice.ID
	}
	if m.Reinstated != nil {
		e.Invoice = m.Reinstated.Invoice.ID
	}
	return e, nil
}

type balanceTransaction struct {
	Object   string               `json:"object"`
	ID       string               `json:"id"`
	Created  stamp                `json:"created"`
	Customer expandable[struct{}] `json:"customer"`
	Amount   int64                `json:"amount"`
	Currency string               `json:"currency"`
	Ending   int64                `json:"ending_balance"`
	Type     string               `json:"type"`
	Invoice  expandable[struct{}] `json:"invoice"`
}

func (t *balanceTransaction) entry() billing.BalanceEntry {
	return billing.BalanceEntry{
		ID: t.ID, Time: t.Created.time(), Type: t.Type, Amount: billing.Money{Amount: t.Amount, Currency: t.Currency},
		After: &billing.Money{Amount: t.Ending, Currency: t.Currency}, Invoice: t.Invoice.ID,
	}
}

type creditSummary struct {
	Object   string `json:"object"`
	Balances []struct {
		Ledger monetary `json:"ledger_balance"`
	} `json:"balances"`
}

// edge is where a page ends in one of the two lists that entries come from.
type edge struct {
	// mode is how the list is read from there: "a" what is older than id (all
	// with id ""), "b" what is newer, "i" id and what is newer, where nothing is
	// older; "n" nothing, as the list was empty.
	mode, id string
}

// cursor is a place between two entries: the balance's edge and the credits'.
type cursor [2]edge

func (c cursor) String() string {
	raw := c[0].mode + c[0].id + " " + c[1].mode + c[1].id
	return base64.RawURLEncoding.EncodeToString([]byte(raw))
}

// parseCursor reads what String wrote; "" is the beginning.
func parseCursor(s string) (c cursor, newer bool, err error) {
	if s == "" {
		return cursor{{mode: "a"}, {mode: "a"}}, false, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	parts := strings.Split(string(raw), " ")
	if err != nil || len(s) > 500 || len(parts) != 2 {
		return c, false, notFound("cursor")
	}
	for i, p := range parts {
		if p == "" || !strings.Contains("abin", p[:1]) || (p[0] == 'n') != (p[1:] == "") && p[0] != 'a' {
			return c, false, notFound("cursor")
		}
		c[i] = edge{p[:1], p[1:]}
	}
	if (c[0].mode == "a") != (c[1].mode == "a") {
		return c, false, notFound("cursor")
	}
	return c, c[0].mode != "a", nil
}

// part is what was read of one of the two lists, newest first.
type part struct {
	entries []billing.BalanceEntry
	more    bool // further in the direction of reading
}

// Balance implements billing.Provider. The customer's balance and the credits
// are two lists at Stripe, each with its own cursors; a page is both merged, and
// its cursors hold a place in each. Of one moment the balance's entries come
// first: credits are used up before it.
func (p *Provider) Balance(ctx context.Context, customerID, at string, limit int) (billing.BalancePage, error) {
	ctx = forCustomer(ctx, customerID)
	place, newer, err := parseCursor(at)
	if err != nil {
		return billing.BalancePage{}, err
	}
	limit = min(max(limit, 1), 100)
	var (
		c       *customer
		ans     *answer
		moves   part
		credits part
		grants  list[creditGrant]
	)
	reads := []func() error{
		func() (err error) { c, ans, err = p.customer(ctx, customerID); return err },
		func() (err error) { moves, err = p.moves(ctx, customerID, place[0], limit); return err },
		func() (err error) {
			n := limit
			if at == "" {
				n = 100 // all of them say what is left of each grant
			}
			credits, err = p.credits(ctx, customerID, place[1], n)
			return err
		},
	}
	if at == "" {
		reads = append(reads, func() error {
			a, err := p.get(ctx, &grants, form{{"customer", customerID}, {"limit", "100"}}, "billing", "credit_grants")
			if err == nil && slices.ContainsFunc(grants.Data, func(g creditGrant) bool { return g.Customer.ID != customerID }) {
				err = readFault(a, errors.New("the list holds another customer's grant"))
			}
			return err
		})
	}
	if err := parallel(reads...); err != nil {
		return billing.BalancePage{}, err
	}
	var page billing.BalancePage
	if c.Currency != "" {
		page.Balances = []billing.Money{{Amount: c.Balance, Currency: c.Currency}}
	}
	if at == "" {
		if page.Grants, err = p.grants(ctx, customerID, grants.Data, credits, ans.now(c.TestClock)); err != nil {
			return billing.BalancePage{}, err
		}
	}
	page.Entries, page.Newer, page.Older = merge(place, newer, [2]part{moves, credits}, limit, at == "")
	return page, nil
}

// merge makes a page of what was read of both lists.
func merge(place cursor, newer bool, parts [2]part, limit int, first bool) (entries []billing.BalanceEntry, toNewer, toOlder string) {
	both := slices.Concat(parts[0].entries, parts[1].entries)
	slices.SortStableFunc(both, func(a, b billing.BalanceEntry) int { return b.Time.Compare(a.Time) })
	more := parts[0].more || parts[1].more || len(both) > limit
	if newer {
		entries = both[max(len(both)-limit, 0):]
	} else {
		entries = both[:min(limit, len(both))]
	}
	if len(entries) == 0 {
		return nil, "", ""
	}
	var up, down cursor // what is newer than the page, and what is older
	for i, part := range parts {
		mine := func(e billing.BalanceEntry) bool {
			return slices.ContainsFunc(entries, func(x billing.BalanceEntry) bool { return x.ID == e.ID })
		}
		begin := slices.IndexFunc(part.entries, mine)
		end := -1
		for n, e := range part.entries {
			if mine(e) {
				end = n
			}
		}
		up[i], down[i] = place[i], place[i]
		if newer {
			down[i] = edge{mode: "a"}
			if n := len(part.entries); n > 0 {
				down[i].id = part.entries[n-1].ID
			}
			if begin >= 0 {
				up[i] = edge{"b", part.entries[begin].ID}
			}
			continue
		}
		if end >= 0 {
			down[i].id = part.entries[end].ID
		}
		switch {
		case len(part.entries) > 0:
			up[i] = edge{"b", part.entries[0].ID}
		case place[i].id != "":
			up[i] = edge{"i", place[i].id}
		default:
			up[i] = edge{mode: "n"}
		}
	}
	if newer || more {
		toOlder = down.String()
	}
	if newer && more || !newer && !first {
		toNewer = up.String()
	}
	return entries, toNewer, toOlder
}

// page is the part of a list's parameters that an edge says.
func (e edge) page(f form, limit int) form {
	f = append(f, [2]string{"limit", itoa(int64(limit))})
	switch {
	case e.mode == "a" && e.id != "":
		f.add("starting_after", e.id)
	case e.mode == "b", e.mode == "i":
		f.add("ending_before", e.id)
	}
	return f
}

// moves reads what moved the customer's balance.
func (p *Provider) moves(ctx context.Context, customerID string, e edge, limit int) (part, error) {
	var l list[balanceTransaction]
	var last balanceTransaction
	if e.mode == "n" {
		return part{}, nil
	}
	reads := []func() error{func() error {
		_, err := p.get(ctx, &l, e.page(nil, limit), "customers", customerID, "balance_transactions")
		return err
	}}
	if e.mode == "i" {
		reads = append(reads, func() error {
			_, err := p.get(ctx, &last, nil, "customers", customerID, "balance_transactions", e.id)
			return err
		})
	}
	if err := parallel(reads...); err != nil {
		return part{}, err
	}
	if e.mode == "i" {
		l.Data = append(l.Data, last)
	}
	out := part{more: l.HasMore}
	for i := range l.Data {
		if t := &l.Data[i]; t.Object != "customer_balance_transaction" || t.Customer.ID != customerID {
			return part{}, notFound("cursor")
		}
		out.entries = append(out.entries, l.Data[i].entry())
	}
	return out, nil
}

// credits reads what moved the customer's credits.
func (p *Provider) credits(ctx context.Context, customerID string, e edge, limit int) (part, error) {
	var l list[creditTransaction]
	var last creditTransaction
	var a *answer
	if e.mode == "n" {
		return part{}, nil
	}
	reads := []func() error{func() (err error) {
		a, err = p.get(ctx, &l, e.page(form{{"customer", customerID}}, limit), "billing", "credit_balance_transactions")
		return err
	}}
	if e.mode == "i" {
		reads = append(reads, func() error {
			// Only its grant says whose it is.
			f := form{}
			f.expand("credit_grant")
			_, err := p.get(ctx, &last, f, "billing", "credit_balance_transactions", e.id)
			if g := last.Grant.Obj; err == nil && (g == nil || g.Customer.ID != customerID) {
				err = notFound("cursor")
			}
			return err
		})
	}
	if err := parallel(reads...); err != nil {
		return part{}, err
	}
	if e.mode == "i" {
		l.Data = append(l.Data, last)
	}
	out := part{more: l.HasMore}
	for i := range l.Data {
		b, err := l.Data[i].entry()
		if err != nil {
			return part{}, readFault(a, err)
		}
		out.entries = append(out.entries, b)
	}
	return out, nil
}

// grants makes the portal's grants. What is left of each comes from all that
// moved credits, where one answer held it, else from a summary of each grant
// that has not ended.
func (p *Provider) grants(ctx context.Context, customerID string, list []creditGrant, credits part, now time.Time) ([]billing.Grant, error) {
	left := map[string]int64{}
	for _, e := range credits.entries {
		left[e.Grant] -= e.Amount.Amount
	}
	if credits.more {
		clear(left)
		var ids []string
		for i := range list {
			if !list[i].ended(now) {
				ids = append(ids, list[i].ID)
			}
		}
		var mu sync.Mutex
		err := limited(ids, func(id string) error {
			var s creditSummary
			f := form{{"customer", customerID}, {"filter[type]", "credit_grant"}, {"filter[credit_grant]", id}}
			if _, err := p.get(ctx, &s, f, "billing", "credit_balance_summary"); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, b := range s.Balances {
				m, _ := b.Ledger.money()
				left[id] += m.Amount
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var out []billing.Grant
	for i := range list {
		g := &list[i]
		amount, ok := g.Amount.money()
		if !ok {
			continue // credits that are not money are not shown
		}
		b := billing.Grant{
			ID: g.ID, Name: g.Name, Paid: g.Category == "paid", Amount: amount, Left: billing.Money{Currency: amount.Currency},
			Effective: g.Effective.time(), Expires: g.Expires.time(), Void: g.VoidedAt != 0,
		}
		if b.Effective.IsZero() {
			b.Effective = g.Created.time()
		}
		if !g.ended(now) {
			b.Left.Amount = left[g.ID]
		}
		out = append(out, b)
	}
	return billing.OrderGrants(out), nil
}
