package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/orlop/orlop/conmon"
)

// retry repeats a call that the monitor's worker went away under; such calls may be repeated. The client waits for
// the next worker by itself, so a few times are enough for any number of single faults.
func retry[T any](ctx context.Context, call func() (T, error)) (v T, err error) {
	const times = 5
	for range times {
		if v, err = call(); !errors.Is(err, conmon.ErrUnavailable) || ctx.Err() != nil {
			return v, err
		}
	}
	return v, fmt.Errorf("%d times: %w", times, err)
}
