package event_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	stripego "github.com/stripe/stripe-go/v85"
	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/event"
)

const (
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	other  = "whsec_QfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx"
)

var now = time.Date(2026, time.November, 22, 10, 0, 0, 500_000_000, time.UTC)

const paid = `{"id":"evt_1","object":"event","api_version":"2026-08-26.dahlia","created":1795341600,"livemode":false,"pending_webhooks":1,
	"request":{"id":null},"type":"invoice.paid","data":{"object":{"id":"in_1","object":"invoice","customer":"cus_1"}}}`

// signed is a header that Stripe's own SDK made.
func signed(body string, at time.Time, secret string) http.Header {
	p := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(body), Secret: secret, Timestamp: at})
	return http.Header{event.Header: {p.Header}}
}

func parse(h http.Header, body string, secrets ...string) (billing.Event, error) {
	return event.Parse(h, []byte(body), event.Options{Secrets: secrets, Now: now})
}

func TestGenuine(t *testing.T) {
	got, err := parse(signed(paid, now, secret), paid, secret)
	want := billing.Event{ID: "evt_1", Type: "invoice.paid", Customer: "cus_1", Invoice: "in_1", Created: time.Unix(1795341600, 0).UTC()}
	if err != nil || got != want {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := parse(signed(paid, now, secret), paid); !errors.Is(err, billing.ErrNoWebhook) {
		t.Errorf("without a secret: %v", err)
	}
}

func TestSignature(t *testing.T) {
	good := signed(paid, now, secret).Get(event.Header)
	ts, sig, _ := strings.Cut(good, ",v1=")
	ts = strings.TrimPrefix(ts, "t=")
	for name, tc := range map[string]struct {
		header string
		ok     bool
	}{
		"as it is":                    {good, true},
		"empty":                       {"", false},
		"no time":                     {"v1=" + sig, false},
		"two times":                   {"t=" + ts + "," + good, false},
		"two times, the same behind":  {good + ",t=" + ts, false},
		"time empty":                  {"t=,v1=" + sig, false},
		"time not a number":           {"t=now,v1=" + sig, false},
		"time with a sign":            {"t=+" + ts + ",v1=" + sig, false},
		"time negative":               {"t=-" + ts + ",v1=" + sig, false},
		"time with a fraction":        {"t=" + ts + ".0,v1=" + sig, false},
		"time with a zero in front":   {"t=0" + ts + ",v1=" + sig, false},
		"time in another alphabet":    {"t=١٢٣٤,v1=" + sig, false},
		"time of the year 9999":       {"t=253402300799,v1=" + sig, false},
		"time too long":               {"t=" + strings.Repeat("9", 40) + ",v1=" + sig, false},
		"v0 only":                     {"t=" + ts + ",v0=" + sig, false},
		"v0 as well":                  {good + ",v0=" + strings.Repeat("a", 64), true},
		"V1":                          {"t=" + ts + ",V1=" + sig, false},
		"no signature":                {"t=" + ts, false},
		"signature empty":             {"t=" + ts + ",v1=", false},
		"signature cut":               {"t=" + ts + ",v1=" + sig[:62], false},
		"signature odd":               {"t=" + ts + ",v1=" + sig[:63], false},
		"signature longer":            {"t=" + ts + ",v1=" + sig + "00", false},
		"signature in upper case":     {"t=" + ts + ",v1=" + strings.ToUpper(sig), false},
		"signature not hex":           {"t=" + ts + ",v1=" + strings.Repeat("z", 64), false},
		"another signature":           {"t=" + ts + ",v1=" + strings.Repeat("0", 64), false},
		"wrong one first":             {"t=" + ts + ",v1=" + strings.Repeat("0", 64) + ",v1=" + sig, true},
		"wrong one behind":            {good + ",v1=" + strings.Repeat("0", 64), true},
		"broken one first":            {"t=" + ts + ",v1=zz,v1=" + sig, true},
		"unknown part":                {good + ",x=y", true},
		"part without value":          {good + ",x", false},
		"comma behind":                {good + ",", false},
		"space behind the comma":      {"t=" + ts + ", v1=" + sig, false},
		"thirty-two and the right":    {"t=" + ts + strings.Repeat(",v1="+strings.Repeat("0", 64), 31) + ",v1=" + sig, true},
		"too many":                    {"t=" + ts + strings.Repeat(",v1="+strings.Repeat("0", 64), 32) + ",v1=" + sig, false},
		"huge":                        {good + "," + strings.Repeat("x=y,", 1<<18) + "x=y", false},
		"signature of another time":   {"t=" + fmt.Sprint(now.Unix()-1) + ",v1=" + sig, false},
		"another endpoint's":          {signed(paid, now, other).Get(event.Header), false},
		"quoted":                      {`"` + good + `"`, false},
		"a signature of the body":     {"t=" + ts + ",v1=" + bodyOnly(), false},
		"JSON":                        {`{"t":1}`, false},
		"nothing between the commas":  {"t=" + ts + ",,v1=" + sig, false},
		"equals sign in the value":    {"t=" + ts + ",v1=" + sig + "=", false},
		"signature with a line break": {"t=" + ts + ",v1=" + sig + "\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(http.Header{event.Header: {tc.header}}, paid, secret)
			if (err == nil) != tc.ok || err != nil && !errors.Is(err, billing.ErrSignature) {
				t.Errorf("error %v, want accepted: %v", err, tc.ok)
			}
			if err != nil && (strings.Contains(err.Error(), sig) || strings.Contains(err.Error(), secret[6:])) {
				t.Errorf("the error shows a signature or the secret: %v", err)
			}
		})
	}
	for name, h := range map[string]http.Header{
		"no header":   {},
		"two headers": {event.Header: {good, good}},
		"other name":  {"Webhook-Signature": {good}},
	} {
		if _, err := parse(h, paid, secret); !errors.Is(err, billing.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func bodyOnly() string {
	p := webhook.ComputeSignature(time.Unix(0, 0), []byte(paid), secret)
	return hex.EncodeToString(p)
}

func TestTampered(t *testing.T) {
	h := signed(paid, now, secret)
	var v any
	if err := json.Unmarshal([]byte(paid), &v); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"encoded again":   string(again),
		"a space":         paid + " ",
		"a line break":    paid + "\n",
		"a BOM":           "\ufeff" + paid,
		"another account": strings.Replace(paid, "cus_1", "cus_2", 1),
		"cut":             paid[:len(paid)-1],
		"empty":           "",
	} {
		if _, err := parse(h, body, secret); !errors.Is(err, billing.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTolerance(t *testing.T) {
	for name, tc := range map[string]struct {
		off time.Duration // of the signature's second from the clock's
		ok  bool
	}{
		"299 s old":             {-299 * time.Second, true},
		"300 s old":             {-300 * time.Second, false}, // the clock is half a second on
		"301 s old":             {-301 * time.Second, false},
		"a day old":             {-24 * time.Hour, false},
		"300 s in the future":   {300 * time.Second, true},
		"301 s in the future":   {301 * time.Second, false},
		"an hour in the future": {time.Hour, false},
		"ten years":             {10 * 366 * 24 * time.Hour, false},
	} {
		_, err := parse(signed(paid, now.Add(tc.off), secret), paid, secret)
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, billing.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// On the second exactly, 300 s are within.
	o := event.Options{Secrets: []string{secret}, Now: now.Truncate(time.Second)}
	if _, err := event.Parse(signed(paid, o.Now.Add(-300*time.Second), secret), []byte(paid), o); err != nil {
		t.Errorf("300 s exactly: %v", err)
	}
}

func TestRotation(t *testing.T) {
	for name, tc := range map[string]struct {
		signedWith, configured []string
		ok                     bool
	}{
		"old one, both here":    {[]string{other}, []string{secret, other}, true},
		"new one, both here":    {[]string{secret}, []string{secret, other}, true},
		"both, old one here":    {[]string{secret, other}, []string{other}, true},
		"both, new one here":    {[]string{secret, other}, []string{secret}, true},
		"old one, new one here": {[]string{other}, []string{secret}, false},
	} {
		h := http.Header{event.Header: {event.Sign([]byte(paid), now, tc.signedWith...)}}
		if _, err := parse(h, paid, tc.configured...); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What Sign writes is what Stripe's own SDK takes, and what it refuses is not.
func TestSignAgainstStripe(t *testing.T) {
	at := time.Now()
	h := event.Sign([]byte(paid), at, other, secret)
	e, err := webhook.ConstructEvent([]byte(paid), h, secret)
	if err != nil || e.ID != "evt_1" || e.Type != stripego.EventTypeInvoicePaid {
		t.Errorf("stripe-go says %v, %v", e.ID, err)
	}
	if _, err := webhook.ConstructEvent([]byte(paid+" "), h, secret); err == nil {
		t.Error("stripe-go takes another body")
	}
	if _, err := webhook.ConstructEvent([]byte(paid), event.Sign([]byte(paid), at, other), secret); err == nil {
		t.Error("stripe-go takes another secret")
	}
}

func TestEvent(t *testing.T) {
	of := func(kind, object string) string {
		return `{"id":"evt_1","object":"event","created":1795341600,"livemode":false,"type":"` + kind + `","data":` + object + `}`
	}
	for name, tc := range map[string]struct {
		body     string
		customer string
		bad      bool
	}{
		"customer":                {of("customer.updated", `{"object":{"object":"customer","id":"cus_1"}}`), "cus_1", false},
		"customer deleted":        {of("customer.deleted", `{"object":{"object":"customer","id":"cus_1","deleted":true}}`), "cus_1", false},
		"own id":                  {of("customer.updated", `{"object":{"object":"customer","id":"acme-42"}}`), "acme-42", false},
		"subscription":            {of("customer.subscription.updated", `{"object":{"object":"subscription","id":"sub_1","customer":"cus_1"}}`), "cus_1", false},
		"expanded":                {of("customer.subscription.updated", `{"object":{"object":"subscription","customer":{"id":"cus_1","object":"customer"}}}`), "cus_1", false},
		"deleted and expanded":    {of("invoice.paid", `{"object":{"object":"invoice","customer":{"id":"cus_1","deleted":true}}}`), "cus_1", false},
		"payment intent":          {of("payment_intent.succeeded", `{"object":{"object":"payment_intent","customer":"cus_1"}}`), "cus_1", false},
		"setup intent":            {of("setup_intent.succeeded", `{"object":{"object":"setup_intent","customer":"cus_1"}}`), "cus_1", false},
		"charge":                  {of("charge.refunded", `{"object":{"object":"charge","customer":"cus_1"}}`), "cus_1", false},
		"payment method":          {of("payment_method.attached", `{"object":{"object":"payment_method","customer":"cus_1"}}`), "cus_1", false},
		"payment method detached": {of("payment_method.detached", `{"object":{"object":"payment_method","customer":null},"previous_attributes":{"customer":"cus_1"}}`), "cus_1", false},
		"checkout session":        {of("checkout.session.completed", `{"object":{"object":"checkout.session","customer":"cus_1"}}`), "cus_1", false},
		"credit note":             {of("credit_note.created", `{"object":{"object":"credit_note","customer":"cus_1"}}`), "cus_1", false},
		"schedule":                {of("subscription_schedule.updated", `{"object":{"object":"subscription_schedule","customer":"cus_1"}}`), "cus_1", false},
		"tax id":                  {of("customer.tax_id.created", `{"object":{"object":"tax_id","customer":"cus_1"}}`), "cus_1", false},
		"discount":                {of("customer.discount.created", `{"object":{"object":"discount","customer":"cus_1"}}`), "cus_1", false},
		"nothing we show":         {of("promotion_code.created", `{"object":{"object":"promotion_code","customer":"cus_1"}}`), "", false},
		"price":                   {of("price.created", `{"object":{"object":"price","id":"price_1"}}`), "", false},
		"unknown type":            {of("sprocket.turned", `{"object":{"object":"sprocket","customer":"cus_1"}}`), "", false},
		"guest checkout":          {of("checkout.session.completed", `{"object":{"object":"checkout.session","customer":null}}`), "", false},
		"customer of no shape":    {of("invoice.paid", `{"object":{"object":"invoice","customer":42}}`), "", false},
		"customer of no id":       {of("invoice.paid", `{"object":{"object":"invoice","customer":{}}}`), "", false},
		"customer too long":       {of("invoice.paid", `{"object":{"object":"invoice","customer":"`+strings.Repeat("c", 300)+`"}}`), "", false},
		"customer with a newline": {of("invoice.paid", `{"object":{"object":"invoice","customer":"cus_1\n"}}`), "", false},
		"no data":                 {of("invoice.paid", `{}`), "", false},
		"other version":           {strings.Replace(paid, "2026-08-26.dahlia", "2011-01-01", 1), "cus_1", false},
		"organization's endpoint": {strings.Replace(paid, `"created"`, `"context":"acct_1","created"`, 1), "cus_1", false},
		"connected account":       {strings.Replace(paid, `"created"`, `"account":"acct_1","context":"acct_1","created"`, 1), "", true},
		"live":                    {strings.Replace(paid, `"livemode":false`, `"livemode":true`, 1), "", true},
		"no mode":                 {strings.Replace(paid, `"livemode":false,`, ``, 1), "", true},
		"thin":                    {strings.Replace(paid, `"object":"event"`, `"object":"v2.core.event"`, 1), "", true},
		"no id":                   {strings.Replace(paid, `"id":"evt_1",`, ``, 1), "", true},
		"other id":                {strings.Replace(paid, `evt_1`, `in_1`, 1), "", true},
		"id too long":             {strings.Replace(paid, `evt_1`, `evt_`+strings.Repeat("1", 252), 1), "", true},
		"id with a space":         {strings.Replace(paid, `evt_1`, `evt_ 1`, 1), "", true},
		"no type":                 {strings.Replace(paid, `"type":"invoice.paid",`, ``, 1), "", true},
		"no time":                 {strings.Replace(paid, `1795341600`, `0`, 1), "", true},
		"time as text":            {strings.Replace(paid, `1795341600`, `"now"`, 1), "", true},
		"two values":              {paid + paid, "", true},
		"a list":                  {`[` + paid + `]`, "", true},
		"null":                    {`null`, "", true},
		"text":                    {`hello`, "", true},
		"empty":                   {``, "", true},
		"deep":                    {strings.Repeat(`[`, 200_000), "", true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(signed(tc.body, now, secret), tc.body, secret)
			if (err != nil) != tc.bad || err != nil && (!errors.Is(err, billing.ErrEvent) || errors.Is(err, billing.ErrSignature)) {
				t.Fatalf("error %v, want one: %v", err, tc.bad)
			}
			if got.Customer != tc.customer {
				t.Errorf("customer %q, want %q", got.Customer, tc.customer)
			}
		})
	}
	live := strings.Replace(paid, `"livemode":false`, `"livemode":true`, 1)
	o := event.Options{Secrets: []string{secret}, Now: now, LiveMode: true}
	if e, err := event.Parse(signed(live, now, secret), []byte(live), o); err != nil || !e.LiveMode {
		t.Errorf("live event with a live key: %+v, %v", e, err)
	}
	if _, err := event.Parse(signed(paid, now, secret), []byte(paid), o); !errors.Is(err, billing.ErrEvent) {
		t.Errorf("test event with a live key: %v", err)
	}
}

// An event about an invoice, its credit note or its payment names the invoice,
// and nothing else does.
func TestEventInvoice(t *testing.T) {
	for name, tc := range map[string]struct{ kind, object, invoice, customer string }{
		"invoice":          {"invoice.paid", `{"object":"invoice","id":"in_1","customer":"cus_1"}`, "in_1", "cus_1"},
		"deleted draft":    {"invoice.deleted", `{"object":"invoice","id":"in_1","deleted":true,"customer":"cus_1"}`, "in_1", "cus_1"},
		"upcoming":         {"invoice.upcoming", `{"object":"invoice","customer":"cus_1"}`, "", "cus_1"},
		"no id":            {"invoice.paid", `{"object":"invoice","id":"in 1","customer":"cus_1"}`, "", "cus_1"},
		"credit note":      {"credit_note.voided", `{"object":"credit_note","id":"cn_1","invoice":"in_1","customer":"cus_1"}`, "in_1", "cus_1"},
		"its invoice":      {"credit_note.created", `{"object":"credit_note","invoice":{"id":"in_1","object":"invoice"},"customer":"cus_1"}`, "in_1", "cus_1"},
		"payment":          {"invoice_payment.paid", `{"object":"invoice_payment","id":"inpay_1","invoice":"in_1"}`, "in_1", ""},
		"of another shape": {"credit_note.created", `{"object":"credit_note","invoice":42,"customer":"cus_1"}`, "", "cus_1"},
		"invoice item":     {"invoiceitem.created", `{"object":"invoiceitem","id":"ii_1","invoice":"in_1","customer":"cus_1"}`, "", "cus_1"},
		"subscription":     {"customer.subscription.updated", `{"object":"subscription","id":"sub_1","invoice":"in_1","customer":"cus_1"}`, "", "cus_1"},
		"tax id":           {"customer.tax_id.deleted", `{"object":"tax_id","id":"txi_1","customer":"cus_1"}`, "", "cus_1"},
	} {
		body := `{"id":"evt_1","object":"event","created":1795341600,"livemode":false,"type":"` + tc.kind + `","data":{"object":` + tc.object + `}}`
		e, err := parse(signed(body, now, secret), body, secret)
		if err != nil || e.Invoice != tc.invoice || e.Customer != tc.customer {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

// Whatever the header, what is accepted is accepted by Stripe's SDK too, and is
// within the tolerance; and nothing panics.
func FuzzHeader(f *testing.F) {
	good := signed(paid, now, secret).Get(event.Header)
	for _, s := range []string{good, "", "t=1,v1=00", good + ",v1=zz", "t=" + good, strings.ToUpper(good), good + ",v0=" + good[len(good)-64:]} {
		f.Add(s, paid)
	}
	f.Fuzz(func(t *testing.T, header, body string) {
		_, err := parse(http.Header{event.Header: {header}}, body, secret)
		if errors.Is(err, billing.ErrSignature) {
			return
		}
		if err := webhook.ValidatePayloadIgnoringTolerance([]byte(body), header, secret); err != nil {
			t.Errorf("accepted %q, stripe-go says %v", header, err)
		}
	})
}

// Whatever Stripe signs, the event that is read from it is within bounds, and
// stripe-go reads the same id and type.
func FuzzEvent(f *testing.F) {
	f.Add(paid)
	f.Add(`{"id":"evt_1","object":"event","created":1,"livemode":false,"type":"customer.x","data":{"object":{"object":"customer","id":"cus_1"},"previous_attributes":{"customer":{"id":"cus_2"}}}}`)
	f.Add(`{"id":"evt_1","ID":"evt_2","object":"event","created":1e3,"livemode":null,"type":"a","data":null}`)
	f.Fuzz(func(t *testing.T, body string) {
		e, err := parse(signed(body, now, secret), body, secret)
		if err != nil {
			if !errors.Is(err, billing.ErrEvent) || e != (billing.Event{}) {
				t.Errorf("error %v with %+v", err, e)
			}
			return
		}
		if !strings.HasPrefix(e.ID, "evt_") || len(e.ID) > 255 || e.Type == "" || len(e.Type) > 255 || len(e.Customer) > 255 || len(e.Invoice) > 255 || e.LiveMode {
			t.Errorf("out of bounds: %+v", e)
		}
		if strings.ContainsFunc(e.ID+e.Type+e.Customer+e.Invoice, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("not printable: %+v", e)
		}
		var s stripego.Event
		if json.Unmarshal([]byte(body), &s) == nil && (s.ID != e.ID || string(s.Type) != e.Type) {
			t.Errorf("read %s %s, stripe-go %s %s", e.ID, e.Type, s.ID, s.Type)
		}
	})
}
