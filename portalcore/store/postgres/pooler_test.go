package postgres

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/storetest"
)

// TestPgBouncer runs the suite through PgBouncer's transaction pooling, and
// restarts the server behind it: connections stay, and another server answers.
func TestPgBouncer(t *testing.T) {
	bin, err := exec.LookPath("pgbouncer")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
	}
	if err != nil {
		t.Skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
	}
	srv := pgtest.Start(t)
	db := srv.Database(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	dir, err := os.MkdirTemp("", "pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// It does not run as root; the directory is all that it needs.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ini := filepath.Join(dir, "pgbouncer.ini")
	text := fmt.Sprintf(`[databases]
%s = host=127.0.0.1 port=%d user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
auth_type = any
pool_mode = transaction
default_pool_size = 5
unix_socket_dir =
max_client_conn = 200
server_login_retry = 1
`, db, srv.Port, port)
	if err := os.WriteFile(ini, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{ini}
	if os.Geteuid() == 0 {
		args = append([]string{"-u", "postgres"}, args...)
	}
	cmd := exec.Command(bin, args...)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("PgBouncer logged:\n%s", b[max(0, len(b)-3000):])
		}
	})
	dsn := fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", port, db)
	eventually(t, "PgBouncer answers", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	storetest.Run(t, func(t *testing.T) store.Store {
		return mustOpen(t, dsn, Options{})
	}, func(t *testing.T, s store.Store) store.Store {
		if err := s.(*Store).Close(); err != nil {
			t.Fatal(err)
		}
		return mustOpen(t, dsn, Options{})
	})

	s := mustOpen(t, dsn, Options{})
	old := guardOf(t, s)
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), s, "down", "1"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("with the server down: %v", err)
	}
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	var g store.Guard
	eventually(t, "the pooler has connected anew", func() bool {
		return s.Update(t.Context(), func(tx store.Tx) (err error) {
			g, err = store.ReadGuard(tx)
			return err
		}) == nil
	})
	if g.Generation == old.Generation {
		t.Error("a redemption after the server's restart saw the generation from before")
	}
}
