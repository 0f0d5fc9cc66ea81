package caddymodule

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// operatorCommands are what operators do with a Caddy that runs, through its
// admin endpoint, and restore, which needs it stopped.
func operatorCommands() []*cobra.Command {
	return []*cobra.Command{
		group("intents", "Lists the customers' changes, and settles those that need a person",
			adminCommand{
				use:   "list [--state <state>] [--customer <id>] [--limit <n>]",
				short: "Lists changes that customers confirmed",
				long: `
Lists the changes that customers confirmed, by the time they did.

  caddy billing-portal intents list --state manual
  caddy billing-portal intents list --customer cus_123 --json

The states: open (all that are not settled), planned, sent, awaiting_customer,
processing, unknown, reconciling, succeeded, refused, partial, not_applied,
cancelled, and manual, which waits for an operator.
`,
				flags: func(fl *pflag.FlagSet) {
					fl.String("state", "", "only those in this state (default: all)")
					fl.String("customer", "", "only this customer's (default: all)")
					fl.Int("limit", portalcore.DefaultList, "how many at most")
				},
				run: listIntents,
			},
			adminCommand{
				use:   "settle <intent> --as succeeded|partial|not_applied [--note <text>] [--by <name>]",
				short: "Settles a change that needs a person",
				long: `
Ends a change that is "manual": the provider's answer could not be settled by
reading, so look at the provider first, by the idempotency keys in

  caddy billing-portal intents list --state manual --json

and then say what you found: it took effect (succeeded), only a part of it did
(partial), or nothing did (not_applied). Nothing is sent to the provider. The
customer's receipt says so from then on, and the vendor's backend hears of it.

  caddy billing-portal intents settle 4f2k9x... --as not_applied --note "no invoice, plan unchanged"

The intent is its id, or the reference that stands on the customer's receipt.
`,
				args: 1,
				flags: func(fl *pflag.FlagSet) {
					fl.String("as", "", "what you found: succeeded, partial or not_applied")
					fl.String("note", "", "what you saw, for the audit trail")
					fl.String("customer", "", "whose it is (needed only where very many wait)")
					byFlag(fl)
				},
				run: settleIntent,
			}),
		adminCommand{
			use:   "customers --email <address> | --reference <id>",
			short: "Looks customers up at the payment provider",
			long: `
Lists the customers with exactly that e-mail address, or that reference: your own
id of the customer, or the provider's. The newest first, at most 20.

  caddy billing-portal customers --email ada@example.com
  caddy billing-portal customers --reference acct_42 --json
`,
			flags: func(fl *pflag.FlagSet) {
				fl.String("email", "", "the customers with this e-mail address")
				fl.String("reference", "", "the customers with this reference")
			},
			run: listCustomers,
		}.command(),
		group("sessions", "Lists and ends customers' sessions",
			adminCommand{
				use:   "list --customer <id>",
				short: "Lists a customer's sessions",
				long: `
Lists where a customer is signed in, the newest first.

  caddy billing-portal sessions list --customer cus_123
`,
				flags: func(fl *pflag.FlagSet) { fl.String("customer", "", "whose sessions") },
				run:   listSessions,
			},
			adminCommand{
				use:   "revoke --session <id> | --customer <id> | --all [--by <name>]",
				short: "Ends sessions",
				long: `
Ends one session, all of a customer, or all of the tenant. They are over on
their next request, on every node. Links that were not opened yet stay good.

  caddy billing-portal sessions revoke --session ses_...
  caddy billing-portal sessions revoke --customer cus_123
  caddy billing-portal sessions revoke --all
`,
				flags: func(fl *pflag.FlagSet) {
					fl.String("session", "", "the session with this id")
					fl.String("customer", "", "all of this customer's")
					fl.Bool("all", false, "all of the tenant's")
					byFlag(fl)
				},
				run: revokeSessions,
			}),
		group("events", "Lists events that the vendor's backend did not take, and sends them again",
			adminCommand{
				use:   "list [--limit <n>]",
				short: "Lists dead events",
				long: `
Lists the events that the vendor's backend did not take in about three days, the
one that was given up last first. They are kept for 90 days.

  caddy billing-portal events list
`,
				flags: func(fl *pflag.FlagSet) { fl.Int("limit", portalcore.DefaultList, "how many at most") },
				run:   listEvents,
			},
			adminCommand{
				use:   "resend --event <id> | --all [--by <name>]",
				short: "Sends dead events again",
				long: `
Puts dead events at the end of their customers' queues, with about three days
before them. They keep their ids, so a backend that saw one before can tell.

  caddy billing-portal events resend --event evt_...
  caddy billing-portal events resend --all
`,
				flags: func(fl *pflag.FlagSet) {
					fl.String("event", "", "the event with this id")
					fl.Bool("all", false, "all that are dead")
					byFlag(fl)
				},
				run: resendEvents,
			}),
		adminCommand{
			use:   "restored [--offline --config <file>] [--note <text>] [--by <name>]",
			short: "Declares that the database was put back to an earlier state",
			long: `
Tells the portals that their database was put back to an earlier state by other
means than "caddy billing-portal restore": a PostgreSQL server that was recovered
to a point in time, a snapshot of a disk. The portal cannot always see that for
itself. All sessions and links from before end, and changes that were under way
are settled by reading the provider, never by sending again.

Say so before any node starts, so that none of them goes on with what it finds:

  caddy billing-portal restored --offline --config /etc/caddy/Caddyfile --note "recovered to 09:40 UTC"

Without --offline, it asks the Caddy that runs.
`,
			whole: true,
			flags: func(fl *pflag.FlagSet) {
				fl.String("note", "", "what happened, for the audit trail")
				fl.Bool("offline", false, "write into the store that --config names, while no Caddy runs")
				byFlag(fl)
			},
			run: declareRestored,
		}.command(),
		backupCommand(),
		restoreCommand(),
		adminCommand{
			use:   "status",
			whole: true,
			short: "Says how the portals of the running config are doing",
			long: `
Prints the store and its generation (links from before it are refused), and for
each tenant how much waits: changes that are not settled, and those that need an
operator.

  caddy billing-portal status
  caddy billing-portal status --json
`,
			run: showStatus,
		}.command(),
	}
}

