package store_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// memory is a store for one goroutine. Its snapshot is a copy.
type memory map[string][]byte

func (m memory) View(_ context.Context, fn func(store.Tx) error) error {
	return fn(memoryTx{maps.Clone(m), false})
}

func (m memory) Update(_ context.Context, fn func(store.Tx) error) error {
	tx := memoryTx{maps.Clone(m), true}
	if err := fn(tx); err != nil {
		return err
	}
	clear(m)
	maps.Copy(m, tx.memory)
	return nil
}

func (m memory) GetAll(context.Context, ...[]byte) ([][]byte, error) {
	return nil, errors.New("not needed")
}

type memoryTx struct {
	memory
	write bool
}

func (t memoryTx) Get(key []byte) ([]byte, error) {
	if v, ok := t.memory[string(key)]; ok {
		return bytes.Clone(v), nil
	}
	return nil, store.ErrNotFound
}

func (t memoryTx) Put(key, value []byte) error {
	if !t.write {
		return store.ErrReadOnly
	}
	t.memory[string(key)] = append([]byte{}, value...)
	return nil
}

func (t memoryTx) Delete(key []byte) error {
	delete(t.memory, string(key))
	return nil
}

func (t memoryTx) Scan(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	var entries []store.Entry
	for _, k := range slices.Sorted(maps.Keys(t.memory)) {
		if strings.HasPrefix(k, string(prefix)) && k >= string(from) && len(entries) < limit {
			entries = append(entries, store.Entry{Key: []byte(k), Value: bytes.Clone(t.memory[k])})
		}
	}
	if reverse {
		return nil, errors.New("not needed")
	}
	return entries, nil
}

