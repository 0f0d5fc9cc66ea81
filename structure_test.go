package billingportal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const (
	module      = "github.com/portalcore/caddy-billing-portal"
	caddyModule = "github.com/caddyserver/caddy/v2"
)

// shell names the trees that put the portal together. They may import
// everything; nothing below them may import them.
var shell = []string{"caddymodule", "cmd", "demo", "e2e", "simulator"}

// caddyTrees names the only trees that import Caddy.
var caddyTrees = []string{"caddymodule", "cmd"}

// layers is the main line of the portal, from the door to the foundation. A
// package imports packages of later rows only, so that data walks the house in
// one direction and a rule is met in one place.
var layers = [][]string{
	{"portalcore"},
	{"portalcore/pages", "portalcore/api", "portalcore/vendorapi", "portalcore/webhook"},
	{"portalcore/act"},
	{"portalcore/account", "portalcore/invoices", "portalcore/journal", "portalcore/policy", "portalcore/session"},
	{"portalcore/link", "portalcore/audit", "portalcore/outbox"},
	{"portalcore/billing", "portalcore/store"},
}

// neighbours lists the imports between two packages of one layer that are
// allowed, with the reason. An entry that nobody needs any more fails the test.
var neighbours = map[[2]string]string{
	{"portalcore/audit", "portalcore/link"}: "an audit record names the actor, who is a word of the redirect token",
}

// beside names the packages off the main line with all that they may import of
// ours. Providers and store implementations are here, so nothing of the main
// line can import one: only the shell, stripetest and tests choose them.
var beside = map[string][]string{
	"portalcore/stripe":                           {"portalcore/billing", "portalcore/stripe/event"},
	"portalcore/stripe/event":                     {"portalcore/billing"},
	"portalcore/sandbox":                          {"portalcore/billing", "portalcore/store", "portalcore/stripe/event"},
	"portalcore/sandbox/oracletest":               {"portalcore/billing"},
	"portalcore/providertest":                     {"portalcore/billing", "portalcore/sandbox", "portalcore/sandbox/oracletest"},
	"portalcore/store/badger":                     {"portalcore/store"},
	"portalcore/store/postgres":                   {"portalcore/store"},
	"portalcore/store/postgres/pgtest":            {},
	"portalcore/store/storetest":                  {"portalcore/store"},
	"portalcore/stripe/stripetest":                {"portalcore/billing", "portalcore/store", "portalcore/store/badger", "portalcore/sandbox", "portalcore/stripe"},
	"portalcore/stripe/stripetest/cmd/stripetest": {"portalcore/stripe/stripetest", "portalcore/sandbox", "portalcore/store", "portalcore/store/badger"},
	"templates":                                   {"portalcore/billing"},
}

// besideUsers names who of the main line may import a package of beside.
var besideUsers = map[string][]string{
	"templates": {"portalcore", "portalcore/pages"},
}

// namesWithoutMeaning are package names that say nothing about what is inside.
var namesWithoutMeaning = []string{"util", "utils", "common", "helper", "helpers", "types", "misc"}

// listedPackage is what the tests need of `go list -json`. Imports holds the
// imports of non-test files only.
type listedPackage struct {
	ImportPath string
	Name       string
	Imports    []string
}

// TestImportRules holds the direction of imports, that every package has a
// place in it, that only the shell imports Caddy, and that names mean something.
func TestImportRules(t *testing.T) {
	pkgs := goListJSON(t, "./...")
	for _, want := range []string{"", "portalcore/billing", "portalcore/store", "templates"} {
		if !slices.ContainsFunc(pkgs, func(p listedPackage) bool { return relative(p.ImportPath) == want }) {
			t.Errorf("package %q is not there, so its rules hold nothing", path.Join(module, want))
		}
	}
	for _, v := range violations(pkgs) {
		t.Error(v)
	}
	for pair, reason := range neighbours {
		if l := layer(pair[0]); l < 0 || l != layer(pair[1]) || reason == "" {
			t.Errorf("neighbours has %s -> %s: it is for two packages of one layer, with a reason", pair[0], pair[1])
		}
		used := slices.ContainsFunc(pkgs, func(p listedPackage) bool {
			return relative(p.ImportPath) == pair[0] && slices.Contains(p.Imports, path.Join(module, pair[1]))
		})
		if !used {
			t.Errorf("%s no longer imports %s: take the pair out of neighbours", pair[0], pair[1])
		}
	}
}

