package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddytest"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// canary stands in configs where a secret would and must never come out.
const canary = "sk_live_CANARY0123456789abcdef"

// TestAdapt compares testdata/adapt/*.caddyfile with the JSON beside them.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfile")
	if err != nil || len(files) < 3 {
		t.Fatalf("found %d golden files, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			in := readGolden(t, f)
			want := strings.TrimSpace(readGolden(t, strings.TrimSuffix(f, ".caddyfile")+".json"))
			if !caddytest.CompareAdapt(t, f, in, "caddyfile", want) {
				t.Fail()
			}
			if got := caddyfile.Format([]byte(in)); string(got) != in {
				t.Errorf("%s is not formatted: caddy fmt --overwrite %s", f, f)
			}
		})
	}
}

// TestJSONRoundTrip holds that the JSON of a Caddyfile is what the structs
// read: no field is lost or renamed between the two.
func TestJSONRoundTrip(t *testing.T) {
	var cfg struct {
		Apps struct {
			Portal json.RawMessage `json:"billing_portal"`
			HTTP   struct {
				Servers map[string]struct {
					Routes []struct {
						Handle []struct {
							Routes []struct{ Handle []json.RawMessage }
						}
					}
				}
			} `json:"http"`
		}
	}
	if err := json.Unmarshal([]byte(readGolden(t, "testdata/adapt/full.json")), &cfg); err != nil {
		t.Fatal(err)
	}
	raw := cfg.Apps.HTTP.Servers["srv0"].Routes[0].Handle[0].Routes[0].Handle[0]
	var h struct {
		Module string `json:"handler"`
		Handler
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&h); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(h.Tenant)
	if err != nil {
		t.Fatal(err)
	}
	var want, got map[string]any
	if err := errors.Join(json.Unmarshal(raw, &want), json.Unmarshal(again, &got)); err != nil {
		t.Fatal(err)
	}
	delete(want, "handler")
	if !reflect.DeepEqual(want, got) {
		t.Errorf("the tenant's JSON changed on its way through the struct:\n%v\n%v", want, got)
	}
	var a App
	dec = json.NewDecoder(bytes.NewReader(cfg.Apps.Portal))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		t.Error(err)
	}
	if a.SealKey != "{file./etc/billing-portal/seal.key}" || len(a.PreviousSealKeys) != 2 || len(a.StoreRaw) == 0 {
		t.Errorf("app read from JSON is %+v, %s", a.SealKey, a.StoreRaw)
	}
}

