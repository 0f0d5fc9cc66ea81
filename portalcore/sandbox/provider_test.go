package sandbox_test

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// desk is a seeded provider.
type desk struct {
	*sandbox.Provider
	*bench
	faults *sandbox.Faults
	key    int
}

const portal = "https://portal.example.com"

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{bench: newBench(t, noon), faults: &sandbox.Faults{}}
	if _, err := sandbox.Seed(t.Context(), d.Ledger); err != nil {
		t.Fatal(err)
	}
	d.Provider = sandbox.NewProvider(d.Ledger, d.faults, sandbox.ProviderOptions{Pages: "https://pay.example.com/sandbox"})
	return d
}

func (d *desk) account(id string) billing.Account {
	d.t.Helper()
	a, err := d.Account(d.t.Context(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	return a
}

func (d *desk) preview(customer string, a billing.Action) billing.Preview {
	d.t.Helper()
	p, err := d.Provider.Preview(d.t.Context(), customer, a, time.Time{})
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// carryOut executes steps as the journal does, until one is not done.
func (d *desk) carryOut(customer string, steps []billing.Step, refs map[string]string) (billing.Result, billing.Step, string) {
	d.t.Helper()
	var res billing.Result
	var st billing.Step
	var key string
	for _, st = range steps {
		d.key++
		key = fmt.Sprintf("intent.%d", d.key)
		if len(st.Needs) > 0 {
			st.Refs = refs
		}
		var err error
		if res, err = d.Execute(d.t.Context(), customer, st, key); err != nil {
			d.t.Fatalf("%s: %v", st.Kind, err)
		}
		if res.State != billing.Done {
			break
		}
	}
	return res, st, key
}

func (d *desk) outcome(customer string, st billing.Step, key string) (billing.Outcome, billing.Result) {
	d.t.Helper()
	o, res, err := d.Outcome(d.t.Context(), customer, st, key, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return o, res
}

func plan(a billing.Account, price string, quantity int64) billing.Action {
	return billing.Action{Kind: billing.ChangePlan, Subscription: a.Subscriptions[0].ID, Items: []billing.ItemChange{{Item: a.Subscriptions[0].Items[0].ID, Price: price, Quantity: quantity}}}
}

func wantFault(t *testing.T, err error, fault billing.Fault, code string) {
	t.Helper()
	if billing.FaultOf(err) != fault || billing.CodeOf(err) != code {
		t.Errorf("got error %v, want %s %s", err, fault, code)
	}
}

// TestSeed holds the demo's customers, and that seeding twice is seeding once.
func TestSeed(t *testing.T) {
	for _, now := range []time.Time{noon, time.Date(2027, 3, 31, 8, 0, 0, 0, time.UTC), time.Date(2028, 2, 29, 23, 59, 59, 0, time.UTC)} {
		b := newBench(t, now)
		list, err := sandbox.Seed(t.Context(), b.Ledger)
		if err != nil || len(list) != 11 {
			t.Fatal(list, err)
		}
		size, effects := len(b.db.data), len(b.effects())
		if again, err := sandbox.Seed(t.Context(), b.Ledger); err != nil || !reflect.DeepEqual(again, list) || len(b.db.data) != size || effects != 4 {
			t.Errorf("seeding again changed something, %v; %d effects", err, effects)
		}
		p := sandbox.NewProvider(b.Ledger, nil, sandbox.ProviderOptions{})
		for id, want := range map[string]struct {
			status   billing.SubscriptionStatus
			price    string
			quantity int64
			invoices int
		}{
			"cus_northwind": {billing.Active, "basic_monthly", 4, 6}, // newest few of 7
			"cus_globex":    {billing.Active, "team_yearly_eur", 10, 3},
			"cus_trial":     {billing.Trialing, "team_monthly", 3, 0},
			"cus_pastdue":   {billing.PastDue, "basic_monthly", 2, 4},
			"cus_initech":   {billing.Active, "basic_monthly", 5, 3},
			"cus_3ds":       {billing.Active, "basic_monthly_eur", 2, 2},
			"cus_ending":    {billing.Active, "team_monthly", 2, 5},
		} {
			a, err := p.Account(t.Context(), id)
			if err != nil || len(a.Subscriptions) != 1 {
				t.Fatal(id, err)
			}
			s := a.Subscriptions[0]
			if s.Status != want.status || s.Items[0].Price.LookupKey != want.price || s.Items[0].Quantity != want.quantity || len(a.Invoices) != want.invoices || !a.AsOf.Equal(now) {
				t.Errorf("%s: %+v with %d invoices", id, s, len(a.Invoices))
			}
			if _, ok := a.Pays(&s); !ok {
				t.Errorf("%s has no card", id)
			}
			if ending := id == "cus_ending"; s.CancelAtPeriodEnd != ending || (len(a.Upcoming) == 0) != ending {
				t.Errorf("%s: ending %v, upcoming %v", id, s.CancelAtPeriodEnd, a.Upcoming)
			}
			if id == "cus_globex" && (a.Upcoming[0].Tax.Amount*5 != a.Upcoming[0].Subtotal.Amount || a.Upcoming[0].Total.Currency != "eur") {
				t.Errorf("no VAT: %+v", a.Upcoming[0])
			}
			for _, inv := range a.Invoices {
				if open := id == "cus_pastdue" && inv.ID == a.Invoices[0].ID; (inv.Status == billing.InvoiceOpen) != open || inv.Created.After(now) {
					t.Errorf("%s: %+v", id, inv)
				}
			}
		}
		long, err := p.Account(t.Context(), "cus_oscorp")
		if err != nil || len(long.Subscriptions) != 12 {
			t.Errorf("%d subscriptions, %v", len(long.Subscriptions), err)
		}
		invoices, cursor := 0, ""
		for page := range 10 {
			list, err := p.Invoices(t.Context(), "cus_oscorp", cursor, 100)
			if err != nil {
				t.Fatal(err)
			}
			if invoices += len(list.Invoices); list.Older == "" {
				if oldest := list.Invoices[len(list.Invoices)-1]; invoices < 500 || oldest.Created.After(now.AddDate(-3, 0, 0)) {
					t.Errorf("%d invoices on %d pages, the oldest of %s", invoices, page+1, oldest.Created)
				}
				break
			}
			cursor = list.Older
		}
		prices, err := p.Prices(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := billing.CatalogueFromMetadata(prices)
		if err != nil || len(c.Plans) != 3 || c.Plans[2].Key != "business" || len(c.Plans[1].Prices) != 4 || c.Plans[1].Limits[0].Value != 50 || len(c.Plans[2].Features) != 5 || c.Plans[0].Name != "Basic" {
			t.Errorf("%+v %v", c.Plans, err)
		}
	}
}

func TestChangePlan(t *testing.T) {
	d := newDesk(t)
	a := d.account("cus_northwind")
	act := plan(a, "price_team_monthly", 6)
	p := d.preview("cus_northwind", act)
	if len(p.Lines) != 2 || p.DueNow.Amount <= 0 || p.DueNow != p.Total || p.Next == nil || p.Next.Total.Amount != 12000 || p.ObjectVersion != a.Subscriptions[0].Version ||
		!p.At.Equal(noon) || p.Items[0].Price.LookupKey != "team_monthly" || len(p.Steps) != 1 {
		t.Fatalf("%+v", p)
	}
	d.clock.set(noon.Add(10 * time.Minute))
	again, err := d.Provider.Preview(t.Context(), "cus_northwind", act, p.At)
	if err != nil || !again.SameTerms(p) || string(again.Steps[0].Params) != string(p.Steps[0].Params) {
		t.Errorf("%+v %v", again, err)
	}
	yearly := d.preview("cus_northwind", plan(a, "price_team_yearly", 6))
	d.clock.set(noon.Add(11 * time.Minute))
	later, err := d.Provider.Preview(t.Context(), "cus_northwind", yearly.Action, yearly.At)
	if err != nil || !later.SameTerms(yearly) || !later.Next.Due.Equal(yearly.At.AddDate(1, 0, 0)) {
		t.Errorf("%+v\n%+v %v", later, yearly, err)
	}

	res, st, key := d.carryOut("cus_northwind", p.Steps, nil)
	if res.State != billing.Done || res.Invoice == nil || res.Invoice.AmountPaid != p.DueNow || res.Invoice.Total != p.Total {
		t.Errorf("%+v", res)
	}
	now := d.account("cus_northwind")
	if s := now.Subscriptions[0]; s.Version == a.Subscriptions[0].Version || s.Items[0].Price.LookupKey != "team_monthly" || s.Items[0].Quantity != 6 || now.Upcoming[0].Total != p.Next.Total || !now.Upcoming[0].Due.Equal(p.Next.Due) {
		t.Errorf("%+v", now)
	}
	if o, res := d.outcome("cus_northwind", st, key); o != billing.Applied || res.Invoice == nil || res.State != billing.Done {
		t.Errorf("%s %+v", o, res)
	}
	if o, _ := d.outcome("cus_northwind", st, "never"); o != billing.NotApplied {
		t.Errorf("a step never sent is %s", o)
	}
	// A downgrade gives credit, and applies at once although its card declines.
	a = d.account("cus_initech")
	p = d.preview("cus_initech", plan(a, "price_basic_monthly", 1))
	if p.DueNow.Amount != 0 || p.ToBalance.Amount <= 0 || p.ToBalance.Amount != -p.Total.Amount || p.Next.AmountDue.Amount != max(1000-p.ToBalance.Amount, 0) {
		t.Errorf("%+v", p)
	}
	if res, _, _ = d.carryOut("cus_initech", p.Steps, nil); res.State != billing.Done || d.account("cus_initech").Customer.Balance != p.ToBalance.Neg() {
		t.Errorf("%+v", res)
	}
	p = d.preview("cus_initech", plan(a, "price_basic_monthly", 2))
	if p.FromBalance.Amount != p.Total.Amount || p.DueNow.Amount != 0 {
		t.Errorf("%+v", p)
	}
	// A trial goes on, and nothing is due.
	p = d.preview("cus_trial", plan(d.account("cus_trial"), "price_business_yearly", 2))
	if len(p.Lines) != 0 || p.DueNow.Amount != 0 || p.EndsTrial || p.Next.Total.Amount != 80000 {
		t.Errorf("%+v", p)
	}
}

// TestWaitingChange: a declined change waits, and a new card pays for it.
func TestWaitingChange(t *testing.T) {
	d := newDesk(t)
	p := d.preview("cus_initech", plan(d.account("cus_initech"), "price_team_monthly", 5))
	res, st, key := d.carryOut("cus_initech", p.Steps, nil)
	if res.State != billing.AwaitingCustomer || res.Reason != "card_declined" || res.GoTo != "" || !res.Until.Equal(noon.Add(23*time.Hour)) || res.Invoice == nil {
		t.Fatalf("%+v", res)
	}
	a := d.account("cus_initech")
	s := a.Subscriptions[0]
	if s.Pending == nil || s.Pending.AmountDue != p.DueNow || s.Items[0].Price.LookupKey != "basic_monthly" || !a.Invoices[0].ForPendingUpdate {
		t.Fatalf("%+v", s)
	}
	_, err := d.Provider.Preview(t.Context(), "cus_initech", plan(a, "price_basic_monthly", 9), time.Time{})
	wantFault(t, err, billing.Refused, "not_changeable")
	if o, res := d.outcome("cus_initech", st, key); o != billing.Applied || res.State != billing.AwaitingCustomer {
		t.Errorf("%s %+v", o, res)
	}
	add := d.preview("cus_initech", billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: portal + "/back"})
	var got []string
	for _, st := range add.Steps {
		got = append(got, st.Kind)
	}
	if !slices.Equal(got, []string{"checkout_session.create", "customer.update", "subscription.update", "invoice.pay"}) {
		t.Fatalf("steps %v", got)
	}
	res, session, sessionKey := d.carryOut("cus_initech", add.Steps, nil)
	if res.State != billing.AwaitingCustomer || res.Reason != "enter_card" || !strings.HasPrefix(res.GoTo, "https://pay.example.com/sandbox/card/cs_test_") {
		t.Fatalf("%+v", res)
	}
	if o, again := d.outcome("cus_initech", session, sessionKey); o != billing.Applied || again.GoTo != res.GoTo {
		t.Errorf("%s %+v", o, again)
	}
	if _, err := d.CompleteSession(t.Context(), sandbox.Call{}, res.Object, sandbox.CardParams{Number: works}); err != nil {
		t.Fatal(err)
	}
	o, res := d.outcome("cus_initech", session, sessionKey)
	if o != billing.Applied || res.State != billing.Done || res.Refs["payment_method"] == "" {
		t.Fatalf("%s %+v", o, res)
	}
	last, _, _ := d.carryOut("cus_initech", add.Steps[1:], res.Refs)
	a = d.account("cus_initech")
	s = a.Subscriptions[0]
	if last.State != billing.Done || s.Pending != nil || s.Items[0].Price.LookupKey != "team_monthly" || s.DefaultPaymentMethod != res.Refs["payment_method"] || a.Customer.DefaultPaymentMethod != res.Refs["payment_method"] {
		t.Errorf("%+v %+v", last, a)
	}
	if o, res := d.outcome("cus_initech", st, key); o != billing.Applied || res.State != billing.Done || res.Invoice.AmountPaid != p.DueNow {
		t.Errorf("%s %+v", o, res)
	}
}

func TestConfirmAndDrop(t *testing.T) {
	d := newDesk(t)
	act := plan(d.account("cus_3ds"), "price_team_monthly_eur", 2)
	act.ReturnURL = portal + "/receipt"
	res, st, key := d.carryOut("cus_3ds", d.preview("cus_3ds", act).Steps, nil)
	a := d.account("cus_3ds")
	if res.Reason != "authentication_required" || !strings.HasPrefix(res.GoTo, "https://pay.example.com/sandbox/confirm/pi_") || a.Subscriptions[0].Pending.ConfirmURL != res.GoTo {
		t.Fatalf("%+v", res)
	}
	drop := d.preview("cus_3ds", billing.Action{Kind: billing.DropPending, Subscription: a.Subscriptions[0].ID})
	if res, _, _ := d.carryOut("cus_3ds", drop.Steps, nil); res.State != billing.Done || res.Invoice.Status != billing.InvoiceVoid {
		t.Errorf("%+v", res)
	}
	if o, _ := d.outcome("cus_3ds", st, key); o != billing.NotApplied {
		t.Errorf("a dropped change is %s", o)
	}
	_, err := d.Execute(t.Context(), "cus_3ds", st, key)
	wantFault(t, err, billing.Refused, "not_changeable")
	_, err = d.Provider.Preview(t.Context(), "cus_3ds", drop.Action, time.Time{})
	wantFault(t, err, billing.Refused, "not_changeable")
}

func TestCancelResumeDetails(t *testing.T) {
	d := newDesk(t)
	a := d.account("cus_northwind")
	p := d.preview("cus_northwind", billing.Action{Kind: billing.Cancel, Subscription: a.Subscriptions[0].ID})
	d.carryOut("cus_northwind", p.Steps, nil)
	s := d.account("cus_northwind").Subscriptions[0]
	if !s.CancelAtPeriodEnd || !p.Effective.Equal(s.PeriodEnd()) || p.Next != nil || !s.Ends().Equal(s.PeriodEnd()) {
		t.Errorf("%+v", s)
	}
	_, err := d.Provider.Preview(t.Context(), "cus_northwind", p.Action, time.Time{})
	wantFault(t, err, billing.Refused, "not_changeable")
	p = d.preview("cus_northwind", billing.Action{Kind: billing.Resume, Subscription: s.ID})
	d.carryOut("cus_northwind", p.Steps, nil)
	if s = d.account("cus_northwind").Subscriptions[0]; s.CancelAtPeriodEnd || p.Next == nil {
		t.Errorf("%+v", s)
	}
	name, email, bad := "Northwind & Sons", "new@northwind.example.com", "no address"
	p = d.preview("cus_northwind", billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Name: &name, Email: &email}})
	d.carryOut("cus_northwind", p.Steps, nil)
	c, err := d.Find(t.Context(), "cus_northwind")
	if err != nil || c.Name != name || c.Email != email || c.Phone != a.Customer.Phone || c.Version == a.Customer.Version || c.Address != a.Customer.Address {
		t.Errorf("%+v %v", c, err)
	}
	_, err = d.Provider.Preview(t.Context(), "cus_northwind", billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Email: &bad}}, time.Time{})
	wantFault(t, err, billing.Refused, "invalid_request")
	if _, err := d.Find(t.Context(), "cus_nobody"); billing.FaultOf(err) != billing.NotFound {
		t.Error(err)
	}
}

