package sandbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// seedPlans are the demo's plans: per seat, monthly and yearly, in USD and
// EUR. Lookup keys are "basic_monthly", "basic_yearly", "basic_monthly_eur", …
var seedPlans = []struct {
	key, name, text string
	rank            string
	features        []string
	projects        string
	usd, eur        int64 // one seat for a month; a year costs ten months
}{
	{"basic", "Basic", "For one team that gets started.", "1", []string{"E-mail support"}, "5", 1000, 900},
	{"team", "Team", "For teams that work together every day.", "2", []string{"E-mail support", "Priority support", "Timeline view"}, "50", 2000, 1850},
	{"business", "Business", "For companies with rules of their own.", "3", []string{"E-mail support", "Priority support", "Timeline view", "Single sign-on", "Audit log"}, "500", 4000, 3700},
}

// moment is a step of a demo customer's past.
type moment struct {
	ago func(now time.Time) time.Time
	do  func(w *work, customer string) error
}

func daysAgo(n int) func(time.Time) time.Time {
	return func(now time.Time) time.Time { return now.AddDate(0, 0, -n) }
}

// monthsAgo is n months before a day that is days ago, so that the current
// period is days old.
func monthsAgo(n, days int) func(time.Time) time.Time {
	return func(now time.Time) time.Time {
		return billing.AddPeriods(now.AddDate(0, 0, -days), -n, billing.Month, 1)
	}
}

func newCard(number string, ownToo bool) func(*work, string) error {
	return func(w *work, customer string) error {
		pm, err := w.addCard(customer, CardParams{Number: number})
		if err != nil {
			return err
		}
		if _, err = w.updateCustomer(customer, CustomerParams{DefaultPaymentMethod: &pm.ID}); err != nil || !ownToo {
			return err
		}
		_, err = w.updateSubscription("sub_"+customer[4:], SubscriptionUpdate{DefaultPaymentMethod: &pm.ID})
		return err
	}
}

// subscribeToo makes a subscription beside the customer's first, with a name of
// its own at the end of its id.
func subscribeToo(name, price string, quantity int64) func(*work, string) error {
	return func(w *work, customer string) error {
		_, err := w.createSubscription(SubscriptionCreate{
			ID: "sub_" + customer[4:] + "_" + name, Customer: customer, Items: []ItemParams{{Price: price, Quantity: &quantity}},
		})
		return err
	}
}

func subscribe(price string, quantity int64, trialDays int) func(*work, string) error {
	return func(w *work, customer string) error {
		p := SubscriptionCreate{ID: "sub_" + customer[4:], Customer: customer, Items: []ItemParams{{Price: price, Quantity: &quantity}}}
		if trialDays > 0 {
			p.TrialEnd = w.now.AddDate(0, 0, trialDays)
		}
		_, err := w.createSubscription(p)
		return err
	}
}

func seats(quantity int64) func(*work, string) error {
	return func(w *work, customer string) error {
		s, err := get[Subscription](w, "subscription", "sub_"+customer[4:])
		if err != nil {
			return err
		}
		_, err = w.updateSubscription(s.ID, SubscriptionUpdate{Items: []ItemParams{{ID: s.Items[0].ID, Quantity: &quantity}}, ProrationBehavior: AlwaysInvoice})
		return err
	}
}

func cancelAtPeriodEnd(w *work, customer string) error {
	yes := true
	_, err := w.updateSubscription("sub_"+customer[4:], SubscriptionUpdate{CancelAtPeriodEnd: &yes})
	return err
}

const (
	cardWorks    = "4242424242424242"
	cardWorksToo = "5555555555554444"
	cardDeclines = "4000000000000341"
	cardAsks     = "4000002500003155"
)

