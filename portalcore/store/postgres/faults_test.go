package postgres

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/storetest"
)

// proxy stands between a store and its server, and does something when a
// message passes it.
type proxy struct {
	listener net.Listener
	server   string
	faults   atomic.Pointer[fault]
	wg       sync.WaitGroup
}

// fault is what happens once, when the client sends what.
type fault struct {
	what    string
	forward bool // the server gets it; the answer is lost
	left    atomic.Int32
}

func startProxy(t *testing.T, srv *pgtest.Server) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, server: fmt.Sprintf("127.0.0.1:%d", srv.Port)}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) dsn(db string) string {
	return fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", p.listener.Addr(), db)
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	var mute atomic.Bool
	p.wg.Go(func() {
		defer client.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := server.Read(buf)
			if err != nil || mute.Load() {
				return
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	buf := make([]byte, 256<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if f := p.faults.Load(); f != nil && bytes.Contains(buf[:n], []byte(f.what)) && f.left.Add(-1) >= 0 {
			if !f.forward {
				return
			}
			mute.Store(true) // then the server's answer ends the connection
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) fault(what string, forward bool, times int) *fault {
	f := &fault{what: what, forward: forward}
	f.left.Store(int32(times))
	p.faults.Store(f)
	return f
}

const commitMessage = "commit\x00"

// TestLostReplies loses connections at every point of an update.
func TestLostReplies(t *testing.T) {
	srv := serverOf(t)
	p := startProxy(t, srv)
	db := srv.Database(t)
	s, direct := mustOpen(t, p.dsn(db), Options{}), mustOpen(t, srv.DSN(db), Options{})
	if err := put(t.Context(), direct, "read", "1"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, what string
		forward    bool
		times      int
		want       error
		there      bool
	}{
		{"the COMMIT's answer", commitMessage, true, 1, store.ErrUnknown, true},
		{"the COMMIT", commitMessage, false, 1, store.ErrUnknown, false},
		{"the begin", "begin isolation", false, 1, nil, true},
		{"the begin's answer", "begin isolation", true, 1, nil, true},
		{"a read's answer", sqlGet, true, 1, nil, true},
		{"the writes", sqlPut, false, 1, nil, true},
		{"the writes' answer", sqlPut, true, 1, nil, true},
		{"the begin, always", "begin isolation", false, 1000, store.ErrUnavailable, false},
		{"the writes' answer, always", sqlPut, true, 1000, store.ErrUnavailable, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := p.fault(tc.what, tc.forward, tc.times)
			began := time.Now()
			err := s.Update(t.Context(), func(tx store.Tx) error {
				if _, err := tx.Get(store.Key("read")); err != nil {
					return err
				}
				return tx.Put(store.Key(tc.name), []byte("1"))
			})
			p.faults.Store(nil)
			if f.left.Load() == int32(tc.times) {
				t.Fatal("the fault did not happen")
			}
			if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if !errors.Is(tc.want, store.ErrUnknown) && errors.Is(err, store.ErrUnknown) {
				t.Errorf("unknown, though no COMMIT was sent: %v", err)
			}
			if d := time.Since(began); d > 3*time.Second {
				t.Errorf("it took %s", d)
			}
			want := "<none>"
			if tc.there {
				want = "1"
			}
			// The truth is found by reading, here too.
			if got := get(t, s, tc.name); got != want {
				t.Errorf("the value is %s, want %s", got, want)
			}
			if got := get(t, direct, tc.name); got != want {
				t.Errorf("another node reads %s, want %s", got, want)
			}
		})
	}
}

// TestServerDown stops the server under a store: errors come at once, and the
// store recovers by itself.
func TestServerDown(t *testing.T) {
	srv := pgtest.Start(t)
	dsn := srv.DSN(srv.Database(t))
	s := mustOpen(t, dsn, Options{})
	for name, stop := range map[string]func() error{
		"stopped": func() error { return srv.Stop(pgtest.Fast) },
		"killed":  srv.Kill,
	} {
		if err := put(t.Context(), s, name, "before"); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			began := time.Now()
			err := put(t.Context(), s, name, "never")
			if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown) {
				t.Errorf("%s: Update: %v", name, err)
			}
			if _, err := s.GetAll(t.Context(), store.Key(name)); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s: GetAll: %v", name, err)
			}
			if err := s.View(t.Context(), func(store.Tx) error { return nil }); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s: View: %v", name, err)
			}
			if d := time.Since(began); d > 3*time.Second {
				t.Errorf("%s: three calls took %s", name, d)
			}
		}
		if err := openError(t, dsn, sealer(t, 1)); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: Open: %v", name, err)
		}
		if err := srv.Restart(); err != nil {
			t.Fatal(err)
		}
		if got := get(t, s, name); got != "before" {
			t.Errorf("%s: %q after the restart", name, got)
		}
		if err := put(t.Context(), s, name, "after"); err != nil {
			t.Errorf("%s: %v after the restart", name, err)
		}
	}
}

