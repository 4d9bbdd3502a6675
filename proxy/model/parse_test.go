package model_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
)

const serviceHead = `{"metadata": {"namespace": "ns", "name": "web"}, "spec": {"clusterIP": "10.96.0.1", "type": "LoadBalancer", `

// Each value that can't be used is told by its field, with what is the matter; all else of the object stands.
func TestParseServiceMistakes(t *testing.T) {
	for _, tt := range []struct{ spec, want string }{
		{`"clusterIPs": ["junk", "10.96.0.1"]`, `spec.clusterIPs: "junk" is not an IP address; it is left out`},
		{`"clusterIPs": ["10.96.0.1", "10.96.0.2"]`, `spec.clusterIPs: "10.96.0.2" is a second address of its family; it is left out`},
		{`"externalIPs": ["127.0.0.1"]`, `spec.externalIPs: "127.0.0.1" is unspecified, loopback or multicast; it is left out`},
		{`"externalIPs": ["::", "198.51.100.1"]`, `spec.externalIPs: "::" is unspecified`},
		{`"externalIPs": ["224.0.0.1"]`, `spec.externalIPs: "224.0.0.1" is unspecified, loopback or multicast`},
		{`"loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.1"]`, `spec.loadBalancerSourceRanges: "10.0.0.1" is not a CIDR; it is left out`},
		{`"loadBalancerSourceRanges": ["fd00::/129"]`, `spec.loadBalancerSourceRanges: "fd00::/129" is not a CIDR`},
		{`"ports": [{"port": 0}]`, `spec.ports[0].port: "0" is not within 1 to 65535; it is left out`},
		{`"ports": [{"port": 80}, {"name": "b", "port": 65536}]`, `spec.ports[1].port: "65536" is not within 1 to 65535`},
		{`"ports": [{"port": 80, "nodePort": -1}]`, `spec.ports[0].nodePort: "-1" is not within 1 to 65535`},
		{`"ports": [{"port": 80, "protocol": "ICMP"}]`, `spec.ports[0].protocol: "ICMP" is not TCP, UDP or SCTP; it is left out`},
		{`"ports": [{"port": 80}, {"port": 81, "protocol": "TCP"}]`, `spec.ports[1].name: "" is a second port's of this name and protocol; it is left out`},
		{`"externalTrafficPolicy": "Local", "healthCheckNodePort": 70000`, `spec.healthCheckNodePort: "70000" is not within 1 to 65535`},
		{`"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}`,
			`spec.sessionAffinityConfig.clientIP.timeoutSeconds: "86401" is not within 1 to 86400; it is left out`},
		{`"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}`, `"0" is not within 1 to 86400`},
	} {
		var in corev1.Service
		if err := json.Unmarshal([]byte(serviceHead+tt.spec+"}}"), &in); err != nil {
			t.Fatalf("%s: %v", tt.spec, err)
		}
		out, err := model.ParseService(&in)
		if err == nil || !strings.HasPrefix(err.Error(), "service ns/web: ") || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want %s", tt.spec, err, tt.want)
		}
		if out == nil || len(out.ClusterIPs) != 1 {
			t.Errorf("%s: the rest is %+v", tt.spec, out)
		}
	}
}

func TestParseServiceAffinity(t *testing.T) {
	for _, tt := range []struct {
		spec string
		want time.Duration
	}{
		{`"sessionAffinity": "None"`, 0},
		{`"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}`, 0},
		{`"sessionAffinity": "ClientIP"`, 3 * time.Hour},
		{`"sessionAffinity": "ClientIP", "sessionAffinityConfig": {}`, 3 * time.Hour},
		{`"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}`, 3 * time.Hour},
		{`"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}`, time.Second},
		{`"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}`, 24 * time.Hour},
		{`"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 2147483647}}`, 3 * time.Hour},
	} {
		var in corev1.Service
		if err := json.Unmarshal([]byte(serviceHead+tt.spec+"}}"), &in); err != nil {
			t.Fatal(err)
		}
		if out, _ := model.ParseService(&in); out.Affinity != tt.want {
			t.Errorf("%s: %v, want %v", tt.spec, out.Affinity, tt.want)
		}
	}
}

// What no proxy serves is nobody's mistake.
func TestParseNothing(t *testing.T) {
	for _, text := range []string{`{}`, `{"spec": {"clusterIP": "None"}}`, `{"spec": {"type": "ExternalName", "clusterIP": "10.96.0.1"}}`,
		`{"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": ""}}, "spec": {"clusterIP": "10.96.0.1"}}`} {
		var in corev1.Service
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			t.Fatal(err)
		}
		if out, err := model.ParseService(&in); out != nil || err != nil {
			t.Errorf("%s: %+v, %v", text, out, err)
		}
	}
	for _, text := range []string{`{}`, `{"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "FQDN", "endpoints": [{"addresses": ["junk"]}]}`} {
		var in discoveryv1.EndpointSlice
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			t.Fatal(err)
		}
		if out, err := model.ParseSlice(&in); out != nil || err != nil {
			t.Errorf("%s: %+v, %v", text, out, err)
		}
	}
}

