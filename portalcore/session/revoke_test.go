package session_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"

func lives(t *testing.T, m *session.Manager, cookie string) bool {
	t.Helper()
	_, _, err := m.Read(t.Context(), cookie)
	if err != nil && !errors.Is(err, session.ErrNone) {
		t.Fatal(err)
	}
	return err == nil
}

func ids(t *testing.T, m *session.Manager, customer string, limit int) []string {
	t.Helper()
	list, err := m.List(t.Context(), customer, limit)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i := range list {
		out = append(out, list[i].ID())
	}
	return out
}

func TestList(t *testing.T) {
	m, c := newManager(t)
	if got := ids(t, m, "cus_1", 0); got != nil {
		t.Errorf("a stranger has sessions: %v", got)
	}
	claims := own(t, m, "cus_1")
	claims.Actor.Name = "Ann"
	first, cookie, err := m.Redeem(t.Context(), claims, true, "", firefox)
	if err != nil {
		t.Fatal(err)
	}
	c.advance(idle / 5)
	second, _ := redeem(t, m, "cus_1", "")
	redeem(t, m, "cus_2", "")
	if got, want := ids(t, m, "cus_1", 0), []string{second.ID(), first.ID()}; !slices.Equal(got, want) {
		t.Errorf("got %v, want the newest first: %v", got, want)
	}
	if got := ids(t, m, "cus_1", 1); !slices.Equal(got, []string{second.ID()}) {
		t.Errorf("one of them: %v", got)
	}
	if !lives(t, m, cookie) { // touches
		t.Fatal("it is over")
	}
	list, err := m.List(t.Context(), "cus_1", 0)
	if err != nil {
		t.Fatal(err)
	}
	got := list[1]
	if got.Device.String() != "Firefox on Linux" || got.Actor.Name != "Ann" || !got.Created.Equal(first.Created) || !got.Seen.Equal(c.Now()) {
		t.Errorf("listed as %+v", got)
	}
	if list[0].Device.String() != "Unknown browser" {
		t.Errorf("without a User-Agent: %v", list[0].Device)
	}
	if raw, _ := base64.RawURLEncoding.DecodeString(cookie); len(raw) == 0 || lives(t, m, strings.TrimPrefix(got.ID(), "ses_")) || strings.Contains(got.ID(), cookie[:20]) {
		t.Errorf("the public id %q must not sign anybody in", got.ID())
	}
	c.advance(idle / 2)
	if !lives(t, m, cookie) {
		t.Fatal("it is over")
	}
	c.advance(idle / 2) // since the second one was seen
	if got := ids(t, m, "cus_1", 0); !slices.Equal(got, []string{first.ID()}) {
		t.Errorf("after the idle limit of the second: %v", got)
	}
}

func TestLimit(t *testing.T) {
	m, c := newManager(t)
	m.Limit = 3
	var cookies []string
	for range 3 {
		_, cookie := redeem(t, m, "cus_1", "")
		cookies = append(cookies, cookie)
		c.advance(time.Minute)
	}
	c.advance(idle / 10)
	for _, i := range []int{0, 2} { // the second one is now the least recently used
		if !lives(t, m, cookies[i]) {
			t.Fatalf("session %d is over", i)
		}
		c.advance(time.Second)
	}
	redeem(t, m, "cus_2", "")
	_, fourth := redeem(t, m, "cus_1", "")
	for i, want := range []bool{true, false, true} {
		if got := lives(t, m, cookies[i]); got != want {
			t.Errorf("session %d lives: %v, want %v", i, got, want)
		}
	}
	if got := ids(t, m, "cus_1", 0); len(got) != 3 {
		t.Errorf("%d sessions, want 3", len(got))
	}
	// In place of the browser's own session nobody else's ends.
	redeem(t, m, "cus_1", fourth)
	if !lives(t, m, cookies[0]) || !lives(t, m, cookies[2]) || lives(t, m, fourth) {
		t.Error("a new link in a browser that is signed in ended another browser's session")
	}
	// Sessions that are over take no room.
	if err := m.End(t.Context(), cookies[0]); err != nil {
		t.Fatal(err)
	}
	redeem(t, m, "cus_1", "")
	if !lives(t, m, cookies[2]) || len(ids(t, m, "cus_1", 0)) != 3 {
		t.Error("a session that was signed out counted")
	}
	// One that was used a moment ago and is over by its absolute lifetime does
	// not push out one that lives.
	m.Limit = 2
	_, old := redeem(t, m, "cus_3", "")
	for range 17 {
		c.advance(28 * time.Minute)
		if !lives(t, m, old) {
			t.Fatal("over before its time")
		}
	}
	_, younger := redeem(t, m, "cus_3", "")
	c.advance(3 * time.Minute)
	if !lives(t, m, old) {
		t.Fatal("over before its time")
	}
	c.advance(2 * time.Minute)
	redeem(t, m, "cus_3", "")
	if !lives(t, m, younger) || lives(t, m, old) {
		t.Error("a session that is over pushed one out that lives")
	}
	m.Limit = 0
	for range session.DefaultLimit + 5 {
		redeem(t, m, "cus_1", "")
	}
	if got := ids(t, m, "cus_1", 0); len(got) != session.DefaultLimit {
		t.Errorf("%d sessions by default, want %d", len(got), session.DefaultLimit)
	}
}

