package badger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	bdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"go.uber.org/zap"
)

// Badger trusts its files more than a disk deserves. It goes on without a
// table whose checksum is wrong, cuts a log off at the first byte it does not
// like, deletes the tables that an older MANIFEST does not name, and ends the
// process over some of what it does not understand. Here the files are looked
// at first, and nothing is changed while any of them is in doubt.

const (
	// wayOut is what can be done about a damaged store.
	wayOut = "restore a backup, or move the directory away to begin with an empty store: redirect tokens from before are then refused, and sessions and the journal are gone"

	copyHint = " (if the directory is a restored copy, remove " + stateFile + " to say so)"

	// walSize is how long Badger makes a write-ahead log when it begins one.
	walSize = 2 * memTableSize

	// walHeader is the length of the header of write-ahead and value logs:
	// 8 bytes key id (0: not encrypted by Badger) and a 12-byte vector.
	walHeader = 20

	walBitFin = 1 << 7 // in an entry's meta byte: the end of a transaction
	walBitTxn = 1 << 6 // part of a transaction
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func damaged(dir, file, what string) error {
	return fmt.Errorf("opening the store: %s is damaged: %s: %s", filepath.Join(dir, file), what, wayOut)
}

// checkFiles looks at the files in dir before Badger does, and removes those
// that Badger makes anew and that hold nothing of ours. It returns an error
// that names the file where something that was acknowledged is missing for
// certain, and a reason where it may be. The directory is locked.
func checkFiles(dir string, st *state, log *zap.Logger) (doubt string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("opening the store: %w", err)
	}
	var wals, tables []uint64
	manifest, other := false, ""
	for _, e := range entries {
		switch name := e.Name(); name {
		case bdb.ManifestFilename:
			manifest = true
		case "LOCK", "MANIFEST-REWRITE", "lost+found", ballastFile:
			// What a crash before the first write leaves, or a fresh file system.
		default:
			other = name
			if id, ok := fileID(name, ".mem"); ok {
				wals = append(wals, id)
			}
			if id, ok := fileID(name, ".sst"); ok {
				tables = append(tables, id)
			}
		}
	}
	if !manifest {
		if other != "" {
			return "", fmt.Errorf("opening the store: %s holds files (%s) but no %s: %s", dir, other, bdb.ManifestFilename, wayOut)
		}
		return "", nil
	}
	if st != nil && st.Clean {
		if err := checkClean(dir, st); err != nil {
			return "", err
		}
	}
	named, err := readManifest(dir)
	if err != nil {
		return "", err
	}
	newest, err := checkTables(dir, named, tables)
	if err != nil {
		return "", err
	}
	logged, doubt, err := checkWALs(dir, wals, newest, st == nil || st.Clean, st != nil && st.Closing)
	if err != nil {
		return "", err
	}
	// A table that the MANIFEST does not name was not finished, and Badger
	// deletes it: what is in it is still in a log, or in the tables it was made
	// of.
	for _, id := range tables {
		if _, ok := named[id]; ok {
			continue
		}
		version, err := checkTable(dir, id, new(bytes.Buffer))
		if err == nil && version > newest && (version < logged.first || version > logged.last) {
			return "", damaged(dir, bdb.ManifestFilename, fmt.Sprintf("it does not name %s, which holds what is nowhere else", tableName(id)))
		}
	}
	return doubt, dropIdle(dir, entries, log)
}

func fileID(name, ext string) (uint64, bool) {
	base, ok := strings.CutSuffix(name, ext)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(base, 10, 32)
	return id, err == nil
}

func walName(id uint64) string { return fmt.Sprintf("%05d.mem", id) }

func tableName(id uint64) string { return fmt.Sprintf("%06d.sst", id) }

// sumFiles describes the files that hold the data of a closed store: all of
// the MANIFEST, and the end of every table, where its index has its checksum.
func sumFiles(dir string) (map[string]string, error) {
	sums := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		tail := int64(math.MaxInt64)
		if _, ok := fileID(e.Name(), ".sst"); ok {
			tail = 4 << 10
		} else if e.Name() != bdb.ManifestFilename {
			continue
		}
		sum, err := sumFile(filepath.Join(dir, e.Name()), tail)
		if err != nil {
			return nil, err
		}
		sums[e.Name()] = sum
	}
	return sums, nil
}

// sumFile describes a file by its size and its last bytes.
func sumFile(path string, tail int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, max(0, fi.Size()-tail), fi.Size())); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d-%s", fi.Size(), hex.EncodeToString(h.Sum(nil)[:16])), nil
}

// checkClean checks that the files are those that were there when the store
// was closed cleanly.
func checkClean(dir string, st *state) error {
	if st.Files == nil {
		return nil // closed by a version that did not note them
	}
	sums, err := sumFiles(dir)
	if err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	for name, sum := range st.Files {
		switch now, ok := sums[name]; {
		case !ok:
			return damaged(dir, name, "it is missing"+copyHint)
		case now != sum:
			return damaged(dir, name, "it is not what it was when the store was closed"+copyHint)
		}
	}
	for name := range sums {
		if _, ok := st.Files[name]; !ok {
			return damaged(dir, name, "it was not there when the store was closed"+copyHint)
		}
	}
	return nil
}

