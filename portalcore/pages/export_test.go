package pages

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/invoices"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
)

// many gives the first customer so many invoices, one a day, each tenth open.
func (e *env) many(n int) {
	for i := range n {
		m := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: "eur"} }
		inv := billing.Invoice{
			ID: fmt.Sprintf("in_%04d", i), Number: fmt.Sprintf("INV-%04d", n-i), Status: billing.InvoicePaid, Created: e.now().AddDate(0, 0, -i),
			Description: "Basic", Total: m(5880), AmountPaid: m(5880), Tax: m(980), HasDocument: true, Subscription: "sub_a",
		}
		if i%10 == 9 {
			inv.Status, inv.AmountPaid, inv.AmountRemaining, inv.Attempted = billing.InvoiceOpen, m(0), m(5880), true
		}
		e.provider.all = append(e.provider.all, inv)
		if a := e.provider.accounts["cus_a"]; inv.Debt() {
			a.Debts = append(a.Debts, inv)
		}
	}
}

// indexed reads until every invoice is in the index.
func (e *env) indexed() {
	e.t.Helper()
	for range 100 {
		if more, err := e.invoices.Work(e.t.Context()); err != nil || !more {
			if err != nil {
				e.t.Fatal(err)
			}
			return
		}
	}
}

// TestInvoiceList: Newer and Older until every invoice is known; then totals,
// search, filters, pages and downloads, and an old invoice is found by typing
// its number.
func TestInvoiceList(t *testing.T) {
	e := newEnv(t)
	e.many(500)
	e.mayPay()
	b := e.signedIn("cus_a")
	has := func(when, path string, want, not []string) string {
		t.Helper()
		w := b.get(path)
		if w.Code != 200 {
			t.Fatalf("%s: %d: %s", when, w.Code, w.Body)
		}
		for _, s := range want {
			if !strings.Contains(w.Body.String(), s) {
				t.Errorf("%s: no %q in %s", when, s, w.Body)
			}
		}
		for _, s := range not {
			if strings.Contains(w.Body.String(), s) {
				t.Errorf("%s: there is %q", when, s)
			}
		}
		return w.Body.String()
	}
	has("before it is read", "/invoices", []string{`href="/invoices?cursor=25"`, "so far. Older ones are still being read", `href="/invoices/in_0000"`, `name="q"`}, []string{"Overdue</dt>", "1–25 of"})
	has("a later page", "/invoices?cursor=25", []string{"INV-0475"}, []string{"INV-0476"})
	has("found so far", "/invoices?q=INV-0450", []string{"INV-0450", "1–1 of 1"}, []string{"INV-0449"})
	has("not found so far", "/invoices?q=INV-0007", []string{"No invoices match"}, nil)
	e.indexed()
	has("all", "/invoices", []string{"1–25 of 500", "€2,940.00", "Paid (invoices of", `href="/invoices?page=2"`, `href="/invoices.csv"`, "at most 100 invoices", `href="/pay/in_0009"`}, []string{"being read"})
	has("second page", "/invoices?page=2", []string{"26–50 of 500", `href="/invoices"`, `href="/invoices?page=3"`}, nil)
	has("last page", "/invoices?page=900", []string{"476–500 of 500", "INV-0001"}, []string{`rel="next"`})
	has("of last year", "/invoices?q=INV-0007&year=2025", []string{"INV-0007", "1–1 of 1", `href="/invoices.csv?q=INV-0007&amp;year=2025"`, `href="/invoices.zip?q=INV-0007&amp;year=2025"`, "Clear search"}, nil)
	has("by amount", "/invoices?q=58%2C80&status=overdue", []string{"1–25 of 50", `value="58,80"`}, nil)
	has("filtered, nothing", "/invoices?q=INV-9999&year=2025", []string{"No invoices match", "INV-9999", "Clear search"}, []string{"No invoices yet"})
	has("a subscription of nobody", "/invoices?subscription=sub_b", []string{"No invoices match"}, nil)
	for _, bad := range []string{"year=20x6", "year=0", "status=secret", "page=0", "page=-1", "subscription=%2e%2e%2f", "q=%ff"} {
		if w := b.get("/invoices?" + bad); w.Code != 404 && w.Code != 400 {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
	// The provider does not answer: what is known is shown, with its age.
	e.provider.down = true
	e.advance(5 * time.Minute)
	has("while the provider is down", "/invoices?status=paid", []string{"1–25 of 450", "Shown from"}, nil)
	// Another customer has none of it.
	e.provider.down = false
	other := e.signedIn("cus_b").get("/invoices?q=INV").Body.String()
	if strings.Contains(other, "INV-0") {
		t.Error("another customer's invoices are found")
	}
	viewer := e.signedIn("cus_a", viewerRole).get("/invoices?status=open").Body.String()
	if strings.Contains(viewer, `href="/pay/`) {
		t.Error("a viewer is offered to pay")
	}
}

// TestInvoiceDetail: the page of an invoice and its receipt, and neither of
// another customer's.
func TestInvoiceDetail(t *testing.T) {
	e := newEnv(t)
	e.mayPay()
	m := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: "eur"} }
	visa := &billing.PaymentMethod{Type: "card", Brand: "visa", Last4: "4242"}
	inv := billing.Invoice{ID: "in_open", Number: "INV-7", Status: billing.InvoiceOpen, Created: e.now(), Subscription: "sub_a", Total: m(5880), AmountRemaining: m(5880), HasDocument: true}
	paid := inv
	paid.ID, paid.Status, paid.AmountPaid, paid.AmountRemaining = "in_paid", billing.InvoicePaid, m(5880), m(0)
	e.provider.details = map[string]detail{
		"in_open": {"cus_a", billing.InvoiceDetail{Invoice: inv, Payments: []billing.Payment{{ID: "pi_1", Amount: m(5880), Status: billing.PaymentFailed, Method: visa, Failure: "insufficient_funds"}}}},
		"in_paid": {"cus_a", billing.InvoiceDetail{Invoice: paid, Name: "Evil \u202eName", Payments: []billing.Payment{
			{ID: "pi_2", Amount: m(2880), Status: billing.PaymentSucceeded, Method: visa, Refunded: m(100)}, {ID: "pi_1", Amount: m(3000), Status: billing.PaymentSucceeded, Method: visa},
		}, CreditNotes: []billing.CreditNote{{ID: "cn_a", Number: "CN-1", HasDocument: true, Total: m(100)}}}},
		"in_other": {"cus_b", billing.InvoiceDetail{Invoice: paid}},
	}
	b := e.signedIn("cus_a")
	for path, want := range map[string][]string{
		"/invoices/in_open":         {"Invoice <bdi", "INV-7", `href="/pay/in_open"`, `href="/invoices/in_open/pdf"`, "There was not enough money", "Basic"},
		"/invoices/in_paid":         {`href="/invoices/in_paid/receipt"`, `href="/invoices/in_paid/credit-notes/cn_a/pdf"`, "Paid"},
		"/invoices/in_paid/receipt": {"€57.80", "pi_1", "pi_2", "Visa"},
	} {
		w := b.get(path)
		for _, s := range want {
			if w.Code != 200 || !strings.Contains(w.Body.String(), s) {
				t.Errorf("%s: %d, no %q in %s", path, w.Code, s, w.Body)
			}
		}
		if strings.Contains(w.Body.String(), "\u202e") {
			t.Errorf("%s: a mark of direction came through", path)
		}
	}
	if strings.Contains(b.get("/invoices/in_paid").Body.String(), "/pay/") {
		t.Error("a paid invoice is to be paid")
	}
	if strings.Contains(e.signedIn("cus_a", viewerRole).get("/invoices/in_open").Body.String(), "/pay/") {
		t.Error("a viewer is offered to pay")
	}
	docs := e.provider.docs
	for _, path := range []string{
		"/invoices/in_other", "/invoices/in_other/receipt", "/invoices/in_open/receipt", "/invoices/in_nobody", "/invoices/in_open/x", "/invoices/in_open/credit-notes/cn_a",
		"/invoices/in_open/credit-notes/../pdf", "/invoices/in_open/pdf/pdf", "/invoices/in_open/credit-notes//pdf",
	} {
		if w := b.get(path); w.Code != 404 {
			t.Errorf("%s: %d, want 404", path, w.Code)
		}
	}
	if e.provider.docs != docs {
		t.Error("a document was asked for")
	}
	e.provider.down = true
	if w := b.get("/invoices/in_open"); w.Code != 503 {
		t.Errorf("while the provider is down: %d", w.Code)
	}
}

