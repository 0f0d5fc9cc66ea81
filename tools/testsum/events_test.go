package main

import (
	"slices"
	"strings"
	"testing"
)

// lines joins events as go test prints them.
func lines(l ...string) string { return strings.Join(l, "\n") + "\n" }

func TestRead(t *testing.T) {
	for _, tc := range []struct {
		name, in        string
		passed, skipped int
		failures, skips []string
		printed         []string // in this order
		silent          []string
	}{
		{
			name: "subtests count with their test",
			in: lines(`{"Action":"start","Package":"p"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}`,
				`{"Action":"run","Package":"p","Test":"TestA/x"}`,
				`{"Action":"output","Package":"p","Test":"TestA/x","Output":"chatter\n"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"--- PASS: TestA (0.10s)\n"}`,
				`{"Action":"output","Package":"p","Test":"TestA/x","Output":"    --- PASS: TestA/x (0.10s)\n"}`,
				`{"Action":"pass","Package":"p","Test":"TestA/x","Elapsed":0.1}`,
				`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}`,
				`{"Action":"output","Package":"p","Output":"ok  \tp\t0.2s\n"}`,
				`{"Action":"pass","Package":"p","Elapsed":0.2}`),
			passed:  1,
			printed: []string{"--- PASS: TestA (0.10s)\n", "ok  \tp\t0.2s\n"},
			silent:  []string{"chatter", "=== RUN", "TestA/x"},
		},
		{
			name: "a failure brings its words, also those of subtests",
			in: lines(`{"Action":"start","Package":"p"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"run","Package":"p","Test":"TestA/x"}`,
				`{"Action":"output","Package":"p","Test":"TestA/x","Output":"a_test.go:1: got 1, want 2\n"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"--- FAIL: TestA (0.10s)\n"}`,
				`{"Action":"fail","Package":"p","Test":"TestA/x"}`,
				`{"Action":"fail","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Output":"FAIL\tp\t0.2s\n"}`,
				`{"Action":"fail","Package":"p"}`),
			failures: []string{"p TestA"},
			printed:  []string{"got 1, want 2\n", "--- FAIL: TestA", "FAIL\tp"},
		},
		{
			name: "skipped tests say why, and their test is no failure",
			in: lines(`{"Action":"start","Package":"p"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"a_test.go:1: no browser\n"}`,
				`{"Action":"skip","Package":"p","Test":"TestA"}`,
				`{"Action":"run","Package":"p","Test":"TestB"}`,
				`{"Action":"run","Package":"p","Test":"TestB/x"}`,
				`{"Action":"output","Package":"p","Test":"TestB/x","Output":"b_test.go:1: short\n"}`,
				`{"Action":"skip","Package":"p","Test":"TestB/x"}`,
				`{"Action":"pass","Package":"p","Test":"TestB"}`,
				`{"Action":"pass","Package":"p"}`),
			passed: 1, skipped: 1,
			skips:   []string{"p TestA", "p TestB/x"},
			printed: []string{"no browser", "short"},
		},
		{
			name: "a package that does not build",
			in: lines(`{"ImportPath":"p [p.test]","Action":"build-output","Output":"p/a.go:1:1: syntax error\n"}`,
				`{"ImportPath":"p [p.test]","Action":"build-fail"}`,
				`{"Action":"start","Package":"p"}`,
				`{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}`,
				`{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`),
			failures: []string{"p (package)"},
			printed:  []string{"syntax error", "[build failed]"},
		},
		{
			name: "a test that took the process down",
			in: lines(`{"Action":"start","Package":"p"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"about to exit\n"}`,
				`{"Action":"output","Package":"p","Output":"FAIL\tp\t0.2s\n"}`,
				`{"Action":"fail","Package":"p"}`),
			failures: []string{"p TestA (did not end)"},
			printed:  []string{"about to exit", "FAIL\tp"},
		},
		{
			name: "a stream that was cut off",
			in: lines(`{"Action":"start","Package":"p"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"halfway\n"}`),
			failures: []string{"p TestA (did not end)"},
			printed:  []string{"halfway"},
		},
		{
			name: "a package that never ended",
			in: lines(`{"Action":"start","Package":"p"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p","Test":"TestA"}`),
			passed:   1,
			failures: []string{"p (package)"},
		},
		{
			name: "no test files",
			in: lines(`{"Action":"start","Package":"p"}`,
				`{"Action":"output","Package":"p","Output":"?   \tp\t[no test files]\n"}`,
				`{"Action":"skip","Package":"p"}`),
			silent: []string{"no test files"},
		},
		{
			name:    "words of another command",
			in:      "# vet\n{not json\n./a.go:1: unreachable code\nno newline",
			printed: []string{"# vet\n", "{not json\n", "unreachable code\n", "no newline"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var w strings.Builder
			res, err := read(strings.NewReader(tc.in), &w)
			if err != nil {
				t.Fatal(err)
			}
			passed, skipped := res.count()
			if passed != tc.passed || skipped != tc.skipped {
				t.Errorf("%d passed and %d skipped, want %d and %d", passed, skipped, tc.passed, tc.skipped)
			}
			if got := res.failures(); !slices.Equal(got, tc.failures) {
				t.Errorf("failures = %q, want %q", got, tc.failures)
			}
			if got := res.skips(); !slices.Equal(got, tc.skips) {
				t.Errorf("skips = %q, want %q", got, tc.skips)
			}
			rest := w.String()
			for _, want := range tc.printed {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Errorf("printed %q, want %q in it, in this order", w.String(), want)
					break
				}
				rest = after
			}
			for _, bad := range tc.silent {
				if strings.Contains(w.String(), bad) {
					t.Errorf("printed %q, want no %q in it", w.String(), bad)
				}
			}
		})
	}
}

