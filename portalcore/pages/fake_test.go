package pages

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shopspring/decimal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/invoices"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	origin    = "https://billing.example.com"
	host      = "billing.example.com"
	vendorURL = "https://app.example.com/settings"
)

// fake is a provider with two customers, which counts what reaches it.
type fake struct {
	mu       sync.Mutex
	accounts map[string]*billing.Account
	effects  []string // of Execute, one per key
	keys     map[string]billing.Result
	reads    int
	docs     int
	previews int
	// down fails every call; fault and waits are the next Execute's answer.
	down   bool
	fault  billing.Fault
	waits  *billing.Result
	refuse string // code of a refused preview
	goes   bool   // the customer did their part
	panics bool
	hangs  bool // Account answers when its caller gives up
	lists  map[string]billing.InvoicePage
	// onUsage and onBalance answer for a customer that there is.
	onUsage   func(context.Context, billing.UsageQuery) (billing.Usage, error)
	onBalance func(cursor string) (billing.BalancePage, error)
	// declines and asks say what becomes of the payment of an invoice: the code
	// of a no, or an answer that is not done.
	declines map[string]string
	asks     map[string]*billing.Result
	pdf      []byte
	pdfLen   int64
	// details are what Invoice answers, by id; docErr and docWait what Document
	// does for one.
	details map[string]detail
	docErr  map[string]error
	docWait func(ctx context.Context, invoice string)
	// all, where it is set, are the first customer's invoices, newest first.
	all []billing.Invoice
}

// detail is an invoice with its customer.
type detail struct {
	customer string
	billing.InvoiceDetail
}

func price(id string, cents int64, interval billing.Interval) billing.Price {
	return billing.Price{
		ID: id, Product: "prod_" + id, ProductName: "Product " + id, Currency: "eur",
		UnitAmount: decimal.NewFromInt(cents), Interval: interval, IntervalCount: 1, Active: true,
	}
}

var (
	basic  = price("price_basic", 1900, billing.Month)
	team   = price("price_team", 4900, billing.Month)
	yearly = price("price_team_year", 49000, billing.Year)
	legacy = price("price_legacy", 1500, billing.Month)
)

func newAccount(id, sub string, p billing.Price, now time.Time) *billing.Account {
	card := billing.PaymentMethod{ID: "pm_" + id, Type: "card", Brand: "visa", Last4: "4242", ExpMonth: 6, ExpYear: now.Year()}
	end := now.AddDate(0, 0, 17)
	return &billing.Account{
		Customer: billing.Customer{
			ID: id, Name: "Company " + id, Email: id + "@example.com", Balance: billing.Money{Currency: "eur"},
			Address: billing.Address{Line1: "1 High Street", Country: "GB"}, DefaultPaymentMethod: card.ID, Version: "c1",
		},
		Subscriptions: []billing.Subscription{{
			ID: sub, Status: billing.Active, Currency: "eur", Created: now.AddDate(0, -2, 0), Version: "s1",
			Items: []billing.Item{{ID: "si_" + sub, Price: p, Quantity: 4, PeriodStart: now.AddDate(0, 0, -14), PeriodEnd: end}},
		}},
		PaymentMethods: []billing.PaymentMethod{card, {ID: "pm2_" + id, Type: "card", Brand: "mastercard", Last4: "4444", ExpMonth: 1, ExpYear: now.Year() + 3}},
		Invoices: []billing.Invoice{{
			ID: "in_" + id, Number: "INV-" + id, Status: billing.InvoicePaid, Created: now.AddDate(0, 0, -14), Description: "Subscription",
			Total: billing.Money{Amount: 7600, Currency: "eur"}, AmountPaid: billing.Money{Amount: 7600, Currency: "eur"}, HasDocument: true,
		}},
		Upcoming: []billing.Upcoming{{
			Subscription: sub, Due: end, Total: billing.Money{Amount: 7600, Currency: "eur"}, AmountDue: billing.Money{Amount: 7600, Currency: "eur"},
			Subtotal: billing.Money{Amount: 7600, Currency: "eur"}, Tax: billing.Money{Currency: "eur"},
		}},
		AsOf: now,
	}
}

