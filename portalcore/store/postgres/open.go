package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Defaults of the options.
const (
	DefaultMaxConns         = 10
	DefaultConnectTimeout   = 3 * time.Second
	DefaultStatementTimeout = 5 * time.Second
)

// Options are what Open needs.
type Options struct {
	// DSN says where the database is: a URL or key=value pairs as for libpq
	// (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING),
	// with several hosts where there are standbys: the one that takes writes
	// is used. Required.
	DSN string

	// Sealer seals the values. Required, and the same on every node.
	Sealer *store.Sealer

	// Logger takes the store's messages. Default: none.
	Logger *zap.Logger

	// Now is the wall clock. Default: time.Now.
	Now func() time.Time

	// Rand is where generations come from. Default: crypto/rand.Reader.
	Rand io.Reader

	// MaxConns is the most connections that are open at a time. Default:
	// DefaultMaxConns. Others wait. Updates have at most all but two of them
	// (and at least one), so that reads go on when no commit is answered.
	MaxConns int32

	// ConnectTimeout bounds an attempt to connect to one host. Default:
	// connect_timeout of the DSN, else DefaultConnectTimeout.
	ConnectTimeout time.Duration

	// StatementTimeout bounds a statement. An update may take twice as long,
	// and its commit, which waits for a synchronous standby, as long again. A
	// view may take as long as its caller lets it.
	// Default: DefaultStatementTimeout.
	StatementTimeout time.Duration
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.MaxConns <= 0 {
		o.MaxConns = DefaultMaxConns
	}
	if o.StatementTimeout <= 0 {
		o.StatementTimeout = DefaultStatementTimeout
	}
}

// Open opens the store in a database and makes its tables where they are
// missing. It refuses a server that is not PostgreSQL or takes no writes, a
// database that a newer build has used, and seal keys that are not the
// store's (the error wraps store.ErrSealed). It begins a new generation (see
// store.Guard) when the store is new or another server answers than the last
// time. An error that wraps store.ErrUnavailable may go by itself.
//
// ctx bounds the opening. Close the store to end it.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Sealer == nil {
		return nil, errors.New("store: Options.Sealer is required")
	}
	o.setDefaults()
	cfg, err := poolConfig(o)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	s := &Store{
		pool: pool, sealer: o.Sealer, log: o.Logger, now: o.Now, random: o.Rand,
		node: uuid.NewString(), patience: 2 * o.StatementTimeout, statement: o.StatementTimeout,
		writers: make(chan struct{}, max(o.MaxConns-2, 1)),
	}
	s.beginUpdate, s.beginView = begins(o.StatementTimeout)
	s.hold, s.stop = context.WithCancel(context.Background())
	if err := s.start(ctx); err != nil {
		s.stop()
		pool.Close()
		return nil, err
	}
	s.loops.Add(1)
	go s.watch(s.hold)
	return s, nil
}

// idleView is how long a view may be idle between two reads. A backup is while
// its target takes what was read, about 2 MiB: even 3 KiB a second is enough. A
// view locks no rows. What it costs is room: vacuum keeps what its snapshot
// sees, so one whose node has vanished does not stay for hours.
const idleView = 15 * time.Minute

// begins are the statements that begin an update and a view. Settings are made
// for the transaction, because behind a pooler the next one may be another
// server session's, or another client's.
func begins(statement time.Duration) (update, view string) {
	ms := statement.Milliseconds()
	update = fmt.Sprintf(`begin isolation level repeatable read;
		set local statement_timeout = %d; set local lock_timeout = %d; set local idle_in_transaction_session_timeout = %d;
		select set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true)`,
		ms, ms*4/5, 2*ms)
	view = fmt.Sprintf(`begin read only, isolation level repeatable read;
		set local statement_timeout = %d; set local idle_in_transaction_session_timeout = %d`, ms, max(2*ms, idleView.Milliseconds()))
	return update, view
}

// start checks the server and the data, and makes what is missing.
func (s *Store) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.patience)
	defer cancel()
	if err := s.prepare(ctx); err != nil {
		if no := new(refusal); !errors.As(err, no) && judge(err) == unreachable {
			err = unavailable(err)
		}
		return fmt.Errorf("opening the store: %w", err)
	}
	return s.renew(ctx)
}

