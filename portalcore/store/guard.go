package store

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// GuardSkew is how far the clock of a signer may be ahead of ours: a token
// that the vendor signed needs an iat later than the guard's Cutoff plus
// GuardSkew.
const GuardSkew = 5 * time.Second

// Guard is the amnesia guard. A redirect token is good for one use because the
// store remembers that it was used. A store that may have forgotten (it is
// new, was restored from a backup, was not shut down cleanly, or its wall
// clock went backwards) therefore refuses the tokens from before:
//
//   - The portal's own tokens carry the store's Generation and are refused
//     unless it is equal. No clock takes part.
//   - Tokens that the vendor signed know no generation. They are refused unless
//     their iat is later than Cutoff plus GuardSkew.
//
// A store begins a new generation as soon as it sees that it may have
// forgotten. Read the guard in the transaction that redeems the token.
type Guard struct {
	// Generation is 16 random bytes in base64url without padding.
	Generation string `json:"generation"`

	// Cutoff is when this generation began, by the portal's clock.
	Cutoff time.Time `json:"cutoff"`

	// Reason says, for operators, why the generation began.
	Reason string `json:"reason"`
	// Restored is when the store was last put back to an earlier state (a backup
	// was restored), by the portal's clock; zero for never. What was revoked
	// since that state may be back, and what was sent may stand as not sent:
	// sessions and pinned previews from before it are over, and intents from
	// before it are settled by reading the provider, never by sending again.
	Restored time.Time `json:"restored"`
}

// StoreKey is the key of a record that belongs to the store itself. Its first
// part is empty, which no tenant's name is.
func StoreKey(parts ...string) []byte {
	return Key(append([]string{""}, parts...)...)
}

// GuardKey is the key of the guard's record.
func GuardKey() []byte { return StoreKey("guard") }

// NewGuard returns a guard with a new generation that begins now. Random is
// crypto/rand.Reader but in tests.
func NewGuard(random io.Reader, now time.Time, reason string) (Guard, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return Guard{}, fmt.Errorf("store: making a generation: %w", err)
	}
	return Guard{
		Generation: base64.RawURLEncoding.EncodeToString(b[:]),
		Cutoff:     now.UTC().Round(0),
		Reason:     reason,
	}, nil
}

// ReadGuard reads the guard. A store without one returns an error that wraps
// ErrNotFound: refuse every token then.
func ReadGuard(tx Tx) (Guard, error) {
	value, err := tx.Get(GuardKey())
	if err != nil {
		return Guard{}, fmt.Errorf("store: reading the amnesia guard: %w", err)
	}
	var g Guard
	if err := json.Unmarshal(value, &g); err != nil {
		return Guard{}, fmt.Errorf("store: reading the amnesia guard: %w", err)
	}
	// A zero guard would accept every token.
	if g.Generation == "" || g.Cutoff.IsZero() {
		return Guard{}, errors.New("store: the amnesia guard is incomplete")
	}
	return g, nil
}

// MarkRestored begins a new generation because the store was put back to an
// earlier state. Stores that see it for themselves call it when they open;
// where only the operator can know (a PostgreSQL server that was recovered to a
// point in time), the operator's command does.
func MarkRestored(ctx context.Context, s Store, random io.Reader, now time.Time, reason string) (Guard, error) {
	g, err := NewGuard(random, now, reason)
	if err != nil {
		return Guard{}, err
	}
	g.Restored = g.Cutoff
	return g, s.Update(ctx, func(tx Tx) error { return WriteGuard(tx, g) })
}

// Next is NewGuard for a store that has a guard: what g says about restores
// stays.
func (g Guard) Next(random io.Reader, now time.Time, reason string) (Guard, error) {
	next, err := NewGuard(random, now, reason)
	next.Restored = g.Restored
	return next, err
}

// WriteGuard replaces the guard. Only stores call it.
func WriteGuard(tx Tx, g Guard) error {
	value, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("store: writing the amnesia guard: %w", err)
	}
	return tx.Put(GuardKey(), value)
}
