package templates

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

var assetHash = regexp.MustCompile(`\.[0-9a-f]{16}\.`)

func renderer(t testing.TB, opt Options) *Renderer {
	t.Helper()
	r, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestGolden holds every page in every state to a file that was looked at.
func TestGolden(t *testing.T) {
	r := renderer(t, options())
	for name, p := range fixtures() {
		var buf bytes.Buffer
		if err := r.Render(&buf, "en", p); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := assetHash.ReplaceAll(buf.Bytes(), []byte(".HASH."))
		file := filepath.Join("testdata", name+".html")
		if *update {
			if err := os.WriteFile(file, got, 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Errorf("%s: %v (run with -update, then look at it)", name, err)
		} else if !bytes.Equal(want, got) {
			t.Errorf("%s differs from its golden file; run with -update and look at the difference", name)
		}
	}
	if files, _ := filepath.Glob("testdata/*.html"); len(files) != len(fixtures()) {
		t.Errorf("%d golden files for %d fixtures", len(files), len(fixtures()))
	}
}

func BenchmarkOverview(b *testing.B) {
	r := renderer(b, options())
	p := fixtures()["overview"]
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Render(io.Discard, "en", p); err != nil {
			b.Fatal(err)
		}
	}
}
