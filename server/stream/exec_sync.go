package stream

import (
	"context"
	"fmt"
	"math"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/store"
)

// maxAnswerBytes bounds both outputs together: 16 MiB is what a client takes in one message (CRI, ExecSyncResponse),
// and the rest of the message needs some bytes of it.
const maxAnswerBytes = 16<<20 - 1<<10

// ExecSync runs a command and answers its output and exit code. Output beyond 16 MiB is dropped, and the command goes
// on. After the timeout the command is killed with everything that it started: conmon.ErrTimeout.
func (s *Server) ExecSync(ctx context.Context, req *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, fmt.Errorf("%w: cmd is empty: name a program", store.ErrInvalid)
	}
	if req.GetTimeout() < 0 {
		return nil, fmt.Errorf("%w: timeout %d is negative: use 0 for none", store.ErrInvalid, req.GetTimeout())
	}
	id, err := s.subjects.RunningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if !s.begin() {
		return nil, fmt.Errorf("exec: %w", conmon.ErrUnavailable)
	}
	defer s.requests.Done()
	var out, errOut bounded
	code, err := s.exec(ctx, conmon.ExecRequest{
		ID: id, Args: req.GetCmd(), Timeout: seconds(req.GetTimeout()),
	}, streams{out: &out, err: &errOut})
	if err != nil {
		return nil, err
	}
	stdout, stderr := fit(out, errOut)
	return &cri.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(code)}, nil
}

// seconds is a duration; one that is too long to be one is the longest there is.
func seconds(n int64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second
}

// bounded keeps the beginning of what is written to it.
type bounded []byte

func (b *bounded) Write(p []byte) (int, error) {
	*b = append(*b, p[:min(len(p), maxAnswerBytes-len(*b))]...)
	return len(p), nil
}

// fit cuts the longer of two outputs until both fit into an answer; neither is cut below half of the room.
func fit(a, b []byte) ([]byte, []byte) {
	const half = maxAnswerBytes / 2
	if len(a)+len(b) <= maxAnswerBytes {
		return a, b
	}
	if len(a) > half {
		a = a[:max(half, maxAnswerBytes-len(b))]
	}
	return a, b[:min(len(b), maxAnswerBytes-len(a))]
}
