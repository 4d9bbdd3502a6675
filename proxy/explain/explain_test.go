package explain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unique"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/trace"
)

var update = flag.Bool("update", false, "rewrite testdata")

// cluster is some Services, seen from a node.
func cluster() (*model.State, model.Network) {
	network := model.Network{
		Families:  []model.Family{model.IPv4, model.IPv6},
		Local:     model.LocalDetection{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/64")}},
		NodeIPs:   addrs("192.0.2.1", "2001:db8::1"),
		NodePorts: addrs("192.0.2.1", "2001:db8::1"),
	}
	s := model.NewState(model.Node{Name: "here", Zone: "a"}, network)
	tcp := func(port uint16, nodePort uint16) []model.ServicePort {
		return []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: port, NodePort: nodePort}}
	}
	s.SetService(&model.Service{Name: name("web"), ClusterIPs: addrs("10.96.0.1", "fd00:96::1"), ExternalLocal: true, Ports: tcp(80, 30080)})
	s.SetSlice(slice("web", model.IPv4, "10.244.0.2 here", "10.244.1.2 there", "10.244.0.3 here notready", "10.244.1.3 there terminating", "10.244.1.4 there gone"))
	s.SetSlice(slice("web", model.IPv6, "fd00:244::2 there"))
	s.SetService(&model.Service{Name: name("lb"), Created: 1, ClusterIPs: addrs("10.96.0.2"), LoadBalancerIPs: addrs("198.51.100.1"),
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, Ports: tcp(80, 0)})
	s.SetService(&model.Service{Name: name("late"), Created: 2, ClusterIPs: addrs("10.96.0.3"), LoadBalancerIPs: addrs("198.51.100.1"), Ports: tcp(80, 0)})
	s.SetSlice(slice("late", model.IPv4, "10.244.1.2 there"))
	s.SetService(&model.Service{Name: name("sticky"), ClusterIPs: addrs("10.96.0.4"), Affinity: 3 * time.Hour, Ports: tcp(80, 0)})
	var many []string
	for i := range 12 {
		many = append(many, fmt.Sprintf("10.244.1.%d there zone=a", i+10))
	}
	s.SetSlice(slice("sticky", model.IPv4, append(many, "10.244.2.1 elsewhere zone=b")...))
	s.Commit()
	return s, network
}

