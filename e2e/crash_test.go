package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// step is one provider call of an intent as the control door tells of it.
type step struct {
	Key    string    `json:"key"`
	SentAt time.Time `json:"sent_at"`
	Done   bool      `json:"done"`
}

type intent struct {
	ID, Customer, Action, State string
	Steps                       []step
}

func intents(t *testing.T, door, customer string) []intent {
	t.Helper()
	var all []intent
	control(t, door, "/intents", nil, &all)
	return slices.DeleteFunc(all, func(i intent) bool { return i.Customer != customer })
}

// choose previews a change of the customer's plan and returns the form that
// confirms it.
func (v *visitor) choose(t *testing.T, price, quantity string) form {
	t.Helper()
	f := v.get(t, "/plan").form(t, "/plan")
	f.fields.Set("price", price)
	f.fields.Set("quantity", quantity)
	p := v.post(t, f.action, f.fields)
	if p.status != http.StatusSeeOther || !strings.HasPrefix(p.location, "/check/") {
		t.Fatalf("choosing %s: %d %s\n%s", price, p.status, p.location, p.body)
	}
	return v.get(t, p.location).form(t, "/check/")
}

// eventually waits for something that recovery does by itself.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 150 {
		if ok() {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("not within 30 s: %s", what)
}

// TestKilledDuringAPlanChange kills the portal between "sent" and "settled",
// once before and once after the provider applied the change, and also loses
// the provider's answer while the portal lives on. However it ends, the plan is
// changed exactly once and the intent says so.
func TestKilledDuringAPlanChange(t *testing.T) {
	const customer, price, quantity = "cus_northwind", "price_team_monthly", "4"
	for _, tt := range []struct {
		kind, latency string
		kill          bool
	}{
		{"latency", "60s", true},       // sent, not applied
		{"timeout-after", "60s", true}, // applied, not settled
		{"timeout-before", "1s", false},
		{"timeout-after", "1s", false},
		{"error-500-before", "", false},
		{"error-500-after", "", false},
		{"rate-limit", "", false},
		{"garbage", "", false},
	} {
		name := tt.kind
		if tt.kill {
			name += " and SIGKILL"
		}
		t.Run("demo/"+name, func(t *testing.T) {
			dir, addr := t.TempDir(), freeAddr(t)
			d := startDemo(t, caddyBinary(t), "--listen", addr, "--data-dir", dir)
			v := signIn(t, d.Portal, d.APIKey, customer)
			confirm := v.choose(t, price, quantity)
			fault(t, d.Control, "execute", tt.kind, tt.latency)

			if tt.kill {
				killDuring(t, v, confirm, d.process, func() bool {
					list := intents(t, d.Control, customer)
					sent := len(list) == 1 && list[0].State == "sent" && !list[0].Steps[0].SentAt.IsZero()
					applied := len(changes(t, d.Control, customer)) == 1
					return sent && applied == (tt.kind == "timeout-after")
				})
				d = startDemo(t, caddyBinary(t), "--listen", addr, "--data-dir", dir)
			} else if p := v.post(t, confirm.action, confirm.fields); p.status != http.StatusSeeOther || !strings.HasPrefix(p.location, "/done/") {
				t.Fatalf("confirming: %d %s\n%s", p.status, p.location, p.body)
			}
			eventually(t, "the intent is settled", func() bool {
				list := intents(t, d.Control, customer)
				return len(list) == 1 && list[0].State == "succeeded" && list[0].Steps[0].Done
			})
			if got := changes(t, d.Control, customer); len(got) != 1 || got[0].IdempotencyKey != intents(t, d.Control, customer)[0].Steps[0].Key {
				t.Errorf("changes at the provider: %+v, want exactly one, under the intent's key", got)
			}
			// The form posted again is the same change.
			p := v.post(t, confirm.action, confirm.fields)
			if p.status != http.StatusSeeOther || len(changes(t, d.Control, customer)) != 1 {
				t.Errorf("posting the form again: %d, %d changes", p.status, len(changes(t, d.Control, customer)))
			}
			if body := v.get(t, p.location).body; !strings.Contains(body, "You are now on") {
				t.Errorf("the receipt does not say that it is done:\n%s", body)
			}
		})
	}
}

// changes are the ledger's changes of the customer's subscription that came
// from an intent.
func changes(t *testing.T, door, customer string) []effect {
	t.Helper()
	return slices.DeleteFunc(effects(t, door, customer), func(e effect) bool { return e.Kind != "subscription.update" })
}

// killDuring posts a form and kills the process once now() holds.
func killDuring(t *testing.T, v *visitor, f form, p *process, now func() bool) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The answer never comes.
		_, _ = v.do(context.Background(), http.MethodPost, f.action, "same-origin", f.fields)
	}()
	eventually(t, "the moment to kill the process", now)
	p.kill()
	<-done
}