// TestDocumentPages: a document that cannot be had is a page that says why.
func TestDocumentPages(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	e.provider.docErr = map[string]error{"in_cus_a": &billing.Error{Fault: billing.Unavailable, Code: "not_ready"}}
	if w := b.get("/invoices/in_cus_a/pdf"); w.Code != 503 || !strings.Contains(w.Body.String(), "This PDF isn’t ready yet") || w.Header().Get("Content-Disposition") != "" {
		t.Errorf("not ready: %d %v", w.Code, w.Header())
	}
	e.provider.docErr["in_cus_a"] = errors.New("secret cause")
	if w := b.get("/invoices/in_cus_a/pdf"); w.Code != 503 || !strings.Contains(w.Body.String(), "We couldn’t fetch this PDF") || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("failed: %d %s", w.Code, w.Body)
	}
	e.provider.docErr = nil
	e.provider.pdfLen = maxDocument + 1
	if w := b.get("/invoices/in_cus_a/pdf"); w.Code != 503 {
		t.Errorf("too large: %d", w.Code)
	}
	e.provider.pdfLen = 13
	if w := b.get("/invoices/in_cus_a/credit-notes/cn_a/pdf"); w.Code != 200 || w.Header().Get("Content-Disposition") != `attachment; filename="credit-note-cn_a.pdf"` {
		t.Errorf("credit note: %d %v", w.Code, w.Header())
	}
	if w := b.get("/invoices/in_cus_a/credit-notes/cn_b/pdf"); w.Code != 404 {
		t.Errorf("a credit note of nobody: %d", w.Code)
	}
}