// TestLimitIsExact holds the limit where links are redeemed at once, on two
// nodes.
func TestLimitIsExact(t *testing.T) { onTwoNodes(t, limitIsExact) }

func limitIsExact(t *testing.T, nodes []*session.Manager, _ *clock) {
	m := nodes[0]
	nodes[0].Limit, nodes[1].Limit = 5, 5
	for round := range 5 {
		customer := fmt.Sprintf("cus_%d", round)
		cookies := make([]string, 64)
		atOnce(64, func(i int) {
			_, cookie, err := nodes[i%2].Redeem(context.Background(), own(t, m, customer), true, "", "")
			if err != nil {
				t.Error(err)
			}
			cookies[i] = cookie
		})
		n := 0
		for _, cookie := range cookies {
			if lives(t, m, cookie) {
				n++
			}
		}
		if listed := ids(t, m, customer, 0); n != 5 || len(listed) != 5 {
			t.Fatalf("round %d: %d sessions live and %d are listed, want 5", round, n, len(listed))
		}
	}
}

func atOnce(n int, f func(i int)) {
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-begin
			f(i)
		})
	}
	close(begin)
	wg.Wait()
}

func TestRevokeOne(t *testing.T) {
	m, _ := newManager(t)
	one, a := redeem(t, m, "cus_1", "")
	_, b := redeem(t, m, "cus_1", "")
	other := sibling(m)
	for _, id := range []string{
		"", "ses_", one.Hash, "ses_" + one.Hash + "A", "ses_" + one.Hash[:42], "ses_" + strings.Repeat("A", 43), "SES_" + one.Hash,
		a, "ses_" + a, "ses_\x00", "ses_" + strings.Repeat("A", 1<<20), "ses_" + one.Hash[:42] + "=",
	} {
		if err := m.Revoke(t.Context(), "cus_1", id); !errors.Is(err, session.ErrNone) {
			t.Errorf("%.60q: got %v, want ErrNone", id, err)
		}
	}
	if err := m.Revoke(t.Context(), "cus_2", one.ID()); !errors.Is(err, session.ErrNone) {
		t.Errorf("another customer's: got %v, want ErrNone", err)
	}
	if !lives(t, m, a) {
		t.Fatal("ended by that")
	}
	if err := other.Revoke(t.Context(), "cus_1", one.ID()); err != nil {
		t.Fatal(err)
	}
	if lives(t, m, a) || lives(t, other, a) || !lives(t, m, b) {
		t.Error("want that session ended, on both nodes, and no other")
	}
	if err := m.Revoke(t.Context(), "cus_1", one.ID()); !errors.Is(err, session.ErrNone) {
		t.Errorf("again: got %v, want ErrNone", err)
	}
	two := ids(t, m, "cus_1", 0)
	if len(two) != 1 {
		t.Fatalf("listed: %v", two)
	}
	if err := m.Revoke(t.Context(), "", two[0]); err != nil || lives(t, m, b) {
		t.Errorf("by its id alone: %v", err)
	}
	foreign := sibling(m)
	foreign.Tenant = "billing.other.example"
	three, c := redeem(t, m, "cus_1", "")
	if err := foreign.Revoke(t.Context(), "cus_1", three.ID()); !errors.Is(err, session.ErrNone) || !lives(t, m, c) {
		t.Errorf("another tenant ended it: %v", err)
	}
}

