package keeper

import (
	"path/filepath"

	"github.com/orlop/orlop/conmon"
)

// What the worker asks of the keeper, and what the keeper tells it.
const (
	MethodHold    = "hold"    // notice: hold descriptors for a container, and know its process
	MethodDrop    = "drop"    // notice: close what is held
	MethodIDs     = "ids"     // call: for whom anything is held
	MethodTake    = "take"    // call: copies of what is held for one container
	MethodKnows   = "knows"   // call: whether the end of a container is known, and told once it has been recorded
	MethodQuit    = "quit"    // call: end, if no container is held
	MethodUpgrade = "upgrade" // call: go on as another program, once the worker has ended
	MethodEnded   = "ended"   // notice from the keeper: an exit record has been written
)

// Hold goes with one descriptor for each name. A name that is held already is replaced.
type Hold struct {
	ID    string   `json:"id"`
	Names []string `json:"names,omitempty"`
	// Pid is the container's first process, once it exists.
	Pid int        `json:"pid,omitempty"`
	OOM conmon.OOM `json:"oom,omitzero"`
	// Found says that the worker has not made the process, and found it in the container's record.
	Found bool `json:"found,omitempty"`
}

// Drop closes one descriptor, or without a name all of a container's and forgets it.
type Drop struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// Ended says that a container's exit record has been written.
type Ended struct {
	ID string `json:"id"`
}

// SocketPath is where the daemon finds the worker.
func SocketPath(cfg Config) string { return filepath.Join(cfg.RunDir, "worker.sock") }