func TestDocumentName(t *testing.T) {
	for number, want := range map[string]string{
		"INV-7": "invoice-INV-7.pdf", "": "invoice-in_1.pdf", "../../etc/passwd": "invoice-etc-passwd.pdf", "a\"b\r\nX: y": "invoice-a-b--X--y.pdf",
		"…": "invoice-in_1.pdf", strings.Repeat("a", 300): "invoice-" + strings.Repeat("a", 64) + ".pdf", ".htaccess": "invoice-htaccess.pdf", "Ü\u202e1": "invoice-Ü-1.pdf",
	} {
		if got := documentName("invoice", number, "in_1"); got != want {
			t.Errorf("documentName(%q) = %q, want %q", number, got, want)
		}
	}
	if got := disposition("invoice-Ü 1.pdf"); got != `attachment; filename="invoice-- 1.pdf"; filename*=UTF-8''invoice-%C3%9C%201.pdf` {
		t.Error(got)
	}
}

// FuzzDocumentName: a name is one file in one directory on every system, and
// its header says exactly it.
func FuzzDocumentName(f *testing.F) {
	for _, s := range []string{"INV-7", "../x", "C:\\x", "a\x00b", "\xff", "ЧЕК-7", strings.Repeat("ü", 200), "%2e%2e%2f", "a;b=\"c\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, number string) {
		name := documentName("invoice", number, "in_1")
		if path.Base(name) != name || strings.ContainsAny(name, "/\\:*?\"<>|;%") || strings.Contains(name, "..pdf") || len(name) > 400 ||
			strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }) {
			t.Fatalf("%q makes %q", number, name)
		}
		h := disposition(name)
		_, params, err := mime.ParseMediaType(h)
		if err != nil || strings.ContainsFunc(h, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q: header %q: %v", number, h, err)
		}
		// Of both names Go's parser takes the one that it can read.
		if got := params["filename"]; got != name {
			t.Fatalf("%q: header %q names %q, want %q", number, h, got, name)
		}
	})
}