// TestServerFrozen stops the server's processes: connections stay and nothing
// answers.
func TestServerFrozen(t *testing.T) {
	srv := pgtest.Start(t)
	s := mustOpen(t, srv.DSN(srv.Database(t)), Options{StatementTimeout: 400 * time.Millisecond, ConnectTimeout: 300 * time.Millisecond})
	if err := put(t.Context(), s, "k", "1"); err != nil {
		t.Fatal(err)
	}
	srv.Freeze()
	t.Cleanup(srv.Thaw)
	began := time.Now()
	if err := put(t.Context(), s, "k", "2"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Update: %v", err)
	}
	if _, err := s.GetAll(t.Context(), store.Key("k")); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("GetAll: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := put(ctx, s, "k", "3"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrUnknown) {
		t.Errorf("with the caller's deadline: %v", err)
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("it took %s", d)
	}
	srv.Thaw()
	eventually(t, "the store works again", func() bool { return put(t.Context(), s, "k", "4") == nil })
	if got := get(t, s, "k"); got != "4" {
		t.Errorf("it holds %s", got)
	}
}

// TestPoolExhausted takes all connections: others wait until their deadline,
// and nothing is lost.
func TestPoolExhausted(t *testing.T) {
	s := mustOpen(t, fresh(t), Options{MaxConns: 2, StatementTimeout: 500 * time.Millisecond})
	release := make(chan struct{})
	var inside, done sync.WaitGroup
	inside.Add(2)
	for range 2 {
		done.Go(func() {
			var once sync.Once
			_ = s.View(t.Context(), func(store.Tx) error {
				once.Do(inside.Done)
				<-release
				return nil
			})
		})
	}
	inside.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := put(ctx, s, "k", "1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with the caller's deadline: %v", err)
	}
	began := time.Now()
	if err := put(t.Context(), s, "k", "1"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("without one: %v", err)
	}
	if d := time.Since(began); d < 900*time.Millisecond || d > 3*time.Second {
		t.Errorf("it waited %s, want about twice the statement timeout", d)
	}
	close(release)
	done.Wait()
	if err := put(t.Context(), s, "k", "2"); err != nil || get(t, s, "k") != "2" {
		t.Errorf("afterwards: %v", err)
	}
	// 64 writers share two connections.
	each(64, func(i int) {
		if err := put(t.Context(), s, fmt.Sprint(i), "1"); err != nil && !errors.Is(err, store.ErrUnavailable) {
			t.Error(err)
		}
	})
}

// TestLockedOut lets another client hold a row: the update ends in time and
// changes nothing.
func TestLockedOut(t *testing.T) {
	dsn := fresh(t)
	s := mustOpen(t, dsn, Options{StatementTimeout: 300 * time.Millisecond})
	if err := put(t.Context(), s, "k", "1"); err != nil {
		t.Fatal(err)
	}
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `begin; select 1 from billing_portal_kv for update`); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = s.Update(t.Context(), func(tx store.Tx) error {
		if err := tx.Put(store.Key("other"), nil); err != nil {
			return err
		}
		return tx.Put(store.Key("k"), []byte("2"))
	})
	if !errors.Is(err, store.ErrUnavailable) || time.Since(began) > 3*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	end(conn)
	if get(t, s, "k") != "1" || get(t, s, "other") != "<none>" {
		t.Error("it changed something")
	}
}

