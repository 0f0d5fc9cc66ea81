package badger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	bdb "github.com/dgraph-io/badger/v4"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Badger writes into memory-mapped files that it makes long and empty. Where
// the disk has no block for a page that is written, the system ends the
// process with SIGBUS: the whole web server, since nothing can catch it. It is
// avoided like this:
//
//   - The write-ahead log gets its blocks before it is used. Badger takes the
//     file with the next number for its next one, so that file is kept ready:
//     the spare, of length 0 and with all its blocks.
//   - The value log and DISCARD are written when the store opens, and not again.
//   - Tables get their blocks when they are written, by a flush (one memtable)
//     or a compaction. An update, and so a flush that it may cause, is let
//     through as long as lowWater is free. A compaction stops before each of
//     its tables (waitForRoom) until there is room for it.
//   - The ballast, a file with blocks of its own, is given up when less than
//     giveUp is free, or when a compaction waits, so that what was begun can
//     be finished. Updates are refused until it can be made again.
//   - The MANIFEST is written in the ordinary way, but half a record would spoil
//     it; it gets blocks in advance, too.
//
// From the moment that an update or a table was let through until its table is
// written, others may take lowWater less flushRoom, 66 MiB, and the ballast's
// 64 MiB: at 50 MB/s that lasts 2.7 s, where Badger takes about 0.1 s.
//
// File systems that write to new blocks each time (btrfs, ZFS) take reserved
// blocks as a promise at most: give the store a volume of its own there.
const (
	// DefaultBallast is the size of the ballast, in bytes: as much again as
	// all that can be under way when it is needed.
	DefaultBallast = 64 << 20

	// walRoom is what is written to a write-ahead log: it is full at
	// memTableSize, and one batch more.
	walRoom = memTableSize + memTableSize/4

	// flushRoom is what flushes may write that are under way: the memtable in
	// use, and those that wait.
	flushRoom = (numMemtables + 1) * walRoom

	// lowWater is what must be free for an update.
	lowWater = 96 << 20

	// giveUp is what must be free or the ballast is given up. It and the
	// ballast together are no more than lowWater, so that this alone does not
	// let updates through.
	giveUp = 32 << 20

	// tableTime is how long a table that was let through counts as not written
	// yet.
	tableTime = 2 * time.Second

	// manifestRoom is kept ready for the MANIFEST; a flush or compaction writes
	// about 50 bytes for each table.
	manifestRoom = 256 << 10

	// fastest is the filler that the watcher reckons with, in bytes per second:
	// it looks again before that one can have come to the next mark, but at
	// least every slowest and not before quickest.
	fastest  = 1 << 30
	slowest  = 250 * time.Millisecond
	quickest = 2 * time.Millisecond

	ballastFile = "portal.ballast"
)

// disk is what a file system says about itself.
type disk struct {
	free     int64 // bytes for us
	readOnly bool
}

// space watches the room on the disk.
type space struct {
	dir     string
	log     *zap.Logger
	ballast int64 // size; 0 for none
	stat    func(dir string) (disk, bool)

	db     atomic.Pointer[bdb.DB]
	stopCh chan struct{}
	loop   sync.WaitGroup
	kick   chan struct{} // look now

	mu      sync.Mutex
	held    *os.File // the ballast
	givenUp bool     // it was, and updates wait until it is back
	low     bool     // reported
	bare    bool     // reported that there is no ballast
	tables  []grant  // let through, and not written yet, perhaps
	ready   int64    // bytes of the MANIFEST that have blocks
	waiting atomic.Int64
	retries atomic.Int64 // of flushes that failed

	// The turn guards these.
	spare       *os.File
	spareID     uint64
	unsupported bool // the file system cannot reserve blocks
}

type grant struct {
	at   time.Time
	size int64
}

func newSpace(dir string, o Options) *space {
	sp := &space{
		dir: dir, log: o.Logger, ballast: o.Ballast, stat: o.stat,
		stopCh: make(chan struct{}), kick: make(chan struct{}, 1),
	}
	switch {
	case sp.ballast == 0:
		sp.ballast = DefaultBallast
	case sp.ballast < 0:
		sp.ballast = 0
	}
	return sp
}

// enoughToOpen refuses to open a store on a disk that is nearly full: Badger
// makes its files then, and flushes what it finds in logs. The directory may
// not exist yet.
func enoughToOpen(dir string, o Options) error {
	at := dir
	for at != filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil {
			break
		}
		at = filepath.Dir(at)
	}
	d, ok := o.stat(at)
	switch {
	case ok && d.readOnly:
		return fmt.Errorf("opening the store: %w", readOnlyError(dir))
	case ok && d.free < lowWater:
		return fmt.Errorf("opening the store: %w", fullError(dir, d.free, lowWater))
	}
	return nil
}

func fullError(dir string, free, need int64) error {
	return fmt.Errorf("%w in %s: %d MiB are left, %d MiB are needed", ErrDiskFull, dir, free>>20, need>>20)
}

