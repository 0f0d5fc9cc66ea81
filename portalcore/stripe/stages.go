package stripe

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// sectionTimeout bounds each request for a section that an account can do
// without, from when it is sent: a slow part must not hold up the rest.
const sectionTimeout = 4 * time.Second

// sections are the parts of one account that could not be read.
type sections struct {
	p        *Provider
	customer string
	mu       sync.Mutex
	failed   []billing.Section
}

// section reads a part of the account that can be missing: it notes a failure
// and goes on.
func (s *sections) section(ctx context.Context, name billing.Section, read func(context.Context) error) func() error {
	return func() error {
		err := read(within(ctx, sectionTimeout))
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			s.p.log.Warn("a section of an account could not be read", zap.String("customer", s.customer), zap.String("section", string(name)), zap.Error(err))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.Contains(s.failed, name) {
			s.failed = append(s.failed, name)
		}
		return nil
	}
}

func (s *sections) names() []billing.Section {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.failed)
	return s.failed
}

// subscriptionStage is what is read of a customer's subscriptions.
type subscriptionStage struct {
	all      []subscription
	products map[string]product
	upcoming []*billing.Upcoming // by due date
	confirm  map[string]string   // where a waiting change is confirmed, by subscription
}

// subscriptionStage reads the subscriptions and then, side by side, what
// depends on them. It does not wait for the rest of the account.
func (p *Provider) subscriptionStage(ctx context.Context, customerID string, failed *sections) (subscriptionStage, error) {
	subs, err := p.subscriptions(ctx, customerID)
	if err != nil {
		return subscriptionStage{}, err
	}
	st := subscriptionStage{all: bounded(subs), confirm: map[string]string{}}
	var renewing []*subscription
	var waiting []*subscription
	for i := range st.all {
		s := &st.all[i]
		if s.bills() {
			renewing = append(renewing, s)
		}
		if s.PendingUpdate != nil {
			waiting = append(waiting, s)
		}
	}
	slices.SortStableFunc(renewing, func(a, b *subscription) int { return a.periodEnd().Compare(b.periodEnd()) })
	renewing = renewing[:min(len(renewing), maxUpcoming)]

	st.upcoming = make([]*billing.Upcoming, len(renewing))
	var tiers map[string]tiering
	reads := []func() error{
		func() (err error) { st.products, err = p.products(ctx, st.all); return err },
		func() (err error) { tiers, err = p.readTiers(ctx, pricesOf(st.all)); return err },
	}
	for i, s := range renewing {
		reads = append(reads, failed.section(ctx, billing.SectionUpcoming, func(ctx context.Context) (err error) {
			st.upcoming[i], err = p.upcoming(ctx, s, nil)
			return err
		}))
	}
	var mu sync.Mutex
	for _, s := range waiting {
		reads = append(reads, func() error {
			w, err := p.waiting(ctx, s)
			mu.Lock()
			defer mu.Unlock()
			st.confirm[s.ID] = w.goTo
			return err
		})
	}
	if err := parallel(reads...); err != nil {
		return subscriptionStage{}, err
	}
	setTiers(pricesOf(st.all), tiers)
	return st, nil
}

// shareMetadata lets items of the same price hold its metadata once: with
// hundreds of subscriptions to a few prices it is most of an account.
func shareMetadata(subs []billing.Subscription) {
	first := map[string]map[string]string{}
	share := func(items []billing.Item) {
		for i := range items {
			pr := &items[i].Price
			if m, ok := first[pr.ID]; ok && maps.Equal(m, pr.Metadata) {
				pr.Metadata = m
			} else if !ok {
				first[pr.ID] = pr.Metadata
			}
		}
	}
	for i := range subs {
		share(subs[i].Items)
		if subs[i].Pending != nil {
			share(subs[i].Pending.Items)
		}
	}
}

const (
	// productsChunk is how many products one list holds.
	productsChunk = 100
	// productsAge is how long a product's name and metadata are taken for
	// current, as the account's own.
	productsAge = time.Minute
	// productsKept bounds the memory for them.
	productsKept = 1000
)

// products are the products that were read lately. Many customers have the
// same few.
type products struct {
	mu      sync.Mutex
	by      map[string]readProduct
	reading map[string]*productRead // lists on their way, by the ids asked for
}

type readProduct struct {
	product
	at time.Time
}

// productRead is a list on its way, for all who ask for the same.
type productRead struct {
	done chan struct{}
	by   map[string]product
	err  error
	// gaveUp is set where it failed as who asked first went away.
	gaveUp bool
}

// products reads the products that subscriptions' prices belong to, in lists
// side by side.
func (p *Provider) products(ctx context.Context, subs []subscription) (map[string]product, error) {
	out, missing := map[string]product{}, []string{}
	now := p.now()
	p.known.mu.Lock()
	note := func(items []subscriptionItem) {
		for _, it := range items {
			id := it.Price.Product.ID
			if _, ok := out[id]; ok || id == "" || it.Price.Product.Obj != nil || slices.Contains(missing, id) {
				continue
			}
			k, ok := p.known.by[id]
			if age := now.Sub(k.at); ok && age >= 0 && age < productsAge {
				out[id] = k.product
			} else {
				missing = append(missing, id)
			}
		}
	}
	for i := range subs {
		note(subs[i].Items.Data)
		if u := subs[i].PendingUpdate; u != nil {
			note(u.Items)
		}
	}
	p.known.mu.Unlock()
	slices.Sort(missing)
	var mu sync.Mutex
	var reads []func() error
	for ids := range slices.Chunk(missing, productsChunk) {
		reads = append(reads, func() error {
			l, err := p.sharedProducts(ctx, ids)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(out, l)
			return err
		})
	}
	return out, parallel(reads...)
}

// sharedProducts reads one list, once for all who ask for it meanwhile.
func (p *Provider) sharedProducts(ctx context.Context, ids []string) (map[string]product, error) {
	key := strings.Join(ids, "\x00")
	for {
		p.known.mu.Lock()
		r := p.known.reading[key]
		if r == nil {
			r = &productRead{done: make(chan struct{})}
			p.known.reading[key] = r
			p.known.mu.Unlock()
			p.readProducts(ctx, r, key, ids)
			return r.by, r.err
		}
		p.known.mu.Unlock()
		select {
		case <-r.done:
			if !r.gaveUp {
				return r.by, r.err
			}
		case <-ctx.Done():
			return nil, readFault(nil, ctx.Err())
		}
	}
}

func (p *Provider) readProducts(ctx context.Context, r *productRead, key string, ids []string) {
	f := form{{"limit", itoa(productsChunk)}}
	for _, id := range ids {
		f.add("ids[]", id)
	}
	var l list[product]
	_, r.err = p.get(ctx, &l, f, "products")
	r.gaveUp = r.err != nil && ctx.Err() != nil
	r.by = make(map[string]product, len(l.Data))
	for _, pr := range l.Data {
		r.by[pr.ID] = pr
	}
	now := p.now()
	p.known.mu.Lock()
	defer p.known.mu.Unlock()
	delete(p.known.reading, key)
	if len(p.known.by)+len(r.by) > productsKept {
		clear(p.known.by)
	}
	for id, pr := range r.by {
		p.known.by[id] = readProduct{pr, now}
	}
	close(r.done)
}
