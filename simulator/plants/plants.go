// Package plants holds bugs that the simulator must catch. Each is a change of
// the portal's own sources, applied with the go command's -overlay, so that
// nothing of it is ever in the tree and what is tested is what is built.
package plants

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Plant is a bug.
type Plant struct {
	Name string
	// Edits are applied one after another. Each Old must be in its file exactly
	// once, so that a change of the sources cannot take a plant's teeth silently.
	Edits []Edit
}

// Edit replaces a piece of a file.
type Edit struct {
	File     string // from the module's root
	Old, New string
}

const (
	runFile     = "portalcore/act/run.go"
	journalFile = "portalcore/journal/journal.go"
	sessionFile = "portalcore/session/session.go"
)

// Required are the bugs that this design exists to make impossible.
var Required = []Plant{
	{"send before the durable write", []Edit{
		{runFile, `
		if err := c.Journal.Send(ctx, i, n, refs); err != nil {
			return false, c.sendFailed(keep, i, n, err)
		}
`, `
		early := i.Steps[n]
		if early.Refs == nil {
			early.Refs = refs
		}
		r, execErr := c.Provider.Execute(ctx, i.Customer, early.Step, early.Key)
		if err := c.Journal.Send(ctx, i, n, refs); err != nil {
			return false, c.sendFailed(keep, i, n, err)
		}
`},
		{runFile, `
		s := i.Steps[n]
		callCtx, cancel := context.WithTimeout(ctx, executeTimeout)
		r, execErr := c.Provider.Execute(callCtx, i.Customer, s.Step, s.Key)
		cancel()
`, `
`},
	}},
	{"a fresh key on retry", []Edit{{
		runFile, `c.Provider.Execute(callCtx, i.Customer, s.Step, s.Key)`,
		`c.Provider.Execute(callCtx, i.Customer, s.Step, fmt.Sprintf("%s.%d", s.Key, s.Attempts))`,
	}}},
	{"settle outside the transaction", []Edit{
		{journalFile, `
		} else if old.State.Locks() {
			if err := j.releaseLock(tx, &out); err != nil {
				return err
			}
		}
`, `
		}
`},
		{journalFile, `
	if err != nil && !j.landed(ctx, err, &out) {
		return err
	}
	*i = out
	return nil
`, `
	if err != nil && !j.landed(ctx, err, &out) {
		return err
	}
	*i = out
	if !out.State.Locks() {
		return j.Store.Update(ctx, func(tx store.Tx) error { return j.releaseLock(tx, &out) })
	}
	return nil
`},
	}},
	{"recovery that ignores leases", []Edit{{
		journalFile, `return i.Owner == "" || !now.Before(i.Lease) ||`, `return true || i.Owner == "" || !now.Before(i.Lease) ||`,
	}}},
}

// More are other bugs that the simulator catches.
var More = []Plant{
	{"a token's mark is not looked at", []Edit{{
		sessionFile, `if json.Unmarshal(old, &by) != nil || by.Session != hash {`, `if json.Unmarshal(old, &by) != nil {`,
	}}},
	{"revoking all of a customer's sessions is not looked at", []Edit{{
		sessionFile, `s.Epoch >= c.customer.Epoch && `, ``,
	}}},
	{"not applied is believed at once", []Edit{{
		runFile, `(waits || c.watched.quiet(s.Key, c.elapsed()))`, `(waits || !c.watched.quiet(s.Key, c.elapsed()))`,
	}}},
	{"a restored store goes on where the backup ended", []Edit{{
		journalFile, `if restored := !i.Restored.Equal(back); !i.ReadOnly && (restored || left(i, now)) {`,
		`if restored := false && !i.Restored.Equal(back); restored {`,
	}}},
	{"what was settled does not make cached accounts old", []Edit{{
		journalFile, `if err := j.Changed(tx, j.Tenant, i.Customer); err != nil {`, `if err := error(nil); err != nil {`,
	}}},
	{"a refusal after a lost answer is taken for its answer", []Edit{{
		runFile, "\t\t\tif doubt {", "\t\t\tif false && doubt {",
	}}},
	{"another customer's card is taken", []Edit{{
		"portalcore/act/sense.go", `if _, ok := acct.PaymentMethod(a.PaymentMethod); !ok {`, `if _, ok := acct.PaymentMethod(a.PaymentMethod); false && !ok {`,
	}}},
	{"an invoice is paid long after the click", []Edit{{
		runFile, `(age > clickLife || age < -time.Minute)`, `(false && age > clickLife || age < -time.Minute)`,
	}}},
	{"only the first of the invoices is locked", []Edit{{
		journalFile, `	if len(i.Objects) > 0 {
		return i.Objects`, `	if len(i.Objects) > 0 {
		return i.Objects[:1]`,
	}}},
	{"a payment goes on past one that waits for the bank's question", []Edit{{
		journalFile, `		case s.Processing():
`, `		case s.Processing() || s.Result != nil:
`,
	}}},
	{"a cookie in the log", []Edit{{
		sessionFile, `	hash, _, _ := split(cookie)
`, `	hash, _, _ := split(cookie)
	m.Log.Info("redeeming", zap.String("cookie", cookie))
`,
	}}},
}

