// Package pgtest starts real PostgreSQL servers for tests, from the binaries
// of an installed package, in directories and on ports of their own. It knows
// nothing of the portal.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrMissing says that no PostgreSQL is installed.
var ErrMissing = errors.New("pgtest: no PostgreSQL in /usr/lib/postgresql/*/bin; install one (Debian: apt-get install postgresql)")

// readyTimeout bounds every start, stop and promotion.
const readyTimeout = time.Minute

// superuser is the role that owns everything. Connections from this machine
// need no password.
const superuser = "postgres"

// Server is a PostgreSQL server. Its methods that take no context wait at most
// a minute. They are not safe for concurrent use, but may be used while
// clients are connected.
type Server struct {
	// Port is where the server listens on 127.0.0.1, the same over restarts.
	Port int

	bin      string // the binaries
	dir      string // data, socket and log
	owner    *syscall.SysProcAttr
	settings []string
	proc     *running // nil while it is down
	standbys atomic.Int32
}

// running is a server process.
type running struct {
	pid    int
	exited chan struct{}
}

// Option changes how a server is made.
type Option func(*Server)

// Setting sets a parameter of postgresql.conf, "name=value".
func Setting(s string) Option {
	return func(srv *Server) { srv.settings = append(srv.settings, s) }
}

// NoSync turns fsync off. What is acknowledged then does not survive a power
// cut, so leave it on where durability is what is tested; a SIGKILL it does
// survive.
func NoSync() Option { return Setting("fsync=off") }

// Start starts a new, empty server that ends with the test. Where PostgreSQL
// is not installed the test is skipped, and fails if the environment has
// CI=true.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	s, err := New(opts...)
	Check(tb, err)
	tb.Cleanup(func() { s.end(tb) })
	return s
}

