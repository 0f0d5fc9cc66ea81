package templates

import (
	"maps"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

var now = time.Date(2026, 5, 14, 13, 2, 10, 0, time.UTC)

func day(month time.Month, d int) time.Time { return time.Date(2026, month, d, 13, 2, 10, 0, time.UTC) }

func eur(n int64) billing.Money { return billing.Money{Amount: n, Currency: "eur"} }

func eurp(n int64) *billing.Money { m := eur(n); return &m }

func price(id string, minor int64, i billing.Interval) billing.Price {
	return billing.Price{ID: id, Product: "prod_" + id, ProductName: id, Currency: "eur", UnitAmount: decimal.NewFromInt(minor), Interval: i, IntervalCount: 1, Active: true}
}

var (
	visa    = &billing.PaymentMethod{ID: "pm_1", Type: "card", Brand: "visa", Last4: "4242", ExpMonth: 4, ExpYear: 2028}
	amex    = &billing.PaymentMethod{ID: "pm_2", Type: "card", Brand: "amex", Last4: "0005", ExpMonth: 5, ExpYear: 2026}
	debit   = &billing.PaymentMethod{ID: "pm_3", Type: "sepa_debit", Last4: "3000"}
	allowed = Permit{Allowed: true}
	may     = func(why string) Permit { return Permit{Why: why} }
	basic   = price("basic_monthly", 1900, billing.Month)
	team    = price("team_monthly", 1225, billing.Month)
	teamY   = price("team_yearly", 14700, billing.Year)

	northwind = billing.Customer{
		ID: "cus_northwind", Name: "Northwind Ltd", Email: "billing@northwind.example", Phone: "+44 20 7946 0018",
		Address: billing.Address{Line1: "14 Gable Street", Line2: "Second floor", City: "Leeds", PostalCode: "LS1 4AP", Country: "GB"},
		Balance: eur(-1200),
	}

	upcoming = billing.Upcoming{
		Subscription: "sub_1", Due: day(6, 1), Subtotal: eur(4900), Tax: eur(980), Total: eur(5880), AmountDue: eur(5880),
		Lines: []billing.Line{{Description: "4 × Team (at €12.25 / month)", Price: "team_monthly", Quantity: 4, Amount: eur(4900), PeriodStart: day(6, 1), PeriodEnd: day(7, 1)}},
	}

	invoices = []billing.Invoice{
		{ID: "in_3", Number: "INV-104", Status: billing.InvoicePaid, Description: "Team, 4 seats, May 2026", Created: day(5, 1), Total: eur(5880), AmountPaid: eur(5880), HasDocument: true},
		{ID: "in_2", Number: "INV-103", Status: billing.InvoiceOpen, Description: "Team, 4 seats, April 2026", Created: day(4, 1), Total: eur(5880), AmountRemaining: eur(2880), Attempted: true, HasDocument: true},
		{ID: "in_1", Number: "INV-102", Status: billing.InvoiceOpen, Created: day(3, 1), Total: eur(1900), AmountRemaining: eur(1900)},
		{ID: "in_0", Number: "", Status: billing.InvoiceOpen, Description: "Change to Enterprise", Created: day(2, 1), Total: eur(123450), AmountRemaining: eur(123450), ForPendingUpdate: true},
		{ID: "in_v", Number: "INV-100", Status: billing.InvoiceVoid, Description: "Basic, January 2026", Created: day(1, 1), Total: eur(1900), HasDocument: true},
	}
)

func subscription() Subscription {
	return Subscription{
		ID: "sub_1", PlanName: "Team", Status: "active", Price: team, Quantity: 4, Total: eur(4900), PeriodEnd: day(6, 1),
		Features: []string{"10 projects", "Priority support"}, Limits: []billing.Limit{{Name: "Seats", Value: 1250}},
		PlanHref: "/plan?subscription=sub_1", CancelHref: "/cancel?subscription=sub_1", Change: allowed, Cancel: allowed, Resume: may("none"),
		ResumeForm: Form{Action: "/resume", Nonce: "nonce-resume", Version: "v1"},
	}
}

func overview() *Overview {
	return &Overview{
		SeeInvoices: true,
		Customer:    northwind, Subscriptions: []Subscription{subscription()},
		Next:   []NextPayment{{Upcoming: upcoming, PlanName: "Team", Method: visa, Kind: "next"}},
		Method: visa, Invoices: invoices[:3], SeePlans: true, UpdateMethod: allowed, UpdateDetails: allowed,
	}
}

func offers() []Offer {
	return []Offer{
		{
			Key: "basic", Name: "Basic", Text: "For one person", Price: basic, Quantity: 4, Total: eur(7600), Direction: "downgrade", Permit: Permit{Why: "policy", Text: "Please talk to us: support@acme.example"},
			Features: []string{"3 projects"}, Losses: []string{"10 projects", "Priority support"},
		},
		{
			Key: "team", Name: "Team", Text: "For a team", Price: team, Quantity: 4, Total: eur(4900), Current: true, Permit: allowed,
			Features: []string{"10 projects", "Priority support"}, Limits: []billing.Limit{{Name: "Seats", Value: 1250}},
		},
		{
			Key: "enterprise", Name: "Enterprise", Text: "For the whole house", Price: price("ent", 9900, billing.Month), Quantity: 4, Total: eur(39600), Direction: "upgrade", Permit: allowed,
			Features: []string{"Unlimited projects"}, Gains: []string{"Unlimited projects", "Single sign-on"},
		},
	}
}

func plan() *Plan {
	s := subscription()
	return &Plan{
		Subscription: &s,
		Intervals:    []PlanInterval{{Interval: billing.Month, Count: 1, Current: true, Href: "/plan?interval=month"}, {Interval: billing.Month, Count: 3, Href: "/plan?interval=month3"}, {Interval: billing.Year, Count: 1, Href: "/plan?interval=year"}},
		Offers:       offers(), Choose: Form{Action: "/plan", Nonce: "nonce-choose", Version: "v1", Hidden: []Field{{"subscription", "sub_1"}}},
		Quantity: QuantityField{Value: "4", Min: 1, Max: 500, Show: true, Price: team.ID}, Change: allowed,
	}
}

func preview() *Preview {
	next := upcoming
	return &Preview{
		Preview: billing.Preview{
			Action: billing.Action{Kind: billing.ChangePlan}, At: now, Effective: now, Subtotal: eur(1742), Tax: eur(348), Total: eur(2090), DueNow: eur(2090), Next: &next,
			Lines: []billing.Line{
				{Description: "Remaining time on Team after 14 May 2026", Price: "team_monthly", Quantity: 4, Amount: eur(2845), PeriodStart: now, PeriodEnd: day(6, 1), Proration: true},
				{Description: "Unused time on Basic after 14 May 2026", Price: "basic_monthly", Quantity: 1, Amount: eur(-1103), PeriodStart: now, PeriodEnd: day(6, 1), Proration: true},
			},
		},
		FromPlan: "Basic", ToPlan: "Team", From: PriceQuantity{basic, 1, eur(1900)}, To: PriceQuantity{team, 4, eur(4900)},
		Gains: []string{"10 projects", "Priority support"}, Losses: []string{"Free onboarding"}, Method: visa,
		Changes: []LimitChange{{Name: "Seats", From: 5, To: 1250}, {Name: "Rooms", To: 3, Added: true}, {Name: "Boards", From: 2, Removed: true}},
		Names:   map[string]string{"basic_monthly": "Basic", "team_monthly": "Team"},
		Confirm: Form{Action: "/check/nonce-confirm", Nonce: "nonce-confirm"}, BackHref: "/plan", Permit: allowed,
	}
}

func receipt(state string, kind billing.ActionKind) *Receipt {
	return &Receipt{State: state, Kind: kind, Reference: "BP-7Q4M-2XKD", Time: now, PlanName: "Team", FromPlan: "Basic", Quantity: 4, Provider: "Stripe"}
}

func page(section string, body any) *Page {
	return &Page{
		Section: section, SignedIn: true, Customer: "Northwind Ltd", ReturnURL: "https://app.acme.example/settings", CancelURL: "/cancel",
		AsOf: now, RefreshHref: "?refresh=1", Body: body,
	}
}

func change[T any](v *T, f func(*T)) *T { f(v); return v }

func decision(p *Page) *Page {
	return change(p, func(p *Page) { p.Section, p.BackTo = "", "plan" })
}

func outside(body any) *Page {
	return &Page{ReturnURL: "https://app.acme.example/settings", RequestID: "req_8f2c", Body: body}
}

func search() *InvoiceSearch {
	return &InvoiceSearch{
		Years: []int{2026, 2025}, Statuses: []string{"open", "overdue", "paid", "void", "uncollectible"},
		Subscriptions: []SubscriptionChoice{{ID: "sub_1", Name: "Team"}, {ID: "sub_2", Name: "Archive", Since: day(1, 1)}},
	}
}

// detail is an invoice with everything that its page can show.
func detail() billing.InvoiceDetail {
	v := invoices[1]
	v.SendInvoice, v.DueDate, v.Subtotal, v.Tax = true, day(5, 1), eur(4900), eur(980)
	v.AmountPaid = eur(3000)
	v.Lines = []billing.Line{
		{Description: "4 × Team (at €12.25 / month)", Quantity: 4, Amount: eur(5400), PeriodStart: day(4, 1), PeriodEnd: day(5, 1)},
		{Description: "Unused time on Basic", Amount: eur(-300), Proration: true},
	}
	return billing.InvoiceDetail{
		Invoice: v, Name: northwind.Name, Email: northwind.Email, Address: northwind.Address,
		TaxIDs: []billing.TaxID{{Type: "gb_vat", Value: "GB123456789"}}, Fields: []billing.InvoiceField{{Name: "PO number", Value: "4711"}},
		Discounts: []billing.Line{{Description: "Spring 10 %", Amount: eur(-200)}}, MoreLines: true,
		TaxLines:    []billing.TaxLine{{Name: "VAT", Percent: "20", Amount: eur(980), Taxable: eur(4900)}, {Percent: "8.875", Inclusive: true, Amount: eur(12)}},
		FromBalance: eur(1200), FromCredits: eur(500),
		Payments: []billing.Payment{
			{ID: "pi_3", Time: day(4, 3), Amount: eur(2880), Status: billing.PaymentFailed, Method: visa, Failure: "insufficient_funds"},
			{ID: "pi_2", Time: day(4, 2), Amount: eur(2880), Status: billing.PaymentFailed, Failure: "no such code"},
			{ID: "pi_1", Time: day(4, 1), Amount: eur(3000), Status: billing.PaymentSucceeded, Method: debit},
		},
		CreditNotes: []billing.CreditNote{
			{ID: "cn_1", Number: "INV-103-CN-01", Created: day(4, 5), Reason: "order_change", Total: eur(500), HasDocument: true},
			{ID: "cn_0", Created: day(4, 4), Reason: "duplicate", Total: eur(100), Void: true},
		},
	}
}

// fixtures are all pages in all their states, by the name of the golden file.
func fixtures() map[string]*Page {
	drop := &Form{Action: "/drop", Nonce: "nonce-drop", Version: "v2"}
	countries := []Country{{"DE", "Germany"}, {"GB", "United Kingdom"}}
	inputs := []AddressInput{
		{Name: "line1", Label: "line1", Autocomplete: "billing address-line1", Value: northwind.Address.Line1, Required: true},
		{Name: "line2", Label: "line2", Autocomplete: "billing address-line2"},
		{Name: "postal_code", Label: "postal_code.zip", Autocomplete: "billing postal-code", Value: northwind.Address.PostalCode, Example: "95014"},
		{Name: "city", Label: "city.post_town", Autocomplete: "billing address-level2", Value: northwind.Address.City, Required: true},
		{Name: "state", Label: "state.no_such_word", Autocomplete: "billing address-level1", Value: "CA", Regions: []billing.AddressRegion{{Key: "CA", Name: "California"}, {Key: "OR", Name: "Oregon"}}},
	}
	long := "International Cooperative Enterprise Collaboration Premium 2026"
	m := map[string]*Page{
		"overview": page("overview", overview()),
		"overview-past-due": change(page("overview", change(overview(), func(o *Overview) {
			o.Subscriptions[0].Status = "past_due"
			o.Customer.Balance = eur(400)
		})), func(p *Page) {
			p.Banner = &Banner{Kind: "past_due", Amount: eur(5880), Sums: []billing.Money{eur(5880)}, Count: 1, Date: day(5, 1), Method: visa, Reason: "insufficient_funds", Retry: day(5, 17), Href: "/pay/in_1", May: true}
		}),
		"overview-no-method": change(page("overview", change(overview(), func(o *Overview) {
			o.Method, o.Next[0].Method, o.Next[0].Kind = nil, nil, "first"
			o.Subscriptions[0].Status, o.Subscriptions[0].TrialEnd = "trial", day(6, 1)
			o.Subscriptions[0].Cancel = Permit{Why: "policy", Text: "Please talk to us: support@acme.example"}
			o.Invoices = nil
			o.Customer.Balance, o.Customer.Phone, o.Customer.Address = billing.Money{}, "", billing.Address{}
		})), func(p *Page) {
			p.Banner = &Banner{Kind: "trial", Date: day(6, 1), Plan: "Team", Href: "/payment/add"}
		}),
		"overview-ending": change(page("overview", change(overview(), func(o *Overview) {
			s := &o.Subscriptions[0]
			s.Status, s.Ends, s.Resume, s.Cancel = "ending", day(6, 1), allowed, may("none")
			o.Next = nil
		})), func(p *Page) { p.Banner = &Banner{Kind: "ending", Date: day(6, 1), Plan: "Team"} }),
		"overview-waiting": change(page("overview", change(overview(), func(o *Overview) {
			s := &o.Subscriptions[0]
			s.Status, s.PendingPlan, s.Change = "waiting", "Enterprise", may("busy")
			s.Pending = &billing.PendingUpdate{AmountDue: eur(2090), ExpiresAt: now.Add(23 * time.Hour)}
			o.UpdateDetails = may("role")
		})), func(p *Page) {
			p.Banner = &Banner{Kind: "action_needed", Amount: eur(2090), Date: now.Add(23 * time.Hour), Plan: "Enterprise", Href: "/done/1", AddHref: "/payment/add", Drop: drop}
		}),
		"overview-checking": change(page("overview", change(overview(), func(o *Overview) {
			o.Subscriptions[0].Status, o.Subscriptions[0].Change, o.Subscriptions[0].Cancel = "checking", may("busy"), may("busy")
			o.Next[0].Kind, o.Next[0].Method = "invoice", nil
		})), func(p *Page) { p.Banner = &Banner{Kind: "checking", Href: "/done/1"} }),
		"overview-stale": change(page("overview", overview()), func(p *Page) {
			p.Stale = true
			p.Banner = &Banner{Kind: "stale", Date: now, Href: "/", Provider: "Stripe"}
		}),
		"overview-failed": change(page("overview", change(overview(), func(o *Overview) {
			o.Next, o.Method, o.Invoices = nil, nil, nil
		})), func(p *Page) {
			p.Failed = []billing.Section{billing.SectionPaymentMethods, billing.SectionInvoices, billing.SectionDebts, billing.SectionUpcoming}
		}),
		"overview-failed-one": change(page("overview", change(overview(), func(o *Overview) { o.Invoices = nil })), func(p *Page) {
			p.Failed = []billing.Section{billing.SectionInvoices}
		}),
		"overview-hundreds": page("overview", change(overview(), func(o *Overview) {
			o.Subscriptions, o.All = append(o.Subscriptions, subscription(), subscription()), 200
		})),
		"subscriptions": page("overview", &Subscriptions{
			Subscriptions: []Subscription{subscription(), subscription()}, From: 26, To: 50, All: 200, BackHref: "/subscriptions?page=1", OnHref: "/subscriptions?page=3",
		}),
		"overview-empty": page("overview", &Overview{Customer: billing.Customer{ID: "cus_new"}, SeePlans: true, SeeInvoices: true, UpdateMethod: allowed, UpdateDetails: allowed}),
		"overview-many": page("overview", change(overview(), func(o *Overview) {
			s := subscription()
			s.ID, s.PlanName, s.Status, s.Quantity, s.Total, s.Price, s.MoreItems = "sub_2", long, "paused", 1, eur(14700), teamY, 2
			o.Subscriptions = append(o.Subscriptions, s)
			n := upcoming
			n.Due, n.AmountDue = day(11, 3), billing.Money{Amount: 17640, Currency: "usd"}
			o.Next = append(o.Next, NextPayment{Upcoming: n, PlanName: long, Kind: "next"})
		})),
		"plan": page("plan", plan()),
		"plan-error": page("plan", change(plan(), func(p *Plan) {
			p.Quantity.Value = "four"
			p.Errors = []FieldError{{Field: "quantity", Key: "quantity_max", Args: map[string]any{"max": int64(500)}}, {Field: "price", Key: "price"}}
		})),
		"plan-viewer": page("plan", change(plan(), func(p *Plan) {
			p.Change, p.Subscription.Change, p.Subscription.Cancel = may("role"), may("role"), may("role")
			o := subscription()
			o.PlanName = "Archive"
			p.Others = []Subscription{o}
		})),
		"plan-ending": page("plan", change(plan(), func(p *Plan) {
			s := p.Subscription
			s.Status, s.Ends, s.Resume, s.Cancel = "ending", day(6, 1), allowed, may("none")
			p.Quantity.Show = false
			p.Intervals = nil
			for i := range p.Offers {
				p.Offers[i].Price = price(p.Offers[i].Key, 29000, billing.Year)
				p.Offers[i].Total = eur(4 * 29000)
			}
		})),
		"plan-usage": page("plan", change(plan(), func(p *Plan) {
			s := &Subscription{ID: "sub_1", PlanName: "Pay as you go", Status: "active", Price: calls, Total: eur(0), Metered: true, PeriodEnd: day(6, 1)}
			p.Subscription, p.Quantity.Value, p.Quantity.Price = s, "1", ""
			p.Offers[0] = Offer{Key: "calls", Name: "Pay as you go", Price: calls, Quantity: 1, Total: eur(0), Current: true, Permit: allowed}
			p.Offers[1].Current, p.Offers[1].Quantity, p.Offers[1].Total = false, 1, eur(1225)
			p.Offers[2].Price.Tiers = []billing.Tier{{UpTo: 5, FlatAmount: decimal.NewFromInt(9900)}, {UnitAmount: decimal.NewFromInt(1500)}}
			p.Offers[2].Quantity, p.Offers[2].Total = 6, eur(11400)
		})),
		"preview-usage": page("plan", change(preview(), func(p *Preview) { p.FromPlan, p.From = "Pay as you go", PriceQuantity{Price: calls, Total: eur(0)} })),
		"plan-none": page("plan", change(plan(), func(p *Plan) {
			p.Subscription, p.Change = nil, may("none")
			for i := range p.Offers {
				p.Offers[i].Quantity, p.Offers[i].Total = 0, billing.Money{}
			}
		})),
		"plan-only":    page("plan", change(plan(), func(p *Plan) { p.Offers, p.Change = nil, may("scheduled") })),
		"preview":      decision(page("plan", preview())),
		"preview-long": decision(page("plan", change(preview(), func(p *Preview) { p.ToPlan = long }))),
		"preview-moved": decision(page("plan", change(preview(), func(p *Preview) {
			p.Moved, p.Before = true, eur(2160)
		}))),
		"preview-credit": decision(page("plan", change(preview(), func(p *Preview) {
			p.FromPlan, p.ToPlan, p.From, p.To = "Team", "Basic", p.To, p.From
			p.Preview.Lines = []billing.Line{{Description: "Unused time on Team", Amount: eur(-3100), PeriodStart: now, PeriodEnd: day(6, 1), Proration: true}}
			p.Preview.Subtotal, p.Preview.Tax, p.Preview.Total, p.Preview.DueNow, p.Preview.ToBalance = eur(-3100), eur(0), eur(-3100), eur(0), eur(3100)
			p.Moved, p.Before = true, eur(0)
		}))),
		"preview-balance": decision(page("plan", change(preview(), func(p *Preview) {
			p.SamePlan, p.FromPlan, p.From = true, "Team", PriceQuantity{team, 3, eur(3675)}
			p.Preview.DueNow, p.Preview.FromBalance = eur(890), eur(1200)
			p.Gains, p.Losses = nil, nil
		}))),
		"preview-trial": decision(page("plan", change(preview(), func(p *Preview) {
			p.SamePlan, p.FromPlan, p.ToPlan, p.From, p.To = true, "Team", "Team", PriceQuantity{team, 1, eur(1225)}, PriceQuantity{teamY, 1, eur(14700)}
			p.Preview.EndsTrial = true
		}))),
		"preview-later": decision(page("plan", change(preview(), func(p *Preview) {
			p.Preview.Lines, p.Preview.Total, p.Preview.DueNow, p.Preview.Tax, p.Preview.Effective = nil, eur(0), eur(0), eur(0), day(6, 1)
		}))),
		"preview-no-method": decision(page("plan", change(preview(), func(p *Preview) { p.Method, p.NeedsMethod = nil, true }))),
		"preview-invoiced": decision(page("plan", change(preview(), func(p *Preview) {
			p.Method, p.Invoiced, p.InvoiceDue = nil, true, day(6, 13)
		}))),
		"preview-denied": decision(page("plan", change(preview(), func(p *Preview) { p.Permit = may("busy") }))),

		"receipt-change": page("", change(receipt("done", billing.ChangePlan), func(r *Receipt) {
			r.Paid, r.Method, r.Effective, r.Next, r.Invoice = eurp(2090), visa, now, &upcoming, &invoices[0]
		})),
		"receipt-quantity": page("", change(receipt("done", billing.ChangePlan), func(r *Receipt) {
			r.SamePlan, r.Paid, r.Credited, r.Differs, r.Expected, r.Effective = true, eurp(2160), eurp(300), true, eur(2090), day(6, 1)
		})),
		"receipt-cancel": page("", change(receipt("done", billing.Cancel), func(r *Receipt) {
			r.Effective, r.UndoUntil, r.Undo = day(6, 1), day(6, 1), &Form{Action: "/resume", Nonce: "nonce-undo", Version: "v3"}
		})),
		"receipt-resume":  page("", change(receipt("done", billing.Resume), func(r *Receipt) { r.Next = &upcoming })),
		"receipt-dropped": page("", receipt("done", billing.DropPending)),
		"receipt-card":    page("", change(receipt("done", billing.AddPaymentMethod), func(r *Receipt) { r.Method = visa })),
		"receipt-default": page("", change(receipt("done", billing.SetDefaultPaymentMethod), func(r *Receipt) { r.Method = amex })),
		"receipt-details": page("", receipt("done", billing.UpdateDetails)),
		"receipt-declined": page("", change(receipt("waiting", billing.ChangePlan), func(r *Receipt) {
			r.Reason, r.Until, r.Drop, r.AddMethodHref, r.Amount = "card_declined", now.Add(23*time.Hour), drop, "/payment/add", eurp(2090)
		})),
		"receipt-3ds": page("", change(receipt("waiting", billing.ChangePlan), func(r *Receipt) {
			r.Reason, r.Until, r.Drop, r.GoHref, r.AddMethodHref = "authentication_required", now.Add(23*time.Hour), drop, "/go/1", "/payment/add"
			r.Amount, r.Check = eurp(2090), &Form{Action: "/done/1"}
		})),
		"receipt-enter-card": page("", change(receipt("waiting", billing.AddPaymentMethod), func(r *Receipt) {
			r.Reason, r.GoHref, r.FromPlan = "enter_card", "/go/1", ""
		})),
		"receipt-processing": page("", change(receipt("processing", billing.ChangePlan), func(r *Receipt) { r.Method, r.Amount = debit, eurp(2090) })),
		"receipt-checking": page("", change(receipt("checking", billing.ChangePlan), func(r *Receipt) {
			r.Sent, r.Check, r.StateHref = now, &Form{Action: "/done/1", Nonce: "nonce-check"}, "/state/1"
		})),
		"receipt-refused": page("", change(receipt("refused", billing.ChangePlan), func(r *Receipt) {
			r.Reason, r.Amount, r.RetryHref, r.AddMethodHref = "card_declined", eurp(2090), "/plan", "/payment/add"
		})),
		"receipt-refused-other": page("", change(receipt("refused", billing.UpdateDetails), func(r *Receipt) { r.FromPlan, r.RetryHref = "", "/details/email" })),
		"receipt-not-applied":   page("", change(receipt("not_applied", billing.ChangePlan), func(r *Receipt) { r.RetryHref = "/plan" })),
		"receipt-manual":        page("", receipt("manual", billing.ChangePlan)),

		"cancel": decision(page("plan", &Cancel{Subscription: subscription(), Confirm: Form{Action: "/cancel", Nonce: "nonce-cancel", Version: "v1"}, KeepHref: "/", Permit: allowed})),
		"cancel-past-due": decision(page("plan", &Cancel{
			Subscription: *change(new(subscription()), func(s *Subscription) { s.Status, s.PeriodEnd = "past_due", time.Time{} }),
			Confirm:      Form{Action: "/cancel", Nonce: "nonce-cancel"}, Permit: allowed,
		})),
		"cancel-denied": decision(page("plan", &Cancel{Subscription: subscription(), Permit: Permit{Why: "policy", Text: "Please talk to us: support@acme.example"}})),

		"leave-provider": page("", &Leave{Provider: "Stripe", Href: "https://checkout.stripe.com/c/pay/1"}),
		"leave-vendor":   outside(&Leave{Href: "https://app.acme.example/settings"}),

		"details-address": change(page("payment", &Details{Section: "address", Values: northwind, Countries: countries, Address: inputs, Confirm: Form{Action: "/details/address", Nonce: "nonce-details", Version: "c1"}, Permit: allowed}), func(p *Page) { p.BackTo = "payment" }),
		"details-address-errors": change(page("payment", &Details{
			Section: "address", Values: billing.Customer{}, Countries: countries, Address: inputs[:4], Switched: true, Confirm: Form{Action: "/details/address"}, Permit: allowed,
			Errors: []FieldError{{Field: "country", Key: "country"}, {Field: "line1", Key: "line1"}, {Field: "city", Key: "too_long", Args: map[string]any{"count": 80}}, {Field: "postal_code", Key: "postal_code_form", Args: map[string]any{"example": "95014"}}, {Field: "line2", Key: "no_such_key"}},
		}),
			func(p *Page) { p.BackTo = "payment" }),
		"details-denied": change(page("payment", &Details{Section: "phone", Values: northwind, Permit: may("role")}), func(p *Page) { p.BackTo = "payment" }),

		"invoices": page("invoices", &Invoices{Invoices: invoices, NewerHref: "/invoices?cursor=a", OlderHref: "/invoices?cursor=b"}),
		"invoices-all": page("invoices", &Invoices{
			Invoices: invoices, Pay: true, Now: now, Search: search(), Totals: &InvoiceTotals{Open: []billing.Money{eur(4780), {Amount: 1200, Currency: "jpy"}}, Paid: []billing.Money{eur(23520)}, Year: 2026},
			Count: 1263, From: 26, To: 50, NewerHref: "/invoices?page=1", OlderHref: "/invoices?page=3", Downloads: 1263, CSVHref: "/invoices.csv", ZIPMost: 100,
		}),
		"invoices-found": page("invoices", &Invoices{
			Invoices: invoices[:1], Count: 1, From: 1, To: 1, Downloads: 1, CSVHref: "/invoices.csv?q=INV-104", ZIPHref: "/invoices.zip?q=INV-104",
			Search: change(search(), func(s *InvoiceSearch) {
				s.Active, s.Text, s.Year, s.Status, s.Subscription, s.IndexedTo, s.Reading = true, "INV-104", 2026, "paid", "sub_1", day(1, 1), true
			}),
		}),
		"invoices-none": page("invoices", &Invoices{Search: change(search(), func(s *InvoiceSearch) {
			s.Active, s.Text, s.Year, s.IndexedTo, s.Subscriptions = true, "INV-9", 2025, day(1, 1), nil
		})}),
		"invoices-none-text": page("invoices", &Invoices{Search: change(search(), func(s *InvoiceSearch) { s.Active, s.Text = true, "INV-9" })}),
		"invoices-none-year": page("invoices", &Invoices{Search: change(search(), func(s *InvoiceSearch) { s.Active, s.Year = true, 2025 })}),
		"invoices-empty":     page("invoices", &Invoices{Search: &InvoiceSearch{}, Totals: &InvoiceTotals{Year: 2026}}),
		"invoices-end":       page("invoices", &Invoices{NewerHref: "/invoices?newer=a"}),
		"invoices-failed":    page("invoices", &Invoices{Failed: true}),
		"invoice":            page("invoices", &Invoice{Invoice: detail(), Plan: "Team", PayHref: "/pay/in_2"}),
		"invoice-paid": page("invoices", &Invoice{ReceiptHref: "/invoices/in_3/receipt", Invoice: billing.InvoiceDetail{
			Invoice: invoices[0], PaidAt: day(5, 2), FromBalance: eur(-300),
			Payments: []billing.Payment{{ID: "pi_1", Time: day(5, 2), Amount: eur(5880), Status: billing.PaymentSucceeded, Method: visa, Refunded: eur(100)}},
		}}),
		"invoice-bare": page("invoices", &Invoice{Invoice: billing.InvoiceDetail{Invoice: invoices[3]}}),
		"payment-receipt": page("invoices", &PaymentReceipt{Invoice: detail(), Paid: eur(5780), Payments: []billing.Payment{
			{ID: "pi_1", Time: day(5, 2), Amount: eur(5880), Status: billing.PaymentSucceeded, Method: visa, Refunded: eur(100)},
		}}),
		"payment-receipt-bare": page("invoices", &PaymentReceipt{Invoice: billing.InvoiceDetail{Invoice: invoices[3]}, Paid: eur(100)}),

		"devices": page("", &Devices{EndAll: &Form{Action: "/devices/sign-out-all"}, Devices: []Device{
			{Browser: "Firefox", System: "Linux", Person: "Ann Example", Since: now.Add(-time.Hour), Seen: now, This: true, End: Form{Action: "/sign-out"}},
			{Browser: "Safari", System: "iOS", Person: "b•••@northwind.example", Since: now.Add(-3 * time.Hour), Seen: now.Add(-20 * time.Minute), End: Form{Action: "/devices/sign-out", Hidden: []Field{{"session", "ses_2"}}}},
			{System: "Windows", Since: now.Add(-4 * time.Hour), Seen: now.Add(-25 * time.Minute), End: Form{Action: "/devices/sign-out", Hidden: []Field{{"session", "ses_3"}}}},
			{Since: now.Add(-5 * time.Hour), Seen: now.Add(-26 * time.Minute), End: Form{Action: "/devices/sign-out", Hidden: []Field{{"session", "ses_4"}}}},
		}}),
		"devices-own": page("", &Devices{Ended: true, Devices: []Device{{Browser: "Chrome", Since: now, Seen: now, This: true, End: Form{Action: "/sign-out"}}}}),

		"enter":          {Body: &Enter{Name: "Northwind Ltd", Token: "eyJhbGciOiJFZERTQSJ9.e30.sig"}, ReturnURL: "https://app.acme.example/settings"},
		"enter-replaces": {Body: &Enter{ID: "cus_northwind", Token: "eyJhbGciOiJFZERTQSJ9.e30.sig", Replaces: true}},
	}
	vat := []billing.TaxID{
		{ID: "txi_1", Type: "eu_vat", Country: "DE", Value: "DE123456789", Status: billing.TaxIDVerified, VerifiedName: "Northwind GmbH"},
		{ID: "txi_2", Type: "eu_vat", Country: "FR", Value: "FRAB123456789", Status: billing.TaxIDPending},
		{ID: "txi_3", Type: "gb_vat", Country: "GB", Value: "GB123456789", Status: billing.TaxIDUnverified},
		{ID: "txi_4", Type: "ch_vat", Country: "CH", Value: "CHE-123.456.789 MWST", Status: billing.TaxIDUnavailable},
		{ID: "txi_5", Type: "us_ein", Country: "US", Value: "12-3456789"},
	}
	kinds := []TaxIDChoice{{"us_ein:US", "US", "United States EIN"}, {"eu_vat:DE", "DE", "German VAT number"}, {"eu_oss_vat:", "", "European One Stop Shop VAT number"}}
	papers := northwind
	papers.TaxIDs, papers.Locale = vat, "de"
	papers.InvoiceFields = []billing.InvoiceField{{Name: "PO number", Value: "4711"}, {Name: "Cost centre", Value: "R&D <2>"}}
	toPayment := func(body any) *Page { return change(page("payment", body), func(p *Page) { p.BackTo = "payment" }) }
	m["payment-papers"] = page("payment", &Payment{Methods: []Method{{PaymentMethod: *visa, Default: true}}, Add: allowed, AddHref: "/payment/add", Customer: papers, UpdateDetails: allowed, UpdateTaxIDs: allowed})
	m["details-invoice-fields"] = toPayment(&Details{
		Section: "invoice-fields", Values: papers, PurchaseOrder: "4711", Fields: []billing.InvoiceField{papers.InvoiceFields[1], {Name: "Cost centre", Value: "x"}, {}},
		Confirm: Form{Action: "/details/invoice-fields", Nonce: "nonce-details"}, Permit: allowed, Errors: []FieldError{{Field: "field_name_2", Key: "field_twice"}},
	})
	m["details-language"] = toPayment(&Details{
		Section: "language", Values: papers, Languages: []Language{{"de", "Deutsch"}, {"en", "English"}}, Confirm: Form{Action: "/details/language", Nonce: "nonce-details"}, Permit: allowed,
	})
	m["tax-ids"] = toPayment(&TaxIDs{IDs: vat, Own: kinds[:1], Others: kinds, Choice: "us_ein:US", Confirm: Form{Action: "/details/tax-ids", Nonce: "nonce-tax"}, Permit: allowed})
	m["tax-ids-empty"] = toPayment(&TaxIDs{
		Others: kinds, Choice: "eu_vat:DE", Value: "DE12", Confirm: Form{Action: "/details/tax-ids", Nonce: "nonce-tax"}, Permit: allowed,
		Errors: []FieldError{{Field: "tax_id_value", Key: "tax_id", Args: map[string]any{"name": "German VAT number", "example": "DE123456789"}}},
	})
	m["tax-ids-denied"] = toPayment(&TaxIDs{IDs: vat[:1], Permit: may("role")})
	m["tax-id"] = toPayment(&TaxIDs{
		IDs: vat, Editing: &vat[0], Own: kinds[1:2], Others: kinds, Choice: "eu_vat:DE", Value: "DE123456789", Permit: allowed,
		Confirm: Form{Action: "/tax-id/txi_1", Nonce: "nonce-tax"}, Remove: Form{Action: "/tax-id/txi_1", Nonce: "nonce-remove", Hidden: []Field{{"remove", "1"}}},
	})
	maps.Copy(m, usageFixtures())
	maps.Copy(m, payFixtures())
	for _, s := range []string{"name", "email", "phone"} {
		m["details-"+s] = change(page("payment", &Details{Section: s, Values: northwind, Confirm: Form{Action: "/details/" + s, Nonce: "nonce-details"}, Permit: allowed}), func(p *Page) { p.BackTo = "payment" })
	}
	m["support"] = change(page("payment", &Payment{Methods: []Method{{PaymentMethod: *visa, Default: true}}, Add: may("role"), Customer: northwind, UpdateDetails: may("role")}), func(p *Page) {
		p.Support = &Support{Staff: "Ada <ada@acme.example>", Customer: "Northwind & Sons", Ends: p.AsOf}
	})
	for _, k := range messageKinds {
		m["message-"+k] = outside(&Message{Kind: k, Status: 400, Seconds: 5, Provider: "Stripe"})
	}
	m["message-zip_most"] = outside(&Message{Kind: "zip_most", Status: 422, Count: 100, Href: "/invoices", Link: "invoices"})
	m["message-changed"].Body = &Message{Kind: "changed", Status: 409, Href: "/plan", Link: "plan"}
	m["message-denied"].Body = &Message{Kind: "denied", Status: 403, Text: "Please talk to us: support@acme.example", Href: "/", Link: "overview"}
	m["message-too_many-soon"] = outside(&Message{Kind: "too_many", Status: 429})
	m["message-unknown"] = outside(&Message{Kind: "no such kind", Href: "/", Link: "no such link"})
	return m
}

var messageKinds = []string{
	"link_used", "link_expired", "link_invalid", "link_too_soon", "signed_out", "session_ended", "not_signed_in", "not_found", "forbidden", "denied", "view_denied", "view_denied_role", "changed",
	"busy", "bad_request", "too_large", "method_not_allowed", "too_many", "error", "unavailable", "provider_down", "provider_down_nothing_sent", "form_aged", "refused", "sign_out_failed", "unavailable_change",
	"document_not_ready", "document_failed", "zip_most", "zip_busy", "zip_empty",
}

// stripeExponent is enough of a provider's table for the fixtures.
func stripeExponent(currency string) int {
	switch currency {
	case "jpy":
		return 0
	case "kwd":
		return 3
	}
	return 2
}

func options() Options {
	return Options{
		Theme: Theme{Name: "Acme", LogoURL: "/logo.svg"}, Exponent: stripeExponent, ProviderName: "Stripe",
		HelpURL: "mailto:support@acme.example", LegalURL: "https://acme.example/legal", PrivacyURL: "https://acme.example/privacy",
	}
}
