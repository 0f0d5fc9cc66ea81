//go:build !linux

package badger

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// Elsewhere a restored copy is found by its state file only when it is not
// restored together with the data, and a full disk is not foreseen.

func fileIdentity(fs.FileInfo) (inode uint64, changed time.Time, ok bool) {
	return 0, time.Time{}, false
}

func statDisk(string) (disk, bool) { return disk{}, false }

func reserve(*os.File, int64) error { return errors.ErrUnsupported }

// lockDir leaves it to Badger, which looks at the lock a moment later.
func lockDir(string) (unlock func(), err error) { return func() {}, nil }

// syncDir does nothing: not every system lets a directory be synced.
func syncDir(string) error { return nil }
