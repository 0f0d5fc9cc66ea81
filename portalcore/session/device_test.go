package session_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/session"
)

func TestParseDevice(t *testing.T) {
	for _, tt := range []struct{ ua, want string }{
		{"Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0", "Firefox on Linux"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0", "Firefox on Windows"},
		{"Mozilla/5.0 (Android 15; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0", "Firefox on Android"},
		{"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/145.0 Mobile/15E148 Safari/605.1.15", "Firefox on iOS"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36", "Chrome on Windows"},
		{"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36", "Chrome on ChromeOS"},
		{"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36", "Chrome on Android"},
		{"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/142.0.7444.77 Mobile/15E148 Safari/604.1", "Chrome on iOS"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0", "Edge on Windows"},
		{"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36 EdgA/142.0.0.0", "Edge on Android"},
		{"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 OPR/125.0.0.0", "Opera on Linux"},
		{"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/29.0 Chrome/136.0.0.0 Mobile Safari/537.36", "Samsung Internet on Android"},
		{"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Safari/605.1.15", "Safari on macOS"},
		{"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Mobile/15E148 Safari/604.1", "Safari on iOS"},
		{"Mozilla/5.0 (iPad; CPU OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1", "Safari on iPadOS"},
		{"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/142.0.0.0 Safari/537.36", "Unknown browser on Linux"},
		{"Mozilla/5.0 (X11; FreeBSD amd64; rv:145.0) Gecko/20100101 Firefox/145.0", "Firefox on FreeBSD"},
		{"Mozilla/5.0 (PlayStation; PlayStation 5/11.00) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Safari/605.1.15", "Safari"},
		{"curl/8.14.1", "Unknown browser"},
		{"Go-http-client/2.0", "Unknown browser"},
		{"Googlebot/2.1 (+http://www.google.com/bot.html)", "Unknown browser"},
		{"", "Unknown browser"},
		{"Mozilla/5.0 (", "Unknown browser"},
		{"Mozilla/5.0 (Linux) Firefox/1\r\nSet-Cookie: a=b", "Firefox on Linux"},
		{"Mozilla/5.0 (<script>alert(1)</script>) Firefox/1 <img src=x>", "Firefox"},
		{"Mozilla/5.0 (\x00\x1b[31m) \u202eFirefox/1", "Unknown browser"},
		{"Mozilla/5.0 (X11; Linux x86_64) " + strings.Repeat("A", 10_000) + " Firefox/145.0", "Unknown browser on Linux"},
		{strings.Repeat("Mozilla/5.0 (", 1000), "Unknown browser"},
	} {
		if got := session.ParseDevice(tt.ua).String(); got != tt.want {
			t.Errorf("%.120q: got %q, want %q", tt.ua, got, tt.want)
		}
	}
}

// FuzzParseDevice holds that a header can choose among our words and add none.
func FuzzParseDevice(f *testing.F) {
	f.Add("Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0")
	f.Add("Mozilla/5.0 (iPhone) Version/1 Safari/1")
	f.Add("\xff\xfe Mozilla")
	browsers := strings.Split(",Edge,Opera,Samsung Internet,Vivaldi,Yandex Browser,DuckDuckGo,SeaMonkey,Firefox,Chrome,Safari", ",")
	systems := strings.Split(",iOS,iPadOS,Android,ChromeOS,Windows,macOS,Linux,FreeBSD,OpenBSD", ",")
	f.Fuzz(func(t *testing.T, ua string) {
		d := session.ParseDevice(ua)
		if !slices.Contains(browsers, d.Browser) || !slices.Contains(systems, d.System) {
			t.Errorf("%q gave %+v", ua, d)
		}
	})
}