func backupSealer(t testing.TB, b byte, previous ...byte) *store.Sealer {
	t.Helper()
	var old [][]byte
	for _, p := range previous {
		old = append(old, bytes.Repeat([]byte{p}, store.SealKeySize))
	}
	s, err := store.NewSealer(bytes.Repeat([]byte{b}, store.SealKeySize), old...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var backupTime = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// filled is a store with records of all sizes, and with some of its own.
func filled(t testing.TB, n int) memory {
	t.Helper()
	m := memory{string(store.StoreKey("engine")): []byte("mine")}
	if _, err := store.MarkRestored(context.Background(), m, rand.Reader, backupTime.Add(-time.Hour), "a test"); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		m[string(store.Key("acme", "intent", fmt.Sprint(i)))] = bytes.Repeat([]byte{byte(i)}, i*i%3000)
		m[string(store.Key("acme", "session", fmt.Sprint(i)))] = []byte("a secret")
	}
	m["\x00\xFF"] = []byte("a key that sorts next to the store's own")
	m[string(store.Key("zeta", strings.Repeat("k", 900)))] = make([]byte, store.MaxValue)
	return m
}

func isSession(key []byte) bool {
	parts, ok := store.Parts(key)
	return ok && len(parts) > 1 && parts[1] == "session"
}

func backup(t testing.TB, m memory) []byte {
	t.Helper()
	var b bytes.Buffer
	_, err := store.Backup(context.Background(), m, &b, store.BackupOptions{Sealer: backupSealer(t, 1), Now: backupTime, Skip: isSession})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func restore(t testing.TB, m memory, r io.Reader) (store.BackupInfo, error) {
	t.Helper()
	return store.Restore(context.Background(), m, r, store.RestoreOptions{Sealer: backupSealer(t, 1), Now: backupTime.Add(time.Hour)})
}

func usable(m memory) error { return m.View(context.Background(), store.CheckUsable) }

func TestBackup(t *testing.T) {
	const n = 2000
	from := filled(t, n)
	var file bytes.Buffer
	info, err := store.Backup(t.Context(), from, &file, store.BackupOptions{
		Sealer: backupSealer(t, 1), Now: backupTime.In(time.FixedZone("", 3600)), Skip: isSession,
	})
	if err != nil || info.Entries != n+2 || info.Skipped != n || info.Created != backupTime {
		t.Fatalf("backup: %+v, %v", info, err)
	}
	if bytes.Contains(file.Bytes(), []byte("intent")) || bytes.Contains(file.Bytes(), []byte("acme")) {
		t.Error("the backup shows keys")
	}

	to := memory{string(store.StoreKey("engine")): []byte("another")}
	old, err := store.MarkRestored(t.Context(), to, rand.Reader, backupTime, "a test")
	if err != nil {
		t.Fatal(err)
	}
	got, err := restore(t, to, iotest.OneByteReader(bytes.NewReader(file.Bytes())))
	if err != nil || got.Entries != n+2 || got.Created != backupTime {
		t.Fatalf("restore: %+v, %v", got, err)
	}
	if err := usable(to); err != nil {
		t.Error(err)
	}
	var guard store.Guard
	if err := to.View(t.Context(), func(tx store.Tx) (err error) { guard, err = store.ReadGuard(tx); return err }); err != nil {
		t.Fatal(err)
	}
	if now := backupTime.Add(time.Hour); guard.Generation == old.Generation || !guard.Restored.Equal(now) || !guard.Cutoff.Equal(now) {
		t.Errorf("guard %+v", guard)
	}
	maps.DeleteFunc(from, func(k string, _ []byte) bool {
		return isSession([]byte(k)) || strings.HasPrefix(k, string(store.StoreKey()))
	})
	if string(to[string(store.StoreKey("engine"))]) != "another" {
		t.Error("the store's own records came from the backup")
	}
	maps.DeleteFunc(to, func(k string, _ []byte) bool { return strings.HasPrefix(k, string(store.StoreKey())) })
	if !maps.EqualFunc(from, to, bytes.Equal) {
		t.Errorf("%d records became %d, or others", len(from), len(to))
	}

	// A key that was rotated opens it still; another one does not.
	after := memory{}
	if _, err := store.Restore(t.Context(), after, bytes.NewReader(file.Bytes()), store.RestoreOptions{Sealer: backupSealer(t, 2, 1), Now: backupTime}); err != nil {
		t.Errorf("with the previous key: %v", err)
	}
	empty := memory{}
	if _, err := store.Restore(t.Context(), empty, bytes.NewReader(file.Bytes()), store.RestoreOptions{Sealer: backupSealer(t, 2), Now: backupTime}); !errors.Is(err, store.ErrSealed) || len(empty) > 0 {
		t.Errorf("with another key: %v, and %d records", err, len(empty))
	}
}

func TestBackupOfNothing(t *testing.T) {
	to := memory{}
	if info, err := restore(t, to, bytes.NewReader(backup(t, memory{}))); err != nil || info.Entries != 0 || len(to) != 1 {
		t.Errorf("%+v, %v, %d records", info, err, len(to))
	}
}

func TestRestoreIntoFullStore(t *testing.T) {
	file := backup(t, filled(t, 3))
	for _, key := range [][]byte{store.Key("a"), []byte("\x00\xFF"), []byte("\xFF")} {
		m := memory{string(store.StoreKey("x")): nil, string(key): []byte("1")}
		if _, err := restore(t, m, bytes.NewReader(file)); !errors.Is(err, store.ErrNotEmpty) || len(m) != 2 {
			t.Errorf("with %q: %v, %d records", key, err, len(m))
		}
	}
}

// split cuts a backup into its head and its chunks.
func split(t testing.TB, file []byte) (head []byte, chunks [][]byte) {
	t.Helper()
	at := bytes.IndexByte(file, '\n') + 1 + 16
	head = file[:at]
	for at < len(file) {
		n := 5 + int(binary.BigEndian.Uint32(file[at+1:]))
		chunks = append(chunks, file[at:at+n])
		at += n
	}
	return head, chunks
}

func join(head []byte, chunks ...[]byte) []byte {
	return append(bytes.Clone(head), bytes.Join(chunks, nil)...)
}

func TestRestoreRefuses(t *testing.T) {
	m := filled(t, 500)
	file := backup(t, m)
	head, c := split(t, file)
	if len(c) < 5 {
		t.Fatalf("%d chunks", len(c))
	}
	otherHead, other := split(t, backup(t, m))
	last := len(c) - 1
	notLast := bytes.Clone(c[1])
	notLast[0] = 1
	long := bytes.Clone(c[1])
	binary.BigEndian.PutUint32(long[1:], 1<<32-1)
	cases := map[string][]byte{
		"nothing":                 nil,
		"another file":            []byte(strings.Repeat("not a backup ", 10)),
		"only the name":           head,
		"without its end":         join(head, c[:last]...),
		"only its end":            join(head, c[last]),
		"without its head":        join(head, c[1:]...),
		"without a chunk":         join(head, append(slices.Clone(c[:2]), c[3:]...)...),
		"two chunks exchanged":    join(head, append([][]byte{c[0], c[2], c[1]}, c[3:]...)...),
		"a chunk twice":           join(head, append([][]byte{c[0], c[1], c[1]}, c[2:]...)...),
		"a chunk of another one":  join(head, append([][]byte{c[0], other[1]}, c[2:]...)...),
		"all chunks of another":   join(head, other...),
		"name of another":         join(otherHead, c...),
		"end of another":          join(head, append(slices.Clone(c[:last]), other[last])...),
		"a chunk called the last": join(head, c[0], notLast),
		"something behind it":     append(bytes.Clone(file), 0),
		"twice":                   append(bytes.Clone(file), file...),
		"a chunk of 4 GiB":        join(head, c[0], long),
	}
	for name, file := range cases {
		to := memory{}
		_, err := restore(t, to, bytes.NewReader(file))
		checkRefused(t, name, to, err)
		// A store that says so is refused until it is emptied.
		if len(to) > 0 {
			if _, err := restore(t, to, bytes.NewReader(backup(t, memory{}))); !errors.Is(err, store.ErrNotEmpty) || !errors.Is(err, store.ErrRestoring) {
				t.Errorf("%s: restoring again: %v", name, err)
			}
			if _, err := store.Backup(t.Context(), to, io.Discard, store.BackupOptions{Sealer: backupSealer(t, 1)}); !errors.Is(err, store.ErrRestoring) {
				t.Errorf("%s: backing it up: %v", name, err)
			}
		}
	}
}

func checkRefused(t *testing.T, what string, to memory, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrBadBackup) {
		t.Errorf("%s: %v, want ErrBadBackup", what, err)
	}
	if got := usable(to); len(to) > 0 && !errors.Is(got, store.ErrRestoring) {
		t.Errorf("%s: %d records, and the store says %v", what, len(to), got)
	}
	if _, ok := to[string(store.GuardKey())]; ok {
		t.Errorf("%s: the restore counts", what)
	}
}

// Every byte that is changed and every length it is cut to is found.
func TestRestoreDamaged(t *testing.T) {
	file := backup(t, memory{string(store.Key("acme", "intent")): []byte("value")})
	for i := range file {
		to := memory{}
		_, err := restore(t, to, bytes.NewReader(file[:i]))
		checkRefused(t, fmt.Sprintf("cut to %d", i), to, err)

		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		to = memory{}
		_, err = restore(t, to, bytes.NewReader(bad))
		checkRefused(t, fmt.Sprintf("byte %d", i), to, err)
	}
	// A disk that cannot be read says nothing about the backup.
	broken := errors.New("input/output error")
	if _, err := restore(t, memory{}, io.MultiReader(bytes.NewReader(file[:60]), iotest.ErrReader(broken))); !errors.Is(err, broken) || errors.Is(err, store.ErrBadBackup) {
		t.Errorf("unreadable: %v", err)
	}
}

// forge seals a text that Backup would not write.
func forge(t testing.TB, texts ...string) []byte {
	t.Helper()
	const magic = "billing-portal backup 1\n"
	id := strings.Repeat("i", 16)
	out := []byte(magic + id)
	for i, text := range texts {
		flag := byte(0)
		if i == len(texts)-1 {
			flag = 1
		}
		aad := binary.BigEndian.AppendUint64([]byte("\x00\x00"+magic+id), uint64(i))
		sealed := backupSealer(t, 1).Seal(append(aad, flag), []byte(text))
		out = append(out, flag)
		out = binary.BigEndian.AppendUint32(out, uint32(len(sealed)))
		out = append(out, sealed...)
	}
	return out
}

// What is sealed is looked at, too: the key may be in other hands.
func TestRestoreForged(t *testing.T) {
	const head = `{"created":"2026-01-01T00:00:00Z"}`
	if _, err := restore(t, memory{}, bytes.NewReader(forge(t, head, "\x01\x01ab\x01\x00c", `{"entries":2}`))); err != nil {
		t.Fatalf("a sound one: %v", err)
	}
	guard := string(store.GuardKey())
	for name, texts := range map[string][]string{
		"head":            {"{", `{"entries":0}`},
		"no end":          {head, "{"},
		"count":           {head, "\x01\x01ab", `{"entries":2}`},
		"order":           {head, "\x01\x00b\x01\x00a", `{"entries":2}`},
		"same key":        {head, "\x01\x00a\x01\x00a", `{"entries":2}`},
		"order of chunks": {head, "\x01\x00b", "\x01\x00a", `{"entries":2}`},
		"no key":          {head, "\x00\x00", `{"entries":1}`},
		"too short":       {head, "\x05\x05ab", `{"entries":1}`},
		"no lengths":      {head, "\xFF", `{"entries":1}`},
		"key length":      {head, string(binary.AppendUvarint(nil, 1<<63)), `{"entries":1}`},
		"value length":    {head, "\x01\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01a", `{"entries":1}`},
		"guard":           {head, string(rune(len(guard))) + "\x00" + guard, `{"entries":1}`},
	} {
		to := memory{}
		_, err := restore(t, to, bytes.NewReader(forge(t, texts...)))
		checkRefused(t, name, to, err)
	}
}

func TestBackupFails(t *testing.T) {
	m := filled(t, 500)
	full := errors.New("no space left on device")
	if _, err := store.Backup(t.Context(), m, &failingWriter{left: 300 << 10, err: full}, store.BackupOptions{Sealer: backupSealer(t, 1)}); !errors.Is(err, full) {
		t.Errorf("a writer that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Backup(ctx, m, io.Discard, store.BackupOptions{Sealer: backupSealer(t, 1)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := store.Backup(t.Context(), m, io.Discard, store.BackupOptions{Sealer: backupSealer(t, 1), Random: strings.NewReader("")}); err == nil {
		t.Error("a backup without a name")
	}
}

type failingWriter struct {
	left int
	err  error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, w.err
	}
	return len(p), nil
}

func FuzzRestore(f *testing.F) {
	file := backup(f, filled(f, 20))
	head, c := split(f, file)
	f.Add(file)
	f.Add(join(head, c[1:]...))
	f.Add(join(head, c[0], c[len(c)-1]))
	f.Add(forge(f, `{"created":"2026-01-01T00:00:00Z"}`, "\x01\x00b\x01\x00a", `{"entries":2}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		to := memory{}
		info, err := restore(t, to, bytes.NewReader(in))
		if err != nil {
			checkRefused(t, "input", to, err)
			return
		}
		if len(to) != info.Entries+1 || usable(to) != nil {
			t.Fatalf("%d entries became %d records", info.Entries, len(to)-1)
		}
	})
}