// TestImportRulesCatch shows the rules failing, one by one.
func TestImportRulesCatch(t *testing.T) {
	for _, tc := range []struct {
		name, from, imports string
		want                string // part of the only violation; empty for none
	}{
		{"down the line", "portalcore/act", module + "/portalcore/journal", ""},
		{"down the line over rows", "portalcore/pages", module + "/portalcore/billing", ""},
		{"up the line", "portalcore/journal", module + "/portalcore/act", "may not import portalcore/act"},
		{"to the side", "portalcore/outbox", module + "/portalcore/audit", "may not import portalcore/audit"},
		{"shell takes a store", "caddymodule", module + "/portalcore/store/badger", ""},
		{"shell takes a provider", "demo", module + "/portalcore/sandbox", ""},
		{"core takes a store", "portalcore", module + "/portalcore/store/badger", "may not import portalcore/store/badger"},
		{"core takes a provider", "portalcore/act", module + "/portalcore/stripe", "may not import portalcore/stripe"},
		{"core takes the shell", "portalcore", module + "/caddymodule", "may not import caddymodule"},
		{"core takes the root", "portalcore/pages", module, "may not import " + module},
		{"Stripe takes the store", "portalcore/stripe", module + "/portalcore/store", "may not import portalcore/store"},
		{"Stripe takes the account", "portalcore/stripe", module + "/portalcore/account", "may not import portalcore/account"},
		{"sandbox takes the store", "portalcore/sandbox", module + "/portalcore/store", ""},
		{"sandbox takes an implementation", "portalcore/sandbox", module + "/portalcore/store/badger", "may not import portalcore/store/badger"},
		{"store takes billing", "portalcore/store/badger", module + "/portalcore/billing", "may not import portalcore/billing"},
		{"stripetest takes the sandbox", "portalcore/stripe/stripetest", module + "/portalcore/sandbox", ""},
		{"pages draw templates", "portalcore/pages", module + "/templates", ""},
		{"journal draws templates", "portalcore/journal", module + "/templates", "may not import templates"},
		{"templates look at the session", "templates", module + "/portalcore/session", "may not import portalcore/session"},
		{"core takes Caddy", "portalcore/webhook", caddyModule + "/modules/caddyhttp", "imports Caddy"},
		{"core takes certmagic", "portalcore", "github.com/caddyserver/certmagic", "imports Caddy"},
		{"the demo takes Caddy", "demo", caddyModule, "imports Caddy"},
		{"caddymodule takes Caddy", "caddymodule", caddyModule, ""},
		{"unknown room", "portalcore/attic", "fmt", "has no place"},
		{"unknown room in a room", "portalcore/pages/attic", "fmt", "has no place"},
		{"unknown tree", "internal/attic", "fmt", "has no place"},
		{"name without meaning", "caddymodule/util", "fmt", `"util" says nothing`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := violations([]listedPackage{{
				ImportPath: path.Join(module, tc.from),
				Name:       path.Base(tc.from),
				Imports:    []string{"fmt", tc.imports},
			}})
			switch {
			case tc.want == "" && len(got) > 0:
				t.Errorf("violations = %q, want none", got)
			case tc.want != "" && (len(got) != 1 || !strings.Contains(got[0], tc.want)):
				t.Errorf("violations = %q, want one that contains %q", got, tc.want)
			}
		})
	}
}

// TestCoreIsFreeOfCaddy holds that nothing the core needs, however far down,
// comes from Caddy: a vendor can mount the portal in a program of its own.
func TestCoreIsFreeOfCaddy(t *testing.T) {
	deps := strings.Fields(string(goRun(t, "list", "-deps", "./portalcore/...", "./templates/...")))
	for _, want := range []string{"portalcore/billing", "templates"} {
		if !slices.Contains(deps, path.Join(module, want)) {
			t.Errorf("%s is not among the listed packages, so this test shows nothing about it", want)
		}
	}
	for _, d := range deps {
		if strings.HasPrefix(d, "github.com/caddyserver/") {
			t.Errorf("portalcore or templates need %s; find out through whom with: go mod why %s", d, d)
		}
	}
}

