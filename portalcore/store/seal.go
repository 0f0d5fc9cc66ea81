package store

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	// SealKeySize is the length of a seal key, in bytes.
	SealKeySize = chacha20poly1305.KeySize

	// SealOverhead is how many bytes longer a sealed value is than the value.
	SealOverhead = sealHeader + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead

	sealVersion = 1
	sealHeader  = 1 + sealIDSize
	sealIDSize  = 4
)

// Sealer encrypts and authenticates values with XChaCha20-Poly1305
// (draft-irtf-cfrg-xchacha-03). The record's key is the associated data, so a
// sealed value that is copied to another record does not open there. It does
// not hide keys, lengths or the fact that a record exists, and cannot tell
// that a record was replaced by an older value of its own.
//
// Layout: 1 byte version (1), 4 bytes key id, 24 bytes random nonce,
// ciphertext with its 16-byte tag. The key id is the beginning of a SHA-256
// over the key, and tells which of several keys to use.
//
// A Sealer is safe for concurrent use.
type Sealer struct {
	current [sealIDSize]byte
	aeads   map[[sealIDSize]byte]cipher.AEAD
}

// NewSealer returns a Sealer that seals with current and opens what current or
// one of previous sealed. Every key is 32 bytes. To rotate, make the old key a
// previous one; it can be dropped once nothing is sealed with it any more.
func NewSealer(current []byte, previous ...[]byte) (*Sealer, error) {
	s := &Sealer{aeads: make(map[[sealIDSize]byte]cipher.AEAD, 1+len(previous))}
	seen := make(map[[sealIDSize]byte][]byte, 1+len(previous))
	for i, key := range append([][]byte{current}, previous...) {
		if len(key) != SealKeySize {
			return nil, fmt.Errorf("store: seal key %d has %d bytes, need %d", i+1, len(key), SealKeySize)
		}
		id := sealKeyID(key)
		if other, ok := seen[id]; ok {
			if bytes.Equal(other, key) {
				continue
			}
			return nil, errors.New("store: two seal keys have the same id; generate another current key")
		}
		aead, err := chacha20poly1305.NewX(key)
		if err != nil {
			return nil, fmt.Errorf("store: seal key %d: %w", i+1, err)
		}
		seen[id] = key
		s.aeads[id] = aead
	}
	s.current = sealKeyID(current)
	return s, nil
}

// Seal returns value sealed for the record at key.
func (s *Sealer) Seal(key, value []byte) []byte {
	out := make([]byte, sealHeader+chacha20poly1305.NonceSizeX, len(value)+SealOverhead)
	out[0] = sealVersion
	copy(out[1:], s.current[:])
	nonce := out[sealHeader:]
	// crypto/rand.Read does not return errors: it ends the program instead.
	_, _ = rand.Read(nonce)
	return s.aeads[s.current].Seal(out, nonce, value, key)
}

// Open returns the value that was sealed for the record at key, never nil. It
// returns an error that wraps ErrSealed where the value was sealed with
// another key, for another record, or was changed.
func (s *Sealer) Open(key, sealed []byte) ([]byte, error) {
	if len(sealed) < SealOverhead {
		return nil, fmt.Errorf("%w: %d bytes are too few", ErrSealed, len(sealed))
	}
	if sealed[0] != sealVersion {
		return nil, fmt.Errorf("%w: seal version %d is not known to this build", ErrSealed, sealed[0])
	}
	id := [sealIDSize]byte(sealed[1:sealHeader])
	aead, ok := s.aeads[id]
	if !ok {
		return nil, fmt.Errorf("%w: it was sealed with the key whose id is %x", ErrSealed, id)
	}
	rest := sealed[sealHeader:]
	value, err := aead.Open(nil, rest[:chacha20poly1305.NonceSizeX], rest[chacha20poly1305.NonceSizeX:], key)
	if err != nil {
		return nil, fmt.Errorf("%w: it was changed or belongs to another record", ErrSealed)
	}
	if value == nil {
		value = []byte{}
	}
	return value, nil
}

// IsCurrent reports whether sealed says that it was sealed with the current
// key. It does not authenticate anything.
func (s *Sealer) IsCurrent(sealed []byte) bool {
	return len(sealed) >= sealHeader && sealed[0] == sealVersion && [sealIDSize]byte(sealed[1:sealHeader]) == s.current
}

func sealKeyID(key []byte) [sealIDSize]byte {
	h := sha256.Sum256(append([]byte("billing-portal seal key id\x00"), key...))
	return [sealIDSize]byte(h[:])
}

// ParseSealKey reads a seal key that was written as 64 hexadecimal digits or
// as base64 (standard or URL alphabet, padded or not) of 32 bytes. White space
// around it is ignored. Errors never contain the text.
func ParseSealKey(text string) ([]byte, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, errors.New("store: seal key is empty; generate one with: openssl rand -hex 32")
	}
	if len(text) == hex.EncodedLen(SealKeySize) {
		if key, err := hex.DecodeString(text); err == nil {
			return key, nil
		}
	}
	raw := strings.TrimRight(text, "=")
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if key, err := enc.Strict().DecodeString(raw); err == nil && len(key) == SealKeySize {
			return key, nil
		}
	}
	return nil, errors.New("store: seal key must be 64 hexadecimal digits or base64 of 32 bytes; generate one with: openssl rand -hex 32")
}

// LoadOrCreateSealKeyFile returns the seal key in the file at path. Where the
// file does not exist it is created with a new random key and mode 0600; of
// several processes that do so at the same time one wins and all return its
// key. Back the file up, away from the store: without it the store's values
// are lost.
func LoadOrCreateSealKeyFile(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createSealKeyFile(path); err != nil {
			return nil, fmt.Errorf("store: creating seal key file: %w", err)
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("store: reading seal key file: %w", err)
	}
	key, err := ParseSealKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return key, nil
}

// createSealKeyFile makes the file complete under another name and then links
// it: nobody sees half a key, and a file that is there already stays.
func createSealKeyFile(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".seal-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	key := make([]byte, SealKeySize)
	_, _ = rand.Read(key)
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// The key must not be lost while what it sealed stays. Not every system
	// lets a directory be synced, so that is tried only.
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
	return nil
}

// CanaryKey is the key of the record that opens only with the right seal key.
func CanaryKey() []byte { return StoreKey("seal") }

// Reseal seals every value that a previous key sealed with the current key,
// and returns how many there were. stale returns keys of such values from a key
// on (nil: from the first), and where to look on, nil for the end. It may run
// beside everything else, and again after it was interrupted.
func Reseal(ctx context.Context, s Store, stale func(ctx context.Context, from []byte) (keys [][]byte, next []byte, err error)) (int, error) {
	n := 0
	canary := CanaryKey()
	var from []byte
	for {
		keys, next, err := stale(ctx, from)
		if err != nil {
			return n, err
		}
		for _, key := range keys {
			// The canary tells whoever opens the store whether the keys fit; it
			// changes last, so that it fits as long as anything else needs the
			// previous key.
			if bytes.Equal(key, canary) {
				continue
			}
			if err := rewrite(ctx, s, key); err != nil {
				return n, err
			}
			n++
		}
		if next == nil {
			return n, rewrite(ctx, s, canary)
		}
		from = next
	}
}

func rewrite(ctx context.Context, s Store, key []byte) error {
	return s.Update(ctx, func(tx Tx) error {
		v, err := tx.Get(key)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return tx.Put(key, v)
	})
}