func readOnlyError(dir string) error {
	return fmt.Errorf("%w: the file system of %s is read-only; repair it and mount it for writing", store.ErrUnavailable, dir)
}

// start reserves what the store needs and begins to watch. Badger is open.
func (sp *space) start(db *bdb.DB) error {
	sp.db.Store(db)
	active, id, err := sp.activeWAL()
	if err != nil {
		return err
	}
	err = reserve(active, walRoom)
	if cerr := active.Close(); err == nil {
		err = cerr
	}
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		sp.unsupported = true
		sp.log.Warn("the file system cannot reserve blocks; the process may end when the disk is filled quickly", zap.String("dir", sp.dir))
	case err != nil:
		return fmt.Errorf("opening the store: reserving room in %s: %w", sp.dir, err)
	default:
		if err := sp.makeSpare(id + 1); err != nil {
			return fmt.Errorf("opening the store: reserving room in %s: %w", sp.dir, err)
		}
	}
	sp.look()
	sp.loop.Go(sp.watch)
	return nil
}

// activeWAL opens the write-ahead log in use: the one with the highest number.
func (sp *space) activeWAL() (*os.File, uint64, error) {
	entries, err := os.ReadDir(sp.dir)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the store: %w", err)
	}
	var id uint64
	for _, e := range entries {
		if n, ok := fileID(e.Name(), ".mem"); ok {
			id = max(id, n)
		}
	}
	f, err := os.OpenFile(filepath.Join(sp.dir, walName(id)), os.O_RDWR, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the store: %w", err)
	}
	return f, id, nil
}

func (sp *space) makeSpare(id uint64) error {
	f, err := os.OpenFile(filepath.Join(sp.dir, walName(id)), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := reserve(f, walRoom); err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return err
	}
	sp.spare, sp.spareID = f, id
	return nil
}

// replaceSpare makes a new spare when Badger has begun to use the last one. An
// update can begin one log at most. The turn is held.
func (sp *space) replaceSpare() {
	if sp.unsupported {
		return
	}
	if sp.spare != nil {
		fi, err := sp.spare.Stat()
		if err == nil && fi.Size() == 0 {
			return
		}
		_ = sp.spare.Close()
		sp.spare = nil
		sp.spareID++
	}
	if err := sp.makeSpare(sp.spareID); err != nil {
		sp.log.Warn("reserving room for the store; updates wait for it", zap.Error(err))
	}
}

// admit says whether an update may begin. The turn is held.
func (sp *space) admit() error {
	d, ok := sp.stat(sp.dir)
	if !ok {
		return nil
	}
	if d.readOnly {
		return readOnlyError(sp.dir)
	}
	need := int64(lowWater)
	sp.mu.Lock()
	if sp.givenUp {
		need += sp.ballast
	}
	refuse := sp.givenUp || d.free < need
	sp.mu.Unlock()
	if refuse {
		select {
		case sp.kick <- struct{}{}:
		default:
		}
		return fullError(sp.dir, d.free, need)
	}
	if sp.spare == nil {
		if sp.replaceSpare(); sp.spare == nil && !sp.unsupported {
			return fullError(sp.dir, d.free, need+walRoom)
		}
	}
	return nil
}

// watch looks at the disk, the more often the less is left.
func (sp *space) watch() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-sp.stopCh:
			return
		case <-sp.kick:
		case <-t.C:
		}
		t.Reset(sp.look())
	}
}

