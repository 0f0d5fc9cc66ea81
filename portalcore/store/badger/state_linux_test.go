package badger

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCopyWithTheSameInode puts a copy of the state file in its place at once:
// the system mostly gives it the inode of the file that was removed.
func TestCopyWithTheSameInode(t *testing.T) {
	same := 0
	for range 20 {
		dir := t.TempDir()
		if err := writeState(dir, state{Schema: schema, Run: "run", Clean: true}); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, stateFile)
		before, ok := identify(path)
		if st, err := readState(dir); err != nil || st.moved || !ok {
			t.Fatalf("the file itself: %+v, %v", st, err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if after, _ := identify(path); after.inode == before.inode {
			same++
		}
		if st, err := readState(dir); err != nil || !st.moved {
			t.Fatalf("a copy passed for the file: %+v, %v", st, err)
		}
	}
	t.Logf("%d of 20 copies had the same inode", same)
}
