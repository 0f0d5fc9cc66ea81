package act

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// run sends an intent's steps, one after another, from the first that is not
// done. The caller holds the intent's lease. The intent is returned as it
// stands; a problem of the provider's is a state and no error.
func (c *Corridor) run(ctx context.Context, i journal.Intent) (journal.Intent, error) {
	for n := i.Next(); n < len(i.Steps); n++ {
		more, err := c.step(ctx, &i, n)
		if err != nil {
			// The store failed. What was sent is written down as sent, so
			// recovery finds it.
			c.Log.Error("could not write an intent down", zap.String("intent", i.ID), zap.Error(err))
			return i, err
		}
		if !more {
			return i, nil
		}
	}
	return i, nil
}

// step sends step n, with the same key a few times where no definite answer
// comes. It reports whether the next step may follow.
func (c *Corridor) step(ctx context.Context, i *journal.Intent, n int) (more bool, err error) {
	refs, ok := refsFor(i, n)
	if !ok {
		return false, c.Journal.Settle(ctx, i, journal.Manual, "missing_reference",
			fmt.Errorf("step %d needs %v, which no earlier step gave", n, i.Steps[n].Needs))
	}
	var cause error
	for try := range attempts {
		if try > 0 {
			select {
			case <-ctx.Done():
				return false, c.unsure(context.WithoutCancel(ctx), i, n, ctx.Err())
			case <-time.After(time.Duration(try) * 250 * time.Millisecond):
			}
		}
		if !c.mayResend(i, n) {
			break
		}
		if err := c.Journal.Send(ctx, i, n, refs); err != nil {
			return false, c.sendFailed(ctx, i, n, err)
		}
		s := i.Steps[n]
		callCtx, cancel := context.WithTimeout(ctx, executeTimeout)
		r, execErr := c.Provider.Execute(callCtx, i.Customer, s.Step, s.Key)
		cancel()
		switch billing.FaultOf(execErr) {
		case "":
			return c.answer(ctx, i, n, r)
		case billing.Refused, billing.NotFound:
			c.Log.Info("provider refused a step", c.fields(i, n, execErr)...)
			state := journal.Refused
			if n > 0 {
				state = journal.Partial
			}
			return false, c.Journal.Settle(ctx, i, state, billing.CodeOf(execErr), execErr)
		default:
			cause = execErr
			c.Log.Warn("no definite answer from the provider", c.fields(i, n, execErr)...)
		}
		if billing.CodeOf(cause) == "idempotency_error" {
			// Other parameters under our key: never send again, somebody must look.
			return false, c.Journal.Settle(ctx, i, journal.Manual, "idempotency_error", cause)
		}
	}
	return false, c.unsure(ctx, i, n, cause)
}

// sendFailed is called when the durable SENT could not be written: nothing of
// this attempt left. An intent that never sent anything ends here.
func (c *Corridor) sendFailed(ctx context.Context, i *journal.Intent, n int, err error) error {
	if n == 0 && i.Steps[0].SentAt.IsZero() && !errors.Is(err, store.ErrUnknown) {
		return fmt.Errorf("%w: %w", ErrNothingSent, err)
	}
	return err
}

// answer writes down a definite answer.
func (c *Corridor) answer(ctx context.Context, i *journal.Intent, n int, r billing.Result) (more bool, err error) {
	if r.State != billing.Done {
		look := c.Now().Add(time.Minute)
		return false, c.Journal.Await(ctx, i, n, r, look)
	}
	differs := r.Invoice != nil && i.Action.Kind == billing.ChangePlan && r.Invoice.AmountDue != i.Preview.DueNow
	if differs {
		c.Log.Error("the invoice differs from what was confirmed", zap.String("intent", i.ID), zap.String("customer", i.Customer),
			zap.String("invoice", r.Invoice.ID), zap.Int64("confirmed", i.Preview.DueNow.Amount),
			zap.Int64("invoiced", r.Invoice.AmountDue.Amount), zap.String("currency", r.Invoice.AmountDue.Currency))
	}
	if err := c.Journal.Done(ctx, i, n, r, differs); err != nil {
		return false, err
	}
	c.Accounts.Drop(i.Customer)
	return true, nil
}

// unsure leaves the intent to be checked.
func (c *Corridor) unsure(ctx context.Context, i *journal.Intent, n int, cause error) error {
	readOnly := !c.mayResend(i, n)
	// Soon at first, then less often: 5 s, 10 s, 20 s … at most 10 minutes.
	wait := 5 * time.Second << min(max(i.Steps[n].Attempts/attempts-1, 0), 7)
	if age := c.Now().Sub(i.Steps[n].SentAt); readOnly && age > giveUp {
		return c.Journal.Settle(ctx, i, journal.Manual, "unresolved", cause)
	}
	return c.Journal.Unsure(ctx, i, readOnly, cause, c.Now().Add(min(wait, 10*time.Minute)))
}

// mayResend reports whether step n may be sent (again): never sent, or first
// sent a short while ago, and not by a clock that went backwards since.
func (c *Corridor) mayResend(i *journal.Intent, n int) bool {
	first := i.Steps[n].SentAt
	if first.IsZero() {
		return true
	}
	age := c.Now().Sub(first)
	return age > -time.Minute && age < min(resend, c.Provider.Capabilities().KeyWindow)
}

