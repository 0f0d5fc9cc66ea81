package invoices

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Entry is what the index keeps of an invoice.
type Entry struct {
	ID           string
	Number       string // at most maxNumber bytes
	Status       billing.InvoiceStatus
	Subscription string
	Description  string // at most maxDescription bytes
	Currency     string
	Created      time.Time // never changes; whole seconds
	Due          time.Time // zero for none
	// Total, Tax, Paid and Remaining are in minor units of Currency.
	Total, Tax, Paid, Remaining int64

	Attempted, Processing, SendInvoice, ForPendingUpdate, HasDocument bool

	// seen is the head's Seq when the read of it began.
	seen uint64
}

const (
	// What is longer is cut: the index is for finding, and the page of an invoice
	// has all of it.
	maxNumber      = 100
	maxDescription = 250
	// maxIDBytes bounds ids, which cannot be cut.
	maxIDBytes = 255
)

// entryOf is the entry of an invoice.
func entryOf(v *billing.Invoice, seen uint64) (Entry, error) {
	if v.ID == "" || len(v.ID) > maxIDBytes || len(v.Subscription) > maxIDBytes || len(v.Total.Currency) > 8 {
		return Entry{}, errors.New("invoices: the provider gave an invoice whose id, subscription or currency cannot be one")
	}
	e := Entry{
		ID: v.ID, Number: cut(v.Number, maxNumber), Status: v.Status, Subscription: v.Subscription,
		Description: cut(v.Description, maxDescription), Currency: v.Total.Currency, Created: second(v.Created), Due: second(v.DueDate),
		Total: v.Total.Amount, Tax: v.Tax.Amount, Paid: v.AmountPaid.Amount, Remaining: v.AmountRemaining.Amount,
		Attempted: v.Attempted, Processing: v.Processing, SendInvoice: v.SendInvoice,
		ForPendingUpdate: v.ForPendingUpdate, HasDocument: v.HasDocument, seen: seen,
	}
	if !slices.Contains(statuses, e.Status) {
		return Entry{}, fmt.Errorf("invoices: the provider gave an invoice with the status %.20q", e.Status)
	}
	return e, nil
}

// Invoice is e as an invoice, without what the index does not keep.
func (e *Entry) Invoice() billing.Invoice {
	m := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: e.Currency} }
	return billing.Invoice{
		ID: e.ID, Number: e.Number, Status: e.Status, Subscription: e.Subscription, Description: e.Description,
		Created: e.Created, DueDate: e.Due, Total: m(e.Total), Tax: m(e.Tax), AmountPaid: m(e.Paid), AmountRemaining: m(e.Remaining),
		Attempted: e.Attempted, Processing: e.Processing, SendInvoice: e.SendInvoice,
		ForPendingUpdate: e.ForPendingUpdate, HasDocument: e.HasDocument,
	}
}

// debt and pastDue are Invoice's Debt and PastDue.
func (e *Entry) debt() bool { v := e.Invoice(); return v.Debt() }

func (e *Entry) pastDue(now time.Time) bool { v := e.Invoice(); return v.PastDue(now) }

func second(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.Unix(t.Unix(), 0).UTC()
}

// cut shortens s to at most n bytes of valid UTF-8.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// place orders entries: newest first, and those of one second by id.
type place struct {
	Created int64  `json:"t"`
	ID      string `json:"id"`
}

func (e *Entry) place() place { return place{e.Created.Unix(), e.ID} }

// compare is below zero where p stands before q in the list.
func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(q.Created, p.Created), cmp.Compare(q.ID, p.ID))
}

// statuses are written as their index: only add at the end.
var statuses = []billing.InvoiceStatus{billing.InvoiceOpen, billing.InvoicePaid, billing.InvoiceVoid, billing.InvoiceUncollectible, billing.InvoiceDraft}

// chunkFormat is the first byte of a chunk.
const chunkFormat = 1

// noTime stands for the zero time.
const noTime = math.MinInt64

// appendEntry writes e: strings with their length, numbers as varints.
func appendEntry(b []byte, e *Entry) []byte {
	for _, s := range [...]string{e.ID, e.Number, e.Subscription, e.Description, e.Currency} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	flags := byte(0)
	for i, f := range e.flags() {
		if *f {
			flags |= 1 << i
		}
	}
	b = append(b, byte(slices.Index(statuses, e.Status)), flags)
	due := int64(noTime)
	if !e.Due.IsZero() {
		due = e.Due.Unix()
	}
	for _, n := range [...]int64{e.Created.Unix(), due, e.Total, e.Tax, e.Paid, e.Remaining} {
		b = binary.AppendVarint(b, n)
	}
	return binary.AppendUvarint(b, e.seen)
}

func (e *Entry) flags() [5]*bool {
	return [...]*bool{&e.Attempted, &e.Processing, &e.SendInvoice, &e.ForPendingUpdate, &e.HasDocument}
}

// errDamaged says that what the store has is no index: it is made anew.
var errDamaged = errors.New("invoices: the index cannot be read")

// decodeChunk reads a chunk. The strings of its entries share one copy of it.
func decodeChunk(list []Entry, value []byte) ([]Entry, error) {
	r := reader{rest: string(value)}
	if r.byte() != chunkFormat {
		return nil, errDamaged
	}
	for r.rest != "" && !r.bad {
		var e Entry
		for _, s := range [...]*string{&e.ID, &e.Number, &e.Subscription, &e.Description, &e.Currency} {
			*s = r.string()
		}
		status, flags := r.byte(), r.byte()
		if int(status) >= len(statuses) || flags >= 1<<len(e.flags()) {
			return nil, errDamaged
		}
		e.Status = statuses[status]
		for i, f := range e.flags() {
			*f = flags&(1<<i) != 0
		}
		e.Created = time.Unix(r.int(), 0).UTC()
		if due := r.int(); due != noTime {
			e.Due = time.Unix(due, 0).UTC()
		}
		for _, n := range [...]*int64{&e.Total, &e.Tax, &e.Paid, &e.Remaining} {
			*n = r.int()
		}
		e.seen = r.uint()
		list = append(list, e)
	}
	if r.bad {
		return nil, errDamaged
	}
	return list, nil
}

// reader takes a chunk apart; bad is set where it ends too early or holds what
// nobody writes.
type reader struct {
	rest string
	bad  bool
}

func (r *reader) byte() byte {
	if r.rest == "" {
		r.bad = true
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) uint() uint64 {
	var n uint64
	for shift := 0; shift < 64; shift += 7 {
		b := r.byte()
		n |= uint64(b&0x7F) << shift
		if b < 0x80 {
			if shift == 63 && b > 1 {
				r.bad = true
			}
			return n
		}
	}
	r.bad = true
	return 0
}

// int undoes the zigzag of binary.AppendVarint.
func (r *reader) int() int64 {
	u := r.uint()
	return int64(u>>1) ^ -int64(u&1)
}

func (r *reader) string() string {
	n := r.uint()
	if n > uint64(len(r.rest)) {
		r.bad = true
		return ""
	}
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}
