// Package session exchanges redirect tokens for sessions and reads sessions
// back. A session is state on the server behind an opaque cookie; a token makes
// at most one.
package session

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Lifetimes where the config gives none.
const (
	DefaultIdle     = 30 * time.Minute
	DefaultAbsolute = 8 * time.Hour
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
	Permissions   []string  `json:"permissions"`
	ReturnURL     string    `json:"return_url,omitempty"`
	Locale        string    `json:"locale,omitempty"`
	Configuration string    `json:"configuration,omitempty"`
	Created       time.Time `json:"created"`
	Expires       time.Time `json:"expires"` // absolute, never moved
	Seen          time.Time `json:"seen"`    // within a tenth of the idle time
	// Epoch is the customer's revocation epoch when the session was made.
	Epoch uint64 `json:"epoch"`
}

// CustomerRecord is what the store keeps about every customer that ever had a
// session.
type CustomerRecord struct {
	// Epoch goes up when all of the customer's sessions are revoked.
	Epoch uint64 `json:"epoch"`
	// Version goes up whenever the customer's account changed, or may have.
	Version uint64 `json:"version"`
}

// Manager makes, reads and ends a tenant's sessions.
type Manager struct {
	Store          store.Store
	Tenant         string
	Now            func() time.Time
	Rand           io.Reader
	Idle, Absolute time.Duration
	// DefaultRole is the role of a link that names none.
	DefaultRole string
}

const (
	idBytes   = 32 // 256 bits of crypto/rand
	hashBytes = 16
	rawBytes  = idBytes + hashBytes
)

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
// The second result is the new cookie's value.
func (m *Manager) Redeem(ctx context.Context, c link.Claims, own bool, prior string) (Session, string, error) {
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
		Created: now, Expires: now.Add(m.Absolute), Seen: now,
	}
	if s.Role == "" {
		s.Role = m.DefaultRole
	}
	mark, err := json.Marshal(spent{At: now, Session: hash, Subject: c.Subject})
	if err != nil {
		return Session{}, "", err
	}
	// A token is refused by its own exp long before its mark is swept.
	markUntil := c.Expires.Add(time.Hour)
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
		// A new session reads the account anew.
		rec.Version++
		if err := writeCustomer(tx, m.Tenant, c.Subject, rec); err != nil {
			return err
		}
		made := s
		made.Epoch = rec.Epoch
		value, err := json.Marshal(made)
		if err != nil {
			return err
		}
		if err := store.PutExpiring(tx, m.Tenant, key, mark, markUntil); err != nil {
			return err
		}
		if err := store.PutExpiring(tx, m.Tenant, sessionKey(m.Tenant, hash), value, s.Expires); err != nil {
			return err
		}
		s.Epoch = rec.Epoch
		if old, _, ok := split(prior); ok {
			return tx.Delete(sessionKey(m.Tenant, old))
		}
		return nil
	})
	if err != nil {
		return Session{}, "", err
	}
	return s, cookie, nil
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

// RevokeCustomer ends all sessions of a customer, on the next request.
func (m *Manager) RevokeCustomer(ctx context.Context, customer string) error {
	return m.Store.Update(ctx, func(tx store.Tx) error {
		rec, err := ReadCustomer(tx, m.Tenant, customer)
		if err != nil {
			return err
		}
		rec.Epoch++
		return writeCustomer(tx, m.Tenant, customer, rec)
	})
}

// Read returns the session behind a cookie and the customer's record, in one
// read. It notes that the session is in use, at most once in a tenth of the
// idle time. ErrNone where there is no session or it is over.
func (m *Manager) Read(ctx context.Context, cookie string) (Session, CustomerRecord, error) {
	hash, customer, ok := split(cookie)
	if !ok {
		return Session{}, CustomerRecord{}, ErrNone
	}
	values, err := m.Store.GetAll(ctx, sessionKey(m.Tenant, hash), store.Key(m.Tenant, "customer", customer))
	if err != nil {
		return Session{}, CustomerRecord{}, err
	}
	s, rec, err := m.decode(hash, customer, values[0], values[1])
	if err != nil {
		return Session{}, CustomerRecord{}, err
	}
	now := m.Now()
	if !m.live(&s, rec, now) {
		return Session{}, CustomerRecord{}, ErrNone
	}
	if now.Sub(s.Seen) >= m.Idle/10 {
		if err := m.touch(ctx, hash, now); err != nil {
			return Session{}, CustomerRecord{}, err
		}
		s.Seen = now
	}
	return s, rec, nil
}

func (m *Manager) decode(hash, customer string, sv, cv []byte) (Session, CustomerRecord, error) {
	if sv == nil || cv == nil {
		return Session{}, CustomerRecord{}, ErrNone
	}
	var s Session
	if err := json.Unmarshal(sv, &s); err != nil {
		return Session{}, CustomerRecord{}, fmt.Errorf("session: reading a session: %w", err)
	}
	s.Hash = hash
	if customerHash(m.Tenant, s.Customer) != customer {
		return Session{}, CustomerRecord{}, ErrNone
	}
	var rec CustomerRecord
	if err := json.Unmarshal(cv, &rec); err != nil {
		return Session{}, CustomerRecord{}, fmt.Errorf("session: reading a customer's record: %w", err)
	}
	return s, rec, nil
}

// live reports whether s may still be used. A clock behind Seen does not
// revive a session: only Expires and Seen count, and Seen only moves forward.
func (m *Manager) live(s *Session, rec CustomerRecord, now time.Time) bool {
	return now.Before(s.Expires) && now.Before(s.Seen.Add(m.Idle)) && s.Epoch >= rec.Epoch
}

func (m *Manager) touch(ctx context.Context, hash string, now time.Time) error {
	return m.Store.Update(ctx, func(tx store.Tx) error {
		value, err := tx.Get(sessionKey(m.Tenant, hash))
		if errors.Is(err, store.ErrNotFound) {
			return ErrNone // signed out meanwhile: do not bring it back
		}
		if err != nil {
			return err
		}
		var s Session
		if err := json.Unmarshal(value, &s); err != nil {
			return err
		}
		if !now.After(s.Seen) {
			return nil
		}
		s.Seen = now.UTC()
		value, err = json.Marshal(s)
		if err != nil {
			return err
		}
		return tx.Put(sessionKey(m.Tenant, hash), value)
	})
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
	return m.Store.Update(ctx, func(tx store.Tx) error { return tx.Delete(key) })
}