var seedCustomers = []struct {
	id, name, email, phone string
	address                billing.Address
	locale                 string
	tax                    string
	past                   []moment
}{
	{
		"cus_northwind", "Northwind Ltd", "billing@northwind.example.com", "+1 206 555 0100",
		billing.Address{Line1: "507 20th Avenue E", City: "Seattle", State: "WA", PostalCode: "98122", Country: "US"},
		"en", "",
		[]moment{{monthsAgo(5, 12), newCard(cardWorks, false)}, {monthsAgo(5, 12), subscribe("price_basic_monthly", 3, 0)}, {monthsAgo(2, 3), seats(4)}},
	},
	{
		"cus_globex", "Globex GmbH", "rechnung@globex.example.com", "+49 30 555 0110",
		billing.Address{Line1: "Hauptstraße 5", City: "Berlin", PostalCode: "10827", Country: "DE"},
		"de", "20",
		[]moment{{monthsAgo(14, 6), newCard(cardWorksToo, false)}, {monthsAgo(14, 6), subscribe("price_team_yearly_eur", 8, 0)}, {monthsAgo(7, 0), seats(10)}},
	},
	{
		"cus_trial", "Umbrella Foods", "office@umbrella.example.com", "",
		billing.Address{Line1: "12 Harbour Road", City: "Portland", State: "ME", PostalCode: "04101", Country: "US"},
		"en", "",
		[]moment{{daysAgo(5), newCard(cardWorks, false)}, {daysAgo(5), subscribe("price_team_monthly", 3, 14)}},
	},
	{
		"cus_pastdue", "Vandelay Industries", "accounts@vandelay.example.com", "+1 212 555 0130",
		billing.Address{Line1: "129 West 81st Street", City: "New York", State: "NY", PostalCode: "10024", Country: "US"},
		"en", "",
		[]moment{{monthsAgo(3, 2), newCard(cardWorks, false)}, {monthsAgo(3, 2), subscribe("price_basic_monthly", 2, 0)}, {daysAgo(10), newCard(cardDeclines, false)}},
	},
	{
		"cus_initech", "Initech Inc", "peter@initech.example.com", "+1 512 555 0140",
		billing.Address{Line1: "4120 Freidrich Lane", City: "Austin", State: "TX", PostalCode: "78744", Country: "US"},
		"en", "",
		[]moment{{monthsAgo(2, 9), newCard(cardWorks, false)}, {monthsAgo(2, 9), subscribe("price_basic_monthly", 5, 0)}, {daysAgo(3), newCard(cardDeclines, true)}},
	},
	{
		"cus_3ds", "Hooli SARL", "compta@hooli.example.com", "+33 1 55 55 01 50",
		billing.Address{Line1: "8 rue de la Paix", City: "Paris", PostalCode: "75002", Country: "FR"},
		"fr", "20",
		[]moment{{monthsAgo(1, 4), newCard(cardWorks, false)}, {monthsAgo(1, 4), subscribe("price_basic_monthly_eur", 2, 0)}, {daysAgo(2), newCard(cardAsks, false)}},
	},
	{"cus_new", "Soylent Kitchen", "hello@soylent.example.com", "", billing.Address{}, "en", "", nil},
	{
		"cus_ending", "Duff Brewery", "bar@duff.example.com", "+1 503 555 0170",
		billing.Address{Line1: "742 Evergreen Terrace", City: "Springfield", State: "OR", PostalCode: "97403", Country: "US"},
		"en", "",
		[]moment{{monthsAgo(4, 20), newCard(cardWorks, false)}, {monthsAgo(4, 20), subscribe("price_team_monthly", 2, 0)}, {daysAgo(6), cancelAtPeriodEnd}},
	},
	{
		"cus_wayne", "Wayne Enterprises", "ap@wayne.example.com", "+1 609 555 0180",
		billing.Address{Line1: "1007 Mountain Drive", City: "Trenton", State: "NJ", PostalCode: "08608", Country: "US"},
		"en", "",
		[]moment{
			{monthsAgo(8, 11), newCard(cardWorks, false)},
			{monthsAgo(8, 11), subscribe("price_team_monthly", 12, 0)},
			{monthsAgo(3, 4), subscribeToo("lab", "price_basic_monthly", 3)},
		},
	},
	{
		"cus_tyrell", "Tyrell Analytics", "finance@tyrell.example.com", "+1 213 555 0170",
		billing.Address{Line1: "900 Bradbury Avenue", City: "Los Angeles", State: "CA", PostalCode: "90012", Country: "US"},
		"en", "",
		slices.Concat([]moment{{monthsAgo(13, 8), newCard(cardWorks, false)}, {monthsAgo(13, 8), subscribeWithUsage("price_team_monthly", 5)}},
			callsByDay(), []moment{{daysAgo(0), grantCredit}}),
	},
	{
		longCustomer, "Oscorp Logistics", "invoices@oscorp.example.com", "+44 20 7946 0190",
		billing.Address{Line1: "22 Bishopsgate", City: "London", PostalCode: "EC2N 4BQ", Country: "GB"},
		"en", "20",
		slices.Concat([]moment{{monthsAgo(1, 20), newCard(cardWorks, false)}, {monthsAgo(1, 20), subscribe("price_team_monthly_eur", 4, 0)}}, depots),
	},
}

