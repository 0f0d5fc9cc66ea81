// Package session exchanges redirect tokens for sessions and reads sessions
// back. A session is state on the server behind an opaque cookie; a token makes
// at most one.
package session

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Lifetimes where the config gives none.
const (
	DefaultIdle     = 30 * time.Minute
	DefaultAbsolute = 8 * time.Hour
	// DefaultLimit is how many sessions a customer can have at once; MaxLimit is
	// the most that a config can ask for.
	DefaultLimit = 20
	MaxLimit     = 100
)

var (
	// ErrNone says that a cookie stands for no session: never one, ended,
	// expired or revoked.
	ErrNone = errors.New("session: no such session")
	// ErrUsed says that the token made a session before.
	ErrUsed = errors.New("session: link was already used")
	// ErrForgotten says that the store may have forgotten whether the token
	// was used (the amnesia guard).
	ErrForgotten = errors.New("session: link is from before the store's present generation")
)

// TooSoonError is ErrForgotten for a token that the vendor signed: a new one,
// made after Wait, will do.
type TooSoonError struct{ Wait time.Duration }

func (e *TooSoonError) Error() string {
	return fmt.Sprintf("session: link is from before the store's present generation; a link made in %s will work", e.Wait)
}

func (e *TooSoonError) Unwrap() error { return ErrForgotten }

// Session is what the server knows about a signed-in browser.
type Session struct {
	// Hash names the session in the store and in logs; the cookie cannot be
	// made from it.
	Hash     string     `json:"-"`
	Customer string     `json:"customer"`
	Actor    link.Actor `json:"actor"`
	Role     string     `json:"role"`
	// Permissions narrow what the session may do: nil does not.
	Permissions []string `json:"permissions"`
	// Reason is why the vendor's staff looks, or "".
	Reason        string    `json:"reason,omitempty"`
	ReturnURL     string    `json:"return_url,omitempty"`
	Locale        string    `json:"locale,omitempty"`
	Configuration string    `json:"configuration,omitempty"`
	Created       time.Time `json:"created"`
	Expires       time.Time `json:"expires"` // absolute, never moved
	Seen          time.Time `json:"seen"`    // within a tenth of the idle time
	Device        Device    `json:"device"`  // that opened the link
	// Epoch is the customer's revocation epoch when the session was made, and
	// TenantEpoch the tenant's.
	Epoch       uint64 `json:"epoch"`
	TenantEpoch uint64 `json:"tenant_epoch,omitempty"`
	// Restored is the guard's Restored when the session was made: a session of
	// another past than the store's present one is over.
	Restored time.Time `json:"restored,omitzero"`
}

// idPrefix begins every session's public id.
const idPrefix = "ses_"

// ID names the session to people and to the vendor's backend: in lists and to
// end it. Nobody can sign in with it.
func (s *Session) ID() string { return idPrefix + s.Hash }

// CustomerRecord is what the store keeps about every customer that ever had a
// session.
type CustomerRecord struct {
	// Epoch goes up when all of the customer's sessions are revoked.
	Epoch uint64 `json:"epoch"`
	// Version goes up whenever the customer's account changed, or may have.
	Version uint64 `json:"version"`
	// Sessions are the hashes of the customer's sessions, in the order of their
	// making: all that live, and some that are over. Those that a version of the
	// portal before this list made are not in it; revoking all of the customer's
	// or the tenant's sessions ends them too.
	Sessions []string `json:"sessions,omitempty"`
	// Support are those of the vendor's staff, apart: they take no room of the
	// customer's.
	Support []string `json:"support,omitempty"`
}

// TenantRecord is what the store keeps about a tenant's sessions as a whole.
type TenantRecord struct {
	// Epoch goes up when all of the tenant's sessions are revoked.
	Epoch uint64 `json:"epoch"`
}

// Manager makes, reads and ends a tenant's sessions. It is safe for concurrent
// use.
type Manager struct {
	Store          store.Store
	Tenant         string
	Now            func() time.Time
	Rand           io.Reader
	Idle, Absolute time.Duration
	// DefaultRole is the role of a link that names none.
	DefaultRole string
	// Limit is how many sessions a customer can have at once, at most MaxLimit:
	// one more ends the one that was used least recently. Default: DefaultLimit.
	Limit int
	// Log is told where a session's use cannot be noted. Optional.
	Log *zap.Logger

	guard    lately[store.Guard]
	tenant   lately[TenantRecord]
	touching sync.Map     // hash of a session whose use is being noted
	failed   atomic.Int64 // when noting a use last failed, Unix nanoseconds
}

