package vendorapi

import (
	"net/http"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// customerObject is what tells customers apart, and no more of them.
type customerObject struct {
	ID        string `json:"id"`
	Object    string `json:"object"` // "customer"
	Email     any    `json:"email"`
	LiveMode  bool   `json:"livemode"`
	Name      any    `json:"name"`
	Reference any    `json:"reference"` // the vendor's own id
}

// CheckQuery refuses a query that no customer can answer to, before the provider is
// asked: param is the parameter that is wrong and why says how.
func CheckQuery(q billing.CustomerQuery) (param, why string) {
	switch {
	case (q.Reference == "") == (q.Email == ""):
		return "reference", "send reference or email, one of them"
	case len(q.Reference) > 255 || !isText(q.Reference):
		return "reference", "at most 255 bytes of text without control characters"
	case len(q.Email) > 320 || !isText(q.Email):
		return "email", "at most 320 bytes of text without control characters"
	}
	return "", ""
}

// listCustomers is GET /v1/portal/customers?reference=… or ?email=…: the
// customers with exactly that one, newest first, at most 20. A reference is the
// vendor's own id of the customer, or the provider's.
func (a *API) listCustomers(r *http.Request) ([]byte, *apiError) {
	var q billing.CustomerQuery
	if e := readQuery(r, map[string]*string{"reference": &q.Reference, "email": &q.Email}); e != nil {
		return nil, e
	}
	if q == (billing.CustomerQuery{}) {
		return nil, invalid("parameter_missing", "reference", "Missing required param: reference or email.")
	}
	if param, why := CheckQuery(q); param != "" {
		return nil, invalid("", param, "Invalid %s: %s.", param, why)
	}
	list, err := a.Search(r.Context(), q)
	if err != nil {
		if billing.CodeOf(err) == "rate_limit" {
			return nil, &apiError{status: http.StatusTooManyRequests, Type: "rate_limit_error", Code: "rate_limit", Message: "Too many requests at the payment provider. Try again in a moment."}
		}
		return nil, unavailable("The payment provider did not answer, so customers could not be looked up. Try again.", err, a.Log)
	}
	out := listObject[customerObject]{Object: "list", Data: make([]customerObject, len(list)), URL: PathCustomers}
	for n, c := range list {
		out.Data[n] = customerObject{ID: c.ID, Object: "customer", Email: orNull(c.Email), LiveMode: a.LiveMode, Name: orNull(c.Name), Reference: orNull(c.Reference)}
	}
	return encode(out)
}
