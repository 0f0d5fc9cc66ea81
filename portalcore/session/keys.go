package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const (
	// KeyLife is how long the portal signs its own links with one key. The key
	// before it stays valid for verification, far longer than a link lives.
	KeyLife = 30 * 24 * time.Hour
	// KeyAhead is how long a new key is only verified with, where there is another
	// one to sign with: every node has read it by the time that one signs with it.
	// Nodes call OwnKeys at least twice in that time.
	KeyAhead = 2 * time.Hour
)

type ownKey struct {
	Private []byte    `json:"private"` // PKCS #8; the store seals it
	Created time.Time `json:"created"`
}

// OwnKeys returns the keys that a tenant's portal verifies its own links with,
// and first the one that it signs them with. They live in the store and nowhere
// else; the first call makes one, and a later one the next once KeyLife has
// passed, which is signed with when it is KeyAhead old.
func OwnKeys(ctx context.Context, s store.Store, tenant string, random io.Reader, now time.Time) ([]link.Key, error) {
	fresh, err := link.GenerateKey(random)
	if err != nil {
		return nil, err
	}
	der, err := link.MarshalPrivate(fresh)
	if err != nil {
		return nil, err
	}
	var kept []ownKey
	err = s.Update(ctx, func(tx store.Tx) error {
		kept = nil
		key := store.Key(tenant, "link-keys")
		value, err := tx.Get(key)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err == nil {
			if err := json.Unmarshal(value, &kept); err != nil {
				return fmt.Errorf("session: reading the link keys: %w", err)
			}
		}
		if len(kept) > 0 && now.Sub(kept[0].Created) < KeyLife {
			return nil
		}
		kept = append([]ownKey{{Private: der, Created: now.UTC()}}, kept...)
		kept = kept[:min(len(kept), 2)]
		if value, err = json.Marshal(kept); err != nil {
			return err
		}
		return tx.Put(key, value)
	})
	if err != nil {
		return nil, fmt.Errorf("session: link keys of %s: %w", tenant, err)
	}
	// The newest is first. It waits until the other nodes know it.
	if len(kept) > 1 && now.Sub(kept[0].Created) < KeyAhead {
		kept[0], kept[1] = kept[1], kept[0]
	}
	keys := make([]link.Key, len(kept))
	for i, k := range kept {
		if keys[i], err = link.ParsePrivate(k.Private); err != nil {
			return nil, fmt.Errorf("session: link keys of %s: %w", tenant, err)
		}
	}
	return keys, nil
}

// Generation returns the store's generation, which the portal's own links
// carry.
func Generation(ctx context.Context, s store.Store) (string, error) {
	var g store.Guard
	err := s.View(ctx, func(tx store.Tx) (err error) {
		g, err = store.ReadGuard(tx)
		return err
	})
	return g.Generation, err
}
