package caddymodule

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/spf13/cobra"

	"github.com/portalcore/caddy-billing-portal/demo"
	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "billing-portal",
		Usage: "demo | intents | sessions | events | status | backup | restore | restored",
		Short: "Tries the billing portal out, and operates it",
		CobraFunc: func(cmd *cobra.Command) {
			cmd.AddCommand(demoCommand())
			cmd.AddCommand(operatorCommands()...)
			helpOnly(cmd)
		},
	})
}

const (
	defaultDemoListen = "localhost:8420"
	// demoKeyVariable is the environment variable that the demo hands its API key
	// through: a key does not stand in a config.
	demoKeyVariable = "BILLING_PORTAL_DEMO_API_KEY"
	demoTenant      = "demo"
	demoGrace       = 10 * time.Second
	portsToTry      = 100
)

func demoCommand() *cobra.Command {
	sub := &cobra.Command{
		Use:   "demo [--listen <host:port>] [--data-dir <directory>] [--json]",
		Short: "Runs the portal with a sandbox provider and a small vendor app",
		Long: `
Runs the billing portal beside a small vendor app, on this machine only and
without any account, configuration or real money. Open the URL it prints, sign
in as one of the customers, and follow "Billing & payment" on the settings page.

Nothing is kept unless --data-dir names a directory; the vendor app's sign-ins
never are. With --json, standard
output has one line when everything is ready: the URLs, the portal's API key,
the customers, and "control", a door for tests: GET effects, GET intents,
POST clock {"advance":"720h"}, POST fault {"on","times","kind","latency"}.
`,
		Args: cobra.NoArgs,
		RunE: caddycmd.WrapCommandFuncForCobra(runDemo),
	}
	sub.Flags().String("listen", defaultDemoListen, "loopback address of the portal; the vendor app takes the next free port")
	sub.Flags().String("data-dir", "", "directory to keep the portal's and the sandbox's data in; the vendor app's sign-ins end with the demo all the same (default: a temporary one, removed at the end)")
	sub.Flags().Bool("json", false, "print one JSON line when ready, and nothing else, on standard output")
	return sub
}

func runDemo(fl caddycmd.Flags) (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := demoOptions{
		listen: fl.String("listen"), pick: !fl.Changed("listen"), dataDir: fl.String("data-dir"), json: fl.Bool("json"),
		out: os.Stdout,
		// A second signal ends the process at once.
		stopping: stop,
	}.run(ctx)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return caddy.ExitCodeSuccess, nil
}

type demoOptions struct {
	listen   string
	pick     bool // another port may be taken where listen's is not free
	dataDir  string
	json     bool
	out      io.Writer
	stopping func()
}

// demoReady is the line that --json prints.
type demoReady struct {
	VendorApp string          `json:"vendor_app"`
	Portal    string          `json:"portal"`
	APIKey    string          `json:"api_key"`
	Control   string          `json:"control"`
	Customers []demo.Customer `json:"customers"`
}

// run serves the demo until ctx ends.
func (o demoOptions) run(ctx context.Context) (err error) {
	host, err := demoHost(o.listen)
	if err != nil {
		return err
	}
	dir := o.dataDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "billing-portal-demo-"); err != nil {
			return fmt.Errorf("making a directory for the demo: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	portalPort, err := freePort(o.listen, o.pick)
	if err != nil {
		return err
	}
	app, err := listenNext(host, portalPort+1)
	if err != nil {
		return err
	}
	defer app.Close()
	control, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return fmt.Errorf("listening for the control door: %w", err)
	}
	defer control.Close()

	ready := demoReady{
		VendorApp: "http://" + net.JoinHostPort(host, strconv.Itoa(portOf(app))),
		Portal:    "http://" + net.JoinHostPort(host, strconv.Itoa(portalPort)),
		APIKey:    "bpk_demo_" + rand.Text(),
	}
	if err := startDemoPortal(dir, net.JoinHostPort(host, strconv.Itoa(portalPort)), ready, o.json); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, caddy.Stop()) }()

	_, site, ok := activeSite(demoTenant)
	if !ok {
		return errors.New("the demo's portal did not start")
	}
	book := site.module.(*SandboxProvider).book
	ready.Customers = demoCustomers(book.customers)
	vendor, err := demo.New(demo.Options{
		Origin: ready.VendorApp, Portal: ready.Portal, APIKey: ready.APIKey, Customers: ready.Customers,
		Log: log.New(os.Stderr, "vendor app: ", 0),
	})
	if err != nil {
		return err
	}
	door := "/" + rand.Text()
	ready.Control = "http://" + net.JoinHostPort(host, strconv.Itoa(portOf(control))) + door
	doorHandler := http.StripPrefix(door, sandbox.Control(book.ledger, book.faults, func(ctx context.Context) (any, error) {
		return allIntents(ctx, site.portal)
	}))
	servers := []*http.Server{
		{Handler: vendor, ReadHeaderTimeout: 10 * time.Second},
		{Handler: doorHandler, ReadHeaderTimeout: 10 * time.Second},
	}
	failed := make(chan error, len(servers))
	for i, l := range []net.Listener{app, control} {
		go func() { failed <- servers[i].Serve(l) }()
	}
	if err := o.announce(ready); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	if o.stopping != nil {
		o.stopping()
	}
	grace, cancel := context.WithTimeout(context.Background(), demoGrace)
	defer cancel()
	for _, s := range servers {
		err = errors.Join(err, s.Shutdown(grace))
	}
	return err
}

