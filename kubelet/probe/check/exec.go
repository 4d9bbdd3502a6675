package check

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/env"
)

func (p *Prober) exec(ctx context.Context, action *v1.ExecAction, target Target, timeout time.Duration) (Result, string, error) {
	cmd := expand(action.Command, target.Container.Env)
	out, code, err := p.Exec(ctx, target.ContainerID, cmd, timeout)
	switch {
	case err == nil && code == 0:
		return Success, limited(out), nil
	case err == nil:
		return Failure, limited(out), nil
	case ctx.Err() != nil: // the probe is over, the container did nothing wrong
		return Unknown, "", ctx.Err()
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return Failure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(cmd, " "), timeout), nil
	}
	return Unknown, "", err
}

func limited(out []byte) string { return string(out[:min(len(out), maxOutputBytes)]) }

// expand replaces $(NAME) by variables whose value stands in the pod. kubelet resolves no others for probes: one with
// valueFrom is empty, and one of envFrom stays as it is.
func expand(cmd []string, vars []v1.EnvVar) []string {
	lookup := func(name string) (string, bool) {
		for i := len(vars) - 1; i >= 0; i-- { // the last one wins
			if vars[i].Name == name {
				return vars[i].Value, true
			}
		}
		return "", false
	}
	out := make([]string, len(cmd))
	for i, s := range cmd {
		out[i] = env.Expand(s, lookup)
	}
	return out
}
