package sandbox

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// GrantCategory is Stripe's billing.credit_grant.category.
type GrantCategory string

// A grant was bought or given.
const (
	GrantPaid        GrantCategory = "paid"
	GrantPromotional GrantCategory = "promotional"
)

// CreditGrant is Stripe's billing.credit_grant: money for what metered prices
// bill, and for nothing else.
type CreditGrant struct {
	ID          string        `json:"id"`
	Created     time.Time     `json:"created"`
	Updated     time.Time     `json:"updated"`
	Customer    string        `json:"customer"`
	Name        string        `json:"name"`
	Category    GrantCategory `json:"category"`
	Amount      int64         `json:"amount"`
	Currency    string        `json:"currency"`
	EffectiveAt time.Time     `json:"effective_at"`
	ExpiresAt   time.Time     `json:"expires_at"` // zero: never
	Priority    int           `json:"priority"`   // 0 is used first, 100 last
	// Prices are the metered prices that it pays for; none means all.
	Prices   []string  `json:"prices,omitempty"`
	VoidedAt time.Time `json:"voided_at"`
	// Left is what can still be used, or could be from EffectiveAt on: Stripe's
	// credit_balance_summary of the grant.
	Left int64 `json:"left"`
}

// GrantParams make a credit grant.
type GrantParams struct {
	Customer    string        `json:"customer"`
	Name        string        `json:"name,omitempty"`
	Category    GrantCategory `json:"category,omitempty"` // default GrantPaid
	Amount      int64         `json:"amount"`             // more than zero
	Currency    string        `json:"currency"`
	EffectiveAt time.Time     `json:"effective_at,omitzero"` // default: now
	ExpiresAt   time.Time     `json:"expires_at,omitzero"`   // default: never
	Priority    *int          `json:"priority,omitempty"`    // default 50
	Prices      []string      `json:"prices,omitempty"`
}

// CreditType is Stripe's credit.type or debit.type of a
// billing.credit_balance_transaction.
type CreditType string

// What moves credits.
const (
	CreditsGranted    CreditType = "credits_granted"
	CreditsReinstated CreditType = "credits_application_invoice_voided" //nolint:gosec // a word of Stripe's
	CreditsApplied    CreditType = "credits_applied"
	CreditsExpired    CreditType = "credits_expired"
	CreditsVoided     CreditType = "credits_voided"
)

// Debit reports whether it takes credits away.
func (t CreditType) Debit() bool { return t != CreditsGranted && t != CreditsReinstated }

// CreditTransaction is Stripe's billing.credit_balance_transaction.
type CreditTransaction struct {
	ID          string     `json:"id"`
	Created     time.Time  `json:"created"`
	EffectiveAt time.Time  `json:"effective_at"`
	Customer    string     `json:"customer"`
	Grant       string     `json:"credit_grant"`
	Type        CreditType `json:"type"`
	Amount      int64      `json:"amount"` // more than zero
	Currency    string     `json:"currency"`
	Invoice     string     `json:"invoice,omitempty"`
	Line        string     `json:"invoice_line_item,omitempty"`
}

// LineCredit is one of an invoice line's pretax_credit_amounts.
type LineCredit struct {
	Amount      int64  `json:"amount"`
	Grant       string `json:"credit_grant"`
	Transaction string `json:"credit_balance_transaction"` // "" in previews
}

// usable reports whether g can pay for a line at a time.
func (g *CreditGrant) usable(now time.Time, currency, price string) bool {
	return g.Left > 0 && g.VoidedAt.IsZero() && !g.EffectiveAt.After(now) && (g.ExpiresAt.IsZero() || g.ExpiresAt.After(now)) &&
		g.Currency == currency && (len(g.Prices) == 0 || slices.Contains(g.Prices, price))
}

// CreateGrant is POST /v1/billing/credit_grants.
func (l *Ledger) CreateGrant(ctx context.Context, c Call, p GrantParams) (CreditGrant, error) {
	return change(ctx, l, c, "credit_grant.create", p, func(w *work) (CreditGrant, error) { return w.createGrant(p) })
}