func group(name, short string, subs ...adminCommand) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short}
	for _, s := range subs {
		cmd.AddCommand(s.command())
	}
	helpOnly(cmd)
	return cmd
}

// helpOnly is for a command that only has others below it: without one of them
// it prints its help, and a misspelt one is an error.
func helpOnly(cmd *cobra.Command) {
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// adminCommand is a command that asks the admin endpoint of a running Caddy.
type adminCommand struct {
	use, short, long string
	args             int  // how many arguments it takes, exactly
	whole            bool // about the store, not about a tenant
	flags            func(*pflag.FlagSet)
	run              func(*adminClient) error
}

func (c adminCommand) command() *cobra.Command {
	cmd := &cobra.Command{
		Use: c.use, Short: c.short, Long: c.long, Args: cobra.ExactArgs(c.args),
		RunE: caddycmd.WrapCommandFuncForCobra(func(fl caddycmd.Flags) (int, error) {
			client, err := newAdminClient(fl)
			if err == nil {
				err = c.run(client)
			}
			if err != nil {
				return caddy.ExitCodeFailedStartup, err
			}
			return caddy.ExitCodeSuccess, nil
		}),
	}
	fl := cmd.Flags()
	fl.String("address", "", "address of the admin endpoint, where it is not that of the config nor "+caddy.DefaultAdminListen)
	fl.StringP("config", "c", "", "configuration file that has the address of the admin endpoint")
	fl.StringP("adapter", "a", "", "name of config adapter to apply to it")
	if !c.whole {
		fl.String("tenant", "", "name of the tenant (default: the only one)")
	}
	fl.Bool("json", false, "print JSON")
	if c.flags != nil {
		c.flags(fl)
	}
	return cmd
}

// adminClient talks to the admin endpoint.
type adminClient struct {
	caddycmd.Flags
	address string
	json    bool
	out     io.Writer
}

func newAdminClient(fl caddycmd.Flags) (*adminClient, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, fl.String("config"), fl.String("adapter"))
	if err != nil {
		return nil, fmt.Errorf("finding the address of the admin endpoint: %w", err)
	}
	return &adminClient{Flags: fl, address: address, json: fl.Bool("json"), out: os.Stdout}, nil
}

