// Command simulate runs seeds of the portal's simulation until an invariant
// breaks.
//
//	go run ./simulator/cmd/simulate -seeds 100000
//	go run ./simulator/cmd/simulate -seed 4711 -trace
//
// It exits with 1 at the first seed that breaks one, after it printed what
// happened in that seed's world and the command that shows it again.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/portalcore/caddy-billing-portal/simulator"
)

func main() {
	seeds := flag.Uint64("seeds", 1000, "how many seeds to run")
	from := flag.Uint64("from", 1, "the first seed")
	workers := flag.Int("workers", runtime.GOMAXPROCS(0), "how many worlds run at a time")
	seed := flag.Uint64("seed", 0, "run this seed alone")
	trace := flag.Bool("trace", false, "with -seed: print everything that happens")
	quiet := flag.Bool("q", false, "print no progress")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "simulate takes no arguments; see simulate -h")
		os.Exit(2)
	}
	if *seed != 0 {
		r := simulator.Run(*seed, *trace)
		for _, line := range r.Trace {
			fmt.Println(line)
		}
		simulator.Report(os.Stdout, r)
		if r.Failure != nil {
			os.Exit(1)
		}
		return
	}
	var progress io.Writer = os.Stderr
	if *quiet {
		progress = nil
	}
	s := simulator.Many(*from, *seeds, *workers, progress)
	s.Print(os.Stdout)
	if s.Failed != nil {
		os.Exit(1)
	}
}
