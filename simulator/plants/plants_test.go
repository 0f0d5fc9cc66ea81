package plants

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// TestPlantedBugs holds that the simulator catches what it is there for.
func TestPlantedBugs(t *testing.T) {
	want := map[string]string{
		"send before the durable write": "INV4",
		// Money moved twice, or the second key was told that it is paid already and
		// the customer that nothing was.
		"a fresh key on retry":           "INV2 INV3",
		"settle outside the transaction": "INV5",
		"recovery that ignores leases":   "LEASE",
	}
	if len(want) != len(Required) {
		t.Fatalf("%d plants, want %d", len(Required), len(want))
	}
	for _, p := range Required {
		c, err := Try(t.Context(), root, p, 1000)
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("%s: caught by %s with seed %s after %s seeds: %s", p.Name, c.Invariant, c.Seed, c.Seeds, c.What)
		if !slices.Contains(strings.Fields(want[p.Name]), c.Invariant) {
			t.Errorf("%s was caught by %s, want %s", p.Name, c.Invariant, want[p.Name])
		}
	}
}

// All plants fit the sources as they are.
func TestPlantsFit(t *testing.T) {
	for _, p := range append(slices.Clip(Required), More...) {
		if _, err := p.overlay(root, t.TempDir()); err != nil {
			t.Error(err)
		}
	}
}

// A plant that no longer fits, or that breaks nothing, is an error.
func TestPlantWithoutTeeth(t *testing.T) {
	for name, e := range map[string]Edit{
		"nowhere":    {runFile, "this is nowhere in the file", ""},
		"everywhere": {runFile, "return", ""},
	} {
		if _, err := Try(t.Context(), root, Plant{name, []Edit{e}}, 1); err == nil || !strings.Contains(err.Error(), "no longer fits") {
			t.Errorf("%s: %v", name, err)
		}
	}
	harmless := Plant{"harmless", []Edit{{runFile, "// end writes down that", "// ended is  the state of"}}}
	if _, err := Try(t.Context(), root, harmless, 5); err == nil || !strings.Contains(err.Error(), "was not caught in 5 seeds") {
		t.Errorf("harmless: %v", err)
	}
	broken := Plant{"broken", []Edit{{runFile, "package act", "package act; nonsense"}}}
	if _, err := Try(t.Context(), root, broken, 5); err == nil || !strings.Contains(err.Error(), "building") {
		t.Errorf("broken: %v", err)
	}
	// Nothing of a plant is left in the tree.
	b, err := os.ReadFile(filepath.Join(root, runFile))
	if err != nil || strings.Contains(string(b), "nonsense") {
		t.Errorf("the sources were changed: %v", err)
	}
}
