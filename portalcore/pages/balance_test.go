package pages

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

func TestBalance(t *testing.T) {
	e := newEnv(t)
	now := e.now()
	eur := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: "eur"} }
	after := eur(-1200)
	asked := 0
	e.provider.onBalance = func(cursor string) (billing.BalancePage, error) {
		asked++
		switch cursor {
		case "":
			return billing.BalancePage{
				Balances: []billing.Money{eur(-1200), {Amount: 400, Currency: "usd"}},
				Grants: []billing.Grant{
					{ID: "credgr_1", Name: "Welcome", Amount: eur(1000), Left: eur(500), Effective: now.AddDate(0, -1, 0), Expires: now.AddDate(0, 1, 0)},
					{ID: "credgr_2", Name: "Summer", Amount: eur(1000), Left: eur(1000), Effective: now.AddDate(0, 1, 0), Paid: true},
					{ID: "credgr_3", Name: "Spring", Amount: eur(1000), Left: eur(200), Expires: now},
					{ID: "credgr_4", Name: "Slip", Amount: eur(1000), Left: eur(1000), Void: true},
					{ID: "credgr_5", Name: "\u202E<script>" + strings.Repeat("x", 10_000), Amount: eur(1000), Left: eur(0)},
				},
				Entries: []billing.BalanceEntry{
					{ID: "t2", Time: now, Type: "applied_to_invoice", Amount: eur(1800), After: &after, Invoice: "in_cus_a"},
					{ID: "t1", Time: now.AddDate(0, 0, -3), Type: "credits_granted", Amount: eur(-1000), Grant: "credgr_1"},
				},
				Older: "older=1&x",
			}, nil
		case "older=1&x":
			return billing.BalancePage{Newer: "n"}, nil
		}
		return billing.BalancePage{}, &billing.Error{Fault: billing.NotFound, Param: "cursor"}
	}
	b := e.signedIn("cus_a")
	w := b.get("/balance")
	body := w.Body.String()
	if w.Code != http.StatusOK || strings.Contains(body, "<script") || strings.Contains(body, "\u202E") || len(body) > 40_000 {
		t.Fatalf("%d, %d bytes: %s", w.Code, len(body), body)
	}
	says(t, body, "€12.00 credit", "Your next invoice uses it first.", "$4.00 owed", "It is added to your next invoice.",
		"Welcome Can be used", "€5.00 left of €10.00", "Given to you. Expires on 14 June 2026.", "Summer From 14 June 2026", "Bought. Does not expire.",
		"Spring Expired 14 May 2026", "Slip Withdrawn", "Used up",
		"Used for an invoice", "Out €18.00 Balance after €12.00 credit", "Credit added", "In €10.00")
	good, past, _ := strings.Cut(plainText(body), "Used, expired and withdrawn credits")
	if !strings.Contains(good, "Summer") || strings.Contains(good, "Spring") || !strings.Contains(past, "Slip") {
		t.Error("credits that can be used are not apart from those that cannot")
	}
	if !strings.Contains(body, `href="/invoices/in_cus_a/pdf"`) || !strings.Contains(body, `href="/balance?cursor=older%3D1%26x"`) {
		t.Error("no link to the invoice or to older entries")
	}
	says(t, b.get("/balance?cursor=older%3D1%26x").Body.String(), "There is nothing older.", "Newer entries")
	for _, bad := range []string{"nobody", "%00", strings.Repeat("x", 600)} {
		if w := b.get("/balance?cursor=" + bad); w.Code != http.StatusNotFound {
			t.Errorf("cursor %.10s: %d", bad, w.Code)
		}
	}
	was := asked
	b.get("/balance")
	if asked != was {
		t.Error("asked again within a minute")
	}
	e.advance(61 * time.Second)
	b.get("/balance")
	if asked != was+1 {
		t.Errorf("asked %d times, want %d", asked, was+1)
	}
	// The overview leads there where there is a balance.
	e.provider.accounts["cus_b"].Customer.Balance = eur(-100)
	if body := e.signedIn("cus_b").get("/").Body.String(); !strings.Contains(body, `href="/balance"`) {
		t.Error("the overview does not lead to the balance")
	}
}

func TestBalanceFails(t *testing.T) {
	e := newEnv(t)
	e.provider.onBalance = func(string) (billing.BalancePage, error) {
		return billing.BalancePage{}, &billing.Error{Fault: billing.Unavailable, Err: errors.New("secret")}
	}
	b := e.signedIn("cus_a")
	w := b.get("/balance")
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d", w.Code)
	}
	says(t, w.Body.String(), "We couldn’t load your balance.", "Try again")
	saysNot(t, w.Body.String(), "secret", "There is no balance", "€0.00", "Nothing yet")
	e.provider.onBalance = func(string) (billing.BalancePage, error) { return billing.BalancePage{}, nil }
	says(t, b.get("/balance").Body.String(), "There is no balance yet.", "Nothing yet.")
}