func refsFor(i *journal.Intent, n int) (map[string]string, bool) {
	var refs map[string]string
	for _, name := range i.Steps[n].Needs {
		found := false
		for m := range n {
			if r := i.Steps[m].Result; r != nil && r.Refs[name] != "" {
				if refs == nil {
					refs = map[string]string{}
				}
				refs[name], found = r.Refs[name], true
			}
		}
		if !found {
			return nil, false
		}
	}
	return refs, true
}

func (c *Corridor) fields(i *journal.Intent, n int, err error) []zap.Field {
	return []zap.Field{
		zap.String("intent", i.ID), zap.String("customer", i.Customer), zap.String("action", string(i.Action.Kind)),
		zap.Int("step", n), zap.String("key", i.Steps[n].Key), zap.Int("attempt", i.Steps[n].Attempts), zap.Error(err),
	}
}

// Check looks again at an intent of the customer: an unsettled one is carried
// on or read, a settled one is returned as it is.
func (c *Corridor) Check(ctx context.Context, customer, id string) (journal.Intent, error) {
	i, err := c.Journal.Get(ctx, customer, id)
	if errors.Is(err, store.ErrNotFound) {
		return journal.Intent{}, ErrNotFound
	}
	if err != nil || i.State.Terminal() {
		return i, err
	}
	return c.resume(context.WithoutCancel(ctx), journal.Ref{Customer: customer, ID: id})
}

// resume takes an intent over and moves it on as far as it goes.
func (c *Corridor) resume(ctx context.Context, ref journal.Ref) (journal.Intent, error) {
	i, err := c.Journal.Take(ctx, ref.Customer, ref.ID)
	var busy *journal.BusyError
	switch {
	case errors.Is(err, journal.ErrLeased), errors.Is(err, journal.ErrMoved), errors.As(err, &busy):
		// Somebody else is at it, or at its object: look again later.
		if again, err := c.Journal.Get(ctx, ref.Customer, ref.ID); err == nil {
			return again, nil
		}
		return i, nil
	case err != nil || i.State.Terminal():
		return i, err
	}
	n := i.Next()
	if n == len(i.Steps) {
		return i, c.Journal.Settle(ctx, &i, journal.Succeeded, "", nil)
	}
	s := &i.Steps[n]
	switch {
	case i.State == journal.Planned:
		// Never sent, and whoever planned it is gone: the customer saw no
		// receipt and clicks again.
		return i, c.Journal.Settle(ctx, &i, journal.Cancelled, "", nil)
	case s.SentAt.IsZero():
		// Between two steps: roll forward.
		return c.run(ctx, i)
	case s.Result == nil && c.mayResend(&i, n):
		// The same key again gives the definite answer.
		return c.run(ctx, i)
	}
	return c.reconcile(ctx, i, n)
}

// reconcile settles a step by reading.
func (c *Corridor) reconcile(ctx context.Context, i journal.Intent, n int) (journal.Intent, error) {
	s := &i.Steps[n]
	readCtx, cancel := context.WithTimeout(ctx, executeTimeout)
	outcome, r, err := c.Provider.Outcome(readCtx, i.Customer, s.Step, s.Key, s.Result)
	cancel()
	waits := s.Result != nil
	switch {
	case err == nil && outcome == billing.Applied && r.State != billing.Done:
		_, err := c.answer(ctx, &i, n, r)
		return i, err
	case err == nil && outcome == billing.Applied:
		more, err := c.answer(ctx, &i, n, r)
		if err != nil || !more {
			return i, err
		}
		return c.run(ctx, i)
	case err == nil && outcome == billing.NotApplied && (waits || c.Now().Sub(s.SentAt) > quiet):
		state := journal.NotApplied
		if n > 0 && !waits {
			state = journal.Partial
		}
		return i, c.Journal.Settle(ctx, &i, state, i.Code, nil)
	case waits:
		// The customer has not done their part yet.
		look := c.Now().Add(10 * time.Minute)
		if !i.Until.IsZero() && look.After(i.Until) && i.Until.After(c.Now()) {
			look = i.Until
		}
		return i, c.Journal.Await(ctx, &i, n, *s.Result, look)
	}
	return i, c.unsure(ctx, &i, n, err)
}

// Recover looks at everything that is due, once; at the start (atStart) also
// at what processes that are gone left behind. It returns how many intents it
// looked at.
func (c *Corridor) Recover(ctx context.Context, atStart bool) (int, error) {
	refs, err := c.Journal.Due(ctx, 1000, atStart)
	if err != nil {
		return 0, err
	}
	for _, ref := range refs {
		if ctx.Err() != nil {
			return len(refs), ctx.Err()
		}
		if atStart && !c.Journal.Orphan(ctx, ref) {
			continue
		}
		i, err := c.resume(ctx, ref)
		if err != nil {
			c.Log.Error("could not recover an intent", zap.String("intent", ref.ID), zap.Error(err))
			continue
		}
		c.Log.Info("looked at an intent", zap.String("intent", i.ID), zap.String("state", string(i.State)))
	}
	return len(refs), nil
}
