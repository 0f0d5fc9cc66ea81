package pages

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/invoices"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	invoicesPerPage = 25
	maxCursor       = 512

	fieldCursor = "cursor"
	fieldPage   = "page"
)

// invoicePath takes the rest of a path behind "/invoices/" apart: what is asked
// for and the ids in it.
func invoicePath(rest string) (get func(*visit), arg string, ok bool) {
	parts := strings.Split(rest, "/")
	if !validID(parts[0]) {
		return nil, "", false
	}
	switch {
	case len(parts) == 1:
		return (*visit).invoice, parts[0], true
	case len(parts) == 2 && parts[1] == "pdf":
		return (*visit).invoicePDF, parts[0], true
	case len(parts) == 2 && parts[1] == "receipt":
		return (*visit).paymentReceipt, parts[0], true
	case len(parts) == 4 && parts[1] == "credit-notes" && parts[3] == "pdf" && validID(parts[2]):
		return (*visit).creditNotePDF, parts[0] + "/" + parts[2], true
	}
	return nil, "", false
}

// framed is the account behind a page that shows something else, which can fail
// by itself.
type framed struct {
	snap account.Snapshot
	err  error
}

// frame reads the account beside what the page is about.
func (v *visit) frame() <-chan framed {
	out := make(chan framed, 1)
	go func() {
		f := framed{err: errors.New("reading the account panicked")}
		defer func() {
			if e := recover(); e != nil {
				v.Log.Error("panic while reading an account", zap.String("request_id", v.id), zap.Any("panic", e))
			}
			out <- f
		}()
		f.snap, f.err = v.snapshot()
	}()
	return out
}

// lookIn begins a page with that frame.
func (v *visit) lookIn(f framed) (*look, bool) {
	l := &look{visit: v, acct: &billing.Account{}, cat: v.catalogue(), page: &templates.Page{
		Section: "invoices", SignedIn: true, Customer: v.knownName(), ReturnURL: v.backURL(), CancelURL: v.knownCancelURL(), Banner: v.knownBanner(),
	}}
	if f.err == nil {
		var ok bool
		if l, ok = v.look("invoices", f.snap); !ok {
			return nil, false
		}
		l.page.Banner = l.banner()
	}
	// The time in the frame is the account's, which the page is newer than.
	l.page.RefreshHref = ""
	return l, true
}

// selection is a query over the invoices, as a page's address says it.
type selection struct {
	invoices.Query
	page int
}

func (s *selection) active() bool {
	return strings.TrimSpace(s.Text) != "" || s.Year != 0 || s.Status != "" || s.Subscription != ""
}

// href leads to path with the same selection.
func (s *selection) href(path string, page int) string {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set(templates.FieldSearch, s.Text)
	set(templates.FieldInvoiceStatus, string(s.Status))
	set(templates.FieldSubscription, s.Subscription)
	if s.Year != 0 {
		set(templates.FieldYear, strconv.Itoa(s.Year))
	}
	if page > 1 {
		set(fieldPage, strconv.Itoa(page))
	}
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

// selectionOf reads a selection. It reports false for what no form of ours
// sends.
func selectionOf(f form) (selection, bool) {
	s := selection{page: 1}
	s.Text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return ' '
		}
		return r
	}, f[templates.FieldSearch]))
	if runes := []rune(s.Text); len(runes) > invoices.MaxText {
		s.Text = string(runes[:invoices.MaxText])
	}
	s.Status, s.Subscription = invoices.Status(f[templates.FieldInvoiceStatus]), f[templates.FieldSubscription]
	if s.Status != "" && !slices.Contains(invoices.StatusChoices, s.Status) || s.Subscription != "" && !validID(s.Subscription) {
		return s, false
	}
	number := func(name string, into *int, least, most int64) bool {
		if f[name] == "" {
			return true
		}
		n, ok := parseQuantity(f[name])
		*into = int(n)
		return ok && n >= least && n <= most
	}
	return s, number(templates.FieldYear, &s.Year, 1970, 9999) && number(fieldPage, &s.page, 1, invoices.MaxEntries)
}

// at fills in what the account says about time.
func (s *selection) at(v *visit, f framed) {
	s.Now, s.Location, s.Exponent = v.now, v.Renderer.Location(), v.Corridor.Provider.Capabilities().Exponent
	if f.err == nil && !f.snap.Account.AsOf.IsZero() {
		s.Now = f.snap.Account.AsOf
	}
}

