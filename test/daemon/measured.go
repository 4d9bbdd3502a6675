package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

// Measured runs the tests of a suite and fails if they leave anything, whose name goes before what it prints. warmUp is done
// before each count, so that what is made once and stays is no leak; take counts.
func Measured(suite string, m *testing.M, warmUp func() error, take func() (kernel.Snapshot, error)) int {
	before, err := settled(warmUp, take)
	if err != nil {
		fmt.Printf("%s: before the tests: %v\n", suite, err)
		return 1
	}
	code := kernel.Main(m)
	if err := warmUp(); err != nil {
		fmt.Printf("%s: after the tests: %v\n", suite, err)
		return 1
	}
	return max(code, Left(suite, before, take))
}

// settled counts until nothing changes any more: what has just started lets go of some things only a moment later.
func settled(warmUp func() error, take func() (kernel.Snapshot, error)) (kernel.Snapshot, error) {
	if err := warmUp(); err != nil {
		return nil, err
	}
	last, err := take()
	if err != nil {
		return nil, err
	}
	waitErr := criclient.Wait(context.Background(), 20*time.Second, func() bool {
		time.Sleep(time.Second)
		var next kernel.Snapshot
		if next, err = take(); err != nil {
			return true
		}
		same := kernel.Compare(last, next) == ""
		last = next
		return same
	})
	return last, errors.Join(err, waitErr)
}

// patience is for what heals in the background. Go's runtime collects garbage at least each two minutes, and lets go of
// some descriptors of processes only then.
const patience = 150 * time.Second

// Left compares what there is with what there was before, which it should be again: 1 if something is left, else 0.
func Left(suite string, before kernel.Snapshot, take func() (kernel.Snapshot, error)) int {
	var after kernel.Snapshot
	var err error
	diff := ""
	_ = criclient.Wait(context.Background(), patience, func() bool {
		after, err = take()
		diff = kernel.Compare(withoutClosed(before, after), after)
		return err != nil || diff == ""
	})
	fmt.Printf("%[1]s: before: %[2]v\n%[1]s: after:  %[3]v\n", suite, before, after)
	if err != nil || diff != "" {
		fmt.Printf("%s: the suite left something behind: %v\n%s", suite, err, diff)
		return 1
	}
	return 0
}

// withoutClosed is before without descriptors that are closed now: that these were open was chance.
func withoutClosed(before, after kernel.Snapshot) kernel.Snapshot {
	open := map[string]int{}
	for _, name := range after[kernel.Descriptors] {
		open[name]++
	}
	out := maps.Clone(before)
	out[kernel.Descriptors] = nil
	for _, name := range before[kernel.Descriptors] {
		if open[name]--; open[name] >= 0 {
			out[kernel.Descriptors] = append(out[kernel.Descriptors], name)
		}
	}
	return out
}
