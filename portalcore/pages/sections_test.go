package pages

import (
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// A section that could not be read says so, and alone: no zero and no "none
// yet" stands in its place, and nothing is decided on what is left.
func TestSectionsFailAlone(t *testing.T) {
	for _, tt := range []struct {
		section       billing.Section
		path          string
		wants, wrongs []string
	}{
		{billing.SectionUpcoming, "/", []string{"couldn’t load your next payment", "INV-cus_a", "4242"}, []string{"Nothing is due"}},
		{billing.SectionInvoices, "/", []string{"couldn’t load your latest invoices", "76.00", "4242"}, []string{"No invoices yet"}},
		{billing.SectionPaymentMethods, "/", []string{"couldn’t load your payment methods", "INV-cus_a", "76.00"}, []string{"No payment method"}},
		{billing.SectionDebts, "/", []string{"couldn’t load what is due", "INV-cus_a", "76.00", "4242"}, nil},
	} {
		t.Run(string(tt.section)+tt.path, func(t *testing.T) {
			e := newEnv(t)
			b := e.signedIn("cus_a")
			form := formOf(t, b.get("/cancel").Body.String(), "/cancel")
			acct := e.provider.accounts["cus_a"]
			whole := *acct
			acct.Failed = []billing.Section{tt.section}
			switch tt.section {
			case billing.SectionUpcoming:
				acct.Upcoming = nil
			case billing.SectionInvoices:
				acct.Invoices = nil
			case billing.SectionPaymentMethods:
				acct.PaymentMethods = nil
			}
			e.advance(2 * time.Minute)
			body := b.get(tt.path).Body.String()
			for _, want := range append(tt.wants, "Everything else on this page is current.", `?fresh=1">Try again</a>`) {
				if !strings.Contains(body, want) {
					t.Errorf("the page does not say %q", want)
				}
			}
			for _, wrong := range tt.wrongs {
				if strings.Contains(body, wrong) {
					t.Errorf("the page says %q", wrong)
				}
			}
			e.unchanged("cancel on a part of the account", func() {
				if w := b.post("/cancel", form); w.Code != 503 || !strings.Contains(w.Body.String(), "Nothing was sent") {
					t.Errorf("%d, want 503 that says nothing was sent", w.Code)
				}
			})
			*acct = whole
			e.advance(4 * time.Second)
			if body := b.get(tt.path).Body.String(); strings.Contains(body, "couldn’t load") {
				t.Error("the failure is still shown after the section is back")
			}
		})
	}
}