// slowWriter is a backup's target that takes its time once.
type slowWriter struct {
	bytes.Buffer
	pause time.Duration
}

func (w *slowWriter) Write(b []byte) (int, error) {
	time.Sleep(w.pause)
	w.pause = 0
	return w.Buffer.Write(b)
}

// TestSlowBackup backs up to a target that is slower than an update may be, in
// the middle of what is read: no deadline of the store's is for the whole.
func TestSlowBackup(t *testing.T) {
	s := mustOpen(t, fresh(t), Options{StatementTimeout: 500 * time.Millisecond})
	const batches, each = 6, 15 // more than one page of the backup
	for i := range batches {
		err := s.Update(t.Context(), func(tx store.Tx) error {
			for j := range each {
				if err := tx.Put(store.Key("acme", "x", fmt.Sprint(i), fmt.Sprint(j)), make([]byte, 60<<10)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w := &slowWriter{pause: 1500 * time.Millisecond}
	info, err := store.Backup(t.Context(), s, w, store.BackupOptions{Sealer: sealer(t, 1), Now: time.Now()})
	if err != nil || info.Entries != batches*each {
		t.Fatalf("%d entries: %v", info.Entries, err)
	}
	to := mustOpen(t, fresh(t), Options{})
	if got, err := store.Restore(t.Context(), to, &w.Buffer, store.RestoreOptions{Sealer: sealer(t, 1), Now: time.Now()}); err != nil || got.Entries != info.Entries {
		t.Errorf("restored %d of %d entries: %v", got.Entries, info.Entries, err)
	}
}

// TestViewFrozen stops the server's processes in the middle of a view: each
// read is bounded, and so is the wait of a caller with a deadline.
func TestViewFrozen(t *testing.T) {
	srv := pgtest.Start(t)
	s := mustOpen(t, srv.DSN(srv.Database(t)), Options{StatementTimeout: 400 * time.Millisecond, ConnectTimeout: 300 * time.Millisecond})
	t.Cleanup(srv.Thaw)
	for name, tc := range map[string]struct {
		deadline time.Duration
		want     error
		max      time.Duration
	}{
		"no deadline":  {time.Hour, store.ErrUnavailable, 1800 * time.Millisecond},
		"the caller's": {200 * time.Millisecond, context.DeadlineExceeded, 700 * time.Millisecond},
	} {
		eventually(t, "the server answers", func() bool { return s.View(t.Context(), func(store.Tx) error { return nil }) == nil })
		ctx, cancel := context.WithTimeout(t.Context(), tc.deadline)
		began := time.Now()
		runs := 0
		err := s.View(ctx, func(tx store.Tx) error {
			runs++
			srv.Freeze()
			if _, err := tx.Scan(nil, nil, 10, false); err != nil {
				return err
			}
			return nil
		})
		cancel()
		if d := time.Since(began); !errors.Is(err, tc.want) || runs != 1 || d > tc.max {
			t.Errorf("%s: %v after %s and %d runs, want %v", name, err, d, runs, tc.want)
		}
		srv.Thaw()
	}
}

// TestStandbyGone takes the synchronous standby away. A commit that nobody
// confirms is unknown, and is not there for others before the standby has it:
// nobody must take it for durable.
func TestStandbyGone(t *testing.T) {
	srv := pgtest.Start(t)
	db := srv.Database(t)
	s := mustOpen(t, srv.DSN(db), Options{StatementTimeout: 500 * time.Millisecond, MaxConns: 4})
	other := mustOpen(t, srv.DSN(db), Options{})
	standby := srv.Standby(t)
	if err := put(t.Context(), s, "k", "1"); err != nil {
		t.Fatal(err)
	}
	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := put(t.Context(), s, "k", "2"); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("without the standby: %v", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
	// A caller that goes away leaves it as it is, too.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began = time.Now()
	if err := put(ctx, s, "cancelled", "2"); !errors.Is(err, store.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a caller's deadline: %v", err)
	}
	if d := time.Since(began); d > 900*time.Millisecond {
		t.Errorf("with a deadline of 300ms it took %s", d)
	}
	if got := get(t, other, "k") + get(t, other, "cancelled"); got != "1<none>" {
		t.Errorf("others read %q, which no standby has", got)
	}
	// Two of four connections wait at the server now, and no further commit is
	// sent: it says so, soon without waiting, and reads go on.
	each(6, func(int) {
		if err := put(t.Context(), s, "more", "2"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("with as many commits waiting as may: %v", err)
		}
	})
	began = time.Now()
	if err := put(t.Context(), s, "more", "2"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("and again: %v", err)
	}
	for range 5 {
		if got := get(t, s, "k"); got != "1" {
			t.Errorf("reads %q", got)
		}
		guardOf(t, s)
	}
	if d := time.Since(began); d > 500*time.Millisecond {
		t.Errorf("a refusal and ten reads took %s", d)
	}
	if n := ask[int](t, srv.DSN(db), `select count(*)::int from pg_stat_activity where wait_event = 'SyncRep'`); n != 2 {
		t.Errorf("%d sessions wait for the standby, want 2", n)
	}
	// A store that is closed meanwhile does not ask the server to stop waiting:
	// that would apply the commit here alone.
	gone, err := Open(t.Context(), Options{DSN: srv.DSN(db), Sealer: sealer(t, 1), StatementTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), gone, "gone", "2"); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("without the standby: %v", err)
	}
	_ = gone.Close() // it may say that the server does not answer
	time.Sleep(300 * time.Millisecond)
	if got := get(t, other, "gone"); got != "<none>" {
		t.Errorf("others read %q after the store was closed, which no standby has", got)
	}
	if err := standby.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the commits arrive", func() bool {
		return get(t, other, "k") == "2" && get(t, other, "cancelled") == "2" && get(t, other, "gone") == "2"
	})
	eventually(t, "the store works again", func() bool { return put(t.Context(), s, "k", "3") == nil })

	// An administrator cancels the wait: applied here, perhaps nowhere else.
	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	var stop sync.WaitGroup
	stop.Go(func() {
		eventually(t, "a session waits for the standby", func() bool {
			return ask[int](t, srv.DSN(db), `select count(pg_cancel_backend(pid))::int from pg_stat_activity where wait_event = 'SyncRep'`) > 0
		})
	})
	err = put(t.Context(), other, "k", "4")
	stop.Wait()
	if !errors.Is(err, store.ErrUnknown) || !strings.Contains(err.Error(), "canceling wait for synchronous replication") {
		t.Errorf("a wait that was canceled: %v", err)
	}
}

// TestPromotion writes while the primary is killed and its standby promoted:
// everything that was acknowledged is there.
func TestPromotion(t *testing.T) {
	a := pgtest.Start(t)
	db := a.Database(t)
	mustOpen(t, a.DSN(db), Options{})
	b := a.Standby(t)
	dsn := pgtest.MultiDSN(db, []*pgtest.Server{a, b})
	stores := []*Store{mustOpen(t, dsn, Options{}), mustOpen(t, dsn, Options{})}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	acked := map[string]bool{}
	var before, after, unknown, unavailable atomic.Int64
	var promoted atomic.Bool
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("%d-%d", w, i)
				switch err := put(ctx, stores[w%2], key, key); {
				case err == nil && promoted.Load():
					after.Add(1)
				case err == nil:
					before.Add(1)
				case errors.Is(err, store.ErrUnknown):
					unknown.Add(1)
					continue
				case errors.Is(err, store.ErrUnavailable):
					unavailable.Add(1)
					time.Sleep(5 * time.Millisecond)
					continue
				case ctx.Err() != nil:
					continue
				default:
					t.Error(err)
					continue
				}
				mu.Lock()
				acked[key] = true
				mu.Unlock()
			}
		})
	}
	eventually(t, "200 updates", func() bool { return before.Load() > 200 })
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "select 1")
	promoted.Store(true)
	b.Promote(t)
	began := time.Now()
	eventually(t, "200 updates after the promotion", func() bool { return after.Load() > 200 })
	t.Logf("%d updates acknowledged before, %d after %s; %d unknown, %d refused", before.Load(), after.Load(), time.Since(began).Round(time.Millisecond), unknown.Load(), unavailable.Load())
	cancel()
	writers.Wait()
	s := mustOpen(t, dsn, Options{})
	lost := 0
	for key := range acked {
		if get(t, s, key) != key {
			lost++
		}
	}
	if lost > 0 || len(acked) < 400 {
		t.Errorf("%d of %d acknowledged updates are lost", lost, len(acked))
	}
}