func (f *fake) Capabilities() billing.Capabilities {
	return billing.Capabilities{Name: "Payco", KeyWindow: 23 * time.Hour, Exponent: func(string) int { return 2 }}
}

func (f *fake) Prices(context.Context) ([]billing.Price, error) {
	return []billing.Price{basic, team, yearly, legacy}, nil
}

func (f *fake) up() error {
	if f.down {
		return &billing.Error{Fault: billing.Unavailable, Err: errors.New("connection refused")}
	}
	return nil
}

func (f *fake) get(id string) (*billing.Account, error) {
	if err := f.up(); err != nil {
		return nil, err
	}
	if a, ok := f.accounts[id]; ok {
		return a, nil
	}
	return nil, &billing.Error{Fault: billing.NotFound, Param: id}
}

func (f *fake) Find(_ context.Context, id string) (billing.Customer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, err := f.get(id)
	if err != nil {
		return billing.Customer{}, err
	}
	return a.Customer, nil
}

func (f *fake) Account(ctx context.Context, id string) (billing.Account, error) {
	f.mu.Lock()
	if f.hangs {
		f.mu.Unlock()
		<-ctx.Done()
		return billing.Account{}, &billing.Error{Fault: billing.Unavailable, Err: ctx.Err()}
	}
	defer f.mu.Unlock()
	f.reads++
	a, err := f.get(id)
	if err != nil {
		return billing.Account{}, err
	}
	raw, _ := json.Marshal(a)
	var c billing.Account
	return c, json.Unmarshal(raw, &c)
}

func (f *fake) Invoices(_ context.Context, id, cursor string, limit int) (billing.InvoicePage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, err := f.get(id)
	if err != nil {
		return billing.InvoicePage{}, err
	}
	if f.all != nil && id == "cus_a" {
		from := 0
		if cursor != "" {
			from, _ = strconv.Atoi(cursor)
		}
		to := min(from+limit, len(f.all))
		p := billing.InvoicePage{Invoices: slices.Clone(f.all[from:to])}
		if to < len(f.all) {
			p.Older = strconv.Itoa(to)
		}
		return p, nil
	}
	if cursor == "" {
		return billing.InvoicePage{Invoices: a.Invoices, Older: "older=1&x"}, nil
	}
	if p, ok := f.lists[cursor]; ok {
		return p, nil
	}
	return billing.InvoicePage{}, &billing.Error{Fault: billing.NotFound, Param: "cursor"}
}

func (f *fake) Search(context.Context, billing.CustomerQuery) ([]billing.Customer, error) {
	return nil, errors.New("not asked for here")
}

func (f *fake) Invoice(_ context.Context, id, invoice string) (billing.InvoiceDetail, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, err := f.get(id)
	if err != nil {
		return billing.InvoiceDetail{}, err
	}
	if d, ok := f.details[invoice]; ok && d.customer == id {
		return d.InvoiceDetail, nil
	}
	mine := a.Invoices
	if id == "cus_a" {
		mine = append(slices.Clone(mine), f.all...)
	}
	for _, inv := range mine {
		if inv.ID == invoice {
			return billing.InvoiceDetail{Invoice: inv, Name: a.Customer.Name}, nil
		}
	}
	return billing.InvoiceDetail{}, &billing.Error{Fault: billing.NotFound, Param: invoice}
}

func (f *fake) Usage(ctx context.Context, id string, q billing.UsageQuery) (billing.Usage, error) {
	f.mu.Lock()
	acct, err := f.get(id)
	f.mu.Unlock()
	if err != nil {
		return billing.Usage{}, err
	}
	if _, ok := acct.Subscription(q.Subscription); !ok {
		return billing.Usage{}, &billing.Error{Fault: billing.NotFound, Param: q.Subscription}
	}
	return f.onUsage(ctx, q)
}

