package pages

import (
	"context"
	"fmt"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

const (
	// shelfLife is how long a page shows what was read without asking again.
	shelfLife = time.Minute
	// shelfTimeout bounds a read: it goes on when the first who asked went away,
	// so that "Try again" finds it done.
	shelfTimeout = 20 * time.Second
	// shelfBytes bounds the memory of one shelf.
	shelfBytes = 16 << 20
)

// shelf keeps reads of the provider that are not part of the account, for a
// short while and under keys that name all that they depend on. All who ask for
// one thing at the same time share one read. A read that failed is not kept.
type shelf[T any] struct {
	now   func() time.Time
	cache *otter.Cache[string, onShelf[T]]
	reads singleflight.Group
}

type onShelf[T any] struct {
	value T
	read  time.Time
}

// newShelf makes a shelf. weight is about how many bytes a value takes.
func newShelf[T any](now func() time.Time, weight func(T) uint32) (*shelf[T], error) {
	c, err := otter.New(&otter.Options[string, onShelf[T]]{
		MaximumWeight:    shelfBytes,
		Weigher:          func(key string, v onShelf[T]) uint32 { return uint32(len(key)) + 128 + weight(v.value) },
		ExpiryCalculator: otter.ExpiryWriting[string, onShelf[T]](shelfLife),
	})
	if err != nil {
		return nil, err
	}
	return &shelf[T]{now: now, cache: c}, nil
}

// get returns what stands under key, or reads it. It waits until ctx ends. The
// age counts from when the read began: what happened since may be in it or not.
func (s *shelf[T]) get(ctx context.Context, key string, read func(context.Context) (T, error)) (T, error) {
	if v, ok := s.cache.GetIfPresent(key); ok {
		// Below zero the clock went backwards: the age is not known.
		if age := s.now().Sub(v.read); age >= 0 && age < shelfLife {
			return v.value, nil
		}
	}
	done := s.reads.DoChan(key, func() (_ any, err error) {
		// The read has a goroutine of its own: nothing else stops a panic here
		// from ending the process.
		defer func() {
			if r := recover(); r != nil {
				err = &billing.Error{Fault: billing.Unavailable, Code: "panic", Err: fmt.Errorf("panic while reading: %v", r)}
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shelfTimeout)
		defer cancel()
		v := onShelf[T]{read: s.now()}
		if v.value, err = read(ctx); err != nil {
			return nil, err
		}
		s.cache.Set(key, v)
		return v.value, nil
	})
	var none T
	select {
	case r := <-done:
		if r.Err != nil {
			return none, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return none, &billing.Error{Fault: billing.Unavailable, Err: ctx.Err()}
	}
}

func (s *shelf[T]) close() { s.cache.StopAllGoroutines() }
