package daemon

import (
	"testing"

	"github.com/orlop/orlop/test/kernel"
)

// What is more counts, of every kind; descriptors that are fewer do not.
func TestWithoutClosed(t *testing.T) {
	before := kernel.Snapshot{kernel.Descriptors: {"a", "a", "b"}, kernel.Mounts: {"m"}}
	for _, tt := range []struct {
		after kernel.Snapshot
		equal bool
	}{
		{kernel.Snapshot{kernel.Descriptors: {"a", "a", "b"}, kernel.Mounts: {"m"}}, true},
		{kernel.Snapshot{kernel.Descriptors: {"a"}, kernel.Mounts: {"m"}}, true},
		{kernel.Snapshot{kernel.Descriptors: {"a", "c"}, kernel.Mounts: {"m"}}, false},
		{kernel.Snapshot{kernel.Descriptors: {"a", "a", "a"}, kernel.Mounts: {"m"}}, false},
		{kernel.Snapshot{kernel.Descriptors: {"a", "a", "b"}}, false},
	} {
		if diff := kernel.Compare(withoutClosed(before, tt.after), tt.after); (diff == "") != tt.equal {
			t.Errorf("%v: %q", tt.after, diff)
		}
	}
}