func (w *work) createGrant(p GrantParams) (CreditGrant, error) {
	g := CreditGrant{
		ID: w.id("credgr"), Created: w.now, Updated: w.now, Customer: p.Customer, Name: p.Name, Category: cmp.Or(p.Category, GrantPaid), Amount: p.Amount, Left: p.Amount,
		Currency: p.Currency, EffectiveAt: p.EffectiveAt.UTC().Truncate(time.Second), ExpiresAt: p.ExpiresAt.UTC().Truncate(time.Second), Priority: 50, Prices: slices.Clone(p.Prices),
	}
	if p.EffectiveAt.IsZero() {
		g.EffectiveAt = w.now
	}
	if p.Priority != nil {
		g.Priority = *p.Priority
	}
	if p.ExpiresAt.IsZero() {
		g.ExpiresAt = time.Time{}
	}
	switch {
	case g.Category != GrantPaid && g.Category != GrantPromotional:
		return g, invalid("category", "Invalid category: must be one of paid or promotional")
	case g.Amount < 1 || g.Amount > 1e12:
		return g, invalid("amount[monetary][value]", "The amount must be positive and not huge.")
	case len(g.Currency) != 3 || strings.ToLower(g.Currency) != g.Currency:
		return g, invalid("amount[monetary][currency]", "Invalid currency: %q.", g.Currency)
	case len(g.Name) > 100:
		return g, invalid("name", "A name has at most 100 characters.")
	case g.Priority < 0 || g.Priority > 100:
		return g, invalid("priority", "A priority is 0 to 100.")
	case g.EffectiveAt.Before(w.now):
		return g, invalid("effective_at", "The effective time must not be in the past.")
	case !g.ExpiresAt.IsZero() && !g.ExpiresAt.After(g.EffectiveAt):
		return g, invalid("expires_at", "The expiry must be after the effective time.")
	}
	if _, err := get[Customer](w, "customer", g.Customer); err != nil {
		return g, err
	}
	for _, id := range g.Prices {
		if pr, err := get[Price](w, "price", id); err != nil {
			return g, err
		} else if pr.Meter == "" {
			return g, invalid("applicability_config[scope][prices]", "Credit grants apply to metered prices only.")
		}
	}
	if err := w.schedule("credit_grant", g.ID, time.Time{}, g.ExpiresAt); err != nil {
		return g, err
	}
	if err := w.index("credit_grant", g.Customer, g.ID, g.Created); err != nil {
		return g, err
	}
	if err := write(w.tx, "credit_grant", g.ID, g); err != nil {
		return g, err
	}
	if _, err := w.moveCredits(&g, CreditsGranted, g.Amount, "", ""); err != nil {
		return g, err
	}
	return g, w.effect("credit_grant.create", g.Customer, g.ID)
}

// moveCredits enters a transaction of g. It does not change g.
func (w *work) moveCredits(g *CreditGrant, kind CreditType, amount int64, invoice, line string) (CreditTransaction, error) {
	t := CreditTransaction{
		ID: w.id("cbtxn_test"), Created: w.now, EffectiveAt: w.now, Customer: g.Customer, Grant: g.ID, Type: kind, Amount: amount, Currency: g.Currency, Invoice: invoice, Line: line,
	}
	if kind == CreditsGranted {
		t.EffectiveAt = g.EffectiveAt
	}
	if err := write(w.tx, "credit_transaction", t.ID, t); err != nil {
		return t, err
	}
	return t, w.index("credit_transaction", g.Customer, t.ID, t.Created)
}

// takeAway ends a grant: what is left of it goes.
func (w *work) takeAway(g *CreditGrant, kind CreditType, effect string) error {
	if g.Left > 0 {
		if _, err := w.moveCredits(g, kind, g.Left, "", ""); err != nil {
			return err
		}
	}
	g.Left, g.Updated = 0, w.now
	if err := write(w.tx, "credit_grant", g.ID, g); err != nil {
		return err
	}
	return w.effect(effect, g.Customer, g.ID)
}

// grantDue lets a grant expire.
func (w *work) grantDue(id string) error {
	g, err := get[CreditGrant](w, "credit_grant", id)
	if err != nil {
		return err
	}
	if err := w.schedule("credit_grant", g.ID, g.ExpiresAt, time.Time{}); err != nil {
		return err
	}
	return w.takeAway(&g, CreditsExpired, "credit_grant.expire")
}

// openGrant reads a grant that is neither voided nor expired.
func (w *work) openGrant(id string) (CreditGrant, error) {
	g, err := get[CreditGrant](w, "credit_grant", id)
	if err == nil && (!g.VoidedAt.IsZero() || !g.ExpiresAt.IsZero() && !g.ExpiresAt.After(w.now)) {
		err = invalid("id", "This credit grant has ended.")
	}
	return g, err
}

// ExpireGrant is POST /v1/billing/credit_grants/{id}/expire.
func (l *Ledger) ExpireGrant(ctx context.Context, c Call, id string) (CreditGrant, error) {
	return change(ctx, l, c, "credit_grant.expire", id, func(w *work) (CreditGrant, error) {
		g, err := w.openGrant(id)
		if err != nil {
			return g, err
		}
		if err := w.schedule("credit_grant", g.ID, g.ExpiresAt, time.Time{}); err != nil {
			return g, err
		}
		g.ExpiresAt = w.now
		return g, w.takeAway(&g, CreditsExpired, "credit_grant.expire")
	})
}

