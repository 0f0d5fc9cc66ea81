// Package billingportal is the root package of caddy-billing-portal: a
// self-serve billing portal as a Caddy module. It only imports the packages
// that register modules, so that
//
//	xcaddy build --with github.com/portalcore/caddy-billing-portal
//
// brings in the whole portal.
package billingportal

import (
	_ "github.com/portalcore/caddy-billing-portal/caddymodule"
)
