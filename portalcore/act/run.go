package act

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// run sends an intent's steps, one after another, from the one in hand. The
// caller holds the intent's lease. The intent is returned as it
// stands; a problem of the provider's is a state and no error.
func (c *Corridor) run(ctx context.Context, i journal.Intent) (journal.Intent, error) {
	if len(i.Steps) == 0 { // things are as the customer wants them
		err := c.Journal.Settle(context.WithoutCancel(ctx), &i, journal.Succeeded, "", nil)
		return i, err
	}
	for more := true; more; {
		var err error
		more, err = c.step(ctx, &i, i.Next())
		if errors.Is(err, journal.ErrMoved) {
			// Somebody took it over meanwhile: what they make of it counts.
			return c.Journal.Get(context.WithoutCancel(ctx), i.Customer, i.ID)
		}
		if err != nil {
			// The store failed. What was sent is written down as sent, so
			// recovery finds it.
			c.Log.Error("could not write an intent down", zap.String("intent", i.ID), zap.Error(err))
			return i, err
		}
	}
	return i, nil
}

// follows reports whether there is a step that can be sent, or read, now.
func follows(i *journal.Intent) bool {
	n := i.Next()
	return !i.State.Terminal() && n < len(i.Steps) && i.Steps[n].Result == nil
}

// end writes down that step n did not take effect and never will.
func (c *Corridor) end(ctx context.Context, i *journal.Intent, n int, how journal.State, code string, cause error) (more bool, err error) {
	if err := c.Journal.End(ctx, i, n, how, code, cause); err != nil {
		return false, err
	}
	return follows(i), nil
}

// step sends step n, with the same key a few times where no definite answer
// comes. It reports whether the next step may follow. Where ctx ends, nothing
// more is sent, and what became of what was sent is still written down.
func (c *Corridor) step(ctx context.Context, i *journal.Intent, n int) (more bool, err error) {
	keep := context.WithoutCancel(ctx)
	if age := c.Now().Sub(i.Created); i.Steps[n].Independent && i.Steps[n].SentAt.IsZero() && (age > clickLife || age < -time.Minute) {
		return c.end(keep, i, n, journal.Cancelled, "", nil)
	}
	refs, ok := refsFor(i, n)
	if !ok {
		return false, c.manual(keep, i, "missing_reference",
			fmt.Errorf("step %d needs %v, which no earlier step gave", n, i.Steps[n].Needs))
	}
	// doubt: an earlier sending may have taken effect.
	doubt := i.Steps[n].Attempts > 0
	var cause error
	for try := range attempts {
		if try > 0 && c.rest(ctx, time.Duration(try)*250*time.Millisecond) != nil {
			break
		}
		if !c.mayResend(i, n) {
			break
		}
		began := c.elapsed()
		if err := c.Journal.Send(ctx, i, n, refs); err != nil {
			return false, c.sendFailed(keep, i, n, err)
		}
		if took := c.elapsed() - began; took > sendWithin {
			cause = fmt.Errorf("not sent: writing it down took %s", took)
			c.Log.Warn("the store was too slow to send a step", c.fields(i, n, cause)...)
			continue
		}
		s := i.Steps[n]
		callCtx, cancel := context.WithTimeout(ctx, executeTimeout)
		r, execErr := c.Provider.Execute(callCtx, i.Customer, s.Step, s.Key)
		cancel()
		if execErr == nil {
			return c.answer(keep, i, n, r)
		}
		if billing.CodeOf(execErr) == "idempotency_error" {
			// Other parameters under our key: never send again, somebody must look.
			return false, c.manual(keep, i, "idempotency_error", execErr)
		}
		switch billing.FaultOf(execErr) {
		case billing.Refused, billing.NotFound:
			c.Log.Info("provider refused a step", c.fields(i, n, execErr)...)
			if doubt {
				return c.refusedInDoubt(ctx, i, n, execErr)
			}
			return c.end(keep, i, n, journal.Refused, billing.CodeOf(execErr), execErr)
		case billing.Retryable:
		default:
			doubt = true
		}
		cause = execErr
		c.Log.Warn("no definite answer from the provider", c.fields(i, n, execErr)...)
	}
	return false, c.unsure(keep, i, n, cause)
}

// started is what elapsed counts from; it has a monotonic reading.
var started = time.Now()

// elapsed is a time that only tells how long something took.
func (c *Corridor) elapsed() time.Duration {
	if c.Elapsed != nil {
		return c.Elapsed()
	}
	return c.Now().Sub(started)
}

