// Package audit writes down what happened, by whom and when. Records are
// written in the transaction of what they tell of.
package audit

import (
	"encoding/json"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Record is one entry of the trail. It holds no secret and no session id.
type Record struct {
	ID       string     `json:"id"`
	Time     time.Time  `json:"time"`
	Customer string     `json:"customer"`
	Actor    link.Actor `json:"actor"`
	Role     string     `json:"role"`
	// Event: "denied", "confirmed", "settled", "settled_by_operator";
	// "support_opened", "support_viewed" (Object is the path) and
	// "support_ended" of the vendor's staff in a session of their own.
	Event  string `json:"event"`
	Action string `json:"action"`
	Object string `json:"object,omitempty"`
	// Objects are all objects of the action, Object first, where there are more.
	Objects []string `json:"objects,omitempty"`
	// Intent and State tell which intent it was and how it went.
	Intent    string `json:"intent,omitempty"`
	State     string `json:"state,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	// Until is when a session that was opened ends at the latest.
	Until time.Time `json:"until,omitzero"`
	// By and Note are the operator of a "settled_by_operator" and what they
	// wrote; Actor is still the customer's. Of a "support_opened" Note is the
	// reason, of a "support_ended" how it ended: "signed_out", "revoked",
	// "replaced", "expired".
	By   string `json:"by,omitempty"`
	Note string `json:"note,omitempty"`
}

func prefix(tenant, customer string) []byte { return store.Key(tenant, "audit", customer) }

// Put writes r. The same ID and Time write the same record again.
func Put(tx store.Tx, tenant string, r Record) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.Put(store.Key(tenant, "audit", r.Customer, store.TimePart(r.Time.UnixNano()), r.ID), value)
}

// Latest reads a customer's newest records.
func Latest(tx store.Tx, tenant, customer string, limit int) ([]Record, error) {
	entries, err := tx.Scan(prefix(tenant, customer), nil, limit, true)
	if err != nil {
		return nil, err
	}
	records := make([]Record, 0, len(entries))
	for _, e := range entries {
		var r Record
		if err := json.Unmarshal(e.Value, &r); err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}
