package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// A backup is a line that names the format, 16 random bytes that name the
// file, and chunks. A chunk is 1 byte (1 for the last one, else 0), the length
// of the rest as 4 bytes, and a sealed text (see Sealer) whose associated data
// is the name of the file, the chunk's number and that first byte: a chunk
// that is missing, repeated, in another place or from another file does not
// open. The first text is a backupHead, the last one a backupTail, both in
// JSON, and those between are entries in key order: the lengths of key and
// value as varints, then both.
const (
	backupMagic = "billing-portal backup 1\n"
	backupID    = 16

	// backupChunk is how long the text of a chunk becomes, before the entry
	// that is one too many.
	backupChunk = 256 << 10

	// backupChunkMax is the longest text there can be.
	backupChunkMax = backupChunk + MaxKey + MaxValue + 2*binary.MaxVarintLen32

	// backupPage is about how much of the store is in memory at a time.
	backupPage = 2 << 20

	// restoreBatch is how much one update writes.
	restoreBatch        = 512 << 10
	restoreBatchEntries = 2000
)

var (
	// ErrNotEmpty says that a backup was to be restored into a store that
	// holds records, or that a restore did not finish in. Nothing was changed.
	ErrNotEmpty = errors.New("store: not empty; a backup is restored into an empty store only")

	// ErrBadBackup says that a backup is damaged or incomplete, or was not
	// made by this program.
	ErrBadBackup = errors.New("store: not a sound backup")

	// ErrRestoring says that a restore into the store did not finish.
	ErrRestoring = errors.New("store: a restore into it did not finish: empty it, then restore again")
)

// BackupInfo describes a backup.
type BackupInfo struct {
	// Created is when the backup was made, by the portal's clock.
	Created time.Time

	// Entries is how many records are in it; Skipped how many were left out,
	// which only Backup knows.
	Entries, Skipped int
}

// BackupOptions are what Backup needs.
type BackupOptions struct {
	// Sealer seals the backup. Required. Who restores it needs the same key.
	Sealer *Sealer

	// Now is the time to note.
	Now time.Time

	// Random is where the file's name comes from. Default: crypto/rand.Reader.
	Random io.Reader

	// Skip says which records to leave out, by their key. Default: none. The
	// store's own records are never in a backup.
	Skip func(key []byte) bool
}

type backupHead struct {
	Created time.Time `json:"created"`
}

type backupTail struct {
	Entries int `json:"entries"`
}

// restoringKey is the key of a record that is there from the beginning of a
// restore to its end.
func restoringKey() []byte { return StoreKey("restoring") }

// CheckUsable returns ErrRestoring for a store that a restore did not finish
// in. Call it before relying on what is in a store.
func CheckUsable(tx Tx) error {
	_, err := tx.Get(restoringKey())
	switch {
	case err == nil:
		return ErrRestoring
	case errors.Is(err, ErrNotFound):
		return nil
	}
	return fmt.Errorf("store: looking for a restore that did not finish: %w", err)
}

// Backup writes what is in s at one moment to w, sealed, but for what Skip
// names and the store's own records. Updates go on meanwhile. A backup that
// ended with an error is not complete, and Restore will say so.
func Backup(ctx context.Context, s Store, w io.Writer, o BackupOptions) (BackupInfo, error) {
	if o.Random == nil {
		o.Random = rand.Reader
	}
	info := BackupInfo{Created: o.Now.UTC().Round(0)}
	out := &backupWriter{w: w, sealer: o.Sealer}
	ran := false
	err := s.View(ctx, func(tx Tx) error {
		if ran { // what is written cannot be taken back
			return errors.New("the snapshot was lost")
		}
		ran = true
		if err := CheckUsable(tx); err != nil {
			return err
		}
		if err := out.begin(o.Random); err != nil {
			return err
		}
		if err := out.json(backupHead{info.Created}, false); err != nil {
			return err
		}
		if err := eachEntry(ctx, tx, func(e Entry) error {
			if o.Skip != nil && o.Skip(e.Key) {
				info.Skipped++
				return nil
			}
			info.Entries++
			return out.entry(e)
		}); err != nil {
			return err
		}
		if err := out.flush(); err != nil {
			return err
		}
		return out.json(backupTail{info.Entries}, true)
	})
	if err != nil {
		return info, fmt.Errorf("store: backing up: %w", err)
	}
	return info, nil
}

