package billing

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Plan is something the vendor offers.
type Plan struct {
	// Key names the plan in config and policy: "team".
	Key string
	// Name is what customers read. Default: the key with a capital.
	Name string
	// Rank orders plans: a change to a higher rank is an upgrade. Plans of one
	// rank are ordered by price.
	Rank int
	// Text is one line about the plan.
	Text string
	// Prices are the plan's prices, one per currency and interval.
	Prices []Price
	// Features are shown as a list, in this order.
	Features []string
	// Limits are shown beside the features ("projects" -> 10) and compared
	// between plans.
	Limits []Limit
	// MinQuantity and MaxQuantity bound the quantity. 0 means 1 and no bound.
	MinQuantity, MaxQuantity int64
}

// Limit is a named number of a plan.
type Limit struct {
	Name  string
	Value int64
}

// Catalogue is what the vendor offers here. The zero Catalogue offers
// nothing.
type Catalogue struct {
	// Plans are ordered by rank.
	Plans []Plan
	byID  map[string]int // price id -> index into Plans
}

// MaxQuantity bounds every quantity, whatever a plan says.
const MaxQuantity = 1_000_000

// NewCatalogue orders and checks plans: keys and prices are unique, and a plan
// has at most one price per currency and interval.
func NewCatalogue(plans []Plan) (Catalogue, error) {
	c := Catalogue{Plans: slices.Clone(plans), byID: map[string]int{}}
	slices.SortStableFunc(c.Plans, func(a, b Plan) int { return cmp.Compare(a.Rank, b.Rank) })
	keys := map[string]bool{}
	for i, p := range c.Plans {
		if p.Key == "" {
			return Catalogue{}, fmt.Errorf("catalogue: a plan has no key")
		}
		if keys[p.Key] {
			return Catalogue{}, fmt.Errorf("catalogue: plan %q is there twice", p.Key)
		}
		keys[p.Key] = true
		if p.Name == "" {
			first, size := utf8.DecodeRuneInString(p.Key)
			c.Plans[i].Name = string(unicode.ToUpper(first)) + p.Key[size:]
		}
		if p.MaxQuantity != 0 && p.MaxQuantity < max(p.MinQuantity, 1) {
			return Catalogue{}, fmt.Errorf("catalogue: plan %q has a maximum quantity (%d) below its minimum", p.Key, p.MaxQuantity)
		}
		slots := map[string]string{}
		for _, pr := range p.Prices {
			if j, ok := c.byID[pr.ID]; ok {
				return Catalogue{}, fmt.Errorf("catalogue: price %s is in plan %q and in plan %q", pr.ID, c.Plans[j].Key, p.Key)
			}
			slot := fmt.Sprintf("%s every %d %s", pr.Currency, pr.IntervalCount, pr.Interval)
			if other, ok := slots[slot]; ok {
				return Catalogue{}, fmt.Errorf("catalogue: plan %q has two prices for %s: %s and %s", p.Key, slot, other, pr.ID)
			}
			slots[slot] = pr.ID
			c.byID[pr.ID] = i
		}
	}
	return c, nil
}

// PlanOf returns the plan that a price belongs to.
func (c *Catalogue) PlanOf(priceID string) (*Plan, bool) {
	i, ok := c.byID[priceID]
	if !ok {
		return nil, false
	}
	return &c.Plans[i], true
}

// Price returns a price that is offered.
func (c *Catalogue) Price(id string) (*Price, bool) {
	p, ok := c.PlanOf(id)
	if !ok {
		return nil, false
	}
	for i := range p.Prices {
		if p.Prices[i].ID == id {
			return &p.Prices[i], true
		}
	}
	return nil, false
}

// Metadata keys on a price or its product from which a catalogue is made
// where the config has none.
const (
	MetaPlan    = "portal_plan"         // plan key; makes the price part of the catalogue
	MetaName    = "portal_name"         // plan name; default: the product's
	MetaRank    = "portal_rank"         // integer
	MetaText    = "portal_text"         // one line
	MetaFeature = "portal_feature_"     // + 1, 2, 3 …
	MetaLimit   = "portal_limit_"       // + name: integer
	MetaMin     = "portal_min_quantity" // integer
	MetaMax     = "portal_max_quantity" // integer
)

// CatalogueFromMetadata makes a catalogue out of the provider's own prices.
// A price without MetaPlan is not offered.
func CatalogueFromMetadata(prices []Price) (Catalogue, error) {
	var plans []Plan
	at := map[string]int{}
	for _, pr := range prices {
		key := pr.Metadata[MetaPlan]
		if key == "" || !pr.Active {
			continue
		}
		i, ok := at[key]
		if !ok {
			p, err := planFromMetadata(key, pr)
			if err != nil {
				return Catalogue{}, err
			}
			i = len(plans)
			at[key] = i
			plans = append(plans, p)
		}
		plans[i].Prices = append(plans[i].Prices, pr)
	}
	return NewCatalogue(plans)
}

func planFromMetadata(key string, pr Price) (Plan, error) {
	m := pr.Metadata
	p := Plan{Key: key, Name: cmp.Or(m[MetaName], pr.ProductName, key), Text: m[MetaText]}
	integer := func(name string) (int64, error) {
		if m[name] == "" {
			return 0, nil
		}
		n, err := strconv.ParseInt(m[name], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("catalogue: price %s: metadata %s=%q is not a whole number", pr.ID, name, m[name])
		}
		return n, nil
	}
	rank, err := integer(MetaRank)
	if err != nil {
		return Plan{}, err
	}
	p.Rank = int(rank)
	if p.MinQuantity, err = integer(MetaMin); err != nil {
		return Plan{}, err
	}
	if p.MaxQuantity, err = integer(MetaMax); err != nil {
		return Plan{}, err
	}
	var limits []string
	for k := range m {
		if strings.HasPrefix(k, MetaLimit) {
			limits = append(limits, k)
		}
	}
	slices.Sort(limits)
	for _, k := range limits {
		n, err := integer(k)
		if err != nil {
			return Plan{}, err
		}
		p.Limits = append(p.Limits, Limit{Name: strings.TrimPrefix(k, MetaLimit), Value: n})
	}
	for i := 1; m[MetaFeature+strconv.Itoa(i)] != ""; i++ {
		p.Features = append(p.Features, m[MetaFeature+strconv.Itoa(i)])
	}
	return p, nil
}
