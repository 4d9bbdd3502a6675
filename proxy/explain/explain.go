// Package explain says for people and machines where packets to a Service go from a node and why, by the model and by the
// rules that the kernel has.
package explain

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/trace"
)

// Report is about one port of a Service in one family.
type Report struct {
	Service   string     `json:"service"`
	Port      string     `json:"port,omitempty"`
	Protocol  string     `json:"protocol"`
	Family    string     `json:"family"`
	Affinity  string     `json:"affinity,omitempty"` // how long a client keeps its endpoint
	Topology  string     `json:"topology,omitempty"`
	Frontends []Frontend `json:"frontends"`
	Endpoints []Endpoint `json:"endpoints"`
	// Kernel is what was compared with it: "" if nothing, as the mode can't be read back.
	Kernel string `json:"kernel,omitempty"`
	// Differences are between the model and the kernel.
	Differences []string `json:"differences,omitempty"`
}

// Frontend is where the Service is reached.
type Frontend struct {
	Kind    string   `json:"kind"`
	Address string   `json:"address"`           // with its port
	Sources []string `json:"sources,omitempty"` // the only ones that may come
	Owner   string   `json:"owner,omitempty"`   // another Service that has the address
	Routes  []Route  `json:"routes,omitempty"`
}

// Route is what becomes of packets from somewhere.
type Route struct {
	From       string   `json:"from"`
	Action     string   `json:"action"`
	Policy     string   `json:"policy,omitempty"`
	Endpoints  []string `json:"endpoints,omitempty"`
	Masquerade bool     `json:"masquerade,omitempty"`
	Why        string   `json:"why,omitempty"`
}

// Endpoint is one that a slice names.
type Endpoint struct {
	Address string `json:"address"`
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"`
	Used    bool   `json:"used"`
	Local   bool   `json:"local,omitempty"`
	Why     string `json:"why,omitempty"` // why not
}

// Kernel follows a packet through the rules that the kernel has in one family.
type Kernel interface {
	// Trace tells where the first packet of a connection ends.
	Trace(ctx context.Context, p trace.Packet) (trace.Ending, error)
}

// Of makes reports. Kernel may be empty, for a mode that can't be read back.
func Of(ctx context.Context, all []model.Explanation, network model.Network, kernel map[model.Family]Kernel) []Report {
	var out []Report
	for _, x := range all {
		r := of(x)
		if k := kernel[x.Port.Key.Family]; k != nil {
			r.Kernel = "read back"
			r.Differences = comparison{port: x.Port, network: network, kernel: k}.differences(ctx)
		}
		out = append(out, r)
	}
	return out
}

func of(x model.Explanation) Report {
	key := x.Port.Key
	r := Report{Service: key.Service.String(), Port: key.Port, Protocol: key.Protocol.String(), Family: key.Family.String(), Topology: x.Topology}
	if x.Port.Affinity != 0 {
		r.Affinity = x.Port.Affinity.String()
	}
	for _, f := range x.Port.Frontends {
		r.Frontends = append(r.Frontends, frontend(x.Port, f))
	}
	for _, l := range x.Lost {
		r.Frontends = append(r.Frontends, Frontend{Kind: l.Frontend.Kind.String(), Address: addressOf(l.Frontend), Owner: l.To.String()})
	}
	for _, e := range x.Endpoints {
		r.Endpoints = append(r.Endpoints, Endpoint{Address: e.Addr.String(), Pod: e.Pod, Node: e.Node, Used: e.Cluster, Local: e.Local, Why: e.Why})
	}
	return r
}

func addressOf(f model.Frontend) string {
	if f.Kind == model.NodePort {
		return fmt.Sprintf("port %d of this node", f.Port)
	}
	return netip.AddrPortFrom(f.Addr, f.Port).String()
}

func frontend(port *model.Port, f model.Frontend) Frontend {
	out := Frontend{Kind: f.Kind.String(), Address: addressOf(f)}
	for _, s := range f.Sources {
		out.Sources = append(out.Sources, s.String())
	}
	for source, route := range f.Routes {
		r := Route{From: model.Source(source).String(), Action: route.Action.String(), Masquerade: route.Masquerade}
		switch route.Action {
		case model.Balance:
			r.Policy = route.Set.String()
			for _, e := range port.Endpoints(route.Set) {
				r.Endpoints = append(r.Endpoints, e.Addr.String())
			}
		case model.Reject:
			r.Why = "nobody serves it, on any node"
		case model.Drop:
			r.Why = "its traffic policy is Local, and nobody serves it on this node"
		}
		out.Routes = append(out.Routes, r)
	}
	return out
}
