package session

import "strings"

// Device is what a browser said it is when the session was made: the kind of
// browser and the system it runs on, from User-Agent. Both come from lists of
// ours or are "", so nothing of the header itself is kept or shown. It is a help
// to recognise one's own devices; a browser can claim anything.
type Device struct {
	Browser string `json:"browser,omitempty"` // "Firefox"
	System  string `json:"system,omitempty"`  // "Linux"
}

// String is "Firefox on Linux" with what is known, "Unknown browser" without a
// browser.
func (d Device) String() string {
	browser := d.Browser
	if browser == "" {
		browser = "Unknown browser"
	}
	if d.System == "" {
		return browser
	}
	return browser + " on " + d.System
}

// maxUserAgent is how much of a User-Agent is looked at. Browsers send under 300
// bytes.
const maxUserAgent = 1024

type sign struct{ mark, name string }

// browsers are product tokens. Browsers also name those that they descend from,
// which is why the order counts.
var browsers = []sign{
	{"Edg/", "Edge"},
	{"EdgA/", "Edge"},
	{"EdgiOS/", "Edge"},
	{"OPR/", "Opera"},
	{"OPT/", "Opera"},
	{"SamsungBrowser/", "Samsung Internet"},
	{"Vivaldi/", "Vivaldi"},
	{"YaBrowser/", "Yandex Browser"},
	{"DuckDuckGo/", "DuckDuckGo"},
	{"Ddg/", "DuckDuckGo"},
	{"SeaMonkey/", "SeaMonkey"},
	{"FxiOS/", "Firefox"},
	{"Firefox/", "Firefox"},
	{"CriOS/", "Chrome"},
	{"Chrome/", "Chrome"},
	{"Chromium/", "Chrome"},
	{"Safari/", "Safari"},
}

// systems are what stands in the first comment of a User-Agent. A phone's also
// names the system of a computer; an iPad says that it is a Mac, unless its
// owner turns that off.
var systems = []sign{
	{"iPhone", "iOS"},
	{"iPod", "iOS"},
	{"iPad", "iPadOS"},
	{"Android", "Android"},
	{"CrOS ", "ChromeOS"},
	{"Windows NT ", "Windows"},
	{"Macintosh", "macOS"},
	{"Linux", "Linux"},
	{"FreeBSD", "FreeBSD"},
	{"OpenBSD", "OpenBSD"},
}

// ParseDevice reads a User-Agent header (RFC 9110, section 10.1.5). What does
// not look like a browser's is a Device without a browser.
func ParseDevice(userAgent string) Device {
	ua := userAgent[:min(len(userAgent), maxUserAgent)]
	var d Device
	// Every browser begins so; a program that does not is none.
	rest, ok := strings.CutPrefix(ua, "Mozilla/5.0 (")
	if !ok {
		return d
	}
	comment, products, ok := strings.Cut(rest, ") ")
	if !ok {
		return d
	}
	for _, s := range systems {
		if strings.Contains(comment, s.mark) {
			d.System = s.name
			break
		}
	}
	for _, b := range browsers {
		if strings.Contains(" "+products, " "+b.mark) {
			d.Browser = b.name
			break
		}
	}
	if d.Browser == "Safari" && !strings.Contains(products, "Version/") {
		d.Browser = "" // an app's own window on a phone
	}
	return d
}
