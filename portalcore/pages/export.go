package pages

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/shopspring/decimal"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/invoices"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	// maxDocument bounds what is passed through of a document.
	maxDocument = 32 << 20
	// zipDocuments is how many documents a ZIP takes; zipDocument bounds each of
	// them, which is read whole before it is sent, and zipSize all of them.
	zipDocuments = 100
	zipDocument  = 16 << 20
	zipSize      = 256 << 20
	// zipsAtOnce bounds the memory that ZIPs take.
	zipsAtOnce = 4
	// documentTimeout bounds fetching one document of a ZIP.
	documentTimeout = 30 * time.Second

	// takePatience is how long a browser may keep a file waiting, beside the time
	// that its bytes need at takeRate, in bytes a second.
	takePatience = time.Minute
	takeRate     = 16 << 10
	// takePiece is how much is sent at a time.
	takePiece = 64 << 10

	pdfType = "application/pdf"
)

// invoicePDF is GET /invoices/{id}/pdf. The provider's adapter refuses an
// invoice of somebody else.
func (v *visit) invoicePDF() {
	v.document(billing.DocumentRef{Invoice: v.arg}, templates.InvoicePath(v.arg), func() string {
		return documentName("invoice", v.invoiceNumber(v.arg), v.arg)
	})
}

// creditNotePDF is GET /invoices/{id}/credit-notes/{id}/pdf.
func (v *visit) creditNotePDF() {
	invoice, note, _ := strings.Cut(v.arg, "/")
	v.document(billing.DocumentRef{Invoice: invoice, CreditNote: note}, templates.InvoicePath(invoice), func() string {
		return documentName("credit-note", "", note)
	})
}

// documentFailed is the page in the place of a document that cannot be had.
func (v *visit) documentFailed(err error, back string) {
	if billing.FaultOf(err) == billing.NotFound {
		v.notFound()
		return
	}
	m := templates.Message{Kind: "document_failed", Href: back, Link: linkContinue}
	if billing.CodeOf(err) == "not_ready" {
		m.Kind = "document_not_ready"
	} else if v.r.Context().Err() == nil {
		v.Log.Warn("could not fetch a document", zap.String("request_id", v.id), zap.Error(err))
	}
	v.w.Header().Set("Retry-After", "30")
	v.message(http.StatusServiceUnavailable, m)
}

// openDocument opens a PDF of at most so many bytes.
func (v *visit) openDocument(ctx context.Context, ref billing.DocumentRef, most int64) (billing.Document, error) {
	doc, err := v.Corridor.Provider.Document(ctx, v.sess.Customer, ref)
	if err != nil {
		return doc, err
	}
	mediaType, _, _ := strings.Cut(doc.ContentType, ";")
	if strings.TrimSpace(strings.ToLower(mediaType)) != pdfType || doc.Size > most {
		_ = doc.Body.Close()
		return doc, errors.New("document of type " + strconv.Quote(doc.ContentType) + " or too large; a PDF was asked for")
	}
	return doc, nil
}

// document passes a PDF through.
func (v *visit) document(ref billing.DocumentRef, back string, name func() string) {
	if !v.mayView(policy.ViewInvoices) {
		return
	}
	doc, err := v.openDocument(v.r.Context(), ref, maxDocument)
	if err != nil {
		v.documentFailed(err, back)
		return
	}
	defer doc.Body.Close()
	// The first bytes are read before the answer begins, so that a file that
	// cannot be had is a page and not half a file.
	first := make([]byte, 32<<10)
	n, err := io.ReadFull(doc.Body, first)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		v.documentFailed(err, back)
		return
	}
	v.download(pdfType, name())
	if doc.Size >= 0 {
		v.w.Header().Set("Content-Length", strconv.FormatInt(doc.Size, 10))
	}
	v.w.WriteHeader(http.StatusOK)
	if v.r.Method == http.MethodHead {
		return
	}
	out := v.taker()
	var rest int64
	if _, err = out.Write(first[:n]); err == nil {
		rest, err = io.Copy(out, io.LimitReader(doc.Body, maxDocument))
	}
	if err == nil {
		err = out.done()
	}
	if sent := int64(n) + rest; err != nil || sent > maxDocument || doc.Size >= 0 && sent != doc.Size {
		v.Log.Warn("document broke off", zap.String("request_id", v.id), zap.Int64("sent", sent), zap.Error(err))
		// Cut the connection: half a file must not look like a whole one.
		panic(http.ErrAbortHandler)
	}
}