// Check ends the test if a server could not be started, as Start does.
func Check(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("CI") != "true" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func (s *Server) end(tb testing.TB) {
	if tb.Failed() {
		if log := s.Log(); log != "" {
			tb.Logf("PostgreSQL on port %d logged (the end):\n%s", s.Port, log[max(0, len(log)-4000):])
		}
	}
	if err := s.Close(); err != nil {
		tb.Error(err)
	}
}

// New starts a new, empty server for several tests. Close it.
func New(opts ...Option) (*Server, error) {
	s, err := prepare()
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o(s)
	}
	// The directory is synced with the first checkpoint; initdb need not.
	if err := s.run("initdb", "--no-sync", "--auth=trust", "--username="+superuser, "--encoding=UTF8", "--locale=C", "--pgdata="+s.data()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.Restart(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// prepare makes a directory that the server's user owns.
func prepare() (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin}
	// Not the test's own directory: a server run as another user could not
	// enter that, and the path of a socket may have 107 bytes only.
	if s.dir, err = os.MkdirTemp("", "pgtest-"); err != nil {
		return nil, err
	}
	if s.owner, err = owner(s.dir); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.Port, err = freePort(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// binaries returns the directory of the newest installed server.
func binaries() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(dirs) == 0 {
		return "", ErrMissing
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(dirs, func(a, b string) int { return version(a) - version(b) })), nil
}

// owner says as whom to run, because the server refuses root: as the user of
// the installed package then, who gets the directory.
func owner(dir string) (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{}
	if os.Geteuid() != 0 {
		return attr, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("pgtest: PostgreSQL does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attr, os.Chown(dir, int(uid), int(gid))
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// run runs one of PostgreSQL's programs to its end.
func (s *Server) run(program string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	cmd.SysProcAttr = s.owner
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgtest: %s: %w\n%s", program, err, out)
	}
	return nil
}

// DSN is a connection string for a database, over TCP. Options are further
// parameters, "name=value".
func (s *Server) DSN(database string, options ...string) string {
	return MultiDSN(database, []*Server{s}, options...)
}

// MultiDSN is a connection string with several hosts.
func MultiDSN(database string, servers []*Server, options ...string) string {
	hosts := make([]string, 0, len(servers))
	for _, s := range servers {
		hosts = append(hosts, fmt.Sprintf("127.0.0.1:%d", s.Port))
	}
	return fmt.Sprintf("postgres://%s@%s/%s?%s", superuser, strings.Join(hosts, ","), database,
		strings.Join(append([]string{"sslmode=disable"}, options...), "&"))
}

// Log is what the server has written to its log.
func (s *Server) Log() string {
	b, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return ""
	}
	return string(b)
}

// Restart starts a server that is down, and waits until it answers. What
// crashed is recovered.
func (s *Server) Restart() error {
	if s.proc != nil {
		return errors.New("pgtest: the server is running")
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{
		"-D", s.data(), "-p", strconv.Itoa(s.Port), "-k", s.dir, "-h", "127.0.0.1",
		"-c", "shared_buffers=16MB", "-c", "max_connections=200", "-c", "log_min_messages=warning",
	}
	for _, set := range s.settings {
		args = append(args, "-c", set)
	}
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), args...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = log, log
	attr := *s.owner
	attr.Setpgid = true
	attr.Pdeathsig = syscall.SIGQUIT // ends its children too
	cmd.SysProcAttr = &attr
	started := make(chan error, 1)
	r := &running{exited: make(chan struct{})}
	go func() {
		// The parent of Pdeathsig is the thread, so it must live as long.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			r.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(r.exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("pgtest: starting PostgreSQL: %w", err)
	}
	s.proc = r
	return s.wait("the server does not answer", func(ctx context.Context) error {
		select {
		case <-r.exited:
			s.proc = nil
			return fmt.Errorf("%w\n%s", errGaveUp, s.Log())
		default:
		}
		_, err := s.query(ctx, "select 1")
		return err
	})
}

var errGaveUp = errors.New("pgtest: the server ended")

// wait repeats try until it returns nil.
func (s *Server) wait(what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil || errors.Is(err, errGaveUp) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pgtest: %s: %w\n%s", what, err, s.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// query runs one statement in the database postgres and returns the first
// column of its first row as text.
func (s *Server) query(ctx context.Context, sql string) (string, error) {
	conn, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 || len(results[0].Rows) == 0 {
		return "", err
	}
	return string(results[0].Rows[0][0]), nil
}

// Exec runs SQL in the database postgres, as its owner.
func (s *Server) Exec(tb testing.TB, sql string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	out, err := s.query(ctx, sql)
	if err != nil {
		tb.Fatalf("pgtest: %s: %v", sql, err)
	}
	return out
}

// databases numbers them over all servers of the process.
var databases atomic.Int64

// Database makes a new, empty database and returns its name. It goes with the
// server.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("test%d", databases.Add(1))
	s.Exec(tb, "create database "+name)
	return name
}

// Standby makes a copy of the server that follows it, and makes every commit
// on the server wait until the standby has it on disk. It ends with the test.
func (s *Server) Standby(tb testing.TB) *Server {
	tb.Helper()
	b, err := prepare()
	Check(tb, err)
	tb.Cleanup(func() { b.end(tb) })
	b.settings = s.settings
	name := fmt.Sprintf("standby%d", s.standbys.Add(1))
	err = b.run("pg_basebackup", "--pgdata="+b.data(), "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync",
		"--dbname="+fmt.Sprintf("host=127.0.0.1 port=%d user=%s application_name=%s", s.Port, superuser, name))
	if err != nil {
		tb.Fatal(err)
	}
	if err := b.Restart(); err != nil {
		tb.Fatal(err)
	}
	s.Exec(tb, "alter system set synchronous_standby_names = '"+name+"'")
	s.Exec(tb, "select pg_reload_conf()")
	err = s.wait("the standby is not synchronous", func(ctx context.Context) error {
		state, err := s.query(ctx, "select sync_state from pg_stat_replication where application_name = '"+name+"'")
		if err == nil && state != "sync" {
			err = fmt.Errorf("it is %q", state)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// Promote makes a standby a primary, which begins a new timeline.
func (s *Server) Promote(tb testing.TB) {
	tb.Helper()
	if got := s.Exec(tb, "select pg_promote(true, 60)"); got != "t" {
		tb.Fatalf("pgtest: the standby was not promoted: %q", got)
	}
}

// Mode is how to stop a server.
type Mode syscall.Signal

// The modes of pg_ctl stop.
const (
	Smart     = Mode(syscall.SIGTERM) // waits for clients to go
	Fast      = Mode(syscall.SIGINT)  // ends their transactions
	Immediate = Mode(syscall.SIGQUIT) // without a checkpoint: recovers at the next start
)

// Stop stops the server and waits for its end.
func (s *Server) Stop(m Mode) error {
	if s.proc == nil {
		return nil
	}
	if err := syscall.Kill(s.proc.pid, syscall.Signal(m)); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("pgtest: stopping: %w", err)
	}
	return s.gone()
}

// Kill ends the server and all its processes with SIGKILL: none can put
// anything in order.
func (s *Server) Kill() error {
	if s.proc == nil {
		return nil
	}
	// Every backend has a process group of its own. A stopped parent makes no
	// more of them while they are looked up.
	_ = syscall.Kill(s.proc.pid, syscall.SIGSTOP)
	all := append([]int{s.proc.pid}, children(s.proc.pid)...)
	for _, pid := range all {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return s.gone()
}

// Freeze stops all processes of the server without ending them, like a machine
// that hangs: connections stay, and nothing answers. Thaw lets them go on.
func (s *Server) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw ends a Freeze.
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	if s.proc == nil {
		return
	}
	for _, pid := range append([]int{s.proc.pid}, children(s.proc.pid)...) {
		_ = syscall.Kill(pid, sig)
	}
}

// gone waits until the server and all that it started have ended: they hold
// its shared memory, without which it does not start again.
func (s *Server) gone() error {
	r := s.proc
	select {
	case <-r.exited:
	case <-time.After(readyTimeout):
		return errors.New("pgtest: the server does not end")
	}
	s.proc = nil
	return s.wait("its children do not end", func(context.Context) error {
		if left := s.processes(); len(left) > 0 {
			return fmt.Errorf("processes %v are left", left)
		}
		return nil
	})
}

// processes lists what runs with the server's directory as its working
// directory.
func (s *Server) processes() []int {
	var list []int
	for _, pid := range pids() {
		if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && dir == s.data() {
			list = append(list, pid)
		}
	}
	return list
}

func children(parent int) []int {
	var list []int
	for _, pid := range pids() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// pid (name) state ppid; the name may hold anything.
		_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(parent) {
			list = append(list, pid)
		}
	}
	return list
}

func pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var list []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

var closing sync.Mutex

// Close ends the server at once and removes its directory. It may be called
// more than once.
func (s *Server) Close() error {
	closing.Lock()
	defer closing.Unlock()
	err := s.Kill()
	return errors.Join(err, os.RemoveAll(s.dir))
}