// watched holds since when this process has seen, by reading, that steps did
// not take effect. It is not kept in the store: the clocks of two nodes, or of
// one node before and after it was set, do not tell how long ago something was.
type watched struct {
	mu    sync.Mutex
	since map[string]time.Duration // by key
}

// forgotten is when a step that nobody looked at any more is not watched.
const forgotten = time.Hour

// quiet reports whether the step was seen not to have taken effect for long
// enough, and begins to watch it where it is not watched.
func (w *watched) quiet(key string, now time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if since, ok := w.since[key]; ok && now >= since && now-since < forgotten {
		return now-since > quiet
	}
	if w.since == nil {
		w.since = map[string]time.Duration{}
	}
	for k, since := range w.since {
		if now-since >= forgotten || now < since {
			delete(w.since, k)
		}
	}
	w.since[key] = now
	return false
}

// refusedInDoubt is called when step n was refused after an earlier sending of
// it that nobody knows the end of. The refusal need not be that one's answer (a
// key may have been revoked in between, the object be gone because it worked),
// so reading decides, and nothing is sent any more.
func (c *Corridor) refusedInDoubt(ctx context.Context, i *journal.Intent, n int, cause error) (more bool, err error) {
	keep := context.WithoutCancel(ctx)
	outcome, r, err := c.outcome(ctx, i, n)
	if err == nil && outcome == billing.Applied {
		return c.answer(keep, i, n, r)
	}
	return false, c.Journal.Unsure(keep, i, true, cause, c.Now().Add(quiet+time.Second))
}

func (c *Corridor) outcome(ctx context.Context, i *journal.Intent, n int) (billing.Outcome, billing.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, executeTimeout)
	defer cancel()
	s := i.Steps[n]
	if s.Refs == nil {
		// Not noted as sent, in an intent that may only be read any more.
		s.Refs, _ = refsFor(i, n)
	}
	return c.Provider.Outcome(ctx, i.Customer, s.Step, s.Key, s.Result)
}