// The demo's meter, and the price that counts with it: so many calls are
// included, the more the cheaper.
const (
	callsMeter = "mtr_api_calls"
	callsEvent = "api_calls"
	callsPrice = "price_api_calls"
)

func subscribeWithUsage(price string, quantity int64) func(*work, string) error {
	return func(w *work, customer string) error {
		_, err := w.createSubscription(SubscriptionCreate{
			ID: "sub_" + customer[4:], Customer: customer, Items: []ItemParams{{Price: price, Quantity: &quantity}, {Price: callsPrice}},
		})
		return err
	}
}

// callsByDay are the calls of the last thirteen months, reported day by day, so
// that an invoice counts all of its period: more on workdays, more from month to
// month, and two days with a peak.
func callsByDay() []moment {
	const days = 13*30 + 5
	var list []moment
	for ago := days - 1; ago >= 0; ago-- {
		list = append(list, moment{daysAgo(ago), func(w *work, customer string) error {
			calls := int64(420 + 2*(days-ago) + ago*7%61)
			switch {
			case ago == 22 || ago == 27:
				calls *= 4
			case w.now.Weekday() == time.Saturday || w.now.Weekday() == time.Sunday:
				calls /= 3
			}
			return w.reportUsage([]UsageEvent{{EventName: callsEvent, Customer: customer, Value: decimal.NewFromInt(calls), Timestamp: w.now}})
		}})
	}
	return list
}

func grantCredit(w *work, customer string) error {
	_, err := w.createGrant(GrantParams{
		Customer: customer, Name: "Welcome to usage-based billing", Category: GrantPromotional, Amount: 2500, Currency: "usd", ExpiresAt: w.now.AddDate(0, 3, 0),
	})
	return err
}

// longCustomer is the one with a long history: a subscription for each of its
// depots, and invoices of many years.
const (
	longCustomer = "cus_oscorp"
	longMonths   = 41
)

var depotNames = []string{"leeds", "hull", "cork", "porto", "lyon", "ghent", "riga", "gdansk", "graz", "turin", "malmo"}

var depots = func() []moment {
	list := make([]moment, 0, len(depotNames))
	for i, name := range depotNames {
		list = append(list, moment{monthsAgo(1, 19-i), subscribeToo(name, "price_basic_monthly_eur", int64(1+i%4))})
	}
	return list
}()

// seedHistory enters the invoices of the years before longCustomer's
// subscriptions were taken over into these books.
func (l *Ledger) seedHistory(ctx context.Context) error {
	subs := append(make([]string, 0, 1+len(depotNames)), "sub_"+longCustomer[4:])
	for _, name := range depotNames {
		subs = append(subs, subs[0]+"_"+name)
	}
	var list []PastInvoice
	for _, id := range subs {
		s, err := l.Subscription(ctx, id)
		if err != nil {
			return err
		}
		for n := 1; n <= longMonths; n++ {
			list = append(list, PastInvoice{Subscription: id, Created: billing.AddPeriods(s.Created, -n, billing.Month, 1)})
		}
	}
	_, err := l.ImportInvoices(ctx, longCustomer, list)
	return err
}

// Seed fills a ledger with the demo's plans and customers and returns these.
// What is there already stays as it is. The customers come with a past, worked
// out by the ledger itself; it leaves no effects, as it is what the books open
// with.
func Seed(ctx context.Context, l *Ledger) ([]billing.Customer, error) {
	list, fresh, err := l.seedCustomers(ctx)
	if err == nil && fresh[longCustomer] {
		err = l.seedHistory(ctx)
	}
	return list, err
}

