package session_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

type clock struct{ ns atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(0, c.ns.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

const idle, absolute = 30 * time.Minute, 8 * time.Hour

func newManager(t testing.TB) (*session.Manager, *clock) {
	t.Helper()
	sealer, err := store.NewSealer(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{}
	c.ns.Store(time.Date(2026, 5, 14, 12, 0, 0, 0, time.UTC).UnixNano())
	s, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &session.Manager{
		Store: s, Tenant: "billing.example.com", Now: c.Now, Rand: rand.Reader,
		Idle: idle, Absolute: absolute, DefaultRole: "owner",
	}, c
}

// sibling is another node's manager over the same store.
func sibling(m *session.Manager) *session.Manager {
	return &session.Manager{
		Store: m.Store, Tenant: m.Tenant, Now: m.Now, Rand: m.Rand,
		Idle: m.Idle, Absolute: m.Absolute, DefaultRole: m.DefaultRole, Limit: m.Limit,
	}
}

func own(t testing.TB, m *session.Manager, customer string) link.Claims {
	t.Helper()
	id, err := link.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	gen, err := session.Generation(t.Context(), m.Store)
	if err != nil {
		t.Fatal(err)
	}
	now := m.Now().Truncate(time.Second)
	return link.Claims{Issuer: "portal", Subject: customer, IssuedAt: now, Expires: now.Add(link.MaxLifetime), ID: id, Generation: gen}
}

func redeem(t *testing.T, m *session.Manager, customer, prior string) (session.Session, string) {
	t.Helper()
	s, cookie, err := m.Redeem(t.Context(), own(t, m, customer), true, prior, "")
	if err != nil {
		t.Fatal(err)
	}
	return s, cookie
}

func wantNone(t *testing.T, m *session.Manager, cookie, what string) {
	t.Helper()
	if s, _, err := m.Read(t.Context(), cookie); !errors.Is(err, session.ErrNone) {
		t.Errorf("%s: got session of %q, %v; want ErrNone", what, s.Customer, err)
	}
}

func TestRedeemAndRead(t *testing.T) {
	m, _ := newManager(t)
	c := own(t, m, "cus_1")
	c.Role, c.Permissions, c.ReturnURL, c.Locale, c.Configuration = "billing", []string{}, "https://app.example.com/x", "de", "narrow"
	c.Actor = link.Actor{ID: "u1", Email: "a@example.com", Name: "Ann"}
	made, cookie, err := m.Redeem(t.Context(), c, true, "", "")
	if err != nil {
		t.Fatal(err)
	}
	got, rec, err := m.Read(t.Context(), cookie)
	if err != nil {
		t.Fatal(err)
	}
	if got.Customer != "cus_1" || got.Role != "billing" || got.Permissions == nil || len(got.Permissions) != 0 || got.Actor != c.Actor ||
		got.ReturnURL != c.ReturnURL || got.Locale != "de" || got.Configuration != "narrow" || got.Hash != made.Hash {
		t.Errorf("read back %+v", got)
	}
	if rec.Version == 0 {
		t.Error("a new session must read the account anew: version is still 0")
	}
	if strings.Contains(cookie, made.Hash) || len(made.Hash) < 40 {
		t.Errorf("the hash %q names the session in logs and must not give the cookie away", made.Hash)
	}
	if s, _ := redeem(t, m, "cus_1", ""); s.Role != "owner" || s.Permissions != nil {
		t.Errorf("a link without role and permissions: got %q, %v", s.Role, s.Permissions)
	}
}

func TestLinkIsGoodOnce(t *testing.T) {
	m, c := newManager(t)
	claims := own(t, m, "cus_1")
	_, first, err := m.Redeem(t.Context(), claims, true, "", "")
	if err != nil {
		t.Fatal(err)
	}
	again := func(what string) {
		t.Helper()
		if _, _, err := m.Redeem(t.Context(), claims, true, "", ""); !errors.Is(err, session.ErrUsed) {
			t.Errorf("%s: got %v, want ErrUsed", what, err)
		}
	}
	again("at once")
	if err := m.End(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	again("after signing out")
	other := claims
	other.Subject = "cus_2"
	if _, _, err := m.Redeem(t.Context(), other, true, "", ""); !errors.Is(err, session.ErrUsed) {
		t.Errorf("same id for another customer: got %v, want ErrUsed", err)
	}
	c.advance(link.MaxLifetime + link.Skew)
	for range 3 {
		if _, err := store.Sweep(t.Context(), m.Store, m.Tenant, m.Now(), 100); err != nil {
			t.Fatal(err)
		}
	}
	again("after a sweep, while the token could still verify")

	vendor := claims
	vendor.Issuer, vendor.Generation, vendor.IssuedAt = "acme", "", m.Now()
	if _, _, err := m.Redeem(t.Context(), vendor, false, "", ""); err != nil {
		t.Errorf("another issuer's token with the same id is another token: %v", err)
	}
}

func TestConcurrentRedeemsGiveOneSession(t *testing.T) {
	m, _ := newManager(t)
	for round := range 20 {
		claims := own(t, m, "cus_1")
		var won, lost atomic.Int32
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 64 {
			wg.Go(func() {
				<-begin
				switch _, _, err := m.Redeem(context.Background(), claims, true, "", ""); {
				case err == nil:
					won.Add(1)
				case errors.Is(err, session.ErrUsed):
					lost.Add(1)
				default:
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		close(begin)
		wg.Wait()
		if won.Load() != 1 || lost.Load() != 63 {
			t.Fatalf("round %d: %d sessions and %d refusals from one link", round, won.Load(), lost.Load())
		}
	}
}

func TestLifetimes(t *testing.T) {
	m, c := newManager(t)
	_, cookie := redeem(t, m, "cus_1", "")
	c.advance(idle - time.Nanosecond)
	if _, _, err := m.Read(t.Context(), cookie); err != nil {
		t.Fatalf("just before the idle limit: %v", err)
	}
	c.advance(idle - time.Nanosecond)
	if _, _, err := m.Read(t.Context(), cookie); err != nil {
		t.Fatalf("reading must have extended it: %v", err)
	}
	c.advance(idle)
	wantNone(t, m, cookie, "at the idle limit")

	_, cookie = redeem(t, m, "cus_1", "")
	for range int(absolute / (idle - time.Minute)) {
		c.advance(idle - time.Minute)
		if _, _, err := m.Read(t.Context(), cookie); err != nil {
			t.Fatalf("busy session: %v", err)
		}
	}
	c.advance(absolute - absolute/(idle-time.Minute)*(idle-time.Minute) - time.Nanosecond)
	if _, _, err := m.Read(t.Context(), cookie); err != nil {
		t.Fatalf("just before the absolute limit: %v", err)
	}
	c.advance(time.Nanosecond)
	wantNone(t, m, cookie, "at the absolute limit, although busy")

	_, cookie = redeem(t, m, "cus_1", "")
	if _, err := store.Sweep(t.Context(), m.Store, m.Tenant, m.Now().Add(absolute), 1000); err != nil {
		t.Fatal(err)
	}
	wantNone(t, m, cookie, "after it was swept")
}

// Reading writes at most once in a tenth of the idle time.
func TestReadingSeldomWrites(t *testing.T) {
	m, c := newManager(t)
	counted := &countingStore{Store: m.Store}
	m.Store = counted
	_, cookie := redeem(t, m, "cus_1", "")
	counted.updates.Store(0)
	for range 299 {
		c.advance(6 * time.Second)
		if _, _, err := m.Read(t.Context(), cookie); err != nil {
			t.Fatal(err)
		}
	}
	if n := counted.updates.Load(); n < 8 || n > 10 {
		t.Errorf("%d writes in 30 minutes of reading every 6 s, want about 9", n)
	}
}

// A made-up cookie costs no write.
func TestEndingNothingWritesNothing(t *testing.T) {
	m, _ := newManager(t)
	counted := &countingStore{Store: m.Store}
	m.Store = counted
	_, cookie := redeem(t, m, "cus_1", "")
	counted.updates.Store(0)
	for i := range 10 {
		made := []byte(cookie)
		made[i] ^= 1
		if err := m.End(t.Context(), string(made)); err != nil {
			t.Fatal(err)
		}
	}
	if n := counted.updates.Load(); n != 0 {
		t.Errorf("%d writes for cookies that stand for nothing", n)
	}
	if err := m.End(t.Context(), cookie); err != nil || counted.updates.Load() != 1 {
		t.Errorf("the real one: %v, %d writes", err, counted.updates.Load())
	}
	wantNone(t, m, cookie, "signed out")
}

type countingStore struct {
	store.Store
	updates atomic.Int32
}

func (s *countingStore) Update(ctx context.Context, fn func(store.Tx) error) error {
	s.updates.Add(1)
	return s.Store.Update(ctx, fn)
}

func TestEnd(t *testing.T) {
	m, c := newManager(t)
	_, a := redeem(t, m, "cus_1", "")
	_, b := redeem(t, m, "cus_1", "")
	if err := m.End(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	wantNone(t, m, a, "signed out")
	if _, _, err := m.Read(t.Context(), b); err != nil {
		t.Errorf("the other browser's session: %v", err)
	}
	_, replaced := redeem(t, m, "cus_1", b)
	wantNone(t, m, b, "replaced by a new link in the same browser")
	if err := m.RevokeCustomer(t.Context(), "cus_1"); err != nil {
		t.Fatal(err)
	}
	wantNone(t, m, replaced, "revoked")
	_, after := redeem(t, m, "cus_1", "")
	if _, _, err := m.Read(t.Context(), after); err != nil {
		t.Errorf("a session made after the revocation: %v", err)
	}
	// A request that was reading while the customer signed out must not bring
	// the session back.
	_, gone := redeem(t, m, "cus_1", "")
	if err := m.End(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	c.advance(idle / 5)
	wantNone(t, m, gone, "after signing out, when a touch is due")
}

func TestOtherTenantsCookie(t *testing.T) {
	m, _ := newManager(t)
	_, cookie := redeem(t, m, "cus_1", "")
	other := sibling(m)
	other.Tenant = "billing.other.example"
	wantNone(t, other, cookie, "another tenant's cookie")
}

func TestHostileCookies(t *testing.T) {
	m, _ := newManager(t)
	_, cookie := redeem(t, m, "cus_1", "")
	_, others := redeem(t, m, "cus_2", "")
	raw, err := base64.RawURLEncoding.DecodeString(cookie)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := base64.RawURLEncoding.DecodeString(others)
	if err != nil {
		t.Fatal(err)
	}
	mixed := append(append([]byte{}, raw[:32]...), theirs[32:]...)
	for what, v := range map[string]string{
		"empty": "", "short": cookie[:len(cookie)-1], "long": cookie + "A", "padded": cookie + "=", "space": " " + cookie,
		"other alphabet": strings.Repeat("+", len(cookie)), "huge": strings.Repeat("A", 1<<20), "zeros": strings.Repeat("A", len(cookie)),
		"with another customer's hash": base64.RawURLEncoding.EncodeToString(mixed), "NUL": cookie[:10] + "\x00" + cookie[11:],
	} {
		wantNone(t, m, v, what)
		if err := m.End(t.Context(), v); err != nil {
			t.Errorf("%s: signing out: %v", what, err)
		}
	}
	for i := range raw {
		for bit := range 8 {
			flipped := append([]byte{}, raw...)
			flipped[i] ^= 1 << bit
			wantNone(t, m, base64.RawURLEncoding.EncodeToString(flipped), "one bit flipped")
		}
	}
	if _, _, err := m.Read(t.Context(), cookie); err != nil {
		t.Errorf("the real one: %v", err)
	}
}

func TestRefresh(t *testing.T) {
	m, _ := newManager(t)
	_, cookie := redeem(t, m, "cus_1", "")
	_, before, err := m.Read(t.Context(), cookie)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(t.Context(), "cus_1"); err != nil {
		t.Fatal(err)
	}
	if _, after, err := m.Read(t.Context(), cookie); err != nil || after.Version != before.Version+1 {
		t.Errorf("version %d, then %d, %v", before.Version, after.Version, err)
	}
}

func TestStrangersWriteNothing(t *testing.T) {
	m, _ := newManager(t)
	redeem(t, m, "cus_1", "")
	bump := func(tenant, customer string) (known bool, version uint64) {
		t.Helper()
		if err := m.Store.Update(t.Context(), func(tx store.Tx) (err error) {
			if known, err = session.BumpIfKnown(tx, tenant, customer); err != nil {
				return err
			}
			version, err = session.Version(tx, tenant, customer)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return known, version
	}
	if known, version := bump(m.Tenant, "cus_1"); !known || version != 2 {
		t.Errorf("a customer with a session: %v, version %d", known, version)
	}
	for _, stranger := range []struct{ tenant, customer string }{{m.Tenant, "cus_2"}, {"billing.other.example", "cus_1"}, {m.Tenant, ""}} {
		if known, version := bump(stranger.tenant, stranger.customer); known || version != 0 {
			t.Errorf("%q at %q: %v, version %d", stranger.customer, stranger.tenant, known, version)
		}
		values, err := m.Store.GetAll(t.Context(), session.CustomerKey(stranger.tenant, stranger.customer))
		if err != nil || values[0] != nil {
			t.Errorf("%q at %q has a record now: %s, %v", stranger.customer, stranger.tenant, values[0], err)
		}
	}
}

func TestOwnKeysLastAndRotate(t *testing.T) {
	m, c := newManager(t)
	keys := func() []link.Key {
		t.Helper()
		k, err := session.OwnKeys(t.Context(), m.Store, m.Tenant, rand.Reader, c.Now())
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := keys()
	if again := keys(); len(again) != 1 || again[0].ID != first[0].ID {
		t.Errorf("a second start made new keys: %v, %v", first, again)
	}
	c.advance(session.KeyLife)
	if ahead := keys(); len(ahead) != 2 || ahead[0].ID != first[0].ID || ahead[1].ID == first[0].ID {
		t.Errorf("a key was signed with as soon as it was made: %v, want %v and a new one", ahead, first)
	}
	c.advance(session.KeyAhead)
	second := keys()
	if len(second) != 2 || second[0].ID == first[0].ID || second[1].ID != first[0].ID {
		t.Errorf("after the key's life: %v, want a new key and %v", second, first)
	}
	c.advance(session.KeyLife)
	if third := keys(); len(third) != 2 || third[0].ID != second[0].ID || third[1].ID == first[0].ID {
		t.Errorf("a third: %v", third)
	}
}

// A node whose clock is far ahead sweeps the marks of used links while the
// links are still good by everybody else's clock. They stay used.
func TestLinkStaysUsedWhereAClockIsAhead(t *testing.T) {
	m, _ := newManager(t)
	claims := own(t, m, "cus_1")
	if _, _, err := m.Redeem(t.Context(), claims, true, "", ""); err != nil {
		t.Fatal(err)
	}
	for _, ahead := range []time.Duration{2 * time.Hour, 13 * time.Hour, 24 * time.Hour} {
		if _, err := store.Sweep(t.Context(), m.Store, m.Tenant, m.Now().Add(ahead), 1000); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.Redeem(t.Context(), claims, true, "", ""); !errors.Is(err, session.ErrUsed) {
			t.Errorf("swept by a clock that is %s ahead: got %v, want ErrUsed", ahead, err)
		}
	}
	// It goes in the end.
	n, err := store.Sweep(t.Context(), m.Store, m.Tenant, m.Now().Add(26*time.Hour), 1000)
	if err != nil || n == 0 {
		t.Errorf("swept %d, %v", n, err)
	}
}