// stripeWorld is a portal with the Stripe provider, over a process that speaks
// Stripe's API and stays alive.
type stripeWorld struct {
	stripe struct{ URL, Control, Key string }
	dir    string
	addr   string
	portal string
	admin  string // Caddy's admin endpoint
	key    string
	vendor ed25519.PrivateKey // what the vendor signs links with itself
	proc   *process
}

func startStripeWorld(t *testing.T) *stripeWorld {
	t.Helper()
	w := &stripeWorld{dir: t.TempDir(), addr: freeAddr(t), admin: freeAddr(t), key: "bpk_end_to_end_0123456789"}
	s := start(t, nil, stripetestBinary(t), "-listen", "127.0.0.1:0", "-data-dir", t.TempDir(), "-seed")
	s.ready(t, &w.stripe)
	w.portal = "http://" + w.addr
	w.makeVendorKey(t)
	w.startPortal(t)
	return w
}

// makeVendorKey makes the key that the vendor signs links with, and its public
// half's file, portal.pub.
func (w *stripeWorld) makeVendorKey(t *testing.T) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.vendor = private
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "portal.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// caddyfile is the portal's config, with that name of the vendor.
func (w *stripeWorld) caddyfile(t *testing.T, brand string) string {
	t.Helper()
	file := filepath.Join(w.dir, "Caddyfile")
	config := fmt.Sprintf(`{
	admin %s
	persist_config off
	billing_portal {
		store badger %s
	}
}

%s {
	billing_portal {
		origin %s
		provider stripe {
			api_key {env.STRIPE_KEY}
			base_url %s
		}
		api_key {env.PORTAL_KEY}
		trust acme-app {
			key ed25519 %s
		}
		return_to http://localhost/settings
		policy {
			allow change_plan upgrade
			allow cancel
			allow update_payment_method update_details
		}
		brand {
			name "%s"
		}
	}
}
`, w.admin, filepath.Join(w.dir, "store"), w.portal, w.portal, w.stripe.URL, filepath.Join(w.dir, "portal.pub"), brand)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// reload changes the running config and waits until it is loaded.
func (w *stripeWorld) reload(t *testing.T, brand string) {
	t.Helper()
	cmd := exec.Command(caddyBinary(t), "reload", "--config", w.caddyfile(t, brand), "--adapter", "caddyfile", "--address", w.admin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("reloading: %v\n%s", err, out)
	}
}

// startPortal runs Caddy from a Caddyfile, as a vendor does.
func (w *stripeWorld) startPortal(t *testing.T) {
	t.Helper()
	file := w.caddyfile(t, "Acme")
	env := []string{"STRIPE_KEY=" + w.stripe.Key, "PORTAL_KEY=" + w.key}
	w.proc = start(t, env, caddyBinary(t), "run", "--config", file, "--adapter", "caddyfile")
	eventually(t, "the portal answers", func() bool {
		res, err := http.Get(w.portal + "/robots.txt")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

func TestKilledDuringAPlanChangeAtStripe(t *testing.T) {
	const customer, price, quantity = "cus_northwind", "price_team_monthly", "4"
	for _, tt := range []struct {
		kind, latency string
		kill          bool
	}{
		{"latency", "60s", true},
		{"timeout-after", "60s", true},
		{"timeout-after", "1s", false},
		{"error-500-after", "", false},
	} {
		name := tt.kind
		if tt.kill {
			name += " and SIGKILL"
		}
		t.Run(name, func(t *testing.T) {
			w := startStripeWorld(t)
			v := signIn(t, w.portal, w.key, customer)
			confirm := v.choose(t, price, quantity)
			fault(t, w.stripe.Control, "execute", tt.kind, tt.latency)
			if tt.kill {
				// The store of a running portal cannot be looked into, so the
				// moment is what the other side saw, and a second to write it down.
				seen := time.Now()
				killDuring(t, v, confirm, w.proc, func() bool {
					return time.Since(seen) > time.Second && (len(changes(t, w.stripe.Control, customer)) == 1) == (tt.kind == "timeout-after")
				})
				w.startPortal(t)
			} else if p := v.post(t, confirm.action, confirm.fields); p.status != http.StatusSeeOther {
				t.Fatalf("confirming: %d\n%s", p.status, p.body)
			}
			// The same form again leads to the same intent: its receipt.
			receipt := ""
			eventually(t, "the receipt says that it is done", func() bool {
				if p := v.post(t, confirm.action, confirm.fields); p.status == http.StatusSeeOther {
					receipt = v.get(t, p.location).body
				}
				return strings.Contains(receipt, "You are now on")
			})
			if got := changes(t, w.stripe.Control, customer); len(got) != 1 {
				t.Errorf("changes at Stripe: %+v, want exactly one", got)
			}
		})
	}
}

// TestLinkSpentOverCrash kills the portal right after a link was redeemed:
// after the restart the link is still spent, with and without the amnesia
// guard.
func TestLinkSpentOverCrash(t *testing.T) {
	for _, tt := range []struct{ name, bin string }{{"with the guard", caddyBinary(t)}, {"without the guard", unguardedBinary(t)}} {
		t.Run(tt.name, func(t *testing.T) {
			dir, addr := t.TempDir(), freeAddr(t)
			for range 5 {
				d := startDemo(t, tt.bin, "--listen", addr, "--data-dir", dir)
				link := mint(t, d.Portal, d.APIKey, "cus_northwind")
				unused := mint(t, d.Portal, d.APIKey, "cus_northwind")
				v := newVisitor(t, d.Portal)
				if p := v.enter(t, link); p.status != http.StatusSeeOther {
					t.Fatalf("opening a link: %d", p.status)
				}
				d.kill()
				d = startDemo(t, tt.bin, "--listen", addr, "--data-dir", dir)
				if p := newVisitor(t, d.Portal).enter(t, link); p.status != http.StatusGone {
					t.Errorf("the used link after a crash: %d, want 410", p.status)
				}
				if p := v.get(t, "/"); p.status != http.StatusOK {
					t.Errorf("the session after a crash: %d", p.status)
				}
				want := http.StatusGone // the store may have forgotten: the guard refuses links from before
				if tt.name == "without the guard" {
					want = http.StatusSeeOther
				}
				if p := newVisitor(t, d.Portal).enter(t, unused); p.status != want {
					t.Errorf("the unused link after a crash: %d, want %d", p.status, want)
				}
				d.stop(t)
			}
		})
	}
}

// TestConcurrentRedeemsOfOneLink opens one link 64 times at once.
func TestConcurrentRedeemsOfOneLink(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	for range 5 {
		link := mint(t, d.Portal, d.APIKey, "cus_northwind")
		var in, gone atomic.Int32
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 64 {
			v := newVisitor(t, d.Portal)
			wg.Go(func() {
				<-begin
				p, err := v.do(context.Background(), http.MethodGet, link, "same-site", nil)
				switch {
				case err != nil:
					t.Error(err)
				case p.status == http.StatusSeeOther:
					in.Add(1)
				case p.status == http.StatusGone:
					gone.Add(1)
				default:
					t.Errorf("status %d", p.status)
				}
			})
		}
		close(begin)
		wg.Wait()
		if in.Load() != 1 || gone.Load() != 63 {
			t.Fatalf("%d sessions and %d refusals from one link", in.Load(), gone.Load())
		}
	}
}

// TestLinkSpentOverReload opens one link 64 times, half of them before and half
// after the config was reloaded, while it is being reloaded.
func TestLinkSpentOverReload(t *testing.T) {
	w := startStripeWorld(t)
	for round := range 5 {
		link := mint(t, w.portal, w.key, "cus_northwind")
		var in, gone atomic.Int32
		open := func(wg *sync.WaitGroup) {
			for range 32 {
				v := newVisitor(t, w.portal)
				wg.Go(func() {
					p, err := v.do(context.Background(), http.MethodGet, link, "same-site", nil)
					switch {
					case err != nil:
						t.Error(err)
					case p.status == http.StatusSeeOther:
						in.Add(1)
					case p.status == http.StatusGone:
						gone.Add(1)
					default:
						t.Errorf("status %d", p.status)
					}
				})
			}
		}
		var before, after sync.WaitGroup
		open(&before)
		w.reload(t, fmt.Sprintf("Acme %d", round))
		open(&after)
		before.Wait()
		after.Wait()
		if in.Load() != 1 || gone.Load() != 63 {
			t.Fatalf("round %d: %d sessions and %d refusals from one link", round, in.Load(), gone.Load())
		}
	}
}

// signLink signs a redirect token the way a vendor without our code does.
func (w *stripeWorld) signLink(t *testing.T, customer string) string {
	t.Helper()
	return w.signLinkAt(t, customer, time.Now())
}

// signLinkAt signs by a clock that shows that time.
func (w *stripeWorld) signLinkAt(t *testing.T, customer string, at time.Time) string {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	// The key's id is its RFC 7638 thumbprint, written out by hand.
	thumb := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + b64(w.vendor.Public().(ed25519.PublicKey)) + `"}`))
	encode := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b64(raw)
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		t.Fatal(err)
	}
	now := at.Unix()
	signed := encode(map[string]any{"alg": "EdDSA", "kid": b64(thumb[:]), "typ": "portal-link+jwt"}) + "." + encode(map[string]any{
		"iss": "acme-app", "aud": w.portal, "sub": customer, "iat": now, "exp": now + 120, "jti": b64(id),
		"role": "viewer", "actor": map[string]string{"id": "u_1", "name": "Ann"},
	})
	return w.portal + "/enter?token=" + signed + "." + b64(ed25519.Sign(w.vendor, []byte(signed)))
}

// TestVendorSignedLink enters with a link that the vendor signed itself. On a
// store that is new the page says when to try again, and no sooner does a link
// work.
func TestVendorSignedLink(t *testing.T) {
	w := startStripeWorld(t)
	p := newVisitor(t, w.portal).enter(t, w.signLink(t, "cus_northwind"))
	if p.status != http.StatusServiceUnavailable || p.header.Get("Retry-After") == "" || !strings.Contains(p.body, "second") {
		t.Errorf("a link signed as the store was made: %d, Retry-After %q\n%s", p.status, p.header.Get("Retry-After"), p.body)
	}
	var link string
	v := newVisitor(t, w.portal)
	eventually(t, "a vendor-signed link works", func() bool {
		link = w.signLink(t, "cus_northwind")
		return v.enter(t, link).status == http.StatusSeeOther
	})
	if p := v.get(t, "/"); p.status != http.StatusOK || !strings.Contains(p.body, "Billing for") {
		t.Errorf("the overview: %d", p.status)
	}
	if p := v.get(t, "/plan"); !strings.Contains(p.body, "You can look but not change.") {
		t.Error("the token's role is not that of the session")
	}
	if p := newVisitor(t, w.portal).enter(t, link); p.status != http.StatusGone {
		t.Errorf("the same link again: %d, want 410", p.status)
	}
	if p := newVisitor(t, w.portal).enter(t, link[:len(link)-6]+"AAAAAA"); p.status != http.StatusUnauthorized {
		t.Errorf("a forged one: %d, want 401", p.status)
	}
}

// TestDoubleSubmitIsOneChange posts the confirmation 8 times at once.
func TestDoubleSubmitIsOneChange(t *testing.T) {
	const customer = "cus_northwind"
	d := startDemo(t, caddyBinary(t))
	v := signIn(t, d.Portal, d.APIKey, customer)
	confirm := v.choose(t, "price_team_monthly", "5")
	fault(t, d.Control, "execute", "latency", "300ms")
	var wg sync.WaitGroup
	locations := make([]string, 8)
	for i := range locations {
		wg.Go(func() {
			p, err := v.do(context.Background(), http.MethodPost, confirm.action, "same-origin", confirm.fields)
			if err != nil || p.status != http.StatusSeeOther {
				t.Errorf("status %d, %v", p.status, err)
			}
			locations[i] = p.location
		})
	}
	wg.Wait()
	if len(slices.Compact(locations)) != 1 {
		t.Errorf("one form led to several places: %v", locations)
	}
	if got := changes(t, d.Control, customer); len(got) != 1 {
		t.Errorf("changes: %+v", got)
	}
}

// TestProviderDown shows what a customer reads while the provider does not
// answer, before and after something was sent.
func TestProviderDown(t *testing.T) {
	const customer = "cus_northwind"
	d := startDemo(t, caddyBinary(t))
	v := signIn(t, d.Portal, d.APIKey, customer)
	if p := v.get(t, "/"); p.status != http.StatusOK {
		t.Fatalf("overview: %d", p.status)
	}
	down := func(on string, times int) {
		control(t, d.Control, "/fault", map[string]any{"on": on, "times": times, "kind": "error-500-before"}, nil)
	}
	confirm := v.choose(t, "price_team_monthly", "4")
	down("any", 1)
	p := v.post(t, confirm.action, confirm.fields)
	if p.status != http.StatusServiceUnavailable || !regexp.MustCompile(`(?i)nothing was sent`).MatchString(p.body) {
		t.Errorf("acting while the provider is down: %d\n%s", p.status, p.body)
	}
	if got := changes(t, d.Control, customer); len(got) != 0 {
		t.Errorf("changes: %+v", got)
	}
	time.Sleep(3100 * time.Millisecond) // "Refresh" asks the provider at most every 3 s
	down("any", 1)
	if p := v.get(t, "/?fresh=1"); p.status == http.StatusSeeOther {
		t.Logf("refreshing leads to %s", p.location)
	}
	if p := v.get(t, "/"); p.status != http.StatusOK || !strings.Contains(p.body, "Northwind Ltd") || !regexp.MustCompile(`(?i)shown from`).MatchString(p.body) {
		t.Errorf("the overview from before the outage must be there, with its age: %d\n%s", p.status, p.body)
	}
	down("execute", 3)
	p = v.post(t, confirm.action, confirm.fields)
	if p.status != http.StatusSeeOther {
		t.Fatalf("confirming: %d\n%s", p.status, p.body)
	}
	if body := v.get(t, p.location).body; !strings.Contains(body, "checking") {
		t.Errorf("sent without an answer must read as being checked:\n%s", body)
	}
}