// eachEntry calls fn with every record that is not the store's own, in order.
func eachEntry(ctx context.Context, tx Tx, fn func(Entry) error) error {
	own := StoreKey()
	var from []byte
	for limit := 64; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, err := tx.Scan(nil, from, limit, false)
		if err != nil {
			return err
		}
		size := 0
		for _, e := range page {
			size += len(e.Key) + len(e.Value)
			if bytes.HasPrefix(e.Key, own) {
				continue
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		if len(page) < limit {
			return nil
		}
		from = append(bytes.Clone(page[len(page)-1].Key), 0)
		limit = min(max(backupPage/(size/len(page)+1), backupPage/MaxValue), 10_000)
	}
}

// backupWriter writes chunks.
type backupWriter struct {
	w      io.Writer
	sealer *Sealer
	id     [backupID]byte
	n      uint64 // number of the next chunk
	text   []byte // of the next chunk
}

func (b *backupWriter) begin(random io.Reader) error {
	if _, err := io.ReadFull(random, b.id[:]); err != nil {
		return err
	}
	_, err := b.w.Write(append([]byte(backupMagic), b.id[:]...))
	return err
}

func (b *backupWriter) entry(e Entry) error {
	b.text = binary.AppendUvarint(b.text, uint64(len(e.Key)))
	b.text = binary.AppendUvarint(b.text, uint64(len(e.Value)))
	b.text = append(append(b.text, e.Key...), e.Value...)
	if len(b.text) < backupChunk {
		return nil
	}
	return b.flush()
}

func (b *backupWriter) flush() error {
	if len(b.text) == 0 {
		return nil
	}
	text := b.text
	b.text = b.text[:0]
	return b.chunk(text, false)
}

func (b *backupWriter) json(v any, last bool) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.chunk(text, last)
}

func (b *backupWriter) chunk(text []byte, last bool) error {
	head, aad := chunkHead(b.id, b.n, last)
	b.n++
	sealed := b.sealer.Seal(aad, text)
	binary.BigEndian.PutUint32(head[1:], uint32(len(sealed)))
	if _, err := b.w.Write(head[:]); err != nil {
		return err
	}
	_, err := b.w.Write(sealed)
	return err
}

// chunkHead returns what stands before a chunk, without its length, and what
// is sealed with it. No key of a record begins like that.
func chunkHead(id [backupID]byte, n uint64, last bool) (head [5]byte, aad []byte) {
	if last {
		head[0] = 1
	}
	aad = append([]byte("\x00\x00"+backupMagic), id[:]...)
	aad = binary.BigEndian.AppendUint64(aad, n)
	return head, append(aad, head[0])
}

// backupReader reads chunks.
type backupReader struct {
	r      io.Reader
	sealer *Sealer
	id     [backupID]byte
	n      uint64
}

func (b *backupReader) begin() error {
	var magic [len(backupMagic)]byte
	if _, err := io.ReadFull(b.r, magic[:]); err != nil {
		return badBackup(err, "it is too short")
	}
	if string(magic[:]) != backupMagic {
		return fmt.Errorf("%w: it does not begin like one of this version", ErrBadBackup)
	}
	if _, err := io.ReadFull(b.r, b.id[:]); err != nil {
		return badBackup(err, "it is too short")
	}
	return nil
}

// badBackup tells an end that comes too early from a file that cannot be read.
func badBackup(err error, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s", ErrBadBackup, what)
	}
	return fmt.Errorf("store: reading a backup: %w", err)
}

// next returns the text of the next chunk and whether it is the last one. It
// then has made sure that nothing follows.
func (b *backupReader) next() (text []byte, last bool, err error) {
	var got [5]byte
	if _, err := io.ReadFull(b.r, got[:]); err != nil {
		return nil, false, badBackup(err, "its end is missing")
	}
	last = got[0] == 1
	head, aad := chunkHead(b.id, b.n, last)
	size := binary.BigEndian.Uint32(got[1:])
	if head[0] != got[0] || size > backupChunkMax+SealOverhead {
		return nil, false, fmt.Errorf("%w: chunk %d is damaged", ErrBadBackup, b.n)
	}
	sealed := make([]byte, size)
	if _, err := io.ReadFull(b.r, sealed); err != nil {
		return nil, false, badBackup(err, "its end is missing")
	}
	text, err = b.sealer.Open(aad, sealed)
	if err != nil {
		return nil, false, fmt.Errorf("%w: chunk %d: %w", ErrBadBackup, b.n, err)
	}
	b.n++
	if last {
		if _, err := io.ReadFull(b.r, got[:1]); !errors.Is(err, io.EOF) {
			return nil, false, fmt.Errorf("%w: something follows its end", ErrBadBackup)
		}
	}
	return text, last, nil
}