// TestStoreKilled runs the suite with a server that is killed instead of a
// clean shutdown.
func TestStoreKilled(t *testing.T) {
	srv := pgtest.Start(t)
	dsn := srv.DSN(srv.Database(t))
	storetest.Run(t, func(t *testing.T) store.Store {
		return mustOpen(t, dsn, Options{})
	}, func(t *testing.T, s store.Store) store.Store {
		if err := srv.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := srv.Restart(); err != nil {
			t.Fatal(err)
		}
		return s
	})
}

const childEnv = "BILLING_PORTAL_TEST_POSTGRES_CHILD"

// child writes until it is killed, and prints what was acknowledged. Some of
// its transactions are open at any time.
func child(dsn string) {
	sealer, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		panic(err)
	}
	s, err := Open(context.Background(), Options{DSN: dsn, Sealer: sealer})
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				err := s.Update(context.Background(), func(tx store.Tx) error {
					for _, k := range []string{"a", "b"} { // half an update would show
						if err := tx.Put(store.Key(k, name), []byte(name)); err != nil {
							return err
						}
					}
					return tx.Put(store.Key("contended"), []byte(name))
				})
				if err != nil {
					panic(err)
				}
				mu.Lock()
				fmt.Println(name)
				mu.Unlock()
			}
		}()
	}
	select {}
}

