package journal

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// ErrCursor says that a cursor is none that Page returned for the same list.
var ErrCursor = errors.New("journal: this is no cursor of this list")

// Page reads at most limit (1 to 1,000) intents of a customer, or with customer
// "" of the tenant, in the order of their keys. after is "" or what the page
// before returned as next, which is "" after the last page.
func (j *Journal) Page(ctx context.Context, customer, after string, limit int) (list []Intent, next string, err error) {
	prefix := store.Key(j.Tenant, "intent")
	if customer != "" {
		prefix = store.Key(j.Tenant, "intent", customer)
	}
	var from []byte
	if after != "" {
		rest, err := base64.RawURLEncoding.Strict().DecodeString(after)
		if err != nil || len(rest) > store.MaxKey {
			return nil, "", ErrCursor
		}
		from = append(bytes.Clone(prefix), rest...)
	}
	var entries []store.Entry
	err = j.Store.View(ctx, func(tx store.Tx) (err error) {
		entries, err = tx.Scan(prefix, from, limit+1, false)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	if len(entries) > limit {
		next = base64.RawURLEncoding.EncodeToString(bytes.TrimPrefix(entries[limit].Key, prefix))
		entries = entries[:limit]
	}
	for _, e := range entries {
		var i Intent
		if err := json.Unmarshal(e.Value, &i); err != nil {
			return nil, "", fmt.Errorf("journal: reading an intent: %w", err)
		}
		list = append(list, i)
	}
	return list, next, nil
}