const (
	idBytes   = 32 // 256 bits of crypto/rand
	hashBytes = 16
	rawBytes  = idBytes + hashBytes
)

// markLife is how long the mark of a used token is kept after the token's own
// end. A clock that is ahead, on this node or another one of the same store,
// sweeps it too early, and the token must still be refused where it is read by
// a clock that is right: a wrong time zone, or day, must not matter.
const markLife = 25 * time.Hour

// cookieLen is the length of a cookie's value: base64url without padding of
// the id and of the customer's hash, which lets one read fetch the session and
// the customer's record together.
const cookieLen = rawBytes / 3 * 4

func customerHash(tenant, customer string) string {
	h := sha256.Sum256([]byte(tenant + "\x00" + customer))
	return string(h[:hashBytes])
}

// CustomerKey is the key of a customer's record.
func CustomerKey(tenant, customer string) []byte {
	return store.Key(tenant, "customer", customerHash(tenant, customer))
}

func tenantKey(tenant string) []byte { return store.Key(tenant, "tenant") }

func sessionKey(tenant, hash string) []byte { return store.Key(tenant, "session", hash) }

func spentKey(tenant, issuer, jti string) []byte {
	h := sha256.Sum256([]byte(issuer + "\x00" + jti))
	return store.Key(tenant, "spent", string(h[:]))
}

// split takes a cookie's value apart. It never fails loudly: a value that is
// not ours is no session.
func split(cookie string) (hash, customer string, ok bool) {
	if len(cookie) != cookieLen {
		return "", "", false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cookie)
	if err != nil {
		return "", "", false
	}
	h := sha256.Sum256(raw)
	return base64.RawURLEncoding.EncodeToString(h[:]), string(raw[idBytes:]), true
}

// spent is the record of a used token.
type spent struct {
	At      time.Time `json:"at"`
	Session string    `json:"session"` // hash
	Subject string    `json:"subject"`
}