// TestProcessKilled kills a process with open transactions. What it
// acknowledged is there, each update as a whole, its locks are free, and the
// generation is the same: the server forgot nothing.
func TestProcessKilled(t *testing.T) {
	dsn := fresh(t)
	key, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, dsn, Options{Sealer: key})
	first := guardOf(t, s)
	for round := range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dsn)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var acked []string
		lines := bufio.NewReader(out)
		for {
			if len(acked) == 200 {
				_ = cmd.Process.Kill()
			}
			line, err := lines.ReadString('\n')
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			acked = append(acked, strings.TrimSpace(line))
		}
		if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
			t.Fatalf("the child ended by itself: %v\n%s", err, stderr.String())
		}
		if err := put(t.Context(), s, "contended", "mine"); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		missing := 0
		for _, name := range acked {
			got, err := s.GetAll(t.Context(), store.Key("a", name), store.Key("b", name))
			if err != nil || string(got[0]) != name || string(got[1]) != name {
				missing++
			}
		}
		if missing > 0 || len(acked) < 200 {
			t.Errorf("round %d: %d of %d acknowledged updates are missing", round, missing, len(acked))
		}
		var names [2][]store.Entry
		err = s.View(t.Context(), func(tx store.Tx) (err error) {
			for i, p := range []string{"a", "b"} {
				if names[i], err = tx.Scan(store.Key(p), nil, 1<<20, false); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || len(names[0]) != len(names[1]) {
			t.Errorf("round %d: %d and %d records, %v", round, len(names[0]), len(names[1]), err)
		}
		if g := guardOf(t, s); g != first {
			t.Errorf("round %d: a new generation: %+v", round, g)
		}
	}
}
