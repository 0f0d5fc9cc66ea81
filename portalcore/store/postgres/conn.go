package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// minVersion is the oldest server taken, as server_version_num says it. The
// SQL would run on older ones; nobody maintains those.
const minVersion = 130000

// Target is what a connection string says about where the database is.
type Target struct {
	// Name is the hosts and the database, without user and password.
	Name string
	// Exposed is true where a host is not on this machine and its certificate
	// is not checked (sslmode is neither verify-ca nor verify-full), so that
	// whoever is in between reads and changes what is sent.
	Exposed bool
}

// ParseTarget reads a connection string and connects to nothing. Its errors
// never hold the string.
func ParseTarget(dsn string) (Target, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return Target{}, errDSN
	}
	c := cfg.ConnConfig
	// Even a single host has one, with TLS or without.
	hosts := slices.Concat([]*pgconn.FallbackConfig{{Host: c.Host, Port: c.Port, TLSConfig: c.TLSConfig}}, c.Fallbacks)
	var t Target
	var names []string
	for _, h := range hosts {
		if name := net.JoinHostPort(h.Host, strconv.Itoa(int(h.Port))); !slices.Contains(names, name) {
			names = append(names, name)
		}
		if !local(h.Host) && (h.TLSConfig == nil || h.TLSConfig.InsecureSkipVerify && h.TLSConfig.VerifyPeerCertificate == nil) {
			t.Exposed = true
		}
	}
	t.Name = strings.Join(names, ",") + "/" + c.Database
	return t, nil
}

// local reports whether what is sent to host stays on this machine: a socket's
// directory, or loopback.
func local(host string) bool {
	ip := net.ParseIP(host)
	return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" || ip != nil && ip.IsLoopback()
}

// errDSN says nothing of the string: what pgx says may quote a password that
// it did not recognize as one.
var errDSN = errors.New("store: the PostgreSQL connection string cannot be read: write it as postgres://user:password@host:5432/database?sslmode=verify-full (the password percent-encoded, the files it names readable) or as key=value pairs")

// poolConfig reads the connection string and sets what does not depend on the
// operator.
func poolConfig(o Options) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(o.DSN)
	if err != nil {
		return nil, errDSN
	}
	cfg.MaxConns = o.MaxConns
	cfg.MinIdleConns = 0
	cfg.MaxConnLifetime = time.Hour
	cfg.MaxConnLifetimeJitter = 10 * time.Minute
	cfg.MaxConnIdleTime = 5 * time.Minute
	cfg.PingTimeout = o.ConnectTimeout
	c := cfg.ConnConfig
	if c.ConnectTimeout == 0 || !strings.Contains(o.DSN, "connect_timeout") {
		c.ConnectTimeout = o.ConnectTimeout
	}
	// The store decides on the primary: of several hosts, the one that takes
	// writes; of one host, that or nothing.
	c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	// Statements are described once per connection and not kept on the server,
	// so PgBouncer may give every transaction another one. The connection
	// string can say otherwise (default_query_exec_mode).
	if c.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		c.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "billing-portal"
	}
	c.OnNotice = func(pc *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			pc.CustomData()[warningKey] = n.Message
		}
	}
	dial := (&net.Dialer{Timeout: c.ConnectTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}).DialContext
	cfg.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		neverCancel(c, dial)
		return nil
	}
	return cfg, nil
}

// neverCancel keeps pgx from asking the server to cancel what a broken or
// abandoned connection was doing. A COMMIT that waits for its synchronous
// standby would then be applied without having reached it, and whoever reads
// again after ErrUnknown would take it for durable. Statements end by their
// timeouts.
func neverCancel(c *pgx.ConnConfig, dial pgconn.DialFunc) {
	var connected atomic.Bool
	c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if connected.Load() {
			return nil, errors.New("store: requests to cancel are not sent")
		}
		return dial(ctx, network, addr)
	}
	c.AfterConnect = func(context.Context, *pgconn.PgConn) error {
		connected.Store(true)
		return nil
	}
}

// warningKey is where a connection keeps the last warning it was sent.
const warningKey = "warning"

// checkServer refuses what is not PostgreSQL, or too old.
func checkServer(version string, number int) error {
	var name string
	switch {
	case strings.Contains(version, "CockroachDB"):
		name = "CockroachDB"
	case strings.Contains(version, "-YB-"), strings.Contains(version, "Yugabyte"):
		name = "YugabyteDB"
	case !strings.HasPrefix(version, "PostgreSQL "), strings.Contains(version, "Redshift"), strings.Contains(version, "Greenplum"):
		name, _, _ = strings.Cut(version, " (")
	case number < minVersion:
		return fmt.Errorf("the server is PostgreSQL %d, at least %d is needed", number/10000, minVersion/10000)
	default:
		return nil
	}
	return fmt.Errorf("the server is %s, which speaks PostgreSQL's protocol but was not tested with the portal: give it a PostgreSQL server", name)
}

// kind is what an error of the database means for a transaction that was not
// committed.
type kind int

const (
	settled     kind = iota // no use in trying again
	conflict                // another transaction was faster: run again
	unreachable             // the connection is gone, or the server takes no writes
	stale                   // the guard has to be renewed first
)

// judge says what an error means. It is only for errors of the database and
// of the connection to it, before a COMMIT was sent.
func judge(err error) kind {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		switch {
		case errors.Is(err, errStale):
			return stale
		case errors.Is(err, store.ErrSealed), errors.Is(err, errDecode), errors.Is(err, errSlow):
			return settled
		}
		return unreachable
	}
	switch pg.Code {
	case "40001", // serialization_failure
		"40P01", // deadlock_detected
		"23505", // unique_violation: a concurrent insert, seen late
		"55P03": // lock_not_available: lock_timeout
		return conflict
	case "25006", // read_only_sql_transaction
		"0A000", // feature_not_supported: serializable on a standby
		"55000", // object_not_in_prerequisite_state: recovery is in progress
		"57014", // query_canceled: statement_timeout
		"25P03", // idle_in_transaction_session_timeout
		"42501", // insufficient_privilege: revoked while running
		"3D000", // invalid_catalog_name: the database is being made anew
		"28P01", // invalid_password: it was changed
		"28000": // invalid_authorization_specification
		return unreachable
	}
	switch pg.Code[:2] {
	case "08", "53", "57", "58", "XX": // connection, resources, operator, system, internal
		return unreachable
	}
	return settled
}

// errDecode says that the database answered something that is not ours.
var errDecode = errors.New("store: unexpected answer of the database")

// unavailable wraps err as store.ErrUnavailable.
func unavailable(err error) error {
	if errors.Is(err, store.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: PostgreSQL: %w", store.ErrUnavailable, err)
}
