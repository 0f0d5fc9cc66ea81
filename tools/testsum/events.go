package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is one line of `go test -json`; see `go doc test2json`,
// and `go help buildjson` for those of the build.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// testID is a test or subtest in its package.
type testID struct{ pkg, test string }

func (id testID) String() string { return id.pkg + " " + id.test }

// top returns the test that the subtest belongs to.
func (id testID) top() testID {
	name, _, _ := strings.Cut(id.test, "/")
	return testID{id.pkg, name}
}

// results says how tests and packages ended: "pass", "fail" or "skip", and ""
// for what began and never ended.
type results struct {
	tests    map[testID]string
	packages map[string]string
}

func newResults() *results {
	return &results{tests: map[testID]string{}, packages: map[string]string{}}
}

// worse orders outcomes, so that a test that ran in two suites counts once and
// its failure is never hidden by a success.
var worse = []string{"pass", "skip", "", "fail"}

// add takes in the results of another suite.
func (r *results) add(other *results) {
	merge(r.tests, other.tests)
	merge(r.packages, other.packages)
}

func merge[K comparable](into, from map[K]string) {
	for k, v := range from {
		if old, ok := into[k]; !ok || slices.Index(worse, v) > slices.Index(worse, old) {
			into[k] = v
		}
	}
}

// count returns how many tests (not subtests) passed and were skipped.
func (r *results) count() (passed, skipped int) {
	for id, outcome := range r.tests {
		if id != id.top() {
			continue
		}
		switch outcome {
		case "pass":
			passed++
		case "skip":
			skipped++
		}
	}
	return passed, skipped
}

// failures lists the tests (not subtests) that failed or never ended, and the
// packages that failed without any such test: those that did not build, or
// whose process died.
func (r *results) failures() []string {
	var out []string
	explained := map[string]bool{}
	for id, outcome := range r.tests {
		if id != id.top() {
			continue
		}
		switch outcome {
		case "fail":
			out = append(out, id.String())
		case "":
			out = append(out, id.String()+" (did not end)")
		default:
			continue
		}
		explained[id.pkg] = true
	}
	for pkg, outcome := range r.packages {
		if (outcome == "fail" || outcome == "") && !explained[pkg] {
			out = append(out, pkg+" (package)")
		}
	}
	slices.Sort(out)
	return out
}

// skips lists the tests and subtests that were skipped.
func (r *results) skips() []string {
	var out []string
	for id, outcome := range r.tests {
		if outcome == "skip" {
			out = append(out, id.String())
		}
	}
	slices.Sort(out)
	return out
}

// hasFailed is the problem of a test that ran and did not pass.
const hasFailed = "failed"

// problem says why the named test does not count as run and passed, in
// whatever package it is; empty when it does.
func (r *results) problem(name string) string {
	name = strings.ReplaceAll(name, " ", "_") // as go test rewrites subtest names
	found := ""
	for id, outcome := range r.tests {
		if id.test != name {
			continue
		}
		switch outcome {
		case "pass":
			if found == "" {
				found = "pass"
			}
		case "skip":
			found = "was skipped"
		default:
			return hasFailed
		}
	}
	switch found {
	case "":
		return "did not run"
	case "pass":
		return ""
	}
	return found
}

// listedNames reads a list of tests: one a line, "#" begins a comment.
func listedNames(text string) []string {
	var names []string
	for l := range strings.Lines(text) {
		l, _, _ = strings.Cut(l, "#")
		if l = strings.TrimSpace(l); l != "" {
			names = append(names, l)
		}
	}
	return names
}

var inBackticks = regexp.MustCompile("`((?:Test|Fuzz|Example)[^a-z`][^`]*)`")

// featureNames finds the tests that a Markdown text names in backticks.
func featureNames(text string) []string {
	names := map[string]bool{}
	for _, m := range inBackticks.FindAllStringSubmatch(text, -1) {
		names[m[1]] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// transcript holds what tests and packages said until they end, by top-level
// test; a package's own words stand under the test "".
type transcript struct {
	w    io.Writer
	said map[testID][]byte
}

// print writes out what was said, and forgets it.
func (t *transcript) print(id testID) {
	_, _ = t.w.Write(t.said[id]) // to the terminal; the raw events are kept anyway
	delete(t.said, id)
}

// printResultLine writes out go's result line of a test that passed, and
// forgets all else that it said.
func (t *transcript) printResultLine(id testID) {
	for l := range bytes.Lines(t.said[id]) {
		if bytes.HasPrefix(l, []byte("--- PASS: "+id.test+" ")) {
			_, _ = t.w.Write(l)
		}
	}
	delete(t.said, id)
}

// printUnfinished writes out what the tests that never ended said; pkg limits
// it to one package.
func (t *transcript) printUnfinished(pkg string) {
	ids := slices.SortedFunc(maps.Keys(t.said), func(a, b testID) int { return strings.Compare(a.String(), b.String()) })
	for _, id := range ids {
		if pkg == "" || pkg == id.pkg && id.test != "" {
			t.print(id)
		}
	}
}

// read follows the events of a suite. On w it prints go's result line of each
// test and package, and everything that failing or skipped tests said. Lines
// that are no events are passed on, so that other commands can be suites too.
func read(in io.Reader, w io.Writer) (*results, error) {
	res := newResults()
	t := &transcript{w: w, said: map[testID][]byte{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var ev event
			if line[0] == '{' && json.Unmarshal(line, &ev) == nil && ev.Action != "" {
				take(res, t, ev)
			} else {
				_, _ = w.Write(line)
			}
		}
		if errors.Is(err, io.EOF) {
			t.printUnfinished("")
			return res, nil
		}
		if err != nil {
			return res, err
		}
	}
}

// take takes in one event.
func take(res *results, t *transcript, ev event) {
	id := testID{ev.Package, ev.Test}
	switch ev.Action {
	case "build-output":
		_, _ = io.WriteString(t.w, ev.Output)
	case "start":
		res.packages[ev.Package] = ""
	case "run":
		res.tests[id] = ""
	case "output":
		if !strings.HasPrefix(ev.Output, "=== ") { // RUN, PAUSE, CONT, NAME
			t.said[id.top()] = append(t.said[id.top()], ev.Output...)
		}
	case "pass", "fail", "skip":
		switch {
		case ev.Test == "":
			res.packages[ev.Package] = ev.Action
			t.printUnfinished(ev.Package) // they took the process down with them
			if ev.Action == "skip" {
				delete(t.said, id) // "no test files"
			}
			t.print(id)
		case id != id.top():
			res.tests[id] = ev.Action
		default:
			res.tests[id] = ev.Action
			if ev.Action == "pass" && !hasSkips(res, id) {
				t.printResultLine(id)
			} else {
				t.print(id)
			}
		}
	}
}

// hasSkips reports whether a subtest of the test was skipped.
func hasSkips(res *results, top testID) bool {
	for id, outcome := range res.tests {
		if outcome == "skip" && id.top() == top {
			return true
		}
	}
	return false
}
