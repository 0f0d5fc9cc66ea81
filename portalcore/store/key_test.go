package store_test

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

func TestKeyRoundTrip(t *testing.T) {
	for _, parts := range [][]string{
		nil,
		{""},
		{"", ""},
		{"a"},
		{"a", "b"},
		{"a\x00b"},
		{"a\x00", "\x01b"},
		{"\x00\xFF", "\x00\x01"},
		{"\xFF\xFF"},
	} {
		key := store.Key(parts...)
		got, ok := store.Parts(key)
		if !ok || !slices.Equal(got, parts) {
			t.Errorf("Parts(Key(%q)) = %q, %v", parts, got, ok)
		}
	}
}

func TestPartsRefusesForeignBytes(t *testing.T) {
	for _, key := range []string{"a", "a\x00", "\x00\x02", "a\x00\x01b", "\x00\x00", "a\x00\xFF"} {
		if parts, ok := store.Parts([]byte(key)); ok {
			t.Errorf("Parts(%q) = %q, want refused", key, parts)
		}
	}
}

func TestKeyPrefixes(t *testing.T) {
	a := store.Key("a")
	if !bytes.HasPrefix(store.Key("a", "x"), a) {
		t.Error(`Key("a") is no prefix of Key("a", "x")`)
	}
	for _, other := range [][]byte{store.Key("ab"), store.Key("a\x00"), store.Key("a\x00\x01"), store.Key("", "a")} {
		if bytes.HasPrefix(other, a) {
			t.Errorf(`Key("a") is a prefix of %q`, other)
		}
	}
}

// Few different bytes, so that equal beginnings and escapes are frequent.
var tuples = rapid.SliceOfN(rapid.Map(
	rapid.SliceOfN(rapid.SampledFrom([]byte{0x00, 0x01, 0x02, 'a', 'b', 0xFE, 0xFF}), 0, 4),
	func(b []byte) string { return string(b) },
), 0, 4)

func TestKeyKeepsTupleOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := tuples.Draw(t, "a"), tuples.Draw(t, "b")
		ka, kb := store.Key(a...), store.Key(b...)
		if got, want := bytes.Compare(ka, kb), slices.Compare(a, b); got != want {
			t.Fatalf("keys of %q and %q compare %d, tuples %d", a, b, got, want)
		}
		begins := len(a) <= len(b) && slices.Equal(a, b[:len(a)])
		if got := bytes.HasPrefix(kb, ka); got != begins {
			t.Fatalf("key of %q is prefix of key of %q: %v, tuple: %v", a, b, got, begins)
		}
	})
}

func TestTimePartKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Int64Min(0).Draw(t, "a"), rapid.Int64Min(0).Draw(t, "b")
		pa, pb := store.TimePart(a), store.TimePart(b)
		want := 0
		switch {
		case a < b:
			want = -1
		case a > b:
			want = 1
		}
		if got := strings.Compare(pa, pb); got != want {
			t.Fatalf("TimePart(%d) against TimePart(%d) compares %d, want %d", a, b, got, want)
		}
	})
}

func TestTimePart(t *testing.T) {
	for nano, want := range map[int64]string{
		0:             "00000000000000000000",
		-1:            "00000000000000000000",
		42:            "00000000000000000042",
		math.MaxInt64: "09223372036854775807",
		time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC).UnixNano(): "01767323045000000006",
	} {
		if got := store.TimePart(nano); got != want {
			t.Errorf("TimePart(%d) = %s, want %s", nano, got, want)
		}
	}
}

func FuzzParts(f *testing.F) {
	f.Add([]byte("a\x00\x01"))
	f.Add([]byte("a\x00\xFFb\x00\x01\x00\x01"))
	f.Add([]byte("a\x00"))
	f.Fuzz(func(t *testing.T, key []byte) {
		parts, ok := store.Parts(key)
		if !ok {
			return
		}
		// One key has one spelling: what decodes is what Key writes.
		if again := store.Key(parts...); !bytes.Equal(again, key) {
			t.Fatalf("%q decodes to %q, which encodes to %q", key, parts, again)
		}
	})
}