func name(s string) model.Name { return model.Name{Namespace: "shop", Name: s} }

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// slice has endpoints as "ADDRESS NODE [notready|terminating|gone|zone=ZONE]".
func slice(service string, family model.Family, endpoints ...string) *model.Slice {
	out := &model.Slice{Name: name(service + "-" + family.String()), Service: name(service), Family: family,
		Ports: []model.SlicePort{{Name: "http", Protocol: model.TCP, Port: 8080}}}
	for i, text := range endpoints {
		words := strings.Fields(text)
		state := strings.Join(words[2:], "")
		e := model.SliceEndpoint{Addr: netip.MustParseAddr(words[0]), Node: unique.Make(words[1]), Ready: true, Serving: true, Pod: fmt.Sprintf("%s-%d", service, i)}
		zone, zoned := strings.CutPrefix(state, "zone=")
		switch {
		case zoned:
			e.Zones = []unique.Handle[string]{unique.Make(zone)}
		case state != "":
			e.Ready, e.Serving, e.Terminating = false, state == "terminating", state != "notready"
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	return out
}

// asModel is a kernel that does what the model says, but for what change does to it.
type asModel struct {
	state   *model.State
	network model.Network
	change  func(p model.Packet, e *trace.Ending) error
}

func (k asModel) Trace(_ context.Context, in trace.Packet) (trace.Ending, error) {
	p := model.Packet{From: model.FromOutside, SourceAddr: in.From.Addr(), To: in.To, Protocol: in.Protocol, ToNode: in.Local(in.To.Addr())}
	isPod := func(r netip.Prefix) bool { return r.Contains(p.SourceAddr) }
	switch {
	case slices.ContainsFunc(k.network.Local.Prefixes, isPod), in.In != "" && in.In == k.network.Local.Bridge:
		p.From = model.FromPod
	case in.In == "":
		p.From = model.FromNode
	}
	o := k.state.Trace(p)
	e := trace.Ending{Dropped: o.Route.Action == model.Drop, Rejected: o.Route.Action == model.Reject, Masquerade: o.Route.Masquerade}
	for _, endpoint := range o.Endpoints {
		e.Endpoints = append(e.Endpoints, endpoint.Addr)
	}
	slices.Reverse(e.Endpoints) // their order has no meaning
	if k.change == nil {
		return e, nil
	}
	return e, k.change(p, &e)
}

// both is of both families.
func (k asModel) both() map[model.Family]Kernel {
	return map[model.Family]Kernel{model.IPv4: k, model.IPv6: k}
}

func text(t *testing.T, reports []Report) string {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, reports); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (run go test -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: -want +got:\n%s", file, diff)
	}
}

func TestGolden(t *testing.T) {
	state, network := cluster()
	for _, service := range []string{"web", "lb", "late", "sticky"} {
		reports := Of(t.Context(), state.Explain(name(service)), network, asModel{state: state, network: network}.both())
		compare(t, "testdata/"+service+".txt", text(t, reports))
		data, err := json.MarshalIndent(reports, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		compare(t, "testdata/"+service+".json", string(data)+"\n")
	}
}

// A difference is told with what the model says and what the kernel has, and for each kind of source.
func TestDifferences(t *testing.T) {
	state, network := cluster()
	for _, tt := range []struct {
		what   string
		change func(p model.Packet, e *trace.Ending) error
		want   []string
	}{
		{"an endpoint is missing", func(p model.Packet, e *trace.Ending) error {
			if len(e.Endpoints) > 1 {
				e.Endpoints = e.Endpoints[:1]
			}
			return nil
		}, []string{
			"10.96.0.1:80 from pod: the model says [10.244.0.2:8080 10.244.1.2:8080], the kernel has [10.244.1.2:8080]",
			"10.96.0.1:80 from node: the model says [10.244.0.2:8080 10.244.1.2:8080] masqueraded, the kernel has [10.244.1.2:8080] masqueraded",
			"10.96.0.1:80 from outside: the model says [10.244.0.2:8080 10.244.1.2:8080] masqueraded, the kernel has [10.244.1.2:8080] masqueraded",
			"port 30080 of this node from pod: the model says [10.244.0.2:8080 10.244.1.2:8080], the kernel has [10.244.1.2:8080]",
			"port 30080 of this node from node: the model says [10.244.0.2:8080 10.244.1.2:8080] masqueraded, the kernel has [10.244.1.2:8080] masqueraded",
		}},
		{"the rules are gone", func(p model.Packet, e *trace.Ending) error {
			if p.To.Port() == 30080 && p.From == model.FromOutside {
				*e = trace.Ending{}
			}
			return nil
		}, []string{
			"port 30080 of this node from outside: the model says [10.244.0.2:8080], the kernel has nothing",
			"port 30080 of this node from outside: the model says drop, the kernel has nothing", // IPv6: nobody is here
		}},
		{"masquerade is forgotten, and what is dropped is rejected", func(p model.Packet, e *trace.Ending) error {
			e.Masquerade, e.Rejected, e.Dropped = e.Masquerade && p.From != model.FromNode, e.Dropped, false
			return nil
		}, []string{
			"10.96.0.1:80 from node: the model says [10.244.0.2:8080 10.244.1.2:8080] masqueraded, the kernel has [10.244.0.2:8080 10.244.1.2:8080]",
			"port 30080 of this node from node: the model says [10.244.0.2:8080 10.244.1.2:8080] masqueraded, the kernel has [10.244.0.2:8080 10.244.1.2:8080]",
			"[fd00:96::1]:80 from node: the model says [[fd00:244::2]:8080] masqueraded, the kernel has [[fd00:244::2]:8080]",
			"port 30080 of this node from node: the model says [[fd00:244::2]:8080] masqueraded, the kernel has [[fd00:244::2]:8080]",
			"port 30080 of this node from outside: the model says drop, the kernel has reject",
		}},
		{"a rule is not understood", func(p model.Packet, e *trace.Ending) error {
			if p.To.Addr().Is6() && p.To.Port() == 80 && p.From == model.FromPod {
				return errors.New("an unknown rule")
			}
			return nil
		}, []string{"[fd00:96::1]:80: an unknown rule"}},
	} {
		reports := Of(t.Context(), state.Explain(name("web")), network, asModel{state, network, tt.change}.both())
		var got []string
		for _, r := range reports {
			got = append(got, r.Differences...)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n%s\nwant\n%s", tt.what, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
		}
		if out := text(t, reports); !strings.Contains(out, "THE KERNEL'S RULES ARE OTHERS:\n    "+tt.want[0]) {
			t.Errorf("%s: not told:\n%s", tt.what, out)
		}
	}
}

// Without a kernel to read, nothing is said of it.
func TestNotReadBack(t *testing.T) {
	state, network := cluster()
	reports := Of(t.Context(), state.Explain(name("web")), network, nil)
	if out := text(t, reports); !strings.Contains(out, "The kernel's rules are not read back in this mode.") || reports[0].Kernel != "" {
		t.Errorf("%s", out)
	}
	if reports := Of(t.Context(), state.Explain(name("nobody")), network, nil); len(reports) != 0 {
		t.Errorf("a Service that isn't there: %v", reports)
	}
}

// Packets stand for a source that may come, and not for an endpoint, whose packets to itself are masqueraded.
func TestSources(t *testing.T) {
	state, network := cluster()
	for _, tt := range []struct{ pods, pod string }{
		{"10.244.0.0/16", "pod 10.244.0.1"},
		{"10.244.1.9/27", "pod 10.244.1.22"}, // the first are endpoints
		{"10.244.1.9/28", ""},                // all are
	} {
		network.Local.Prefixes[0] = netip.MustParsePrefix(tt.pods)
		asked := map[string]int{}
		all := slices.Concat(state.Explain(name("sticky")), state.Explain(name("lb")))
		Of(t.Context(), all, network, asModel{state, network, func(p model.Packet, _ *trace.Ending) error {
			asked[fmt.Sprint(p.From, " ", p.SourceAddr, " ", p.To)]++
			return nil
		}}.both())
		want := map[string]int{
			"node 192.0.2.1 10.96.0.4:80": 1, "outside 192.0.2.200 10.96.0.4:80": 1,
			"node 192.0.2.1 10.96.0.2:80": 1, "outside 192.0.2.200 10.96.0.2:80": 1, "outside 203.0.113.0 198.51.100.1:80": 1,
			"outside 192.0.2.200 198.51.100.1:80":                                            1, // which may not come
			"pod " + netip.MustParsePrefix(tt.pods).Addr().Next().String() + " 10.96.0.2:80": 1,
		}
		if tt.pod != "" {
			want[tt.pod+" 10.96.0.4:80"] = 1
		}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Errorf("pods of %s: -want +sent:\n%s", tt.pods, diff)
		}
	}
}