// TestOwnership sends every kind of foreign object id.
func TestOwnership(t *testing.T) {
	d := newDesk(t)
	effects := len(d.effects())
	other := d.account("cus_globex")
	mine := d.account("cus_northwind")
	ctx := t.Context()
	for name, act := range map[string]billing.Action{
		"subscription": {Kind: billing.Cancel, Subscription: other.Subscriptions[0].ID},
		"item":         {Kind: billing.ChangePlan, Subscription: mine.Subscriptions[0].ID, Items: []billing.ItemChange{{Item: other.Subscriptions[0].Items[0].ID, Price: "price_team_monthly", Quantity: 1}}},
		"change":       plan(other, "price_team_yearly_eur", 1),
		"card":         {Kind: billing.SetDefaultPaymentMethod, PaymentMethod: other.PaymentMethods[0].ID},
	} {
		_, err := d.Provider.Preview(ctx, "cus_northwind", act, time.Time{})
		if billing.FaultOf(err) != billing.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	cancel := d.preview("cus_globex", billing.Action{Kind: billing.Cancel, Subscription: other.Subscriptions[0].ID})
	card := d.preview("cus_globex", billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: other.PaymentMethods[0].ID})
	session := d.preview("cus_globex", billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: portal})
	stolen := card.Steps[0]
	stolen.Object = "cus_northwind"
	redirected := session.Steps[0]
	redirected.Object = "cus_northwind"
	for i, st := range []billing.Step{cancel.Steps[0], card.Steps[0], session.Steps[0], stolen, redirected, {Kind: "invoice.void", Object: other.Invoices[0].ID}, {Kind: "invoice.pay", Object: other.Invoices[0].ID}} {
		if _, err := d.Execute(ctx, "cus_northwind", st, fmt.Sprint("k", i)); billing.FaultOf(err) != billing.NotFound {
			t.Errorf("step %d %s: %v", i, st.Kind, err)
		}
	}
	if _, _, err := d.Outcome(ctx, "cus_northwind", cancel.Steps[0], "k", nil); billing.FaultOf(err) != billing.NotFound {
		t.Error(err)
	}
	if _, err := d.Document(ctx, "cus_northwind", billing.DocumentRef{Invoice: other.Invoices[0].ID}); billing.FaultOf(err) != billing.NotFound {
		t.Error(err)
	}
	if _, err := d.Provider.Invoices(ctx, "cus_northwind", "older:"+other.Invoices[0].ID, 5); billing.FaultOf(err) != billing.NotFound {
		t.Error(err)
	}
	if len(d.effects()) != effects {
		t.Errorf("effects %v", kinds(d.effects()[effects:]))
	}
	doc, err := d.Document(ctx, "cus_globex", billing.DocumentRef{Invoice: other.Invoices[0].ID})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(doc.Body)
	if err != nil || int64(len(raw)) != doc.Size || !strings.HasPrefix(string(raw), "%PDF-") || doc.Body.Close() != nil {
		t.Errorf("%d of %d bytes, %v", len(raw), doc.Size, err)
	}
}

