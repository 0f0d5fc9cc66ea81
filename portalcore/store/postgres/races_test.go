package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

var errUsed = errors.New("used")

// redeem is what session.Redeem does in its transaction: it reads the guard,
// the token's mark and the customer, and writes the mark, the session and the
// customer, with two entries for the sweeper.
func redeem(s store.Store, token, customer, session string) error {
	until := time.Now().Add(time.Hour)
	return s.Update(context.Background(), func(tx store.Tx) error {
		if _, err := store.ReadGuard(tx); err != nil {
			return err
		}
		spent := store.Key("acme", "spent", token)
		if _, err := tx.Get(spent); err == nil {
			return errUsed
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		who := store.Key("acme", "customer", customer)
		rec, err := tx.Get(who)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err := tx.Put(who, append(rec[:min(len(rec), 100)], 'x')); err != nil {
			return err
		}
		if err := store.PutExpiring(tx, "acme", spent, []byte(session), until); err != nil {
			return err
		}
		return store.PutExpiring(tx, "acme", store.Key("acme", "session", session), make([]byte, 400), until)
	})
}

// TestRaces redeems every token 64 times at once: on one store, and spread
// over three as three nodes have them. Customers are few, so that redemptions
// of different tokens meet in their record, too.
func TestRaces(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 40
	}
	const clients = 64
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("Stores=%d", nodes), func(t *testing.T) {
			dsn := fresh(t)
			var stores []*Store
			for range nodes {
				stores = append(stores, mustOpen(t, dsn, Options{}))
			}
			began := time.Now()
			for r := range rounds {
				token := fmt.Sprint("token", r)
				var won, lost atomic.Int64
				var winner atomic.Value
				each(clients, func(i int) {
					session := fmt.Sprintf("session-%d-%d", r, i)
					switch err := redeem(stores[i%nodes], token, fmt.Sprint("cus", r%3), session); {
					case err == nil:
						won.Add(1)
						winner.Store(session)
					case errors.Is(err, errUsed):
						lost.Add(1)
					default:
						t.Error(err)
					}
				})
				if won.Load() != 1 || lost.Load() != clients-1 {
					t.Fatalf("round %d: %d won, %d lost", r, won.Load(), lost.Load())
				}
				// What all of them say is what is there, on every node.
				err := stores[r%nodes].View(t.Context(), func(tx store.Tx) error {
					mark, err := tx.Get(store.Key("acme", "spent", token))
					if err != nil || string(mark) != winner.Load() {
						t.Errorf("round %d: spent by %q, %v; %v won", r, mark, err, winner.Load())
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			var sessions []store.Entry
			err := stores[0].View(t.Context(), func(tx store.Tx) (err error) {
				sessions, err = tx.Scan(store.Key("acme", "session"), nil, 2*rounds, false)
				return err
			})
			if err != nil || len(sessions) != rounds {
				t.Errorf("%d sessions out of %d tokens, %v", len(sessions), rounds, err)
			}
			t.Logf("%d rounds of %d clients in %s", rounds, clients, time.Since(began).Round(time.Millisecond))
		})
	}
}

func each(n int, fn func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			fn(i)
		})
	}
	close(start)
	wg.Wait()
}

// TestRunsAgain changes what an update has read before it commits: it runs
// again and decides on what is there then.
func TestRunsAgain(t *testing.T) {
	dsn := fresh(t)
	a, b := mustOpen(t, dsn, Options{}), mustOpen(t, dsn, Options{})
	for name, read := range map[string]string{"a key that is there": "there", "an absent key": "absent"} {
		t.Run(name, func(t *testing.T) {
			if err := put(t.Context(), a, "there", "1"); err != nil {
				t.Fatal(err)
			}
			runs := 0
			err := a.Update(t.Context(), func(tx store.Tx) error {
				runs++
				v, err := tx.Get(store.Key(read))
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				if runs == 1 {
					// It reads what the first one writes, too: neither may go first.
					err := b.Update(t.Context(), func(tx store.Tx) error {
						if _, err := tx.Get(store.Key(read, "decision")); !errors.Is(err, store.ErrNotFound) {
							return err
						}
						return tx.Put(store.Key(read), []byte("2"))
					})
					if err != nil {
						return err
					}
				}
				return tx.Put(store.Key(read, "decision"), append([]byte("saw "), v...))
			})
			if err != nil || runs != 2 {
				t.Errorf("%d runs, %v, want 2", runs, err)
			}
			values, err := a.GetAll(t.Context(), store.Key(read, "decision"))
			if err != nil || string(values[0]) != "saw 2" {
				t.Errorf("decided on %q, %v", values[0], err)
			}
		})
	}
}

