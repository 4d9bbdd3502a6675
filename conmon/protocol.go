package conmon

import (
	"errors"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// What the daemon asks of the worker. Each is a call; MethodExited is a notice from the worker.
const (
	MethodCreate     = "create"
	MethodStart      = "start"
	MethodExec       = "exec" // goes with the descriptors that Stdio has, in its order
	MethodSignal     = "signal"
	MethodUpdate     = "update"
	MethodAttach     = "attach" // answers with descriptors, in Attachment's order
	MethodCloseStdin = "closeStdin"
	MethodResize     = "resize"
	MethodReopenLog  = "reopenLog"
	MethodDelete     = "delete"
	MethodList       = "list"
	MethodProgram    = "program" // which program the monitor is
	MethodUpgrade    = "upgrade" // go on as another one; the connection ends instead of an answer
	MethodExited     = "exited"
)

// SignalArgs is the body of MethodSignal.
type SignalArgs struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
}

// UpdateArgs is the body of MethodUpdate.
type UpdateArgs struct {
	ID        string                `json:"id"`
	Resources *rspec.LinuxResources `json:"resources"`
}

// ResizeArgs is the body of MethodResize.
type ResizeArgs struct {
	ID     string `json:"id"`
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// ExecArgs is the body of MethodExec: which of Stdio's files came along.
type ExecArgs struct {
	ExecRequest
	Stdin, Stdout, Stderr, Console bool
}

// AttachAnswer is the answer to MethodAttach: which of Attachment's files came along.
type AttachAnswer struct {
	Stdin, Stderr bool
	Terminal      bool `json:"terminal,omitempty"`
	StdinOnce     bool `json:"stdinOnce,omitempty"`
}

// wireCodes keep the identity of the errors that callers branch on.
var wireCodes = map[string]error{
	"not-found": ErrNotFound, "not-running": ErrNotRunning, "timeout": ErrTimeout,
}

// CodeOf is the wire code of an error, "" if it has none.
func CodeOf(err error) string {
	for code, known := range wireCodes {
		if errors.Is(err, known) {
			return code
		}
	}
	return ""
}