// FuzzCell: no cell begins a formula, breaks its line or its row, whatever is in
// it.
func FuzzCell(f *testing.F) {
	for _, s := range []string{"=1+1", " +cmd|' /C calc'!A0", "\t=x", "\r\n@SUM(A1)", "-5", "＝1", "\u202e=1", "a,b\"c", "\x00", "\u200b=1", "x", "Pro; =cmd|' /C calc'!A0;", ";;\" @x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := invoices.Entry{Number: s, Description: s, Currency: s, Status: billing.InvoicePaid, Total: -500}
		var b bytes.Buffer
		if err := writeCSV(&b, []invoices.Entry{e, e}, func(string) int { return 2 }, time.UTC); err != nil {
			t.Fatal(err)
		}
		raw, ok := strings.CutPrefix(b.String(), "\uFEFF")
		if !ok || strings.Count(raw, "\n") != 3 || strings.Count(raw, "\r\n") != 3 {
			t.Fatalf("%q makes %q", s, raw)
		}
		rows, err := csv.NewReader(strings.NewReader(raw)).ReadAll()
		if err != nil || len(rows) != 3 || len(rows[1]) != len(csvColumns) {
			t.Fatalf("%q: %v, %q", s, err, rows)
		}
		for i, c := range rows[1] {
			// Where the comma is the decimal sign, a cell ends at a semicolon.
			for c := range strings.SplitSeq(c, ";") {
				c = strings.TrimLeft(c, " \"")
				if i < 6 && c != "" && strings.ContainsAny(c[:1], "=+-@\t\r") {
					t.Fatalf("%q makes a cell %q", s, c)
				}
			}
		}
		if rows[1][6] != "-5.00" {
			t.Fatalf("the amount is %q: not a number", rows[1][6])
		}
	})
}

// FuzzSelection: whatever stands in the address is a selection or refused, and
// the address that we make of it means the same.
func FuzzSelection(f *testing.F) {
	for _, s := range []string{"q=INV&year=2025&status=paid&page=2", "q=%00%0a", "year=99999999", "subscription=a/b", "q=" + strings.Repeat("%C3%BC", 500), "page=1e3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		form, err := parseForm(raw)
		if err != nil {
			return
		}
		sel, ok := selectionOf(form)
		if !ok {
			return
		}
		u, err := url.Parse(sel.href("/invoices", sel.page))
		if err != nil || u.Path != "/invoices" {
			t.Fatal(err)
		}
		form, err = parseForm(u.RawQuery)
		if err != nil {
			t.Fatal(err)
		}
		if again, ok := selectionOf(form); !ok || again.Text != sel.Text || again.Year != sel.Year || again.Status != sel.Status || again.Subscription != sel.Subscription || again.page != sel.page {
			t.Fatalf("%q: %+v became %+v", raw, sel, again)
		}
	})
}

// TestCSV: the selection and nothing else, as numbers and dates.
func TestCSV(t *testing.T) {
	e := newEnv(t)
	e.many(120)
	e.provider.all[3].Number, e.provider.all[3].Description = "=HYPERLINK(\"x\")", "Größe, \"L\""
	b := e.signedIn("cus_a")
	b.get("/invoices")
	e.indexed()
	w := b.get("/invoices.csv?status=paid")
	if w.Code != 200 || w.Header().Get("Content-Disposition") != `attachment; filename="invoices.csv"` || w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	rows, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(w.Body.String(), "\uFEFF"))).ReadAll()
	if err != nil || len(rows) != 1+108 {
		t.Fatalf("%v: %d rows", err, len(rows))
	}
	if want := []string{"2026-05-14", "INV-0120", "Basic", "paid", "", "EUR", "58.80", "9.80", "58.80", "0.00"}; !slices.Equal(rows[1], want) {
		t.Errorf("%q, want %q", rows[1], want)
	}
	if rows[4][1] != "'=HYPERLINK(\"x\")" || rows[4][2] != "Größe, \"L\"" {
		t.Errorf("%q", rows[4])
	}
	if w := b.get("/invoices.csv?status=nothing"); w.Code != 404 {
		t.Errorf("a status that there is not: %d", w.Code)
	}
	down := newEnv(t)
	c := down.signedIn("cus_a")
	down.provider.down = true
	if w := c.get("/invoices.csv"); w.Code != 503 || w.Header().Get("Content-Disposition") != "" {
		t.Errorf("without an index and a provider: %d", w.Code)
	}
}

