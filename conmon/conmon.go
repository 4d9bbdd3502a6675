// Package conmon is the protocol between the daemon and the monitor, and the daemon's client for it.
//
// The monitor is two processes, one of each for the node: the keeper, which holds every descriptor and collects every
// exit, and the worker, which runs libcontainer and copies logs. The client speaks to the worker through a socket
// whose listening end the keeper holds, so a connection made while the worker is being replaced waits for the new one.
package conmon

import (
	"errors"
	"os"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// What callers branch on.
var (
	ErrNotFound   = errors.New("no such container in the monitor")
	ErrNotRunning = errors.New("container is not running")
	ErrTimeout    = errors.New("timed out")
	// ErrUnavailable means that the worker went away before it answered. What was asked may have happened.
	ErrUnavailable = errors.New("monitor restarted")
)

// CreateRequest describes a container to be created and not yet started.
type CreateRequest struct {
	ID   string      `json:"id"`
	Spec *rspec.Spec `json:"spec"` // Root.Path is mounted; Process.Terminal decides about a terminal
	// SystemdCgroup: Spec.Linux.CgroupsPath is "slice:prefix:name".
	SystemdCgroup bool `json:"systemdCgroup,omitempty"`
	// JoinPIDs is the container whose PID namespace this one joins, if any. What the spec says of it goes by a pid, which
	// may be another process's by then.
	JoinPIDs string `json:"joinPids,omitempty"`
	// LogPath is the CRI log file; "" for no log.
	LogPath string `json:"logPath,omitempty"`
	// Stdin keeps the container's standard input open for Attach; StdinOnce closes it after the first.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
}

// Created is the answer to Create.
type Created struct {
	Pid int `json:"pid"`
	// Timings of the steps, for the daemon's debug log and bench ("worker", "libcontainer").
	Steps map[string]time.Duration `json:"steps,omitempty"`
}

// Exit is how a container ended. It is durable before anyone is told.
type Exit struct {
	Code       int       `json:"code"`             // 128+signal for a signal
	Signal     int       `json:"signal,omitempty"` // 0 if it exited by itself
	OOMKilled  bool      `json:"oomKilled,omitempty"`
	FinishedAt time.Time `json:"finishedAt"`
	// Unknown: the process is gone and nobody could learn its exit status (a reboot); Code is 255.
	Unknown bool `json:"unknown,omitempty"`
}

// Container is what the monitor knows of one.
type Container struct {
	ID        string    `json:"id"`
	Pid       int       `json:"pid"` // 0 once it has exited
	StartedAt time.Time `json:"startedAt,omitzero"`
	Exit      *Exit     `json:"exit,omitempty"`
}

// ExecRequest runs a process in a running container.
type ExecRequest struct {
	ID       string   `json:"id"`
	Args     []string `json:"args"`
	Terminal bool     `json:"terminal,omitempty"`
	// Timeout ends the process and all of its children; 0 for none.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Stdio are the caller's ends' other ends: what the process gets. Each may be nil. With Terminal set only Console is
// used: one end of a socket pair, through which the terminal's master arrives as in runc's --console-socket.
type Stdio struct{ Stdin, Stdout, Stderr, Console *os.File }

// ExecResult is how an exec ended.
type ExecResult struct {
	Code     int  `json:"code"`
	TimedOut bool `json:"timedOut,omitempty"`
}

// Attachment is a connection to a running container's standard streams. The caller closes what is in it.
type Attachment struct {
	Stdin          *os.File // nil if the container has no open standard input; written to directly
	Stdout, Stderr *os.File // Stderr is nil with a terminal
	Terminal       bool
	StdinOnce      bool // the caller calls CloseStdin when its own input ends
}

// Event is pushed to the daemon: so far only exits.
type Event struct {
	ID   string
	Exit Exit
}

// Config says where the monitor is and how to start it.
type Config struct {
	Path    string // the orlop-conmon binary
	RunDir  string // /run/orlop/conmon: sockets and container state
	ExitDir string // /var/lib/orlop/exits: exit records
}