// look gives the ballast up or makes it again, and returns when to look next.
func (sp *space) look() time.Duration {
	d, ok := sp.stat(sp.dir)
	if !ok || d.readOnly {
		return slowest
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	switch {
	case sp.held != nil && d.free < giveUp:
		sp.release()
	case sp.held == nil && sp.ballast > 0 && d.free >= lowWater+sp.ballast:
		sp.fill()
	case sp.held == nil && sp.ballast > 0 && !sp.givenUp && !sp.bare:
		sp.bare = true
		sp.log.Warn("the disk has no room for the store's ballast; it is used without",
			zap.String("dir", sp.dir), zap.Int64("free", d.free), zap.Int64("ballast", sp.ballast))
	}
	if low := sp.givenUp || d.free < lowWater; low != sp.low {
		sp.low = low
		if low {
			sp.log.Error("the disk is nearly full: the store takes no more writes until there is room", zap.String("dir", sp.dir), zap.Int64("free", d.free))
		} else {
			sp.log.Info("the disk has room again: the store takes writes", zap.String("dir", sp.dir), zap.Int64("free", d.free))
		}
	}
	sp.reserveManifest()

	next := d.free - giveUp
	if d.free >= lowWater {
		next = d.free - lowWater
	}
	if next < 0 {
		return slowest / 5 // nothing more to give; see when there is room again
	}
	return min(max(time.Duration(next)*time.Second/fastest, quickest), slowest)
}

// release gives the ballast up. The lock is held.
func (sp *space) release() {
	sp.givenUp = true
	err := sp.held.Truncate(0)
	if cerr := sp.held.Close(); err == nil {
		err = cerr
	}
	if rerr := os.Remove(sp.held.Name()); err == nil {
		err = rerr
	}
	sp.held = nil
	sp.log.Warn("the disk is nearly full: the store gave up its ballast", zap.String("dir", sp.dir), zap.Error(err))
}

// fill makes the ballast. The lock is held.
func (sp *space) fill() {
	f, err := os.OpenFile(filepath.Join(sp.dir, ballastFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		if err = reserve(f, sp.ballast); err == nil {
			sp.held, sp.givenUp, sp.bare = f, false, false
			return
		}
		_ = f.Close()
		_ = os.Remove(f.Name())
	}
	if errors.Is(err, errors.ErrUnsupported) {
		sp.ballast, sp.givenUp = 0, false
	}
	if !sp.bare {
		sp.bare = true
		sp.log.Warn("the store has no ballast", zap.String("dir", sp.dir), zap.Error(err))
	}
}

// reserveManifest keeps room behind the MANIFEST. The lock is held.
func (sp *space) reserveManifest() {
	path := filepath.Join(sp.dir, bdb.ManifestFilename)
	fi, err := os.Stat(path)
	if err != nil || sp.ready-fi.Size() > manifestRoom/2 && sp.ready-fi.Size() <= manifestRoom {
		return // also after Badger made it anew, and shorter
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if reserve(f, fi.Size()+manifestRoom) == nil {
		sp.ready = fi.Size() + manifestRoom
	}
}

// waitForRoom returns when a compaction may write its next table.
func (sp *space) waitForRoom() {
	sp.waiting.Add(1)
	defer sp.waiting.Add(-1)
	for !sp.letThrough(time.Now()) {
		time.Sleep(20 * time.Millisecond)
	}
}

func (sp *space) letThrough(now time.Time) bool {
	d, ok := sp.stat(sp.dir)
	if !ok {
		return true
	}
	size := sp.tableSize()
	sp.mu.Lock()
	defer sp.mu.Unlock()
	need := flushRoom + giveUp/2 + size
	kept := sp.tables[:0]
	for _, t := range sp.tables {
		if now.Sub(t.at) < tableTime {
			kept = append(kept, t)
			need += t.size
		}
	}
	sp.tables = kept
	if d.free >= need && !d.readOnly {
		sp.tables = append(sp.tables, grant{now, size})
		return true
	}
	if sp.held != nil && !d.readOnly {
		sp.release()
	}
	return false
}

// tableSize is how large a table can become that a compaction writes now: all
// of level 0 goes into one table, elsewhere they have their size.
func (sp *space) tableSize() int64 {
	size := int64(numLevelZeroStall * walRoom)
	db := sp.db.Load()
	if db == nil {
		return size // it is opening
	}
	levels := db.Levels()
	size = levels[0].Size
	for _, l := range levels[1:] {
		if l.NumTables > 0 || l.IsBaseLevel {
			size = max(size, l.TargetFileSize)
		}
	}
	return size + 1<<20
}

// stop ends the watch.
func (sp *space) stop() {
	select {
	case <-sp.stopCh:
		return
	default:
	}
	close(sp.stopCh)
	sp.loop.Wait()
}

// remove takes the spare and the ballast away.
func (sp *space) remove() {
	if sp.spare != nil {
		_ = sp.spare.Close()
		// Not what Badger has begun to use: nobody would have replaced it.
		if fi, err := os.Stat(sp.spare.Name()); err == nil && fi.Size() == 0 {
			_ = os.Remove(sp.spare.Name())
		}
		sp.spare = nil
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.held != nil {
		_ = sp.held.Close()
		_ = os.Remove(sp.held.Name())
		sp.held = nil
	}
}

// close closes Badger, which flushes its memtable and compacts. Where there is
// no room for that, it is left as it is: opening it again is then like after a
// crash, and nothing is lost.
func (sp *space) close(closeDB func() error) error {
	sp.stop()
	sp.remove()
	if d, ok := sp.stat(sp.dir); ok && (d.readOnly || d.free < flushRoom+giveUp/2) {
		return fmt.Errorf("%w; its data is safe, but the directory stays locked until the process ends", fullError(sp.dir, d.free, flushRoom+giveUp/2))
	}
	done := make(chan error, 1)
	before := sp.retries.Load()
	go func() { done <- closeDB() }()
	for waited := 0; ; {
		select {
		case err := <-done:
			return err
		case <-time.After(100 * time.Millisecond):
		}
		// A disk that broke, and that its file system does not call read-only,
		// shows only in flushes that fail.
		broken := sp.retries.Load() > before
		if waited++; sp.waiting.Load() == 0 && !broken {
			waited = 0
		}
		if waited > 50 && broken {
			return fmt.Errorf("%w: the disk cannot be written; the data that was committed is as safe as the disk is, and the directory stays locked until the process ends", store.ErrUnavailable)
		}
		if waited > 100 { // 10 s
			return fmt.Errorf("%w: the disk is full; the data is safe, but the directory stays locked until the process ends", ErrDiskFull)
		}
	}
}
