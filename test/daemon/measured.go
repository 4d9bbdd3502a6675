package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

// Measured runs the tests of a suite and fails if they leave anything, whose name goes before what it prints. stock tells
// what there is while no test runs.
func Measured(suite string, m *testing.M, stock func() (kernel.Snapshot, error)) int {
	before, err := settled(stock)
	if err != nil {
		fmt.Printf("%s: before the tests: %v\n", suite, err)
		return 1
	}
	return max(kernel.Main(m), Left(suite, before, stock))
}

// settled counts until nothing changes any more: what has just started lets go of some things only a moment later.
func settled(stock func() (kernel.Snapshot, error)) (kernel.Snapshot, error) {
	last, err := stock()
	if err != nil {
		return nil, err
	}
	waitErr := criclient.Wait(context.Background(), 20*time.Second, func() bool {
		var next kernel.Snapshot
		if next, err = stock(); err != nil {
			return true
		}
		same := kernel.Compare(last, next) == ""
		last = next
		return same
	})
	return last, errors.Join(err, waitErr)
}

// Left compares what there is with what there was before, which it should be again: 1 if something is left, else 0.
func Left(suite string, before kernel.Snapshot, stock func() (kernel.Snapshot, error)) int {
	var after kernel.Snapshot
	var err error
	diff := ""
	// What heals in the background may need a moment.
	_ = criclient.Wait(context.Background(), 20*time.Second, func() bool {
		after, err = stock()
		diff = kernel.Compare(before, after)
		return err != nil || diff == ""
	})
	fmt.Printf("%[1]s: before: %[2]v\n%[1]s: after:  %[3]v\n", suite, before, after)
	if err != nil || diff != "" {
		fmt.Printf("%s: the suite left something behind: %v\n%s", suite, err, diff)
		return 1
	}
	return 0
}