// Redeem exchanges a verified token for a session, in one transaction: it
// checks the amnesia guard, spends (iss, jti) and creates the session. own
// tells that the portal signed the token itself. prior is the value of the
// cookie that the browser sent, if any: its session ends with the same commit.
// So does the customer's least recently used one where there are Limit already.
// userAgent is the browser's header of that name, or "". The second result is
// the new cookie's value.
//
// The revocation epochs are read in that transaction: a session whose Redeem
// came before a revocation in the store's order is over once the revocation has
// returned; one that came after it is new, and lives.
func (m *Manager) Redeem(ctx context.Context, c link.Claims, own bool, prior, userAgent string) (Session, string, error) {
	var id [rawBytes]byte
	if _, err := io.ReadFull(m.Rand, id[:idBytes]); err != nil {
		return Session{}, "", fmt.Errorf("session: making an id: %w", err)
	}
	copy(id[idBytes:], customerHash(m.Tenant, c.Subject))
	cookie := base64.RawURLEncoding.EncodeToString(id[:])
	hash, _, _ := split(cookie)

	now := m.Now().UTC()
	s := Session{
		Hash: hash, Customer: c.Subject, Actor: c.Actor, Role: c.Role, Permissions: c.Permissions,
		ReturnURL: c.ReturnURL, Locale: c.Locale, Configuration: c.Configuration,
		Created: now, Expires: now.Add(m.Absolute), Seen: now, Device: ParseDevice(userAgent),
	}
	if s.Role == "" {
		s.Role = m.DefaultRole
	}
	if s.Support() {
		s.Reason, s.Expires = c.Reason, now.Add(min(m.Absolute, SupportAbsolute))
	}
	mark, err := json.Marshal(spent{At: now, Session: hash, Subject: c.Subject})
	if err != nil {
		return Session{}, "", err
	}
	markUntil := c.Expires.Add(markLife)
	err = m.Store.Update(ctx, func(tx store.Tx) error {
		guard, err := store.ReadGuard(tx)
		if err != nil {
			return err
		}
		if err := checkGuard(guard, c, own, now); err != nil {
			return err
		}
		key := spentKey(m.Tenant, c.Issuer, c.ID)
		switch old, err := tx.Get(key); {
		case err == nil:
			// A commit whose reply was lost runs again and finds its own mark.
			var by spent
			if json.Unmarshal(old, &by) != nil || by.Session != hash {
				return ErrUsed
			}
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		rec, err := ReadCustomer(tx, m.Tenant, c.Subject)
		if err != nil {
			return err
		}
		all, err := readTenant(tx, m.Tenant)
		if err != nil {
			return err
		}
		s.Epoch, s.TenantEpoch, s.Restored = rec.Epoch, all.Epoch, guard.Restored
		value, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := store.PutExpiring(tx, m.Tenant, key, mark, markUntil); err != nil {
			return err
		}
		if err := store.PutExpiring(tx, m.Tenant, sessionKey(m.Tenant, hash), value, s.Expires); err != nil {
			return err
		}
		if old, _, ok := split(prior); ok {
			if err := m.remove(tx, old, "replaced", now); err != nil {
				return err
			}
		}
		list, limit := &rec.Sessions, m.Limit
		if s.Support() {
			list, limit = &rec.Support, MaxSupport
			if err := m.opened(tx, &s); err != nil {
				return err
			}
		}
		if *list, err = m.makeRoom(tx, again(*list, hash), limit, check{rec, all, guard}, now); err != nil {
			return err
		}
		*list = append(*list, hash)
		// A new session reads the account anew.
		rec.Version++
		return writeCustomer(tx, m.Tenant, c.Subject, rec)
	})
	if err != nil {
		return Session{}, "", err
	}
	return s, cookie, nil
}

// again is the list without a session that an earlier run of the same redeem
// has put there.
func again(list []string, hash string) []string {
	return slices.DeleteFunc(list, func(h string) bool { return h == hash })
}

// makeRoom ends sessions of a customer's list until one more fits under the
// limit, those first that were used least recently, and returns the list of
// those that stay. Redeems of one customer come one after another, because each
// reads and writes the customer's record, which holds the list.
func (m *Manager) makeRoom(tx store.Tx, list []string, limit int, c check, now time.Time) ([]string, error) {
	limit = min(limit, MaxLimit)
	if limit <= 0 {
		limit = DefaultLimit
	}
	if len(list) < limit {
		return list, nil
	}
	var live []Session
	for _, hash := range list {
		s, err := readSession(tx, m.Tenant, hash)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m.live(&s, c, now) {
			live = append(live, s)
		}
	}
	for len(live) >= limit {
		oldest := 0
		for i := range live {
			if live[i].Seen.Before(live[oldest].Seen) {
				oldest = i
			}
		}
		if err := m.remove(tx, live[oldest].Hash, "replaced", now); err != nil {
			return nil, err
		}
		live = slices.Delete(live, oldest, oldest+1)
	}
	list = list[:0]
	for i := range live {
		list = append(list, live[i].Hash)
	}
	return list, nil
}

func readSession(tx store.Tx, tenant, hash string) (Session, error) {
	value, err := tx.Get(sessionKey(tenant, hash))
	if err != nil {
		return Session{}, err
	}
	return decodeSession(hash, value)
}

func decodeSession(hash string, value []byte) (Session, error) {
	var s Session
	if err := json.Unmarshal(value, &s); err != nil {
		return Session{}, fmt.Errorf("session: reading a session: %w", err)
	}
	s.Hash = hash
	return s, nil
}

// readTenant reads the tenant's record; a tenant without one has the zero
// record.
func readTenant(tx store.Tx, tenant string) (TenantRecord, error) {
	value, err := tx.Get(tenantKey(tenant))
	if errors.Is(err, store.ErrNotFound) {
		return TenantRecord{}, nil
	}
	if err != nil {
		return TenantRecord{}, err
	}
	return decodeTenant(value)
}

func decodeTenant(value []byte) (TenantRecord, error) {
	var rec TenantRecord
	if value == nil {
		return rec, nil
	}
	if err := json.Unmarshal(value, &rec); err != nil {
		return TenantRecord{}, fmt.Errorf("session: reading the tenant's record: %w", err)
	}
	return rec, nil
}

// ReadCustomer reads a customer's record; a customer without one has the zero
// record.
func ReadCustomer(tx store.Tx, tenant, customer string) (CustomerRecord, error) {
	value, err := tx.Get(CustomerKey(tenant, customer))
	if errors.Is(err, store.ErrNotFound) {
		return CustomerRecord{}, nil
	}
	if err != nil {
		return CustomerRecord{}, err
	}
	var rec CustomerRecord
	if err := json.Unmarshal(value, &rec); err != nil {
		return CustomerRecord{}, fmt.Errorf("session: reading a customer's record: %w", err)
	}
	return rec, nil
}

func writeCustomer(tx store.Tx, tenant, customer string, rec CustomerRecord) error {
	value, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return tx.Put(CustomerKey(tenant, customer), value)
}

// BumpVersion notes, in the caller's transaction, that the customer's account
// changed: the next page reads it anew.
func BumpVersion(tx store.Tx, tenant, customer string) error {
	rec, err := ReadCustomer(tx, tenant, customer)
	if err != nil {
		return err
	}
	rec.Version++
	return writeCustomer(tx, tenant, customer, rec)
}

// BumpIfKnown is BumpVersion for a customer that had a session before, and
// reports whether that was so. A webhook about anybody else's account writes
// nothing: nobody's page shows it.
func BumpIfKnown(tx store.Tx, tenant, customer string) (bool, error) {
	_, err := tx.Get(CustomerKey(tenant, customer))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, BumpVersion(tx, tenant, customer)
}

// Version reads a customer's account version in the caller's transaction.
func Version(tx store.Tx, tenant, customer string) (uint64, error) {
	rec, err := ReadCustomer(tx, tenant, customer)
	return rec.Version, err
}

// Refresh makes the next page read the account anew.
func (m *Manager) Refresh(ctx context.Context, customer string) error {
	return m.Store.Update(ctx, func(tx store.Tx) error {
		return BumpVersion(tx, m.Tenant, customer)
	})
}

// Read returns the session behind a cookie and the customer's record, in one
// read. It notes that the session is in use, at most once in a tenth of the
// idle time; where the store cannot take that down, the session is read all the
// same, and its idle time goes on from where it was. ErrNone where there is no
// session or it is over.
func (m *Manager) Read(ctx context.Context, cookie string) (Session, CustomerRecord, error) {
	hash, customer, ok := split(cookie)
	if !ok {
		return Session{}, CustomerRecord{}, ErrNone
	}
	values, err := m.Store.GetAll(ctx, sessionKey(m.Tenant, hash), store.Key(m.Tenant, "customer", customer), tenantKey(m.Tenant), store.GuardKey())
	if err != nil {
		return Session{}, CustomerRecord{}, err
	}
	if values[0] == nil || values[1] == nil {
		return Session{}, CustomerRecord{}, ErrNone
	}
	s, err := decodeSession(hash, values[0])
	if err != nil {
		return Session{}, CustomerRecord{}, err
	}
	if customerHash(m.Tenant, s.Customer) != customer {
		return Session{}, CustomerRecord{}, ErrNone
	}
	c, err := m.decodeCheck(values[1], values[2], values[3])
	if err != nil {
		return Session{}, CustomerRecord{}, err
	}
	now := m.Now()
	if !m.live(&s, c, now) {
		m.note(ctx, hash, now, func(tx store.Tx) error { return m.bury(tx, hash, c, now) })
		return Session{}, CustomerRecord{}, ErrNone
	}
	if now.Sub(s.Seen) >= m.Idle/10 {
		var gone bool
		if m.note(ctx, hash, now, func(tx store.Tx) (err error) { gone, err = m.touch(tx, hash, now); return err }) {
			s.Seen = now
		}
		if gone {
			return Session{}, CustomerRecord{}, ErrNone
		}
	}
	return s, c.customer, nil
}

// check is what a session is held against.
type check struct {
	customer CustomerRecord
	tenant   TenantRecord
	guard    store.Guard
}

func (m *Manager) decodeCheck(customer, tenant, guard []byte) (check, error) {
	var c check
	if err := json.Unmarshal(customer, &c.customer); err != nil {
		return check{}, fmt.Errorf("session: reading a customer's record: %w", err)
	}
	var err error
	if c.tenant, err = m.tenant.decode(tenant, decodeTenant); err != nil {
		return check{}, err
	}
	c.guard, err = m.guard.decode(guard, decodeGuard)
	return c, err
}

func decodeGuard(value []byte) (store.Guard, error) {
	var g store.Guard
	if value == nil {
		return g, errors.New("session: the store has no amnesia guard")
	}
	if err := json.Unmarshal(value, &g); err != nil {
		return g, fmt.Errorf("session: reading the amnesia guard: %w", err)
	}
	return g, nil
}

// lately keeps what was decoded last. Every page reads the guard and the
// tenant's record, which hardly ever change.
type lately[T any] struct{ last atomic.Pointer[decoded[T]] }

type decoded[T any] struct {
	raw   []byte
	value T
}

func (l *lately[T]) decode(raw []byte, decode func([]byte) (T, error)) (T, error) {
	if last := l.last.Load(); last != nil && raw != nil && bytes.Equal(last.raw, raw) {
		return last.value, nil
	}
	value, err := decode(raw)
	if err == nil && raw != nil {
		l.last.Store(&decoded[T]{raw, value})
	}
	return value, err
}

// live reports whether s may still be used.
func (m *Manager) live(s *Session, c check, now time.Time) bool {
	return now.Before(s.Expires) && now.Before(s.Seen.Add(m.Idle)) &&
		s.Epoch >= c.customer.Epoch && s.TenantEpoch >= c.tenant.Epoch && s.Restored.Equal(c.guard.Restored)
}

const (
	// notePatience bounds how long a page waits for a note about its session.
	notePatience = 2 * time.Second
	// noteAgain is how long after a failure no further note is tried: a store
	// that takes no writes must not slow down every page.
	noteAgain = 5 * time.Second
)

// note writes down something about the session that a page was asked with: the
// page does not depend on it. Of many requests at once, one does it. It reports
// whether it was done.
func (m *Manager) note(ctx context.Context, hash string, now time.Time, write func(store.Tx) error) bool {
	if since := now.Sub(time.Unix(0, m.failed.Load())); since >= 0 && since < noteAgain {
		return false
	}
	if _, busy := m.touching.LoadOrStore(hash, nil); busy {
		return false
	}
	defer m.touching.Delete(hash)
	bounded, cancel := context.WithTimeout(ctx, notePatience)
	defer cancel()
	err := m.Store.Update(bounded, write)
	if err != nil && ctx.Err() == nil {
		m.failed.Store(now.UnixNano())
		if m.Log != nil {
			m.Log.Warn("could not note that a session is in use; if this goes on, sessions end after their idle time", zap.Error(err))
		}
	}
	return err == nil
}

// touch moves Seen, which only ever goes forward. It reports whether the
// session is gone meanwhile, and does not bring it back.
func (m *Manager) touch(tx store.Tx, hash string, now time.Time) (gone bool, err error) {
	s, err := readSession(tx, m.Tenant, hash)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	// Another request, here or on another node, may just have done it.
	if err != nil || now.Sub(s.Seen) < m.Idle/10 {
		return false, err
	}
	s.Seen = now.UTC()
	value, err := json.Marshal(s)
	if err != nil {
		return false, err
	}
	return false, tx.Put(sessionKey(m.Tenant, hash), value)
}

// bury deletes a session that was seen to be over, so that a clock that goes
// backwards does not revive it.
func (m *Manager) bury(tx store.Tx, hash string, c check, now time.Time) error {
	s, err := readSession(tx, m.Tenant, hash)
	if errors.Is(err, store.ErrNotFound) || err == nil && m.live(&s, c, now) { // used meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	return m.remove(tx, hash, "expired", now)
}

// End signs out: the cookie is worth nothing once End has returned nil. It
// returns no error for a cookie that stands for no session.
func (m *Manager) End(ctx context.Context, cookie string) error {
	hash, _, ok := split(cookie)
	if !ok {
		return nil
	}
	key := sessionKey(m.Tenant, hash)
	// Anybody can send made-up cookies: what is not there costs no write.
	if values, err := m.Store.GetAll(ctx, key); err != nil || values[0] == nil {
		return err
	}
	now := m.Now().UTC()
	return m.Store.Update(ctx, func(tx store.Tx) error { return m.remove(tx, hash, "signed_out", now) })
}
