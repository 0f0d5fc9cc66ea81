// Package simulator runs the portal's sessions, journal and act corridor, as
// they are in production, in a world of its own: customers in their browsers,
// one to three portal processes on one store, and a payment provider with
// Stripe's idempotency. One seed decides everything that happens in that world:
// which of the tasks runs next at every store operation, provider call, pause
// and clock read; which of these fail, and whether before or after they had
// effect; when processes are killed, configs reloaded, clocks moved and backups
// restored. Exactly one task runs at a time and nothing reads a real clock or a
// real source of randomness, so a seed that breaks an invariant breaks it again.
//
// The invariants are checked at every commit of the store, at every byte that
// leaves for the provider, at every answer that a browser gets, and at the end
// of the world, once faults have stopped and everything had the time to settle.
//
// What it does not show: the stores themselves (package storetest and the crash
// campaign do), links and cookies as bytes (the packages' own tests and fuzzers
// do), and reads of an account that two requests share (package account's).
package simulator