func readGolden(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCaddyfileErrors has one case for each error of the grammar.
func TestCaddyfileErrors(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"unknown", "origins https://x", `billing_portal has no subdirective "origins": it takes account_max_age, api_key, brand, catalogue, default_role, entry, events, name, origin, policy, provider, return_to, session, trust`},
		{"twice", "origin https://a\norigin https://b", "billing_portal has origin twice"},
		{"origin without", "origin", "origin takes one argument"},
		{"origin with two", "origin https://a https://b", "origin takes one argument"},
		{"empty argument", `name ""`, "name takes one argument"},
		{"provider without", "provider", "provider takes the name of a module: sandbox, slow, stripe"},
		{"provider unknown", "provider paddle", `there is no provider "paddle" in this build of Caddy: there is sandbox, slow, stripe`},
		{"provider twice", "provider sandbox\nprovider sandbox", "billing_portal has provider twice"},
		{"stripe argument", "provider stripe " + canary, "provider stripe takes no argument"},
		{"stripe unknown", "provider stripe {\nkey {env.X}\n}", `provider stripe has no subdirective "key": it takes api_key, base_url, rate_limit, webhook_secret`},
		{"stripe literal key", "provider stripe {\napi_key " + canary + "\n}", "provider stripe: api_key stands in the config itself"},
		{"stripe rate", "provider stripe {\nrate_limit 0\n}", `provider stripe: rate_limit takes how many requests a second may be sent, like 25, not "0"`},
		{"stripe key twice", "provider stripe {\napi_key {env.X}\napi_key {env.Y}\n}", "provider stripe has api_key twice"},
		{"stripe two keys", "provider stripe {\napi_key " + canary + " x\n}", "provider stripe: api_key takes one argument, a placeholder"},
		{"stripe literal webhook secret", "provider stripe {\nwebhook_secret " + canary + "\n}", "provider stripe: webhook_secret stands in the config itself"},
		{"stripe second literal webhook secret", "provider stripe {\nwebhook_secret {env.X}\nwebhook_secret " + canary + "\n}", "provider stripe: webhook_secret stands in the config itself"},
		{"stripe webhook secret without", "provider stripe {\nwebhook_secret\n}", "provider stripe: webhook_secret takes one argument, a placeholder"},
		{"stripe two webhook secrets", "provider stripe {\nwebhook_secret {env.X} " + canary + "\n}", "provider stripe: webhook_secret takes one argument, a placeholder"},
		{"sandbox literal webhook secret", "provider sandbox {\nwebhook_secret " + canary + "\n}", "provider sandbox: webhook_secret stands in the config itself"},
		{"sandbox webhook secret twice", "provider sandbox {\nwebhook_secret {env.X}\nwebhook_secret {env.Y}\n}", "provider sandbox has webhook_secret twice"},
		{"sandbox argument", "provider sandbox /tmp/x", "provider sandbox takes no argument"},
		{"sandbox unknown", "provider sandbox {\ndir /x\n}", `provider sandbox has no subdirective "dir": it takes data_dir, webhook_secret`},
		{"api_key literal", "api_key " + canary, "api_key stands in the config itself, where /config/ and autosave.json would show it"},
		{"api_key half a placeholder", "api_key " + canary + "{env.X}", "api_key stands in the config itself"},
		{"api_key empty", `api_key ""`, "api_key is empty"},
		{"api_key without", "api_key", "api_key takes one argument, a placeholder"},
		{"trust without", "trust", "trust takes one argument"},
		{"trust without key", "trust app {\n}", "trust app has no key"},
		{"trust twice", "trust app {\nkey ed25519 /k\n}\ntrust app {\nkey ed25519 /k\n}", "trust app is there twice"},
		{"trust unknown", "trust app {\nsecret x\n}", `trust has no subdirective "secret": it takes allow_plain_jwt, key`},
		{"trust algorithm", "trust app {\nkey rs256 /k\n}", `key algorithm "rs256": want ed25519 or es256`},
		{"trust key", "trust app {\nkey ed25519\n}", "key takes an algorithm, a public key and optionally its kid"},
		{"plain jwt argument", "trust app {\nallow_plain_jwt yes\n}", "allow_plain_jwt takes no argument"},
		{"return_to without", "return_to", "return_to takes one or more arguments"},
		{"session argument", "session 30m", "session takes no argument"},
		{"session unknown", "session {\nmax 1h\n}", `session has no subdirective "max": it takes absolute, idle, limit`},
		{"session duration", "session {\nidle soon\n}", `idle: "soon" is not a duration`},
		{"session limit", "session {\nlimit 0\n}", "session limit: want 1 or more"},
		{"session limit word", "session {\nlimit few\n}", `limit: "few" is not a whole number`},
		{"events argument", "events https://app.example.com/", "events takes no argument"},
		{"events unknown", "events {\nuri https://x\n}", `events has no subdirective "uri": it takes secret, url`},
		{"events literal secret", "events {\nsecret " + canary + "\n}", "events: secret 1 stands in the config itself"},
		{"events literal old secret", "events {\nsecret {env.X} " + canary + "\n}", "events: secret 2 stands in the config itself"},
		{"events without secret", "events {\nsecret\n}", "secret takes a placeholder"},
		{"events three secrets", "events {\nsecret {env.X} {env.Y} {env.Z}\n}", "secret takes a placeholder"},
		{"session negative", "session {\nidle -1m\n}", `idle: "-1m" is not a duration`},
		{"max age", "account_max_age often", `account_max_age: "often" is not a duration`},
		{"catalogue argument", "catalogue stripe", "catalogue takes no argument"},
		{"catalogue unknown", "catalogue {\naddon x\n}", `catalogue has no subdirective "addon": it takes plan`},
		{"plan twice", "catalogue {\nplan a {\nprices x\n}\nplan a {\nprices y\n}\n}", "plan a is there twice"},
		{"plan unknown", "catalogue {\nplan a {\nprice x\n}\n}", `plan has no subdirective "price": it takes feature, limit, max_quantity, min_quantity, name, prices, rank, text`},
		{"rank", "catalogue {\nplan a {\nrank high\n}\n}", `rank: "high" is not a whole number`},
		{"limit", "catalogue {\nplan a {\nlimit projects\n}\n}", "limit takes a name and a number"},
		{"limit number", "catalogue {\nplan a {\nlimit projects many\n}\n}", `limit projects: "many" is not a whole number`},
		{"policy names", "policy a b {\nallow cancel\n}", "policy takes at most one argument"},
		{"policy empty", "policy {\n}", "the policy has no rule"},
		{"policy twice", "policy {\nallow cancel\n}\npolicy {\nallow cancel\n}", "two policies without a name"},
		{"policy name twice", "policy a {\nallow cancel\n}\npolicy a {\nallow cancel\n}", "policy a is there twice"},
		{"policy unknown", "policy {\nreview cancel\n}", `policy has no subdirective "review": it takes allow, deny`},
		{"view of a role", "policy {\nallow view_usage {\nrole owner\n}\n}", `view_usage is allowed to every role anyway: deny it to the others instead`},
		{"rule about support", "policy {\nallow cancel {\nrole support\n}\n}", `unknown role "support": want one of owner, billing, viewer`},
		{"action unknown", "policy {\nallow change_plans\n}", `allow: "change_plans" is no action (change_plan, cancel, resume, update_payment_method, remove_payment_method, pay_invoices, update_details, update_tax_ids, view_invoices, view_usage, view_balance), no direction (upgrade, downgrade, crossgrade, interval_longer, interval_shorter)`},
		{"no action", "policy {\nallow\n}", "names no action"},
		{"direction of cancel", "policy {\nallow cancel upgrade\n}", "only change_plan has directions"},
		{"period end", "policy {\nallow change_plan downgrade at_period_end\n}", `"at_period_end" is not supported in this version`},
		{"period end in a block", "policy {\nallow change_plan {\nat_period_end\n}\n}", `allow: "at_period_end" is not supported in this version: changes take effect at once`},
		{"condition", "policy {\nallow cancel when `true`\n}", `allow: "when" is not supported in this version`},
		{"condition in a block", "policy {\nallow cancel {\nwhen `true`\n}\n}", `allow: "when" is not supported in this version: changes take effect at once, and rules have no conditions yet`},
		{"text not last", "policy {\ndeny \"no\" cancel\n}", "the text for the customer comes last"},
		{"text on allow", "policy {\nallow cancel \"yes\"\n}", "a text for the customer belongs to a deny rule"},
		{"role", "policy {\nallow cancel {\nrole admin\n}\n}", `unknown role "admin"`},
		{"rule unknown", "policy {\nallow cancel {\nplan x\n}\n}", `allow has no subdirective "plan": it takes from, role, to`},
		{"brand argument", "brand Acme", "brand takes no argument"},
		{"brand unknown", "brand {\ncolor red\n}", `brand has no subdirective "color": it takes accent, help, legal, logo, name, privacy, templates, time_zone`},
		{"accent bare", "brand {\naccent #1F5FD6\n}", "because a bare # begins a comment"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantAdaptError(t, "http://localhost:9080 {\nbilling_portal {\n"+tc.in+"\n}\n}\n", tc.want)
		})
	}
	for _, tc := range []struct{ name, in, want string }{
		{"argument", "{\nbilling_portal x\n}", "the global option billing_portal takes no argument"},
		{"unknown", "{\nbilling_portal {\nstorage badger\n}\n}", `the global option billing_portal has no subdirective "storage": it takes seal_key, store`},
		{"twice", "{\nbilling_portal {\nstore badger\n}\nbilling_portal {\nstore badger\n}\n}", "billing_portal is there twice"},
		{"store twice", "{\nbilling_portal {\nstore badger /a\nstore badger /b\n}\n}", "billing_portal has store twice"},
		{"store without", "{\nbilling_portal {\nstore\n}\n}", "store takes the name of a module: badger"},
		{"store unknown", "{\nbilling_portal {\nstore redis\n}\n}", `there is no store "redis" in this build of Caddy: there is badger`},
		{"badger arguments", "{\nbilling_portal {\nstore badger /a /b\n}\n}", "store badger takes at most one argument"},
		{"badger block", "{\nbilling_portal {\nstore badger {\ndir /a\n}\n}\n}", "store badger has no subdirectives"},
		{"seal key literal", "{\nbilling_portal {\nseal_key " + canary + "\n}\n}", "seal_key stands in the config itself"},
		{"seal key without", "{\nbilling_portal {\nseal_key\n}\n}", "seal_key takes a placeholder like"},
		{"previous seal key literal", "{\nbilling_portal {\nseal_key {env.X} {env.Y} " + canary + "\n}\n}", "seal_key: previous key 2 stands in the config itself"},
		{"path matcher", "http://localhost:9080 {\nbilling_portal /billing* {\norigin http://localhost:9080\n}\n}", "billing_portal takes no matcher (/billing*): a portal owns its whole origin"},
		{"named matcher", "http://localhost:9080 {\n@b path /billing*\nbilling_portal @b {\norigin http://localhost:9080\n}\n}", "billing_portal takes no matcher (@b): a portal owns its whole origin"},
		{"directive argument", "http://localhost:9080 {\nbilling_portal * x {\n}\n}", "billing_portal takes no argument"},
	} {
		t.Run("global/"+tc.name, func(t *testing.T) { wantAdaptError(t, tc.in, tc.want) })
	}
}

