package postgres

import (
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

// clock is a wall clock that tests set.
type clock struct{ nano atomic.Int64 }

func clockAt(t time.Time) *clock {
	c := new(clock)
	c.set(t)
	return c
}

func (c *clock) set(t time.Time) { c.nano.Store(t.UnixNano()) }
func (c *clock) now() time.Time  { return time.Unix(0, c.nano.Load()).UTC() }

// TestGuardStays holds that the portal's own comings and goings begin no
// generation: none of them can make the server forget.
func TestGuardStays(t *testing.T) {
	dsn := fresh(t)
	c := clockAt(time.Now())
	a := mustOpen(t, dsn, Options{Now: c.now})
	first := guardOf(t, a)
	if first.Reason != "the store is new" || !first.Restored.IsZero() || first.Cutoff.After(time.Now()) {
		t.Errorf("the first guard: %+v", first)
	}
	b := mustOpen(t, dsn, Options{Now: c.now})
	for what, change := range map[string]func(){
		"a second node": func() {},
		"a node that ends": func() {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		},
		"connections that are cut": func() {
			raw(t, dsn, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`)
		},
		"time that passes":               func() { c.set(c.now().Add(240 * time.Hour)) },
		"a clock that is put right":      func() { c.set(time.Now().Add(-clockTolerance / 2)) },
		"a node whose clock is slow":     func() { mustOpen(t, dsn, Options{Now: clockAt(time.Now().Add(-10 * time.Minute)).now}) },
		"a node whose clock is far fast": func() { mustOpen(t, dsn, Options{Now: clockAt(time.Now().Add(10 * 24 * time.Hour)).now}) },
		"a restart": func() {
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			a = mustOpen(t, dsn, Options{Now: c.now})
		},
	} {
		change()
		if err := a.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if g := guardOf(t, a); g != first {
			t.Errorf("%s began a generation: %+v", what, g)
		}
	}
}

// TestGuardClock has the server's clock behind the mark that it set: what was
// swept by the later time may be accepted again.
func TestGuardClock(t *testing.T) {
	dsn := fresh(t)
	s := mustOpen(t, dsn, Options{})
	first := guardOf(t, s)
	mark := func() (at time.Time) {
		t.Helper()
		err := s.View(t.Context(), func(tx store.Tx) error {
			value, err := tx.Get(identityKey)
			if err != nil {
				return err
			}
			var id identity
			err = json.Unmarshal(value, &id)
			at = id.HighWater
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	setMark := func(at time.Time) { // as if the clock had been there
		t.Helper()
		err := s.update(t.Context(), true, func(tx store.Tx) error {
			value, err := tx.Get(identityKey)
			if err != nil {
				return err
			}
			var id identity
			if err := json.Unmarshal(value, &id); err != nil {
				return err
			}
			id.HighWater = at
			if value, err = json.Marshal(id); err != nil {
				return err
			}
			return tx.Put(identityKey, value)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	setMark(time.Now().Add(-time.Hour))
	if err := s.look(t.Context()); err != nil || time.Since(mark()) > time.Minute {
		t.Errorf("the mark does not move: %s, %v", mark(), err)
	}
	setMark(time.Now().Add(clockTolerance - time.Minute))
	if g := guardOf(t, s); g != first {
		t.Errorf("within the tolerance: %+v", g)
	}
	before := time.Now()
	setMark(before.Add(clockTolerance + time.Minute))
	second := guardOf(t, s)
	if second.Generation == first.Generation || second.Reason != "the database server's clock went backwards" || second.Cutoff.Before(before.Add(-time.Second)) {
		t.Errorf("after the clock went back: %+v", second)
	}
	if g := guardOf(t, s); g != second || time.Since(mark()) > time.Minute {
		t.Errorf("and again: %+v, the mark %s", g, mark())
	}
	// The mark never passes the server's clock: a node that is ahead by days
	// does not make it look late.
	setMark(time.Now().Add(-time.Hour))
	ahead := mustOpen(t, dsn, Options{Now: clockAt(time.Now().Add(240 * time.Hour)).now})
	if err := ahead.look(t.Context()); err != nil || time.Since(mark()) < 0 || time.Since(mark()) > time.Minute {
		t.Errorf("a node that is ahead sets the mark to %s, %v", mark(), err)
	}
	if g := guardOf(t, s); g != second {
		t.Errorf("after a node that is ahead: %+v", g)
	}
}

// TestGuardSlowNode has nodes whose clocks are behind the server's: they begin
// no generation, and beyond the tolerance they do not get the guard. What needs
// none goes on, and the operator reads of it once.
func TestGuardSlowNode(t *testing.T) {
	dsn := fresh(t)
	a := mustOpen(t, dsn, Options{})
	first := guardOf(t, a)
	core, logs := observer.New(zap.ErrorLevel)
	c := clockAt(time.Now().Add(-clockTolerance - 10*time.Minute))
	slow := mustOpen(t, dsn, Options{Now: c.now, Logger: zap.New(core)})
	read := func(tx store.Tx) error {
		_, err := store.ReadGuard(tx)
		return err
	}
	for range 3 {
		_, err := slow.GetAll(t.Context(), store.GuardKey())
		for what, err := range map[string]error{
			"View": slow.View(t.Context(), read), "Update": slow.Update(t.Context(), read), "GetAll": err, "look": slow.look(t.Context()),
		} {
			if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "clock") {
				t.Errorf("%s on the slow node: %v", what, err)
			}
		}
		if g := guardOf(t, a); g != first {
			t.Fatalf("the slow node began a generation: %+v", g)
		}
	}
	if err := put(t.Context(), slow, "k", "1"); err != nil || get(t, slow, "k") != "1" {
		t.Errorf("without the guard: %v", err)
	}
	eventually(t, "the log says so", func() bool { return logs.FilterMessageSnippet("clock").Len() > 0 })
	time.Sleep(watchInterval + watchInterval/4)
	if n := logs.Len(); n != 1 {
		t.Errorf("%d errors are logged, want 1: %v", n, logs.All())
	}
	c.set(time.Now().Add(-clockTolerance + time.Minute))
	if g := guardOf(t, slow); g != first {
		t.Errorf("within the tolerance: %+v", g)
	}
}

// TestGuardRestart restarts the server under three nodes. The first read of the
// guard, on whatever node and through whatever connection, is of the new
// generation, and there is exactly one.
func TestGuardRestart(t *testing.T) {
	srv := pgtest.Start(t)
	db := srv.Database(t)
	var stores []*Store
	for range 3 {
		stores = append(stores, mustOpen(t, srv.DSN(db), Options{}))
	}
	old := guardOf(t, stores[0])
	for name, restart := range map[string]func() error{
		"cleanly": func() error { return srv.Stop(pgtest.Fast) },
		"SIGKILL": srv.Kill,
	} {
		if err := restart(); err != nil {
			t.Fatal(err)
		}
		if err := srv.Restart(); err != nil {
			t.Fatal(err)
		}
		var seen [48]store.Guard
		each(len(seen), func(i int) {
			s := stores[i%len(stores)]
			key := store.GuardKey()
			switch i % 2 {
			case 0:
				err := s.Update(t.Context(), func(tx store.Tx) (err error) {
					seen[i], err = store.ReadGuard(tx)
					return err
				})
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			default:
				values, err := s.GetAll(t.Context(), store.Key("other"), key)
				if err != nil || values[1] == nil {
					t.Errorf("%s: %v", name, err)
				}
				seen[i] = guardOf(t, s)
			}
		})
		for i, g := range seen {
			if g.Generation == old.Generation || g != seen[0] || g.Reason != "the database server was restarted" || !g.Restored.IsZero() {
				t.Errorf("%s: reader %d saw %+v after %+v; another one %+v", name, i, g, old, seen[0])
			}
		}
		old = seen[0]
	}
}

// TestGuardInTransaction restarts the server between the begin of an update
// that redeems and its read of the guard, and behind the connections' backs as
// a pooler does: the record is of another server than the one that answers.
func TestGuardInTransaction(t *testing.T) {
	dsn := fresh(t)
	s := mustOpen(t, dsn, Options{})
	old := guardOf(t, s)
	// Another server's record, as after a failover that no connection shows.
	err := s.update(t.Context(), true, func(tx store.Tx) error {
		return tx.Put(identityKey, []byte(`{"timeline":"00000001","started":1,"system":"`+ask[string](t, dsn, `select system_identifier::text from pg_control_system()`)+`"}`))
	})
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	var g store.Guard
	err = s.Update(t.Context(), func(tx store.Tx) error {
		runs++
		var err error
		if g, err = store.ReadGuard(tx); err != nil {
			return err
		}
		return tx.Put(store.Key("k"), nil)
	})
	if err != nil || runs != 2 || g.Generation == old.Generation {
		t.Errorf("%d runs, %v, guard %+v", runs, err, g)
	}
	// GetAll is one statement, and compares too.
	raw(t, dsn, `delete from billing_portal_kv where k = $1`, identityKey)
	values, err := s.GetAll(t.Context(), store.GuardKey())
	if now := guardOf(t, s); err != nil || values[0] == nil || now.Generation == g.Generation || now.Reason != "the store had no valid generation" {
		t.Errorf("without the record of the server: %+v, %v", now, err)
	}
}

// TestGuardPromotion promotes the standby: another timeline.
func TestGuardPromotion(t *testing.T) {
	a := pgtest.Start(t)
	db := a.Database(t)
	mustOpen(t, a.DSN(db), Options{})
	b := a.Standby(t)
	s := mustOpen(t, pgtest.MultiDSN(db, []*pgtest.Server{a, b}), Options{})
	old := guardOf(t, s)
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	b.Promote(t)
	g := guardOf(t, s)
	if g.Generation == old.Generation || g.Reason != "the database is on another timeline: a standby was promoted, or a backup recovered" || !g.Restored.IsZero() {
		t.Errorf("after the promotion: %+v", g)
	}
	if again := guardOf(t, s); again != g {
		t.Errorf("and again: %+v", again)
	}
}

// TestGuardRestored takes the rows to another cluster, as pg_restore does:
// sessions and intents from before are over, and that stays known.
func TestGuardRestored(t *testing.T) {
	from := fresh(t)
	s := mustOpen(t, from, Options{})
	old := guardOf(t, s)
	if err := put(t.Context(), s, "k", "v"); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `select k, v from billing_portal_kv`)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := pgx.CollectRows(rows, entry)
	if err != nil {
		t.Fatal(err)
	}

	srv := pgtest.Start(t)
	to := srv.DSN(srv.Database(t))
	raw(t, to, migrations[0]+`; create table billing_portal_schema (version int not null); insert into billing_portal_schema values (1)`)
	for _, e := range entries {
		raw(t, to, `insert into billing_portal_kv values ($1, $2)`, e.Key, e.Value)
	}
	before := time.Now()
	r := mustOpen(t, to, Options{})
	g := guardOf(t, r)
	if g.Generation == old.Generation || g.Reason != "the database is in another cluster: it was restored" || g.Restored.Before(before.Add(-time.Second)) || !g.Restored.Equal(g.Cutoff) {
		t.Errorf("after a restore: %+v", g)
	}
	if get(t, r, "k") != "v" {
		t.Error("the data is not there")
	}
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	if next := guardOf(t, r); next.Generation == g.Generation || !next.Restored.Equal(g.Restored) {
		t.Errorf("the next generation forgot the restore: %+v", next)
	}
}

// TestWatch notices a restart without any visitor, so that a link that a
// vendor signs afterwards is good at once.
func TestWatch(t *testing.T) {
	srv := pgtest.Start(t)
	dsn := srv.DSN(srv.Database(t))
	s := mustOpen(t, dsn, Options{})
	sealed := func() []byte {
		return ask[[]byte](t, dsn, `select v from billing_portal_kv where k = $1`, store.GuardKey())
	}
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	old := string(sealed())
	eventually(t, "the guard is renewed", func() bool { return string(sealed()) != old })
	if g := guardOf(t, s); g.Reason != "the database server was restarted" {
		t.Errorf("%+v", g)
	}
}

// TestGuardCutoff lets the node with the slow clock be the one that sees what
// may be forgotten: what the others accepted until then is refused.
func TestGuardCutoff(t *testing.T) {
	dsn := fresh(t)
	a := mustOpen(t, dsn, Options{})
	first := guardOf(t, a)
	slow := mustOpen(t, dsn, Options{Now: func() time.Time { return time.Now().Add(-20 * time.Minute) }})
	before := ask[time.Time](t, dsn, `select clock_timestamp()`)
	err := a.update(t.Context(), true, func(tx store.Tx) error {
		return tx.Put(identityKey, []byte(`{"timeline":"00000001","started":1,"system":"another"}`))
	})
	if err != nil {
		t.Fatal(err)
	}
	g := guardOf(t, slow)
	if g.Generation == first.Generation || g.Cutoff.Before(before) || !g.Restored.Equal(g.Cutoff) {
		t.Errorf("began before %s by the server's clock: %+v", before, g)
	}
}
