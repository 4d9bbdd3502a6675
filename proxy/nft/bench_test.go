package nft

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
)

// bigPort is one of many Services with two endpoints each.
func bigPort(i, second int) *model.Port {
	addr := func(a, b int) netip.Addr { return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(i >> 8), byte(i)}) }
	balance := model.Route{Set: model.Cluster}
	masq := model.Route{Set: model.Cluster, Masquerade: true}
	return &model.Port{
		Key: model.PortKey{Service: model.Name{Namespace: fmt.Sprintf("namespace-%d", i%100), Name: fmt.Sprintf("service-%d", i)},
			Port: "http", Protocol: model.TCP, Family: model.IPv4},
		Frontends: []model.Frontend{{Kind: model.ClusterIP, Addr: addr(10, 96+i>>16), Port: 80, Routes: model.Routes{balance, masq, masq}}},
		Cluster: []model.Endpoint{{Addr: netip.AddrPortFrom(addr(10, 128), 8080)},
			{Addr: netip.AddrPortFrom(addr(10, second), 8080)}},
	}
}

func bigRules(n int) model.Rules {
	rules := model.Rules{Network: modeltest.Network()}
	for i := range n {
		rules.Ports = append(rules.Ports, bigPort(i, 129))
	}
	return rules
}

func peakMB(b *testing.B) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kB float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kB); n == 1 {
			b.ReportMetric(kB/1024, "peak-MB")
		}
	}
}

func BenchmarkReplace(b *testing.B) {
	for _, n := range []int{1000, 5000, 10000, 44000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			backend := newBackend(b)
			rules := bigRules(n)
			for b.Loop() {
				if err := backend.Replace(b.Context(), rules); err != nil {
					b.Fatal(err)
				}
			}
			peakMB(b)
		})
	}
}

// BenchmarkApply changes one endpoint, and how many a Service has.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{10, 1000, 10000, 44000} {
		backend := newBackend(b)
		rules := bigRules(n)
		if err := backend.Replace(b.Context(), rules); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		apply := func(b *testing.B, change func(old *model.Port, i int) *model.Port) {
			i := 0
			for b.Loop() {
				i++
				old := rules.Ports[i%n]
				rules.Ports[i%n] = change(old, i)
				if err := backend.Apply(b.Context(), []model.Change{{Old: old, New: rules.Ports[i%n]}}); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.Run(fmt.Sprintf("endpoint/%d", n), func(b *testing.B) {
			apply(b, func(_ *model.Port, i int) *model.Port { return bigPort(i%n, 130+i/n%100) })
		})
		b.Run(fmt.Sprintf("scale/%d", n), func(b *testing.B) {
			apply(b, func(old *model.Port, i int) *model.Port {
				out := *bigPort(i%n, 129)
				out.Cluster = out.Cluster[:1+(len(old.Cluster))%2]
				return &out
			})
		})
	}
}