// index prepares the index of the customer's invoices and reads it, together
// with the account. The view is nil where there is none; err is why the newest
// invoices could not be read.
func (v *visit) index() (view *invoices.View, f framed, err error) {
	ctx := v.r.Context()
	frame := v.frame()
	read := func() {
		again, err := v.Invoices.View(ctx, v.sess.Customer)
		if err != nil {
			v.Log.Warn("could not read the index of invoices", zap.String("request_id", v.id), zap.Error(err))
			return
		}
		view = again
	}
	read()
	openCtx := ctx
	if view != nil {
		// What is there is shown rather than waited for.
		var cancel context.CancelFunc
		openCtx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	checked, err := v.Invoices.Open(openCtx, v.sess.Customer, v.rec.Version)
	if checked {
		read()
	}
	f = <-frame
	if checked && view != nil && f.err == nil && !f.snap.Stale {
		doubtCtx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		changed, err := v.Invoices.Doubt(doubtCtx, v.sess.Customer, view, &f.snap.Account)
		if err != nil {
			v.Log.Warn("could not look at doubtful invoices again", zap.String("request_id", v.id), zap.Error(err))
		}
		if changed {
			read()
		}
	}
	return view, f, err
}

// invoices is GET /invoices: a list with search, totals and pages out of the
// index, and the provider's own pages until every invoice is in it.
func (v *visit) invoices() {
	if !v.mayView(policy.ViewInvoices) {
		return
	}
	cursor := v.form[fieldCursor]
	sel, ok := selectionOf(v.form)
	if !ok || !validCursor(cursor) {
		v.notFound()
		return
	}
	if v.form[refreshField] != "" {
		ctx, cancel := context.WithTimeout(v.r.Context(), patience)
		defer cancel()
		if err := v.Invoices.Refresh(ctx, v.sess.Customer, v.rec.Version, refreshEvery); err != nil {
			v.Log.Warn("could not read invoices anew", zap.String("request_id", v.id), zap.Error(err))
		}
		v.refreshed()
		return
	}
	view, f, openErr := v.index()
	if openErr != nil {
		v.Log.Warn("could not read the newest invoices", zap.String("request_id", v.id), zap.Error(openErr))
	}
	if billing.FaultOf(openErr) == billing.NotFound {
		v.notFound()
		return
	}
	sel.at(v, f)
	body, status := &templates.Invoices{Now: sel.Now}, http.StatusOK
	fromIndex := view != nil && cursor == "" && (view.Complete || sel.active() || openErr != nil)
	if !fromIndex && (!sel.active() || openErr == nil) {
		list, err := v.Corridor.Provider.Invoices(v.r.Context(), v.sess.Customer, cursor, invoicesPerPage)
		switch {
		case billing.FaultOf(err) == billing.NotFound:
			v.notFound()
			return
		case err != nil:
			v.Log.Warn("could not list invoices", zap.String("request_id", v.id), zap.Error(err))
			body.Failed = true
		}
		body.Invoices = list.Invoices
		body.NewerHref, body.OlderHref = cursorHref(list.Newer), cursorHref(list.Older)
	} else if !fromIndex {
		body.Failed = true
	}
	l, ok := v.lookIn(f)
	if !ok {
		return
	}
	if view != nil {
		v.listed(l, body, view, &sel, fromIndex)
	}
	body.Pay = f.err == nil && l.permitCustomer(policy.PayInvoices).Allowed
	switch {
	case body.Failed:
		status = http.StatusServiceUnavailable
		l.page.RefreshHref = v.r.URL.Path
	case fromIndex:
		l.page.AsOf, l.page.Stale = view.AsOf, openErr != nil
		if !sel.active() {
			l.page.RefreshHref = v.r.URL.Path + "?" + refreshField + "=1"
		}
	}
	l.page.Body = body
	v.page(status, v.locale(l.acct.Customer.Locale), l.page)
}

func cursorHref(cursor string) string {
	if cursor == "" {
		return ""
	}
	return templates.PathInvoices + "?" + fieldCursor + "=" + url.QueryEscape(cursor)
}

// listed fills in what the index says: the form, the totals, the downloads, and
// where asked the list.
func (v *visit) listed(l *look, body *templates.Invoices, view *invoices.View, sel *selection, list bool) {
	s := &templates.InvoiceSearch{
		Active: sel.active(), Text: sel.Text, Year: sel.Year, Status: string(sel.Status), Subscription: sel.Subscription,
		Years: view.Years(sel.Location), Subscriptions: l.subscriptionChoices(view), Reading: view.Reading,
	}
	if sel.Year != 0 && !slices.Contains(s.Years, sel.Year) {
		s.Years = append([]int{sel.Year}, s.Years...)
	}
	for _, c := range invoices.StatusChoices {
		s.Statuses = append(s.Statuses, string(c))
	}
	if view.Complete {
		year := sel.Year
		if year == 0 {
			year = sel.Now.In(sel.Location).Year()
		}
		t := view.Totals(year, sel.Now, sel.Location)
		body.Totals = &templates.InvoiceTotals{Open: t.Open, Overdue: t.Overdue, Paid: t.Paid, Year: t.Year}
	} else {
		s.IndexedTo = view.IndexedTo
	}
	body.Search = s
	found := view.Search(sel.Query)
	body.Downloads = len(found)
	if len(found) > 0 && !body.Failed {
		body.CSVHref = sel.href(templates.PathInvoicesCSV, 1)
		switch n := len(withDocument(found)); {
		case n > zipDocuments:
			body.ZIPMost = zipDocuments
		case n > 0:
			body.ZIPHref = sel.href(templates.PathInvoicesZIP, 1)
		}
	}
	if !list || len(found) == 0 {
		return
	}
	page := min(sel.page, (len(found)+invoicesPerPage-1)/invoicesPerPage)
	from, to := (page-1)*invoicesPerPage, min(page*invoicesPerPage, len(found))
	for _, e := range found[from:to] {
		body.Invoices = append(body.Invoices, e.Invoice())
	}
	body.Count, body.From, body.To = len(found), from+1, to
	if page > 1 {
		body.NewerHref = sel.href(templates.PathInvoices, page-1)
	}
	if to < len(found) {
		body.OlderHref = sel.href(templates.PathInvoices, page+1)
	}
}

// subscriptionChoices are the account's subscriptions that have invoices, where
// there is a choice.
func (l *look) subscriptionChoices(view *invoices.View) []templates.SubscriptionChoice {
	with := view.Subscriptions()
	var out []templates.SubscriptionChoice
	names := map[string]int{}
	for i := range l.acct.Subscriptions {
		s := &l.acct.Subscriptions[i]
		if name := l.planName(s.Items); name != "" && with[s.ID] {
			out = append(out, templates.SubscriptionChoice{ID: s.ID, Name: name, Since: s.Created})
			names[name]++
		}
	}
	for i := range out {
		if names[out[i].Name] == 1 {
			out[i].Since = time.Time{}
		}
	}
	if len(out) < 2 {
		return nil
	}
	return out
}

func validCursor(s string) bool {
	return len(s) <= maxCursor && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// detail reads one invoice and the account. Where it cannot, it answers itself.
func (v *visit) detail() (billing.InvoiceDetail, *look, bool) {
	if !v.mayView(policy.ViewInvoices) {
		return billing.InvoiceDetail{}, nil, false
	}
	frame := v.frame()
	inv, err := v.Corridor.Provider.Invoice(v.r.Context(), v.sess.Customer, v.arg)
	f := <-frame
	switch {
	case billing.FaultOf(err) == billing.NotFound || err == nil && inv.ID != v.arg:
		v.notFound()
	case err != nil:
		v.providerDown(err)
	default:
		if l, ok := v.lookIn(f); ok {
			return inv, l, true
		}
	}
	return inv, nil, false
}

// invoice is GET /invoices/{id}.
func (v *visit) invoice() {
	inv, l, ok := v.detail()
	if !ok {
		return
	}
	body := &templates.Invoice{Invoice: inv}
	if s, ok := l.acct.Subscription(inv.Subscription); ok {
		body.Plan = l.planName(s.Items)
	}
	if inv.Debt() && !inv.Processing && l.acct.Customer.ID != "" && l.permitCustomer(policy.PayInvoices).Allowed {
		body.PayHref = templates.PayPath(inv.ID)
	}
	if paid, payments := paidOn(&inv); paid.Amount > 0 || len(payments) > 0 {
		body.ReceiptHref = templates.ReceiptPath(inv.ID)
	}
	l.page.Body = body
	v.page(http.StatusOK, v.locale(l.acct.Customer.Locale), l.page)
}

// paymentReceipt is GET /invoices/{id}/receipt.
func (v *visit) paymentReceipt() {
	inv, l, ok := v.detail()
	if !ok {
		return
	}
	paid, payments := paidOn(&inv)
	if paid.Amount <= 0 && len(payments) == 0 {
		v.notFound()
		return
	}
	l.page.Body = &templates.PaymentReceipt{Invoice: inv, Payments: payments, Paid: paid}
	v.page(http.StatusOK, v.locale(l.acct.Customer.Locale), l.page)
}

// paidOn is what was paid on an invoice and not given back, and the payments
// that worked, the first one first. Where the provider knows of no payment (it
// was paid elsewhere) it is what the invoice says.
func paidOn(inv *billing.InvoiceDetail) (billing.Money, []billing.Payment) {
	var worked []billing.Payment
	sum := billing.Money{Currency: inv.Total.Currency}
	for _, p := range slices.Backward(inv.Payments) {
		if p.Status == billing.PaymentSucceeded || p.Status == billing.PaymentRefunded {
			worked = append(worked, p)
			sum.Amount += p.Amount.Amount - p.Refunded.Amount
		}
	}
	if len(worked) == 0 {
		return inv.AmountPaid, nil
	}
	return sum, worked
}