// request asks, and returns the answer where it is a good one.
func (c *adminClient) request(method, path string, q url.Values, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(raw)
	}
	uri := adminBase + path
	if len(q) > 0 {
		uri += "?" + q.Encode()
	}
	res, err := caddycmd.AdminAPIRequest(c.address, method, uri, nil, r)
	if err == nil {
		return res, nil
	}
	// Caddy puts the whole answer into its error; what it says is all that people
	// need.
	if _, text, ok := strings.Cut(err.Error(), `: {`); ok {
		var said struct {
			Error string `json:"error"`
		}
		if json.Unmarshal([]byte("{"+text), &said) == nil && said.Error != "" {
			return nil, errors.New(said.Error)
		}
	}
	return nil, fmt.Errorf("asking the Caddy that runs, at %s: %w", c.address, err)
}

// call asks and decodes the answer.
func (c *adminClient) call(method, path string, q url.Values, body, into any) error {
	res, err := c.request(method, path, q, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		return fmt.Errorf("reading the answer of the Caddy that runs: %w", err)
	}
	return nil
}

// query is a URL query of the flags that were given.
func (c *adminClient) query(flags ...string) url.Values {
	q := url.Values{}
	for _, name := range append(flags, "tenant") {
		if v := c.String(name); v != "" {
			q.Set(name, v)
		}
	}
	return q
}

// printJSON prints v for programs.
func (c *adminClient) printJSON(v any) error {
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table prints rows for people, or that there is none.
func (c *adminClient) table(none string, header []string, rows [][]string) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(c.out, none)
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			row[i] = cmp.Or(printable(cell), "-")
		}
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// printable keeps what customers and providers wrote from moving an operator's
// cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateTime) + "Z"
}

// operator is who gives a command: --by, or who is signed in.
func (c *adminClient) operator() (string, error) {
	by := cmp.Or(c.String("by"), os.Getenv("SUDO_USER"))
	if by == "" {
		if u, err := user.Current(); err == nil {
			by = u.Username
		}
	}
	if by == "" {
		return "", errors.New("--by: say who you are; it goes into the audit trail")
	}
	return by, portalcore.CheckOperator(by)
}

func byFlag(fl *pflag.FlagSet) {
	fl.String("by", "", "who you are, for the audit trail (default: the name of your account)")
}

func listIntents(c *adminClient) error {
	all := portalcore.IntentPage{Intents: []portalcore.IntentStatus{}}
	limit := c.Int("limit")
	for {
		q := c.query("state", "customer")
		q.Set("limit", strconv.Itoa(min(limit-len(all.Intents), portalcore.MaxList)))
		if all.Next != "" {
			q.Set("after", all.Next)
		}
		var page portalcore.IntentPage
		if err := c.call(http.MethodGet, "intents", q, nil, &page); err != nil {
			return err
		}
		all.Intents = append(all.Intents, page.Intents...)
		all.Next, all.Truncated = page.Next, page.Truncated
		if all.Next == "" || len(all.Intents) >= limit {
			break
		}
	}
	if c.json {
		return c.printJSON(all)
	}
	rows := make([][]string, 0, len(all.Intents))
	for _, i := range all.Intents {
		rows = append(rows, []string{i.ID, i.Customer, i.Action, i.Object, i.State, when(i.Created), when(i.Updated), cmp.Or(i.Code, i.LastError)})
	}
	if err := c.table("no such intents", []string{"INTENT", "CUSTOMER", "ACTION", "OBJECT", "STATE", "CREATED", "UPDATED", "WHY"}, rows); err != nil {
		return err
	}
	if all.Next != "" || all.Truncated {
		_, err := fmt.Fprintf(c.out, "there are more: --limit %d, or --customer\n", 10*limit)
		return err
	}
	return nil
}

func settleIntent(c *adminClient) error {
	by, err := c.operator()
	if err != nil {
		return err
	}
	var i portalcore.IntentStatus
	err = c.call(http.MethodPost, "intents/settle", nil, settleRequest{
		Tenant: c.String("tenant"), Intent: c.Arg(0), Customer: c.String("customer"), State: c.String("as"), By: by, Note: c.String("note"),
	}, &i)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(i)
	}
	_, err = fmt.Fprintf(c.out, "intent %s of %s is settled: %s\n", printable(i.ID), printable(i.Customer), printable(i.State))
	return err
}

