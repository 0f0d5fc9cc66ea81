package main

import (
	"testing"
	"time"
)

// TestBounds holds the bounds with smaller numbers: two pages of subscriptions,
// and more customers than the provider takes requests for in a second.
func TestBounds(t *testing.T) {
	z := sizes{subscriptions: 110, invoices: 400, methods: 40, latency: 100 * time.Millisecond, rounds: 3, warm: 200, crowd: 12, rate: 25}
	if err := run(t.Context(), z); err != nil {
		t.Error(err)
	}
}

// TestFiguresCanFail holds that the world before the portal refuses and that a
// figure over its bound is one.
func TestFiguresCanFail(t *testing.T) {
	f := &front{rate: 2}
	now := time.Now()
	if first, second := f.over(now), f.over(now); first || second || !f.over(now.Add(time.Second-1)) || f.over(now.Add(time.Second)) || f.refused != 1 {
		t.Error("the rate is not held")
	}
	if (figure{got: 2.01, bound: 2}).ok() || !(figure{got: 2, bound: 2}).ok() {
		t.Error("a figure does not know its bound")
	}
	ms := time.Millisecond
	calls := []call{{"/v1/subscriptions", 10 * ms}, {"/v1/subscriptions", 20 * ms}, {"/v1/products", 5 * ms}, {"/v1/invoices/create_preview", 40 * ms}, {"/v1/customers/cus", 500 * ms}}
	if got := chain(calls); got != 70*ms {
		t.Errorf("the chain is %s", got)
	}
}
