package badger

import (
	"io/fs"
	"syscall"
	"testing"
)

func blocks(t *testing.T, fi fs.FileInfo) int64 {
	t.Helper()
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no block count")
	}
	return st.Blocks * 512
}
