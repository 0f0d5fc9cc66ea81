package templates

import (
	"html/template"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// tag is a state as it is shown: an icon and a word, and a tone for those who
// see colours.
type tag struct {
	Tone string // a class of the style sheet
	Icon string
	Text template.HTML
}

var statusTags = map[string]tag{
	"active":     {Tone: "ok", Icon: "circle-check"},
	"trial":      {Tone: "ok", Icon: "calendar-clock"},
	"past_due":   {Tone: "danger", Icon: "circle-alert"},
	"unpaid":     {Tone: "danger", Icon: "circle-alert"},
	"incomplete": {Tone: "warn", Icon: "circle-alert"},
	"ending":     {Tone: "warn", Icon: "clock"},
	"waiting":    {Tone: "warn", Icon: "hourglass"},
	"checking":   {Tone: "plain", Icon: "hourglass"},
	"paused":     {Tone: "warn", Icon: "circle-pause"},
	"ended":      {Tone: "plain", Icon: "circle-x"},
}

func (l *local) statusTag(s *Subscription) (tag, error) {
	t, ok := statusTags[s.Status]
	if !ok {
		return l.tag(tag{Tone: "plain", Icon: "circle-alert"}, "status.other")
	}
	if s.Status == "ending" && !s.Ends.IsZero() {
		return l.tag(t, "status.ending.on", "date", s.Ends)
	}
	return l.tag(t, "status."+s.Status)
}

func (l *local) invoiceTag(i *billing.Invoice) (tag, error) {
	switch {
	case i.Status == billing.InvoicePaid:
		return l.tag(tag{Tone: "ok", Icon: "circle-check"}, "invoice.status.paid")
	case i.Status == billing.InvoiceOpen && i.ForPendingUpdate:
		return l.tag(tag{Tone: "warn", Icon: "clock"}, "invoice.status.pending")
	case i.Status == billing.InvoiceOpen && i.Attempted:
		return l.tag(tag{Tone: "danger", Icon: "circle-alert"}, "invoice.status.failed")
	case i.Status == billing.InvoiceOpen:
		return l.tag(tag{Tone: "warn", Icon: "clock"}, "invoice.status.open")
	}
	return l.tag(tag{Tone: "plain", Icon: "circle-x"}, "invoice.status."+known(string(i.Status), "other", "void", "uncollectible"))
}

var paymentTags = map[string]tag{
	"paid":       {Tone: "ok", Icon: "circle-check"},
	"declined":   {Tone: "danger", Icon: "circle-x"},
	"waiting":    {Tone: "warn", Icon: "hourglass"},
	"processing": {Tone: "plain", Icon: "hourglass"},
	"checking":   {Tone: "plain", Icon: "hourglass"},
	"not_sent":   {Tone: "warn", Icon: "clock"},
	"closed":     {Tone: "plain", Icon: "circle-check"},
}

func (l *local) paymentTag(p *PaidInvoice) (tag, error) {
	t, ok := paymentTags[p.State]
	if !ok {
		return l.tag(tag{Tone: "plain", Icon: "circle-alert"}, "receipt.payment.other")
	}
	return l.tag(t, "receipt.payment."+p.State)
}

func (l *local) tag(t tag, key string, pairs ...any) (tag, error) {
	s, err := l.say(key, true, pairs...)
	t.Text = template.HTML(s) //nolint:gosec // messages are escaped when they are cut
	return t, err
}
