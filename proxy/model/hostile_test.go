package model_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
)

// place is where packets are sent to.
type place struct {
	family   model.Family
	addr     netip.Addr
	protocol model.Protocol
	port     uint16
}

// invariants hold whatever the objects are: a backend stands on them.
func invariants(s *model.State) error {
	var errs []error
	bad := func(p *model.Port, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s %s %s: %s", p.Key, p.Key.Protocol, p.Key.Family, fmt.Sprintf(format, args...)))
	}
	keys, owners := map[model.PortKey]bool{}, map[place]model.PortKey{}
	for p := range s.Ports() {
		if keys[p.Key] {
			bad(p, "there are two of it")
		}
		if keys[p.Key] = true; s.Port(p.Key) != p {
			bad(p, "is not found by its key")
		}
		if len(p.Frontends) == 0 {
			bad(p, "nothing leads to it")
		}
		for _, problem := range checkLists(p) {
			bad(p, "%s", problem)
		}
		for _, f := range p.Frontends {
			at := place{p.Key.Family, f.Addr, p.Key.Protocol, f.Port}
			if owner, taken := owners[at]; taken {
				bad(p, "%v is %s's too", f, owner)
			}
			owners[at] = p.Key
			for _, problem := range checkFrontend(p, f) {
				bad(p, "%v %s", f, problem)
			}
		}
	}
	return errors.Join(errs...)
}

func checkLists(p *model.Port) []string {
	var out []string
	used := map[model.Set]bool{}
	for _, f := range p.Frontends {
		for _, r := range f.Routes {
			used[r.Set] = used[r.Set] || r.Action == model.Balance
		}
	}
	for _, set := range []model.Set{model.Cluster, model.Local} {
		list := p.Endpoints(set)
		sorted := slices.IsSortedFunc(list, func(a, b model.Endpoint) int { return a.Addr.Compare(b.Addr) })
		twice := len(slices.CompactFunc(slices.Clone(list), func(a, b model.Endpoint) bool { return a.Addr == b.Addr })) < len(list)
		if used[set] && len(list) == 0 || !sorted || twice {
			out = append(out, fmt.Sprintf("list %s: used %v, sorted %v, something twice %v: %v", set, used[set], sorted, twice, list))
		}
		for _, e := range list {
			addr := e.Addr.Addr()
			if model.FamilyOf(addr) != p.Key.Family || e.Addr.Port() == 0 || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() {
				out = append(out, fmt.Sprintf("endpoint %v", e))
			}
			if set == model.Local && !e.OnNode {
				out = append(out, fmt.Sprintf("endpoint %v of another node is local", e))
			}
		}
	}
	return out
}

func checkFrontend(p *model.Port, f model.Frontend) []string {
	var out []string
	switch {
	case f.Port == 0:
		out = append(out, "has no port")
	case f.Kind == model.NodePort && f.Addr.IsValid():
		out = append(out, "is a NodePort with an address")
	case f.Kind != model.NodePort && (!f.Addr.IsValid() || model.FamilyOf(f.Addr) != p.Key.Family || f.Addr.IsLoopback() || f.Addr.IsMulticast() || f.Addr.IsUnspecified() || f.Addr.Zone() != ""):
		out = append(out, "has an address that none can have")
	}
	for _, r := range f.Routes {
		if r.Action != model.Balance && r.Masquerade {
			out = append(out, "masquerades what goes nowhere")
		}
	}
	for _, r := range f.Sources {
		if f.Kind != model.LoadBalancer || r != r.Masked() || model.FamilyOf(r.Addr()) != p.Key.Family {
			out = append(out, fmt.Sprintf("has the source %v", r))
		}
	}
	return out
}

func TestHostileObjects(t *testing.T) {
	for _, h := range modeltest.HostileObjects() {
		c := h.Cluster(modeltest.Network())
		c.State.Commit()
		if err := invariants(c.State); err != nil {
			t.Errorf("%s: %v", h.Name, err)
		}
		good := c.State.Port(model.PortKey{Service: model.Name{Namespace: "ns", Name: "good"}, Port: "p0", Protocol: model.TCP, Family: model.IPv4})
		if good == nil || len(good.Frontends) != 2 || fmt.Sprint(good.Cluster) != "[{10.244.1.1:8080 false}]" {
			t.Errorf("%s: a good Service is %+v", h.Name, good)
		}
		if fresh := c.Fresh(); invariants(fresh) != nil || len(slices.Collect(fresh.Ports())) != len(slices.Collect(c.State.Ports())) {
			t.Errorf("%s: told in another order it differs", h.Name)
		}
	}
}

// What can be used of hostile objects is used, as the API's documentation has it.
func TestHostileOutcome(t *testing.T) {
	web := model.PortKey{Service: model.Name{Namespace: "ns", Name: "web"}, Port: "p0", Protocol: model.TCP, Family: model.IPv4}
	for _, h := range modeltest.HostileObjects() {
		c := h.Cluster(modeltest.Network())
		c.State.Commit()
		switch h.Name {
		case "5000 endpoints":
			for _, family := range []model.Family{model.IPv4, model.IPv6} {
				key := model.PortKey{Service: model.Name{Namespace: "ns", Name: "many"}, Port: "p0", Protocol: model.TCP, Family: family}
				if p := c.State.Port(key); p == nil || len(p.Cluster) != 5000 {
					t.Errorf("%s: %s", h.Name, family)
				}
			}
		case "invalid slices":
			if p := c.State.Port(web); fmt.Sprint(p.Cluster) != "[{10.244.2.1:8080 false} {10.244.2.4:8080 false} {10.244.2.15:8080 false}]" {
				t.Errorf("%s: %v", h.Name, p.Cluster)
			}
		case "4000 loadBalancerSourceRanges":
			key := web
			key.Service.Name = "fenced"
			if p := c.State.Port(key); len(p.Frontends[1].Sources) != 2004 {
				t.Errorf("%s: %d sources", h.Name, len(p.Frontends[1].Sources))
			}
		}
	}
}
