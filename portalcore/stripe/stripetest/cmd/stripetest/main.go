// Command stripetest serves the part of Stripe's API that the portal calls,
// on the sandbox's ledger, as a process of its own: for tests in which the
// portal dies and the provider lives on. It prints one JSON line on stdout
// when it is ready:
//
//	{"url": API base URL, "control": URL of the control door, "key": API key}
//
// The control door is package sandbox's: effects, clock, faults, webhooks. It
// listens on loopback addresses only.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/stripetest"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "loopback address to listen on")
	dir := flag.String("data-dir", "", "directory of the ledger, kept between runs; empty: a temporary one")
	key := flag.String("key", "", "API key that calls must carry; empty: a random sk_test_ key")
	seed := flag.Bool("seed", false, "fill an empty ledger with the demo's plans and customers")
	hook := flag.String("webhook-url", "", "where to post events; empty: nowhere, until the control door says where")
	secret := flag.String("webhook-secret", "", "signing secret of the events (whsec_…)")
	flag.Parse()
	if err := run(*listen, *dir, *key, *seed, *hook, *secret); err != nil {
		fmt.Fprintln(os.Stderr, "stripetest:", err)
		os.Exit(1)
	}
}

func run(listen, dir, key string, seed bool, hook, secret string) (err error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("-listen: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("-listen: %q is not a loopback address; the control door must not be reachable from outside", host)
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "stripetest-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	sealKey, err := store.LoadOrCreateSealKeyFile(filepath.Join(dir, "seal.key"))
	if err != nil {
		return err
	}
	sealer, err := store.NewSealer(sealKey)
	if err != nil {
		return err
	}
	db, err := badger.Open(filepath.Join(dir, "ledger"), badger.Options{Sealer: sealer})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ledger, err := sandbox.Open(ctx, db, sandbox.Options{})
	if err != nil {
		return err
	}
	if seed {
		if _, err := sandbox.Seed(ctx, ledger); err != nil {
			return err
		}
	}
	if key == "" {
		key = "sk_test_" + rand.Text()
	}
	log, err := zap.NewProduction() // to stderr
	if err != nil {
		return err
	}
	hooks := sandbox.NewWebhooks(ledger, sandbox.WebhookOptions{Logger: log})
	if err := hooks.Configure(ctx, hook, secret); err != nil {
		return fmt.Errorf("-webhook-url, -webhook-secret: %w", err)
	}
	faults := &sandbox.Faults{}
	door := "/" + rand.Text()
	mux := http.NewServeMux()
	mux.Handle("/", stripetest.New(ledger, faults, stripetest.Options{Key: key, Logger: log, Webhooks: hooks}))
	mux.Handle(door+"/", http.StripPrefix(door, sandbox.Control(ledger, faults, nil)))

	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	defer sending.Wait() // the ledger closes behind it
	sending.Go(func() { hooks.Run(ctx) })
	defer stop()
	origin := "http://" + ln.Addr().String()
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: zap.NewStdLog(log)}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"url": origin, "control": origin + door, "key": key}); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	quit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return srv.Shutdown(quit)
}