// readEntries calls fn with the entries in the text of a chunk.
func readEntries(text []byte, fn func(Entry) error) error {
	for len(text) > 0 {
		var n [2]uint64
		for i := range n {
			v, size := binary.Uvarint(text)
			if size <= 0 {
				return fmt.Errorf("%w: an entry without lengths", ErrBadBackup)
			}
			n[i] = v
			text = text[size:]
		}
		if n[0] == 0 || n[0] > MaxKey || n[1] > MaxValue || n[0]+n[1] > uint64(len(text)) {
			return fmt.Errorf("%w: an entry of %d and %d bytes", ErrBadBackup, n[0], n[1])
		}
		e := Entry{Key: text[:n[0]:n[0]], Value: text[n[0] : n[0]+n[1] : n[0]+n[1]]}
		text = text[n[0]+n[1]:]
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// RestoreOptions are what Restore needs.
type RestoreOptions struct {
	// Sealer opens the backup. Required.
	Sealer *Sealer

	// Now is when the store begins a new generation (see Guard).
	Now time.Time

	// Random is where the generation comes from. Default: crypto/rand.Reader.
	Random io.Reader
}

// Restore fills s, which must be empty, from a backup. The store then begins a
// new generation and is marked as restored (see Guard.Restored). It returns
// ErrNotEmpty for a store that holds anything but its own records.
//
// A backup is known to be sound and complete at its end only. When Restore
// fails, or the process ends meanwhile, the store holds a part of the backup
// and says so: CheckUsable returns ErrRestoring, and the store must be emptied.
func Restore(ctx context.Context, s Store, r io.Reader, o RestoreOptions) (BackupInfo, error) {
	if o.Random == nil {
		o.Random = rand.Reader
	}
	info, err := restore(ctx, s, r, o)
	if err != nil {
		return info, fmt.Errorf("store: restoring: %w", err)
	}
	return info, nil
}

func restore(ctx context.Context, s Store, r io.Reader, o RestoreOptions) (BackupInfo, error) {
	guard, err := NewGuard(o.Random, o.Now, "a backup was restored")
	if err != nil {
		return BackupInfo{}, err
	}
	guard.Restored = guard.Cutoff

	// The first chunk tells a wrong key or a wrong file, and the store is then
	// still as it was.
	in := &backupReader{r: r, sealer: o.Sealer}
	if err := in.begin(); err != nil {
		return BackupInfo{}, err
	}
	var head backupHead
	text, last, err := in.next()
	if err != nil {
		return BackupInfo{}, err
	}
	if err := json.Unmarshal(text, &head); err != nil || last {
		return BackupInfo{}, fmt.Errorf("%w: it has no head", ErrBadBackup)
	}
	info := BackupInfo{Created: head.Created}

	if err := s.Update(ctx, func(tx Tx) error {
		if err := CheckUsable(tx); err != nil {
			return fmt.Errorf("%w: %w", ErrNotEmpty, err)
		}
		if err := eachEntry(ctx, tx, func(Entry) error { return ErrNotEmpty }); err != nil {
			return err
		}
		return tx.Put(restoringKey(), []byte{})
	}); err != nil {
		return info, err
	}

	var batch []Entry
	size := 0
	write := func() error {
		entries := batch
		batch, size = nil, 0
		if len(entries) == 0 {
			return nil
		}
		return s.Update(ctx, func(tx Tx) error {
			for _, e := range entries {
				if err := tx.Put(e.Key, e.Value); err != nil {
					return err
				}
			}
			return nil
		})
	}
	own := StoreKey()
	var before []byte
	take := func(e Entry) error {
		if bytes.HasPrefix(e.Key, own) || before != nil && bytes.Compare(e.Key, before) <= 0 {
			return fmt.Errorf("%w: a record in the wrong place", ErrBadBackup)
		}
		before = e.Key
		info.Entries++
		batch = append(batch, e)
		if size += len(e.Key) + len(e.Value); size < restoreBatch && len(batch) < restoreBatchEntries {
			return nil
		}
		return write()
	}
	for {
		if text, last, err = in.next(); err != nil {
			return info, err
		}
		if last {
			break
		}
		if err := readEntries(text, take); err != nil {
			return info, err
		}
	}
	var tail backupTail
	if err := json.Unmarshal(text, &tail); err != nil || tail.Entries != info.Entries {
		return info, fmt.Errorf("%w: it does not hold as many records as it says", ErrBadBackup)
	}
	if err := write(); err != nil {
		return info, err
	}
	return info, s.Update(ctx, func(tx Tx) error {
		if err := tx.Delete(restoringKey()); err != nil {
			return err
		}
		return WriteGuard(tx, guard)
	})
}
