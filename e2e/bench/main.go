// Command bench measures what the portal costs: the warm overview of a
// signed-in customer against Caddy's own respond with a body of the same size.
// It builds Caddy, starts the demo and a plain Caddy on loopback, and loads
// the two in turn, so that a machine that slows down slows both:
//
//	go run ./e2e/bench
//
// It prints requests per second, latencies, the ratio of each round and their
// median. Where the portal's share goes is seen by
// go test ./portalcore/pages -run '^$' -bench Overview -cpuprofile FILE.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds, conns int
	round         time.Duration
	customer      string
	min           float64
}

func run() error {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each")
	flag.IntVar(&o.conns, "conns", 32, "connections at once")
	flag.DurationVar(&o.round, "round", 5*time.Second, "length of a round")
	flag.StringVar(&o.customer, "customer", "cus_pastdue", "whose overview")
	flag.Float64Var(&o.min, "min", 0, "fail where the median ratio is below")
	flag.Parse()

	dir, err := os.MkdirTemp("", "portal-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "caddy")
	build := exec.Command("go", "build", "-o", bin, "./cmd/caddy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy: %w\n%s", err, out)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	portal, err := startDemo(ctx, bin, dir)
	if err != nil {
		return err
	}
	cookie, body, err := signIn(portal, o.customer)
	if err != nil {
		return err
	}
	if len(body) < 10_000 {
		return fmt.Errorf("the overview has %d bytes: choose a customer with 10,000 or more", len(body))
	}
	plain, err := startRespond(ctx, bin, dir, body)
	if err != nil {
		return err
	}
	targets := []target{
		{"overview", hostOf(portal.Portal), "GET / HTTP/1.1\r\nHost: " + hostOf(portal.Portal) + "\r\nCookie: " + cookie + "\r\nAccept: text/html\r\n\r\n"},
		{"respond", plain, "GET / HTTP/1.1\r\nHost: " + plain + "\r\nCookie: " + cookie + "\r\nAccept: text/html\r\n\r\n"},
	}
	fmt.Printf("%s/%s, %d processors, %d connections, rounds of %s, bodies of %d bytes, uncompressed\n",
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), o.conns, o.round, len(body))
	for _, t := range targets { // warm up
		if _, err := load(t, o.conns, time.Second, len(body)); err != nil {
			return err
		}
	}
	var ratios []float64
	for round := range o.rounds {
		results := make([]result, len(targets))
		for i, t := range targets {
			if results[i], err = load(t, o.conns, o.round, len(body)); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
		r := results[0].perSecond / results[1].perSecond
		ratios = append(ratios, r)
		fmt.Printf("round %d: overview %s   respond %s   ratio %.2f\n", round+1, results[0], results[1], r)
	}
	slices.Sort(ratios)
	median := ratios[len(ratios)/2]
	fmt.Printf("median ratio %.2f [%.2f..%.2f]\n", median, ratios[0], ratios[len(ratios)-1])
	if median < o.min {
		return fmt.Errorf("the median ratio %.2f is below %.2f", median, o.min)
	}
	return nil
}

type demo struct {
	Portal string
	APIKey string `json:"api_key"`
}

func startDemo(ctx context.Context, bin, dir string) (demo, error) {
	cmd := exec.CommandContext(ctx, bin, "billing-portal", "demo", "--json", "--data-dir", filepath.Join(dir, "demo"))
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	cmd.Stderr = io.Discard
	out, err := cmd.StdoutPipe()
	if err != nil {
		return demo{}, err
	}
	if err := cmd.Start(); err != nil {
		return demo{}, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		return demo{}, fmt.Errorf("the demo did not start: %w", err)
	}
	var d demo
	return d, json.Unmarshal(line, &d)
}

func startRespond(ctx context.Context, bin, dir string, body []byte) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr := fmt.Sprintf("localhost:%d", l.Addr().(*net.TCPAddr).Port)
	l.Close()
	config, err := json.Marshal(map[string]any{
		"admin": map[string]any{"disabled": true, "config": map[string]any{"persist": false}},
		"apps": map[string]any{"http": map[string]any{"servers": map[string]any{"plain": map[string]any{
			"listen": []string{addr},
			"routes": []any{map[string]any{
				"match":  []any{map[string]any{"host": []string{"localhost"}}},
				"handle": []any{map[string]any{"handler": "static_response", "body": string(body), "headers": map[string][]string{"Content-Type": {"text/html; charset=utf-8"}}}},
			}},
			"automatic_https": map[string]any{"disable": true},
		}}}},
	})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "respond.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, bin, "run", "--config", file)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	if err := cmd.Start(); err != nil {
		return "", err
	}
	for range 100 {
		if res, err := http.Get("http://" + addr + "/"); err == nil {
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err == nil && bytes.Equal(got, body) {
				return addr, nil
			}
			return "", errors.New("respond does not answer with the overview's body")
		}
		time.Sleep(100 * time.Millisecond)
	}
	return "", errors.New("the plain Caddy did not start")
}

