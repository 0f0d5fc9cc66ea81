package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestTable(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("xa.json", `{"XA": {"fmt": "%N%n%A%n%C <%S>", "zipex": "1,2", "sub_keys": "A~B", "sub_lnames": "Aa~Bb"}, "XA/A": {"key": "A"}}`)
	write("xb.json", `{"XB": {"fmt": "%A"}}`)
	out, err := table(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
"XA": {"format":"%N%n%A%n%C <%S>","example":"1","regions":[["A","","Aa"],["B","","Bb"]]},
"XB": {"format":"%A"}
}
`
	if string(out) != want {
		t.Errorf("%s", out)
	}
	if !json.Valid(out) {
		t.Error("not JSON")
	}
	write("xc.json", `{"XC": {"sub_keys": "A~B", "sub_names": "A"}}`)
	if _, err := table(dir); err == nil {
		t.Error("names that do not fit the regions were taken")
	}
	if _, err := table(t.TempDir()); err == nil {
		t.Error("an empty directory was taken")
	}
}