func (f *fake) Balance(_ context.Context, id, cursor string, _ int) (billing.BalancePage, error) {
	f.mu.Lock()
	_, err := f.get(id)
	f.mu.Unlock()
	if err != nil {
		return billing.BalancePage{}, err
	}
	return f.onBalance(cursor)
}

func (f *fake) Document(ctx context.Context, id string, ref billing.DocumentRef) (billing.Document, error) {
	invoice := ref.Invoice
	if f.docWait != nil {
		f.docWait(ctx, invoice)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.docs++
	if f.panics {
		panic("secret of the provider")
	}
	a, err := f.get(id)
	if err != nil {
		return billing.Document{}, err
	}
	if err := f.docErr[invoice]; err != nil {
		return billing.Document{}, err
	}
	mine := a.Invoices
	if id == "cus_a" {
		mine = append(slices.Clone(mine), f.all...)
	}
	for _, inv := range mine {
		if inv.ID == invoice && (ref.CreditNote == "" || ref.CreditNote == "cn_a") {
			return billing.Document{ContentType: "application/pdf", Size: f.pdfLen, Body: io.NopCloser(bytes.NewReader(f.pdf))}, nil
		}
	}
	return billing.Document{}, &billing.Error{Fault: billing.NotFound, Param: invoice}
}

func (f *fake) Preview(_ context.Context, id string, a billing.Action, at time.Time) (billing.Preview, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.previews++
	acct, err := f.get(id)
	if err != nil {
		return billing.Preview{}, err
	}
	if f.refuse != "" {
		return billing.Preview{}, &billing.Error{Fault: billing.Refused, Code: f.refuse}
	}
	if at.IsZero() {
		at = acct.AsOf
	}
	p := billing.Preview{
		Action: a, At: at, Effective: at, ObjectVersion: acct.Customer.Version,
		DueNow: billing.Money{Currency: "eur"}, Total: billing.Money{Currency: "eur"}, Tax: billing.Money{Currency: "eur"},
	}
	if sub, ok := acct.Subscription(a.Subscription); ok {
		p.ObjectVersion = sub.Version
		p.Items = slices.Clone(sub.Items)
		for _, ch := range a.Items {
			for _, pr := range []billing.Price{basic, team, yearly, legacy} {
				if pr.ID == ch.Price {
					due := pr.UnitAmount.IntPart()*ch.Quantity - sub.Items[0].Price.UnitAmount.IntPart()*sub.Items[0].Quantity
					p.DueNow.Amount, p.Total.Amount = max(due, 0), max(due, 0)
					p.Items[0].Price, p.Items[0].Quantity = pr, ch.Quantity
				}
			}
		}
	}
	if a.Kind == billing.RemovePaymentMethod {
		if err := acct.Removable(a.PaymentMethod); err != nil {
			return billing.Preview{}, err
		}
	}
	invoices, err := acct.PayWhat(a, func(id string) error {
		return &billing.Error{Fault: billing.NotFound, Param: id}
	})
	if err != nil {
		return billing.Preview{}, err
	}
	params, _ := json.Marshal(a)
	if a.Kind != billing.PayInvoices {
		p.Steps = []billing.Step{{Kind: string(a.Kind), Object: a.Object(id), Params: params}}
	}
	if len(invoices) > 0 {
		p.Pays(invoices)
	}
	for _, v := range invoices {
		p.Steps = append(p.Steps, billing.Step{Kind: "pay", Object: v.ID, Params: params, Independent: true})
	}
	return p, nil
}

func (f *fake) Execute(_ context.Context, id string, step billing.Step, key string) (billing.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	acct, err := f.get(id)
	if err != nil {
		return billing.Result{}, &billing.Error{Fault: billing.Retryable, Err: err}
	}
	if r, ok := f.keys[key]; ok {
		return r, nil
	}
	if f.fault != "" {
		return billing.Result{}, &billing.Error{Fault: f.fault, Code: "card_declined"}
	}
	r := billing.Result{State: billing.Done, Object: step.Object}
	if step.Kind == "pay" {
		if code := f.declines[step.Object]; code != "" {
			return billing.Result{}, &billing.Error{Fault: billing.Refused, Code: code}
		}
		if w := f.asks[step.Object]; w != nil {
			f.keys[key] = *w
			return *w, nil
		}
		r.Invoice = f.paid(acct, step.Object)
		f.keys[key] = r
		return r, nil
	}
	if f.waits != nil {
		r = *f.waits
		f.keys[key] = r
		return r, nil
	}
	f.apply(acct, step)
	f.keys[key] = r
	f.effects = append(f.effects, step.Kind+" "+step.Object)
	return r, nil
}

// paid takes an invoice off the debts.
func (f *fake) paid(acct *billing.Account, id string) *billing.Invoice {
	v, ok := acct.Debt(id)
	if !ok {
		panic("paid an invoice that is no debt: " + id)
	}
	inv := *v
	f.effects = append(f.effects, fmt.Sprintf("pay %s %d", id, inv.AmountRemaining.Amount))
	inv.Status, inv.AmountPaid, inv.AmountRemaining = billing.InvoicePaid, inv.Total, billing.Money{Currency: inv.Total.Currency}
	acct.Debts = slices.DeleteFunc(acct.Debts, func(v billing.Invoice) bool { return v.ID == id })
	acct.Invoices = append([]billing.Invoice{inv}, acct.Invoices...)
	if s, ok := acct.Subscription(inv.Subscription); ok && s.Status == billing.PastDue {
		s.Status = billing.Active
	}
	return &inv
}

func (f *fake) apply(acct *billing.Account, step billing.Step) {
	var a billing.Action
	_ = json.Unmarshal(step.Params, &a)
	switch a.Kind {
	case billing.RemovePaymentMethod:
		acct.PaymentMethods = slices.DeleteFunc(acct.PaymentMethods, func(m billing.PaymentMethod) bool { return m.ID == a.PaymentMethod })
	case billing.AddPaymentMethod:
		m := billing.PaymentMethod{ID: "pm_new_" + acct.Customer.ID, Type: "card", Brand: "amex", Last4: "0005", ExpMonth: 1, ExpYear: 2030}
		acct.PaymentMethods = append(acct.PaymentMethods, m)
		a.PaymentMethod = m.ID
		if a.Use == billing.UseEverything {
			acct.Customer.DefaultPaymentMethod = m.ID
		}
	}
	if sub, ok := acct.Subscription(a.Subscription); ok {
		sub.Version += "+"
		switch a.Kind {
		case billing.Cancel:
			sub.CancelAtPeriodEnd = true
		case billing.Resume:
			sub.CancelAtPeriodEnd = false
		case billing.DropPending:
			sub.Pending = nil
		case billing.SetDefaultPaymentMethod, billing.AddPaymentMethod:
			sub.DefaultPaymentMethod = a.PaymentMethod
		}
		for _, ch := range a.Items {
			sub.Items[0].Quantity = ch.Quantity
			for _, pr := range []billing.Price{basic, team, yearly} {
				if pr.ID == ch.Price {
					sub.Items[0].Price = pr
				}
			}
		}
		return
	}
	acct.Customer.Version += "+"
	if a.Kind == billing.SetDefaultPaymentMethod {
		acct.Customer.DefaultPaymentMethod = a.PaymentMethod
	}
	if d := a.Details; d != nil {
		if d.Name != nil {
			acct.Customer.Name = *d.Name
		}
		if d.Address != nil {
			acct.Customer.Address = *d.Address
		}
		if d.InvoiceFields != nil {
			acct.Customer.InvoiceFields = *d.InvoiceFields
		}
		if d.Locale != nil {
			acct.Customer.Locale = *d.Locale
		}
	}
	if c := a.TaxID; c != nil {
		ids := slices.DeleteFunc(slices.Clone(acct.Customer.TaxIDs), func(t billing.TaxID) bool { return t.ID == c.Remove })
		if c.Value != "" {
			ids = append(ids, billing.TaxID{ID: "txi_" + strings.ToLower(c.Value), Type: c.Type, Country: billing.TaxIDCountry(c.Type, c.Value), Value: c.Value})
		}
		acct.Customer.TaxIDs = ids
	}
}

func (f *fake) Outcome(_ context.Context, id string, step billing.Step, key string, last *billing.Result) (billing.Outcome, billing.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	acct, err := f.get(id)
	if err != nil {
		return billing.OutcomeUnsure, billing.Result{}, err
	}
	if last != nil && f.goes && step.Kind == "pay" {
		return billing.Applied, billing.Result{State: billing.Done, Invoice: f.paid(acct, step.Object)}, nil
	}
	if last != nil && f.goes {
		f.apply(acct, step)
		f.effects = append(f.effects, step.Kind+" "+step.Object)
		return billing.Applied, billing.Result{State: billing.Done}, nil
	}
	return billing.OutcomeUnsure, billing.Result{}, nil
}

func (*fake) ParseEvent(http.Header, []byte, time.Time) (billing.Event, error) {
	return billing.Event{}, billing.ErrNoWebhook
}

var _ billing.Provider = (*fake)(nil)

// env is a portal's pages over a real store.
type env struct {
	t        testing.TB
	store    store.Store
	provider *fake
	pages    *Pages
	accounts *account.Accounts
	sessions *session.Manager
	corridor *act.Corridor
	invoices *invoices.Index
	key      link.Key // own
	vendor   link.Key
	gen      string
	logs     *observer.ObservedLogs
	skipped  int
	mu       sync.Mutex
	time     time.Time
}

func (e *env) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.time
}

