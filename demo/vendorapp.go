// Package demo is a small vendor's app, the other half of the demo: customers
// sign in here, and its settings page links to the billing portal. It uses the
// portal as any app would, over HTTP with an API key; billing.go is the part
// to copy.
package demo

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"embed"
	"fmt"
	"html/template"
	"log"
	"net/http"
	"strings"
	"sync"
	"time"
)

//go:embed pages.html app.css icon.svg
var files embed.FS

// Logo is the vendor's logo, an SVG.
func Logo() []byte {
	b, err := files.ReadFile("icon.svg")
	if err != nil {
		panic(err) // it is embedded
	}
	return b
}

// Customer is somebody who can sign in. There are no passwords in a demo.
type Customer struct {
	ID    string `json:"id"` // at the payment provider
	Email string `json:"email"`
	Name  string `json:"name"`
}

// scenarios says, in a few words, what there is to see at the sandbox's
// customers.
var scenarios = map[string]string{
	"cus_northwind": "Basic, monthly in US dollars, four seats. Begin here.",
	"cus_globex":    "Team, yearly in euros with VAT, ten seats.",
	"cus_trial":     "In a trial that ends soon.",
	"cus_pastdue":   "Past due: the last payment was declined.",
	"cus_initech":   "A card that will be declined: an upgrade has to wait.",
	"cus_3ds":       "A bank that asks for confirmation.",
	"cus_new":       "No plan, no card, no invoices yet.",
	"cus_wayne":     "Two plans, paid with one card.",
	"cus_tyrell":    "Pays by usage: API calls by tiers, and a credit.",
	"cus_oscorp":    "Twelve plans and more than 500 invoices.",
	"cus_ending":    "Cancelled, and still running until the period ends.",
}

// Scenario is what there is to see at the customer, or "".
func (c Customer) Scenario() string { return scenarios[c.ID] }

// Options are what the app needs to know.
type Options struct {
	// Origin is the app's own, Portal the portal's: "http://localhost:8421".
	Origin, Portal string
	// APIKey is the portal's key for the app's backend.
	APIKey string
	// Customers can sign in.
	Customers []Customer
	// Log gets failures. Default: the standard logger.
	Log *log.Logger
	// Client asks the portal. Default: http.DefaultClient.
	Client *http.Client
}

// App is the vendor's app. Use New.
type App struct {
	origin, portal, apiKey string
	customers              []Customer
	customerOf             map[string]string // the "database": e-mail -> customer id
	log                    *log.Logger
	client                 *http.Client
	pages                  *template.Template
	handler                http.Handler

	mu       sync.Mutex
	sessions map[string]string // cookie -> e-mail
}

// cookieName is the app's session cookie. Cookies of localhost are shared by
// all its ports, so the name must differ from the portal's.
const cookieName = "acme_app_session"

// maxSessions bounds how many sign-ins are remembered.
const maxSessions = 1000

// New makes the app.
func New(o Options) (*App, error) {
	pages, err := template.ParseFS(files, "pages.html")
	if err != nil {
		return nil, fmt.Errorf("parsing the demo's pages: %w", err)
	}
	a := &App{
		origin: o.Origin, portal: o.Portal, apiKey: o.APIKey, customers: o.Customers,
		customerOf: make(map[string]string), sessions: make(map[string]string),
		log: cmp.Or(o.Log, log.Default()), client: cmp.Or(o.Client, http.DefaultClient), pages: pages,
	}
	for _, c := range o.Customers {
		a.customerOf[c.Email] = c.ID
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.welcome)
	mux.HandleFunc("POST /signin", a.signIn)
	mux.HandleFunc("POST /signout", a.signOut)
	mux.HandleFunc("GET /product", a.page("product"))
	mux.HandleFunc("GET /settings", a.page("settings"))
	mux.HandleFunc("GET /billing", a.billing)
	for _, name := range []string{"app.css", "icon.svg"} {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=300")
			http.ServeFileFS(w, r, files, name)
		})
	}
	// Forms of other origins must not sign anybody in or out.
	a.handler = a.guard(http.NewCrossOriginProtection().Handler(mux))
	return a, nil
}

// ServeHTTP answers the app's pages.
func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.handler.ServeHTTP(w, r) }

func (a *App) guard(next http.Handler) http.Handler {
	_, host, _ := strings.Cut(a.origin, "://")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != host { // a foreign name that was made to point here
			http.Error(w, "This demo answers "+a.origin+" only.", http.StatusMisdirectedRequest)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

// user returns the e-mail of whoever is signed in.
func (a *App) user(r *http.Request) (string, bool) {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return "", false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	email, ok := a.sessions[c.Value]
	return email, ok
}

func (a *App) welcome(w http.ResponseWriter, r *http.Request) {
	a.render(w, "signin", map[string]any{"Title": "Sign in", "Customers": a.customers})
}

func (a *App) signIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	email := r.PostFormValue("email")
	if _, ok := a.customerOf[email]; !ok {
		http.Error(w, "Nobody with that e-mail address has an account here.", http.StatusUnauthorized)
		return
	}
	id := rand.Text()
	a.mu.Lock()
	if len(a.sessions) >= maxSessions {
		clear(a.sessions)
	}
	a.sessions[id] = email
	a.mu.Unlock()
	//nolint:gosec // G124: the demo is plain http on this machine, where Secure cookies do not work in every browser
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: id, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/product", http.StatusSeeOther)
}

func (a *App) signOut(w http.ResponseWriter, r *http.Request) {
	if c, err := r.Cookie(cookieName); err == nil {
		a.mu.Lock()
		delete(a.sessions, c.Value)
		a.mu.Unlock()
	}
	//nolint:gosec // G124: see signIn
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: -1, Expires: time.Unix(1, 0)})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// page shows a page to somebody who is signed in.
func (a *App) page(name string) http.HandlerFunc {
	title := strings.ToUpper(name[:1]) + name[1:]
	return func(w http.ResponseWriter, r *http.Request) {
		email, ok := a.user(r)
		if !ok {
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		var who Customer
		for _, c := range a.customers {
			if c.Email == email {
				who = c
			}
		}
		a.render(w, name, map[string]any{"Title": title, "Customer": who, "Current": name})
	}
}

func (a *App) render(w http.ResponseWriter, name string, data any) {
	var b bytes.Buffer
	if err := a.pages.ExecuteTemplate(&b, name, data); err != nil {
		a.log.Printf("rendering %s: %v", name, err)
		http.Error(w, "This page could not be shown.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = b.WriteTo(w) // the visitor may be gone
}
