//go:build linux

// Command store measures the Badger store. From the root of the repository:
//
//	go run ./e2e/bench/store commits
//	go run ./e2e/bench/store sessions
//
// "commits" is durable commits per second of 64 writers, sealing included,
// against plain Badger with SyncWrites, one transaction per update and the same
// options, in turns. "sessions" is what a portal costs that has 1,000,000 live
// sessions: anonymous memory against an empty one, and the time of a page
// against one with 1,000.
//
// Both want a real disk (-dir) and fail with -check where a figure is not what
// the documentation says.
package main

import (
	"fmt"
	"os"
	"slices"
	"time"
)

func main() {
	run := map[string]func(args []string) error{
		"commits": commits, "sessions": sessions,
		// What sessions starts, so that every figure has a process of its own.
		"sessions-load": sessionsLoad, "sessions-measure": sessionsMeasure,
	}
	if len(os.Args) < 2 || run[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: go run ./e2e/bench/store commits | sessions [-h]")
		os.Exit(2)
	}
	if err := run[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "store:", err)
		os.Exit(1)
	}
}

// quantile returns the q-th of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*q))]
}

func median[T int64 | float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// miss fails a run with -check whose figure is not good enough.
func miss(check bool, what string, ok bool) error {
	verdict := "ok"
	if !ok {
		verdict = "MISSED"
	}
	fmt.Printf("%-72s %s\n", what, verdict)
	if check && !ok {
		return fmt.Errorf("missed: %s", what)
	}
	return nil
}