func (e *env) advance(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.time = e.time.Add(d)
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

var allowAll = []policy.Rule{
	{Verdict: policy.Allow, Actions: []string{policy.ChangePlan}, Directions: []policy.Direction{policy.Upgrade, policy.IntervalLonger}},
	{Verdict: policy.Allow, Actions: []string{policy.Cancel, policy.UpdatePaymentMethod, policy.RemovePaymentMethod, policy.PayInvoices, policy.UpdateDetails, policy.UpdateTaxIDs}},
}

func newEnv(t testing.TB, change ...func(*Options)) *env {
	t.Helper()
	e := &env{t: t, time: time.Date(2026, 5, 14, 15, 2, 0, 0, time.UTC)}
	sealer := must[*store.Sealer](t)(store.NewSealer(bytes.Repeat([]byte{7}, 32)))
	s := must[*badger.Store](t)(badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true, Now: e.now}))
	t.Cleanup(func() { _ = s.Close() })
	e.store = s
	e.provider = &fake{keys: map[string]billing.Result{}, pdf: []byte("%PDF-1.7 test"), pdfLen: 13, accounts: map[string]*billing.Account{
		"cus_a": newAccount("cus_a", "sub_a", basic, e.time), "cus_b": newAccount("cus_b", "sub_b", legacy, e.time),
	}, lists: map[string]billing.InvoicePage{"older=1&x": {Newer: "n"}}}
	core, logs := observer.New(zapcore.DebugLevel)
	e.logs = logs
	log := zap.New(core)
	e.accounts = must[*account.Accounts](t)(account.New(e.provider, e.now, 0))
	e.sessions = &session.Manager{
		Store: s, Tenant: host, Now: e.now, Rand: rand.Reader,
		Idle: session.DefaultIdle, Absolute: session.DefaultAbsolute, DefaultRole: policy.Owner,
	}
	j := &journal.Journal{Store: s, Tenant: host, Now: e.now, Process: "p1", Exclusive: true, LeaseTime: time.Minute, Changed: session.BumpVersion, Version: session.Version}
	pol := must[*policy.Policy](t)(policy.New(allowAll, nil))
	strict := must[*policy.Policy](t)(policy.New([]policy.Rule{{Verdict: policy.Deny, Actions: []string{policy.Cancel}, Text: "Please talk to us."}}, nil))
	cat := must[billing.Catalogue](t)(billing.NewCatalogue([]billing.Plan{
		{Key: "basic", Name: "Basic", Rank: 1, Prices: []billing.Price{basic}, Features: []string{"3 projects"}, MaxQuantity: 50},
		{Key: "team", Name: "Team", Rank: 2, Prices: []billing.Price{team, yearly}, Features: []string{"10 projects", "SSO"}, MinQuantity: 2, MaxQuantity: 100},
	}))
	e.corridor = &act.Corridor{
		Store: s, Tenant: host, Provider: e.provider, Accounts: e.accounts, Journal: j,
		Policy:    func(name string) *policy.Policy { return map[string]*policy.Policy{"": pol, "strict": strict}[name] },
		Catalogue: func() *billing.Catalogue { return &cat }, Now: e.now, Rand: rand.Reader, Log: log,
		ReturnURL: func(intent string) string { return ReturnURL(origin, intent) },
	}
	e.key = must[link.Key](t)(link.GenerateKey(rand.Reader))
	e.vendor = must[link.Key](t)(link.GenerateKey(rand.Reader))
	trust := must[*link.Trust](t)(link.NewTrust(origin,
		link.Issuer{Name: origin, Keys: []link.Key{e.key}, Own: true}, link.Issuer{Name: "acme", Keys: []link.Key{e.vendor}}))
	e.gen = must[string](t)(session.Generation(context.Background(), s))
	renderer := must[*templates.Renderer](t)(templates.New(templates.Options{
		Theme:    templates.Theme{Name: "Acme"},
		Exponent: func(string) int { return 2 }, ProviderName: "Payco",
	}))
	o := Options{
		Origin: origin, Sessions: e.sessions, Corridor: e.corridor, Trust: func() *link.Trust { return trust }, Renderer: renderer,
		ReturnTo: []string{vendorURL}, Logo: []byte("<svg/>"), LogoType: "image/svg+xml", Log: log, Now: e.now,
		SkipAccessLog: func(context.Context) { e.skipped++ },
	}
	e.invoices = e.index(s)
	o.Invoices = e.invoices
	for _, f := range change {
		f(&o)
	}
	e.pages = must[*Pages](t)(New(o))
	t.Cleanup(e.pages.Close)
	return e
}