// Caught is what the simulator says about a plant.
type Caught struct {
	Invariant, Seed, What string
	Seeds                 string // how many were run
}

var (
	brokeLine   = regexp.MustCompile(`(?m)^seed (\d+) broke (\S+) at (.*)$`)
	summaryLine = regexp.MustCompile(`(?m)^(\d+) seeds in `)
)

// Try builds the simulator with the plant in it and runs seeds until one
// breaks an invariant. It fails where none does, where the plant no longer
// fits the sources, and where it does not build. root is the module's directory.
func Try(ctx context.Context, root string, p Plant, seeds int) (Caught, error) {
	dir, err := os.MkdirTemp("", "plant")
	if err != nil {
		return Caught{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if root, err = filepath.Abs(root); err != nil { // the list of overlays goes by it
		return Caught{}, err
	}
	overlay, err := p.overlay(root, dir)
	if err != nil {
		return Caught{}, err
	}
	binary := filepath.Join(dir, "simulate")
	build := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", binary, "./simulator/cmd/simulate")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return Caught{}, fmt.Errorf("plants: building with %q: %w\n%s", p.Name, err, out)
	}
	var out bytes.Buffer
	run := exec.CommandContext(ctx, binary, "-q", "-seeds", fmt.Sprint(seeds))
	run.Stdout, run.Stderr = &out, &out
	err = run.Run()
	ran := summaryLine.FindStringSubmatch(out.String())
	m := brokeLine.FindStringSubmatch(out.String())
	switch {
	case ran == nil:
		return Caught{}, fmt.Errorf("plants: running with %q: %w\n%s", p.Name, errors.Join(err, errors.New("no summary")), last(out.String(), 2000))
	case m == nil:
		return Caught{}, fmt.Errorf("plants: %q was not caught in %d seeds", p.Name, seeds)
	}
	return Caught{Seed: m[1], Invariant: m[2], What: m[3], Seeds: ran[1]}, nil
}

func last(s string, n int) string { return s[max(0, len(s)-n):] }

// overlay writes the changed files and the list of them for the go command.
func (p Plant) overlay(root, dir string) (string, error) {
	text := map[string]string{}
	for _, e := range p.Edits {
		path := filepath.Join(root, filepath.FromSlash(e.File))
		if _, ok := text[path]; !ok {
			b, err := os.ReadFile(path)
			if err != nil {
				return "", fmt.Errorf("plants: %q: %w", p.Name, err)
			}
			text[path] = string(b)
		}
		if n := strings.Count(text[path], e.Old); n != 1 {
			return "", fmt.Errorf("plants: %q no longer fits: %s has this %d times instead of once, so change the plant with it:\n%s", p.Name, e.File, n, e.Old)
		}
		text[path] = strings.Replace(text[path], e.Old, e.New, 1)
	}
	list := struct{ Replace map[string]string }{map[string]string{}}
	for path, t := range text {
		to := filepath.Join(dir, fmt.Sprintf("%d_%s", len(list.Replace), filepath.Base(path)))
		if err := os.WriteFile(to, []byte(t), 0o600); err != nil {
			return "", err
		}
		list.Replace[path] = to
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, raw, 0o600)
}