func listCustomers(c *adminClient) error {
	var out customersAnswer
	if err := c.call(http.MethodGet, "customers", c.query("email", "reference"), nil, &out); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(out)
	}
	rows := make([][]string, 0, len(out.Customers))
	for _, o := range out.Customers {
		rows = append(rows, []string{o.ID, o.Name, o.Email, o.Reference})
	}
	return c.table("no such customer", []string{"CUSTOMER", "NAME", "EMAIL", "REFERENCE"}, rows)
}

func listSessions(c *adminClient) error {
	var out sessionsAnswer
	if err := c.call(http.MethodGet, "sessions", c.query("customer"), nil, &out); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(out)
	}
	rows := make([][]string, 0, len(out.Sessions))
	for _, s := range out.Sessions {
		rows = append(rows, []string{s.ID, s.Actor, s.Role, s.Device, when(s.Created), when(s.Seen), when(s.Expires)})
	}
	return c.table("no sessions", []string{"SESSION", "PERSON", "ROLE", "DEVICE", "CREATED", "SEEN", "EXPIRES"}, rows)
}

func revokeSessions(c *adminClient) error {
	by, err := c.operator()
	if err != nil {
		return err
	}
	in := revokeRequest{Tenant: c.String("tenant"), Session: c.String("session"), Customer: c.String("customer"), All: c.Bool("all"), By: by}
	var out revokeAnswer
	if err := c.call(http.MethodPost, "sessions/revoke", nil, in, &out); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(out)
	}
	if !out.Known {
		return c.done("no customer with that id was ever here: %s", printable(in.Customer))
	}
	return c.done("the sessions are over")
}

// done says that something was done; programs go by the exit code.
func (c *adminClient) done(format string, args ...any) error {
	if c.json {
		return nil
	}
	_, err := fmt.Fprintf(c.out, format+"\n", args...)
	return err
}

func listEvents(c *adminClient) error {
	q := c.query()
	q.Set("limit", strconv.Itoa(c.Int("limit")))
	var out eventsAnswer
	if err := c.call(http.MethodGet, "events", q, nil, &out); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(out)
	}
	rows := make([][]string, 0, len(out.Events))
	for _, e := range out.Events {
		rows = append(rows, []string{e.ID, e.Type, e.Customer, when(e.Time), when(e.Died), e.Reason})
	}
	return c.table("no dead events", []string{"EVENT", "TYPE", "CUSTOMER", "HAPPENED", "GIVEN UP", "WHY"}, rows)
}

func resendEvents(c *adminClient) error {
	by, err := c.operator()
	if err != nil {
		return err
	}
	var out resendAnswer
	err = c.call(http.MethodPost, "events/resend", nil, resendRequest{Tenant: c.String("tenant"), Event: c.String("event"), All: c.Bool("all"), By: by}, &out)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(out)
	}
	return c.done("events sent again: %d", out.Resent)
}

func declareRestored(c *adminClient) error {
	by, err := c.operator()
	if err != nil {
		return err
	}
	var guard store.Guard
	if c.Bool("offline") {
		if guard, err = restoredOffline(c.Flags, by); err != nil {
			return err
		}
	} else if err := c.call(http.MethodPost, "restored", nil, restoredRequest{By: by, Note: c.String("note")}, &guard); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(guard)
	}
	return c.done("sessions and links from before %s are over; changes that were under way are settled by reading the provider", when(guard.Restored))
}

func showStatus(c *adminClient) error {
	var s statusAnswer
	if err := c.call(http.MethodGet, "status", nil, nil, &s); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(s)
	}
	restored := cmp.Or(when(s.Store.Restored), "never")
	if _, err := fmt.Fprintf(c.out, "store %s, generation %s since %s (%s), restored: %s\n\n",
		printable(s.Store.Kind), printable(s.Store.Generation), when(s.Store.Cutoff), printable(s.Store.Reason), restored); err != nil {
		return err
	}
	rows := make([][]string, 0, len(s.Tenants))
	for _, t := range s.Tenants {
		selling := "read"
		if !t.Selling {
			selling = "NOT READ YET"
		}
		dead := ""
		if t.Events {
			dead = strconv.Itoa(t.DeadEvents)
		}
		rows = append(rows, []string{t.Tenant, t.Origin, t.Provider, selling, strconv.Itoa(t.OpenIntents), strconv.Itoa(t.ManualIntents), dead})
	}
	return c.table("no tenants", []string{"TENANT", "ORIGIN", "PROVIDER", "CATALOGUE", "OPEN", "MANUAL", "DEAD EVENTS"}, rows)
}
