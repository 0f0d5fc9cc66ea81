package providertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// readSections takes one section after the other away: it alone is named, and
// the rest is as it was.
func readSections(s *scene) {
	m := s.World.Customer(Customer{Card: CardDeclines, Price: basic, Quantity: 2})
	whole := s.account(m.ID)
	for section, empty := range map[billing.Section]func(*billing.Account){
		billing.SectionPaymentMethods: func(a *billing.Account) { a.PaymentMethods = nil },
		billing.SectionInvoices:       func(a *billing.Account) { a.Invoices = nil },
		billing.SectionDebts:          func(a *billing.Account) { a.Debts = nil },
		billing.SectionUpcoming:       func(a *billing.Account) { a.Upcoming = nil },
	} {
		for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.Fault500Before, sandbox.FaultGarbage} {
			s.World.Fault(sandbox.Fault{On: string(section), Times: 100, Kind: k})
			got, err := s.Provider.Account(s.ctx, m.ID)
			s.World.ClearFaults()
			s.must(err)
			if len(got.Failed) != 1 || !got.Missing(section) {
				s.Errorf("%s, %s: failed %v", section, k, got.Failed)
			}
			want := whole
			empty(&want)
			got.Failed = nil
			a, errA := json.Marshal(seen(got))
			b, errB := json.Marshal(seen(want))
			if s.must(errors.Join(errA, errB)); !bytes.Equal(a, b) {
				s.Errorf("%s, %s: the rest is %s, want %s", section, k, a, b)
			}
		}
	}
	if again := s.account(m.ID); len(again.Failed) != 0 {
		s.Errorf("failed %v after all is well", again.Failed)
	}
}

// readRateLimit refuses reads for the time being: they wait and are made again.
func readRateLimit(s *scene) {
	m := s.World.Customer(on(basic))
	s.World.Fault(sandbox.Fault{On: "account", Times: 3, Kind: sandbox.FaultRateLimit})
	if a := s.account(m.ID); len(a.Failed) != 0 {
		s.Errorf("failed %v", a.Failed)
	}
	s.World.Fault(sandbox.Fault{On: "preview", Times: 2, Kind: sandbox.FaultRateLimit})
	_, err := s.Provider.Preview(s.ctx, m.ID, change(m, team, 2), time.Time{})
	s.must(err)
	s.World.ClearFaults()
}
