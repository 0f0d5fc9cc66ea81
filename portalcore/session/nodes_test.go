package session_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

// server is the PostgreSQL server of this package's tests.
var server struct {
	once sync.Once
	srv  *pgtest.Server
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if server.srv != nil {
		if err := server.srv.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// onTwoNodes runs a test with two managers of one tenant: over one Badger store,
// as two configs of a reload have it, and over two connections to a PostgreSQL
// server, as two machines have it.
func onTwoNodes(t *testing.T, test func(t *testing.T, nodes []*session.Manager, c *clock)) {
	t.Run("badger", func(t *testing.T) {
		m, c := newManager(t)
		test(t, []*session.Manager{m, sibling(m)}, c)
	})
	t.Run("postgres", func(t *testing.T) {
		server.once.Do(func() { server.srv, server.err = pgtest.New(pgtest.NoSync()) })
		pgtest.Check(t, server.err)
		sealer, err := store.NewSealer(make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		c := &clock{}
		c.ns.Store(time.Now().UnixNano())
		dsn := server.srv.DSN(server.srv.Database(t))
		var nodes []*session.Manager
		for range 2 {
			s, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn, Sealer: sealer, Now: c.Now})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			m, _ := newManager(t)
			m.Store, m.Now = s, c.Now
			nodes = append(nodes, m)
		}
		test(t, nodes, c)
	})
}
