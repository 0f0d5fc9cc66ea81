package pages

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	maxBody   = 64 << 10
	maxFields = 100
	maxID     = 128
)

// form are the fields of a request. A field is there once or not at all.
type form map[string]string

var errForm = errors.New("malformed form")

// parseForm reads application/x-www-form-urlencoded. A field that is there
// twice is an error, so that nobody downstream can prefer another one; so are
// more than maxFields fields, a bad escape and bytes that are not UTF-8.
func parseForm(s string) (form, error) {
	if s == "" {
		return nil, nil
	}
	if strings.Count(s, "&") >= maxFields {
		return nil, errForm
	}
	values, err := url.ParseQuery(s)
	if err != nil {
		return nil, errForm
	}
	f := make(form, len(values))
	for name, all := range values {
		if len(all) != 1 || !utf8.ValidString(name) || !utf8.ValidString(all[0]) {
			return nil, errForm
		}
		f[name] = all[0]
	}
	return f, nil
}

// acceptQuery reads the query; a malformed one is refused.
func (v *visit) acceptQuery() bool {
	f, err := parseForm(v.r.URL.RawQuery)
	if err != nil {
		v.badRequest()
		return false
	}
	v.form = f
	return true
}

// acceptPost is the gate of everything that changes something: the request
// comes from a page of ours (Fetch Metadata, or an exact Origin where a browser
// has none), and its body is a small plain form. Fields that a handler does not
// ask for go nowhere.
func (v *visit) acceptPost() bool {
	if !v.fromOurPage() {
		v.message(http.StatusForbidden, templates.Message{Kind: "form_aged"})
		return false
	}
	if !plainForm(v.r.Header) {
		v.w.Header().Set("Accept-Post", formType)
		v.message(http.StatusUnsupportedMediaType, templates.Message{Kind: "bad_request"})
		return false
	}
	body, err := io.ReadAll(http.MaxBytesReader(v.w, v.r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		v.message(http.StatusRequestEntityTooLarge, templates.Message{Kind: "too_large"})
		return false
	case err != nil:
		v.badRequest()
		return false
	}
	// What counts is in the body: a query beside it could only contradict it.
	if v.form, err = parseForm(string(body)); err != nil || v.r.URL.RawQuery != "" {
		v.badRequest()
		return false
	}
	return true
}

// fromOurPage reports whether a browser says that a page of this origin sent
// the request.
func (v *visit) fromOurPage() bool {
	switch site := v.r.Header["Sec-Fetch-Site"]; len(site) {
	case 1:
		return site[0] == "same-origin"
	case 0:
		origin := v.r.Header["Origin"]
		return len(origin) == 1 && origin[0] == v.Origin
	}
	return false
}

const formType = "application/x-www-form-urlencoded"

func plainForm(h http.Header) bool {
	types := h["Content-Type"]
	if len(types) != 1 || len(h["Content-Encoding"]) > 0 {
		return false
	}
	mediaType, params, err := mime.ParseMediaType(types[0])
	if err != nil || mediaType != formType {
		return false
	}
	for name, value := range params {
		if name != "charset" || !strings.EqualFold(value, "utf-8") {
			return false
		}
	}
	return true
}

// plainNavigation reports whether the browser says that somebody of this site
// opened the link in a tab: not a prefetch, a scanner, a mail, a typed address
// or a foreign page.
func plainNavigation(r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	for _, prefetch := range []string{"Sec-Purpose", "Purpose", "X-Moz", "X-Purpose"} {
		if len(r.Header[prefetch]) > 0 {
			return false
		}
	}
	is := func(name string, want ...string) bool {
		got := r.Header[name]
		return len(got) == 1 && slices.Contains(want, got[0])
	}
	return is("Sec-Fetch-Mode", "navigate") && is("Sec-Fetch-Dest", "document") &&
		is("Sec-Fetch-Site", "same-origin", "same-site")
}

// cookieValues returns all values that come under the session cookie's exact
// name. It is stricter than net/http, which trims names and drops quotes:
// where two parsers disagree, somebody's cookie gets in.
func (v *visit) cookieValues() []string {
	var found []string
	for _, line := range v.r.Header["Cookie"] {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			name, value, ok := strings.Cut(strings.TrimLeft(pair, " \t"), "=")
			if ok && name == v.cookie {
				found = append(found, value)
			}
		}
	}
	return found
}