// index is an index of invoices in a store.
func (e *env) index(s store.Store) *invoices.Index {
	e.t.Helper()
	return must[*invoices.Index](e.t)(invoices.New(invoices.Options{
		Store: s, Tenant: host, Provider: e.provider, Now: e.now, Process: "p1", Wake: func() {}, Sleep: func(context.Context, time.Duration) {},
	}))
}

// token mints an own link; change edits its claims.
func (e *env) token(customer string, change ...func(*link.Claims)) string {
	e.t.Helper()
	c := link.Claims{
		Issuer: origin, Audience: origin, Subject: customer, IssuedAt: e.now().Truncate(time.Second),
		Expires: e.now().Truncate(time.Second).Add(5 * time.Minute), ID: must[string](e.t)(link.NewID(rand.Reader)), Generation: e.gen,
	}
	key := e.key
	for _, f := range change {
		f(&c)
	}
	if c.Issuer == "acme" {
		key, c.Generation = e.vendor, ""
	}
	return must[string](e.t)(link.Mint(key, c))
}

// browser sends requests like one, with a cookie jar of one cookie.
type browser struct {
	*env
	cookie string
}

type edit = func(*http.Request)

func header(name string, values ...string) edit {
	return func(r *http.Request) {
		if len(values) == 0 {
			delete(r.Header, name)
			return
		}
		r.Header[name] = values
	}
}

