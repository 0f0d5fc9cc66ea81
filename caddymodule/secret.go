package caddymodule

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// placeholder matches a value that is one placeholder and nothing else.
var placeholder = regexp.MustCompile(`^\{[a-zA-Z_]+\.[^{}]+\}$`)

// checkSecret refuses a secret that stands in the config itself, because
// Caddy shows the config at /config/ and keeps it in autosave.json. Its error
// never holds the value.
func checkSecret(what, value string) error {
	if value == "" {
		return fmt.Errorf("%s is empty: give a placeholder like {env.NAME} or {file./path/to/secret}", what)
	}
	if !placeholder.MatchString(value) {
		return fmt.Errorf("%s stands in the config itself, where /config/ and autosave.json would show it: put it into an environment variable and write {env.NAME} (not {$NAME}, which is replaced while the Caddyfile is read), or into a file and write {file./path/to/secret}", what)
	}
	return nil
}

// expandSecret reads a secret through its placeholder. The result must not be
// written back into anything that is marshalled or logged.
func expandSecret(what, value string) (string, error) {
	if err := checkSecret(what, value); err != nil {
		return "", err
	}
	return expand(what, value)
}

// expand replaces placeholders; one that is unknown or empty is an error. The
// replacer's own error names the placeholder only, and we name nothing more.
func expand(what, value string) (string, error) {
	v, err := caddy.NewReplacer().ReplaceOrErr(value, true, true)
	if err != nil {
		return "", fmt.Errorf("%s: the placeholder %s has no value: set the environment variable, or make the file readable, and load the config again", what, value)
	}
	return v, nil
}

// readText returns value with its placeholders expanded, where it is the text
// itself (isText says so), or else the contents of the file it names. Files
// over limit bytes are refused.
func readText(what, value string, limit int64, isText func(string) bool) ([]byte, error) {
	if strings.Contains(value, "{env.") || strings.Contains(value, "{file.") {
		v, err := expand(what, value)
		if err != nil {
			return nil, err
		}
		value = v
	}
	if isText(value) {
		return []byte(value), nil
	}
	return readFile(what, value, limit)
}

func readFile(what, path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %s is not a regular file", what, path)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s: %s has %d bytes, at most %d are allowed", what, path, info.Size(), limit)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return data, nil
}
