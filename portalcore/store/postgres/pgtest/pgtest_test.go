package pgtest_test

import (
	"os"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

func TestLife(t *testing.T) {
	s := pgtest.Start(t)
	for _, want := range [][2]string{
		{"select pg_is_in_recovery()", "f"},
		{"show fsync", "on"},
		{"show synchronous_commit", "on"},
	} {
		if got := s.Exec(t, want[0]); got != want[1] {
			t.Errorf("%s: %q, want %q", want[0], got, want[1])
		}
	}
	s.Exec(t, "create table t (n int)")
	for _, end := range []func() error{
		s.Kill,
		func() error { return s.Stop(pgtest.Fast) },
		func() error { return s.Stop(pgtest.Immediate) },
	} {
		s.Exec(t, "insert into t values (1)")
		port := s.Port
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(); err != nil || s.Port != port {
			t.Fatal(s.Port, err)
		}
	}
	if got := s.Exec(t, "select count(*) from t"); got != "3" {
		t.Errorf("%s of 3 rows after three restarts", got)
	}
}

func TestStandby(t *testing.T) {
	a := pgtest.Start(t)
	a.Exec(t, "create table t (n int)")
	b := a.Standby(t)
	if got := b.Exec(t, "select pg_is_in_recovery()"); got != "t" {
		t.Errorf("the standby is in recovery: %s", got)
	}
	a.Exec(t, "insert into t values (1)")
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b.Promote(t)
	t.Logf("promoted in %s", time.Since(began))
	if got := b.Exec(t, "select count(*) from t"); got != "1" {
		t.Errorf("the promoted standby has %s rows, want 1", got)
	}
	b.Exec(t, "insert into t values (2)")
}

func TestCloseLeavesNothing(t *testing.T) {
	s, err := pgtest.New(pgtest.NoSync())
	pgtest.Check(t, err)
	dir := s.Exec(t, "show data_directory")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}
