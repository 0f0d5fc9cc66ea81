package templates

import (
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

var (
	wallet   = &billing.PaymentMethod{ID: "pm_5", Type: "card", Brand: "visa", Last4: "4242", Wallet: "apple_pay", ExpMonth: 5, ExpYear: 2026}
	account  = &billing.PaymentMethod{ID: "pm_6", Type: "us_bank_account", Last4: "6789", Bank: "STRIPE TEST BANK"}
	link     = &billing.PaymentMethod{ID: "pm_7", Type: "link", Email: "ann@northwind.example"}
	paypal   = &billing.PaymentMethod{ID: "pm_8", Type: "paypal", Email: "pay@northwind.example"}
	transfer = &billing.PaymentMethod{ID: "pm_9", Type: "customer_balance"}
	unknown  = &billing.PaymentMethod{ID: "pm_10", Type: "new_pay"}
)

func debt(id, number string, remaining int64, month time.Month) Debt {
	return Debt{
		Invoice: billing.Invoice{
			ID: id, Number: number, Status: billing.InvoiceOpen, Created: day(month, 1), Total: eur(remaining), AmountRemaining: eur(remaining),
			Attempted: true, Failure: "card_declined", Method: visa, HasDocument: true,
		},
		Plan: "Team", Since: day(month, 1), Late: true,
	}
}

func payOne() *Pay {
	d := debt("in_2", "INV-103", 5880, 5)
	d.Failure, d.NextAttempt = "insufficient_funds", day(5, 17)
	return &Pay{
		One: true, Debts: []Debt{d}, Permit: allowed, Add: allowed, Chosen: "pm_1", Methods: []Method{{PaymentMethod: *visa}},
		Sums: []PaySum{{Amount: eur(5880), Count: 1, Whole: true, Method: visa, NewCardHref: "/payment/add?pay=in_2"}},
		Form: Form{Action: "/pay/in_2", Hidden: []Field{{"nonce_eur", "nonce-pay"}, {"amount_eur", "5880"}, {"invoices_eur", "in_2"}}},
	}
}

func payMany() *Pay {
	p := payOne()
	p.One = false
	a, b, c := debt("in_1", "INV-102", 5880, 3), debt("in_2", "INV-103", 5880, 4), debt("in_3", "", 5880, 5)
	a.Failure, a.Method, b.Failure, b.Total = "expired_card", nil, "stolen_card", eur(11760)
	c.Attempted, c.SendInvoice, c.TransferHref, c.Plan, c.Description, c.HasDocument = false, true, "/transfer/in_3", "", "Extra work", false
	a.Href, b.Href, c.Href = "/pay/in_1", "/pay/in_2", "/pay/in_3"
	later := debt("in_4", "INV-105", 1900, 6)
	later.Attempted, later.Late, later.SendInvoice, later.TransferHref, later.Href = false, false, true, "/transfer/in_4", "/pay/in_4"
	coming := debt("in_5", "INV-106", 1900, 5)
	coming.Processing = true
	p.Debts, p.Later = []Debt{a, b, c}, []Debt{later, coming}
	p.Methods = []Method{{PaymentMethod: *visa}, {PaymentMethod: *debit}, {PaymentMethod: *amex, Expiry: "expired"}}
	p.Sums = []PaySum{{Amount: eur(17640), Count: 3, Whole: true, NewCardHref: "/payment/add?pay=in_1%2Cin_2%2Cin_3"}}
	return p
}

// payFixtures are the pages about payment methods and paying.
func payFixtures() map[string]*Page {
	choices := []PlanChoice{{ID: "sub_1", Name: "Team", Method: visa}, {ID: "sub_2", Name: "Archive"}}
	add := Form{Action: "/payment/add", Nonce: "nonce-add"}
	back := func(section string, body any) *Page {
		return change(page("payment", body), func(p *Page) { p.BackTo = section })
	}
	past := func(f func(*Banner)) *Page {
		return change(page("invoices", &Invoices{}), func(p *Page) {
			p.Banner = &Banner{
				Kind: "past_due", Amount: eur(17640), Sums: []billing.Money{eur(17640)}, Count: 3, Date: day(3, 1), Method: visa,
				Reason: "expired_card", Href: "/pay", May: true,
			}
			f(p.Banner)
		})
	}
	paid := func(state string, f func(*Receipt)) *Page {
		r := receipt(state, billing.PayInvoices)
		r.PlanName, r.FromPlan, r.Quantity = "", "", 0
		f(r)
		return page("payment", r)
	}
	one := PaidInvoice{ID: "in_1", Number: "INV-102", Amount: eur(5880), State: "paid", HasDocument: true}
	with := func(state, reason, href string) PaidInvoice {
		p := one
		p.ID, p.Number, p.State, p.Reason, p.Href, p.HasDocument = "in_"+state, "INV-"+state, state, reason, href, false
		return p
	}
	return map[string]*Page{
		"payment": page("payment", &Payment{Waits: []billing.Money{{Amount: 2090, Currency: "eur"}}, Methods: []Method{
			{PaymentMethod: *visa, Default: true, PaysFor: []PaysFor{{Plan: "Team", Next: day(6, 1)}}, UseHref: "/payment/use/pm_1", RemoveHref: "/payment/remove/pm_1"},
			{
				PaymentMethod: *amex, Expiry: "this_month", BeforeNext: true, PaysFor: []PaysFor{{Plan: "Archive", Next: day(6, 1), Own: true}, {Plan: "Extra", Own: true}},
				MakeDefault: &Form{Action: "/payment/default", Nonce: "nonce-default", Hidden: []Field{{"payment_method", "pm_2"}}},
				UseHref:     "/payment/use/pm_2", RemoveHref: "/payment/remove/pm_2",
			},
			{PaymentMethod: billing.PaymentMethod{ID: "pm_4", Type: "card", Brand: "mastercard", Last4: "4444", ExpMonth: 1, ExpYear: 2026}, Expiry: "expired", RemoveHref: "/payment/remove/pm_4"},
			{PaymentMethod: *wallet, Expiry: "next_month"},
			{PaymentMethod: *debit},
			{PaymentMethod: *account},
			{PaymentMethod: *link},
			{PaymentMethod: *paypal},
			{PaymentMethod: *transfer},
			{PaymentMethod: *unknown},
		}, Add: allowed, AddHref: "/payment/add", Customer: northwind, UpdateDetails: allowed, UpdateTaxIDs: allowed}),
		"payment-empty":        page("payment", &Payment{Add: may("role"), Customer: billing.Customer{ID: "cus_new", Address: billing.Address{Line1: "12 Pike Street", City: "Seattle", State: "WA", PostalCode: "98122", Country: "US"}}, UpdateDetails: may("policy"), UpdateTaxIDs: may("policy")}),
		"payment-empty-renews": page("payment", &Payment{Add: allowed, Customer: northwind, UpdateDetails: allowed, UpdateTaxIDs: allowed, Renews: day(6, 1)}),
		"payment-viewer":       page("payment", &Payment{Methods: []Method{{PaymentMethod: *visa, Default: true, PaysFor: []PaysFor{{Plan: "Team"}}}}, Add: may("role"), Customer: northwind, UpdateDetails: may("role"), UpdateTaxIDs: may("role")}),
		"payment-failed": change(page("payment", &Payment{Add: allowed, Customer: northwind, UpdateDetails: allowed, UpdateTaxIDs: allowed}), func(p *Page) {
			p.Failed = []billing.Section{billing.SectionPaymentMethods}
		}),

		"add-method":            back("payment", &AddMethod{Provider: "Stripe", Confirm: add}),
		"add-method-unfinished": back("payment", &AddMethod{Confirm: add, Unfinished: true}),
		"add-method-choice":     back("payment", &AddMethod{Waits: []billing.Money{{Amount: 2090, Currency: "eur"}}, Provider: "Stripe", Confirm: add, Choose: true, Plans: choices, Use: UseAll}),
		"add-method-pays": back("payment", &AddMethod{
			Provider: "Stripe", Confirm: Form{Action: "/payment/add", Nonce: "nonce-add", Hidden: []Field{{"invoices_eur", "in_2"}}},
			Choose: true, Plans: choices[:1], Use: UseNone, Pays: eurp(5880), Count: 1, Moved: true, Before: eur(4900), StayHref: "/pay/in_2",
		}),
		"use-method":        back("payment", &UseMethod{Waits: []billing.Money{{Amount: 2090, Currency: "eur"}}, Method: *amex, Plans: choices, Confirm: Form{Action: "/payment/use/pm_2", Nonce: "nonce-use", Version: "c1"}, Permit: allowed}),
		"use-method-error":  back("payment", &UseMethod{Method: *amex, Plans: choices, Confirm: Form{Action: "/payment/use/pm_2"}, Permit: allowed, Errors: []FieldError{{Field: "use", Key: "use"}}}),
		"use-method-denied": back("payment", &UseMethod{Method: *amex, Permit: may("role")}),

		"remove-method":        back("payment", &RemoveMethod{Method: *visa, Confirm: Form{Action: "/payment/remove/pm_1", Nonce: "nonce-remove", Version: "c1"}, Permit: allowed}),
		"remove-method-in-use": back("payment", &RemoveMethod{Method: *visa, Permit: allowed, Why: "in_use", Plans: []string{"Team", "Archive"}}),
		"remove-method-debt":   back("payment", &RemoveMethod{Method: *visa, Permit: allowed, Why: "in_use"}),
		"remove-method-last":   back("payment", &RemoveMethod{Method: *visa, Permit: allowed, Why: "last", Plans: []string{"Team"}}),
		"remove-method-denied": back("payment", &RemoveMethod{Method: *visa, Permit: Permit{Why: "policy", Text: "Please talk to us: support@acme.example"}}),

		"pay":         back("overview", payOne()),
		"pay-started": back("overview", change(payOne(), func(p *Pay) { p.Started = &Started{Time: now, Href: "/done/1"} })),
		"pay-moved":   back("overview", change(payOne(), func(p *Pay) { p.Moved, p.Before = true, eur(4900) })),
		"pay-many":    back("overview", payMany()),
		"pay-some": back("overview", change(payMany(), func(p *Pay) {
			p.Sums[0].Whole, p.Sums[0].Count, p.Moved, p.Later = false, 20, true, nil
		})),
		"pay-currencies": back("overview", change(payMany(), func(p *Pay) {
			p.Debts[0].AmountRemaining, p.Debts[0].Total = billing.Money{Amount: 2000, Currency: "usd"}, billing.Money{Amount: 2000, Currency: "usd"}
			p.Sums = []PaySum{{Amount: billing.Money{Amount: 2000, Currency: "usd"}, Count: 1, Whole: true}, {Amount: eur(11760), Count: 2, Whole: true, Method: visa, NewCardHref: "/payment/add?pay=in_2%2Cin_3"}}
			p.Methods = p.Methods[:1]
		})),
		"pay-no-method":     back("overview", change(payOne(), func(p *Pay) { p.Methods, p.Sums[0].Method = nil, nil })),
		"pay-no-method-ask": back("overview", change(payOne(), func(p *Pay) { p.Methods, p.Sums[0].Method, p.Sums[0].NewCardHref, p.Add = nil, nil, "", may("policy") })),
		"pay-viewer":        back("overview", change(payMany(), func(p *Pay) { p.Permit, p.Sums, p.Debts[0].Href, p.Later = may("role"), nil, "", nil })),
		"pay-checking": back("overview", change(payOne(), func(p *Pay) {
			p.Later, p.Debts, p.Sums = p.Debts, nil, nil
			p.Later[0].CheckingHref = "/done/1"
		})),
		"pay-later":          back("overview", change(payMany(), func(p *Pay) { p.Debts, p.Sums = nil, nil })),
		"pay-nothing":        back("overview", &Pay{Permit: allowed}),
		"pay-failed":         change(back("overview", &Pay{Permit: allowed}), func(p *Page) { p.Failed = []billing.Section{billing.SectionDebts} }),
		"pay-methods-failed": change(back("overview", change(payOne(), func(p *Pay) { p.Methods = nil })), func(p *Page) { p.Failed = []billing.Section{billing.SectionPaymentMethods} }),

		"banner-past-due-many":       past(func(*Banner) {}),
		"banner-past-due-currencies": past(func(b *Banner) { b.Sums = append(b.Sums, billing.Money{Amount: 2000, Currency: "usd"}) }),
		"banner-past-due-viewer":     past(func(b *Banner) { b.May, b.Count, b.Amount, b.Sums = false, 1, eur(5880), []billing.Money{eur(5880)} }),
		"banner-past-due-by-hand":    past(func(b *Banner) { b.ByHand, b.Method, b.Reason, b.Count = true, nil, "", 1 }),
		"banner-past-due-no-method":  past(func(b *Banner) { b.Method, b.Reason, b.Count = nil, "", 1 }),
		"banner-past-due-unknown":    past(func(b *Banner) { *b = Banner{Kind: "past_due", Href: "/pay", Beside: true, Reason: "fraudulent"} }),
		"banner-processing": past(func(b *Banner) {
			*b = Banner{Kind: "processing", Sums: []billing.Money{eur(5880), {Amount: 2000, Currency: "usd"}}, Count: 2, Href: "/pay"}
		}),

		"receipt-paid": paid("done", func(r *Receipt) {
			r.Paid, r.Method, r.Active, r.Payments, r.PaidCount = eurp(5880), visa, "Team", []PaidInvoice{one}, 1
		}),
		"receipt-partly": paid("partly", func(r *Receipt) {
			r.Paid, r.Method, r.PaidCount, r.RetryHref, r.AddMethodHref = eurp(5880), visa, 1, "/pay", "/payment/add?pay=in_declined"
			r.Payments = []PaidInvoice{
				one, with("declined", "insufficient_funds", "/pay/in_declined"), with("waiting", "", ""), with("processing", "", ""),
				with("checking", "", ""), with("not_sent", "", "/pay/in_not_sent"), with("new", "", ""),
			}
		}),
		"receipt-pay-refused": paid("refused", func(r *Receipt) {
			r.Reason, r.Amount, r.RetryHref, r.AddMethodHref = "expired_card", eurp(5880), "/pay/in_1", "/payment/add?pay=in_1"
			r.Payments = []PaidInvoice{with("declined", "expired_card", "/pay/in_declined")}
		}),
		"receipt-pay-closed": paid("not_applied", func(r *Receipt) {
			r.Closed, r.Payments = true, []PaidInvoice{with("closed", "", "")}
		}),
		"receipt-pay-refused-other": paid("refused", func(r *Receipt) { r.Reason, r.RetryHref = "not_changeable", "/pay" }),
		"receipt-pay-3ds": paid("waiting", func(r *Receipt) {
			r.Reason, r.Amount, r.GoHref, r.RetryHref, r.Until = "authentication_required", eurp(5880), "/leave/1", "/pay/in_1", now.Add(time.Hour)
			r.Check = &Form{Action: "/done/1"}
		}),
		"receipt-pay-processing": paid("processing", func(r *Receipt) { r.Method, r.Amount = debit, eurp(5880) }),
		"receipt-removed":        change(paid("done", func(r *Receipt) { r.Kind = billing.RemovePaymentMethod }), func(*Page) {}),
		"receipt-card-kept":      page("payment", change(receipt("done", billing.AddPaymentMethod), func(r *Receipt) { r.Use, r.PlanName = billing.UseNothing, "" })),
		"receipt-card-plan":      page("payment", change(receipt("done", billing.AddPaymentMethod), func(r *Receipt) { r.Use, r.Method = billing.UseSubscription, visa })),
		"receipt-card-pays": page("payment", change(receipt("partly", billing.AddPaymentMethod), func(r *Receipt) {
			r.PlanName, r.Payments, r.PaidCount = "", []PaidInvoice{one, with("declined", "unheard_of", "/pay/in_declined")}, 1
		})),
	}
}

// payWords are what those pages must say.
var payWords = map[string][]string{
	"payment": {
		"Pays for plan “Team”, next on 1 June 2026", "Pay everything with American Express ending 0005", "Expires this month, before your next payment", "Expired 01/2026",
		"Expires next month", "SEPA direct debit ending 3000", "Apple Pay (Visa ending 4242)", "Bank account ending 6789", "Bank: STRIPE TEST BANK",
		"Link a•••@northwind.example", "PayPal p•••@northwind.example", "Bank transfer", "New pay", "This plan has it as its own", "Remove Visa ending 4242",
	},
	"payment-empty":        {"Seattle, WA 98122", "You can look but not change."},
	"payment-empty-renews": {"No payment method. Your plan can’t renew on 1 June 2026 without one."},
	"payment-failed":       {"We couldn’t load your payment methods. Everything else on this page is current."},
	"add-method-choice":    {"Use it for", "Everything, from now on", "Only plan “Archive”", "Nothing yet: keep it for later", "Entering it charges nothing."},
	"add-method-pays":      {"As soon as it is entered, €58.80 is paid with it: 1 open invoice.", "now €58.80 instead of €49.00. Nothing was charged.", "Nothing else: keep it for later"},
	"use-method":           {"What American Express ending 0005 pays for", "Paid with Visa ending 4242 now.", "Nothing pays for it now."},
	"use-method-error":     {"There is a problem", "Choose one of these."},
	"remove-method":        {"It pays for nothing.", "Remove Visa ending 4242"},
	"remove-method-in-use": {"Visa ending 4242 pays for plan “Team”.", "Choose another default first."},
	"remove-method-debt":   {"Visa ending 4242 is what an open invoice is paid with."},
	"remove-method-last":   {"Add another before removing this one.", "Add a payment method"},
	"remove-method-denied": {"Please talk to us"},
	"pay": {
		"Pay €58.80", "Due since 1 May 2026", "The payment with Visa ending 4242 did not go through. There was not enough money in the account.",
		"The next try is on 17 May 2026, by itself.", "Pay €58.80 with Visa ending 4242", "Pay €58.80 with a new card or bank account",
	},
	"pay-started": {"You started this payment at 14 May 2026, 13:02 UTC. It isn’t finished. Continue it"},
	"pay-moved":   {"now €58.80 instead of €49.00. Nothing was charged."},
	"pay-many": {
		"Pay all 3, €176.40", "The payment did not go through. The card has expired.", "Your bank declined it. It did not say why.", "Pay with",
		"Bank details and payment page at Stripe", "Not due now", "Due on 1 June 2026", "A payment of it is on its way.", "The invoice is for €117.60; €58.80 is still open.",
		"Expired 05/2026", "Pay €58.80 for INV-103",
	},
	"pay-some":                   {"Pay the 20 oldest, €176.40", "Please look at it again."},
	"pay-currencies":             {"Pay 1, $20.00", "Pay all 2, €117.60, with Visa ending 4242"},
	"pay-viewer":                 {"You can look but not change.", "INV-103"},
	"pay-checking":               {"We are checking a payment of it. Please don’t pay it again. See the status"},
	"pay-failed":                 {"We couldn’t load what is due."},
	"pay-nothing":                {"Nothing is due", "All your invoices are paid."},
	"pay-methods-failed":         {"We couldn’t load your payment methods."},
	"banner-past-due-many":       {"Past due: 3 invoices, €176.40 in all. The oldest was due on 1 March 2026. The payment with Visa ending 4242 did not go through. The card has expired.", "Pay 3 invoices, €176.40"},
	"banner-past-due-currencies": {"Past due: 3 invoices. €176.40 is overdue. $20.00 is overdue.", "See what is due"},
	"banner-past-due-viewer":     {"See what is due"},
	"receipt-pay-closed":         {"Not due any more", "isn’t due any more: it was paid in another way"},
	"banner-past-due-by-hand":    {"Past due: €176.40 was due on 1 March 2026.", "Pay €176.40"},
	"banner-past-due-no-method":  {"There is no payment method to pay it with."},
	"banner-past-due-unknown":    {"a payment is overdue.", "Your bank declined it. It did not say why."},
	"banner-processing":          {"On its way: a payment of €58.80. On its way: a payment of $20.00. From a bank account this usually takes 5 working days."},
	"receipt-paid":               {"You paid €58.80", "Plan “Team” is active.", "INV-102", "€58.80 with Visa ending 4242"},
	"receipt-partly":             {"1 of 7 invoices are paid", "There was not enough money in the account.", "Pay €58.80 for INV-declined", "Use another card", "Status not known"},
	"receipt-pay-refused":        {"Your bank declined the payment", "€58.80 was not paid.", "The card has expired.", "Use another card"},
	"receipt-pay-refused-other":  {"Your payment did not go through", "Nothing was changed and nothing was charged."},
	"receipt-pay-3ds":            {"Your bank asks you to confirm the payment", "Confirm €58.80 at Stripe", "Start again", "It can be confirmed until 14 May 2026, 14:02 UTC."},
	"receipt-pay-processing":     {"From a bank account this usually takes 5 working days."},
	"receipt-removed":            {"Your payment method is removed", "Nothing is paid with it any more."},
	"receipt-card-kept":          {"It is kept for later."},
	"receipt-card-plan":          {"Visa ending 4242 pays for plan “Team” from now on."},
	"receipt-card-pays":          {"1 of 2 invoices are paid", "The payment method is saved.", "It did not say why."},
	"receipt-enter-card":         {"You came back without finishing. Nothing changed."},
}
