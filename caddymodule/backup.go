package caddymodule

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const (
	// backupTrailer is the trailer that ends a whole backup: how many records
	// there are in it.
	backupTrailer = "Billing-Portal-Records"
	// backupStall is how long whoever takes a backup may take nothing: the store
	// keeps a snapshot open for it.
	backupStall = time.Minute
)

// adminBackup streams a sealed backup of the store that the running config has
// open. A backup that fails on the way ends without its end, so that nobody
// takes it for a whole one.
func adminBackup(w http.ResponseWriter, r *http.Request, a *App) error {
	if _, err := query(r); err != nil {
		return err
	}
	if r.ContentLength != 0 {
		return refuse(http.StatusBadRequest, "backup takes no body")
	}
	if len(a.sites) == 0 {
		return errNoPortal
	}
	if !a.store.backingUp.CompareAndSwap(false, true) {
		return refuse(http.StatusConflict, "a backup is being made: wait until it is done")
	}
	defer a.store.backingUp.Store(false)
	now := time.Now().UTC()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="billing-portal-`+now.Format("20060102T150405Z")+`.backup"`)
	h.Set("Trailer", backupTrailer)
	out := &stallGuard{w: w, rc: http.NewResponseController(w)}
	info, err := store.Backup(r.Context(), a.store, out, store.BackupOptions{
		Sealer: a.store.sealer, Now: now, Skip: portalcore.LeaveOutOfBackup,
	})
	if err != nil && !out.begun {
		h.Del("Content-Disposition")
		h.Del("Trailer")
		return err
	}
	if err != nil {
		a.logger.Error("a backup did not get to its end", zap.Error(err))
		panic(http.ErrAbortHandler)
	}
	h.Set(backupTrailer, strconv.Itoa(info.Entries))
	a.logger.Info("made a backup", zap.Int("records", info.Entries), zap.Int("left_out", info.Skipped), zap.Duration("took", time.Since(now)))
	return nil
}

// stallGuard gives every write some time, and notes the first one.
type stallGuard struct {
	w     io.Writer
	rc    *http.ResponseController
	begun bool
}

func (s *stallGuard) Write(b []byte) (int, error) {
	s.begun = true
	// Not every writer has deadlines; the admin endpoint's does.
	_ = s.rc.SetWriteDeadline(time.Now().Add(backupStall))
	return s.w.Write(b)
}

func backupCommand() *cobra.Command {
	return adminCommand{
		use:   "backup <file>|-",
		short: "Makes a backup of the running portals' store",
		long: `
Writes a backup of the store that the running config has open, while it is in
use, into a file, or to standard output. It is sealed with the store's seal key,
without which it cannot be restored: keep that apart from it. Sessions, links
and the keys that sign links are left out; a restore ends them anyway.

  caddy billing-portal backup /var/backups/billing-portal.backup
  caddy billing-portal backup - | ssh backup.example.com 'cat > portal.backup'
`,
		args:  1,
		whole: true,
		run:   makeBackup,
	}.command()
}

// backupResult is what backup prints with --json.
type backupResult struct {
	File    string `json:"file"`
	Records int    `json:"records"`
	Bytes   int64  `json:"bytes"`
}

func makeBackup(c *adminClient) error {
	name := c.Arg(0)
	if name == "-" {
		if info, err := os.Stdout.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			return errors.New("a backup is no text for a terminal: give a file, or send standard output somewhere")
		}
		_, _, err := c.download(os.Stdout)
		return err
	}
	// The name appears when the backup is whole and on the disk.
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*.part") // mode 0600
	if err != nil {
		return err
	}
	records, n, err := c.download(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if c.json {
		return c.printJSON(backupResult{File: name, Records: records, Bytes: n})
	}
	return c.done("%d records in %s (%d bytes)", records, name, n)
}

// download writes the backup to w and makes sure that it is whole.
func (c *adminClient) download(w io.Writer) (records int, n int64, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	res, err := c.request(http.MethodPost, "backup", nil, nil)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	defer context.AfterFunc(ctx, func() { _ = res.Body.Close() })()
	n, err = io.Copy(w, res.Body)
	if err != nil {
		return 0, n, fmt.Errorf("the backup is not whole: %w", cmp.Or(ctx.Err(), err))
	}
	if records, err = strconv.Atoi(res.Trailer.Get(backupTrailer)); err != nil {
		return 0, n, errors.New("the backup is not whole: the Caddy that runs stopped on the way; see its log")
	}
	return records, n, nil
}

func restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore [--config <file>] <backup>|-",
		Short: "Restores a backup into an empty store, while Caddy is stopped",
		Long: `
Fills the store that a config names from a backup. Caddy must not be running
with that store, and the store must be empty: a new directory or a new database.
The seal key must be the one that the backup was made with, as seal_key or as a
previous key in the config, or as the generated key file beside the directory.

  systemctl stop caddy
  mv /var/lib/caddy/billing-portal /var/lib/caddy/billing-portal.old
  sudo -u caddy -- caddy billing-portal restore --config /etc/caddy/Caddyfile /var/backups/billing-portal.backup
  systemctl start caddy

All sessions, and links from before, are over. Changes that were under way when
the backup was made are settled by reading the provider; nothing is sent again.
The backup of one kind of store can be restored into another kind.
`,
		Args: cobra.ExactArgs(1),
		RunE: caddycmd.WrapCommandFuncForCobra(func(fl caddycmd.Flags) (int, error) {
			if err := runRestore(fl, os.Stdout); err != nil {
				return caddy.ExitCodeFailedStartup, err
			}
			return caddy.ExitCodeSuccess, nil
		}),
	}
	cmd.Flags().StringP("config", "c", "", "configuration file that names the store (default: ./Caddyfile)")
	cmd.Flags().StringP("adapter", "a", "", "name of config adapter to apply to it")
	return cmd
}

func runRestore(fl caddycmd.Flags, out io.Writer) (err error) {
	cfg, file, _, err := caddycmd.LoadConfig(fl.String("config"), fl.String("adapter"))
	if err != nil {
		return err
	}
	if file == "" {
		return errors.New("--config: name the configuration file that Caddy runs with")
	}
	a, err := appOf(cfg)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	from := os.Stdin
	if name := fl.Arg(0); name != "-" {
		if from, err = os.Open(name); err != nil {
			return err
		}
		defer from.Close()
	}
	st, resource, err := a.openForRestore()
	if err != nil {
		return err
	}
	info, err := store.Restore(ctx, st, bufio.NewReader(from), store.RestoreOptions{Sealer: st.sealer, Now: time.Now()})
	// Without the signal's context: what stands in the store must be told.
	usable := err == nil || st.View(context.WithoutCancel(ctx), store.CheckUsable) == nil
	err = errors.Join(err, release(resource))
	switch {
	case errors.Is(err, store.ErrNotEmpty):
		return fmt.Errorf("%w: move %s away or name a new one in %s", err, resource, file)
	case !usable:
		return fmt.Errorf("%w\nThe store %s has a part of the backup and cannot be used: empty it before the next try", err, resource)
	case errors.Is(err, store.ErrSealed):
		return fmt.Errorf("%w: the seal key is not the one that the backup was made with, or the file is damaged", err)
	case err != nil:
		return err
	}
	_, err = fmt.Fprintf(out, `%d records from the backup of %s are in %s.

Sessions and links from before are over: customers open billing once more from
the vendor's app. Changes that were under way are settled by reading the
provider; nothing is sent again. Start Caddy, and then look at what needs a person:

  caddy billing-portal status
  caddy billing-portal intents list --state manual
`, info.Entries, when(info.Created), resource)
	return err
}

// restoredOffline is the command restored without a Caddy that runs: nothing of a
// portal is started, so that none acts on what an earlier state of the store says.
func restoredOffline(fl caddycmd.Flags, by string) (guard store.Guard, err error) {
	cfg, file, _, err := caddycmd.LoadConfig(fl.String("config"), fl.String("adapter"))
	if err != nil {
		return store.Guard{}, err
	}
	if file == "" {
		return store.Guard{}, errors.New("--config: name the configuration file that Caddy runs with")
	}
	a, err := appOf(cfg)
	if err != nil {
		return store.Guard{}, fmt.Errorf("%s: %w", file, err)
	}
	st, resource, err := a.openForRestore()
	if err != nil {
		return store.Guard{}, err
	}
	defer func() { err = errors.Join(err, release(resource)) }()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := st.View(ctx, store.CheckUsable); err != nil {
		return store.Guard{}, err
	}
	reason := operatorSaid + by
	if note := fl.String("note"); note != "" {
		reason += " (" + note + ")"
	}
	return store.MarkRestored(ctx, st, rand.Reader, time.Now(), reason)
}

// appOf reads the portal's part of a config, without starting anything of it.
func appOf(cfg []byte) (*App, error) {
	var parts struct {
		Apps map[string]json.RawMessage `json:"apps"`
	}
	if err := json.Unmarshal(cfg, &parts); err != nil {
		return nil, fmt.Errorf("reading the config: %w", err)
	}
	raw, ok := parts.Apps["billing_portal"]
	if !ok {
		if !bytes.Contains(cfg, []byte(`"billing_portal"`)) {
			return nil, errors.New("this config has no billing portal")
		}
		raw = json.RawMessage("{}") // all defaults
	}
	// Nothing of it is started, so there is nothing to clean up.
	ctx, err := caddy.ProvisionContext(&caddy.Config{AppsRaw: caddy.ModuleMap{"billing_portal": raw}})
	if err != nil {
		return nil, err
	}
	mod, err := ctx.App("billing_portal")
	if err != nil {
		return nil, err
	}
	return mod.(*App), nil
}

// openForRestore opens the store that the config names. A key is never
// generated here: the backup is sealed with one that exists.
func (a *App) openForRestore() (st *sharedStore, resource string, err error) {
	if resource, err = a.storage.Resource(); err != nil {
		return nil, "", fmt.Errorf("store: %w", err)
	}
	key := a.sealKey
	if key == nil {
		path := sealKeyFile(resource)
		if _, err := os.Stat(path); err != nil {
			return nil, "", fmt.Errorf("the seal key that the backup was made with: %w: put that file back, or set seal_key", err)
		}
		if key, err = store.LoadOrCreateSealKeyFile(path); err != nil {
			return nil, "", err
		}
	}
	st, err = acquire(resource, key, a.previousKeys, a.storage.OpenStore)
	return st, resource, err
}