// download sets the header of a file; what follows is the file.
func (v *visit) download(contentType, name string) {
	h := v.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", disposition(name))
	v.wrote = true
}

// taker sends a file to a browser for as long as that takes it: one that does
// not would hold the file, and a ZIP's place, for ever.
type taker struct {
	w        io.Writer
	rc       *http.ResponseController
	patience time.Duration // what is left of it
	most     time.Duration
}

func (v *visit) taker() *taker {
	return &taker{w: v.w, rc: http.NewResponseController(v.w), patience: v.takePatience, most: v.takePatience}
}

func (t *taker) Write(b []byte) (n int, err error) {
	for err == nil && n < len(b) {
		begun := time.Now()
		_ = t.rc.SetWriteDeadline(begun.Add(t.patience)) // not every writer has deadlines
		var sent int
		sent, err = t.w.Write(b[n:min(n+takePiece, len(b))])
		n += sent
		// What a connection holds back by itself is taken at once: it earns nothing.
		t.patience = min(t.patience+time.Duration(sent)*time.Second/takeRate-time.Since(begun), t.most)
	}
	return n, err
}

// done sends what is held back of a whole file. The connection is good for
// more after it.
func (t *taker) done() error {
	_ = t.rc.SetWriteDeadline(time.Now().Add(t.patience))
	if err := t.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	_ = t.rc.SetWriteDeadline(time.Time{})
	return nil
}

// invoiceNumber is an invoice's number, as far as it is at hand.
func (v *visit) invoiceNumber(id string) string {
	if s, ok := v.Corridor.Accounts.Peek(v.sess.Customer); ok {
		for _, inv := range s.Account.Invoices {
			if inv.ID == id {
				return inv.Number
			}
		}
	}
	view, err := v.Invoices.View(v.r.Context(), v.sess.Customer)
	if err != nil || view == nil {
		return "" // the id names the file as well
	}
	e, _ := view.Find(id)
	return e.Number
}

// documentName is a name for a document: letters of any script, digits, "-",
// "_" and dots inside, which no path, header or file system reads as anything
// else.
func documentName(kind, number, id string) string {
	clean := func(s string) string {
		out := make([]rune, 0, 64)
		for _, r := range s {
			if len(out) == 64 {
				break
			}
			if !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '-' && r != '_' && r != '.' {
				r = '-'
			}
			out = append(out, r)
		}
		return strings.Trim(string(out), ".-")
	}
	if s := clean(number); s != "" {
		return kind + "-" + s + ".pdf"
	}
	return kind + "-" + clean(id) + ".pdf"
}

// disposition is the Content-Disposition of a download (RFC 6266): the name in
// ASCII, and as it is where that is another (RFC 8187).
func disposition(name string) string {
	ascii := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '-'
		}
		return r
	}, name)
	h := `attachment; filename="` + ascii + `"`
	if ascii != name {
		h += "; filename*=UTF-8''" + strings.ReplaceAll(url.QueryEscape(name), "+", "%20")
	}
	return h
}

// selected are the invoices that a download asks for. Where there are none to
// give, it answers itself.
func (v *visit) selected() ([]invoices.Entry, bool) {
	if !v.mayView(policy.ViewInvoices) {
		return nil, false
	}
	sel, ok := selectionOf(v.form)
	if !ok {
		v.notFound()
		return nil, false
	}
	view, f, err := v.index()
	if view == nil {
		if err == nil {
			err = errors.New("there is no index of invoices")
		}
		if billing.FaultOf(err) == billing.NotFound {
			v.notFound()
			return nil, false
		}
		v.providerDown(err)
		return nil, false
	}
	sel.at(v, f)
	return view.Search(sel.Query), true
}

