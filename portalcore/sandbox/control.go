package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Control is the door through which the demo, tests and benchmarks look into
// a sandbox and move it. All answers are JSON; errors are {"error": text}.
//
//	GET  /effects  [Effect], oldest first; ?after=SEQ leaves out older ones
//	GET  /intents  what intents returns; 404 where intents is nil
//	GET  /clock    {"now": time}
//	POST /clock    {"advance": "720h"} answers {"now": time}
//	POST /fault    {"on", "times", "kind", "latency"}, see Fault; times
//	               defaults to 1, and 0 drops all faults to come
//	GET  /webhooks what became of events: WebhookCount
//	POST /webhooks {"url", "secret"}: where events are posted from now on, see
//	               Webhooks.Configure; "" for none
//	POST /webhooks/fault {"kind", "times", "latency"}, see WebhookFault; times
//	               as above
//
// The last three answer 404 where the ledger has no Webhooks.
//
// It can do anything to the ledger, so it must be mounted on a loopback
// listener under a path that cannot be guessed. It refuses a Host that is not
// loopback (DNS rebinding), an Origin other than its own and requests that a
// browser says come from another site.
func Control(l *Ledger, faults *Faults, intents func(context.Context) (any, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /effects", func(rw http.ResponseWriter, r *http.Request) {
		var after int64
		if s := r.URL.Query().Get("after"); s != "" {
			if err := json.Unmarshal([]byte(s), &after); err != nil || after < 0 {
				fail(rw, http.StatusBadRequest, "after must be a whole number, the seq of the last effect seen")
				return
			}
		}
		effects, err := l.Effects(r.Context(), after)
		if effects == nil {
			effects = []Effect{} // an empty list, not null
		}
		reply(rw, effects, err)
	})
	mux.HandleFunc("GET /intents", func(rw http.ResponseWriter, r *http.Request) {
		if intents == nil {
			fail(rw, http.StatusNotFound, "there is no portal behind this door, so there are no intents")
			return
		}
		v, err := intents(r.Context())
		reply(rw, v, err)
	})
	mux.HandleFunc("GET /clock", func(rw http.ResponseWriter, r *http.Request) {
		now, err := l.Now(r.Context())
		reply(rw, map[string]any{"now": now}, err)
	})
	mux.HandleFunc("POST /clock", func(rw http.ResponseWriter, r *http.Request) {
		var body struct {
			Advance string `json:"advance"`
		}
		if !decode(rw, r, &body) {
			return
		}
		d, err := time.ParseDuration(body.Advance)
		if err != nil {
			fail(rw, http.StatusBadRequest, `advance must be a duration, such as "720h"`)
			return
		}
		now, err := l.Advance(r.Context(), d)
		reply(rw, map[string]any{"now": now}, err)
	})
	mux.HandleFunc("POST /fault", func(rw http.ResponseWriter, r *http.Request) {
		body := struct {
			On      string    `json:"on"`
			Times   int       `json:"times"`
			Kind    FaultKind `json:"kind"`
			Latency string    `json:"latency"`
		}{Times: 1}
		if !decode(rw, r, &body) {
			return
		}
		if body.Times == 0 {
			faults.Clear()
			reply(rw, map[string]any{"ok": true}, nil)
			return
		}
		var latency time.Duration
		if body.Latency != "" {
			var err error
			if latency, err = time.ParseDuration(body.Latency); err != nil {
				fail(rw, http.StatusBadRequest, `latency must be a duration, such as "200ms"`)
				return
			}
		}
		if err := faults.Set(Fault{On: body.On, Times: body.Times, Kind: body.Kind, Latency: latency}); err != nil {
			fail(rw, http.StatusBadRequest, err.Error())
			return
		}
		reply(rw, map[string]any{"ok": true}, nil)
	})
	mux.HandleFunc("/webhooks", withWebhooks(l, webhooksDoor))
	mux.HandleFunc("POST /webhooks/fault", withWebhooks(l, webhookFaultDoor))
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if why := foreign(r); why != "" {
			fail(rw, http.StatusForbidden, why)
			return
		}
		mux.ServeHTTP(rw, r)
	})
}

func withWebhooks(l *Ledger, door func(*Webhooks, http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		w := l.webhooks.Load()
		if w == nil {
			fail(rw, http.StatusNotFound, "this ledger sends no events")
			return
		}
		door(w, rw, r)
	}
}

func webhooksDoor(w *Webhooks, rw http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost:
		var body struct {
			URL    string `json:"url"`
			Secret string `json:"secret"`
		}
		if !decode(rw, r, &body) {
			return
		}
		if err := w.Configure(r.Context(), body.URL, body.Secret); err != nil {
			fail(rw, http.StatusBadRequest, err.Error())
			return
		}
	default:
		fail(rw, http.StatusMethodNotAllowed, "GET or POST")
		return
	}
	reply(rw, w.Count(), nil)
}

func webhookFaultDoor(w *Webhooks, rw http.ResponseWriter, r *http.Request) {
	body := struct {
		Kind    WebhookFaultKind `json:"kind"`
		Times   int              `json:"times"`
		Latency string           `json:"latency"`
	}{Times: 1}
	if !decode(rw, r, &body) {
		return
	}
	f := WebhookFault{Kind: body.Kind, Times: body.Times}
	if body.Latency != "" {
		var err error
		if f.Latency, err = time.ParseDuration(body.Latency); err != nil {
			fail(rw, http.StatusBadRequest, `latency must be a duration, such as "200ms"`)
			return
		}
	}
	if err := w.Fault(f); err != nil {
		fail(rw, http.StatusBadRequest, err.Error())
		return
	}
	reply(rw, map[string]any{"ok": true}, nil)
}

// foreign says why a request does not come from this machine's user, or "".
func foreign(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return "this door answers on a loopback host only"
	}
	if o := r.Header.Get("Origin"); o != "" {
		u, err := url.Parse(o)
		if err != nil || u.Host != r.Host {
			return "this door does not answer other origins"
		}
	}
	if s := r.Header.Get("Sec-Fetch-Site"); s != "" && s != "same-origin" && s != "none" {
		return "this door does not answer other sites"
	}
	return ""
}

// decode reads a JSON object strictly: one value, no unknown member.
func decode(rw http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(http.MaxBytesReader(rw, r.Body, 4<<10))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, end := d.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("there is something after the object")
		}
	}
	if err != nil {
		fail(rw, http.StatusBadRequest, "the body must be one JSON object of this door: "+err.Error())
		return false
	}
	return true
}

func reply(rw http.ResponseWriter, v any, err error) {
	var e *Error
	switch {
	case errors.As(err, &e):
		fail(rw, http.StatusBadRequest, e.Message)
		return
	case err != nil:
		fail(rw, http.StatusInternalServerError, err.Error())
		return
	}
	raw, err := json.Marshal(v)
	if err != nil {
		fail(rw, http.StatusInternalServerError, err.Error())
		return
	}
	send(rw, http.StatusOK, raw)
}

func fail(rw http.ResponseWriter, status int, text string) {
	raw, err := json.Marshal(map[string]string{"error": text})
	if err != nil {
		raw = []byte(`{"error":"internal"}`)
	}
	send(rw, status, raw)
}

func send(rw http.ResponseWriter, status int, raw []byte) {
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Cache-Control", "no-store")
	rw.Header().Set("X-Content-Type-Options", "nosniff")
	rw.WriteHeader(status)
	if _, err := rw.Write(append(raw, '\n')); err != nil {
		return // the client went away
	}
}