func (b *browser) send(r *http.Request, edits ...edit) *httptest.ResponseRecorder {
	r.Host = host
	if b.cookie != "" {
		r.Header.Set("Cookie", "__Host-bp="+b.cookie)
	}
	for _, f := range edits {
		f(r)
	}
	w := httptest.NewRecorder()
	b.pages.ServeHTTP(w, r)
	for _, c := range w.Result().Cookies() {
		if c.Name == "__Host-bp" {
			b.cookie = c.Value
		}
	}
	return w
}

func (b *browser) get(path string, edits ...edit) *httptest.ResponseRecorder {
	b.t.Helper()
	return b.send(httptest.NewRequest(http.MethodGet, path, nil), edits...)
}

func (b *browser) post(path string, form url.Values, edits ...edit) *httptest.ResponseRecorder {
	b.t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", formType)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return b.send(r, edits...)
}

func navigation(r *http.Request) {
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Dest", "document")
	r.Header.Set("Sec-Fetch-Site", "same-site")
}

// signedIn is a browser with a session.
func (e *env) signedIn(customer string, change ...func(*link.Claims)) *browser {
	e.t.Helper()
	b := &browser{env: e}
	w := b.get("/enter?token="+e.token(customer, change...), navigation)
	if w.Code != http.StatusSeeOther || b.cookie == "" {
		e.t.Fatalf("entering: %d %s", w.Code, w.Body)
	}
	return b
}

