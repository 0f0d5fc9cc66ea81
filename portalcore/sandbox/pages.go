package sandbox

import (
	"bytes"
	_ "embed"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"strings"

	"go.uber.org/zap"
)

var (
	//go:embed pages/pages.html
	pagesHTML string
	//go:embed pages/style.css
	pagesCSS []byte

	pages = template.Must(template.New("pages").Parse(pagesHTML))
)

// page is what the templates show.
type page struct {
	Title, Error, Text, Target string
	Cards, Accounts            []shownCard
	Seller, Amount, Last4      string
	Number                     string // of the invoice
}

type shownCard struct{ Number, Grouped, Text string }

// Pages are the sandbox's own pages, where a customer enters a card or an account
// (card/{checkout session}), and pays an invoice or confirms its payment
// (confirm/{payment intent}).
// They stand for the provider's hosted pages: whoever knows the id in the URL
// may use it, and nothing else is shown. Mount them with http.StripPrefix; all
// their links are relative.
func (l *Ledger) Pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /style.css", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/css; charset=utf-8")
		rw.Header().Set("Cache-Control", "max-age=300")
		if _, err := rw.Write(pagesCSS); err != nil {
			return // the client went away
		}
	})
	mux.HandleFunc("GET /card/{id}", l.showCard)
	mux.HandleFunc("POST /card/{id}", l.enterCard)
	mux.HandleFunc("GET /confirm/{id}", l.showConfirm)
	mux.HandleFunc("POST /confirm/{id}", l.answerConfirm)
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(rw, r.Body, 4<<10)
		guarded.ServeHTTP(rw, r)
	})
}