// VoidGrant is POST /v1/billing/credit_grants/{id}/void. One that was used
// before is refused; it can expire.
func (l *Ledger) VoidGrant(ctx context.Context, c Call, id string) (CreditGrant, error) {
	return change(ctx, l, c, "credit_grant.void", id, func(w *work) (CreditGrant, error) {
		g, err := w.openGrant(id)
		if err != nil {
			return g, err
		}
		if g.Left != g.Amount {
			return g, invalid("id", "A credit grant that was applied to an invoice cannot be voided.")
		}
		if err := w.schedule("credit_grant", g.ID, g.ExpiresAt, time.Time{}); err != nil {
			return g, err
		}
		g.VoidedAt = w.now
		return g, w.takeAway(&g, CreditsVoided, "credit_grant.void")
	})
}

// Grant reads a credit grant.
func (l *Ledger) Grant(ctx context.Context, id string) (CreditGrant, error) {
	return read(ctx, l, func(w *work) (CreditGrant, error) { return get[CreditGrant](w, "credit_grant", id) })
}

// Grants lists a customer's credit grants, newest first.
func (l *Ledger) Grants(ctx context.Context, customer string) ([]CreditGrant, error) {
	return read(ctx, l, func(w *work) ([]CreditGrant, error) { return listOf[CreditGrant](w, "credit_grant", customer) })
}

// CreditTransaction reads a movement of credits.
func (l *Ledger) CreditTransaction(ctx context.Context, id string) (CreditTransaction, error) {
	return read(ctx, l, func(w *work) (CreditTransaction, error) { return get[CreditTransaction](w, "credit_transaction", id) })
}

// CreditTransactions lists what moved a customer's credits, newest first.
func (l *Ledger) CreditTransactions(ctx context.Context, customer string) ([]CreditTransaction, error) {
	return read(ctx, l, func(w *work) ([]CreditTransaction, error) {
		return listOf[CreditTransaction](w, "credit_transaction", customer)
	})
}

// BalanceTransaction reads a movement of a customer's balance.
func (l *Ledger) BalanceTransaction(ctx context.Context, customer, id string) (BalanceTransaction, error) {
	return read(ctx, l, func(w *work) (BalanceTransaction, error) {
		t, err := get[BalanceTransaction](w, "balance_transaction", id)
		if err == nil && t.Customer != customer {
			err = missing("balance_transaction", id)
		}
		return t, err
	})
}

// applyCredits lets the customer's grants pay for the metered lines of inv,
// before tax and before the balance, and works out its sums anew. The order is
// Stripe's (docs.stripe.com/billing/subscriptions/usage-based/billing-credits):
// priority, what expires first, what was given before what was bought, what
// was effective first, what was made first. Without enter nothing is written:
// that is how a preview says what would be due.
func (w *work) applyCredits(inv *Invoice, enter bool) error {
	if !slices.ContainsFunc(inv.Lines, func(l InvoiceLine) bool { return l.Metered && l.Amount > 0 }) {
		return nil
	}
	grants, err := listOf[CreditGrant](w, "credit_grant", inv.Customer)
	if err != nil {
		return err
	}
	slices.Reverse(grants) // oldest first
	never := time.Unix(1<<40, 0)
	end := func(g CreditGrant) time.Time {
		if g.ExpiresAt.IsZero() {
			return never
		}
		return g.ExpiresAt
	}
	slices.SortStableFunc(grants, func(a, b CreditGrant) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), end(a).Compare(end(b)),
			cmp.Compare(boolInt(a.Category == GrantPaid), boolInt(b.Category == GrantPaid)), a.EffectiveAt.Compare(b.EffectiveAt))
	})
	used := map[string]bool{}
	for i := range inv.Lines {
		l := &inv.Lines[i]
		open := l.Amount
		for n := range grants {
			g := &grants[n]
			if !l.Metered || open <= 0 || !g.usable(w.now, inv.Currency, l.Price) {
				continue
			}
			c := LineCredit{Amount: min(open, g.Left), Grant: g.ID}
			if enter {
				t, err := w.moveCredits(g, CreditsApplied, c.Amount, inv.ID, l.ID)
				if err != nil {
					return err
				}
				c.Transaction = t.ID
			}
			open -= c.Amount
			g.Left -= c.Amount
			g.Updated = w.now
			used[g.ID] = true
			l.Credits = append(slices.Clone(l.Credits), c)
		}
	}
	inv.sum()
	for n := range grants {
		if g := &grants[n]; enter && used[g.ID] {
			if err := write(w.tx, "credit_grant", g.ID, g); err != nil {
				return err
			}
		}
	}
	return nil
}

