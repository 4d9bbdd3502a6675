package cni

import "testing"

func TestIdle(t *testing.T) {
	const prev = `{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}`
	for name, tt := range map[string]struct {
		command, stdin string
		want           string
		ok             bool
	}{
		"portmap, no ports":     {"ADD", `{"type":"portmap","prevResult":` + prev + `}`, prev, true},
		"portmap, empty list":   {"ADD", `{"type":"portmap","runtimeConfig":{"portMappings":[]},"prevResult":` + prev + `}`, prev, true},
		"portmap, DEL":          {"DEL", `{"type":"portmap"}`, "", true},
		"portmap, ports":        {"ADD", `{"type":"portmap","runtimeConfig":{"portMappings":[{"hostPort":1}]},"prevResult":` + prev + `}`, "", false},
		"portmap, ports, DEL":   {"DEL", `{"type":"portmap","runtimeConfig":{"portMappings":[{"hostPort":1}]}}`, "", false},
		"portmap, first":        {"ADD", `{"type":"portmap"}`, "", false},
		"portmap, other verb":   {"STATUS", `{"type":"portmap","prevResult":` + prev + `}`, "", false},
		"bandwidth, no limits":  {"ADD", `{"type":"bandwidth","prevResult":` + prev + `}`, prev, true},
		"bandwidth, limits":     {"ADD", `{"type":"bandwidth","runtimeConfig":{"bandwidth":{"ingressRate":1}},"prevResult":` + prev + `}`, "", false},
		"bandwidth, for all":    {"ADD", `{"type":"bandwidth","egressRate":5,"prevResult":` + prev + `}`, "", false},
		"bandwidth, for all: -": {"DEL", `{"type":"bandwidth","ingressRate":5}`, "", false},
		"another":               {"ADD", `{"type":"tuning","prevResult":` + prev + `}`, "", false},
		"garbage":               {"DEL", `portmap`, "", false},
	} {
		got, ok := idle([]byte(tt.stdin), []string{"PATH=/bin", "CNI_COMMAND=" + tt.command})
		if string(got) != tt.want || ok != tt.ok {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, ok, tt.want, tt.ok)
		}
	}
}

// FuzzIdle finds no input for which an answer is made up: it is a part of the input.
func FuzzIdle(f *testing.F) {
	f.Add([]byte(`{"type":"portmap","prevResult":{"ips":[]}}`))
	f.Add([]byte(`{"type":"bandwidth","runtimeConfig":{"bandwidth":{}},"prevResult":1}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		got, ok := idle(stdin, []string{"CNI_COMMAND=ADD"})
		if ok != (len(got) > 0) || len(got) > len(stdin) {
			t.Errorf("%q, %v", got, ok)
		}
	})
}
