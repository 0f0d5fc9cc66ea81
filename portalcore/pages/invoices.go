package pages

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	invoicesPerPage = 25
	maxCursor       = 512
	// maxDocument bounds what is passed through of an invoice's file.
	maxDocument = 32 << 20
)

// invoices is GET /invoices. The list and the account behind the frame are
// read side by side; each can fail alone.
func (v *visit) invoices() {
	cursor := v.form["cursor"]
	if !validCursor(cursor) {
		v.notFound()
		return
	}
	if v.refreshed() {
		return
	}
	type frame struct {
		snap account.Snapshot
		err  error
	}
	framed := make(chan frame, 1)
	go func() {
		f := frame{err: errors.New("reading the account panicked")}
		defer func() {
			if e := recover(); e != nil {
				v.Log.Error("panic while reading an account", zap.String("request_id", v.id), zap.Any("panic", e))
			}
			framed <- f
		}()
		f.snap, f.err = v.snapshot()
	}()
	list, err := v.Corridor.Provider.Invoices(v.r.Context(), v.sess.Customer, cursor, invoicesPerPage)
	f := <-framed
	if billing.FaultOf(err) == billing.NotFound {
		v.notFound()
		return
	}
	l := &look{visit: v, acct: &billing.Account{}, cat: v.catalogue(), page: &templates.Page{
		Section: "invoices", SignedIn: true, Customer: v.knownName(), ReturnURL: v.backURL(), CancelURL: v.knownCancelURL(),
	}}
	if f.err == nil {
		var ok bool
		if l, ok = v.look("invoices", f.snap); !ok {
			return
		}
		l.page.Banner = l.banner()
	}
	// The time in the frame is the account's, which the list is newer than.
	l.page.RefreshHref = ""
	body, status := &templates.Invoices{Page: list}, http.StatusOK
	if err != nil {
		v.Log.Warn("could not list invoices", zap.String("request_id", v.id), zap.Error(err))
		body, status = &templates.Invoices{Failed: true}, http.StatusServiceUnavailable
		l.page.RefreshHref = v.r.URL.Path
	}
	href := func(cursor string) string {
		if cursor == "" {
			return ""
		}
		return templates.PathInvoices + "?cursor=" + url.QueryEscape(cursor)
	}
	body.NewerHref, body.OlderHref = href(body.Page.Newer), href(body.Page.Older)
	l.page.Body = body
	v.page(status, v.locale(l.acct.Customer.Locale), l.page)
}

func validCursor(s string) bool {
	return len(s) <= maxCursor && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// document is GET /invoices/{id}/pdf. The provider's adapter refuses an invoice
// of somebody else.
func (v *visit) document() {
	doc, err := v.Corridor.Provider.Document(v.r.Context(), v.sess.Customer, billing.DocumentRef{Invoice: v.arg})
	switch {
	case billing.FaultOf(err) == billing.NotFound:
		v.notFound()
		return
	case err != nil:
		v.providerDown(err)
		return
	}
	defer doc.Body.Close()
	mediaType, _, _ := strings.Cut(doc.ContentType, ";")
	if strings.TrimSpace(strings.ToLower(mediaType)) != pdfType || doc.Size > maxDocument {
		v.providerDown(errors.New("invoice file of type " + strconv.Quote(doc.ContentType) + " or too large; a PDF was asked for"))
		return
	}
	// The first bytes are read before the answer begins, so that a file that
	// cannot be had is a page and not half a file.
	first := make([]byte, 32<<10)
	n, err := io.ReadFull(doc.Body, first)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		v.providerDown(err)
		return
	}
	h := v.w.Header()
	h.Set("Content-Type", pdfType)
	h.Set("Content-Disposition", `attachment; filename="`+fileName(v.invoiceNumber(v.arg), v.arg)+`"`)
	if doc.Size >= 0 {
		h.Set("Content-Length", strconv.FormatInt(doc.Size, 10))
	}
	v.wrote = true
	v.w.WriteHeader(http.StatusOK)
	if v.r.Method == http.MethodHead {
		return
	}
	if _, err := v.w.Write(first[:n]); err != nil {
		return
	}
	rest, err := io.Copy(v.w, io.LimitReader(doc.Body, maxDocument))
	if sent := int64(n) + rest; err != nil || sent > maxDocument || doc.Size >= 0 && sent != doc.Size {
		v.Log.Warn("invoice file broke off", zap.String("request_id", v.id), zap.Int64("sent", sent), zap.Error(err))
		// Cut the connection: half a file must not look like a whole one.
		panic(http.ErrAbortHandler)
	}
}

const pdfType = "application/pdf"

func (v *visit) invoiceNumber(id string) string {
	if s, ok := v.Corridor.Accounts.Peek(v.sess.Customer); ok {
		for _, inv := range s.Account.Invoices {
			if inv.ID == id {
				return inv.Number
			}
		}
	}
	return ""
}

// fileName is a name for an invoice's file that every system takes and no
// header can be broken with: letters, digits, "-", "_" and dots inside.
func fileName(number, id string) string {
	clean := func(s string) string {
		s = strings.Map(func(r rune) rune {
			switch {
			case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '-', r == '_', r == '.':
				return r
			}
			return '-'
		}, s)
		return strings.Trim(s[:min(len(s), 64)], ".-")
	}
	if s := clean(number); s != "" {
		return "invoice-" + s + ".pdf"
	}
	return "invoice-" + clean(id) + ".pdf"
}
