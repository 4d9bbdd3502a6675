package machine

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseIPs(t *testing.T) {
	for _, tt := range []struct{ list, want, problem string }{
		{"", "[]", ""},
		{"192.0.2.1", "[192.0.2.1]", ""},
		{"::", "[::]", ""},
		{"192.0.2.1, 2001:db8::1", "[192.0.2.1 2001:db8::1]", ""},
		{"x", "[]", `"x" is not an IP address`},
		{"192.0.2.1,192.0.2.2", "[]", "one of each family"},
		{"192.0.2.1,2001:db8::1,2001:db8::2", "[]", "one of each family"},
		{"0.0.0.0,2001:db8::1", "[]", "neither may be unspecified"},
	} {
		got, err := ParseIPs(tt.list)
		if fmt.Sprint(got) != tt.want || (err != nil) != (tt.problem != "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("%q: %v, %v; want %s, %q", tt.list, got, err, tt.want, tt.problem)
		}
	}
}
