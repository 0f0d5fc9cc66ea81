// Package store holds the contract between the portal and the place where its
// state lives: an ordered key-value store with serializable transactions.
// Implementations live in sub-packages and all pass package storetest.
package store

import (
	"bytes"
	"context"
	"errors"
)

// MaxValue is the largest value a store takes, in bytes.
const MaxValue = 64 << 10

// MaxKey is the longest key a store takes, in bytes. A key is at least one
// byte long. The limit is what every engine can index (PostgreSQL's B-tree
// takes about 2,700 bytes).
const MaxKey = 1 << 10

var (
	// ErrNotFound says that a key has no value.
	ErrNotFound = errors.New("store: key not found")

	// ErrUnknown says that a commit was sent and its reply was lost: the
	// update may or may not have been applied. Read again before deciding;
	// records carry their writer's id for that reason.
	ErrUnknown = errors.New("store: outcome of the commit is unknown")

	// ErrUnavailable says that the store cannot take writes, or cannot be
	// reached, at the moment: its disk is nearly full, its server is down.
	// Nothing was changed. It may pass by itself, so try again later; answer
	// 503 until then.
	ErrUnavailable = errors.New("store: not available at the moment")

	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("store: closed")

	// ErrTooLarge says that a value or a whole update is over the limit.
	// Nothing was changed.
	ErrTooLarge = errors.New("store: value or update too large")

	// ErrReadOnly says that Put or Delete was called in a View.
	ErrReadOnly = errors.New("store: write in a read-only transaction")

	// ErrSealed says that a value could not be opened with the seal keys at
	// hand: the wrong key, or a value that was tampered with.
	ErrSealed = errors.New("store: value cannot be opened with the seal keys given")
)

// Store is an ordered key-value store. It is safe for concurrent use.
type Store interface {
	// View runs fn on a consistent snapshot.
	View(ctx context.Context, fn func(Tx) error) error

	// Update runs fn and commits what it wrote, serializable and durable
	// (over a process crash and a power loss) when it returns nil. An error
	// other than ErrUnknown means that nothing changed. fn may run more than
	// once and must be pure: ids, time and randomness are made outside, and
	// it does no I/O, no provider call and no nested Update.
	Update(ctx context.Context, fn func(Tx) error) error

	// GetAll reads keys in one snapshot with one round trip. The result has
	// one entry per key, nil where the key has no value.
	GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error)
}

// Tx is a transaction. It must not be used after the function it was given to
// has returned, nor by more than one goroutine. Slices it returns belong to
// the caller; slices it is given must not be changed until the transaction
// ends.
type Tx interface {
	// Get returns the value of key, or ErrNotFound. Decisions rest on keys
	// that were read with Get: an Update conflicts when one of them changed,
	// also when it was absent.
	Get(key []byte) ([]byte, error)

	// Put sets the value of key.
	Put(key, value []byte) error

	// Delete removes key. Deleting an absent key is not an error.
	Delete(key []byte) error

	// Scan returns at most limit entries (limit <= 0: 1,000) whose key begins
	// with prefix, in key order, or in descending order with reverse. A
	// non-nil from is the first key to return (inclusive) in that direction.
	// It sees the transaction's own writes. It promises a snapshot and
	// nothing more: it does not conflict with keys that others add.
	Scan(prefix, from []byte, limit int, reverse bool) ([]Entry, error)
}

// Entry is a key and its value.
type Entry struct {
	Key, Value []byte
}

// Key encodes parts as one key. The encoding keeps the order of tuples (parts
// are compared one after another, bytewise) and no tuple's key is a prefix of
// another one's unless the tuple itself is: Key("a") is a prefix of
// Key("a", "x") and not of Key("ab"). A part may hold any bytes: 0x00 is
// written as 0x00 0xFF, and each part ends with 0x00 0x01.
func Key(parts ...string) []byte {
	n := 0
	for _, p := range parts {
		n += len(p) + 2
	}
	k := make([]byte, 0, n)
	for _, p := range parts {
		for i := 0; i < len(p); i++ {
			k = append(k, p[i])
			if p[i] == 0 {
				k = append(k, 0xFF)
			}
		}
		k = append(k, 0x00, 0x01)
	}
	return k
}

// Parts decodes a key made by Key. It reports false for any other bytes.
func Parts(key []byte) ([]string, bool) {
	var parts []string
	var cur []byte
	for i := 0; i < len(key); i++ {
		if key[i] != 0 {
			cur = append(cur, key[i])
			continue
		}
		if i+1 >= len(key) {
			return nil, false
		}
		i++
		switch key[i] {
		case 0xFF:
			cur = append(cur, 0)
		case 0x01:
			parts = append(parts, string(cur))
			cur = cur[:0]
		default:
			return nil, false
		}
	}
	return parts, len(cur) == 0
}

// TimePart is t as a key part that sorts by time: Unix nanoseconds, 20
// digits.
func TimePart(unixNano int64) string {
	if unixNano < 0 {
		unixNano = 0
	}
	var b [20]byte
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + unixNano%10)
		unixNano /= 10
	}
	return string(b[:])
}

// Successor returns the first key after all keys with prefix, nil when there is
// none.
func Successor(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xFF {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}