// TestZIP: the documents of the selection under names of their own, with a text
// about those that are missing; one at a time, and none for who went away.
func TestZIP(t *testing.T) {
	e := newEnv(t)
	e.many(110)
	for i, number := range []string{"../../x", "INV-1", "inv-1", "", "=1"} {
		e.provider.all[i].Number, e.provider.all[i].Created = number, e.provider.all[0].Created
	}
	e.provider.all[5].HasDocument = false
	e.provider.docErr = map[string]error{"in_0006": &billing.Error{Fault: billing.Unavailable, Code: "not_ready"}}
	b := e.signedIn("cus_a")
	b.get("/invoices")
	e.indexed()
	if w := b.get("/invoices.zip"); w.Code != 422 || !strings.Contains(w.Body.String(), "at most 100 PDFs") || e.provider.docs != 0 {
		t.Errorf("too many: %d, %d documents asked for", w.Code, e.provider.docs)
	}
	w := b.get("/invoices.zip?year=2026&status=paid")
	files := unzip(t, w)
	var names []string
	for name, body := range files {
		names = append(names, name)
		if name != "missing.txt" && body != "%PDF-1.7 test" {
			t.Errorf("%s holds %q", name, body)
		}
	}
	for _, want := range []string{"2026-05-14-invoice-x.pdf", "2026-05-14-invoice-inv-1.pdf", "2026-05-14-invoice-INV-1-2.pdf", "2026-05-14-invoice-in_0003.pdf", "2026-05-14-invoice-1.pdf", "missing.txt"} {
		if _, ok := files[want]; !ok {
			slices.Sort(names)
			t.Errorf("no %s in %q", want, names)
		}
	}
	if m := files["missing.txt"]; !strings.Contains(m, "INV-0104, 8 May 2026") || strings.Contains(m, "\u2068") || strings.Count(m, "\n") != 2 {
		t.Errorf("missing.txt says %q", m)
	}
	// Another one meanwhile, and the browser goes away: no document after that.
	ctx, leave := context.WithCancel(t.Context())
	asked := 0
	e.provider.docWait = func(context.Context, string) {
		asked++
		if asked == 2 {
			if w := b.get("/invoices.zip?q=INV-0100"); w.Code != 429 || w.Header().Get("Retry-After") == "" {
				t.Errorf("a second one at once: %d", w.Code)
			}
			leave()
		}
	}
	func() {
		defer func() {
			if r := recover(); r != http.ErrAbortHandler { //nolint:errorlint // panics with the value itself
				t.Errorf("half a ZIP ended with %v, want the connection cut", r)
			}
		}()
		b.send(httptest.NewRequestWithContext(ctx, http.MethodGet, "/invoices.zip?status=open", nil))
	}()
	if asked != 2 {
		t.Errorf("%d documents asked for after the browser went away", asked)
	}
	e.provider.docWait = nil
	if w := b.get("/invoices.zip?q=INV-0100"); w.Code != 200 || len(unzip(t, w)) != 1 {
		t.Errorf("afterwards: %d", w.Code)
	}
	if w := b.get("/invoices.zip?q=INV-0104"); w.Code != 503 || !strings.Contains(w.Body.String(), "ready yet") {
		t.Errorf("the only one is not ready: %d", w.Code)
	}
	if w := b.get("/invoices.zip?q=INV-0105"); w.Code != 404 {
		t.Errorf("no document at all: %d", w.Code)
	}
}