func TestRevokeAll(t *testing.T) {
	m, c := newManager(t)
	foreign := sibling(m)
	foreign.Tenant = "billing.other.example"
	_, a := redeem(t, m, "cus_1", "")
	_, b := redeem(t, m, "cus_2", "")
	_, theirs, err := foreign.Redeem(t.Context(), own(t, m, "cus_1"), true, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := foreign.RevokeCustomer(t.Context(), "cus_1"); err != nil {
		t.Fatal(err)
	}
	if lives(t, foreign, theirs) || !lives(t, m, a) {
		t.Error("the other tenant's customer of that name, and nobody else, is to be signed out")
	}
	if err := m.RevokeCustomer(t.Context(), "cus_1"); err != nil {
		t.Fatal(err)
	}
	if lives(t, m, a) || !lives(t, m, b) || len(ids(t, m, "cus_1", 0)) != 0 {
		t.Error("want cus_1 signed out and cus_2 not")
	}
	_, a = redeem(t, m, "cus_1", "")
	for range 2 {
		if err := sibling(m).RevokeTenant(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if lives(t, m, a) || lives(t, m, b) || len(ids(t, m, "cus_1", 0)) != 0 {
		t.Error("the whole tenant was to be signed out")
	}
	_, a = redeem(t, m, "cus_1", "")
	c.advance(time.Hour / 4)
	if !lives(t, m, a) || len(ids(t, m, "cus_1", 0)) != 1 {
		t.Error("a session made after the revocation is to live")
	}
	if err := m.RevokeCustomer(t.Context(), "cus_9"); err != nil {
		t.Fatal(err)
	}
	if values, err := m.Store.GetAll(t.Context(), session.CustomerKey(m.Tenant, "cus_9")); err != nil || values[0] != nil {
		t.Errorf("revoking nothing wrote %s, %v", values[0], err)
	}
}

// TestRevokeRacesWithRedeem revokes while 64 links are redeemed, some by a
// browser that is signed in. The store puts the transactions into an order:
// whoever came before the revocation has its epoch from before it and is over
// when the revocation has returned, and so is everybody who was told of a
// session before the revocation was asked for.
func TestRevokeRacesWithRedeem(t *testing.T) {
	for _, what := range []string{"customer", "tenant"} {
		t.Run(what, func(t *testing.T) {
			onTwoNodes(t, func(t *testing.T, nodes []*session.Manager, _ *clock) { revokeRaces(t, nodes, what) })
		})
	}
}

func revokeRaces(t *testing.T, nodes []*session.Manager, what string) {
	m, other := nodes[0], nodes[1]
	m.Limit = session.MaxLimit
	var before, after int
	for range 10 {
		type made struct {
			s      session.Session
			cookie string
			early  bool // known before the revocation was asked for
		}
		all := make([]made, 64)
		var asked atomic.Bool
		var redeemed atomic.Int32
		atOnce(65, func(i int) {
			if i < 64 {
				s, cookie, err := m.Redeem(context.Background(), own(t, m, "cus_1"), true, "", "")
				if err != nil {
					t.Error(err)
				}
				all[i] = made{s, cookie, !asked.Load()}
				redeemed.Add(1)
				return
			}
			for redeemed.Load() < 16 {
				time.Sleep(50 * time.Microsecond)
			}
			asked.Store(true)
			revoke := func(ctx context.Context) error { return other.RevokeCustomer(ctx, "cus_1") }
			if what == "tenant" {
				revoke = other.RevokeTenant
			}
			if err := revoke(context.Background()); err != nil {
				t.Error(err)
			}
		})
		probe, _ := redeem(t, m, "cus_1", "")
		epoch := probe.Epoch + probe.TenantEpoch
		for _, one := range all {
			is := lives(t, m, one.cookie)
			if want := one.s.Epoch+one.s.TenantEpoch == epoch; is != want {
				t.Fatalf("a session of epoch %d lives: %v, after the revocation to %d", one.s.Epoch+one.s.TenantEpoch, is, epoch)
			}
			if is && one.early {
				t.Fatal("a session that was there before the revocation was asked for survived it")
			}
			if is {
				after++
			} else {
				before++
			}
		}
	}
	t.Logf("%d sessions came before a revocation and are over, %d came after one", before, after)
	if before == 0 {
		t.Error("nothing was revoked: the race was none")
	}
}

// TestSessionsOverRestart: who was signed in still is, and who was signed out
// stays so.
func TestSessionsOverRestart(t *testing.T) {
	sealer, err := store.NewSealer(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m, _ := newManager(t)
	open := func() *badger.Store {
		t.Helper()
		s, err := badger.Open(dir, badger.Options{Sealer: sealer, Now: m.Now})
		if err != nil {
			t.Fatal(err)
		}
		m.Store = s
		return s
	}
	s := open()
	_, kept := redeem(t, m, "cus_1", "")
	one, ended := redeem(t, m, "cus_1", "")
	_, revoked := redeem(t, m, "cus_2", "")
	_, out := redeem(t, m, "cus_1", "")
	for _, err := range []error{m.Revoke(t.Context(), "cus_1", one.ID()), m.RevokeCustomer(t.Context(), "cus_2"), m.End(t.Context(), out), s.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s = open()
	for range 2 {
		if _, err := store.Sweep(t.Context(), s, m.Tenant, m.Now(), 1000); err != nil {
			t.Fatal(err)
		}
		for what, tt := range map[string]struct {
			cookie string
			want   bool
		}{"kept": {kept, true}, "revoked": {ended, false}, "revoked with its customer's": {revoked, false}, "signed out": {out, false}} {
			if got := lives(t, m, tt.cookie); got != tt.want {
				t.Errorf("%s: lives %v, want %v", what, got, tt.want)
			}
		}
		if err := m.RevokeTenant(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open()
		if lives(t, m, kept) {
			t.Error("the tenant's revocation did not last")
		}
		_, kept = redeem(t, m, "cus_1", "")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRestoredStore holds that sessions of a past that the store was put back
// from, or to, are over, whatever the clock says.
func TestRestoredStore(t *testing.T) {
	m, c := newManager(t)
	_, old := redeem(t, m, "cus_1", "")
	c.advance(-10 * time.Minute) // the restored machine's clock is behind
	if !lives(t, m, old) {
		t.Fatal("a clock behind ended it")
	}
	g, err := store.MarkRestored(t.Context(), m.Store, rand.Reader, c.Now(), "a backup was restored")
	if err != nil {
		t.Fatal(err)
	}
	if lives(t, m, old) || len(ids(t, m, "cus_1", 0)) != 0 {
		t.Error("a session from before the backup was restored lives")
	}
	_, fresh := redeem(t, m, "cus_1", "")
	if !lives(t, m, fresh) || len(ids(t, m, "cus_1", 0)) != 1 {
		t.Error("a session from after it does not")
	}
	c.advance(time.Minute)
	next, err := g.Next(rand.Reader, c.Now(), "not closed cleanly")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Store.Update(t.Context(), func(tx store.Tx) error { return store.WriteGuard(tx, next) }); err != nil {
		t.Fatal(err)
	}
	if !lives(t, m, fresh) {
		t.Error("another generation without a restore ended a session")
	}
	c.advance(-time.Hour) // set right after it had been wrong
	if _, err := store.MarkRestored(t.Context(), m.Store, rand.Reader, c.Now(), "again"); err != nil {
		t.Fatal(err)
	}
	if lives(t, m, fresh) {
		t.Error("a session from before the second restore lives, because the clock went back")
	}
}

func TestStoreWithoutAGuardHasNoSessions(t *testing.T) {
	m, _ := newManager(t)
	_, cookie := redeem(t, m, "cus_1", "")
	for what, change := range map[string]func(store.Tx) error{
		"absent": func(tx store.Tx) error { return tx.Delete(store.GuardKey()) },
		"broken": func(tx store.Tx) error { return tx.Put(store.GuardKey(), []byte("{")) },
	} {
		if err := m.Store.Update(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.Read(t.Context(), cookie); err == nil || errors.Is(err, session.ErrNone) {
			t.Errorf("%s: got %v, want an error", what, err)
		}
	}
}

// failing is a store that takes no writes while err is set.
type failing struct {
	store.Store
	err     atomic.Pointer[error]
	block   atomic.Bool
	updates atomic.Int32
	reads   atomic.Int32
}

func (s *failing) Update(ctx context.Context, fn func(store.Tx) error) error {
	s.updates.Add(1)
	if s.block.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := s.err.Load(); err != nil {
		return *err
	}
	return s.Store.Update(ctx, fn)
}

func (s *failing) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	s.reads.Add(1)
	return s.Store.GetAll(ctx, keys...)
}

// TestReadingNeedsNoWrites holds that a session can be read while the store
// takes no writes, at the price of one failed write in a while, and that it
// lives on.
func TestReadingNeedsNoWrites(t *testing.T) {
	m, c := newManager(t)
	core, logs := observer.New(zapcore.DebugLevel)
	m.Log = zap.New(core)
	f := &failing{Store: m.Store}
	m.Store = f
	for _, err := range []error{store.ErrUnavailable, store.ErrUnknown, errors.New("disk on fire")} {
		_, cookie := redeem(t, m, "cus_1", "")
		c.advance(idle / 2)
		f.err.Store(&err)
		f.updates.Store(0)
		f.reads.Store(0)
		for range 100 {
			c.advance(10 * time.Millisecond)
			if !lives(t, m, cookie) {
				t.Fatalf("%v: the session is over", err)
			}
		}
		if n := f.updates.Load(); n != 1 {
			t.Errorf("%v: %d writes were tried within a second, want 1", err, n)
		}
		if n := f.reads.Load(); n != 100 {
			t.Errorf("%d reads for 100 pages", n)
		}
		f.err.Store(nil)
		c.advance(10 * time.Second)
		if !lives(t, m, cookie) {
			t.Fatal("over when the store was back")
		}
		c.advance(idle - time.Second)
		if !lives(t, m, cookie) {
			t.Errorf("%v: the use was not noted once the store was back", err)
		}
		// What is over is over, also where that cannot be written down.
		f.err.Store(&err)
		c.advance(idle)
		if lives(t, m, cookie) {
			t.Errorf("%v: lives on after its idle time", err)
		}
		f.err.Store(nil)
		c.advance(time.Minute)
	}
	if n := logs.Len(); n < 3 || n > 6 {
		t.Errorf("%d lines in the log, want one per failure", n)
	}
	// A client that went away is no failure of the store.
	_, cookie := redeem(t, m, "cus_1", "")
	c.advance(idle / 2)
	f.block.Store(true)
	before := logs.Len()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := m.Read(ctx, cookie); err != nil {
		t.Errorf("a client that went away: %v", err)
	}
	f.block.Store(false)
	f.updates.Store(0)
	if !lives(t, m, cookie) || f.updates.Load() != 1 || logs.Len() != before {
		t.Errorf("after it: %d writes, %d lines in the log", f.updates.Load(), logs.Len()-before)
	}
}

// putCounting counts writes to the sessions' records.
type putCounting struct {
	store.Store
	puts *atomic.Int32
}

func (s *putCounting) Update(ctx context.Context, fn func(store.Tx) error) error {
	var n int32
	err := s.Store.Update(ctx, func(tx store.Tx) error {
		n = 0
		return fn(putTx{tx, &n})
	})
	if err == nil {
		s.puts.Add(n)
	}
	return err
}

type putTx struct {
	store.Tx
	n *int32
}

func (t putTx) Put(key, value []byte) error {
	if bytes.HasPrefix(key, store.Key("billing.example.com", "session")) {
		*t.n++
	}
	return t.Tx.Put(key, value)
}

// TestManyRequestsAreOneTouch holds that requests that come at once note once
// that the session is in use, on two nodes, though their clocks differ.
func TestManyRequestsAreOneTouch(t *testing.T) { onTwoNodes(t, manyRequestsAreOneTouch) }

func manyRequestsAreOneTouch(t *testing.T, nodes []*session.Manager, c *clock) {
	m := nodes[0]
	var puts atomic.Int32
	for _, n := range nodes {
		n.Store = &putCounting{n.Store, &puts}
	}
	_, cookie := redeem(t, m, "cus_1", "")
	for range 5 {
		c.advance(idle / 2)
		puts.Store(0)
		atOnce(64, func(i int) {
			c.advance(time.Microsecond)
			if _, _, err := nodes[i%2].Read(context.Background(), cookie); err != nil {
				t.Error(err)
			}
		})
		if n := puts.Load(); n != 1 {
			t.Errorf("%d writes of the session, want 1", n)
		}
	}
}

// TestClockBackwardsDoesNotRevive: what a request was told to be over stays
// over.
func TestClockBackwardsDoesNotRevive(t *testing.T) {
	m, c := newManager(t)
	_, cookie := redeem(t, m, "cus_1", "")
	c.advance(idle)
	wantNone(t, m, cookie, "at the idle limit")
	c.advance(-idle)
	wantNone(t, m, cookie, "after the clock went back")

	m, c = newManager(t)
	_, cookie = redeem(t, m, "cus_1", "")
	c.advance(idle / 2)
	if !lives(t, m, cookie) {
		t.Fatal("over")
	}
	c.advance(-idle / 2)
	if s, _, err := m.Read(t.Context(), cookie); err != nil || !s.Seen.Equal(c.Now().Add(idle/2)) {
		t.Errorf("a clock behind moved Seen to %s, %v", s.Seen, err)
	}
}

// TestSessionsOfBefore holds what a version of the portal without lists,
// devices and the tenant's record wrote: it goes on, and can be ended.
func TestSessionsOfBefore(t *testing.T) {
	m, c := newManager(t)
	const customer = "cus_old"
	sum := sha256.Sum256([]byte(m.Tenant + "\x00" + customer))
	raw := append(bytes.Repeat([]byte{9}, 32), sum[:16]...)
	cookie := base64.RawURLEncoding.EncodeToString(raw)
	h := sha256.Sum256(raw)
	hash := base64.RawURLEncoding.EncodeToString(h[:])
	write := func() {
		t.Helper()
		at := c.Now().Format(time.RFC3339Nano)
		record := fmt.Sprintf(`{"customer":%q,"actor":{"id":"","email":"","name":""},"role":"owner","permissions":null,"created":%q,"expires":%q,"seen":%q,"epoch":0}`,
			customer, at, c.Now().Add(absolute).Format(time.RFC3339Nano), at)
		if err := m.Store.Update(t.Context(), func(tx store.Tx) error {
			if err := tx.Put(session.CustomerKey(m.Tenant, customer), []byte(`{"epoch":0,"version":3}`)); err != nil {
				return err
			}
			return store.PutExpiring(tx, m.Tenant, store.Key(m.Tenant, "session", hash), []byte(record), c.Now().Add(absolute))
		}); err != nil {
			t.Fatal(err)
		}
	}
	write()
	s, rec, err := m.Read(t.Context(), cookie)
	if err != nil || s.Customer != customer || rec.Version != 3 || s.Device.String() != "Unknown browser" {
		t.Fatalf("read as %+v, %+v, %v", s, rec, err)
	}
	c.advance(idle / 2)
	if !lives(t, m, cookie) {
		t.Fatal("over after a touch")
	}
	if got := ids(t, m, customer, 0); len(got) != 0 {
		t.Errorf("listed: %v", got)
	}
	if err := m.Revoke(t.Context(), customer, s.ID()); err != nil || lives(t, m, cookie) {
		t.Errorf("by its id: %v", err)
	}
	write()
	if err := m.RevokeTenant(t.Context()); err != nil || lives(t, m, cookie) {
		t.Errorf("with the tenant's: %v", err)
	}
	m, c = newManager(t)
	write()
	if err := m.RevokeCustomer(t.Context(), customer); err != nil || lives(t, m, cookie) {
		t.Errorf("with the customer's: %v", err)
	}
	m, c = newManager(t)
	write()
	if _, err := store.MarkRestored(t.Context(), m.Store, rand.Reader, c.Now(), "a backup"); err != nil {
		t.Fatal(err)
	}
	wantNone(t, m, cookie, "after a restore")
}

// twice commits everything and then runs it again, as a store does whose
// commit's reply was lost.
type twice struct{ store.Store }

func (s twice) Update(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.Store.Update(ctx, fn); err != nil {
		return err
	}
	return s.Store.Update(ctx, fn)
}

func TestRunAgain(t *testing.T) {
	m, c := newManager(t)
	m.Store, m.Limit = twice{m.Store}, 2
	first, a := redeem(t, m, "cus_1", "")
	c.advance(time.Second)
	second, b := redeem(t, m, "cus_1", "")
	if got := ids(t, m, "cus_1", 0); !slices.Equal(got, []string{second.ID(), first.ID()}) {
		t.Errorf("listed %v", got)
	}
	if err := m.Revoke(t.Context(), "cus_1", second.ID()); err != nil || lives(t, m, b) {
		t.Errorf("revoking one: %v", err)
	}
	for _, revoke := range []func() error{
		func() error { return m.RevokeCustomer(t.Context(), "cus_1") }, func() error { return m.RevokeTenant(t.Context()) },
	} {
		_, c := redeem(t, m, "cus_1", "")
		if err := revoke(); err != nil || lives(t, m, a) || lives(t, m, c) {
			t.Errorf("revoking: %v", err)
		}
		if _, d := redeem(t, m, "cus_1", ""); !lives(t, m, d) {
			t.Error("a session from after a revocation is over")
		}
	}
}

// BenchmarkRead is what every page pays, of a customer with as many sessions as
// one can have by default.
func BenchmarkRead(b *testing.B) {
	m, _ := newManager(b)
	var cookie string
	for range session.DefaultLimit {
		var err error
		if _, cookie, err = m.Redeem(b.Context(), own(b, m, "cus_1"), true, "", firefox); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := m.Read(b.Context(), cookie); err != nil {
			b.Fatal(err)
		}
	}
}
