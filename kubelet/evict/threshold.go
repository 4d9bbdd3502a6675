// Package evict ends pods before the node runs out of memory, disk or process IDs, in the order that the documentation of
// node-pressure eviction gives, and ends those that use more of the disk than they may.
package evict

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is what the node may run short of.
type Signal string

// The signals, as configurations name them.
const (
	Memory      Signal = "memory.available"
	NodeDisk    Signal = "nodefs.available"
	NodeInodes  Signal = "nodefs.inodesFree"
	ImageDisk   Signal = "imagefs.available"
	ImageInodes Signal = "imagefs.inodesFree"
	ProcessIDs  Signal = "pid.available"
)

// resource names in messages what a signal is about.
func (s Signal) resource() string {
	switch s {
	case Memory:
		return "memory"
	case NodeInodes, ImageInodes:
		return "inodes"
	case ProcessIDs:
		return "pids"
	}
	return "ephemeral-storage"
}

// Threshold is when there is too little of something.
type Threshold struct {
	Signal  Signal
	Value   int64         // bytes or a count
	Percent float64       // of what there is in all, if Value is 0
	Grace   time.Duration // for how long it must last: soft thresholds
	Reclaim int64         // more that must be free before it is enough again
	Regain  float64       // the same in percent of what there is in all, if Reclaim is 0
}

// Parse reads thresholds as KubeletConfiguration has them: evictionHard, or evictionSoft with its grace periods.
func Parse(limits, graces, reclaim map[string]string) ([]Threshold, error) {
	var out []Threshold
	for name, text := range limits {
		t := Threshold{Signal: Signal(name)}
		if !slices.Contains([]Signal{Memory, NodeDisk, NodeInodes, ImageDisk, ImageInodes, ProcessIDs}, t.Signal) {
			return nil, fmt.Errorf("eviction: signal %q: unknown; write one such as memory.available", name)
		}
		var err error
		if percent, ok := strings.CutSuffix(text, "%"); ok {
			t.Percent, err = strconv.ParseFloat(percent, 64)
			if err == nil && t.Percent <= 0 {
				continue // 0% turns the threshold off
			}
		} else {
			t.Value, err = quantity(text)
		}
		if err == nil && graces[name] != "" {
			t.Grace, err = time.ParseDuration(graces[name])
		}
		if more := reclaim[name]; err == nil && more != "" {
			if percent, ok := strings.CutSuffix(more, "%"); ok {
				t.Regain, err = strconv.ParseFloat(percent, 64)
			} else {
				t.Reclaim, err = quantity(more)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("eviction: %s: %q: %w", name, text, err)
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Threshold) int { return cmp.Compare(order[a.Signal], order[b.Signal]) })
	return out, nil
}

// order: memory first, as a node that is short of it is short of everything soon.
var order = map[Signal]int{Memory: 0, NodeDisk: 1, ImageDisk: 2, NodeInodes: 3, ImageInodes: 4, ProcessIDs: 5}

func quantity(text string) (int64, error) {
	q, err := resource.ParseQuantity(text)
	return q.Value(), err
}

// Level is how much of something there is.
type Level struct{ Available, Capacity int64 }

// least is what must be available.
func (t Threshold) least(l Level) int64 {
	if t.Value > 0 {
		return t.Value
	}
	return int64(t.Percent / 100 * float64(l.Capacity))
}

// met is true if there is too little. was says that there was too little before, and then more must be free than at first.
func (t Threshold) met(l Level, was bool) bool {
	least := t.least(l)
	if was {
		least += t.Reclaim + int64(t.Regain/100*float64(l.Capacity))
	}
	return l.Capacity > 0 && l.Available < least
}
