//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

const (
	// writers is how many goroutines write at once.
	writers = 64
	// valueSize is about what a session is long.
	valueSize = 400
	// fastSync is a sync that is faster than a disk that keeps what it says.
	fastSync = 100 * time.Microsecond
)

func commits(args []string) error {
	flags := flag.NewFlagSet("commits", flag.ExitOnError)
	where := flags.String("dir", os.TempDir(), "where to write: a directory on a real disk")
	rounds := flags.Int("rounds", 5, "rounds of each")
	round := flags.Duration("round", 3*time.Second, "length of a round")
	check := flags.Bool("check", false, "fail where a target is missed")
	_ = flags.Parse(args) // ends the program itself

	dir, err := os.MkdirTemp(*where, "portal-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fsName, err := fileSystem(dir)
	if err != nil {
		return err
	}
	latency, err := syncLatency(dir)
	if err != nil {
		return err
	}
	fmt.Printf("file system %s, a sync of 4 KiB takes %v (median), %v (p99)\n", fsName, quantile(latency, .5), quantile(latency, .99))
	var delay time.Duration
	if quantile(latency, .5) < fastSync {
		delay = time.Millisecond
		fmt.Println("that is less than 0.1 ms: 1 ms is added to each sync, in both")
	}

	ours, err := openOurs(filepath.Join(dir, "ours"), delay)
	if err != nil {
		return err
	}
	defer ours.close()
	plain, err := openPlain(filepath.Join(dir, "plain"), delay)
	if err != nil {
		return err
	}
	defer plain.close()

	fmt.Printf("%d writers, values of %d bytes\n%8s %12s %14s %16s %8s\n", writers, valueSize, "round", "plain/s", "store/s", "updates a sync", "ratio")
	var ratios, perSync []float64
	for n := range *rounds + 1 {
		p, err := plain.run(*round)
		if err != nil {
			return err
		}
		before := ours.db.Stats()
		o, err := ours.run(*round)
		if err != nil {
			return err
		}
		after := ours.db.Stats()
		each := float64(after.Updates-before.Updates) / float64(after.Commits-before.Commits)
		name := fmt.Sprint(n)
		if n == 0 {
			name = "warm-up"
		} else {
			ratios, perSync = append(ratios, o/p), append(perSync, each)
		}
		fmt.Printf("%8s %12.0f %14.0f %16.1f %8.2f\n", name, p, o, each, o/p)
	}
	return errors.Join(
		miss(*check, fmt.Sprintf("median ratio %.2f, at least 3", median(ratios)), median(ratios) >= 3),
		miss(*check, fmt.Sprintf("median of updates a sync %.1f, at least 8", median(perSync)), median(perSync) >= 8),
	)
}

// fileSystem names the file system of dir, and refuses one in memory.
func fileSystem(dir string) (string, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "", err
	}
	number := fmt.Sprintf("%#x", st.Type)
	name := map[string]string{
		"0xef53": "ext4", "0x58465342": "xfs", "0x9123683e": "btrfs", "0x2fc12fc1": "zfs", "0x794c7630": "overlayfs", "0x6969": "nfs",
		"0x1021994": "tmpfs", "0x858458f6": "ramfs",
	}[number]
	switch name {
	case "tmpfs", "ramfs":
		return "", fmt.Errorf("%s is on %s, where a sync costs nothing and keeps nothing: name a directory on a disk with -dir", dir, name)
	case "":
		name = number
	}
	return name, nil
}

// syncLatency is how long it takes to write 4 KiB durably, sorted.
func syncLatency(dir string) ([]time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	block := make([]byte, 4<<10)
	var took []time.Duration
	for range 200 {
		begin := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return took, nil
}

// load is a store that can be written to.
type load struct {
	db    *badger.Store
	write func(key, value []byte) error
	close func()
	next  atomic.Int64
}

func openOurs(dir string, delay time.Duration) (*load, error) {
	sealer, err := newSealer()
	if err != nil {
		return nil, err
	}
	db, err := badger.Open(dir, badger.Options{Sealer: sealer, SyncDelay: delay})
	if err != nil {
		return nil, err
	}
	return &load{db: db, close: func() { _ = db.Close() }, write: func(key, value []byte) error {
		return db.Update(context.Background(), func(tx store.Tx) error { return tx.Put(key, value) })
	}}, nil
}

// openPlain opens Badger with the store's options.
func openPlain(dir string, delay time.Duration) (*load, error) {
	db, err := bdb.Open(bdb.DefaultOptions(dir).WithLogger(nil).WithSyncWrites(true).
		WithMemTableSize(8 << 20).WithNumMemtables(2).WithNumLevelZeroTables(2).WithNumLevelZeroTablesStall(4).WithNumCompactors(2).
		WithValueLogFileSize(1 << 20).WithBlockCacheSize(8 << 20).WithIndexCacheSize(8 << 20).
		WithCompression(options.None).WithMetricsEnabled(false).WithVerifyValueChecksum(true))
	if err != nil {
		return nil, err
	}
	// Badger syncs once for each transaction, one after another.
	var syncs sync.Mutex
	return &load{close: func() { _ = db.Close() }, write: func(key, value []byte) error {
		if err := db.Update(func(txn *bdb.Txn) error { return txn.Set(key, value) }); err != nil {
			return err
		}
		if delay > 0 {
			syncs.Lock()
			defer syncs.Unlock()
			time.Sleep(delay)
		}
		return nil
	}}, nil
}

// run writes for d and returns writes per second.
func (l *load) run(d time.Duration) (float64, error) {
	var (
		wg     sync.WaitGroup
		done   atomic.Int64
		failed = make(chan error, writers)
	)
	begin := time.Now()
	for range writers {
		wg.Go(func() {
			value := make([]byte, valueSize)
			_, _ = rand.Read(value)
			for time.Since(begin) < d {
				key := store.Key("bench", "k", fmt.Sprint(l.next.Add(1)))
				if err := l.write(key, value); err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	select {
	case err := <-failed:
		return 0, err
	default:
		return float64(done.Load()) / took.Seconds(), nil
	}
}

func newSealer() (*store.Sealer, error) { return store.NewSealer(make([]byte, store.SealKeySize)) }
