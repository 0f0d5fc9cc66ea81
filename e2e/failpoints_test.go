package e2e

import (
	"bytes"
	"os"
	"testing"
)

// TestNoFailpointsInTheNormalBuild looks for what switches failpoints on in the
// binary that users run.
func TestNoFailpointsInTheNormalBuild(t *testing.T) {
	for _, tt := range []struct {
		bin  string
		want bool
	}{
		{caddyBinary(t), false},
		{binary(t, "caddy-failpoints", "./cmd/caddy", "-tags", "portal_test_failpoints"), true},
	} {
		raw, err := os.ReadFile(tt.bin)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(raw, []byte("PORTAL_FAILPOINT")); got != tt.want {
			t.Errorf("%s speaks of failpoints: %t, want %t", tt.bin, got, tt.want)
		}
	}
}