// readManifest returns the tables that the MANIFEST names.
func readManifest(dir string) (tables map[uint64]bdb.TableManifest, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = damaged(dir, bdb.ManifestFilename, fmt.Sprint(r))
		}
	}()
	f, err := os.Open(filepath.Join(dir, bdb.ManifestFilename))
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	defer f.Close()
	m, _, err := bdb.ReplayManifestFile(f, 0, bdb.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		return nil, damaged(dir, bdb.ManifestFilename, err.Error())
	}
	return m.Tables, nil
}

// checkTables verifies every table that the MANIFEST names, and returns the
// newest version in them.
func checkTables(dir string, named map[uint64]bdb.TableManifest, there []uint64) (newest uint64, err error) {
	var buf bytes.Buffer
	for id, m := range named {
		if !slices.Contains(there, id) {
			return 0, damaged(dir, tableName(id), "it is missing")
		}
		if m.KeyID != 0 || m.Compression != options.None {
			return 0, fmt.Errorf("opening the store: the database in %s is not a billing portal's, or its %s is damaged (%s is said to be encrypted or compressed): %s", dir, bdb.ManifestFilename, tableName(id), wayOut)
		}
		version, err := checkTable(dir, id, &buf)
		if err != nil {
			return 0, err
		}
		newest = max(newest, version)
	}
	return newest, nil
}

// checkTable verifies all checksums of a table. Buf is scratch space.
func checkTable(dir string, id uint64, buf *bytes.Buffer) (version uint64, err error) {
	name := tableName(id)
	defer func() {
		// Badger's reader indexes with what it reads before it is checked.
		if r := recover(); r != nil {
			err = damaged(dir, name, "it is no table")
		}
	}()
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return 0, fmt.Errorf("opening the store: %w", err)
	}
	defer f.Close()
	buf.Reset()
	if _, err := buf.ReadFrom(f); err != nil {
		return 0, damaged(dir, name, err.Error())
	}
	t, err := table.OpenInMemoryTable(buf.Bytes(), id, &table.Options{ChkMode: options.NoVerification})
	if err == nil {
		err = t.VerifyChecksum()
	}
	if err != nil {
		return 0, damaged(dir, name, err.Error())
	}
	return t.MaxVersion(), nil
}

// checkWALs reads the write-ahead logs. An empty last one is the spare that
// the store keeps (see space) and is removed: Badger would not open it. A log
// may end in half a transaction, the one that was being written; whole ones
// behind it were acknowledged. Badger empties a log and then deletes it when a
// table holds what was in it; newest is the last version in tables. It returns the first and the last version in
// all of them. A store that is new or was closed has no logs,
// or what a process left that ended while it opened the store; one that was
// being closed may have an empty one.
func checkWALs(dir string, ids []uint64, newest uint64, closed, closing bool) (all wal, doubt string, err error) {
	slices.Sort(ids)
	var drop []string // empty ones
	emptied := ""
	for i, id := range ids {
		name := walName(id)
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return all, "", fmt.Errorf("opening the store: %w", err)
		}
		before := i > 0 && ids[i-1] == id-1
		switch {
		case i > 0 && !before:
			return all, "", damaged(dir, walName(id-1), "it is missing")
		case len(data) == 0 && i == len(ids)-1 && (closed || closing || before && emptied == ""):
			drop = append(drop, name)
			continue
		case len(data) == 0 && i < len(ids)-1:
			drop = append(drop, name)
			emptied = name
			continue
		case len(data) == 0:
			return all, "", damaged(dir, name, "it is empty, or the one before it is")
		case len(data) < walHeader:
			return all, "", damaged(dir, name, fmt.Sprintf("it has %d bytes", len(data)))
		case binary.BigEndian.Uint64(data) != 0:
			return all, "", damaged(dir, name, "its header is not one of ours")
		}
		w := readWAL(data)
		switch {
		case closed && w.last+uint64(w.after) > 0:
			return all, "", damaged(dir, name, "it was not there when the store was closed")
		case len(data) != walSize && w.end != len(data):
			return all, "", damaged(dir, name, "its end is missing")
		case w.after > 1:
			return all, "", damaged(dir, name, fmt.Sprintf("at least %d updates cannot be read from byte %d on", w.after, w.end))
		case w.after == 1, w.torn:
			// Written in another order than it was meant to be, before a power
			// failure, or damaged: the machine cannot tell. A process that is killed
			// leaves the beginning of an update, without the end that comes last.
			doubt = fmt.Sprintf("the last update in %s is damaged", name)
		}
		if w.first == 0 {
			// Badger would empty it first, and then delete it: this way it is
			// never seen empty.
			if w.after == 0 && (i == len(ids)-1 || i == len(ids)-2 && isEmpty(filepath.Join(dir, walName(ids[i+1])))) {
				drop = append(drop, name)
			}
			emptied = ""
			continue
		}
		if emptied != "" && newest < w.first-1 {
			return all, "", damaged(dir, emptied, "it is empty, and no table holds what was in it")
		}
		emptied = ""
		if before && all.last != 0 && w.first > all.last+1 {
			return all, "", damaged(dir, walName(ids[i-1]), "its last updates are missing")
		}
		if all.first == 0 {
			all.first = w.first
		}
		all.last = w.last
	}
	for _, name := range slices.Backward(drop) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return all, "", fmt.Errorf("opening the store: %w", err)
		}
	}
	return all, doubt, nil
}

