package session

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// List returns the live sessions in a customer's account, those of the vendor's
// staff among them, newest first, at most limit of them (0: all). A session that a version of the portal without lists made is
// not among them.
func (m *Manager) List(ctx context.Context, customer string, limit int) ([]Session, error) {
	now := m.Now()
	var list []Session
	err := m.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		c, err := m.readCheck(tx, customer)
		if err != nil {
			return err
		}
		for _, hash := range slices.Concat(c.customer.Sessions, c.customer.Support) {
			s, err := readSession(tx, m.Tenant, hash)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if m.live(&s, c, now) {
				list = append(list, s)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(list)
	slices.SortStableFunc(list, func(a, b Session) int { return b.Created.Compare(a.Created) })
	if limit > 0 {
		list = list[:min(len(list), limit)]
	}
	return list, nil
}

func (m *Manager) readCheck(tx store.Tx, customer string) (check, error) {
	rec, err := ReadCustomer(tx, m.Tenant, customer)
	if err != nil {
		return check{}, err
	}
	all, err := readTenant(tx, m.Tenant)
	if err != nil {
		return check{}, err
	}
	guard, err := store.ReadGuard(tx)
	return check{rec, all, guard}, err
}

// Revoke ends the session with that ID, on its next request on every node. A
// customer that is not "" must be the session's own. ErrNone where there is no
// such session, or it is over.
func (m *Manager) Revoke(ctx context.Context, customer, id string) error {
	hash, ok := hashOf(id)
	if !ok {
		return ErrNone
	}
	// What is not there costs no write.
	err := m.Store.View(ctx, func(tx store.Tx) error {
		s, err := readSession(tx, m.Tenant, hash)
		if errors.Is(err, store.ErrNotFound) || err == nil && customer != "" && s.Customer != customer {
			return ErrNone
		}
		if err != nil {
			return err
		}
		c, err := m.readCheck(tx, s.Customer)
		if err == nil && !m.live(&s, c, m.Now()) {
			return ErrNone
		}
		return err
	})
	if err != nil {
		return err
	}
	now := m.Now().UTC()
	return m.Store.Update(ctx, func(tx store.Tx) error { return m.remove(tx, hash, "revoked", now) })
}

// hashOf reads a session's public id.
func hashOf(id string) (string, bool) {
	hash, ok := strings.CutPrefix(id, idPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(hash)
	return hash, ok && err == nil && len(raw) == 32
}

// Known reports whether a customer ever had a session.
func (m *Manager) Known(ctx context.Context, customer string) (bool, error) {
	values, err := m.Store.GetAll(ctx, CustomerKey(m.Tenant, customer))
	return err == nil && values[0] != nil, err
}

// RevokeCustomer ends all sessions of a customer, on their next request on
// every node. A customer that never had one has none to end: nothing is
// written.
func (m *Manager) RevokeCustomer(ctx context.Context, customer string) error {
	now := m.Now().UTC()
	return m.Store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Get(CustomerKey(m.Tenant, customer))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		rec, err := ReadCustomer(tx, m.Tenant, customer)
		if err != nil {
			return err
		}
		for _, hash := range rec.Support {
			if err := m.remove(tx, hash, "revoked", now); err != nil {
				return err
			}
		}
		rec.Epoch++
		rec.Sessions, rec.Support = nil, nil
		return writeCustomer(tx, m.Tenant, customer, rec)
	})
}

// Prepare writes the tenant's record where there is none, before anybody signs
// in. Every Redeem reads it: PostgreSQL has no lock for what is not there that
// readers could share, so that they would wait for one another.
func (m *Manager) Prepare(ctx context.Context) error {
	return m.Store.Update(ctx, func(tx store.Tx) error {
		key := tenantKey(m.Tenant)
		if _, err := tx.Get(key); !errors.Is(err, store.ErrNotFound) {
			return err
		}
		value, err := json.Marshal(TenantRecord{})
		if err != nil {
			return err
		}
		return tx.Put(key, value)
	})
}

// RevokeTenant ends all sessions of all of the tenant's customers, on their
// next request on every node.
func (m *Manager) RevokeTenant(ctx context.Context) error {
	return m.Store.Update(ctx, func(tx store.Tx) error {
		rec, err := readTenant(tx, m.Tenant)
		if err != nil {
			return err
		}
		rec.Epoch++
		value, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		return tx.Put(tenantKey(m.Tenant), value)
	})
}