// TestOneCaddy holds that xcaddy.json builds the Caddy this module was tested
// with, and that go.mod has no replacement: those do not reach the users.
func TestOneCaddy(t *testing.T) {
	raw, err := os.ReadFile("xcaddy.json")
	if err != nil {
		t.Fatal(err)
	}
	var recipe struct {
		CaddyVersion string `json:"caddy_version"`
		Plugins      []struct {
			ModulePath string `json:"module_path"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(raw, &recipe); err != nil {
		t.Fatalf("xcaddy.json: %v", err)
	}
	var mod struct {
		Module  struct{ Path string }
		Require []struct{ Path, Version string }
		Replace []struct{ Old struct{ Path string } }
	}
	if err := json.Unmarshal(goRun(t, "mod", "edit", "-json"), &mod); err != nil {
		t.Fatalf("go.mod: %v", err)
	}
	if mod.Module.Path != module {
		t.Errorf("go.mod is of module %s, the rules of this file are for %s", mod.Module.Path, module)
	}
	required := ""
	for _, r := range mod.Require {
		if r.Path == caddyModule {
			required = r.Version
		}
	}
	if required == "" || recipe.CaddyVersion != required {
		t.Errorf("xcaddy.json builds Caddy %q, go.mod requires %q: they have to be the same", recipe.CaddyVersion, required)
	}
	if len(recipe.Plugins) != 1 || recipe.Plugins[0].ModulePath != module {
		t.Errorf("xcaddy.json names the plugins %+v, want only %s", recipe.Plugins, module)
	}
	for _, r := range mod.Replace {
		t.Errorf("go.mod replaces %s; users of this module would build without that", r.Old.Path)
	}
}

// violations tells what the packages do against the rules above.
func violations(pkgs []listedPackage) []string {
	var out []string
	for _, p := range pkgs {
		from := relative(p.ImportPath)
		if slices.Contains(namesWithoutMeaning, p.Name) || slices.Contains(namesWithoutMeaning, path.Base(from)) {
			out = append(out, fmt.Sprintf("%s: the name %q says nothing; name the package after what it holds", from, p.Name))
		}
		if !placed(from) {
			out = append(out, from+" has no place in the tables of structure_test.go; decide in which layer it belongs")
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "github.com/caddyserver/") && !inTree(from, caddyTrees) {
				out = append(out, fmt.Sprintf("%s imports Caddy (%s); only %s may", from, imp, strings.Join(caddyTrees, " and ")))
			}
			if imp != module && !strings.HasPrefix(imp, module+"/") {
				continue
			}
			if to := relative(imp); !allowed(from, to) {
				if to == "" {
					to = module
				}
				out = append(out, fmt.Sprintf("%s may not import %s: imports run one way only, see the tables of structure_test.go", from, to))
			}
		}
	}
	return out
}

// placed reports whether the rules know the package.
func placed(pkg string) bool {
	_, ok := beside[pkg]
	return ok || pkg == "" || inTree(pkg, shell) || layer(pkg) >= 0
}

// allowed reports whether package from may import package to, both of ours.
func allowed(from, to string) bool {
	if from == "" || inTree(from, shell) {
		return true
	}
	if may, ok := beside[from]; ok {
		return slices.Contains(may, to)
	}
	if slices.Contains(besideUsers[to], from) {
		return true
	}
	if _, ok := neighbours[[2]string{from, to}]; ok {
		return true
	}
	return layer(to) > layer(from)
}

// layer returns the row of the main line the package is in, -1 for none.
func layer(pkg string) int {
	return slices.IndexFunc(layers, func(row []string) bool { return slices.Contains(row, pkg) })
}

// inTree reports whether the package lies in one of the trees.
func inTree(pkg string, trees []string) bool {
	return slices.ContainsFunc(trees, func(t string) bool { return pkg == t || strings.HasPrefix(pkg, t+"/") })
}

// relative takes the module's path off an import path; the root package is "".
func relative(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

// goListJSON lists the packages that match the pattern.
func goListJSON(t *testing.T, pattern string) []listedPackage {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(goRun(t, "list", "-json=ImportPath,Name,Imports", pattern)))
	var pkgs []listedPackage
	for {
		var p listedPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatalf("reading the answer of go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

// goRun runs the go command in the directory of this file and returns what it
// printed on standard output.
func goRun(t *testing.T, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}