func isEmpty(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Size() == 0
}

// wal is what a write-ahead log holds.
type wal struct {
	first, last uint64 // versions of the transactions; 0 for none
	end         int    // where the last whole transaction ends
	after       int    // ends of transactions that can be found behind it
	torn        bool   // the end of one, damaged, follows the last whole entry
}

// readWAL reads a write-ahead log as Badger will. An entry is: meta, user meta,
// key length, value length and expiry as varints, key, value, CRC-32C. A key
// ends with 8 bytes, the complement of its version.
func readWAL(data []byte) wal {
	w := wal{end: walHeader}
	pending := uint64(0)
	at := walHeader
	for {
		e, ok := readWALEntry(data[at:])
		if !ok {
			break
		}
		at += e.size
		switch {
		case e.meta&walBitTxn != 0:
			if pending != 0 && pending != e.version {
				return w.look(data)
			}
			pending = e.version
			continue
		case e.meta&walBitFin != 0:
			if v, err := strconv.ParseUint(string(e.value), 10, 64); err != nil || v != pending {
				return w.look(data)
			}
		case pending != 0:
			return w.look(data)
		}
		pending = 0
		w.end = at
		if w.first == 0 {
			w.first = e.version
		}
		w.last = max(w.last, e.version)
	}
	w.torn = nearMark(data[at:])
	return w.look(data)
}

// walMark is the key of the entry that ends a transaction.
var walMark = []byte("!badger!txn")

// nearMark reports whether the key of such an entry is in data, one byte of it
// damaged at most.
func nearMark(data []byte) bool {
	data = bytes.TrimRight(data, "\x00")
	for i := 0; i+len(walMark) <= len(data); i++ {
		wrong := 0
		for j, c := range walMark {
			if data[i+j] != c {
				wrong++
			}
		}
		if wrong <= 1 {
			return true
		}
	}
	return false
}

// look searches for ends of transactions behind w.end.
func (w wal) look(data []byte) wal {
	rest := data[w.end:]
	for {
		i := bytes.Index(rest, walMark)
		if i < 0 {
			return w
		}
		// The five bytes before it are the header: none of these numbers needs
		// more than one.
		if i >= 5 {
			if e, ok := readWALEntry(rest[i-5:]); ok && e.meta&walBitFin != 0 {
				w.after++
			}
		}
		rest = rest[i+len(walMark):]
	}
}

type walEntry struct {
	meta    byte
	version uint64
	value   []byte
	size    int
}

func readWALEntry(b []byte) (e walEntry, ok bool) {
	if len(b) < 2 {
		return e, false
	}
	e.meta = b[0]
	at := 2
	var n [3]uint64 // key length, value length, expiry
	for i := range n {
		v, size := binary.Uvarint(b[at:])
		if size <= 0 {
			return e, false
		}
		n[i] = v
		at += size
	}
	if n[0] < 8 || n[0] > 1<<16 || n[1] > math.MaxInt32 || uint64(len(b)-at) < n[0]+n[1]+crc32.Size {
		return e, false
	}
	key := b[at : at+int(n[0])]
	at += int(n[0])
	e.value = b[at : at+int(n[1])]
	at += int(n[1])
	if crc32.Checksum(b[:at], castagnoli) != binary.BigEndian.Uint32(b[at:]) {
		return e, false
	}
	e.version = math.MaxUint64 - binary.BigEndian.Uint64(key[len(key)-8:])
	e.size = at + crc32.Size
	return e, true
}

// dropIdle removes files that Badger wants to be sound and that hold nothing:
// no value is long enough for the value log, DISCARD is statistics about it,
// and KEYREGISTRY has no keys, since the store seals the values itself.
func dropIdle(dir string, entries []fs.DirEntry, log *zap.Logger) error {
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		idle, err := false, error(nil)
		switch name := e.Name(); {
		case name == "KEYREGISTRY":
			var b []byte
			b, err = os.ReadFile(path)
			idle = err == nil && (len(b) != 28 || string(b[16:]) != "Hello Badger")
		case name == "DISCARD":
			idle, err = empty(path, 0)
			fi, serr := e.Info()
			idle = err == nil && serr == nil && (!idle || fi.Size() != 1<<20)
		case filepath.Ext(name) == ".vlog":
			idle, err = empty(path, walHeader)
		}
		if err == nil && idle {
			log.Debug("removing a file of Badger's that holds nothing", zap.String("file", path))
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("opening the store: %w", err)
		}
	}
	return nil
}

// empty reports whether a file has nothing but zeros from byte on.
func empty(path string, from int64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return false, err
	}
	var b, zeros [64 << 10]byte
	for {
		n, err := f.Read(b[:])
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}