func hostOf(origin string) string {
	u, err := url.Parse(origin)
	if err != nil {
		return origin
	}
	return u.Host
}

// signIn mints a link, opens it, and returns the cookie and the overview. The
// pages are small, so the pseudo-locale with its longer texts is taken: it
// brings the overview above 10 kB.
func signIn(d demo, customer string) (string, []byte, error) {
	r, err := http.NewRequest(http.MethodPost, d.Portal+"/v1/billing_portal/sessions", strings.NewReader(url.Values{"customer": {customer}, "locale": {"en-XA"}}.Encode()))
	if err != nil {
		return "", nil, err
	}
	r.Header.Set("Authorization", "Bearer "+d.APIKey)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", nil, err
	}
	defer res.Body.Close()
	var link struct{ URL string }
	if err := json.NewDecoder(res.Body).Decode(&link); err != nil {
		return "", nil, err
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", nil, err
	}
	client := &http.Client{Jar: jar}
	r, err = http.NewRequest(http.MethodGet, link.URL, nil)
	if err != nil {
		return "", nil, err
	}
	for k, v := range map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"} {
		r.Header.Set(k, v)
	}
	page, err := client.Do(r)
	if err != nil {
		return "", nil, err
	}
	defer page.Body.Close()
	body, err := io.ReadAll(page.Body)
	if err != nil || page.StatusCode != http.StatusOK {
		return "", nil, fmt.Errorf("opening the overview: %s %w", page.Status, err)
	}
	var cookies []string
	for _, c := range jar.Cookies(page.Request.URL) {
		cookies = append(cookies, c.Name+"="+c.Value)
	}
	return strings.Join(cookies, "; "), body, nil
}

type target struct{ name, addr, request string }

type result struct {
	perSecond float64
	p50, p99  time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%6.0f/s (p50 %s, p99 %s)", r.perSecond, r.p50.Round(10*time.Microsecond), r.p99.Round(10*time.Microsecond))
}

// load sends one request after another on every connection for a while. It
// reads answers by hand: an HTTP client would cost more than what is measured.
func load(t target, conns int, d time.Duration, size int) (result, error) {
	var (
		mu    sync.Mutex
		all   []time.Duration
		first error
		wg    sync.WaitGroup
	)
	end := time.Now().Add(d)
	begin := time.Now()
	for range conns {
		wg.Go(func() {
			times, err := one(t, end, size)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
			if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	if first != nil {
		return result{}, first
	}
	slices.Sort(all)
	return result{float64(len(all)) / took.Seconds(), all[len(all)/2], all[len(all)*99/100]}, nil
}

func one(t target, end time.Time, size int) ([]time.Duration, error) {
	c, err := net.Dial("tcp", t.addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	request := []byte(t.request)
	var times []time.Duration
	for {
		begin := time.Now()
		if begin.After(end) {
			return times, nil
		}
		if _, err := c.Write(request); err != nil {
			return nil, err
		}
		n, err := answer(r)
		if err != nil {
			return nil, err
		}
		// Both are measured on the same number of bytes, or not at all.
		if n != size {
			return nil, fmt.Errorf("answered with %d bytes instead of %d", n, size)
		}
		times = append(times, time.Since(begin))
	}
}

// answer reads one answer and returns the length of its body.
func answer(r *bufio.Reader) (int, error) {
	length, chunked := 0, false
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
			return 0, fmt.Errorf("answered %q", line)
		}
		if len(line) <= 2 {
			break
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(v))); err != nil {
				return 0, err
			}
		}
		chunked = chunked || bytes.HasPrefix(line, []byte("Transfer-Encoding: chunked"))
	}
	if !chunked {
		return r.Discard(length)
	}
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return 0, err
		}
		if _, err := r.Discard(int(size) + 2); err != nil {
			return 0, err
		}
		if size == 0 {
			return length, nil
		}
		length += int(size)
	}
}