// reinstateCredits gives back what grants paid of a voided invoice. What is
// back in a grant that has expired meanwhile expires at once.
func (w *work) reinstateCredits(inv *Invoice) error {
	for _, l := range inv.Lines {
		for _, c := range l.Credits {
			g, err := get[CreditGrant](w, "credit_grant", c.Grant)
			if err != nil {
				return err
			}
			if _, err := w.moveCredits(&g, CreditsReinstated, c.Amount, inv.ID, l.ID); err != nil {
				return err
			}
			g.Left, g.Updated = g.Left+c.Amount, w.now
			if !g.ExpiresAt.IsZero() && !g.ExpiresAt.After(w.now) {
				if _, err := w.moveCredits(&g, CreditsExpired, c.Amount, "", ""); err != nil {
					return err
				}
				g.Left -= c.Amount
			}
			if err := write(w.tx, "credit_grant", g.ID, g); err != nil {
				return err
			}
		}
	}
	return nil
}

// Balance implements billing.Provider. A cursor is "older:" or "newer:" and the
// id of the entry at that end of the page.
func (p *Provider) Balance(ctx context.Context, customer, cursor string, limit int) (billing.BalancePage, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return billing.BalancePage{}, err
	}
	direction, edge, ok := strings.Cut(cursor, ":")
	if cursor != "" && (!ok || edge == "" || direction != "older" && direction != "newer") {
		return billing.BalancePage{}, notFound("cursor")
	}
	limit = min(max(limit, 1), 100)
	page, err := read(ctx, p.ledger, func(w *work) (billing.BalancePage, error) {
		var page billing.BalancePage
		c, err := get[Customer](w, "customer", customer)
		if err != nil {
			return page, err
		}
		if c.Currency != "" {
			page.Balances = []billing.Money{{Amount: c.Balance, Currency: c.Currency}}
		}
		if cursor == "" {
			if page.Grants, err = w.grants(customer); err != nil {
				return page, err
			}
		}
		entries, err := w.entries(customer)
		if err != nil {
			return page, err
		}
		from, to := 0, min(limit, len(entries))
		if cursor != "" {
			at := slices.IndexFunc(entries, func(e billing.BalanceEntry) bool { return e.ID == edge })
			switch {
			case at < 0:
				return page, notFound("cursor")
			case direction == "older":
				from, to = at+1, min(at+1+limit, len(entries))
			default:
				from, to = max(at-limit, 0), at
			}
		}
		page.Entries = entries[from:to]
		if len(page.Entries) == 0 {
			return page, nil
		}
		if to < len(entries) {
			page.Older = "older:" + entries[to-1].ID
		}
		if from > 0 {
			page.Newer = "newer:" + entries[from].ID
		}
		return page, nil
	})
	return page, readError(err)
}

// grants are a customer's, those that can be used first, the newest of each
// kind first.
func (w *work) grants(customer string) ([]billing.Grant, error) {
	all, err := listOf[CreditGrant](w, "credit_grant", customer)
	list := slices.Grow([]billing.Grant(nil), len(all))
	for _, g := range all {
		list = append(list, billing.Grant{
			ID: g.ID, Name: g.Name, Paid: g.Category == GrantPaid, Amount: billing.Money{Amount: g.Amount, Currency: g.Currency},
			Left: billing.Money{Amount: g.Left, Currency: g.Currency}, Effective: g.EffectiveAt, Expires: g.ExpiresAt, Void: !g.VoidedAt.IsZero(),
		})
	}
	return billing.OrderGrants(list), err
}

// entries are all that moved a customer's balance and credits, newest first.
// Of one moment the balance's come first: grants are used up before it.
func (w *work) entries(customer string) ([]billing.BalanceEntry, error) {
	var list []billing.BalanceEntry
	moves, err := listOf[BalanceTransaction](w, "balance_transaction", customer)
	if err != nil {
		return nil, err
	}
	for _, t := range moves {
		list = append(list, billing.BalanceEntry{
			ID: t.ID, Time: t.Created, Type: t.Type, Amount: billing.Money{Amount: t.Amount, Currency: t.Currency},
			After: &billing.Money{Amount: t.EndingBalance, Currency: t.Currency}, Invoice: t.Invoice,
		})
	}
	credits, err := listOf[CreditTransaction](w, "credit_transaction", customer)
	for _, t := range credits {
		e := billing.BalanceEntry{ID: t.ID, Time: t.Created, Type: string(t.Type), Amount: billing.Money{Amount: -t.Amount, Currency: t.Currency}, Invoice: t.Invoice, Grant: t.Grant}
		if t.Type.Debit() {
			e.Amount = e.Amount.Neg()
		}
		list = append(list, e)
	}
	slices.SortStableFunc(list, func(a, b billing.BalanceEntry) int { return b.Time.Compare(a.Time) })
	return list, err
}
