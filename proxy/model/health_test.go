package model_test

import (
	"net/netip"
	"testing"
	"unique"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
)

// A health check has the addresses in each family, once each whatever the slices, and is told anew only if it is another.
func TestHealthChecks(t *testing.T) {
	s := model.NewState(model.Node{Name: "here"}, modeltest.Network())
	web := model.Name{Namespace: "ns", Name: "web"}
	service := &model.Service{
		Name: web, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")}, HealthCheckNodePort: 31000,
		Ports: []model.ServicePort{{Name: "a", Protocol: model.TCP, Port: 80}, {Name: "b", Protocol: model.TCP, Port: 81}},
	}
	slice := func(name string, family model.Family, endpoints ...model.SliceEndpoint) {
		s.SetSlice(&model.Slice{Name: model.Name{Namespace: "ns", Name: name}, Service: web, Family: family, Endpoints: endpoints,
			Ports: []model.SlicePort{{Name: "a", Protocol: model.TCP, Port: 8080}, {Name: "b", Protocol: model.TCP, Port: 8081}}})
	}
	at := func(addr, node string, ready bool) model.SliceEndpoint {
		return model.SliceEndpoint{Addr: netip.MustParseAddr(addr), Node: unique.Make(node), Ready: ready, Serving: true, Terminating: !ready}
	}
	check := func(when string, v4, v6 int) {
		t.Helper()
		s.Commit()
		want := []model.HealthCheck{{Service: web, Port: 31000, LocalEndpoints: map[model.Family]int{model.IPv4: v4, model.IPv6: v6}}}
		if diff := gocmp.Diff(want, s.HealthChecks()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	s.SetService(service)
	check("without slices", 0, 0)
	slice("one", model.IPv4, at("10.244.0.1", "here", true), at("10.244.0.2", "here", false), at("10.244.1.1", "there", true))
	slice("two", model.IPv4, at("10.244.0.1", "here", true), at("10.244.0.3", "here", true))
	slice("six", model.IPv6, at("fd00::1", "here", true))
	check("an address in two slices", 2, 1)
	before := s.HealthChecks()
	slice("one", model.IPv4, at("10.244.0.1", "here", true), at("10.244.1.2", "there", true))
	check("another node's endpoint", 2, 1)
	if now := s.HealthChecks(); &now[0] != &before[0] {
		t.Error("it is told as another, and is none")
	}
	s.SetNode(model.Node{Name: "there"})
	check("another node", 1, 0)
	s.DeleteService(web)
	if s.Commit(); len(s.HealthChecks()) > 0 {
		t.Errorf("without the Service: %v", s.HealthChecks())
	}
}
