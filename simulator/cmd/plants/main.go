// Command plants shows that the simulator catches bugs: it plants each of a
// list in the portal's sources (with -overlay, so that no file changes), runs
// seeds, and prints the seed and the invariant that caught it.
//
//	go run ./simulator/cmd/plants
//
// It runs in the module's directory and exits with 1 where a bug is not caught
// or no longer fits the sources.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"

	"github.com/portalcore/caddy-billing-portal/simulator/plants"
)

func main() {
	seeds := flag.Int("seeds", 1000, "how many seeds a bug may take")
	required := flag.Bool("required", false, "only the four bugs that must be caught")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	list := plants.Required
	if !*required {
		list = append(slices.Clip(list), plants.More...)
	}
	failed := false
	for _, p := range list {
		c, err := plants.Try(ctx, ".", p, *seeds)
		if err != nil {
			failed = true
			fmt.Println(err)
			continue
		}
		fmt.Printf("%s\n\tcaught by %s with seed %s after %s seeds: %s\n", p.Name, c.Invariant, c.Seed, c.Seeds, c.What)
	}
	stop()
	if failed {
		os.Exit(1)
	}
}