// TestFaults holds, for each fault, what the caller is told and what happened.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		kind   sandbox.FaultKind
		fault  billing.Fault
		effect bool
	}{
		{sandbox.FaultTimeoutBefore, billing.Unknown, false},
		{sandbox.FaultTimeoutAfter, billing.Unknown, true},
		{sandbox.Fault500Before, billing.Unknown, false},
		{sandbox.Fault500After, billing.Unknown, true},
		{sandbox.FaultRateLimit, billing.Retryable, false},
		{sandbox.FaultGarbage, billing.Unknown, true},
		{sandbox.FaultLatency, "", true},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			d := newDesk(t)
			p := d.preview("cus_northwind", plan(d.account("cus_northwind"), "price_team_monthly", 5))
			start := len(d.effects())
			if err := d.faults.Set(sandbox.Fault{On: "execute", Times: 1, Kind: c.kind, Latency: time.Millisecond}); err != nil {
				t.Fatal(err)
			}
			_, err := d.Execute(t.Context(), "cus_northwind", p.Steps[0], "k.1")
			if billing.FaultOf(err) != c.fault || (len(d.effects()) > start) != c.effect {
				t.Errorf("got %v with effects %v", err, kinds(d.effects()[start:]))
			}
			want := billing.NotApplied
			if c.effect {
				want = billing.Applied
			}
			if o, _ := d.outcome("cus_northwind", p.Steps[0], "k.1"); o != want {
				t.Errorf("outcome %s, want %s", o, want)
			}
			res, err := d.Execute(t.Context(), "cus_northwind", p.Steps[0], "k.1")
			if err != nil || res.State != billing.Done || res.Invoice.AmountPaid != p.DueNow || len(d.effects()) != start+1 {
				t.Errorf("sent again: %+v %v, effects %v", res, err, kinds(d.effects()[start:]))
			}
			for _, on := range []string{"account", "preview", "any"} {
				if err := d.faults.Set(sandbox.Fault{On: on, Times: 1, Kind: c.kind, Latency: time.Millisecond}); err != nil {
					t.Fatal(err)
				}
			}
			_, aErr := d.Account(t.Context(), "cus_northwind")
			_, pErr := d.Provider.Preview(t.Context(), "cus_northwind", billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: portal}, time.Time{})
			_, iErr := d.Provider.Invoices(t.Context(), "cus_northwind", "", 5)
			for _, err := range []error{aErr, pErr, iErr} {
				// A read that is refused for the time being is made again.
				if want := c.fault != "" && c.kind != sandbox.FaultRateLimit; want != (billing.FaultOf(err) == billing.Unavailable) {
					t.Errorf("a read says %v", err)
				}
			}
			if _, err := d.Account(t.Context(), "cus_northwind"); err != nil {
				t.Errorf("a fault was used twice: %v", err)
			}
		})
	}
	d := newDesk(t)
	p := d.preview("cus_northwind", plan(d.account("cus_northwind"), "price_team_monthly", 5))
	// The caller's patience ends before the fault does.
	if err := d.faults.Set(sandbox.Fault{On: "any", Times: 1, Kind: sandbox.FaultTimeoutAfter, Latency: time.Minute}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := d.Execute(ctx, "cus_northwind", p.Steps[0], "k.1")
	wantFault(t, err, billing.Unknown, "")
	if o, _ := d.outcome("cus_northwind", p.Steps[0], "k.1"); o != billing.Applied {
		t.Errorf("outcome %s", o)
	}
	// Another request under a used key is nothing to be guessed about.
	other := d.preview("cus_northwind", billing.Action{Kind: billing.Cancel, Subscription: d.account("cus_northwind").Subscriptions[0].ID})
	_, err = d.Execute(t.Context(), "cus_northwind", other.Steps[0], "k.1")
	wantFault(t, err, billing.Unknown, "idempotency_error")
	// The store's own failures.
	d.db.fail = store.ErrUnknown
	_, err = d.Execute(t.Context(), "cus_northwind", other.Steps[0], "k.2")
	wantFault(t, err, billing.Unknown, "")
	d.db.fail = store.ErrClosed
	_, err = d.Execute(t.Context(), "cus_northwind", other.Steps[0], "k.2")
	wantFault(t, err, billing.Retryable, "")
	for _, f := range []sandbox.Fault{
		{},
		{On: "all", Times: 1, Kind: "latency", Latency: 1},
		{On: "any", Times: 0, Kind: "garbage"},
		{On: "any", Times: 1, Kind: "boom"},
		{On: "any", Times: 1, Kind: "latency"},
		{On: "any", Times: 1, Kind: "latency", Latency: time.Hour},
	} {
		if d.faults.Set(f) == nil {
			t.Errorf("%+v was taken", f)
		}
	}
}

// TestPageCursors walks a customer's invoices to the end and back.
func TestPageCursors(t *testing.T) {
	d := newDesk(t)
	page := func(cursor string) billing.InvoicePage {
		p, err := d.Provider.Invoices(t.Context(), "cus_northwind", cursor, 3)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := page("")
	second := page(first.Older)
	third := page(second.Older)
	back := page(third.Newer)
	top := page(back.Newer)
	if first.Newer != "" || len(third.Invoices) != 1 || third.Older != "" || top.Newer != "" || top.Invoices[0].ID != first.Invoices[0].ID || back.Invoices[0].ID != second.Invoices[0].ID || len(top.Invoices) != 3 {
		t.Errorf("%+v %+v %+v %+v %+v", first, second, third, back, top)
	}
	if _, err := d.Provider.Invoices(t.Context(), "cus_northwind", "x", 3); billing.FaultOf(err) != billing.NotFound {
		t.Error(err)
	}
}
