// Package caddymodule is the Caddy shell around portalcore: it turns
// configuration into a portal and has no rules of its own.
//
// It registers
//
//	billing_portal                      the app: owns the store and runs the portals
//	http.handlers.billing_portal        the handler: one tenant per site block
//	billing_portal.stores.badger        a store (Go interface: Storage)
//	billing_portal.stores.postgres      a store for many nodes
//	billing_portal.providers.stripe     a provider (Go interface: ProviderModule)
//	billing_portal.providers.sandbox    a provider with a ledger of its own
//	admin.api.billing_portal            what operators ask and tell, over Caddy's admin endpoint
//
// and the command "caddy billing-portal": the demo, and what operators do.
package caddymodule
