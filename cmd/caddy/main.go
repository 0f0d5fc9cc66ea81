// Command caddy is Caddy with the billing portal in it.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/portalcore/caddy-billing-portal"
)

func main() { caddycmd.Main() }
