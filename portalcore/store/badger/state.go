package badger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	stateFile = "portal.state"

	// copyTolerance is how far a file's change time may be from the time we
	// wrote it: as long as a slow disk takes to sync.
	copyTolerance = 10 * time.Second
)

// state is the file beside the data that says whether the store was closed
// cleanly. It is written with a sync when the store opens and when it has
// closed.
type state struct {
	Schema    int       `json:"schema"`
	Run       string    `json:"run"` // of the data it belongs to
	Clean     bool      `json:"clean"`
	HighWater time.Time `json:"high_water"` // latest wall clock

	// Closing says that no more is written and that Badger flushes its logs
	// and deletes them.
	Closing bool `json:"closing,omitempty"`

	// Before is the run that the data still has when the process ended while
	// the store opened.
	Before string `json:"before,omitempty"`

	// Files tells, in a store that was closed cleanly, the files that hold its
	// data. An older MANIFEST is valid in itself, but names fewer tables.
	Files map[string]string `json:"files,omitempty"`

	// Inode, Born and WrittenAt (by the machine's clock) tell this file from a
	// copy of it, and so a store from one that was restored from a backup. A
	// copy has another inode, another time of birth or, where it is a second
	// name of the same file, a later change time; none of them can be set by
	// hand. Zero where the system does not tell.
	Inode     uint64    `json:"inode,omitempty"`
	Born      time.Time `json:"born,omitzero"`
	WrittenAt time.Time `json:"written_at"`

	moved bool // copied, as seen when it was read
}

// readState returns the state in dir, nil when there is none. A file that does
// not parse counts as "not closed cleanly".
func readState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return &state{}, nil
	}
	st.moved = st.copied(path)
	return &st, nil
}

// writeState replaces the state in dir, durably and as a whole.
func writeState(dir string, st state) error {
	if err := replaceState(dir, st); err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Join(dir, stateFile), err)
	}
	return nil
}

func replaceState(dir string, st state) error {
	path := filepath.Join(dir, stateFile)
	tmp := path + ".tmp"
	// A new file, also where an earlier try left one: its birth tells it from
	// every copy.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	id, _ := identify(tmp)
	st.Inode, st.Born = id.inode, id.born
	st.WrittenAt = time.Now().Round(0)
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// fileIdentity is what the system keeps of a file besides what is in it.
type fileIdentity struct {
	inode   uint64
	born    time.Time // zero where the file system does not keep it
	changed time.Time // in any way, its names too
}

// copied reports whether the file at path is not the one that st was written
// to.
func (st *state) copied(path string) bool {
	if st.Inode == 0 {
		return false
	}
	id, ok := identify(path)
	if !ok {
		return true
	}
	// The inode of a file that was removed is given to the next one.
	if !st.Born.IsZero() && !id.born.IsZero() && !id.born.Equal(st.Born) {
		return true
	}
	return id.inode != st.Inode || id.changed.Sub(st.WrittenAt).Abs() > copyTolerance
}
