package act

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// paying makes a world in which each invoice of a payment is a step of the given
// kind.
func paying(t *testing.T, kinds ...string) (*world, *Corridor) {
	w := newWorld(t)
	w.fake.steps = func(customer string, a billing.Action) []billing.Step {
		var steps []billing.Step
		if a.Kind == billing.AddPaymentMethod {
			steps = append(steps, billing.Step{Kind: "await", Object: customer})
		}
		for n, id := range a.Invoices {
			steps = append(steps, billing.Step{Kind: kinds[n], Object: id, Independent: true})
		}
		if len(steps) == 0 {
			steps = append(steps, billing.Step{Kind: "change", Object: customer})
		}
		return steps
	}
	return w, w.plain()
}

func pay(invoices ...string) billing.Action {
	return billing.Action{Kind: billing.PayInvoices, Invoices: invoices}
}

func confirm(t *testing.T, c *Corridor, a billing.Action) journal.Intent {
	t.Helper()
	pin, err := c.Prepare(t.Context(), who(1), a)
	if err != nil {
		t.Fatal(err)
	}
	done, err := c.Confirm(t.Context(), who(1), pin.Nonce)
	if err != nil || done.Fresh != nil {
		t.Fatal(err, done.Fresh)
	}
	return done.Intent
}

// states are where each step of an intent stands, with its code.
func states(i *journal.Intent) string {
	var out []string
	for n := range i.Steps {
		out = append(out, strings.TrimSuffix(fmt.Sprint(i.StateOf(n), ":", i.Steps[n].Code), ":"))
	}
	return strings.Join(out, " ")
}