func wantAdaptError(t *testing.T, in, want string) {
	t.Helper()
	_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(in), map[string]any{"filename": "Caddyfile"})
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("error = %v\nwant one with %q", err, want)
	}
	if strings.Contains(err.Error(), "CANARY") {
		t.Errorf("the error shows a secret: %v", err)
	}
}

// validate does what "caddy validate" does.
func validate(t *testing.T, in string) error {
	t.Helper()
	raw, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(in), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("adapting: %v", err)
	}
	return validateJSON(t, raw)
}

func validateJSON(t *testing.T, raw []byte) error {
	t.Helper()
	cfg := new(caddy.Config)
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(cfg); err != nil {
		t.Fatal(err)
	}
	return caddy.Validate(cfg)
}

// TestProvisionErrors has one case for what can only be found when the config
// is loaded.
func TestProvisionErrors(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("BP_KEY", "bpk_test_0123456789abcdefghij")
	t.Setenv("BP_SHORT", "short")
	t.Setenv("BP_SECRET", canary)
	t.Setenv("BP_WHSEC", "whsec_CANARY0123456789abcdef")
	t.Setenv("BP_WHSEC_SHORT", "whsec_CANARY")
	t.Setenv("BP_EMPTY", "")
	t.Setenv("BP_SEAL", strings.Repeat("5a", 32))
	notKey := filepath.Join(dir, "not-a-key")
	write(t, notKey, "hello")
	private := filepath.Join(dir, "private.pem")
	write(t, private, "-----BEGIN PRIVATE KEY-----\nCANARY\n-----END PRIVATE KEY-----\n")
	big := filepath.Join(dir, "big.svg")
	write(t, big, strings.Repeat("x", maxLogo+1))

	// A later line of the same name stands instead of the one in the base.
	site := func(lines string) string {
		base := "origin http://localhost:9080\nprovider sandbox\napi_key {env.BP_KEY}\nreturn_to http://localhost:3000/\nbrand {\nname Acme\n}\n"
		for line := range strings.SplitSeq(base, "\n") {
			name, _, _ := strings.Cut(line, " ")
			if name != "" && name != "name" && name != "}" && strings.HasPrefix(lines, name+" ") {
				if name == "brand" {
					base = strings.Replace(base, "brand {\nname Acme\n}\n", "", 1)
				} else {
					base = strings.Replace(base, line+"\n", "", 1)
				}
			}
		}
		return "http://localhost:9080 {\nbilling_portal {\n" + base + lines + "\n}\n}\n"
	}
	if err := validate(t, site("")); err != nil {
		t.Fatalf("the base is not valid: %v", err)
	}
	if err := validate(t, strings.Replace(site(""), "billing_portal {", "billing_portal * {", 1)); err != nil {
		t.Errorf("a matcher that matches everything: %v", err)
	}
	for _, tc := range []struct{ name, in, want string }{
		{"no provider", "http://localhost:9080 {\nbilling_portal {\norigin http://localhost:9080\n}\n}", "billing_portal http://localhost:9080: provider is missing"},
		{"no origin", "http://localhost:9080 {\nbilling_portal {\nprovider sandbox\n}\n}", "origin is missing"},
		{"http origin", site("origin http://billing.example.com"), "want https (http only on localhost"},
		{"origin with a path", site("origin https://billing.example.com/portal"), "scheme and host"},
		{"api_key unset", site("api_key {env.BP_NOT_SET}"), "api_key 1: the placeholder {env.BP_NOT_SET} has no value"},
		{"api_key empty", site("api_key {env.BP_EMPTY}"), "api_key 1: the placeholder {env.BP_EMPTY} has no value"},
		{"api_key no file", site("api_key {file./does/not/exist}"), "api_key 1: the placeholder {file./does/not/exist} has no value"},
		{"api_key short", site("api_key {env.BP_SHORT}"), "api_key 1:"},
		{"api_key is Stripe's", site("api_key {env.BP_SECRET}"), "api_key 1:"},
		{"stripe key unset", site("provider stripe {\napi_key {env.BP_NOT_SET}\n}"), "provider stripe: api_key: the placeholder {env.BP_NOT_SET} has no value"},
		{"stripe without key", site("provider stripe"), "billing_portal http://localhost:9080: loading the provider: loading module 'stripe': provision billing_portal.providers.stripe: provider stripe: api_key is empty"},
		{"stripe key malformed", site("provider stripe {\napi_key {env.BP_SHORT}\n}"), "the API key must be a secret key"},
		{"stripe webhook secret unset", site("provider stripe {\napi_key {env.BP_SECRET}\nwebhook_secret {env.BP_NOT_SET}\n}"), "provider stripe: webhook_secret 1: the placeholder {env.BP_NOT_SET} has no value"},
		{"stripe webhook secret is a key", site("provider stripe {\napi_key {env.BP_SECRET}\nwebhook_secret {env.BP_SECRET}\n}"), "provider stripe: webhook_secret 1: what is behind {env.BP_SECRET} does not begin with whsec_"},
		{"second stripe webhook secret is a key", site("provider stripe {\napi_key {env.BP_SECRET}\nwebhook_secret {env.BP_WHSEC}\nwebhook_secret {env.BP_SECRET}\n}"), "provider stripe: webhook_secret 2: what is behind {env.BP_SECRET} does not begin with whsec_"},
		{"stripe webhook secret short", site("provider stripe {\napi_key {env.BP_SECRET}\nwebhook_secret {env.BP_WHSEC_SHORT}\n}"), "provider stripe: webhook_secret 1: what is behind {env.BP_WHSEC_SHORT} is too short"},
		{"sandbox webhook secret is a key", site("provider sandbox {\nwebhook_secret {env.BP_SECRET}\n}"), "provider sandbox: webhook_secret 1: what is behind {env.BP_SECRET} does not begin with whsec_"},
		{"stripe rate too high", site("provider stripe {\napi_key {env.BP_SECRET}\nrate_limit 20000\n}"), "the requests per second must be between 1 and 10000"},
		{"stripe base_url", site("provider stripe {\napi_key {env.BP_SECRET}\nbase_url https://evil.example.com\n}"), "base_url is for tests and takes a loopback host only"},
		{"seal key unset", "{\nbilling_portal {\nseal_key {env.BP_NOT_SET}\n}\n}\n" + site(""), "seal_key: the placeholder {env.BP_NOT_SET} has no value"},
		{"seal key malformed", "{\nbilling_portal {\nseal_key {env.BP_SECRET}\n}\n}\n" + site(""), "seal key must be 64 hexadecimal digits"},
		{"previous seal key unset", "{\nbilling_portal {\nseal_key {env.BP_SEAL} {env.BP_NOT_SET}\n}\n}\n" + site(""), "seal_key: previous key 1: the placeholder {env.BP_NOT_SET} has no value"},
		{"previous seal key malformed", "{\nbilling_portal {\nseal_key {env.BP_SEAL} {env.BP_SECRET}\n}\n}\n" + site(""), "seal_key: previous key 1: store: seal key must be 64 hexadecimal digits"},
		{"trust file", site("trust app {\nkey ed25519 /does/not/exist\n}"), "trust app: key 1: stat /does/not/exist"},
		{"trust not a key", site("trust app {\nkey ed25519 " + notKey + "\n}"), "neither PEM nor a JWK"},
		{"trust private key", site("trust app {\nkey ed25519 " + private + "\n}"), "this is a private key"},
		{"return_to", site("return_to javascript:alert(1)"), "return_to"},
		{"no return_to", "http://localhost:9080 {\nbilling_portal {\norigin http://localhost:9080\nprovider sandbox\napi_key {env.BP_KEY}\nbrand {\nname Acme\n}\n}\n}", "billing_portal http://localhost:9080: return_to is required"},
		{"entry", site("entry always"), `entry "always": want same_site or confirm`},
		{"default_role", site("default_role admin"), "default_role"},
		{"session limit", site("session {\nlimit 101\n}"), "limit 101: want 1 to 100"},
		{"events without url", site("events {\nsecret {env.BP_SECRET}\n}"), "events: url is missing"},
		{"events without secret", site("events {\nurl https://app.example.com/hooks\n}"), "one secret is needed"},
		{"events secret unset", site("events {\nurl https://app.example.com/hooks\nsecret {env.BP_NOT_SET}\n}"), "events: secret 1: the placeholder {env.BP_NOT_SET} has no value"},
		{"events secret malformed", site("events {\nurl https://app.example.com/hooks\nsecret {env.BP_SECRET}\n}"), "a secret must be whsec_ and 24 to 64 random bytes in base64"},
		{"events plain http", site("events {\nurl http://app.example.com/hooks\nsecret {env.BP_SECRET}\n}"), "the URL must be https"},
		{"session", site("session {\nidle 2h\nabsolute 1h\n}"), "want 1m <= idle <= absolute <= 24h"},
		{"account_max_age", site("account_max_age 2h"), "account_max_age"},
		{"plan without prices", site("catalogue {\nplan a {\nrank 1\n}\n}"), `plan "a" has no prices`},
		{"policy plan", site("catalogue {\nplan a {\nprices x\n}\n}\npolicy {\nallow change_plan {\nto b\n}\n}"), `unknown plan "b": the catalogue has a`},
		{"policy name", site("policy a/b {\nallow cancel\n}"), `policy "a/b"`},
		{"brand name", site("brand {\naccent \"#123456\"\n}"), "billing_portal http://localhost:9080: brand: name is required"},
		{"help without mailto", site("brand {\nname Acme\nhelp support@example.com\n}"), `the help link "support@example.com" is no https: or mailto: URL`},
		{"accent", site("brand {\nname Acme\naccent red\n}"), "red"},
		{"time zone", site("brand {\nname Acme\ntime_zone Mars/Olympus\n}"), "Mars/Olympus"},
		{"logo type", site("brand {\nname Acme\nlogo /x/logo.gif\n}"), "want a file that ends in .svg, .png or .webp"},
		{"logo missing", site("brand {\nname Acme\nlogo /does/not/exist.svg\n}"), "brand logo: stat /does/not/exist.svg"},
		{"logo big", site("brand {\nname Acme\nlogo " + big + "\n}"), "at most 262144 are allowed"},
		{"templates missing", site("brand {\nname Acme\ntemplates /does/not/exist\n}"), "brand templates: stat /does/not/exist"},
		{"templates not a directory", site("brand {\nname Acme\ntemplates " + notKey + "\n}"), "is not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := validate(t, tc.in)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error = %v\nwant one with %q\nfor %s", err, tc.want, tc.in)
			}
			if strings.Contains(err.Error(), "CANARY") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
	t.Run("the same tenant twice", func(t *testing.T) {
		second := strings.Replace(strings.ReplaceAll(site(""), "9080", "9081"), "origin", "name localhost:9080\norigin", 1)
		if err := validate(t, site("")+second); err == nil || !strings.Contains(err.Error(), `the tenant "localhost:9080" is configured twice`) {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("the same origin twice", func(t *testing.T) {
		second := strings.Replace(site("name other"), "http://localhost:9080 {", "http://localhost:9081 {", 1)
		if err := validate(t, site("")+second); err == nil || !strings.Contains(err.Error(), "have the same origin http://localhost:9080") {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("unknown JSON field", func(t *testing.T) {
		err := validateJSON(t, []byte(`{"apps":{"http":{"servers":{"s":{"listen":["localhost:9080"],"routes":[{"handle":[{"handler":"billing_portal","origins":"x"}]}]}}}}}`))
		if err == nil || !strings.Contains(err.Error(), `unknown field "origins"`) {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("previous seal keys alone", func(t *testing.T) {
		err := validateJSON(t, []byte(`{"apps":{"billing_portal":{"previous_seal_keys":["{env.BP_SEAL}"]}}}`))
		if err == nil || !strings.Contains(err.Error(), "previous_seal_keys needs seal_key") {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("literal secrets in JSON", func(t *testing.T) {
		for _, handler := range []string{
			`"provider":{"name":"stripe","api_key":"` + canary + `"}`,
			`"provider":{"name":"stripe","api_key":"{env.BP_SECRET}","webhook_secrets":["` + canary + `"]}`,
			`"provider":{"name":"sandbox","webhook_secret":"` + canary + `"}`,
			`"provider":{"name":"sandbox"},"api_keys":["` + canary + `"]`,
		} {
			err := validateJSON(t, []byte(`{"apps":{"http":{"servers":{"s":{"listen":["localhost:9080"],"routes":[{"handle":[{"handler":"billing_portal","origin":"http://localhost:9080",`+handler+`}]}]}}}}}`))
			if err == nil || !strings.Contains(err.Error(), "stands in the config itself") || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("error = %v", err)
			}
		}
	})
	if _, err := os.Stat(filepath.Join(dir, "caddy", "billing_portal")); err == nil {
		t.Error("checking configs made the store's directory")
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCaddyfileExample holds that the example is formatted, adapts without a
// warning and is valid once its environment variables are set.
func TestCaddyfileExample(t *testing.T) {
	in := readGolden(t, "../Caddyfile.example")
	if got := caddyfile.Format([]byte(in)); string(got) != in {
		t.Error("Caddyfile.example is not formatted: caddy fmt --overwrite Caddyfile.example")
	}
	for _, name := range []string{"../Caddyfile.example", "../docs/configuration.md"} {
		if !strings.Contains(readGolden(t, name), "store badger /var/lib/caddy/") {
			t.Errorf("%s: Caddy's packages run it as a user who can write to /var/lib/caddy only", name)
		}
	}
	raw, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(in), map[string]any{"filename": "Caddyfile.example"})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("adapting: %v, %v", err, warnings)
	}
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	if err := validateJSON(t, raw); err == nil || !strings.Contains(err.Error(), "has no value") {
		t.Errorf("without its environment variables: %v", err)
	}
	t.Setenv("PORTAL_SEAL_KEY", strings.Repeat("5a", 32))
	t.Setenv("STRIPE_RESTRICTED_KEY", "rk_test_0123456789abcdefghij")
	t.Setenv("STRIPE_WEBHOOK_SECRET", "whsec_0123456789abcdefghij")
	t.Setenv("PORTAL_API_KEY", "bpk_test_0123456789abcdefghij")
	t.Setenv("PORTAL_EVENTS_SECRET", "whsec_"+strings.Repeat("A", 43)+"=")
	before := opened.Load()
	if err := validateJSON(t, raw); err != nil {
		t.Error(err)
	}
	if n := opened.Load() - before; n != 0 {
		t.Errorf("validating opened %d stores", n)
	}
}

// TestConfigurationIsDocumented holds that docs/configuration.md names every
// subdirective that the grammar takes, and no longer ones.
func TestConfigurationIsDocumented(t *testing.T) {
	doc := readGolden(t, "../docs/configuration.md")
	for where, in := range map[string]string{
		"global":    "{\nbilling_portal {\nno_such\n}\n}",
		"postgres":  "{\nbilling_portal {\nstore postgres {env.X} {\nno_such\n}\n}\n}",
		"directive": "x {\nbilling_portal {\nno_such\n}\n}",
		"stripe":    "x {\nbilling_portal {\nprovider stripe {\nno_such\n}\n}\n}",
		"sandbox":   "x {\nbilling_portal {\nprovider sandbox {\nno_such\n}\n}\n}",
		"trust":     "x {\nbilling_portal {\ntrust a {\nno_such\n}\n}\n}",
		"events":    "x {\nbilling_portal {\nevents {\nno_such\n}\n}\n}",
		"session":   "x {\nbilling_portal {\nsession {\nno_such\n}\n}\n}",
		"plan":      "x {\nbilling_portal {\ncatalogue {\nplan a {\nno_such\n}\n}\n}\n}",
		"policy":    "x {\nbilling_portal {\npolicy {\nno_such\n}\n}\n}",
		"rule":      "x {\nbilling_portal {\npolicy {\nallow cancel {\nno_such\n}\n}\n}\n}",
		"brand":     "x {\nbilling_portal {\nbrand {\nno_such\n}\n}\n}",
	} {
		_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(in), map[string]any{"filename": "Caddyfile"})
		if err == nil {
			t.Fatalf("%s: no error", where)
		}
		_, names, ok := strings.Cut(err.Error(), ": it takes ")
		if !ok {
			t.Fatalf("%s: %v", where, err)
		}
		names, _, _ = strings.Cut(names, ", at ")
		names, _, _ = strings.Cut(names, " at Caddyfile")
		for name := range strings.SplitSeq(names, ", ") {
			if !strings.Contains(doc, "`"+name+"`") && !strings.Contains(doc, "`"+name+" ") {
				t.Errorf("%s: docs/configuration.md does not name `%s`", where, name)
			}
		}
	}
}

// TestConfigurationExamples holds that the examples of docs/configuration.md
// are valid, in one config.
func TestConfigurationExamples(t *testing.T) {
	dir := t.TempDir()
	pub := filepath.Join(dir, "portal.pub")
	write(t, pub, `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`)
	t.Setenv("ACME_OLD_PUBLIC_KEY", `{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}`)
	t.Setenv("BP_KEY", "bpk_test_0123456789abcdefghij")
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("PORTAL_EVENTS_SECRET", "whsec_"+strings.Repeat("A", 43)+"=")
	sealKey := filepath.Join(dir, "seal.key")
	write(t, sealKey, strings.Repeat("5a", 32))
	doc := strings.NewReplacer("/etc/acme/portal.pub", pub, "/etc/billing-portal/seal.key", sealKey).Replace(readGolden(t, "../docs/configuration.md"))
	global, site := "", ""
	var stores []string
	for i, part := range strings.Split(doc, "```")[1:] {
		text, isCaddyfile := strings.CutPrefix(part, "caddyfile\n")
		switch {
		case i%2 == 1 || !isCaddyfile:
		case strings.HasPrefix(text, "{"):
			global += text
		case strings.HasPrefix(text, "store "):
			stores = append(stores, text)
		default:
			site += text
		}
	}
	for _, want := range []string{"billing_portal", "trust", "catalogue", "policy", "events"} {
		if !strings.Contains(global+site, want+" ") {
			t.Errorf("there is no example of %s", want)
		}
	}
	site = "http://localhost:9080 {\nbilling_portal {\norigin http://localhost:9080\nprovider sandbox\napi_key {env.BP_KEY}\nreturn_to http://localhost:3000/\nbrand {\nname Acme\n}\n" + site + "}\n}\n"
	if err := validate(t, global+site); err != nil {
		t.Error(err)
	}
	t.Setenv("DATABASE_URL", "postgres://portal@localhost/portal")
	if len(stores) == 0 {
		t.Error("there is no example of store postgres")
	}
	for _, text := range stores {
		if err := validate(t, "{\nbilling_portal {\n"+text+"seal_key {file."+sealKey+"}\n}\n}\n"+site); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		// Without a key that all nodes have it is refused before anything starts.
		if err := validate(t, "{\nbilling_portal {\n"+text+"}\n}\n"+site); err == nil || !strings.Contains(err.Error(), "store postgres needs seal_key, the same for all nodes") {
			t.Errorf("store postgres without seal_key: %v", err)
		}
	}
}

// TestDemoIsDocumented holds that docs/configuration.md has every customer,
// card and fault of the demo.
func TestDemoIsDocumented(t *testing.T) {
	doc := readGolden(t, "../docs/configuration.md")
	sealer, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	st, err := openBadger(t.TempDir(), sealer, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	book, err := openLedger(t.Context(), st, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	customers := demoCustomers(book.customers)
	if len(customers) == 0 {
		t.Error("the demo has no customers")
	}
	for _, c := range customers {
		if row := "| `" + c.ID + "` | " + c.Name + " | " + c.Scenario() + " |"; !strings.Contains(doc, row) {
			t.Errorf("there is no row %s", row)
		}
	}
	for _, c := range sandbox.TestCards {
		if !strings.Contains(doc, "`"+c.Number+"`") {
			t.Errorf("the test card %s is not there", c.Number)
		}
	}
	for _, bad := range []sandbox.Fault{{On: "no_such"}, {On: "any", Kind: "no_such"}} {
		err := new(sandbox.Faults).Set(bad)
		if err == nil {
			t.Fatalf("%+v was taken", bad)
		}
		_, list, ok := strings.Cut(err.Error(), "is not one of ")
		if !ok {
			t.Fatal(err)
		}
		for name := range strings.FieldsSeq(strings.NewReplacer("[", "", "]", "", `"`, "").Replace(list)) {
			if !strings.Contains(doc, "`"+name+"`") {
				t.Errorf("the fault value %s is not there", name)
			}
		}
	}
}