// seedCustomers also says which customers were not there before.
func (l *Ledger) seedCustomers(ctx context.Context) ([]billing.Customer, map[string]bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := l.presentLocked(ctx)
	if err != nil {
		return nil, nil, err
	}
	fresh := map[string]bool{}
	if err := l.update(ctx, now, "", func(w *work) error { w.quiet = true; return w.seedPrices() }); err != nil {
		return nil, nil, fmt.Errorf("seeding plans: %w", err)
	}
	var list []billing.Customer
	for _, sc := range seedCustomers {
		p := CustomerParams{ID: sc.id, Name: &sc.name, Email: &sc.email, Phone: &sc.phone, Address: &sc.address, PreferredLocales: []string{sc.locale}}
		if sc.tax != "" {
			tax, err := decimal.NewFromString(sc.tax)
			if err != nil {
				return nil, nil, err
			}
			p.TaxPercent = &tax
		}
		err := l.update(ctx, now, "", func(w *work) error {
			_, found, err := lookup[Customer](w.tx, "customer", sc.id)
			if fresh[sc.id] = !found; err != nil || found {
				return err
			}
			w.quiet = true
			if len(sc.past) > 0 {
				w.now = sc.past[0].ago(now)
			}
			if _, err := w.createCustomer(p); err != nil {
				return err
			}
			for _, m := range sc.past {
				at := m.ago(now)
				if err := w.carryOutDue(at, 1000); err != nil {
					return err
				}
				w.now = at
				if err := m.do(w, sc.id); err != nil {
					return err
				}
			}
			return w.carryOutDue(now, 1000)
		})
		if err != nil {
			return nil, nil, fmt.Errorf("seeding %s: %w", sc.id, err)
		}
		var c Customer
		err = l.db.View(ctx, func(tx store.Tx) error {
			c, err = get[Customer](&work{tx: tx}, "customer", sc.id)
			return err
		})
		if err != nil {
			return nil, nil, err
		}
		list = append(list, customerOf(c))
	}
	return list, fresh, nil
}

func (w *work) seedPrices() error {
	if _, found, err := lookup[Meter](w.tx, "meter", callsMeter); err != nil {
		return err
	} else if !found {
		if _, err := w.createMeter(MeterParams{ID: callsMeter, EventName: callsEvent, DisplayName: "API calls"}); err != nil {
			return err
		}
		product, err := w.createProduct(ProductParams{ID: "prod_api_calls", Name: "API calls"})
		if err != nil {
			return err
		}
		cents := decimal.RequireFromString
		if _, err := w.createPrice(PriceParams{
			ID: callsPrice, Product: product.ID, Currency: "usd", Interval: billing.Month, LookupKey: "api_calls", Meter: callsMeter, TiersMode: billing.Graduated,
			Tiers: []billing.Tier{{UpTo: 10_000}, {UpTo: 50_000, UnitAmount: cents("0.4")}, {UnitAmount: cents("0.25")}},
		}); err != nil {
			return err
		}
	}
	for _, pl := range seedPlans {
		if _, found, err := lookup[Product](w.tx, "product", "prod_"+pl.key); err != nil {
			return err
		} else if found {
			continue
		}
		m := map[string]string{billing.MetaPlan: pl.key, billing.MetaRank: pl.rank, billing.MetaText: pl.text, billing.MetaLimit + "projects": pl.projects}
		for i, f := range pl.features {
			m[fmt.Sprintf("%s%d", billing.MetaFeature, i+1)] = f
		}
		product, err := w.createProduct(ProductParams{ID: "prod_" + pl.key, Name: pl.name, Metadata: m})
		if err != nil {
			return err
		}
		for _, p := range []struct {
			key, currency string
			interval      billing.Interval
			amount        int64
		}{
			{"_monthly", "usd", billing.Month, pl.usd},
			{"_yearly", "usd", billing.Year, 10 * pl.usd},
			{"_monthly_eur", "eur", billing.Month, pl.eur},
			{"_yearly_eur", "eur", billing.Year, 10 * pl.eur},
		} {
			_, err := w.createPrice(PriceParams{
				ID: "price_" + pl.key + p.key, Product: product.ID, Currency: p.currency, UnitAmount: decimal.NewFromInt(p.amount),
				Interval: p.interval, LookupKey: pl.key + p.key,
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
