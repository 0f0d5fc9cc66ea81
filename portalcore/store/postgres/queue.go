package postgres

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
)

// errBusy says that another update of this process is about to write one of
// the keys.
var errBusy = errors.New("store: another update writes the same keys")

// keyLocks keeps updates of this process that write the same keys from making
// each other fail at the server. They are no more than that: other nodes have
// their own, and what is true is decided at the server.
type keyLocks struct {
	mu   sync.Mutex
	keys map[string]*keyLock
}

// keyLock is the lock of one key. Waiting senders are served in their order.
type keyLock struct {
	turn  chan struct{}
	users int // who has it or waits for it; guarded by keyLocks.mu
}

// heldKeys are the locks of one update.
type heldKeys struct {
	locks *keyLocks
	keys  map[string]*keyLock
}

// try takes the locks of what is to be written, unless somebody has one.
func (h *heldKeys) try(writes map[string][]byte) bool {
	h.locks.mu.Lock()
	defer h.locks.mu.Unlock()
	for k := range writes {
		if h.keys[k] == nil && h.locks.keys[k] != nil {
			return false
		}
	}
	for k := range writes {
		if h.keys[k] == nil {
			h.add(k).turn <- struct{}{} // it is new
		}
	}
	return true
}

// add registers the update at a key's lock. The mutex is held.
func (h *heldKeys) add(key string) *keyLock {
	if h.keys == nil {
		h.keys = make(map[string]*keyLock)
	}
	if h.locks.keys == nil {
		h.locks.keys = make(map[string]*keyLock)
	}
	l := h.locks.keys[key]
	if l == nil {
		l = &keyLock{turn: make(chan struct{}, 1)}
		h.locks.keys[key] = l
	}
	l.users++
	h.keys[key] = l
	return l
}

// wait takes the locks of what an attempt wrote, in the order of the keys, for
// the next attempt. What is held already stays held where nothing is missing:
// an update that failed against another node does not go to the end.
func (h *heldKeys) wait(ctx context.Context, writes map[string][]byte) error {
	missing := false
	for k := range writes {
		missing = missing || h.keys[k] == nil
	}
	if !missing {
		return nil
	}
	h.release()
	for _, k := range slices.Sorted(maps.Keys(writes)) {
		h.locks.mu.Lock()
		l := h.add(k)
		h.locks.mu.Unlock()
		select {
		case l.turn <- struct{}{}:
		case <-ctx.Done():
			h.forget(k, l)
			return ctx.Err()
		}
	}
	return nil
}

// forget takes back the registration at a lock that is not held.
func (h *heldKeys) forget(key string, l *keyLock) {
	h.locks.mu.Lock()
	defer h.locks.mu.Unlock()
	delete(h.keys, key)
	if l.users--; l.users == 0 {
		delete(h.locks.keys, key)
	}
}

func (h *heldKeys) release() {
	for k, l := range h.keys {
		<-l.turn
		h.forget(k, l)
	}
}