func (o demoOptions) announce(r demoReady) error {
	if o.json {
		line, err := json.Marshal(r) //nolint:gosec // G117: the key of a demo, for whoever started it
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(o.out, "%s\n", line)
		return err
	}
	_, err := fmt.Fprintf(o.out, `
The billing portal's demo is running. No real money moves. Stop with Ctrl-C.
The portal is at %s; customers come to it from the vendor's app:

  1. Open the vendor's app (below) and sign in as one of the customers.
  2. Choose Settings, then "Billing & payment".

  ==>  %s

`, r.Portal, r.VendorApp)
	return err
}

// demoHost returns the host to listen on, which has to be this machine.
func demoHost(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("--listen %q: want host:port, like %s", listen, defaultDemoListen)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65534 {
		return "", fmt.Errorf("--listen %q: want a port from 0 (any free one) to 65534", listen)
	}
	host = cmp.Or(host, "localhost")
	if !isLoopback(host) {
		return "", fmt.Errorf("--listen %q: the demo has no passwords, so it listens on this machine only: use localhost", listen)
	}
	return host, nil
}

// freePort returns a port for the portal. Caddy opens it itself, a moment later.
func freePort(listen string, pick bool) (int, error) {
	host, port, _ := net.SplitHostPort(listen)
	host = cmp.Or(host, "localhost")
	first, _ := strconv.Atoi(port)
	if pick {
		l, err := listenNext(host, first)
		if err != nil {
			return 0, err
		}
		defer l.Close()
		return portOf(l), nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return 0, fmt.Errorf("--listen: %w: choose another port, or 0 for any free one", err)
	}
	defer l.Close()
	return portOf(l), nil
}

func listenNext(host string, first int) (net.Listener, error) {
	var err error
	for port := first; port < first+portsToTry && port <= 65535; port++ {
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no free port from %d on: %w", first, err)
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// startDemoPortal runs Caddy with the portal as any config would, except that
// it leaves no trace outside dir: no admin endpoint, no autosave.json, no
// certificates.
func startDemoPortal(dir, listen string, ready demoReady, quiet bool) error {
	for k, v := range map[string]string{
		demoKeyVariable:   ready.APIKey,
		"XDG_DATA_HOME":   filepath.Join(dir, "data"), // where Caddy would keep its instance id
		"XDG_CONFIG_HOME": filepath.Join(dir, "config"),
	} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	storeDir := filepath.Join(dir, "store")
	// Made here, so that nobody is warned to back up a demo's key.
	if _, err := store.LoadOrCreateSealKeyFile(storeDir + ".seal_key"); err != nil {
		return err
	}
	logo := filepath.Join(dir, "logo.svg")
	if err := os.WriteFile(logo, demo.Logo(), 0o600); err != nil {
		return err
	}
	handler := &Handler{Tenant: Tenant{
		Name: demoTenant, Origin: ready.Portal, APIKeys: []string{"{env." + demoKeyVariable + "}"},
		ProviderRaw: caddyconfig.JSONModuleObject(SandboxProvider{DataDir: filepath.Join(dir, "sandbox")}, "name", "sandbox", nil),
		ReturnTo:    []string{ready.VendorApp + "/settings"},
		Policy:      []Rule{{Verdict: string(policy.Allow), Actions: policy.Actions}},
		Brand:       &Brand{Name: "Acme Boards", Logo: logo, HelpURL: "mailto:help@acme.example"},
	}}
	app := &App{StoreRaw: caddyconfig.JSONModuleObject(BadgerStorage{Directory: storeDir}, "module", "badger", nil)}
	server := &caddyhttp.Server{
		Listen:    []string{listen},
		Protocols: []string{"h1"}, // without TLS there is no other
		AutoHTTPS: &caddyhttp.AutoHTTPSConfig{Disabled: true},
		Routes: caddyhttp.RouteList{{HandlersRaw: []json.RawMessage{
			caddyconfig.JSONModuleObject(handler, "handler", "billing_portal", nil),
		}}},
	}
	level := "WARN"
	if quiet {
		level = "INFO"
	}
	never := false
	return caddy.Run(&caddy.Config{
		Admin: &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &never}},
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {
			BaseLog: caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"stderr"}`), Level: level},
			Exclude: []string{"admin"},
		}}},
		StorageRaw: caddyconfig.JSONModuleObject(map[string]string{"root": filepath.Join(dir, "data")}, "module", "file_system", nil),
		AppsRaw: caddy.ModuleMap{
			"billing_portal": caddyconfig.JSON(app, nil),
			"http": caddyconfig.JSON(caddyhttp.App{
				GracePeriod: caddy.Duration(demoGrace), Servers: map[string]*caddyhttp.Server{"portal": server},
			}, nil),
			"tls": json.RawMessage(`{"disable_storage_clean":true}`),
		},
	})
}

// allIntents reads the journal of the demo, which is short.
func allIntents(ctx context.Context, p *portalcore.Portal) ([]portalcore.IntentStatus, error) {
	all := []portalcore.IntentStatus{}
	q := portalcore.IntentQuery{Limit: portalcore.MaxList}
	for {
		page, err := p.Intents(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Intents...)
		if q.After = page.Next; q.After == "" {
			slices.SortStableFunc(all, func(a, b portalcore.IntentStatus) int { return a.Created.Compare(b.Created) })
			return all, nil
		}
	}
}

func demoCustomers(list []billing.Customer) []demo.Customer {
	out := make([]demo.Customer, len(list))
	for i, c := range list {
		out[i] = demo.Customer{ID: c.ID, Email: c.Email, Name: c.Name}
	}
	return out
}
