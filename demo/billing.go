package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// billing answers GET /billing. With the link that leads here it is all that an
// app needs to have a billing portal: copy it. The steps are those of
// docs/vendor-integration.md.
func (a *App) billing(w http.ResponseWriter, r *http.Request) {
	// 1. The link "Billing & payment" on our settings page (pages.html) leads here.
	user, ok := a.user(r) // 2. Is somebody signed in?
	if !ok {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	customer := a.customerOf[user]                     // 3. Our database knows their customer id at the payment provider.
	link, err := a.portalLink(r.Context(), url.Values{ // 4. Ask the portal for a link.
		"customer":   {customer},
		"return_url": {a.origin + "/settings"}, // where the portal's "Back" leads
	})
	if err != nil {
		a.log.Printf("asking for a billing link: %v", err)
		http.Error(w, "Billing is not available right now. Please try again in a minute.", http.StatusBadGateway)
		return
	}
	w.Header().Set("Cache-Control", "no-store") // The link is good once.
	http.Redirect(w, r, link, http.StatusFound) // 5. Redirect to it.
}

func (a *App) portalLink(ctx context.Context, form url.Values) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		a.portal+"/v1/billing_portal/sessions", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Authorization", "Bearer "+a.apiKey) // a key that only our servers know
	res, err := a.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var session struct{ URL string }
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the portal answered %s", res.Status)
	}
	err = json.NewDecoder(res.Body).Decode(&session)
	return session.URL, err
}