func (s *Store) prepare(ctx context.Context) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer end(conn)
	var version, fsync string
	var number int
	err = conn.QueryRow(ctx, `select version(), current_setting('server_version_num')::int, current_setting('fsync')`).Scan(&version, &number, &fsync)
	if err != nil {
		return err
	}
	if err := checkServer(version, number); err != nil {
		return refusal{err}
	}
	if fsync != "on" {
		s.log.Error("PostgreSQL runs with fsync=off: a power cut there can lose sign-outs and billing actions that were confirmed")
	}
	return migrate(ctx, conn.Conn())
}

// refusal is an error that does not go by itself.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// migrations are what makes each version of the tables out of the one before.
// Never change one that was released.
var migrations = []string{
	// The values are sealed: they do not compress. Sessions are rewritten in
	// place, so pages keep some room.
	`create table billing_portal_kv (k bytea primary key, v bytea not null) with (fillfactor = 85);
	alter table billing_portal_kv alter column v set storage external`,
}

// migrationLock is the key of the advisory lock that one migrating node holds:
// "portal" in ASCII.
const migrationLock = 0x706f7274616c

// migrate brings the tables to this build's version. It is a runner of our own
// because it must work through a pooler: one transaction with a lock that ends
// with it, where the libraries (tern, goose) lock for the session.
func migrate(ctx context.Context, conn *pgx.Conn) error {
	// Most starts find everything in order, with a role that need not be
	// allowed to make tables.
	if v, err := schemaVersion(ctx, conn); err != nil || v == len(migrations) {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, int64(migrationLock)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `create table if not exists billing_portal_schema (version int not null)`); err != nil {
			return refusal{fmt.Errorf("making tables (the role needs CREATE on the schema for the first start): %w", err)}
		}
		v, err := schemaVersion(ctx, conn)
		if err != nil {
			return err
		}
		for ; v < len(migrations); v++ {
			if _, err := tx.Exec(ctx, migrations[v]); err != nil {
				return refusal{fmt.Errorf("making tables, version %d: %w", v+1, err)}
			}
		}
		if _, err := tx.Exec(ctx, `delete from billing_portal_schema`); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `insert into billing_portal_schema values ($1)`, v)
		return err
	})
}

// schemaVersion is the version of the tables, 0 where there are none.
func schemaVersion(ctx context.Context, conn *pgx.Conn) (int, error) {
	var there bool
	if err := conn.QueryRow(ctx, `select to_regclass('billing_portal_schema') is not null`).Scan(&there); err != nil || !there {
		return 0, err
	}
	var v int
	if err := conn.QueryRow(ctx, `select coalesce(max(version), 0) from billing_portal_schema`).Scan(&v); err != nil {
		return 0, err
	}
	if v > len(migrations) {
		return 0, refusal{fmt.Errorf("the database was written by a newer version (schema %d, this one knows up to %d): run that version, or restore a backup from before it", v, len(migrations))}
	}
	return v, nil
}

// Reseal seals every value that a previous key sealed with the current key,
// and returns how many there were. Afterwards the previous keys can be dropped
// on all nodes. It may run beside everything else, on several nodes, and again
// after it was interrupted. Nodes that do not know the current key yet cannot
// read what was sealed anew: give it to all of them as a previous key first.
func (s *Store) Reseal(ctx context.Context) (int, error) { return store.Reseal(ctx, s, s.stale) }

// stale returns keys whose value a previous key sealed, and where to look on,
// nil for the end.
func (s *Store) stale(ctx context.Context, from []byte) (keys [][]byte, next []byte, err error) {
	const page = 1000
	if from == nil {
		from = []byte{} // nil is no value in SQL
	}
	err = s.View(ctx, func(tx store.Tx) error {
		keys, next = nil, nil
		rows, err := tx.(*transaction).rows(nil, from, page, false)
		if err != nil {
			return err
		}
		for _, e := range rows {
			if !s.sealer.IsCurrent(e.Value) {
				keys = append(keys, e.Key)
			}
		}
		if len(rows) == page {
			next = append(rows[page-1].Key, 0)
		}
		return nil
	})
	return keys, next, err
}
