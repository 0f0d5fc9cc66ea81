package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/xcaddy"
)

func TestDecode(t *testing.T) {
	const plugin = `"plugins":[{"module_path":"example.com/p","version":"v1.0.0"}]`
	for _, tc := range []struct {
		name, in, wantErr string
	}{
		{"smallest", `{"caddy_version":"v2.11.9",` + plugin + `}`, ""},
		{"every kind of member", `{"os":"linux","arch":"arm","arm":"7","cgo":false,"caddy_version":"v2.11.9",` + plugin +
			`,"replacements":[{"old":"a","new":"../b"}],"timeout_get":1000000000,"build_flags":"-v"}` + "\n", ""},
		{"unknown member", `{"caddy_version":"v2.11.9",` + plugin + `,"replacments":[]}`, `unknown field "replacments"`},
		{"unknown member of a plugin", `{"caddy_version":"v2.11.9","plugins":[{"module":"example.com/p"}]}`, `unknown field "module"`},
		{"second value", `{"caddy_version":"v2.11.9",` + plugin + `}{}`, "something after"},
		{"trailing text", `{"caddy_version":"v2.11.9",` + plugin + `} oops`, "something after"},
		{"stray bracket", `{"caddy_version":"v2.11.9",` + plugin + `}}`, "something after"},
		{"cut off", `{"caddy_version":"v2.11.9"`, "unexpected EOF"},
		{"empty", ``, "is empty"},
		{"not an object", `["v2.11.9"]`, "cannot unmarshal array"},
		{"wrong type", `{"caddy_version":2,` + plugin + `}`, "cannot unmarshal number"},
		{"null", `null`, `"caddy_version" is missing`},
		{"no Caddy", `{` + plugin + `}`, `"caddy_version" is missing`},
		{"no plugin", `{"caddy_version":"v2.11.9"}`, `"plugins" is empty`},
		{"plugin without a path", `{"caddy_version":"v2.11.9","plugins":[{"version":"v1.0.0"}]}`, `plugins[0] has no "module_path"`},
		{"plugin without a version", `{"caddy_version":"v2.11.9","plugins":[{"module_path":"example.com/p"}]}`, `(example.com/p) has no "version"`},
		{"half a replacement", `{"caddy_version":"v2.11.9",` + plugin + `,"replacements":[{"old":"a"}]}`, `replacements[0] needs both`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := decode([]byte(tc.in))
			if tc.wantErr == "" {
				if err != nil {
					t.Fatalf("decode: %v", err)
				}
				if b.CaddyVersion != "v2.11.9" || len(b.Plugins) != 1 || b.Plugins[0].PackagePath != "example.com/p" || b.Plugins[0].Version != "v1.0.0" {
					t.Errorf("decode gave %+v", b)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error = %v, want one that contains %q", err, tc.wantErr)
			}
		})
	}
}

func TestAbsoluteReplacements(t *testing.T) {
	b := xcaddy.Builder{Replacements: []xcaddy.Replace{
		xcaddy.NewReplace("a", "../a"),
		xcaddy.NewReplace("b", "./sub/b"),
		xcaddy.NewReplace("c", "."),
		xcaddy.NewReplace("d", "/opt/d"),
		xcaddy.NewReplace("e", "example.com/fork@v1.2.3"),
	}}
	absoluteReplacements(&b, filepath.FromSlash("/src/portal"))
	for i, want := range []string{"/src/a", "/src/portal/sub/b", "/src/portal", "/opt/d", "example.com/fork@v1.2.3"} {
		if got := filepath.ToSlash(string(b.Replacements[i].New)); got != want {
			t.Errorf("replacement %d = %q, want %q", i, got, want)
		}
	}
}

func TestUseCheckout(t *testing.T) {
	plugins := func() []xcaddy.Dependency {
		return []xcaddy.Dependency{{PackagePath: "example.com/other", Version: "v1.0.0"}, {PackagePath: modulePath, Version: "v0.1.0"}}
	}
	for _, tc := range []struct {
		name, goMod, wantErr string
		b                    xcaddy.Builder
	}{
		{"replaced", "module " + modulePath + "\n", "", xcaddy.Builder{Plugins: plugins()}},
		{"no go.mod", "", "root of a checkout", xcaddy.Builder{Plugins: plugins()}},
		{"another module", "module example.com/other\n", "another module", xcaddy.Builder{Plugins: plugins()}},
		{"plugin not named", "module " + modulePath + "\n", "nothing to replace", xcaddy.Builder{Plugins: plugins()[:1]}},
		{
			"already replaced", "module " + modulePath + "\n", "already replaces",
			xcaddy.Builder{Plugins: plugins(), Replacements: []xcaddy.Replace{xcaddy.NewReplace(modulePath, "../fork")}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.goMod != "" {
				if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(tc.goMod), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := useCheckout(&tc.b, dir)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("error = %v, want one that contains %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tc.b.Plugins[0].Version != "v1.0.0" || tc.b.Plugins[1].Version != "v0.0.0" {
				t.Errorf("plugins = %+v, want only the portal at v0.0.0", tc.b.Plugins)
			}
			want := xcaddy.NewReplace(modulePath+"@v0.0.0", dir)
			if len(tc.b.Replacements) != 1 || tc.b.Replacements[0] != want {
				t.Errorf("replacements = %+v, want %+v", tc.b.Replacements, want)
			}
		})
	}
}

// TestRecipe holds that the recipe users get is one that this command takes,
// released and from a checkout.
func TestRecipe(t *testing.T) {
	root := filepath.Join("..", "..")
	raw, err := os.ReadFile(filepath.Join(root, "xcaddy.json"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Replacements) != 0 {
		t.Errorf("xcaddy.json has replacements %v; it has to build on anybody's machine", b.Replacements)
	}
	if err := useCheckout(&b, root); err != nil {
		t.Error(err)
	}
}

// TestCheckoutBuilds builds the recipe with this checkout in it, the way a user
// would, and looks for the portal's modules in the Caddy that comes out. It
// takes minutes while the build cache is cold.
func TestCheckoutBuilds(t *testing.T) {
	caddy := filepath.Join(t.TempDir(), "bin", "caddy")
	if err := run(t.Context(), filepath.Join("..", "..", "xcaddy.json"), caddy, true); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), caddy, "list-modules", "--skip-standard").Output()
	if err != nil {
		t.Fatalf("listing the modules: %v", err)
	}
	modules := strings.Fields(string(out))
	for _, want := range []string{
		"billing_portal",
		"http.handlers.billing_portal",
		"billing_portal.stores.badger",
		"billing_portal.providers.stripe",
		"billing_portal.providers.sandbox",
	} {
		if !slices.Contains(modules, want) {
			t.Errorf("the Caddy built from xcaddy.json lacks the module %s; it has, beside the standard ones:\n%s", want, out)
		}
	}
}
