// Command build compiles Caddy from a recipe: an [xcaddy.Builder] in JSON.
//
// The recipe at the root of the repository, xcaddy.json, names a Caddy and the
// released portal. From the root:
//
//	go -C tools run ./build -o ../bin/caddy           # the released portal
//	go -C tools run ./build -local -o ../bin/caddy    # this checkout
//
// xcaddy itself reads no file; this command is the whole difference.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/caddyserver/xcaddy"
)

// modulePath is the module that -local takes from the checkout.
const modulePath = "github.com/portalcore/caddy-billing-portal"

// localVersion is what the checkout is called in the build. It has to be a
// pinned version: an unpinned replacement makes the go command ask the module
// proxy for the list of versions, which fails for a module that is not
// published yet.
const localVersion = "v0.0.0"

func main() {
	recipe := flag.String("recipe", filepath.Join("..", "xcaddy.json"), "`file` with an xcaddy.Builder in JSON")
	out := flag.String("o", filepath.Join("..", "bin", "caddy"), "where to put the Caddy `binary`")
	local := flag.Bool("local", false, "build the portal from the checkout that holds the recipe instead of its released version")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "build: unexpected argument %q; the recipe is named with -recipe and the output with -o\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *recipe, *out, *local)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

// run builds the recipe in the named file and puts the binary at out.
func run(ctx context.Context, recipe, out string, local bool) error {
	raw, err := os.ReadFile(recipe)
	if err != nil {
		return fmt.Errorf("reading the recipe (name another one with -recipe): %w", err)
	}
	b, err := decode(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", recipe, err)
	}
	dir, err := filepath.Abs(filepath.Dir(recipe))
	if err != nil {
		return fmt.Errorf("finding the directory of the recipe: %w", err)
	}
	absoluteReplacements(&b, dir)
	if local {
		if err := useCheckout(&b, dir); err != nil {
			return fmt.Errorf("%s: %w", recipe, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("making room for the binary: %w", err)
	}
	if err := b.Build(ctx, out); err != nil {
		return fmt.Errorf("building Caddy: %w", err)
	}
	return nil
}

// decode reads exactly one xcaddy.Builder. Unknown members and anything after
// the value are errors: a misspelt "replacments" must not build something else
// than what was asked for.
func decode(raw []byte) (xcaddy.Builder, error) {
	var b xcaddy.Builder
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		if errors.Is(err, io.EOF) {
			return b, errors.New("is empty; write an xcaddy.Builder in JSON")
		}
		return b, fmt.Errorf("decoding the recipe: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return b, errors.New("holds something after the recipe; leave exactly one JSON object in it")
	}
	if b.CaddyVersion == "" {
		return b, errors.New(`"caddy_version" is missing; without it the build would take whatever Caddy is newest`)
	}
	if len(b.Plugins) == 0 {
		return b, errors.New(`"plugins" is empty; without one this is a plain Caddy`)
	}
	for i, p := range b.Plugins {
		if p.PackagePath == "" {
			return b, fmt.Errorf(`plugins[%d] has no "module_path"`, i)
		}
		if p.Version == "" {
			return b, fmt.Errorf(`plugins[%d] (%s) has no "version"; name one, so that the build can be repeated`, i, p.PackagePath)
		}
	}
	for i, r := range b.Replacements {
		if r.Old == "" || r.New == "" {
			return b, fmt.Errorf(`replacements[%d] needs both "old" and "new"`, i)
		}
	}
	return b, nil
}

// absoluteReplacements anchors replacement directories at dir, the directory
// of the recipe, because xcaddy runs the go command in a temporary folder. Like
// the go command, it takes for a directory what begins with "./" or "../".
func absoluteReplacements(b *xcaddy.Builder, dir string) {
	for i, r := range b.Replacements {
		p := string(r.New)
		if p == "." || p == ".." || strings.HasPrefix(p, "./") || strings.HasPrefix(p, "../") {
			b.Replacements[i].New = xcaddy.ReplacementPath(filepath.Join(dir, filepath.FromSlash(p)))
		}
	}
}

// useCheckout makes the build take the portal from dir.
func useCheckout(b *xcaddy.Builder, dir string) error {
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return fmt.Errorf("-local needs the recipe to lie at the root of a checkout of %s: %w", modulePath, err)
	}
	if first, _, _ := bytes.Cut(mod, []byte("\n")); strings.TrimSpace(string(first)) != "module "+modulePath {
		return fmt.Errorf("-local needs the recipe to lie at the root of a checkout of %s, but go.mod in %s is of another module", modulePath, dir)
	}
	for _, r := range b.Replacements {
		if old, _, _ := strings.Cut(string(r.Old), "@"); old == modulePath {
			return fmt.Errorf("the recipe already replaces %s; take that replacement out or leave -local away", modulePath)
		}
	}
	for i, p := range b.Plugins {
		if p.PackagePath != modulePath {
			continue
		}
		b.Plugins[i].Version = localVersion
		b.Replacements = append(b.Replacements, xcaddy.NewReplace(modulePath+"@"+localVersion, dir))
		return nil
	}
	return fmt.Errorf(`-local has nothing to replace: "plugins" does not name %s`, modulePath)
}
