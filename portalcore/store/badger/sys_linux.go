package badger

import (
	"io/fs"
	"os"
	"syscall"
	"time"
)

// fileIdentity returns a file's inode and when it was last changed in any way.
func fileIdentity(fi fs.FileInfo) (inode uint64, changed time.Time, ok bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, time.Time{}, false
	}
	return st.Ino, time.Unix(st.Ctim.Unix()), true
}

// freeBytes returns how much room the file system of dir has for us, and
// whether that is known.
func freeBytes(dir string) (uint64, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil || st.Bsize <= 0 || st.Blocks == 0 {
		return 0, false
	}
	return st.Bavail * uint64(st.Bsize), true
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
