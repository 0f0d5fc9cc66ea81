// Command scale measures what large accounts and many customers cost: Stripe's
// adapter in the portal, over stripetest with a delay and a rate limit.
//
//	go run ./e2e/bench/scale
//
// It prints each figure with its bound and fails where one is over it:
// an account with 200 subscriptions, 40 payment methods and 5,000 invoices
// (cold overview against the longest chain of provider calls, warm p99 against
// a small account's, memory), and 50 customers at once at a provider that
// takes 25 requests a second (pages that a 429 reached, the slowest wait
// against the median).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"time"
)

func main() {
	z := sizes{rounds: 3, warm: 2000}
	flag.IntVar(&z.subscriptions, "subscriptions", 200, "subscriptions of the large account")
	flag.IntVar(&z.invoices, "invoices", 5000, "its invoices")
	flag.IntVar(&z.methods, "methods", 40, "its payment methods")
	flag.DurationVar(&z.latency, "latency", 100*time.Millisecond, "of every request to the provider")
	flag.IntVar(&z.crowd, "customers", 50, "customers at once")
	flag.IntVar(&z.rate, "rate", 25, "requests a second that the provider takes")
	flag.Parse()
	fmt.Printf("%s/%s, %d processors, %d subscriptions, %d invoices, %d payment methods\n",
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), z.subscriptions, z.invoices, z.methods)
	if err := run(context.Background(), z); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// run measures everything, and returns an error where a figure is over its
// bound.
func run(ctx context.Context, z sizes) error {
	begin := time.Now()
	w, err := newWorld(ctx, z)
	if err != nil {
		return err
	}
	defer w.close()
	fmt.Printf("seeded in %s\n", time.Since(begin).Round(time.Millisecond))
	big, bigErr := w.big(ctx, z)
	rush, rushErr := w.rush(z)
	err = errors.Join(bigErr, rushErr)
	for _, f := range append(big, rush...) {
		fmt.Println(f)
		if !f.ok() {
			err = errors.Join(err, fmt.Errorf("%s: %.2f is over %g", f.what, f.got, f.bound))
		}
	}
	return err
}
