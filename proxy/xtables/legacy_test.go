package xtables

import (
	"testing"

	"github.com/orlop/orlop/proxy/model"
)

// Whatever the kernel tells, rules are within it, one behind the other.
func FuzzEachLegacy(f *testing.F) {
	rule := make([]byte, 152)
	rule[88], rule[90] = 112, 152
	f.Add(rule, false)
	f.Add(make([]byte, 300), true)
	f.Fuzz(func(t *testing.T, data []byte, six bool) {
		family := model.IPv4
		if six {
			family = model.IPv6
		}
		at := 0
		err := eachLegacy(family, data, func(r *legacyRule) {
			if r.at != at || len(r.data) < layouts[family].head+targetHead {
				t.Fatalf("a rule of %d bytes at %d, after %d", len(r.data), r.at, at)
			}
			at += len(r.data)
		})
		if err == nil && at != len(data) {
			t.Errorf("%d of %d bytes are rules", at, len(data))
		}
		_, _ = sumOfOurs(family, &tableSize{validHooks: 31}, data)
	})
}
