package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/proxy/model"
)

// manyService is one of many Services; their endpoints are the same two pods, behind a pair of ports each.
func manyService(i int) *corev1.Service {
	s := service(0, named(fmt.Sprintf("service-%05d", i), manyAddr(i).String()))
	s.Labels = map[string]string{"app.kubernetes.io/name": s.Name}
	s.Spec.Selector = s.Labels
	return s
}

func manyAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(97 + i>>16), byte(i >> 8), byte(i)})
}

func manySlice(i int, endpoints ...string) *discoveryv1.EndpointSlice {
	s := slice(0, fmt.Sprintf("service-%05d", i), endpoints...)
	s.Ports = s.Ports[:1]
	return s
}

func thisNode() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "here"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: hostOf("node").addrs[0].String()}, {Type: corev1.NodeInternalIP, Address: hostOf("node").addrs[1].String()},
		}},
	}
}

// sizes are the numbers of Services, or what ORLOP_BENCH_SERVICES says: "10,44000".
func sizes(b *testing.B) []int {
	b.Helper()
	text := os.Getenv("ORLOP_BENCH_SERVICES")
	if text == "" {
		text = "10,1000,5000,10000"
	}
	var out []int
	for s := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(s)
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

// BenchmarkProxy is what a proxy costs and how quickly it follows: ours and kube-proxy, over the same API server, one
// after the other. Run it with -benchtime 1x; each takes about a minute.
func BenchmarkProxy(b *testing.B) {
	n := network(b)
	for _, rules := range []string{"nftables", "iptables"} {
		for _, name := range []string{ours, peers} {
			if name == ours && !slices.ContainsFunc(modes, func(m mode) bool { return m.name == rules }) {
				continue
			}
			for _, size := range sizes(b) {
				b.Run(fmt.Sprintf("%s/%s/%d", rules, name, size), func(b *testing.B) {
					for b.Loop() {
						n.measure(b, name, rules, size)
					}
				})
			}
		}
	}
}

func (n *topology) measure(b *testing.B, name, mode string, size int) {
	server := kubetest.New(b)
	server.Set(thisNode())
	for i := range size {
		server.Set(manyService(i), manySlice(i, "pod-a", "pod-b"))
	}
	if _, err := programOf(name); err != nil { // built before the clock runs
		b.Fatal(err)
	}
	began := time.Now()
	s := start(b, name, mode, server, defaultNetwork())
	n.answering(b, size)
	b.ReportMetric(time.Since(began).Seconds(), "s-to-all-answering")
	time.Sleep(3 * time.Second)
	b.ReportMetric(s.pssMB(b), "MB-pss")
	n.changes(b, server, size)
	n.churn(b, s, size)
	n.latency(b, size)
	b.ReportMetric(0, "ns/op")
	s.stop()
}

// answering waits until a hundred Services, the first and the last among them, have answered.
func (n *topology) answering(b *testing.B, size int) {
	var wg sync.WaitGroup
	sample := []int{0, size - 1}
	for range min(100, size) {
		sample = append(sample, rand.IntN(size))
	}
	for _, part := range [][]int{sample[:len(sample)/2], sample[len(sample)/2:]} {
		wg.Go(func() {
			for _, i := range part {
				for end := time.Now().Add(5 * time.Minute); ; {
					got, err := n.send(hostOf("client"), netip.AddrPortFrom(manyAddr(i), 80), model.TCP, 0)
					if err == nil && got.server.IsValid() {
						break
					}
					if time.Now().After(end) {
						b.Errorf("service %d does not answer: %+v, %v", i, got, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// changes gives Services another endpoint, one at a time, and takes the time until the first packet gets there.
func (n *topology) changes(b *testing.B, server *kubetest.Server, size int) {
	var took []time.Duration
	const rest = 1200 * time.Millisecond // more than kube-proxy waits between syncs
	for range 20 {
		time.Sleep(rest)
		i := rand.IntN(size)
		began := time.Now()
		server.Set(manySlice(i, "remote-a"))
		for {
			got, err := n.send(hostOf("client"), netip.AddrPortFrom(manyAddr(i), 80), model.TCP, 0)
			if err != nil {
				b.Fatal(err)
			}
			if hostAt(got.server.Addr()) == "remote-a" {
				break
			}
		}
		took = append(took, time.Since(began))
		time.Sleep(rest)
		server.Set(manySlice(i, "pod-a", "pod-b"))
	}
	report(b, took, "change")
}

func report(b *testing.B, took []time.Duration, what string) {
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(took[len(took)/2]), "ms-"+what+"-p50")
	b.ReportMetric(ms(took[len(took)*99/100]), "ms-"+what+"-p99")
}

// churn takes the processor time of 400 changes in 20 seconds.
func (n *topology) churn(b *testing.B, s *subject, size int) {
	time.Sleep(2 * time.Second)
	before := s.cpu(b)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for k := range 400 {
		<-tick.C
		i := rand.IntN(size)
		s.server.Set(manySlice(i, [][]string{{"pod-a", "pod-b"}, {"pod-a"}, {"pod-b", "remote-a"}}[k%3]...))
	}
	time.Sleep(time.Second)
	b.ReportMetric((s.cpu(b) - before).Seconds(), "cpu-s-churn")
	b.ReportMetric(s.pssMB(b), "MB-pss-after-churn")
}

// latency is how long the first packet of a connection and its answer take, through a Service and to a pod itself.
func (n *topology) latency(b *testing.B, size int) {
	for what, to := range map[string]func() netip.AddrPort{
		"service": func() netip.AddrPort { return netip.AddrPortFrom(manyAddr(rand.IntN(size)), 80) },
		"direct":  func() netip.AddrPort { return netip.AddrPortFrom(hostOf("pod-a").addrs[0], servedPorts[0]) },
	} {
		var took []time.Duration
		err := n.namespaces["client"].in(func() error {
			for range 3000 {
				d, err := connectTime(to())
				if err != nil {
					return err
				}
				took = append(took, d)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		slices.Sort(took)
		us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
		b.ReportMetric(us(took[len(took)/2]), "us-"+what+"-p50")
		b.ReportMetric(us(took[len(took)*99/100]), "us-"+what+"-p99")
	}
}

// connectTime is that of a TCP handshake, by the calling thread.
func connectTime(to netip.AddrPort) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	// Closed with a reset, so that no port is held afterwards.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, err
	}
	began := time.Now()
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	return time.Since(began), err
}
