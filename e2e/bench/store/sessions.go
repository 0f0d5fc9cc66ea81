//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

const (
	origin = "https://billing.example.com"
	host   = "billing.example.com"

	// perCustomer is how many sessions a customer has.
	perCustomer = 2

	// pages is how many pages are read, each of another session, and so with
	// nothing of it in any of the portal's caches.
	pages = 1000

	// turn is how many are read before it is another portal's turn.
	turn = 20

	userAgent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
)

func sessions(args []string) error {
	flags := flag.NewFlagSet("sessions", flag.ExitOnError)
	where := flags.String("dir", os.TempDir(), "where to write: a directory on a disk, with 4 GB of room")
	keep := flags.String("keep", "", "keep the stores in this directory, and use those that are there already")
	many := flags.Int("n", 1_000_000, "live sessions")
	rounds := flags.Int("rounds", 3, "times that each portal is started and read from")
	check := flags.Bool("check", false, "fail where a target is missed")
	_ = flags.Parse(args) // ends the program itself

	dir := *keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp(*where, "portal-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	sizes := []int{0, pages, *many}
	for _, n := range sizes {
		if _, err := os.Stat(filepath.Join(dir, fmt.Sprint(n)+".cookies")); err == nil {
			continue
		}
		load := command("sessions-load", dir, n)
		load.Stdout = os.Stdout
		if err := load.Run(); err != nil {
			return fmt.Errorf("loading: %w", err)
		}
	}
	memory, p99 := map[int][]int64{}, map[int][]time.Duration{}
	fmt.Printf("%8s %10s %12s %12s %12s\n", "round", "sessions", "RssAnon MB", "page p50", "page p99")
	for round := range *rounds {
		// All portals run side by side and are read from in turns, a few pages
		// each: whatever else the machine does, it does to all of them.
		portals := map[int]*portalProcess{}
		for _, n := range sizes {
			p, err := startPortal(dir, n)
			if err != nil {
				return err
			}
			portals[n] = p
		}
		took := map[int][]time.Duration{}
		for range pages / turn {
			for _, n := range sizes {
				some, err := portals[n].read()
				if err != nil {
					return err
				}
				took[n] = append(took[n], some...)
			}
		}
		for _, n := range sizes {
			anon, err := portals[n].end()
			if err != nil {
				return err
			}
			memory[n] = append(memory[n], anon)
			fmt.Printf("%8d %10d %12.1f", round+1, n, float64(anon)/1e6)
			if times := took[n]; len(times) > 0 {
				times = times[len(times)/10:] // code and templates are cold at first
				slices.Sort(times)
				p99[n] = append(p99[n], quantile(times, .99))
				fmt.Printf(" %12v %12v", quantile(times, .5).Round(time.Microsecond), quantile(times, .99).Round(time.Microsecond))
			}
			fmt.Println()
		}
	}
	above := float64(median(memory[*many])-median(memory[0])) / 1e6
	ratio := float64(median(p99[*many])) / float64(median(p99[pages]))
	return errors.Join(
		miss(*check, fmt.Sprintf("%.1f MB above the empty portal, less than 300", above), above < 300),
		miss(*check, fmt.Sprintf("p99 of a page is %.2f times that with %d sessions, at most 1.5", ratio, pages), ratio <= 1.5),
	)
}

// command runs this program for one portal.
func command(name, dir string, n int) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), os.Args[0], name, "-dir", filepath.Join(dir, fmt.Sprint(n)), "-n", fmt.Sprint(n))
	cmd.Stderr = os.Stderr
	return cmd
}

// portalProcess is a portal that reads pages when it is told to.
type portalProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func startPortal(dir string, n int) (*portalProcess, error) {
	p := &portalProcess{cmd: command("sessions-measure", dir, n)}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	var ready bool
	return p, p.out.Decode(&ready)
}

// read has the portal read a turn's pages, and returns how long each took.
func (p *portalProcess) read() (took []time.Duration, err error) {
	if _, err := fmt.Fprintln(p.in); err != nil {
		return nil, err
	}
	return took, p.out.Decode(&took)
}

// end ends the portal, and returns its anonymous resident memory.
func (p *portalProcess) end() (anon int64, err error) {
	if err := p.in.Close(); err != nil {
		return 0, err
	}
	if err := p.out.Decode(&anon); err != nil {
		return 0, err
	}
	return anon, p.cmd.Wait()
}

func childFlags(command string, args []string) (dir string, n int) {
	flags := flag.NewFlagSet(command, flag.ExitOnError)
	flags.StringVar(&dir, "dir", "", "the portal's directory")
	flags.IntVar(&n, "n", 0, "sessions")
	_ = flags.Parse(args) // ends the program itself
	return dir, n
}

func customer(i int) string { return fmt.Sprintf("cus_bench%08d", i/perCustomer) }

