package session

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const (
	// SupportAbsolute is how long a session of the vendor's staff lives at most.
	SupportAbsolute = time.Hour
	// MaxSupport is how many of them a customer's account can have at once; one
	// more ends the one that was used least recently.
	MaxSupport = 20
	// maxViews is how many paths one of them may look at.
	maxViews = 500
)

// ErrTooMuch says that a session of the vendor's staff has looked at so many
// pages that it is no longer somebody helping a customer.
var ErrTooMuch = errors.New("session: support has looked at too many pages")

// Support reports whether the session is one of the vendor's own staff, who look
// at a customer's account and change nothing.
func (s *Session) Support() bool { return s.Role == link.RoleSupport }

// Staff is the name of the person, as far as it is known.
func (s *Session) Staff() string {
	for _, name := range []string{s.Actor.Name, s.Actor.Email} {
		if name != "" {
			return name
		}
	}
	return s.Actor.ID
}

// mark names a session in the audit trail without giving away its id.
func mark(hash string) string {
	sum := sha256.Sum256([]byte("support\x00" + hash))
	return hex.EncodeToString(sum[:8])
}

func (s *Session) record(event, id string, now time.Time) audit.Record {
	return audit.Record{ID: mark(s.Hash) + "-" + id, Time: now, Customer: s.Customer, Actor: s.Actor, Role: s.Role, Event: event}
}

// opened writes down that the vendor's staff came in, and why.
func (m *Manager) opened(tx store.Tx, s *Session) error {
	r := s.record("support_opened", "opened", s.Created)
	r.Until, r.Note = s.Expires, s.Reason
	return audit.Put(tx, m.Tenant, r)
}

// remove deletes a session, and writes down how it ended where it is one of the
// vendor's staff. One that is not there stays so.
func (m *Manager) remove(tx store.Tx, hash, how string, now time.Time) error {
	s, err := readSession(tx, m.Tenant, hash)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil && s.Support() {
		r := s.record("support_ended", "ended", now.UTC())
		if r.Note = how; !now.Before(s.Expires) {
			r.Note = "expired"
		}
		if err := audit.Put(tx, m.Tenant, r); err != nil {
			return err
		}
	}
	return tx.Delete(sessionKey(m.Tenant, hash)) // one that cannot be read goes too
}

// View writes down that a session of the vendor's staff looks at a path, the
// first time that it does. Nothing may be shown where it fails.
func (m *Manager) View(ctx context.Context, s *Session, path, requestID string) error {
	sum := sha256.Sum256([]byte(path))
	key := store.Key(m.Tenant, "support-view", s.Hash, string(sum[:16]))
	if values, err := m.Store.GetAll(ctx, key); err != nil || values[0] != nil {
		return err
	}
	r := s.record("support_viewed", "viewed-"+hex.EncodeToString(sum[:8]), m.Now().UTC())
	r.Object, r.RequestID = path[:min(len(path), 200)], requestID
	return m.Store.Update(ctx, func(tx store.Tx) error {
		if _, err := tx.Get(key); !errors.Is(err, store.ErrNotFound) {
			return err
		}
		seen, err := tx.Scan(store.Key(m.Tenant, "support-view", s.Hash), nil, maxViews, false)
		if err != nil {
			return err
		}
		if len(seen) >= maxViews {
			return ErrTooMuch
		}
		if err := store.PutExpiring(tx, m.Tenant, key, []byte{1}, s.Expires); err != nil {
			return err
		}
		return audit.Put(tx, m.Tenant, r)
	})
}