func TestParseSliceMistakes(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{`"endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["junk"]}]`, `endpoints[1].addresses: "junk" is not an IP address; it is left out`},
		{`"endpoints": [{"addresses": []}]`, `endpoints[0].addresses: "" is empty; it is left out`},
		{`"endpoints": [{"addresses": ["fd00::1"]}]`, `endpoints[0].addresses: "fd00::1" is not an IPv4 address`},
		{`"endpoints": [{"addresses": ["169.254.169.254"]}]`, `endpoints[0].addresses: "169.254.169.254" is unspecified, loopback, link-local or multicast`},
		{`"endpoints": [{"addresses": ["127.0.0.1"]}]`, `"127.0.0.1" is unspecified, loopback, link-local or multicast`},
		{`"ports": [{"port": 65536}]`, `ports[0].port: "65536" is not within 1 to 65535`},
		{`"ports": [{"port": -5}]`, `ports[0].port: "-5" is not within 1 to 65535`},
		{`"ports": [{"port": 80, "protocol": "icmp"}]`, `ports[0].protocol: "icmp" is not TCP, UDP or SCTP`},
	} {
		text := `{"metadata": {"namespace": "ns", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", ` + tt.text + "}"
		var in discoveryv1.EndpointSlice
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			t.Fatal(err)
		}
		if out, err := model.ParseSlice(&in); out == nil || err == nil || !strings.HasPrefix(err.Error(), "endpoint slice ns/web-1: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %s", tt.text, err, tt.want)
		}
	}
}

// Whatever objects say, parsing them and what follows from them keeps to the invariants, in either order, and nothing of
// them is left when they are gone.
func FuzzObjects(f *testing.F) {
	for _, h := range modeltest.HostileObjects() {
		if len(h.Slices) > 20 || len(h.Services[0].Spec.LoadBalancerSourceRanges) > 20 {
			continue // large ones are no good to begin with
		}
		for i, service := range h.Services {
			other := h.Services[(i+1)%len(h.Services)]
			slice := &discoveryv1.EndpointSlice{}
			if len(h.Slices) > 0 {
				slice = h.Slices[i%len(h.Slices)]
			}
			f.Add(marshal(f, service), marshal(f, other), marshal(f, slice))
		}
	}
	f.Fuzz(func(t *testing.T, first, second, endpoints []byte) {
		var a, b corev1.Service
		var e discoveryv1.EndpointSlice
		if json.Unmarshal(first, &a) != nil || json.Unmarshal(second, &b) != nil || json.Unmarshal(endpoints, &e) != nil {
			return
		}
		forwards, backwards := model.NewState(model.Node{Name: "here", Zone: "a"}, modeltest.Network()), model.NewState(model.Node{Name: "here", Zone: "a"}, modeltest.Network())
		var undo []func()
		slice, _ := model.ParseSlice(&e)
		x, _ := model.ParseService(&a)
		y, _ := model.ParseService(&b)
		for _, s := range []*model.Service{x, y} {
			if s != nil {
				forwards.SetService(s)
				forwards.Commit()
				undo = append(undo, func() { forwards.DeleteService(s.Name) })
			}
		}
		if slice != nil {
			backwards.SetSlice(slice)
			forwards.SetSlice(slice)
			undo = append(undo, func() { forwards.DeleteSlice(slice.Service, slice.Name) })
		}
		for _, s := range []*model.Service{y, x} {
			// Of two objects of one name the later one counts.
			if s != nil && (s == y || y == nil || s.Name != y.Name) {
				backwards.SetService(s)
			}
		}
		forwards.Commit()
		backwards.Commit()
		for _, s := range []*model.State{forwards, backwards} {
			if err := invariants(s); err != nil {
				t.Fatal(err)
			}
		}
		if one, other := told(forwards), told(backwards); one != other {
			t.Fatalf("in one order\n%s\nin the other\n%s", one, other)
		}
		for _, f := range undo {
			f()
		}
		forwards.Commit()
		if left := told(forwards); left != "" {
			t.Fatalf("left: %s", left)
		}
	})
}

func marshal(f *testing.F, object any) []byte {
	data, err := json.Marshal(object)
	if err != nil {
		f.Fatal(err)
	}
	return data
}

func told(s *model.State) string {
	var out []string
	for p := range s.Ports() {
		out = append(out, fmt.Sprintf("%+v", *p))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
