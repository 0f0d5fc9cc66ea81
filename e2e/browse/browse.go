// Package browse is a browser without a window: cookies, the headers that
// browsers send with a navigation, and the forms of the pages it is shown.
package browse

import (
	"context"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Visitor is one browser at one portal. It is safe for concurrent use.
type Visitor struct {
	Portal string // its origin
	Client *http.Client
}

// New returns a browser without cookies. It follows no redirect. A nil
// transport is one of its own.
func New(portal string, transport *http.Transport) *Visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		panic(err) // never, without options
	}
	if transport == nil {
		transport = &http.Transport{}
	}
	return &Visitor{Portal: portal, Client: &http.Client{
		Jar: jar, Timeout: 2 * time.Minute, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Page is an answer.
type Page struct {
	Status   int
	Location string
	Body     string
	Header   http.Header
}

// Do navigates to target, a path of the portal's or a URL. site is the
// Sec-Fetch-Site that the browser sends. A nil form is a GET, else a POST of
// it. An error means that no whole answer came.
func (v *Visitor) Do(ctx context.Context, target, site string, form url.Values) (Page, error) {
	if strings.HasPrefix(target, "/") {
		target = v.Portal + target
	}
	method, body := http.MethodGet, io.Reader(nil)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	r, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return Page{}, err
	}
	r.Header.Set("Sec-Fetch-Site", site)
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Dest", "document")
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", v.Portal)
	}
	res, err := v.Client.Do(r)
	if err != nil {
		return Page{}, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	return Page{res.StatusCode, res.Header.Get("Location"), string(raw), res.Header}, err
}

// Form is a form of a page: where it posts to, with its hidden and prefilled
// fields.
type Form struct {
	Action string
	Fields url.Values
}

var (
	formRE  = regexp.MustCompile(`(?s)<form[^>]*action="([^"]*)"[^>]*>(.*?)</form>`)
	inputRE = regexp.MustCompile(`<(?:input|button)[^>]*>`)
	attrRE  = regexp.MustCompile(`([a-z-]+)="([^"]*)"`)
)

// Forms reads a page's forms.
func (p Page) Forms() []Form {
	found := formRE.FindAllStringSubmatch(p.Body, -1)
	list := make([]Form, 0, len(found))
	for _, m := range found {
		f := Form{Action: html.UnescapeString(m[1]), Fields: url.Values{}}
		for _, in := range inputRE.FindAllString(m[2], -1) {
			attr := map[string]string{}
			for _, a := range attrRE.FindAllStringSubmatch(in, -1) {
				attr[a[1]] = html.UnescapeString(a[2])
			}
			if attr["name"] != "" && attr["type"] != "radio" && attr["type"] != "checkbox" && attr["type"] != "submit" {
				f.Fields.Add(attr["name"], attr["value"])
			}
		}
		list = append(list, f)
	}
	return list
}

// Form returns the first form that posts to where action begins.
func (p Page) Form(action string) (Form, bool) {
	for _, f := range p.Forms() {
		if strings.HasPrefix(f.Action, action) {
			return f, true
		}
	}
	return Form{}, false
}