// csvColumns are the columns of a CSV: words for programs, the same in every
// language.
var csvColumns = []string{"date", "number", "description", "status", "due_date", "currency", "total", "tax", "paid", "open"}

// invoicesCSV is GET /invoices.csv: the selection as RFC 4180 says, in UTF-8
// with the mark by which Excel knows it.
func (v *visit) invoicesCSV() {
	list, ok := v.selected()
	if !ok {
		return
	}
	v.download("text/csv; charset=utf-8; header=present", "invoices.csv")
	v.w.WriteHeader(http.StatusOK)
	if v.r.Method == http.MethodHead {
		return
	}
	out := v.taker()
	err := writeCSV(out, list, v.Corridor.Provider.Capabilities().Exponent, v.Renderer.Location())
	if err == nil {
		err = out.done()
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the browser went away, or takes it for whole
	}
}

func writeCSV(w io.Writer, list []invoices.Entry, exponent func(string) int, loc *time.Location) error {
	if _, err := io.WriteString(w, "\uFEFF"); err != nil {
		return err
	}
	c := csv.NewWriter(w)
	c.UseCRLF = true
	if err := c.Write(csvColumns); err != nil {
		return err
	}
	date := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.In(loc).Format(time.DateOnly)
	}
	for i := range list {
		e := &list[i]
		digits := int32(exponent(e.Currency))
		amount := func(n int64) string { return decimal.New(n, -digits).StringFixed(digits) }
		err := c.Write([]string{
			date(e.Created), cell(e.Number), cell(e.Description), string(e.Status), date(e.Due), cell(strings.ToUpper(e.Currency)),
			amount(e.Total), amount(e.Tax), amount(e.Paid), amount(e.Remaining),
		})
		if err != nil {
			return err
		}
	}
	c.Flush()
	return c.Error()
}

// cell is a text that no spreadsheet takes for a formula, and that stays on its
// line: controls and marks of direction are left out, and an apostrophe is put
// before what would begin a formula. After a semicolon too: where the comma is
// the decimal sign, spreadsheets begin a cell there.
func cell(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), r == 0x2028, r == 0x2029:
			return ' '
		case unicode.Is(unicode.Cf, r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD")))
	var b strings.Builder
	begins := true
	for _, r := range s {
		if begins && strings.ContainsRune("=+-@＝＋－＠−|%", r) {
			b.WriteByte('\'')
		}
		begins = r == ';' || begins && (r == '"' || unicode.IsSpace(r))
		b.WriteRune(r)
	}
	return b.String()
}

func withDocument(list []invoices.Entry) []invoices.Entry {
	return slices.DeleteFunc(slices.Clone(list), func(e invoices.Entry) bool { return !e.HasDocument || !validID(e.ID) })
}

// beginZIP takes a customer's place; it reports false where one is being made
// for the customer already, or too many are for others.
func (p *Pages) beginZIP(customer string) bool {
	p.zipMu.Lock()
	defer p.zipMu.Unlock()
	if p.zipping[customer] || len(p.zipping) == zipsAtOnce {
		return false
	}
	p.zipping[customer] = true
	return true
}

func (p *Pages) endZIP(customer string) {
	p.zipMu.Lock()
	defer p.zipMu.Unlock()
	delete(p.zipping, customer)
}