// TestStalledDownload: a browser that asks for a file and takes none of it does
// not keep the place of a ZIP, nor the file, for ever; one that takes it has all
// of it, and its connection is good for more.
func TestStalledDownload(t *testing.T) {
	e := newEnv(t)
	e.many(60)
	e.provider.pdf = bytes.Repeat([]byte("%PDF"), 1<<20)
	e.provider.pdfLen = int64(len(e.provider.pdf))
	b := e.signedIn("cus_a")
	b.get("/invoices")
	e.indexed()
	e.pages.takePatience = 300 * time.Millisecond
	over := make(chan struct{}, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { over <- struct{}{} }()
		e.pages.ServeHTTP(w, r)
	}))
	defer s.Close()
	for _, path := range []string{"/invoices.zip?status=open", "/invoices/in_0009/pdf"} {
		e.provider.mu.Lock()
		if strings.HasSuffix(path, "pdf") {
			e.provider.pdf = bytes.Repeat(e.provider.pdf, 7)
			e.provider.pdfLen = int64(len(e.provider.pdf))
		}
		e.provider.mu.Unlock()
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nCookie: __Host-bp=%s\r\n\r\n", path, host, b.cookie)
		select {
		case <-over:
		case <-time.After(10 * time.Second):
			t.Errorf("%s is still being sent to a browser that takes nothing", path)
		}
		_ = conn.Close()
	}
	e.provider.pdf, e.provider.pdfLen = []byte("%PDF-1.7 test"), 13
	for range 2 {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/invoices.zip?status=open", nil)
		r.Host = host
		r.Header.Set("Cookie", "__Host-bp="+b.cookie)
		res, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if z, zerr := zip.NewReader(bytes.NewReader(body), int64(len(body))); err != nil || zerr != nil || len(z.File) != 6 {
			t.Fatalf("%d, %v, %v: %.200s", res.StatusCode, err, zerr, body)
		}
		time.Sleep(2 * e.pages.takePatience) // what a deadline would cut
	}
}

func unzip(t *testing.T, w *httptest.ResponseRecorder) map[string]string {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(w.Body.Bytes()), int64(w.Body.Len()))
	if err != nil || w.Code != 200 {
		t.Fatalf("%d: %v: %.300s", w.Code, err, w.Body)
	}
	files := map[string]string{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name] = string(body)
	}
	if len(files) != len(z.File) {
		t.Errorf("%d files under %d names", len(z.File), len(files))
	}
	return files
}

// mayPay lets everybody but viewers pay invoices.
func (e *env) mayPay() {
	p := must[*policy.Policy](e.t)(policy.New([]policy.Rule{{Verdict: policy.Allow, Actions: []string{policy.PayInvoices}}}, nil))
	e.corridor.Policy = func(string) *policy.Policy { return p }
}

// TestViewInvoicesDenied: where the policy does not let a person read invoices
// there is no way to one, and no document is asked for.
func TestViewInvoicesDenied(t *testing.T) {
	e := newEnv(t)
	e.many(30)
	b := e.signedIn("cus_a")
	p := must[*policy.Policy](t)(policy.New([]policy.Rule{{Verdict: policy.Deny, Actions: []string{policy.ViewInvoices}}}, nil))
	e.corridor.Policy = func(string) *policy.Policy { return p }
	e.provider.accounts["cus_a"].Invoices = e.provider.all[:3]
	b.post(pathRefresh, nil)
	if body := b.get("/").Body.String(); strings.Contains(body, "INV-0") || !strings.Contains(body, "Your plan") {
		t.Errorf("the overview shows invoices: %s", body)
	}
	for _, path := range []string{"", "/in_0001", "/in_0001/receipt", "/in_0001/pdf", "/in_0001/credit-notes/cn_a/pdf", ".csv", ".zip"} {
		if w := b.get("/invoices" + path); w.Code != 403 || strings.Contains(w.Body.String(), "INV-0") {
			t.Errorf("/invoices%s: %d", path, w.Code)
		}
	}
	if e.provider.docs != 0 {
		t.Error("a document was asked for")
	}
}

// TestReceiptWithoutInvoice: nor does the receipt of a change lead to the
// invoice's document.
func TestReceiptWithoutInvoice(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	e.provider.waits = &billing.Result{State: billing.Done, Invoice: &billing.Invoice{ID: "in_new", Number: "INV-77", HasDocument: true}}
	done := location(t, b.post("/cancel", formOf(t, b.get("/cancel").Body.String(), "/cancel")), pathDone)
	if body := b.get(done).Body.String(); !strings.Contains(body, "INV-77") {
		t.Fatalf("the receipt has no invoice: %s", body)
	}
	p := must[*policy.Policy](t)(policy.New([]policy.Rule{{Verdict: policy.Deny, Actions: []string{policy.ViewInvoices}}}, nil))
	e.corridor.Policy = func(string) *policy.Policy { return p }
	if body := b.get(done).Body.String(); strings.Contains(body, "INV-77") || strings.Contains(body, "in_new") {
		t.Error("the receipt shows an invoice that may not be read")
	}
}

func viewerRole(c *link.Claims) { c.Role = policy.Viewer }