func (l *Ledger) render(rw http.ResponseWriter, status int, name string, p page) {
	var buf bytes.Buffer
	if err := pages.ExecuteTemplate(&buf, name, p); err != nil {
		l.opts.Logger.Error("sandbox: rendering a page", zap.Error(err))
		http.Error(rw, "internal error", http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.WriteHeader(status)
	if _, err := rw.Write(buf.Bytes()); err != nil {
		return // the client went away
	}
}

// failed answers a call of the ledger that failed.
func (l *Ledger) failed(rw http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*Error](err); ok {
		status := http.StatusConflict
		if e.Code == "resource_missing" {
			status = http.StatusNotFound
		}
		l.render(rw, status, "leave", page{Title: "Nothing to do here", Text: "This page was used already, or it was never there. Please go back to where you came from."})
		return
	}
	l.opts.Logger.Error("sandbox: serving a page", zap.Error(err))
	l.render(rw, http.StatusInternalServerError, "leave", page{Title: "Something went wrong", Text: "Please try again."})
}

// leave sends the customer back. A form may not be redirected to another
// origin (CSP form-action), so there a page of our own goes on by itself.
func (l *Ledger) leave(rw http.ResponseWriter, r *http.Request, target, title string) {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	if u, err := url.Parse(target); err == nil && u.Host == r.Host && u.Scheme == scheme {
		http.Redirect(rw, r, target, http.StatusSeeOther)
		return
	}
	p := page{Title: title, Text: "You can close this page.", Target: target}
	if target != "" {
		p.Text = "Taking you back."
		rw.Header().Set("Refresh", "0; url="+target)
	}
	l.render(rw, http.StatusOK, "leave", p)
}

func cardPage(problem string) page {
	p := page{Title: "Add a card", Error: problem, Accounts: shown(TestAccounts)}
	p.Cards = shown(TestCards)
	return p
}

func shown(known []TestCard) []shownCard {
	list := make([]shownCard, 0, len(known))
	for _, c := range known {
		n := c.Number
		if len(n) == 16 && c.Type == "" {
			n = strings.Join([]string{n[:4], n[4:8], n[8:12], n[12:]}, " ")
		}
		list = append(list, shownCard{Number: c.Number, Grouped: n, Text: c.Text})
	}
	return list
}

// payPage is where a customer pays an invoice by hand.
func payPage(pi PaymentIntent, number, problem string) page {
	p := cardPage(problem)
	p.Title, p.Seller, p.Amount, p.Number = "Pay an invoice", seller, formatMinor(pi.Amount, pi.Currency), number
	return p
}

func (l *Ledger) showCard(rw http.ResponseWriter, r *http.Request) {
	s, err := l.CheckoutSession(r.Context(), r.PathValue("id"))
	switch {
	case err != nil:
		l.failed(rw, err)
	case s.Status == SessionComplete:
		l.leave(rw, r, s.successURL(), "Your card was added")
	case s.Status == SessionExpired:
		l.leave(rw, r, s.CancelURL, "This page has expired")
	default:
		l.render(rw, http.StatusOK, "card", cardPage(""))
	}
}

// successURL has the session's id filled in, as Stripe does it.
func (s CheckoutSession) successURL() string {
	return strings.ReplaceAll(s.SuccessURL, "{CHECKOUT_SESSION_ID}", s.ID)
}

func (l *Ledger) enterCard(rw http.ResponseWriter, r *http.Request) {
	s, err := l.CheckoutSession(r.Context(), r.PathValue("id"))
	if err != nil {
		l.failed(rw, err)
		return
	}
	if s.Status != SessionOpen {
		l.showCard(rw, r)
		return
	}
	if r.PostFormValue("do") == "cancel" { // the session stays open, as at Stripe
		l.leave(rw, r, s.CancelURL, "No card was added")
		return
	}
	s, err = l.CompleteSession(r.Context(), Call{}, s.ID, CardParams{Number: r.PostFormValue("card")})
	var e *Error
	switch {
	case errors.As(err, &e) && (e.Code == "card_declined" || e.Code == "incorrect_number"):
		l.render(rw, http.StatusUnprocessableEntity, "card", cardPage(e.Message))
	case err != nil:
		l.failed(rw, err)
	default:
		l.leave(rw, r, s.successURL(), "Your card was added")
	}
}

func (l *Ledger) showConfirm(rw http.ResponseWriter, r *http.Request) {
	pi, err := l.PaymentIntent(r.Context(), r.PathValue("id"))
	if err != nil {
		l.failed(rw, err)
		return
	}
	if pi.Status != RequiresAction {
		title := "There is nothing to confirm"
		switch {
		case pi.Status == RequiresPaymentMethod && pi.LastErrorCode != "payment_intent_authentication_failure":
			inv, err := l.Invoice(r.Context(), pi.Invoice)
			if err != nil {
				l.failed(rw, err)
				return
			}
			l.render(rw, http.StatusOK, "pay", payPage(pi, inv.Number, ""))
			return
		case pi.Status == PaymentProcessing:
			title = "The payment is on its way"
		case pi.Status == PaymentSucceeded:
			title = "The payment is confirmed"
		case pi.LastErrorCode == "payment_intent_authentication_failure":
			title = "You declined the payment"
		}
		l.leave(rw, r, pi.ReturnURL, title)
		return
	}
	pm, err := l.PaymentMethod(r.Context(), pi.PaymentMethod)
	if err != nil {
		l.failed(rw, err)
		return
	}
	l.render(rw, http.StatusOK, "confirm", page{Title: "Confirm your payment", Seller: seller, Amount: formatMinor(pi.Amount, pi.Currency), Last4: pm.Last4})
}

func (l *Ledger) answerConfirm(rw http.ResponseWriter, r *http.Request) {
	do := r.PostFormValue("do")
	if do == "pay" {
		l.payByHand(rw, r)
		return
	}
	if do != "confirm" && do != "decline" {
		l.showConfirm(rw, r)
		return
	}
	_, err := l.ConfirmPayment(r.Context(), Call{}, r.PathValue("id"), do == "confirm")
	var e *Error
	if err != nil && (!errors.As(err, &e) || e.Code == "resource_missing") {
		l.failed(rw, err)
		return
	}
	l.showConfirm(rw, r) // says what it is now, also where somebody was faster
}

func (l *Ledger) payByHand(rw http.ResponseWriter, r *http.Request) {
	pi, err := l.PayByHand(r.Context(), Call{}, r.PathValue("id"), CardParams{Number: r.PostFormValue("card")})
	e, refused := errors.AsType[*Error](err)
	switch {
	case refused && (e.Type == CardError || e.Code == "incorrect_number" || e.Code == "parameter_invalid"):
		inv, ierr := l.Invoice(r.Context(), pi.Invoice)
		if ierr != nil {
			l.failed(rw, ierr)
			return
		}
		l.render(rw, http.StatusUnprocessableEntity, "pay", payPage(pi, inv.Number, e.Message))
	case err != nil && (!refused || e.Code == "resource_missing"):
		l.failed(rw, err)
	default:
		l.showConfirm(rw, r) // says what it is now, also where somebody was faster
	}
}
