package caddymodule

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres"
)

func init() {
	caddy.RegisterModule(PostgresStorage{})
}

// PostgresStorage keeps everything in a PostgreSQL database, for any number of
// Caddy processes that share it. It needs seal_key, the same on all of them.
type PostgresStorage struct {
	// DSN is the connection string, a URL or key=value pairs as for libpq, with
	// all hosts where there is a standby:
	// postgres://portal@db1,db2/portal?sslmode=verify-full. Behind a
	// placeholder, {env.DATABASE_URL} or {file./path}, if it has a password.
	// Required. The store uses the host that takes writes; target_session_attrs
	// need not be given. Settings a password cannot be in, like sslrootcert,
	// work as libpq's do.
	DSN string `json:"dsn,omitempty"`

	// MaxConnections is the most connections this process has open at a time;
	// what needs one more waits. Default: 10.
	MaxConnections int `json:"max_connections,omitempty"`

	// StatementTimeout bounds a statement. A change may take twice as long, and
	// waiting for the synchronous standby as long again. Default: 5s.
	StatementTimeout caddy.Duration `json:"statement_timeout,omitempty"`

	// ConnectTimeout bounds an attempt to connect to one host. Default:
	// connect_timeout of the connection string, else 3s.
	ConnectTimeout caddy.Duration `json:"connect_timeout,omitempty"`

	// dsn is expanded, and never marshalled or logged.
	dsn    string
	target postgres.Target
}

// CaddyModule returns the Caddy module information.
func (PostgresStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "billing_portal.stores.postgres",
		New: func() caddy.Module { return new(PostgresStorage) },
	}
}

// Provision reads the connection string and connects to nothing.
func (p *PostgresStorage) Provision(caddy.Context) (err error) {
	switch err := checkDSN(p.DSN); {
	case err != nil:
		return err
	case p.MaxConnections < 0, p.MaxConnections == 1:
		// A page that reads while it writes would wait for itself.
		return errors.New("store postgres: max_connections must be at least 2")
	case p.StatementTimeout < 0, p.ConnectTimeout < 0:
		return errors.New("store postgres: timeouts must be positive")
	}
	if p.dsn, err = expand("store postgres: the connection string", p.DSN); err != nil {
		return err
	}
	p.target, err = postgres.ParseTarget(p.dsn)
	return err
}

var (
	placeholders = regexp.MustCompile(`\{[^{}]+\}`)
	// In key=value pairs, in a URL's query, and between user and host.
	passwordIn = regexp.MustCompile(`(?i)(^|[\s?&])(ssl)?password\s*=\s*[^\s&]|^[a-z]+://[^/?@]*:[^/?@]+@`)
)

// hasPassword reports whether a password stands in the connection string
// itself, rather than behind a placeholder.
func hasPassword(dsn string) bool {
	return passwordIn.MatchString(placeholders.ReplaceAllString(dsn, ""))
}

// checkDSN refuses what must not stand in a config.
func checkDSN(dsn string) error {
	if dsn == "" {
		return errors.New("store postgres takes one argument, its connection string, as a placeholder like {env.DATABASE_URL}")
	}
	if hasPassword(dsn) {
		return checkSecret("store postgres: a password", dsn)
	}
	return nil
}

// NeedsSealKey is true: every node must have the same key.
func (*PostgresStorage) NeedsSealKey() bool { return true }

// resourceKey makes names of connection strings that nobody can guess a
// password from.
var resourceKey = sync.OnceValue(func() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key)
	return key
})

// Resource is where the database is, and a name for everything else about how
// it is used: a reload with another password or other limits connects anew.
func (p *PostgresStorage) Resource() (string, error) {
	h := hmac.New(sha256.New, resourceKey())
	fmt.Fprintf(h, "%s\x00%d\x00%d\x00%d", p.dsn, p.MaxConnections, p.StatementTimeout, p.ConnectTimeout)
	return fmt.Sprintf("postgres %s (%x)", p.target.Name, h.Sum(nil)[:4]), nil
}

// postgresOpenTimeout bounds a start that makes tables or waits for a node that
// does.
const postgresOpenTimeout = 30 * time.Second

// OpenStore connects to the database.
func (p *PostgresStorage) OpenStore(resource string, sealer *store.Sealer, logger *zap.Logger) (OpenStore, error) {
	ctx, cancel := context.WithTimeout(context.Background(), postgresOpenTimeout)
	defer cancel()
	st, err := postgres.Open(ctx, postgres.Options{
		DSN: p.dsn, Sealer: sealer, Logger: logger, MaxConns: int32(p.MaxConnections),
		StatementTimeout: time.Duration(p.StatementTimeout), ConnectTimeout: time.Duration(p.ConnectTimeout),
	})
	if err != nil {
		return OpenStore{}, fmt.Errorf("%s: %w", resource, err)
	}
	if p.target.Exposed {
		logger.Warn("the connection to PostgreSQL leaves this machine and the server's certificate is not checked: set sslmode=verify-full and sslrootcert in the connection string", zap.String("resource", resource))
	}
	return OpenStore{Store: st, Close: st.Close, Reseal: st.Reseal}, nil
}

// UnmarshalCaddyfile reads
//
//	postgres <connection string> {
//		max_connections   <number>
//		statement_timeout <duration>
//		connect_timeout   <duration>
//	}
func (p *PostgresStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.Errf("store postgres takes one argument, its connection string, as a placeholder like {env.DATABASE_URL}")
	}
	if err := checkDSN(args[0]); err != nil {
		return d.WrapErr(err)
	}
	p.DSN = args[0]
	return block(d, "store postgres", subdirectives{
		"max_connections": {once, func() error {
			n, err := numberArg(d)
			if err == nil && n < 2 {
				err = d.Errf("store postgres: max_connections must be at least 2")
			}
			p.MaxConnections = int(n)
			return err
		}},
		"statement_timeout": {once, func() error { return durationArg(d, &p.StatementTimeout) }},
		"connect_timeout":   {once, func() error { return durationArg(d, &p.ConnectTimeout) }},
	})
}

// Interface guards
var (
	_ Storage               = (*PostgresStorage)(nil)
	_ caddy.Provisioner     = (*PostgresStorage)(nil)
	_ caddyfile.Unmarshaler = (*PostgresStorage)(nil)
)
