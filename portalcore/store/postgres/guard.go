package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// The amnesia guard. A PostgreSQL server may have forgotten what it
// acknowledged when another one answers in its place (a promoted standby, a
// restored backup) or when it was restarted (whoever restarts it may have put
// another disk under it). The portal's own processes come and go without any
// of that.
//
// A connection cannot outlive its server, but a pooler between us and the
// server can hide the change. So whoever reads the guard reads in the same
// statement which server answers, and compares it with the record that was
// written with the guard: the first redemption after a failover sees the
// change, whatever stands in between, and runs again in the new generation.
// The record and the guard are written in one serializable transaction that
// compares again, so of several nodes that see the change one makes the new
// generation and the others find it made.
//
// The wall clock: a spent link's mark is swept long after the link expired (a
// day, see session.Redeem; the tolerance is right for an hour). A clock that
// ran ahead and was put back could therefore bring a swept link back to life
// only if it went back by nearly as long.
// The record keeps a high-water mark of the time; a server whose clock is
// behind it by more than clockTolerance begins a new generation. The mark is
// the lesser of the node's and the server's clock, so that one node whose clock
// is ahead cannot make the server look late, and is written at most every
// clockStep.
//
// One node's clock begins none: a new generation does not put it right, and
// would end everybody's links every few seconds. A node that is behind the
// server by more than clockTolerance does not get the guard (errSlow), so that
// it takes no link whose mark others have swept, and none that has expired.
const (
	clockTolerance = 30 * time.Minute
	clockStep      = 5 * time.Minute

	// watchInterval is how often every node looks who answers, so that a
	// change is seen before the next visitor comes: a link that the vendor
	// signed after it is then not refused.
	watchInterval = 2 * time.Second
)

var (
	guardKey    = store.GuardKey()
	identityKey = store.StoreKey("postgres")
	canaryKey   = store.CanaryKey()
)

// server tells one run of one server from another one.
type server struct {
	// Timeline begins anew when a standby is promoted or a backup recovered.
	Timeline string `json:"timeline"`
	// Started is when the server process started, in microseconds by its own
	// clock.
	Started int64 `json:"started"`
}

// identity is the record that ties the guard to a server.
type identity struct {
	server
	// System is the database cluster's own random identifier. It changes only
	// with a new cluster, and that with a new server process.
	System string `json:"system"`
	// HighWater is the latest time, see clockStep.
	HighWater time.Time `json:"high_water"`
}

const (
	sqlServer = `substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
	(extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint`
	sqlClock = `, (extract(epoch from clock_timestamp()) * 1000000)::bigint`
)

const (
	sqlGuard    = `select (select v from billing_portal_kv where k = $1), (select v from billing_portal_kv where k = $2), ` + sqlServer + sqlClock
	sqlGuardAll = `select k, v, '', 0::bigint, 0::bigint from billing_portal_kv where k = any($1) union all select null::bytea, null, ` + sqlServer + sqlClock
	sqlMark     = `select (select v from billing_portal_kv where k = $1)` + sqlClock
	sqlIdentify = `select (select system_identifier::text from pg_control_system()), ` + sqlServer + sqlClock
)

// errStale says that the guard is not that of the server that answers, or of
// this time: renew it and run again.
var errStale = errors.New("store: the amnesia guard has to be renewed")

// errSlow says that this node must not decide what is over.
var errSlow = fmt.Errorf("%w: this node's clock is more than %s behind the database server's: put it right (or the server's)", store.ErrUnavailable, clockTolerance)

// checkGuard compares the record beside the guard with the server that
// answered, and its clock (in microseconds) with the record's and ours. A store
// without a record is not told from a changed one.
func (s *Store) checkGuard(record []byte, answers server, micros int64) error {
	if record == nil {
		return errStale
	}
	id, err := s.openIdentity(record)
	if err != nil {
		return err
	}
	theirs := time.UnixMicro(micros)
	if id.server != answers || id.late(theirs) {
		return errStale
	}
	if s.now().Before(theirs.Add(-clockTolerance)) {
		return errSlow
	}
	return nil
}

func (s *Store) openIdentity(sealed []byte) (id identity, err error) {
	value, err := s.sealer.Open(identityKey, sealed)
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(value, &id); err != nil {
		return id, fmt.Errorf("%w: the record of the server: %w", errDecode, err)
	}
	return id, nil
}

// late reports whether the server's clock went backwards.
func (id identity) late(server time.Time) bool {
	return server.Before(id.HighWater.Add(-clockTolerance))
}

// getGuard is Get for the guard's key.
func (t *transaction) getGuard() ([]byte, error) {
	var sealed, record []byte
	var answers server
	var micros int64
	ctx, cancel := t.bound()
	defer cancel()
	err := t.conn.QueryRow(ctx, sqlGuard, guardKey, identityKey).Scan(&sealed, &record, &answers.Timeline, &answers.Started, &micros)
	if err != nil {
		return nil, t.failed(err)
	}
	if err := t.store.checkGuard(record, answers, micros); err != nil {
		return nil, t.failed(err)
	}
	if t.writes != nil {
		t.reads[string(guardKey)] = sealed != nil
	}
	if sealed == nil {
		return nil, store.ErrNotFound
	}
	return t.open(guardKey, sealed)
}