// sessionCookie is the one value of our cookie, or "": of two, one may be
// somebody else's.
func (v *visit) sessionCookie() string {
	if values := v.cookieValues(); len(values) == 1 {
		return values[0]
	}
	return ""
}

func (v *visit) setCookie(value string) {
	v.w.Header().Set("Set-Cookie", v.cookie+"="+value+v.cookieEnd)
}

func (v *visit) expireCookie() {
	v.w.Header().Set("Set-Cookie", v.cookie+"="+v.cookieEnd+"; Max-Age=0")
}

// validID reports whether s has the form of an id: at most 128 of the
// characters that providers and we use, none of which means anything in a
// path, a query or a header.
func validID(s string) bool {
	if s == "" || len(s) > maxID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// parseQuantity reads a whole number as people write it: ASCII digits, at most
// seven of them.
func parseQuantity(s string) (int64, bool) {
	s = strings.Trim(s, " ")
	if s == "" || len(s) > 7 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// ParseOrigin checks a portal's origin: what a browser's Origin header says,
// letter by letter; https, or http on this machine.
func ParseOrigin(s string) (*url.URL, error) {
	if s == "" {
		return nil, errors.New("origin is required: the portal's own, like https://billing.example.com")
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme+"://"+u.Host != s || u.Host == "" || s != strings.ToLower(s) {
		return nil, fmt.Errorf("origin %q: want scheme and host (and port) in lower case and nothing else, like https://billing.example.com", s)
	}
	if p := u.Port(); p == "" && strings.HasSuffix(u.Host, ":") || u.Scheme == "https" && p == "443" || u.Scheme == "http" && p == "80" {
		return nil, fmt.Errorf("origin %q: leave the default port out, as browsers do", s)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, fmt.Errorf("origin %q: want https (http only on localhost, for trying out)", s)
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// webURL reports whether a browser may be sent to s: https, or http on a
// loopback host, in printable ASCII without anything that parsers read
// differently.
func webURL(s string) (*url.URL, bool) {
	if s == "" || len(s) > 4096 {
		return nil, false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ', c > '~', c == '\\', c == '"', c == '<', c == '>', c == '`':
			return nil, false
		}
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Opaque != "" || u.Hostname() == "" {
		return nil, false
	}
	if u.Scheme == "https" || u.Scheme == "http" && (loopback(u.Hostname()) || strings.HasSuffix(u.Hostname(), ".localhost")) {
		return u, true
	}
	return nil, false
}

func returnOrigins(urls []string) ([]string, error) {
	var origins []string
	for _, s := range urls {
		u, ok := webURL(s)
		if !ok {
			return nil, fmt.Errorf("pages: return URL %q must be https, or http on a loopback host", s)
		}
		origins = append(origins, u.Scheme+"://"+strings.ToLower(u.Host))
	}
	return origins, nil
}

// allowedReturn reports whether s leads to one of the origins. s has to begin
// with the origin, letter by letter, so that no reader of URLs can see another
// host in it.
func allowedReturn(s string, origins []string) bool {
	u, ok := webURL(s)
	if !ok {
		return false
	}
	for _, o := range origins {
		rest, ok := strings.CutPrefix(s, o)
		if ok && u.Scheme+"://"+u.Host == o && (rest == "" || strings.IndexByte("/?#", rest[0]) >= 0) {
			return true
		}
	}
	return false
}

// backURL leads back to the vendor's app.
func (v *visit) backURL() string {
	// Checked again: the allow-list may have changed since the link was used.
	if v.sess.ReturnURL != "" && allowedReturn(v.sess.ReturnURL, v.returns) {
		return v.sess.ReturnURL
	}
	return v.ReturnTo[0]
}
