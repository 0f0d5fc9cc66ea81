package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const passing = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`

// record runs a shell command as a suite that prints the events.
func record(t *testing.T, dir, name, events, then string) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "events")
	if err := os.WriteFile(file, []byte(events), 0o600); err != nil {
		t.Fatal(err)
	}
	return runSuite([]string{"-raw", dir, name, "sh", "-c", "cat '" + file + "'; " + then}, io.Discard)
}

func TestTotal(t *testing.T) {
	const skipping = `{"Action":"start","Package":"q"}
{"Action":"run","Package":"q","Test":"TestS"}
{"Action":"skip","Package":"q","Test":"TestS"}
{"Action":"pass","Package":"q"}
`
	const failing = `{"Action":"start","Package":"r"}
{"Action":"run","Package":"r","Test":"TestF"}
{"Action":"fail","Package":"r","Test":"TestF"}
{"Action":"fail","Package":"r"}
`
	for _, tc := range []struct {
		name          string
		events, then  string
		list, feature string
		noSkips       bool
		suiteFails    bool
		want          []string // the last is the last line
	}{
		{name: "all well", then: "true", want: []string{"1 passed, 0 failed"}},
		{name: "skip allowed", events: skipping, then: "true", want: []string{"q TestS", "1 passed, 0 failed"}},
		{name: "skip forbidden", events: skipping, then: "true", noSkips: true, want: []string{"nothing may be: q TestS", "1 passed, 1 failed"}},
		{name: "test fails", events: failing, then: "exit 1", suiteFails: true, want: []string{"r TestF", "1 passed, 1 failed"}},
		{name: "test fails and the command forgets", events: failing, then: "true", suiteFails: true, want: []string{"r TestF", "1 passed, 1 failed"}},
		{name: "command fails alone", then: "exit 3", suiteFails: true, want: []string{"suite second: exit status 3", "1 passed, 1 failed"}},
		{name: "list holds", then: "true", list: "TestA\n", feature: "`TestA`", want: []string{"must-run.txt: 1 of 1", "features.md: 1 of 1", "1 passed, 0 failed"}},
		{name: "listed test missing", then: "true", list: "TestA\nTestB\n", want: []string{"TestB, which did not run", "1 passed, 1 failed"}},
		{name: "listed test skipped", events: skipping, then: "true", list: "TestS\n", want: []string{"TestS, which was skipped", "1 passed, 1 failed"}},
		{name: "listed test fails, and counts once", events: failing, then: "exit 1", list: "TestA\nTestF\n", suiteFails: true, want: []string{"must-run.txt: 1 of 2", "r TestF", "1 passed, 1 failed"}},
		{name: "list is empty", then: "true", list: "# none\n", want: []string{"names no test", "1 passed, 1 failed"}},
		{name: "feature missing", then: "true", feature: "`TestA/sub`", want: []string{"TestA/sub, which did not run", "1 passed, 1 failed"}},
		{name: "features name nothing", then: "true", feature: "nothing yet", want: []string{"names no test", "1 passed, 1 failed"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := record(t, dir, "first", passing, "true"); err != nil {
				t.Fatal(err)
			}
			if err := record(t, dir, "second", tc.events, tc.then); (err != nil) != tc.suiteFails {
				t.Errorf("suite: %v, want a failure: %v", err, tc.suiteFails)
			}
			args := []string{"-raw", dir}
			for flag, text := range map[string]string{"must-run.txt": tc.list, "features.md": tc.feature} {
				if text == "" {
					continue
				}
				file := filepath.Join(dir, flag)
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "-"+strings.TrimSuffix(strings.TrimSuffix(flag, ".txt"), ".md"), file)
			}
			if tc.noSkips {
				args = append(args, "-no-skips")
			}
			var w strings.Builder
			err := runTotal(args, &w)
			last := tc.want[len(tc.want)-1]
			if wantErr := !strings.HasSuffix(last, " 0 failed"); errors.Is(err, errFailed) != wantErr {
				t.Errorf("total: %v, want a failure: %v", err, wantErr)
			}
			for _, want := range tc.want {
				if !strings.Contains(w.String(), want) {
					t.Errorf("printed %q, want %q in it", w.String(), want)
				}
			}
			if !strings.HasSuffix(w.String(), "\n"+last+"\n") {
				t.Errorf("printed %q, want %q as the last line", w.String(), last)
			}
		})
	}
}

func TestTotalNeedsItsInput(t *testing.T) {
	dir := t.TempDir()
	if err := runTotal([]string{"-raw", dir}, io.Discard); err == nil || !strings.Contains(err.Error(), "no suite has run") {
		t.Errorf("total of nothing: %v", err)
	}
	if err := record(t, dir, "first", passing, "true"); err != nil {
		t.Fatal(err)
	}
	err := runTotal([]string{"-raw", dir, "-features", filepath.Join(dir, "features.md")}, io.Discard)
	if !errors.Is(err, errFailed) {
		t.Errorf("total with a list that is not there: %v, want a failure", err)
	}
	if err := runSuite([]string{"-raw", dir, "../x", "true"}, io.Discard); err == nil {
		t.Error("a suite could be recorded outside the directory")
	}
	if err := runSuite([]string{"-raw", dir, "gone", filepath.Join(dir, "no-such-command")}, io.Discard); err == nil {
		t.Error("a command that is not there passed")
	}
	var w strings.Builder
	if err := runTotal([]string{"-raw", dir}, &w); !errors.Is(err, errFailed) || !strings.HasSuffix(w.String(), "\n1 passed, 1 failed\n") {
		t.Errorf("total after a command that is not there: %v, printed %q", err, w.String())
	}
}
