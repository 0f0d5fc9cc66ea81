package store_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

func sealKey(b byte) []byte { return bytes.Repeat([]byte{b}, store.SealKeySize) }

func mustSealer(t *testing.T, current []byte, previous ...[]byte) *store.Sealer {
	t.Helper()
	s, err := store.NewSealer(current, previous...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealOpen(t *testing.T) {
	s := mustSealer(t, sealKey(1))
	for _, value := range [][]byte{{}, nil, []byte("x"), bytes.Repeat([]byte("v"), store.MaxValue)} {
		sealed := s.Seal([]byte("k"), value)
		if len(sealed) != len(value)+store.SealOverhead {
			t.Errorf("%d bytes sealed to %d", len(value), len(sealed))
		}
		// A value of a byte or two is in any random bytes now and then.
		if len(value) > 16 && bytes.Contains(sealed[29:], value) {
			t.Error("value is readable in the sealed one")
		}
		got, err := s.Open([]byte("k"), sealed)
		if err != nil || got == nil || !bytes.Equal(got, value) {
			t.Errorf("opening %d bytes: %d bytes, %v", len(value), len(got), err)
		}
	}
	if bytes.Equal(s.Seal([]byte("k"), []byte("x")), s.Seal([]byte("k"), []byte("x"))) {
		t.Error("sealing twice gave the same bytes: the nonce is not random")
	}
}

func TestOpenRefuses(t *testing.T) {
	s := mustSealer(t, sealKey(1))
	sealed := s.Seal([]byte("k"), []byte("value"))
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if v, err := s.Open([]byte("k"), bad); !errors.Is(err, store.ErrSealed) || v != nil {
			t.Fatalf("byte %d changed: %q, %v", i, v, err)
		}
	}
	for n := range sealed {
		if _, err := s.Open([]byte("k"), sealed[:n]); !errors.Is(err, store.ErrSealed) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := s.Open([]byte("other"), sealed); !errors.Is(err, store.ErrSealed) {
		t.Errorf("moved to another record: %v", err)
	}
	if _, err := mustSealer(t, sealKey(2)).Open([]byte("k"), sealed); !errors.Is(err, store.ErrSealed) {
		t.Errorf("another key: %v", err)
	}
}

func TestSealKeyRotation(t *testing.T) {
	old := mustSealer(t, sealKey(1))
	sealed := old.Seal([]byte("k"), []byte("value"))
	both := mustSealer(t, sealKey(2), sealKey(1))
	if v, err := both.Open([]byte("k"), sealed); err != nil || string(v) != "value" {
		t.Errorf("previous key: %q, %v", v, err)
	}
	if both.IsCurrent(sealed) || !old.IsCurrent(sealed) {
		t.Error("IsCurrent does not tell the keys apart")
	}
	fresh := both.Seal([]byte("k"), []byte("value"))
	if !both.IsCurrent(fresh) {
		t.Error("sealed with a key that is not current")
	}
	if _, err := old.Open([]byte("k"), fresh); !errors.Is(err, store.ErrSealed) {
		t.Errorf("the old key opens what the new one sealed: %v", err)
	}
}

func TestNewSealerKeys(t *testing.T) {
	for _, bad := range [][]byte{nil, sealKey(1)[:31], append(sealKey(1), 1)} {
		if _, err := store.NewSealer(bad); err == nil {
			t.Errorf("current key of %d bytes accepted", len(bad))
		}
		if _, err := store.NewSealer(sealKey(1), bad); err == nil {
			t.Errorf("previous key of %d bytes accepted", len(bad))
		}
	}
	mustSealer(t, sealKey(1), sealKey(1)) // the same key twice is harmless
}

func TestParseSealKey(t *testing.T) {
	key := append(sealKey(0xFB)[:16], sealKey(0xFF)[:16]...) // + and / in base64
	for _, text := range []string{
		hex.EncodeToString(key),
		strings.ToUpper(hex.EncodeToString(key)),
		base64.StdEncoding.EncodeToString(key),
		base64.RawStdEncoding.EncodeToString(key),
		base64.URLEncoding.EncodeToString(key),
		base64.RawURLEncoding.EncodeToString(key),
		"\n\t " + hex.EncodeToString(key) + " \r\n",
	} {
		got, err := store.ParseSealKey(text)
		if err != nil || !bytes.Equal(got, key) {
			t.Errorf("ParseSealKey(%q) = %x, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", " \n", "secret", hex.EncodeToString(key)[2:], hex.EncodeToString(key) + "00",
		base64.StdEncoding.EncodeToString(key[1:]), strings.Repeat("z", 63) + "!",
	} {
		got, err := store.ParseSealKey(text)
		if err == nil {
			t.Errorf("ParseSealKey(%q) = %x, want an error", text, got)
			continue
		}
		if text := strings.TrimSpace(text); text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func TestLoadOrCreateSealKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "seal.key")
	keys := make([][]byte, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := store.LoadOrCreateSealKeyFile(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, key := range keys {
		if len(key) != store.SealKeySize || !bytes.Equal(key, keys[0]) {
			t.Fatalf("keys differ: %x, %x", key, keys[0])
		}
	}
	if bytes.Equal(keys[0], make([]byte, store.SealKeySize)) {
		t.Error("the key is all zero")
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", fi.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".seal-*")); len(left) != 0 {
		t.Errorf("files left behind: %v", left)
	}

	if err := os.WriteFile(path, []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.LoadOrCreateSealKeyFile(path); err == nil || strings.Contains(err.Error(), "not a key") {
		t.Errorf("a broken key file: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "not a key" {
		t.Error("a broken key file was overwritten")
	}
}