func TestPayInvoicesOneByOne(t *testing.T) {
	const declined = "refused:card_declined"
	for kinds, want := range map[string]string{
		"change change change":   "succeeded: succeeded succeeded succeeded",
		"decline change change":  "partial:card_declined " + declined + " succeeded succeeded",
		"change decline change":  "partial:card_declined succeeded " + declined + " succeeded",
		"decline decline change": "partial:card_declined " + declined + " " + declined + " succeeded",
		"decline decline":        "refused:card_declined " + declined + " " + declined,
		"process decline change": "processing: processing " + declined + " succeeded",
		"await change change":    "awaiting_customer:enter_card awaiting_customer planned planned",
		"decline await change":   "awaiting_customer:enter_card " + declined + " awaiting_customer planned",
		"process await change":   "awaiting_customer:enter_card processing awaiting_customer planned",
	} {
		t.Run(kinds, func(t *testing.T) {
			list := strings.Fields(kinds)
			w, c := paying(t, list...)
			i := confirm(t, c, pay([]string{"in_1a", "in_1b", "in_1c"}[:len(list)]...))
			if got := fmt.Sprintf("%s:%s %s", i.State, i.Code, states(&i)); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if i.State.Terminal() {
				if err := w.settled(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// What the provider said it would say later is settled one by one, and the
// intent when the last one is.
func TestPaymentsThatTakeDays(t *testing.T) {
	w, c := paying(t, "process", "change", "process")
	i := confirm(t, c, pay("in_1a", "in_1b", "in_1c"))
	if got := states(&i); got != "processing succeeded processing" || i.State != journal.Processing {
		t.Fatal(i.State, got)
	}
	if w.count("lock") != 0 {
		t.Error("a payment on its way holds a lock")
	}
	w.clock.Advance(30 * time.Hour)
	w.fake.pages[i.Steps[2].Key].done = true
	if _, err := c.Recover(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	i, err := c.Journal.Get(t.Context(), "cus_1", i.ID)
	if got := states(&i); err != nil || got != "processing succeeded succeeded" || i.State != journal.Processing || i.Owner != "" || !i.Due.After(w.clock.Now()) {
		t.Fatal(i.State, got, i.Owner, i.Due, err)
	}
	w.clock.Advance(30 * time.Hour)
	w.fake.pages[i.Steps[0].Key].dropped = true
	if _, err := c.Recover(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	i, err = c.Journal.Get(t.Context(), "cus_1", i.ID)
	if got := states(&i); err != nil || got != "not_applied succeeded succeeded" || i.State != journal.Partial {
		t.Fatal(i.State, got, err)
	}
	if err := w.settled(i); err != nil {
		t.Error(err)
	}
}

// A payment that waits for the customer's bank holds up the others. They follow
// it where it is answered or given up soon, and no more once nobody expects it.
func TestPaymentsBehindOneThatWaits(t *testing.T) {
	for _, tt := range []struct {
		name        string
		done        bool
		after       time.Duration
		state, want string
	}{
		{"answered", true, 10 * time.Minute, "succeeded", "succeeded succeeded"},
		{"given up", false, 10 * time.Minute, "partial", "not_applied:enter_card succeeded"},
		{"answered late", true, 2 * time.Hour, "partial", "succeeded cancelled"},
		{"never answered", false, 25 * time.Hour, "not_applied", "not_applied:enter_card cancelled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, c := paying(t, "await", "change")
			i := confirm(t, c, pay("in_1a", "in_1b"))
			w.clock.Advance(tt.after)
			w.fake.pages[i.Steps[0].Key].done, w.fake.pages[i.Steps[0].Key].dropped = tt.done, !tt.done
			if _, err := c.Recover(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			i, err := c.Journal.Get(t.Context(), "cus_1", i.ID)
			if got := states(&i); err != nil || got != tt.want || string(i.State) != tt.state {
				t.Fatal(i.State, got, err)
			}
			if err := w.settled(i); err != nil {
				t.Error(err)
			}
		})
	}
}

// A payment whose answer was lost stops the ones behind it until it is known,
// and what is then sent is sent under the keys of the beginning.
func TestPaymentWithoutAnAnswer(t *testing.T) {
	w, c := paying(t, "change", "change", "change")
	w.fake.script = func(n int, s billing.Step) fault {
		if n > 0 && n <= attempts {
			return unknownBefore
		}
		return none
	}
	i := confirm(t, c, pay("in_1a", "in_1b", "in_1c"))
	if got := states(&i); got != "succeeded unknown planned" || i.State != journal.Unknown {
		t.Fatal(i.State, got)
	}
	// Nobody pays one of the three meanwhile, and everything else goes on.
	var busy *journal.BusyError
	for _, id := range []string{"in_1a", "in_1b", "in_1c"} {
		if _, err := c.Prepare(t.Context(), who(1), pay(id)); !errors.As(err, &busy) || busy.Intent != i.ID {
			t.Errorf("%s: %v", id, err)
		}
	}
	if i, err := c.Do(t.Context(), who(1), nonce(t, c), "", billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_1"}); err != nil || i.State != journal.Succeeded {
		t.Errorf("another change: %s, %v", i.State, err)
	}
	w.clock.Advance(5 * time.Minute)
	if _, err := c.Recover(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	i, err := c.Journal.Get(t.Context(), "cus_1", i.ID)
	if err != nil || i.State != journal.Succeeded {
		t.Fatal(i.State, states(&i), err)
	}
	for n := range i.Steps {
		if w.fake.effects[journal.StepKey(i.ID, n)] != 1 {
			t.Errorf("step %d took effect %d times", n, w.fake.effects[journal.StepKey(i.ID, n)])
		}
	}
}

// While a payment waits for the customer's bank they can start again; the first
// one goes on as well as it can.
func TestStartAgainWhileOneWaits(t *testing.T) {
	w, c := paying(t, "await", "change")
	first := confirm(t, c, pay("in_1a", "in_1b"))
	again := confirm(t, c, pay("in_1a"))
	if again.ID == first.ID || again.State != journal.AwaitingCustomer {
		t.Fatal(again.State)
	}
	// The first one goes on while the second is being checked: it waits for it.
	w.fake.pages[first.Steps[0].Key].done = true
	w.fake.script = func(int, billing.Step) fault { return unknownBefore }
	holder := confirm(t, c, pay("in_1b"))
	if holder.State != journal.Unknown {
		t.Fatal(holder.State)
	}
	i, err := c.Check(t.Context(), "cus_1", first.ID)
	if got := states(&i); err != nil || i.State != journal.AwaitingCustomer || got != "awaiting_customer planned" {
		t.Fatal(i.State, got, err)
	}
	w.fake.script = nil
	for range 3 {
		w.clock.Advance(3 * time.Minute)
		if _, err := c.Recover(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	if i, err = c.Check(t.Context(), "cus_1", first.ID); err != nil || i.State != journal.Succeeded {
		t.Error(i.State, states(&i), err)
	}
}

// Removing a method and what needs it are not in flight together.
func TestMethodsAreLocked(t *testing.T) {
	remove := billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: "pm_1"}
	for name, other := range map[string]billing.Action{
		"made the default":                   {Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_1"},
		"made a subscription's":              {Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_1", Subscription: "sub_1a"},
		"another is added":                   {Kind: billing.AddPaymentMethod},
		"another is added to a subscription": {Kind: billing.AddPaymentMethod, Use: billing.UseSubscription, Subscription: "sub_1a"},
		"pays":                               {Kind: billing.PayInvoices, Invoices: []string{"in_1a"}, PaymentMethod: "pm_1"},
		"removed":                            {Kind: billing.RemovePaymentMethod, PaymentMethod: "pm_1"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, order := range [][]billing.Action{{remove, other}, {other, remove}} {
				w, c := paying(t, "change")
				w.fake.script = func(int, billing.Step) fault { return unknownBefore }
				do := func(a billing.Action) error {
					if a.Kind == billing.PayInvoices {
						pin, err := c.Prepare(t.Context(), who(1), a)
						if err != nil {
							return err
						}
						_, err = c.Confirm(t.Context(), who(1), pin.Nonce)
						return err
					}
					_, err := c.Do(t.Context(), who(1), nonce(t, c), "", a)
					return err
				}
				if err := do(order[0]); err != nil {
					t.Fatal(err)
				}
				if err := do(order[1]); !errors.Is(err, journal.ErrBusy) {
					t.Errorf("%s after %s: %v", order[1].Kind, order[0].Kind, err)
				}
			}
		})
	}
}

func TestNewActionsThatAreRefused(t *testing.T) {
	many := make([]string, billing.MaxPay+1)
	for n := range many {
		many[n] = fmt.Sprint("in_", n)
	}
	details := func(d billing.Details) billing.Action {
		return billing.Action{Kind: billing.UpdateDetails, Details: &d}
	}
	tax := func(d billing.TaxIDChange) billing.Action {
		return billing.Action{Kind: billing.UpdateTaxID, TaxID: &d}
	}
	for name, tt := range map[string]struct {
		a    billing.Action
		want string
	}{
		"another's invoice":           {pay("in_1a", "in_2a"), "not found"},
		"another's method":            {billing.Action{Kind: billing.PayInvoices, Invoices: []string{"in_1a"}, PaymentMethod: "pm_2"}, "not found"},
		"no invoice":                  {pay(), "invoices: required"},
		"twice":                       {pay("in_1a", "in_1a"), "invoices: twice"},
		"too many":                    {pay(many...), "invoices: too_many"},
		"paid already":                {pay("in_paid"), "invoices: not_open"},
		"debit under way":             {pay("in_slow"), "invoices: processing"},
		"debit under way, new card":   {billing.Action{Kind: billing.AddPaymentMethod, Invoices: []string{"in_slow"}}, "invoices: processing"},
		"new card, another's invoice": {billing.Action{Kind: billing.AddPaymentMethod, Invoices: []string{"in_2a"}}, "not found"},
		"removes another's method":    {billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: "pm_2"}, "not found"},
		"removes nothing":             {billing.Action{Kind: billing.RemovePaymentMethod}, "not found"},
		"default of another's":        {billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_1", Subscription: "sub_2a"}, "not found"},
		"use unknown":                 {billing.Action{Kind: billing.AddPaymentMethod, Use: "fun"}, "use: invalid"},
		"use without subscription":    {billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseSubscription}, "not found"},
		"use of another's":            {billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseSubscription, Subscription: "sub_2a"}, "not found"},
		"subscription without use":    {billing.Action{Kind: billing.AddPaymentMethod, Subscription: "sub_1a"}, "use: invalid"},
		"another's tax id":            {tax(billing.TaxIDChange{Remove: "txi_2"}), "not found"},
		"no tax id":                   {tax(billing.TaxIDChange{}), "tax_id: nothing_changes"},
		"no change":                   {billing.Action{Kind: billing.UpdateTaxID}, "tax_id: nothing_changes"},
		"no value":                    {tax(billing.TaxIDChange{Type: "eu_vat"}), "tax_id: required"},
		"no type":                     {tax(billing.TaxIDChange{Value: "DE1"}), "tax_id_type: required"},
		"odd type":                    {tax(billing.TaxIDChange{Type: "eu vat", Value: "DE1"}), "tax_id_type: invalid"},
		"long value":                  {tax(billing.TaxIDChange{Type: "eu_vat", Value: strings.Repeat("1", 10_000)}), "tax_id: too_long"},
		"no details":                  {billing.Action{Kind: billing.UpdateDetails}, "details: nothing_changes"},
		"empty name":                  {details(billing.Details{Name: new(" ")}), "name: required"},
		"long name":                   {details(billing.Details{Name: new(strings.Repeat("ü", 10_000))}), "name: too_long"},
		"control in name":             {details(billing.Details{Name: new("a\x00b")}), "name: invalid"},
		"turned name":                 {details(billing.Details{Name: new("a\u202eb")}), "name: invalid"},
		"not UTF-8":                   {details(billing.Details{Name: new("a\xffb")}), "name: invalid"},
		"e-mail":                      {details(billing.Details{Email: new("Ada <ada@example.com>")}), "email: invalid"},
		"country":                     {details(billing.Details{Address: &billing.Address{Country: "de"}}), "country: invalid"},
		"locale":                      {details(billing.Details{Locale: new("not a language")}), "locale: invalid"},
		"fields":                      {details(billing.Details{InvoiceFields: new(make([]billing.InvoiceField, 5))}), "invoice_fields: too_many"},
		"field without value":         {details(billing.Details{InvoiceFields: &[]billing.InvoiceField{{Name: "PO", Value: "1"}, {Name: "VAT"}}}), "invoice_field_2_value: required"},
		"long field":                  {details(billing.Details{InvoiceFields: &[]billing.InvoiceField{{Name: strings.Repeat("x", 41), Value: "1"}}}), "invoice_field_1_name: too_long"},
	} {
		t.Run(name, func(t *testing.T) {
			w, c := paying(t, "change", "change")
			w.fake.debts["cus_1"] = append(w.fake.debts["cus_1"], billing.Invoice{ID: "in_slow", Status: billing.InvoiceOpen, Processing: true})
			w.fake.invoices = []billing.Invoice{{ID: "in_paid", Status: billing.InvoicePaid}}
			var err error
			if tt.a.Kind == billing.PayInvoices {
				_, err = c.Prepare(t.Context(), who(1), tt.a)
			} else {
				_, err = c.Do(t.Context(), who(1), nonce(t, c), "", tt.a)
			}
			got := fmt.Sprint(err)
			if errors.Is(err, ErrNotFound) {
				got = "not found"
			}
			if strings.TrimPrefix(got, "act: ") != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if _, _, sent := w.fake.asked(); sent != 0 || w.count("intent") != 0 {
				t.Error("something was begun")
			}
		})
	}
}

func TestNewActionsThatAreTaken(t *testing.T) {
	for _, a := range []billing.Action{
		{Kind: billing.RemovePaymentMethod, PaymentMethod: "pm_1"},
		{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_1", Subscription: "sub_1a"},
		{Kind: billing.UpdateTaxID, TaxID: &billing.TaxIDChange{Remove: "txi_1"}},
		{Kind: billing.UpdateTaxID, TaxID: &billing.TaxIDChange{Remove: "txi_1", Type: "eu_vat", Value: "DE123456789"}},
		{Kind: billing.UpdateDetails, Details: &billing.Details{Locale: new("pt-BR"), InvoiceFields: &[]billing.InvoiceField{{Name: "PO", Value: "4711"}}}},
		{Kind: billing.UpdateDetails, Details: &billing.Details{Locale: new(""), InvoiceFields: &[]billing.InvoiceField{}}},
	} {
		w, c := paying(t)
		i, err := c.Do(t.Context(), who(1), nonce(t, c), "", a)
		if err != nil || i.State != journal.Succeeded {
			t.Errorf("%s: %s, %v", a.Kind, i.State, err)
		}
		if err := w.settled(i); err != nil {
			t.Error(err)
		}
	}
	// What moves money is never done without a preview.
	_, c := paying(t, "change")
	for _, a := range []billing.Action{pay("in_1a"), {Kind: billing.AddPaymentMethod, Invoices: []string{"in_1a"}}} {
		if _, err := c.Do(t.Context(), who(1), nonce(t, c), "", a); !errors.Is(err, ErrNoPin) {
			t.Errorf("%s without a preview: %v", a.Kind, err)
		}
	}
}

// An invoice that was paid or voided, or a sum that moved, between the preview
// and its confirmation.
func TestPaymentMovedBeforeItWasConfirmed(t *testing.T) {
	w, c := paying(t, "change", "change")
	pin, err := c.Prepare(t.Context(), who(1), pay("in_1a", "in_1b"))
	if err != nil || pin.Preview.DueNow.Amount != 1400 {
		t.Fatal(pin.Preview.DueNow, err)
	}
	w.fake.debts["cus_1"][0].AmountRemaining.Amount = 500
	done, err := c.Confirm(t.Context(), who(1), pin.Nonce)
	if err != nil || done.Fresh == nil || done.Fresh.Before.Amount != 1400 || done.Fresh.Preview.DueNow.Amount != 1200 {
		t.Fatal(done, err)
	}
	w.fake.debts["cus_1"] = w.fake.debts["cus_1"][1:]
	if _, err := c.Confirm(t.Context(), who(1), done.Fresh.Nonce); !errors.Is(err, ErrChanged) {
		t.Errorf("paid meanwhile: %v", err)
	}
	if _, _, sent := w.fake.asked(); sent != 0 {
		t.Error("something was sent")
	}
}

func TestPartOfTheAccountIsMissing(t *testing.T) {
	for _, tt := range []struct {
		section billing.Section
		a       billing.Action
	}{
		{billing.SectionDebts, pay("in_1a")},
		{billing.SectionPaymentMethods, pay("in_1a")},
		{billing.SectionDebts, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: "pm_1"}},
		{billing.SectionPaymentMethods, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: "pm_1"}},
	} {
		w, c := paying(t, "change")
		w.fake.failed = []billing.Section{tt.section}
		if _, err := c.Prepare(t.Context(), who(1), tt.a); !errors.Is(err, ErrNothingSent) {
			t.Errorf("%s without %s: %v", tt.a.Kind, tt.section, err)
		}
	}
}

// A bank debit is asked after less and less often: what asks in vain takes the
// requests of those who wait for a page.
func TestDebitIsAskedAfterSeldom(t *testing.T) {
	for _, mute := range []bool{false, true} {
		w, c := paying(t, "process")
		w.fake.mute = mute
		i := confirm(t, c, pay("in_1a"))
		for range 24 * 60 {
			w.clock.Advance(time.Minute)
			if _, err := c.Recover(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
		if n := w.fake.outcomes; n < 24*6 || n > 24*6+20 {
			t.Errorf("asked %d times in a day, want every ten minutes", n)
		}
		w.fake.pages[i.Steps[0].Key].done = true
		w.clock.Advance(lookAgain)
		if _, err := c.Recover(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if i, err := c.Journal.Get(t.Context(), "cus_1", i.ID); err != nil || i.State != journal.Succeeded {
			t.Error(i.State, err)
		}
	}
}

// A new card that pays invoices takes the right to pay them.
func TestNewCardThatPaysTakesBothRights(t *testing.T) {
	a := billing.Action{Kind: billing.AddPaymentMethod, Invoices: []string{"in_1a"}}
	w, _ := paying(t, "change")
	w.rules = []policy.Rule{{Verdict: policy.Allow, Actions: []string{policy.UpdatePaymentMethod}}}
	c := w.plain()
	owed := billing.Money{Amount: 700, Currency: "usd"}
	if _, err := c.Agree(t.Context(), who(1), nonce(t, c), owed, a); !errors.Is(err, policy.ErrDenied) {
		t.Errorf("got %v", err)
	}
	w.rules[0].Actions = append(w.rules[0].Actions, policy.PayInvoices)
	c = w.plain()
	if i, err := c.Agree(t.Context(), who(1), nonce(t, c), owed, a); err != nil || i.State != journal.AwaitingCustomer {
		t.Errorf("%s, %v", i.State, err)
	}
}

// A card page is used again for the same only.
func TestOneCardPagePerUse(t *testing.T) {
	_, c := paying(t, "change", "change")
	seen := map[string]bool{}
	for _, a := range []billing.Action{
		{Kind: billing.AddPaymentMethod},
		{Kind: billing.AddPaymentMethod, Use: billing.UseNothing},
		{Kind: billing.AddPaymentMethod, Use: billing.UseSubscription, Subscription: "sub_1a"},
		{Kind: billing.AddPaymentMethod, Use: billing.UseSubscription, Subscription: "sub_1b"},
		{Kind: billing.AddPaymentMethod, Invoices: []string{"in_1a"}},
		{Kind: billing.AddPaymentMethod, Invoices: []string{"in_1a", "in_1b"}},
	} {
		var owed billing.Money
		if len(a.Invoices) > 0 {
			owed = billing.Money{Amount: 700 * int64(len(a.Invoices)), Currency: "usd"}
		}
		first, err := c.Agree(t.Context(), who(1), nonce(t, c), owed, a)
		if err != nil || first.State != journal.AwaitingCustomer || seen[first.ID] {
			t.Fatalf("%+v: %s, %v, seen %v", a, first.State, err, seen[first.ID])
		}
		seen[first.ID] = true
		again, err := c.Agree(t.Context(), who(1), nonce(t, c), owed, a)
		if err != nil || again.ID != first.ID {
			t.Errorf("%+v: two pages, %v", a, err)
		}
	}
}

// The provider's page leads back to the payment that it is for, and the trail
// names everything that was paid or removed.
func TestPaymentsInTheTrail(t *testing.T) {
	w, c := paying(t, "change", "change")
	back := ""
	c.ReturnURL = func(intent string) string { return "https://billing.example/back/" + intent }
	steps := w.fake.steps
	w.fake.steps = func(customer string, a billing.Action) []billing.Step {
		back = a.ReturnURL
		return steps(customer, a)
	}
	i := confirm(t, c, pay("in_1a", "in_1b"))
	if back != "https://billing.example/back/"+i.ID {
		t.Errorf("leads back to %q", back)
	}
	if _, err := c.Do(t.Context(), who(1), nonce(t, c), "", billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: "pm_1"}); err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	err := w.base.View(t.Context(), func(tx store.Tx) error {
		list, err := audit.Latest(tx, tenant, "cus_1", 10)
		for _, r := range list {
			got[r.Action] = append(got[r.Action], r.Event+" "+r.Object+" of "+strings.Join(r.Objects, ","))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for action, objects := range map[string]string{"pay_invoices": "in_1a of in_1a,in_1b", "remove_payment_method": "pm_1 of pm_1,cus_1"} {
		slices.Sort(got[action])
		if want := []string{"confirmed " + objects, "settled " + objects}; !slices.Equal(got[action], want) {
			t.Errorf("%s: %q", action, got[action])
		}
	}
}
