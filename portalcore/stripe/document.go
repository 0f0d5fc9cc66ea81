package stripe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Patience with the host of a file: how long its bytes may take beside the
// time that they need at the slowest rate.
const (
	filePatience = 10 * time.Second
	fileRate     = 16 << 10 // bytes a second
)

// pdfMagic begins every PDF file.
var pdfMagic = []byte("%PDF-")

// Document implements billing.Provider. The file's address is read anew each
// time, as it expires; the file is fetched without the key, from allow-listed
// hosts only, over at most three redirects. It must say that it is a PDF and
// begin like one, and is cut off where it is too large or comes too slowly.
func (p *Provider) Document(ctx context.Context, customerID string, ref billing.DocumentRef) (billing.Document, error) {
	ctx = forCustomer(ctx, customerID)
	id := ref.Invoice
	var address string
	switch {
	case ref.CreditNote != "":
		n, err := p.creditNote(ctx, customerID, ref.Invoice, ref.CreditNote)
		if err != nil {
			return billing.Document{}, err
		}
		id, address = n.ID, n.PDF
	default:
		v, err := p.invoice(ctx, customerID, ref.Invoice)
		if err != nil {
			return billing.Document{}, err
		}
		if v.Status == "draft" {
			return billing.Document{}, notFound(id)
		}
		address = v.PDF
	}
	fail := func(code string, err error) (billing.Document, error) {
		return billing.Document{}, &billing.Error{Fault: billing.Unavailable, Code: code, Param: id, Err: err}
	}
	if address == "" {
		return fail("not_ready", errors.New("there is no PDF yet"))
	}
	u, err := url.Parse(address)
	if err != nil {
		return fail("bad_answer", errors.New("the PDF's address is not a URL"))
	}
	if err := p.checkFile(u); err != nil {
		return fail("bad_answer", err)
	}
	ctx, cancel := context.WithTimeout(ctx, documentTimeout)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel()
		return fail("bad_answer", errors.New("the PDF's address is not a URL"))
	}
	req.Header.Set("Accept", "application/pdf")
	req.Header.Set("User-Agent", "caddy-billing-portal")
	impatient := time.AfterFunc(p.timeout, cancel) // redirects and the answer's header
	res, err := p.files.Do(req)
	if !impatient.Stop() && err == nil {
		_ = res.Body.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		// The URL is a bearer secret of its own: it stays out of the error.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return fail("unreachable", err)
	}
	bad := func(err error) (billing.Document, error) {
		_ = res.Body.Close()
		cancel()
		return fail("bad_answer", err)
	}
	if res.StatusCode != http.StatusOK {
		return bad(fmt.Errorf("the file's host answered %d", res.StatusCode))
	}
	if mt, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err != nil || mt != "application/pdf" {
		return bad(errors.New("the file is not a PDF"))
	}
	if res.ContentLength > maxDocument {
		return bad(fmt.Errorf("the file is over %d bytes", maxDocument))
	}
	f := &file{r: res.Body, left: maxDocument, patience: filePatience, cancel: cancel}
	head := make([]byte, len(pdfMagic))
	if _, err := io.ReadFull(f, head); err != nil || !bytes.Equal(head, pdfMagic) {
		return bad(errors.New("the file does not begin like a PDF"))
	}
	f.head = head
	return billing.Document{ContentType: "application/pdf", Size: res.ContentLength, Body: f}, nil
}

// file caps a document's size and the time that it takes, and ends its context
// when it is closed.
type file struct {
	r    io.ReadCloser
	head []byte // read already
	left int64
	// patience is how long reads may still block. Bytes that came earn more, so
	// that a large file has its time and one that drips is cut off. The time that
	// the reader takes between its reads is not the host's fault.
	patience time.Duration
	cancel   context.CancelFunc
}

func (f *file) Read(b []byte) (int, error) {
	if len(f.head) > 0 {
		n := copy(b, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	if f.left <= 0 {
		// One byte more than allowed tells the end from an overrun.
		var one [1]byte
		n, err := f.wait(one[:])
		if n > 0 {
			return 0, fmt.Errorf("stripe: the file is over %d bytes", maxDocument)
		}
		return 0, err
	}
	if int64(len(b)) > f.left {
		b = b[:f.left]
	}
	n, err := f.wait(b)
	f.left -= int64(n)
	return n, err
}

func (f *file) wait(b []byte) (int, error) {
	start := time.Now()
	t := time.AfterFunc(f.patience, f.cancel)
	n, err := f.r.Read(b)
	t.Stop()
	f.patience += time.Duration(n)*time.Second/fileRate - time.Since(start)
	if f.patience <= 0 && !errors.Is(err, io.EOF) {
		f.cancel()
		return n, errors.New("stripe: the file comes too slowly")
	}
	return n, err
}

func (f *file) Close() error {
	err := f.r.Close()
	f.cancel()
	return err
}

// checkFile reports whether a document may be fetched from u.
func (p *Provider) checkFile(u *url.URL) error {
	host := strings.ToLower(u.Hostname())
	switch {
	case u.User != nil:
		return errors.New("the file's address carries a user name")
	case p.loopback && isLoopback(host) && (u.Scheme == "http" || u.Scheme == "https"):
		return nil
	case u.Scheme != "https":
		return errors.New("the file's address is not https")
	case u.Port() != "" && u.Port() != "443", !slices.Contains(p.hosts, host):
		return fmt.Errorf("the file is on host %q, which is not allowed; add it to the files hosts if it is Stripe's", u.Host)
	}
	return nil
}

func (p *Provider) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > 3 {
		return errors.New("the file's address redirects more than three times")
	}
	// A Referer would hand the address before to the next host.
	req.Header.Del("Referer")
	return p.checkFile(req.URL)
}