// TestSweepers sweeps with two nodes at once, whose turn it is or not.
func TestSweepers(t *testing.T) {
	dsn := fresh(t)
	a, b := mustOpen(t, dsn, Options{}), mustOpen(t, dsn, Options{})
	now := time.Now()
	const n = 500
	fill := func() {
		t.Helper()
		err := a.Update(t.Context(), func(tx store.Tx) error {
			for i := range n {
				if err := store.PutExpiring(tx, "acme", store.Key("acme", "x", fmt.Sprint(i)), nil, now.Add(-time.Minute)); err != nil {
					return err
				}
			}
			return store.PutExpiring(tx, "acme", store.Key("acme", "live"), nil, now.Add(time.Hour))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	left := func() int {
		t.Helper()
		var entries []store.Entry
		err := a.View(t.Context(), func(tx store.Tx) (err error) {
			entries, err = tx.Scan(store.Key("acme"), nil, 3*n, false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	sweep := func(at time.Time, stores ...store.Store) (counts []int) {
		t.Helper()
		counts = make([]int, len(stores))
		each(len(stores), func(i int) {
			var err error
			if counts[i], err = store.Sweep(t.Context(), stores[i], "acme", at, n+1); err != nil {
				t.Error(err)
			}
		})
		return counts
	}

	fill()
	if got := sweep(now, a, b); got[0]+got[1] != n || got[0] != 0 && got[1] != 0 {
		t.Errorf("the nodes swept %v, want one of them %d", got, n)
	} else if again := sweep(now, a, b); again[0]+again[1] != 0 || left() != 2 {
		t.Errorf("again: %v, %d keys left, want the live one and its entry", again, left())
	}

	// The turn passes when its holder is gone.
	fill()
	holder, other := store.Store(a), store.Store(b)
	if mine, err := b.SweepTurn(t.Context(), "acme", now); err != nil {
		t.Fatal(err)
	} else if mine {
		holder, other = b, a
	}
	if got := sweep(now.Add(time.Minute), other); got[0] != 0 {
		t.Errorf("swept %d in another node's turn", got[0])
	}
	if got := sweep(now.Add(sweepTurn+time.Second), other); got[0] != n {
		t.Errorf("swept %d of %d after the turn was over", got[0], n)
	}
	if got := sweep(now.Add(sweepTurn+time.Second), holder); got[0] != 0 {
		t.Errorf("the node before swept %d without a turn", got[0])
	}

	// Nothing rests on turns: where clocks disagree both sweep.
	fill()
	type bare struct{ store.Store }
	if got := sweep(now, bare{a}, bare{b}); got[0]+got[1] != n || left() != 2+1 { // and the record of the turn is not the tenant's
		if left() != 2 {
			t.Errorf("both at once swept %v, %d keys left", got, left())
		}
	}
}

// TestSweepAhead has a node whose clock is fast: it deletes nothing that the
// others still need, and the operator reads of it once.
func TestSweepAhead(t *testing.T) {
	dsn := fresh(t)
	a := mustOpen(t, dsn, Options{})
	c := clockAt(time.Now().Add(48 * time.Hour))
	core, logs := observer.New(zap.ErrorLevel)
	fast := mustOpen(t, dsn, Options{Now: c.now, Logger: zap.New(core)})
	err := a.Update(t.Context(), func(tx store.Tx) error {
		return store.PutExpiring(tx, "acme", store.Key("mark"), nil, time.Now().Add(24*time.Hour))
	})
	if err != nil {
		t.Fatal(err)
	}
	sweep := func(s store.Store, at time.Time) {
		t.Helper()
		if n, err := store.Sweep(t.Context(), s, "acme", at, 10); n != 0 || err != nil {
			t.Errorf("swept %d, %v", n, err)
		}
	}
	for range 2 {
		sweep(fast, c.now())
	}
	if n := logs.FilterMessageSnippet("clock").Len(); n != 1 {
		t.Errorf("%d errors are logged, want 1", n)
	}
	sweep(a, c.now()) // a caller whose time is not the node's
	if get(t, a, "mark") != "" {
		t.Error("the mark is gone")
	}
	turn := func(s *Store, at time.Time) bool {
		t.Helper()
		mine, err := s.SweepTurn(t.Context(), "other", at)
		if err != nil {
			t.Error(err)
		}
		return mine
	}
	if turn(fast, time.Now()) {
		t.Error("a node that is ahead has the turn because its caller is not")
	}
	c.set(time.Now().Add(clockTolerance - 5*time.Minute))
	if !turn(fast, c.now()) {
		t.Error("no turn within the tolerance")
	}
	// Far past the mark, whatever the server's clock says. Nothing of this is
	// committed: a watch would move the mark.
	err = a.update(t.Context(), true, func(tx store.Tx) error {
		tr := tx.(*transaction)
		if ahead, err := a.ahead(tr, time.Now()); ahead || err != nil {
			t.Errorf("with the mark as it is: %t, %v", ahead, err)
		}
		value, err := tx.Get(identityKey)
		if err != nil {
			return err
		}
		var id identity
		if err := json.Unmarshal(value, &id); err != nil {
			return err
		}
		id.HighWater = time.Now().Add(-clockTolerance - clockStep - time.Minute)
		if value, err = json.Marshal(id); err != nil {
			return err
		}
		if _, err := tr.conn.Exec(t.Context(), `update billing_portal_kv set v = $2 where k = $1`, identityKey, a.sealer.Seal(identityKey, value)); err != nil {
			return tr.failed(err)
		}
		if ahead, err := a.ahead(tr, time.Now()); !ahead || err != nil {
			t.Errorf("far past the mark: %t, %v", ahead, err)
		}
		return errUsed
	})
	if !errors.Is(err, errUsed) {
		t.Fatal(err)
	}
}

// BenchmarkRedeem prints redemptions per second of 64 clients, on one customer
// and on many, for the store and for two other ways, written by hand and
// without sealing: serializable transactions that run again when they
// conflict, and read committed behind an advisory lock of the customer and one
// of the token.
//
//	go test -run '^$' -bench Redeem -benchtime 3000x ./portalcore/store/postgres/
func BenchmarkRedeem(b *testing.B) {
	dsn := fresh(b)
	s := mustOpen(b, dsn, Options{MaxConns: 32})
	pool, err := pgxpool.New(b.Context(), dsn+"&pool_max_conns=32&default_query_exec_mode=cache_describe")
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	var runs, n atomic.Int64
	for _, way := range []struct {
		name   string
		redeem func(token, customer, session string) error
		runs   *atomic.Int64
	}{
		{"store", func(token, customer, session string) error { return redeem(s, token, customer, session) }, &s.runs},
		{"serializable", func(token, customer, session string) error {
			return redeemByHand(pool, &runs, pgx.Serializable, token, customer, session)
		}, &runs},
		{"locks", func(token, customer, session string) error {
			return redeemByHand(pool, &runs, pgx.ReadCommitted, token, customer, session)
		}, &runs},
	} {
		for _, customers := range []int64{1, 100_000} {
			b.Run(fmt.Sprintf("%s/customers=%d", way.name, customers), func(b *testing.B) {
				raw(b, dsn, `drop table if exists plain; create table plain (k bytea primary key, v bytea not null)`)
				var left, failed atomic.Int64
				left.Store(int64(b.N))
				before := way.runs.Load()
				each(64, func(int) {
					for left.Add(-1) >= 0 {
						i := n.Add(1)
						id := fmt.Sprintf("%d-%d", os.Getpid(), i)
						if err := way.redeem("t"+id, fmt.Sprint(i%customers), "s"+id); err != nil {
							failed.Add(1)
						}
					}
				})
				b.ReportMetric(float64(int64(b.N)-failed.Load())/b.Elapsed().Seconds(), "redeemed/s")
				b.ReportMetric(float64(way.runs.Load()-before)/float64(b.N), "runs/op")
				b.ReportMetric(float64(failed.Load()), "failed")
			})
		}
	}
}

// redeemByHand gives up after 10 s, as the store does.
func redeemByHand(pool *pgxpool.Pool, runs *atomic.Int64, iso pgx.TxIsoLevel, token, customer, session string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		runs.Add(1)
		err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: iso}, func(tx pgx.Tx) error {
			get := func(key string) (v []byte, err error) {
				if err = tx.QueryRow(ctx, `select v from plain where k = $1`, []byte(key)).Scan(&v); errors.Is(err, pgx.ErrNoRows) {
					err = nil
				}
				return v, err
			}
			if iso == pgx.ReadCommitted {
				for _, name := range []string{"c" + customer, "t" + token} {
					if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended($1, 0))`, name); err != nil {
						return err
					}
				}
			} else if _, err := tx.Exec(ctx, `set local enable_seqscan = off`); err != nil { // or they all conflict
				return err
			}
			if _, err := get("guard"); err != nil {
				return err
			}
			if spent, err := get("spent" + token); err != nil || spent != nil {
				return errors.Join(err, errUsed)
			}
			if _, err := get("customer" + customer); err != nil {
				return err
			}
			keys := [][]byte{[]byte("customer" + customer), []byte("spent" + token), []byte("sweep1" + token), []byte("session" + session), []byte("sweep2" + session)}
			values := [][]byte{make([]byte, 100), make([]byte, 100), make([]byte, 45), make([]byte, 445), make([]byte, 45)}
			_, err := tx.Exec(ctx, `insert into plain select * from unnest($1::bytea[], $2::bytea[]) on conflict (k) do update set v = excluded.v`, keys, values)
			return err
		})
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "40001" && pg.Code != "40P01" {
			return err
		}
		time.Sleep(rand.N(pause))
	}
}
