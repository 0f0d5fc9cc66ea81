// Command testsum runs test suites and says what really ran.
//
//	testsum suite -raw DIR NAME COMMAND [ARG...]
//	testsum total -raw DIR [-must-run FILE] [-features FILE] [-no-skips]
//
// The first form runs one suite, usually `go test -json`, prints go's result
// lines and all that failing tests said, and keeps the raw events in DIR. The
// second form adds the suites up, checks that the tests named in the files ran
// and passed, and ends with the line "N passed, N failed".
//
// A test that is missing or skipped looks just like a passing one in go's
// output; that is why this command exists.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const usage = `usage:
  testsum suite -raw DIR NAME COMMAND [ARG...]
  testsum total -raw DIR [-must-run FILE] [-features FILE] [-no-skips]`

// errFailed says that tests failed, which has been printed already.
var errFailed = errors.New("tests failed")

func main() {
	err := errors.New(usage)
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "suite":
			err = runSuite(os.Args[2:], os.Stdout)
		case "total":
			err = runTotal(os.Args[2:], os.Stdout)
		}
	}
	if err != nil {
		if !errors.Is(err, errFailed) {
			fmt.Fprintln(os.Stderr, "testsum:", err)
		}
		os.Exit(1)
	}
}

// suite is the record of one suite that ran, kept beside its raw events.
type suite struct {
	Name    string
	Started time.Time
	Elapsed time.Duration // wall clock, builds included
	Error   string        // how the command ended, empty when well
}

const (
	recordSuffix = ".suite.json"
	eventsSuffix = ".events.json"
)

// runSuite runs one command, and prints and records its results.
func runSuite(args []string, w io.Writer) error {
	flags := flag.NewFlagSet("suite", flag.ContinueOnError)
	dir := flags.String("raw", "", "`directory` for the raw events")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" || flags.NArg() < 2 {
		return errors.New(usage)
	}
	name, command := flags.Arg(0), flags.Args()[1:]
	if name != filepath.Base(name) {
		return fmt.Errorf("%q cannot be the name of a suite: it becomes a file name", name)
	}
	raw, err := os.Create(filepath.Join(*dir, name+eventsSuffix))
	if err != nil {
		return fmt.Errorf("keeping the raw events: %w", err)
	}
	fmt.Fprintf(w, "=== suite %s: %s\n", name, strings.Join(command, " "))

	s := suite{Name: name, Started: time.Now()}
	res, err := follow(command, raw, w)
	s.Elapsed = time.Since(s.Started)
	if err != nil {
		s.Error = err.Error()
	}
	if err := raw.Close(); err != nil {
		return fmt.Errorf("keeping the raw events: %w", err)
	}
	record, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*dir, name+recordSuffix), record, 0o600); err != nil {
		return fmt.Errorf("keeping the record of suite %s: %w", name, err)
	}
	fmt.Fprintf(w, "=== suite %s: %s\n\n", name, line(s, res))
	if s.Error != "" || len(res.failures()) > 0 {
		return errFailed
	}
	return nil
}

// follow runs the command, copies its events to raw and prints its results.
// The results are never nil; the error is how the command ended.
func follow(command []string, raw, w io.Writer) (*results, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return newResults(), err
	}
	if err := cmd.Start(); err != nil {
		return newResults(), err
	}
	res, err := read(io.TeeReader(out, raw), w)
	if err != nil {
		// Let the command write on, so that it ends by itself.
		_, _ = io.Copy(io.Discard, out)
	}
	return res, errors.Join(err, cmd.Wait())
}

// line sums one suite up.
func line(s suite, res *results) string {
	passed, skipped := res.count()
	text := fmt.Sprintf("%.1fs, %d passed, %d failed", s.Elapsed.Seconds(), passed, len(failuresOf(s, res)))
	if skipped > 0 {
		text += fmt.Sprintf(", %d skipped", skipped)
	}
	return text
}

// failuresOf lists what failed in a suite, the command itself included when it
// failed without naming anything.
func failuresOf(s suite, res *results) []string {
	failed := res.failures()
	if s.Error != "" && len(failed) == 0 {
		failed = append(failed, fmt.Sprintf("suite %s: %s", s.Name, s.Error))
	}
	return failed
}

// runTotal adds up the suites recorded in a directory.
func runTotal(args []string, w io.Writer) error {
	flags := flag.NewFlagSet("total", flag.ContinueOnError)
	dir := flags.String("raw", "", "`directory` with the raw events")
	mustRun := flags.String("must-run", "", "`file` with the names of tests that must have run and passed, one a line")
	features := flags.String("features", "", "Markdown `file` whose tests in backticks must have run and passed")
	noSkips := flags.Bool("no-skips", false, "a skipped test is a failure")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" || flags.NArg() > 0 {
		return errors.New(usage)
	}
	suites, err := loadSuites(*dir)
	if err != nil {
		return err
	}

	all := newResults()
	var failed []string
	var whole time.Duration
	fmt.Fprintln(w, "=== time per suite")
	for _, s := range suites {
		raw, err := os.Open(filepath.Join(*dir, s.Name+eventsSuffix))
		if err != nil {
			return fmt.Errorf("suite %s left no events: %w", s.Name, err)
		}
		res, err := read(raw, io.Discard)
		_ = raw.Close() // only read
		if err != nil {
			return fmt.Errorf("reading suite %s: %w", s.Name, err)
		}
		fmt.Fprintf(w, "%-12s %s\n", s.Name, line(s, res))
		whole += s.Elapsed
		failed = append(failed, failuresOf(s, res)...)
		all.add(res)
	}
	fmt.Fprintf(w, "%-12s %.1fs\n", "all", whole.Seconds())

	if skips := all.skips(); len(skips) > 0 {
		fmt.Fprintln(w, "\n=== skipped")
		for _, s := range skips {
			fmt.Fprintln(w, s)
			if *noSkips {
				failed = append(failed, "skipped, and nothing may be: "+s)
			}
		}
	}
	for _, list := range []struct {
		file  string
		names func(string) []string
	}{{*mustRun, listedNames}, {*features, featureNames}} {
		if list.file == "" {
			continue
		}
		text, err := os.ReadFile(list.file)
		if err != nil {
			failed = append(failed, fmt.Sprintf("the list of tests that must run: %v", err))
			continue
		}
		names := list.names(string(text))
		if len(names) == 0 {
			failed = append(failed, list.file+" names no test, so it proves nothing")
		}
		ran := 0
		for _, n := range names {
			switch problem := all.problem(n); problem {
			case "":
				ran++
			case hasFailed: // counted already, as a failed test
			default:
				failed = append(failed, fmt.Sprintf("%s names %s, which %s", list.file, n, problem))
			}
		}
		fmt.Fprintf(w, "\n=== %s: %d of %d named tests ran and passed\n", list.file, ran, len(names))
	}

	passed, _ := all.count()
	if len(failed) > 0 {
		fmt.Fprintln(w, "\n=== failed")
		for _, f := range failed {
			fmt.Fprintln(w, f)
		}
	}
	fmt.Fprintf(w, "\n%d passed, %d failed\n", passed, len(failed))
	if len(failed) > 0 {
		return errFailed
	}
	return nil
}

// loadSuites reads the records in a directory in the order the suites ran.
func loadSuites(dir string) ([]suite, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+recordSuffix))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no suite has run in %s; run them with: testsum suite", dir)
	}
	suites := make([]suite, len(files))
	for i, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, &suites[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
	}
	slices.SortFunc(suites, func(a, b suite) int { return a.Started.Compare(b.Started) })
	return suites, nil
}