// renew begins a new generation if the server, the cluster or the clock say
// that something may be forgotten, makes the store's records where there are
// none, and moves the high-water mark. Nodes may do it at the same time.
func (s *Store) renew(ctx context.Context) error {
	// Made outside: the transaction may run again.
	fresh, err := store.NewGuard(s.random, s.now(), "")
	if err != nil {
		return err
	}
	var reason string
	var was, is identity
	var g store.Guard
	err = s.update(ctx, true, func(tx store.Tx) error {
		t := tx.(*transaction)
		reason, is = "", identity{}
		var micros int64
		if err := t.conn.QueryRow(t.ctx, sqlIdentify).Scan(&is.System, &is.Timeline, &is.Started, &micros); err != nil {
			return t.failed(err)
		}
		now, theirs := s.now().UTC().Round(0), time.UnixMicro(micros).UTC()
		is.HighWater = now
		if theirs.Before(now) {
			is.HighWater = theirs
		}
		known, err := s.known(t)
		if err != nil {
			return err
		}
		old := store.Guard{}
		if known == nil {
			reason = "the store is new"
			if err := tx.Put(canaryKey, []byte("billing-portal")); err != nil {
				return err
			}
		} else {
			was = *known
			if old, err = store.ReadGuard(tx); err != nil && t.err != nil {
				return err
			}
			reason = amnesia(was, is, theirs, err == nil)
			if was.HighWater.After(is.HighWater) && !was.late(theirs) {
				is.HighWater = was.HighWater
			}
			if reason == "" && is.HighWater.Before(was.HighWater.Add(clockStep)) {
				return nil
			}
		}
		if reason != "" {
			g = fresh
			g.Reason, g.Restored = reason, old.Restored
			// What other nodes took before must not pass because this node's
			// clock is slow.
			if theirs.After(g.Cutoff) {
				g.Cutoff = theirs
			}
			if known != nil && was.System != is.System {
				g.Restored = g.Cutoff
			}
			if err := store.WriteGuard(tx, g); err != nil {
				return err
			}
		}
		value, err := json.Marshal(is)
		if err != nil {
			return err
		}
		return tx.Put(identityKey, value)
	})
	if err == nil && reason != "" {
		s.log.Info("new store generation; redirect tokens from before are refused",
			zap.String("reason", reason), zap.Time("cutoff", g.Cutoff))
	}
	return err
}

// known reads whose data it is, nil for an empty database.
func (s *Store) known(t *transaction) (*identity, error) {
	_, err := t.Get(canaryKey)
	if errors.Is(err, store.ErrSealed) {
		return nil, fmt.Errorf("opening the store: the seal key is not the one the database was made with: give that key, as current or previous one: %w", err)
	}
	if errors.Is(err, store.ErrNotFound) {
		rows, err := t.rows(nil, nil, 1, false)
		if err == nil && len(rows) > 0 {
			err = errors.New("opening the store: the table billing_portal_kv has rows and lacks the store's first records: restore a backup, or name an empty database")
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	value, err := t.Get(identityKey)
	if errors.Is(err, store.ErrNotFound) {
		return &identity{}, nil
	}
	if err != nil {
		return nil, err
	}
	id := new(identity)
	if err := json.Unmarshal(value, id); err != nil {
		return nil, fmt.Errorf("%w: the record of the server: %w", errDecode, err)
	}
	return id, nil
}

// amnesia says why the store may have forgotten something, "" if it has not.
func amnesia(was, is identity, clock time.Time, guarded bool) string {
	switch {
	case !guarded, was == identity{}:
		return "the store had no valid generation"
	case was.System != is.System:
		return "the database is in another cluster: it was restored"
	case was.Timeline != is.Timeline:
		return "the database is on another timeline: a standby was promoted, or a backup recovered"
	case was.Started != is.Started:
		return "the database server was restarted"
	case was.late(clock):
		return "the database server's clock went backwards"
	}
	return ""
}

// watch keeps the guard fresh, and tells operators when the server goes and
// comes back, and when this node's clock is of no use.
func (s *Store) watch(ctx context.Context) {
	defer s.loops.Done()
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	reachable, slow := true, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := s.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errSlow) {
			if !slow {
				s.log.Error("this node's clock is far behind the PostgreSQL server's; what needs a session is answered with 503 until one of them is put right",
					zap.Duration("tolerance", clockTolerance))
			}
			slow, reachable = true, true
			continue
		}
		if err == nil && slow {
			s.log.Info("this node's clock agrees with the PostgreSQL server's again")
			slow = false
		}
		switch {
		case err != nil && reachable:
			s.log.Error("PostgreSQL cannot be reached or takes no writes; sign-ins and changes are answered with 503 until it does", zap.Error(err))
		case err == nil && !reachable:
			s.log.Info("PostgreSQL can be reached again")
		}
		reachable = err == nil
	}
}

// look renews the guard if need be. It costs one read.
func (s *Store) look(ctx context.Context) error {
	values, err := s.GetAll(ctx, guardKey, identityKey)
	if err != nil || values[1] == nil {
		return err
	}
	var id identity
	if err := json.Unmarshal(values[1], &id); err != nil {
		return fmt.Errorf("%w: the record of the server: %w", errDecode, err)
	}
	if s.now().Before(id.HighWater.Add(clockStep)) {
		return nil
	}
	return s.renew(ctx)
}

// getAllGuarded is GetAll for keys with the guard's among them.
func (s *Store) getAllGuarded(rows pgx.Rows) ([]store.Entry, error) {
	var entries []store.Entry
	var record []byte
	var answers server
	var clock int64
	for rows.Next() {
		var e store.Entry
		var timeline string
		var started, micros int64
		if err := rows.Scan(&e.Key, &e.Value, &timeline, &started, &micros); err != nil {
			return nil, err
		}
		if e.Key == nil {
			answers, clock = server{timeline, started}, micros
			continue
		}
		if bytes.Equal(e.Key, identityKey) {
			record = e.Value
		}
		entries = append(entries, e)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return entries, s.checkGuard(record, answers, clock)
}
