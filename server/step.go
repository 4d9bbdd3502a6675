package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// undoTime bounds one undoing of a main path. What takes longer is retried in the background.
const undoTime = time.Minute

// step is a part of a main path. Undo must succeed if do was never called, failed half-way or was undone before: it
// is also called after a crash, when nobody knows how far do came. A nil undo undoes nothing.
type step[T any] struct {
	name     string
	do, undo func(context.Context, T) error
}

// staged is something whose main path can be watched.
type staged interface {
	enter(step string)
	leave()
}

// up does the steps in order. If one fails, those before it and it are undone; if that fails too, the error is an
// [undoneError].
func up[T staged](ctx context.Context, v T, steps []step[T]) error {
	defer v.leave()
	for i, st := range steps {
		v.enter(st.name)
		err := ctx.Err()
		if err == nil {
			err = guarded(ctx, func(ctx context.Context) error { return st.do(ctx, v) })
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s: %w", st.name, err)
		if left := down(ctx, v, steps[:i+1]); left != nil {
			return &undoneError{cause: err, left: left}
		}
		return err
	}
	return nil
}

// down undoes newest first and stops at the first failure: a step stands on those before it, so what remains is on
// record and is retried. It goes on when ctx is cancelled, under a limit of its own.
func down[T staged](ctx context.Context, v T, steps []step[T]) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	defer v.leave()
	for _, st := range slices.Backward(steps) {
		if st.undo == nil {
			continue
		}
		v.enter("undo " + st.name)
		if err := st.undo(ctx, v); err != nil {
			return fmt.Errorf("undo %s: %w", st.name, err)
		}
	}
	return nil
}

// undoneError is a failed main path whose remains could not be removed at once.
type undoneError struct{ cause, left error }

func (e *undoneError) Error() string {
	return fmt.Sprintf("%v (what was made stays for now and is retried: %v)", e.cause, e.left)
}

func (e *undoneError) Unwrap() error { return e.cause }

// leftOver returns what an up or down could not undo, nil if there is nothing left.
func leftOver(err error) error {
	var undone *undoneError
	if errors.As(err, &undone) {
		return undone.left
	}
	return nil
}