// invoicesZIP is GET /invoices.zip: the documents of the selection. One that
// cannot be had is named in a text beside the others.
func (v *visit) invoicesZIP() {
	list, ok := v.selected()
	if !ok {
		return
	}
	list = withDocument(list)
	refuse := func(status int, kind string) {
		v.message(status, templates.Message{Kind: kind, Count: zipDocuments, Href: templates.PathInvoices, Link: linkInvoices})
	}
	switch {
	case len(list) == 0:
		refuse(http.StatusNotFound, "zip_empty")
		return
	case len(list) > zipDocuments:
		refuse(http.StatusUnprocessableEntity, "zip_most")
		return
	case v.r.Method == http.MethodHead:
		v.download("application/zip", "invoices.zip")
		v.w.WriteHeader(http.StatusOK)
		return
	case !v.beginZIP(v.sess.Customer):
		v.w.Header().Set("Retry-After", "30")
		refuse(http.StatusTooManyRequests, "zip_busy")
		return
	}
	defer v.endZIP(v.sess.Customer)
	z := zipFile{visit: v, names: map[string]bool{}}
	for i := range list {
		if !z.add(&list[i]) {
			return
		}
	}
	if z.w == nil { // none could be had: that is no file
		v.documentFailed(z.why, templates.PathInvoices)
		return
	}
	if err := z.finish(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// zipFile is a ZIP in the making.
type zipFile struct {
	*visit
	out     *taker
	w       *zip.Writer // nil until the first document is there
	names   map[string]bool
	sent    int64
	missing []invoices.Entry
	why     error // the last document that is missing is so
}

// add fetches a document and sends it. It reports false where the browser went
// away: nothing more is fetched.
func (z *zipFile) add(e *invoices.Entry) bool {
	body, err := z.fetch(e.ID)
	if z.r.Context().Err() != nil {
		if z.w != nil {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	if err != nil {
		z.Log.Warn("a document is missing in a ZIP", zap.String("request_id", z.id), zap.Error(err))
		z.missing, z.why = append(z.missing, *e), err
		return true
	}
	if z.w == nil {
		z.download("application/zip", "invoices.zip")
		z.visit.w.WriteHeader(http.StatusOK)
		z.out = z.taker()
		z.w = zip.NewWriter(z.out)
	}
	name := documentName(e.Created.In(z.Renderer.Location()).Format(time.DateOnly)+"-invoice", e.Number, e.ID)
	if err := z.put(z.unique(name), body, e.Created); err != nil {
		panic(http.ErrAbortHandler)
	}
	z.sent += int64(len(body))
	return true
}

// fetch reads a document whole.
func (z *zipFile) fetch(invoice string) ([]byte, error) {
	if z.sent >= zipSize {
		return nil, errors.New("the ZIP is as large as it may get")
	}
	ctx, cancel := context.WithTimeout(z.r.Context(), documentTimeout)
	defer cancel()
	doc, err := z.openDocument(ctx, billing.DocumentRef{Invoice: invoice}, zipDocument)
	if err != nil {
		return nil, err
	}
	defer doc.Body.Close()
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(doc.Body, zipDocument+1))
	switch {
	case err != nil:
		return nil, err
	case n > zipDocument || doc.Size >= 0 && n != doc.Size:
		return nil, fmt.Errorf("document of %d bytes broke off or is too large", n)
	}
	return b.Bytes(), nil
}

// unique is a name that no other file in the ZIP has, on systems too that do
// not tell capitals from others.
func (z *zipFile) unique(name string) string {
	base := strings.TrimSuffix(name, ".pdf")
	for n := 2; z.names[strings.ToLower(name)]; n++ {
		name = base + "-" + strconv.Itoa(n) + ".pdf"
	}
	z.names[strings.ToLower(name)] = true
	return name
}

func (z *zipFile) put(name string, body []byte, at time.Time) error {
	f, err := z.w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: at})
	if err == nil {
		_, err = f.Write(body)
	}
	return err
}

// finish says what is missing and ends the file.
func (z *zipFile) finish() error {
	if len(z.missing) > 0 {
		text, err := z.missingText()
		if err != nil {
			return err
		}
		if err := z.put("missing.txt", []byte(text), z.now); err != nil {
			return err
		}
	}
	if err := z.w.Close(); err != nil {
		return err
	}
	return z.out.done()
}

func (z *zipFile) missingText() (string, error) {
	locale := z.locale("")
	text, err := z.Renderer.Text(locale, "zip.missing")
	for i := range z.missing {
		if err != nil {
			return "", err
		}
		e := &z.missing[i]
		number := cell(e.Number)
		if number == "" {
			number = e.ID
		}
		var line string
		line, err = z.Renderer.Text(locale, "zip.missing.line", "number", number, "date", e.Created)
		text += "\r\n" + line
	}
	return text + "\r\n", err
}