// sessionsLoad makes n sessions as links do, and writes down some of their
// cookies.
func sessionsLoad(args []string) error {
	dir, n := childFlags("sessions-load", args)
	sealer, err := newSealer()
	if err != nil {
		return err
	}
	db, err := badger.Open(dir, badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		return err
	}
	begin := time.Now()
	m := &session.Manager{
		Store: db, Tenant: host, Now: time.Now, Rand: rand.Reader, Idle: 2 * time.Hour, Absolute: 8 * time.Hour,
		DefaultRole: "owner", Log: zap.NewNop(),
	}
	cookies := make([]string, n)
	var (
		next atomic.Int64
		wg   sync.WaitGroup
		errs = make(chan error, writers)
	)
	for range writers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				now := time.Now()
				_, cookie, err := m.Redeem(context.Background(), link.Claims{
					Issuer: "bench", Subject: customer(i), ID: fmt.Sprintf("bench-link-%012d", i),
					IssuedAt: now.Add(time.Minute), Expires: now.Add(2 * time.Minute),
					Role: "owner", ReturnURL: "https://app.example.com/settings/billing", Locale: "en",
					Actor: link.Actor{ID: fmt.Sprintf("user_%08d", i), Email: fmt.Sprintf("user%d@example.com", i), Name: "Ada Lovelace"},
				}, false, "", userAgent)
				if err != nil {
					errs <- err
					return
				}
				cookies[i] = cookie
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	mrand.Shuffle(n, func(i, j int) { cookies[i], cookies[j] = cookies[j], cookies[i] })
	if err := os.WriteFile(dir+".cookies", []byte(strings.Join(cookies[:min(n, 50*pages)], "\n")), 0o600); err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	fmt.Printf("made %d sessions in %v\n", n, time.Since(begin).Round(time.Second))
	return nil
}

// everybody is a provider where every customer has the account of one.
type everybody struct {
	billing.Provider
	customer string
}

func (e everybody) Account(ctx context.Context, customer string) (billing.Account, error) {
	a, err := e.Provider.Account(ctx, e.customer)
	a.Customer.ID = customer
	return a, err
}

// sessionsMeasure opens the portal, reads some pages for each line of its input,
// and prints in JSON: true when it is ready, how long the pages took, and what
// memory it has in the end.
func sessionsMeasure(args []string) error {
	dir, _ := childFlags("sessions-measure", args)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sealer, err := newSealer()
	if err != nil {
		return err
	}
	db, err := badger.Open(dir, badger.Options{Sealer: sealer})
	if err != nil {
		return err
	}
	ledgerDir, err := os.MkdirTemp(filepath.Dir(dir), "ledger-")
	if err != nil {
		return err
	}
	books, err := badger.Open(ledgerDir, badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		return err
	}
	ledger, err := sandbox.Open(ctx, books, sandbox.Options{Now: time.Now, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	if _, err := sandbox.Seed(ctx, ledger); err != nil {
		return err
	}
	portal, err := portalcore.New(portalcore.Options{
		Tenant: portalcore.Tenant{
			Origin: origin, APIKeys: []string{"bpk_bench_0123456789abcdef"}, ReturnTo: []string{"https://app.example.com/settings"},
			Policies: map[string][]policy.Rule{"": {{Verdict: policy.Allow, Actions: []string{policy.ChangePlan, policy.Cancel}}}},
			Brand:    portalcore.Brand{Name: "Acme"},
			Idle:     2 * time.Hour, Absolute: 8 * time.Hour,
		},
		Store: db, Logger: zap.NewNop(), Process: "bench", ExclusiveStore: true,
		Provider: everybody{sandbox.NewProvider(ledger, nil, sandbox.ProviderOptions{Pages: origin + "/_sandbox"}), "cus_northwind"},
	})
	if err != nil {
		return err
	}
	if err := portal.Start(ctx); err != nil {
		return err
	}
	var background sync.WaitGroup
	background.Go(func() { portal.Run(ctx) })

	cookies, err := os.ReadFile(dir + ".cookies")
	if err != nil {
		return err
	}
	all := strings.Fields(string(cookies))
	mrand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if err := settle(dir); err != nil {
		return err
	}

	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(true); err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		now := all[:min(turn, len(all))]
		all = all[len(now):]
		took, err := readPages(portal, now)
		if err != nil {
			return err
		}
		if err := out.Encode(took); err != nil {
			return err
		}
	}
	runtime.GC()
	debug.FreeOSMemory()
	anon, err := anonymous()
	if err != nil {
		return err
	}
	if err := out.Encode(anon); err != nil {
		return err
	}
	cancel()
	background.Wait()
	portal.Close()
	return errors.Join(db.Close(), books.Close(), os.RemoveAll(ledgerDir))
}

// settle waits until compactions have nothing left to do: a portal that has a
// million sessions did not get them a moment ago.
func settle(dir string) error {
	var before []string
	for quiet := 0; quiet < 30; quiet++ { // 3 s
		tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		if err != nil {
			return err
		}
		if !slices.Equal(tables, before) {
			before, quiet = tables, 0
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// readPages reads the overview of each session, and returns how long each took.
func readPages(h http.Handler, cookies []string) ([]time.Duration, error) {
	var took []time.Duration
	for _, cookie := range cookies {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, origin+"/", nil)
		r.Header.Set("Cookie", "__Host-bp="+cookie)
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.Header.Set("Sec-Fetch-Mode", "navigate")
		r.Header.Set("Sec-Fetch-Dest", "document")
		w := httptest.NewRecorder()
		begin := time.Now()
		h.ServeHTTP(w, r)
		took = append(took, time.Since(begin))
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "Northwind") {
			return nil, fmt.Errorf("a page: %d %.500s", w.Code, w.Body)
		}
	}
	return took, nil
}

// anonymous is the resident memory that no file stands behind.
func anonymous() (int64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var kb int64
		if _, err := fmt.Sscanf(lines.Text(), "RssAnon: %d kB", &kb); err == nil {
			return kb << 10, nil
		}
	}
	return 0, errors.New("/proc/self/status has no RssAnon")
}