func TestAddKeepsTheWorse(t *testing.T) {
	one, two := newResults(), newResults()
	id := testID{"p", "TestA"}
	one.tests[id], two.tests[id] = "fail", "pass"
	one.packages["p"], two.packages["p"] = "pass", "fail"
	one.add(two)
	if one.tests[id] != "fail" || one.packages["p"] != "fail" {
		t.Errorf("merged to %v and %v, want both fail", one.tests, one.packages)
	}
}

func TestProblem(t *testing.T) {
	res := newResults()
	for name, outcome := range map[string]string{
		"TestGood": "pass", "TestGood/with_a_space": "pass", "TestBad": "fail", "TestCut": "", "TestSkipped": "skip",
	} {
		res.tests[testID{"p", name}] = outcome
	}
	res.tests[testID{"p", "TestTwice"}] = "pass"
	res.tests[testID{"q", "TestTwice"}] = "fail"
	res.tests[testID{"p", "TestSometimes"}] = "pass"
	res.tests[testID{"q", "TestSometimes"}] = "skip"
	for name, want := range map[string]string{
		"TestGood":              "",
		"TestGood/with a space": "",
		"TestGood/other":        "did not run",
		"TestGoo":               "did not run",
		"TestBad":               "failed",
		"TestCut":               "failed",
		"TestSkipped":           "was skipped",
		"TestTwice":             "failed",
		"TestSometimes":         "was skipped",
	} {
		if got := res.problem(name); got != want {
			t.Errorf("problem(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	got := listedNames("# Caddy\nTestReload\n\n  TestAxe/overview # every page\n#TestOff\n")
	if want := []string{"TestReload", "TestAxe/overview"}; !slices.Equal(got, want) {
		t.Errorf("listedNames = %q, want %q", got, want)
	}
	got = featureNames("| view | `TestLook/sandbox`, `TestLook/stripe` |\n| cancel | `TestCancel_end of period`, `TestLook/sandbox` |\n" +
		"`go test ./...` `Testing` `Testament` TestBare `ExamplePortal` `FuzzLink`")
	want := []string{"ExamplePortal", "FuzzLink", "TestCancel_end of period", "TestLook/sandbox", "TestLook/stripe"}
	if !slices.Equal(got, want) {
		t.Errorf("featureNames = %q, want %q", got, want)
	}
}
