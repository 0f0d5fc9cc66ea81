package vendorapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/vendorapi"
)

func (w *world) search(_ context.Context, q billing.CustomerQuery) ([]billing.Customer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finds++
	switch {
	case w.down:
		return nil, &billing.Error{Fault: billing.Unavailable, Code: w.code}
	case q.Email == "ada@example.com" || q.Reference == "acct 42&x":
		return []billing.Customer{{ID: "cus_1", Name: "Ada", Email: "ada@example.com", Reference: "acct 42&x", Phone: "+1 555"}, {ID: "cus_2"}}, nil
	}
	return nil, nil
}

func TestCustomers(t *testing.T) {
	w := newWorld(t)
	for _, query := range []string{"email=ada%40example.com", "reference=" + url.QueryEscape("acct 42&x")} {
		status, body, _ := w.call(t, http.MethodGet, vendorapi.PathCustomers, query)
		want := "map[data:[map[email:ada@example.com id:cus_1 livemode:false name:Ada object:customer reference:acct 42&x] " +
			"map[email:<nil> id:cus_2 livemode:false name:<nil> object:customer reference:<nil>]] has_more:false object:list url:/v1/portal/customers]"
		if got := fmt.Sprint(body); status != http.StatusOK || got != want {
			t.Errorf("%s: %d\n%s\nwant\n%s", query, status, got, want)
		}
	}
	if status, body, _ := w.call(t, http.MethodGet, vendorapi.PathCustomers, "email=nobody%40example.com"); status != http.StatusOK || fmt.Sprint(body["data"]) != "[]" {
		t.Errorf("nobody: %d %v", status, body)
	}
	asked := w.finds
	for query, want := range map[string]string{
		"":                                      "Missing required param: reference or email.",
		"email=":                                "You passed an empty string",
		"email=a%40b.de&reference=x":            "one of them",
		"email=a%40b.de&email=c%40d.de":         "more than once",
		"email=a%00b":                           "without control characters",
		"reference=a%ffb":                       "without control characters",
		"reference=" + strings.Repeat("x", 256): "at most 255 bytes",
		"email=" + strings.Repeat("x", 10_000):  "at most 320 bytes",
		"name=Ada":                              "unknown parameter: name",
		"email[]=a":                             "unknown parameter",
	} {
		status, body, _ := w.call(t, http.MethodGet, vendorapi.PathCustomers, query)
		if status != http.StatusBadRequest || !strings.Contains(fmt.Sprint(body), want) {
			t.Errorf("%.40s: %d %v, want %q", query, status, body, want)
		}
	}
	if status, _, _ := w.call(t, http.MethodPost, vendorapi.PathCustomers, "email=a"); status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", status)
	}
	if status, _, _ := w.call(t, http.MethodGet, vendorapi.PathCustomers, "email=a", func(r *http.Request) { r.Header.Del("Authorization") }); status != http.StatusUnauthorized {
		t.Errorf("without a key: %d", status)
	}
	if w.finds != asked {
		t.Error("the provider was asked for what was refused")
	}
	w.down = true
	if status, _, _ := w.call(t, http.MethodGet, vendorapi.PathCustomers, "email=a"); status != http.StatusServiceUnavailable {
		t.Errorf("down: %d", status)
	}
	w.code = "rate_limit"
	if status, _, _ := w.call(t, http.MethodGet, vendorapi.PathCustomers, "email=a"); status != http.StatusTooManyRequests {
		t.Errorf("limited: %d", status)
	}
}

func TestSupportLinks(t *testing.T) {
	w := newWorld(t)
	form := func(more ...string) url.Values {
		f := url.Values{"customer": {"cus_1"}, "portal[role]": {"support"}, "portal[actor][id]": {"emp_7"}}
		for n := 0; n < len(more); n += 2 {
			if f.Del(more[n]); more[n+1] != "" {
				f.Set(more[n], more[n+1])
			}
		}
		return f
	}
	reason := strings.Repeat("ü", 200)
	res, body := w.post(t, form("portal[reason]", reason, "portal[actor][name]", "Sue"), nil)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%d %v", res.StatusCode, body)
	}
	c := w.claims(t, body["url"].(string))
	if c.Role != "support" || c.Actor.ID != "emp_7" || c.Actor.Name != "Sue" || c.Reason != reason {
		t.Errorf("%+v", c)
	}
	for name, tt := range map[string]struct {
		form  url.Values
		param string
	}{
		"nobody":               {form("portal[actor][id]", ""), "portal[actor][id]"},
		"an e-mail alone":      {form("portal[actor][id]", "", "portal[actor][email]", "sue@acme.example"), "portal[actor][id]"},
		"permissions":          {form("portal[permissions][]", "cancel"), "portal[permissions]"},
		"long reason":          {form("portal[reason]", reason+"x"), "portal[reason]"},
		"control in reason":    {form("portal[reason]", "a\nb"), "portal[reason]"},
		"reason of a customer": {form("portal[role]", "owner", "portal[reason]", "x"), "portal[reason]"},
		"reason without role":  {form("portal[role]", "", "portal[reason]", "x"), "portal[reason]"},
		"another spelling":     {form("portal[role]", "Support"), "portal[role]"},
	} {
		res, body := w.post(t, tt.form, nil)
		e, _ := body["error"].(map[string]any)
		if res.StatusCode != http.StatusBadRequest || e["param"] != tt.param {
			t.Errorf("%s: %d %v", name, res.StatusCode, body)
		}
	}
}