var hiddenField = regexp.MustCompile(`<input type="hidden" name="([^"]+)" value="([^"]*)">`)

// formOf reads the first form with a nonce that posts to action.
func formOf(t testing.TB, body, action string) url.Values {
	t.Helper()
	_, rest, ok := strings.Cut(body, `action="`+action+`"`)
	if !ok {
		t.Fatalf("no form that posts to %s in %s", action, body)
	}
	rest, _, _ = strings.Cut(rest, "</form>")
	f := url.Values{}
	for _, m := range hiddenField.FindAllStringSubmatch(rest, -1) {
		f.Set(m[1], html.UnescapeString(m[2]))
	}
	return f
}

func location(t testing.TB, w *httptest.ResponseRecorder, prefix string) string {
	t.Helper()
	to := w.Header().Get("Location")
	if w.Code != http.StatusSeeOther || !strings.HasPrefix(to, prefix) {
		t.Fatalf("answer %d to %q, want a redirect to %s…: %s", w.Code, to, prefix, w.Body)
	}
	return to
}

// dump is everything in the store.
func (e *env) dump() map[string]string {
	e.t.Helper()
	all := map[string]string{}
	err := e.store.View(context.Background(), func(tx store.Tx) error {
		clear(all)
		entries, err := tx.Scan(nil, nil, 100_000, false)
		for _, en := range entries {
			all[string(en.Key)] = string(en.Value)
		}
		return err
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return all
}

// unchanged runs f and fails where it wrote anything or reached the provider
// with an action.
func (e *env) unchanged(name string, f func()) {
	e.t.Helper()
	before, effects, previews := e.dump(), len(e.provider.effects), e.provider.previews
	f()
	if after := e.dump(); !maps.Equal(before, after) {
		for k, v := range after {
			if before[k] != v {
				e.t.Errorf("%s: wrote %q", name, k)
			}
		}
		for k := range before {
			if _, ok := after[k]; !ok {
				e.t.Errorf("%s: deleted %q", name, k)
			}
		}
	}
	if len(e.provider.effects) != effects || e.provider.previews != previews {
		e.t.Errorf("%s: the provider was asked to act", name)
	}
}