// rest waits for d or for the end of ctx.
func (c *Corridor) rest(ctx context.Context, d time.Duration) error {
	if c.Pause != nil {
		return c.Pause(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// sendFailed is called when the durable SENT could not be written: nothing of
// this attempt left. An intent that never sent anything ends here, if the store
// lets it; else recovery ends it.
func (c *Corridor) sendFailed(ctx context.Context, i *journal.Intent, n int, err error) error {
	if n > 0 || !i.Steps[0].SentAt.IsZero() || errors.Is(err, store.ErrUnknown) || errors.Is(err, journal.ErrMoved) {
		return err
	}
	if err := c.Journal.Settle(ctx, i, journal.Cancelled, "", err); err != nil {
		c.Log.Warn("could not cancel an intent that was not sent", zap.String("intent", i.ID), zap.Error(err))
	}
	return fmt.Errorf("%w: %w", ErrNothingSent, err)
}

// answer writes down a definite answer, and reports whether another step may
// follow it now.
func (c *Corridor) answer(ctx context.Context, i *journal.Intent, n int, r billing.Result) (more bool, err error) {
	if r.State != billing.Done {
		err := c.Journal.Await(ctx, i, n, r, c.lookAfter(i.Steps[n].SentAt, r.Until))
		return err == nil && follows(i), err
	}
	differs := r.Invoice != nil && i.Action.Kind == billing.ChangePlan && r.Invoice.AmountDue != i.Preview.DueNow
	if differs {
		c.Log.Error("the invoice differs from what was confirmed", zap.String("intent", i.ID), zap.String("customer", i.Customer),
			zap.String("invoice", r.Invoice.ID), zap.Int64("confirmed", i.Preview.DueNow.Amount),
			zap.Int64("invoiced", r.Invoice.AmountDue.Amount), zap.String("currency", r.Invoice.AmountDue.Currency))
	}
	err = c.Journal.Done(ctx, i, n, r, differs)
	if errors.Is(err, store.ErrTooLarge) && r.Invoice != nil {
		// That it took effect counts for more than the lines of its invoice.
		short := *r.Invoice
		short.Lines = nil
		r.Invoice = &short
		err = c.Journal.Done(ctx, i, n, r, differs)
	}
	if err != nil {
		return false, err
	}
	c.Accounts.Drop(i.Customer)
	return follows(i), nil
}

// lookAfter is when a step is asked after again that waits for the customer or
// their bank: soon at first, then less often. A bank debit takes weeks, the
// provider says by an event when it is over, and what asks in vain takes the
// requests of those who wait for a page.
func (c *Corridor) lookAfter(sent, until time.Time) time.Time {
	now := c.Now()
	look := now.Add(min(max(now.Sub(sent)/4, time.Minute), lookAgain))
	if until.After(now) && look.After(until) {
		return until
	}
	return look
}

// unsure leaves the intent to be checked.
func (c *Corridor) unsure(ctx context.Context, i *journal.Intent, n int, cause error) error {
	readOnly := !c.mayResend(i, n)
	age := c.Now().Sub(i.Steps[n].SentAt)
	if readOnly && age > giveUp {
		return c.manual(ctx, i, "unresolved", cause)
	}
	// Soon at first, then less often.
	wait := min(max(age/4, 5*time.Second), lookAgain)
	return c.Journal.Unsure(ctx, i, readOnly, cause, c.Now().Add(wait))
}

// mayResend reports whether step n may be sent (again): never sent, or first
// sent a short while ago, and not by a clock that went backwards since.
func (c *Corridor) mayResend(i *journal.Intent, n int) bool {
	if i.ReadOnly || i.State == journal.Reconciling {
		return false
	}
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

// manual gives the intent to a person.
func (c *Corridor) manual(ctx context.Context, i *journal.Intent, code string, cause error) error {
	if err := c.Journal.Settle(ctx, i, journal.Manual, code, cause); err != nil {
		return err
	}
	c.Log.Error("a change needs an operator: see what became of it at the provider, then settle it", zap.String("intent", i.ID),
		zap.String("customer", i.Customer), zap.String("action", string(i.Action.Kind)), zap.String("code", code), zap.NamedError("cause", cause))
	return nil
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
	switch {
	case errors.Is(err, journal.ErrLeased), errors.Is(err, journal.ErrMoved):
		// Somebody else is at it.
		return c.Journal.Get(ctx, ref.Customer, ref.ID)
	case err != nil || i.State.Terminal():
		return i, err
	}
	moved, err := c.move(ctx, i)
	switch {
	case errors.Is(err, journal.ErrBusy):
		// The customer did their part while another change holds the object:
		// the rest follows when that one is settled.
		keep := context.WithoutCancel(ctx)
		if err := c.Journal.Leave(keep, &moved, c.Now().Add(time.Minute)); err != nil && !errors.Is(err, journal.ErrMoved) {
			return moved, err
		}
		return moved, nil
	case errors.Is(err, journal.ErrMoved):
		return c.Journal.Get(context.WithoutCancel(ctx), ref.Customer, ref.ID)
	}
	return moved, err
}

// move carries an intent on whose lease the caller holds.
func (c *Corridor) move(ctx context.Context, i journal.Intent) (journal.Intent, error) {
	keep := context.WithoutCancel(ctx)
	if i.State == journal.Planned {
		// Never sent, and whoever planned it is gone: the customer saw no
		// receipt and clicks again.
		err := c.Journal.Settle(keep, &i, journal.Cancelled, "", nil)
		return i, err
	}
	n := i.Next()
	if n == len(i.Steps) {
		err := c.Journal.Settle(keep, &i, i.Conclusion(), i.Code, nil)
		return i, err
	}
	for m := range i.Steps {
		if m != n && i.Steps[m].Processing() {
			if err := c.processed(ctx, &i, m); err != nil {
				return i, err
			}
		}
	}
	s := &i.Steps[n]
	switch {
	case s.SentAt.IsZero() && !i.ReadOnly:
		// Between two steps: roll forward.
		return c.run(ctx, i)
	case s.Result == nil && c.mayResend(&i, n):
		if s.Attempts >= attempts {
			// It was sent several times without a definite answer, and the provider
			// may repeat that for as long as it is asked (Stripe keeps a 500 under its
			// key and replays it): look whether it took effect.
			if outcome, r, err := c.outcome(ctx, &i, n); err == nil && outcome == billing.Applied {
				return c.applied(ctx, i, n, r)
			}
		}
		// The same key again gives the definite answer.
		return c.run(ctx, i)
	}
	return c.reconcile(ctx, i, n)
}

// processed asks what became of a step that the provider was processing while
// another one is in hand.
func (c *Corridor) processed(ctx context.Context, i *journal.Intent, m int) error {
	keep := context.WithoutCancel(ctx)
	outcome, r, err := c.outcome(ctx, i, m)
	switch {
	case err != nil: // it is asked again at the next look
		return nil
	case outcome == billing.Applied && r.State == billing.Done:
		_, err := c.answer(keep, i, m, r)
		return err
	case outcome == billing.NotApplied:
		return c.Journal.End(keep, i, m, journal.NotApplied, cmp.Or(r.Reason, i.Steps[m].Result.Reason), nil)
	}
	return nil
}

// applied writes down what a look showed, and goes on with the next step.
func (c *Corridor) applied(ctx context.Context, i journal.Intent, n int, r billing.Result) (journal.Intent, error) {
	more, err := c.answer(context.WithoutCancel(ctx), &i, n, r)
	return c.goOn(ctx, i, more, err)
}

// goOn carries on with the next step, where there is more to do now.
func (c *Corridor) goOn(ctx context.Context, i journal.Intent, more bool, err error) (journal.Intent, error) {
	switch {
	case err != nil || !more:
		return i, err
	case i.ReadOnly:
		return c.reconcile(ctx, i, i.Next())
	}
	return c.run(ctx, i)
}

// reconcile settles a step by reading.
func (c *Corridor) reconcile(ctx context.Context, i journal.Intent, n int) (journal.Intent, error) {
	keep := context.WithoutCancel(ctx)
	s := &i.Steps[n]
	outcome, r, err := c.outcome(ctx, &i, n)
	waits := s.Result != nil
	switch {
	case err == nil && outcome == billing.Applied:
		return c.applied(ctx, i, n, r)
	case err == nil && outcome == billing.NotApplied && (waits || c.watched.quiet(s.Key, c.elapsed())):
		more, err := c.end(keep, &i, n, journal.NotApplied, cmp.Or(r.Reason, i.Code), nil)
		return c.goOn(ctx, i, more, err)
	case err == nil && outcome == billing.NotApplied:
		err := c.Journal.Unsure(keep, &i, true, nil, c.Now().Add(quiet+time.Second))
		return i, err
	case !waits:
		err := c.unsure(keep, &i, n, err)
		return i, err
	}
	// The customer, or their bank, has not done their part yet.
	now := c.Now()
	patience := s.SentAt.Add(longest)
	if !i.Until.IsZero() {
		patience = i.Until.Add(giveUp)
	}
	if now.After(patience) {
		err := c.manual(keep, &i, "unresolved", err)
		return i, err
	}
	err = c.Journal.Await(keep, &i, n, *s.Result, c.lookAfter(s.SentAt, i.Until))
	return i, err
}

// Recover looks at everything that is due, once; at the start (atStart) also
// at what processes that are gone left behind. It returns how many intents it
// looked at.
func (c *Corridor) Recover(ctx context.Context, atStart bool) (int, error) {
	if atStart {
		if err := c.Journal.Index(ctx); err != nil {
			return 0, err
		}
	}
	refs, err := c.Journal.Due(ctx, 1000, atStart)
	if err != nil {
		return 0, err
	}
	// A few at a time: a provider that hangs on one customer's intent must not
	// keep the others' waiting, nor be asked everything at once.
	var looked atomic.Int64
	slots := make(chan struct{}, cmp.Or(c.AtOnce, recoverAtOnce))
	var working sync.WaitGroup
	for _, ref := range refs {
		if ctx.Err() != nil {
			break
		}
		if atStart && !c.Journal.Orphan(ctx, ref) {
			continue
		}
		looked.Add(1)
		if c.AtOnce == 1 {
			c.recoverOne(ctx, ref)
			continue
		}
		slots <- struct{}{}
		working.Go(func() {
			defer func() { <-slots }()
			c.recoverOne(ctx, ref)
		})
	}
	working.Wait()
	return int(looked.Load()), ctx.Err()
}

func (c *Corridor) recoverOne(ctx context.Context, ref journal.Ref) {
	// Nothing else stops a panic of an adapter here from ending the process. The
	// intent keeps its lease and is looked at again.
	defer func() {
		if r := recover(); r != nil {
			c.Log.Error("panic while recovering an intent", zap.String("intent", ref.ID), zap.Any("panic", r), zap.Stack("stack"))
		}
	}()
	i, err := c.resume(ctx, ref)
	if err != nil {
		c.Log.Error("could not recover an intent", zap.String("intent", ref.ID), zap.Error(err))
		return
	}
	c.Log.Info("looked at an intent", zap.String("intent", i.ID), zap.String("state", string(i.State)))
}
