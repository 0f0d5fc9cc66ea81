// Package caddymodule is the Caddy shell around portalcore: it turns
// configuration into a portal and has no rules of its own.
package caddymodule
