package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/test/kernel"
)

// program is orlop-proxy, over a directory of objects.
type program struct {
	t    *testing.T
	path string
	dir  string
	args []string
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

var built = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("ORLOP_BIN"); dir != "" {
		return filepath.Join(dir, "orlop-proxy"), nil
	}
	dir, err := os.MkdirTemp("", "orl-proxy-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "orlop-proxy")
	cmd := exec.Command("go", "build", "-o", path, "github.com/orlop/orlop/cmd/orlop-proxy")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
})

func newProgram(t *testing.T, mode string) *program {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, path: path, dir: t.TempDir(), log: &bytes.Buffer{}}
	p.args = []string{"--services-dir", p.dir, "--hostname-override", "here", "--proxy-mode", mode, "--bind-address", "192.0.2.1",
		"--cluster-cidr", "10.244.0.0/16,fd00:244::/64", "--healthz-bind-address", "127.0.0.1:10256", "--metrics-bind-address", "127.0.0.1:10249",
		"--log-level", "debug", "--oom-score-adj", "0"}
	t.Cleanup(func() {
		p.kill()
		if out, err := exec.Command(path, "--cleanup").CombinedOutput(); err != nil {
			t.Errorf("--cleanup: %v: %s", err, out)
		}
		if t.Failed() {
			t.Logf("the program's log:\n%s", p.log)
		}
	})
	return p
}

// write puts objects into the directory at once.
func (p *program) write(objects ...runtime.Object) {
	p.t.Helper()
	var all []string
	for _, o := range objects {
		kind, version := "Service", "v1"
		if _, ok := o.(*corev1.Service); !ok {
			kind, version = "EndpointSlice", "discovery.k8s.io/v1"
		}
		data, err := yaml.Marshal(o)
		if err != nil {
			p.t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("apiVersion: %s\nkind: %s\n%s", version, kind, data))
	}
	temp := filepath.Join(p.dir, ".objects")
	if err := os.WriteFile(temp, []byte(strings.Join(all, "---\n")), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(p.dir, "objects.yaml")); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) start() {
	p.t.Helper()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

// eventually sends a packet until it ends where it should.
func (n *topology) eventually(t *testing.T, f family, p packet) {
	t.Helper()
	end := time.Now().Add(kernel.Patient(20 * time.Second))
	for {
		problem := n.check(f, p, p.want)
		if problem == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%v: %s", p, problem)
		}
	}
}

// Connections that are open go on whatever happens to the rules and to the program, and flows of UDP without a datagram lost;
// it may be killed at any time, and what it finds when it starts again becomes what the objects say.
func TestKilled(t *testing.T) {
	n := network(t)
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, m.needs...)
			p := newProgram(t, m.name)
			all := []string{"pod-a", "pod-b", "remote-a", "remote-b"}
			write := func(endpoints ...string) {
				p.write(service(0, nodePort(30080)), slice(0, "web", endpoints...),
					service(0, named("sticky", family(0).cluster(2)), affinity(1000)), slice(0, "sticky", all...),
					service(0, named("stream", family(0).cluster(3)), protocol(corev1.ProtocolUDP)), slice(0, "stream", all...))
			}
			write(all...)
			p.start()
			to := family(0).address("cluster-1:80")
			n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: allPods + " kept"})
			n.eventually(t, 0, packet{from: "client", to: "cluster-2:80", want: allPods + " kept"})
			sticky, err := n.send(hostOf("client"), family(0).address("cluster-2:80"), model.TCP, 0)
			if err != nil {
				t.Fatal(err)
			}
			var open []net.Conn
			for range 20 {
				open = append(open, n.dial(t, hostOf("client"), to))
			}
			n.eventually(t, 0, packet{from: "client", to: "cluster-3:80", protocol: model.UDP, want: allPods + " kept"})
			for range 4 {
				n.stream(t, hostOf("client"), family(0).address("cluster-3:80"))
			}
			random := rand.New(rand.NewPCG(1, 2))
			for i := range 12 {
				endpoints := []string{"pod-a", "remote-a"}[:1+random.IntN(2)]
				write(endpoints...)
				time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
				p.kill()
				p.start()
				for _, c := range open {
					if _, err := ask(c); err != nil {
						t.Fatalf("restart %d: a connection broke: %v", i, err)
					}
				}
				n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: strings.Join(endpoints, "|") + " kept"})
				for range 5 {
					got, err := n.send(hostOf("client"), family(0).address("cluster-2:80"), model.TCP, 0)
					if err != nil || got.server != sticky.server {
						t.Fatalf("restart %d: the client that had %v got %v, %v", i, sticky.server, got, err)
					}
				}
			}
		})
	}
}

// stream sends datagrams of one flow, each after the answer to the last, until the test ends. All are answered, by one server.
func (n *topology) stream(t *testing.T, from host, to netip.AddrPort) {
	t.Helper()
	c := n.dialBy(t, "udp", from, to)
	first, err := ask(c)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		answered := 0
		for {
			select {
			case <-stop:
				t.Logf("%d datagrams were answered by %v", answered, first.server)
				return
			case <-time.After(2 * time.Millisecond):
			}
			if got, err := ask(c); err != nil || got.server != first.server {
				t.Errorf("after %d datagrams to %v: %v, %v", answered, first.server, got, err)
				return
			}
			answered++
		}
	})
	t.Cleanup(func() { close(stop); running.Wait() })
}

// dial opens a connection that stays.
func (n *topology) dial(t *testing.T, from host, to netip.AddrPort) net.Conn {
	t.Helper()
	return n.dialBy(t, "tcp", from, to)
}

func (n *topology) dialBy(t *testing.T, network string, from host, to netip.AddrPort) net.Conn {
	t.Helper()
	var c net.Conn
	err := n.namespaces[from.namespace].in(func() (err error) {
		c, err = net.DialTimeout(network, to.String(), 5*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A client that never stops sending is sent to where the Service leads now.
func TestUDPFollows(t *testing.T) {
	n := network(t)
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, m.needs...)
			p := newProgram(t, m.name)
			udp := protocol(corev1.ProtocolUDP)
			p.write(service(0, udp, nodePort(30053)), slice(0, "web", "pod-a"))
			p.start()
			for i, to := range []string{"cluster-1:80", "node:30053"} {
				from := packet{from: "client", to: to, protocol: model.UDP}
				const source = 5353 // of one flow
				for _, step := range []struct {
					endpoints []string
					want      string
				}{
					{[]string{"pod-a"}, "pod-a"}, {[]string{"remote-a"}, "remote-a"}, {nil, ""}, {[]string{"pod-b"}, "pod-b"},
					{[]string{"pod-b terminating"}, "pod-b"}, {[]string{"pod-b gone", "remote-b"}, "remote-b"},
				} {
					p.write(service(0, udp, nodePort(30053)), slice(0, "web", step.endpoints...))
					end := time.Now().Add(kernel.Patient(20 * time.Second))
					for {
						got, err := n.send(hostOf("client"), family(0).address(to), model.UDP, uint16(source+i))
						if err == nil && (step.want == "" && got.rejected || hostAt(got.server.Addr()) == step.want) {
							break
						}
						if time.Now().After(end) {
							t.Fatalf("%v, endpoints %v: got %+v, %v", from, step.endpoints, got, err)
						}
					}
				}
			}
		})
	}
}

// The servers say what load balancers and people ask.
func TestServers(t *testing.T) {
	n := network(t)
	p := newProgram(t, modes[0].name)
	check := func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 31000 }
	p.write(service(0, loadBalancer(family(0).public(1)), externalLocal, check), slice(0, "web", "pod-a", "pod-b", "remote-a"))
	p.start()
	n.eventually(t, 0, packet{from: "outside", to: "public-1:80", want: "pod-a|pod-b kept"})
	get := func(url string) (int, string, http.Header) {
		t.Helper()
		r, err := http.Get(url)
		if err != nil {
			return 0, err.Error(), nil
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body), r.Header
	}
	for _, want := range []struct {
		url  string
		code int
		text string
	}{
		{"http://127.0.0.1:10256/healthz", 200, `"nodeEligible":true`},
		{"http://127.0.0.1:10256/livez", 200, `"status":{"IPv4":{"lastUpdated"`},
		{"http://127.0.0.1:10249/configz", 200, `{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration","apiVersion":"kubeproxy.config.k8s.io/v1alpha1"`},
		{"http://127.0.0.1:10249/healthz", 200, "ok"},
		{"http://127.0.0.1:10249/proxyMode", 200, "nftables"},
		{"http://127.0.0.1:10249/metrics", 200, "kubeproxy_sync_proxy_rules_duration_seconds_count"},
		{"http://192.0.2.1:31000/", 200, `"localEndpoints":2`},
	} {
		if code, body, _ := get(want.url); code != want.code || !strings.Contains(body, want.text) {
			t.Errorf("%s: %d %.200s; want %d with %s", want.url, code, body, want.code, want.text)
		}
	}
	if _, _, header := get("http://192.0.2.1:31000/"); header.Get("X-Load-Balancing-Endpoint-Weight") != "2" {
		t.Errorf("weight: %v", header)
	}
	p.write(service(0, loadBalancer(family(0).public(1)), externalLocal, check), slice(0, "web", "pod-a terminating", "remote-a"))
	for end := time.Now().Add(kernel.Patient(20 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		code, body, _ := get("http://192.0.2.1:31000/")
		if code == 503 && strings.Contains(body, `"localEndpoints":0`) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("without ready endpoints: %d %s", code, body)
		}
	}
	p.write(service(0))
	for end := time.Now().Add(kernel.Patient(20 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		if code, _, _ := get("http://192.0.2.1:31000/"); code == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the server of a Service that has no health check goes on")
		}
	}
}

// In mode iptables a load balancer reaches the server for health checks even if a firewall of the node lets nobody in; in mode
// nftables nobody's tables can do that for others, and the firewall decides, as with kube-proxy.
func TestHealthCheckPasses(t *testing.T) {
	n := network(t)
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, append(m.needs, kernel.Command("iptables"), kernel.Command("ip6tables"))...)
			p := newProgram(t, m.name)
			var all []runtime.Object
			for f, name := range []string{"web", "six"} {
				f := family(f)
				check := func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 31000 + int32(f) }
				all = append(all, service(f, named(name, f.cluster(1)), loadBalancer(f.public(1)), externalLocal, check), slice(f, name, "pod-a", "remote-a"))
			}
			p.write(all...)
			p.start()
			n.eventually(t, 0, packet{from: "outside", to: "public-1:80", want: "pod-a kept"})
			n.eventually(t, 1, packet{from: "outside", to: "public-1:80", want: "pod-a kept"})
			for f, program := range []string{"iptables", "ip6tables"} {
				rule := []string{"INPUT", "-i", "eth0", "-p", "tcp", "-j", "REJECT"}
				command(t, program, append([]string{"-A"}, rule...)...)
				t.Cleanup(func() { command(t, program, append([]string{"-D"}, rule...)...) })
				at := hostOf("node").addrs[f]
				want := 200
				if m.name == "nftables" {
					want = 0
				}
				for end := time.Now().Add(kernel.Patient(20 * time.Second)); ; { // the server comes after the rules
					code, body := n.get(t, netip.AddrPortFrom(at, uint16(31000+f)))
					if code == want && (code == 0 || strings.Contains(body, `"localEndpoints":1`)) {
						break
					}
					if time.Now().After(end) {
						t.Errorf("%v from outside, behind a firewall: %d %s; want %d", at, code, body, want)
						break
					}
				}
				if code, body := n.get(t, netip.AddrPortFrom(at, 31999)); code != 0 {
					t.Errorf("the firewall does not work: %d %s", code, body)
				}
			}
		})
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v: %s", name, args, err, out)
	}
}

// get asks from outside; the code is 0 if nobody answers.
func (n *topology) get(t *testing.T, from netip.AddrPort) (int, string) {
	t.Helper()
	dial := func(_ context.Context, _, addr string) (conn net.Conn, err error) {
		err = n.namespaces["outside"].in(func() error {
			conn, err = net.DialTimeout("tcp", addr, patience)
			return err
		})
		return conn, err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	r, err := client.Get("http://" + from.String() + "/")
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// NodePorts that are served at a range of addresses are served at one that an interface gets while the program runs, and no
// longer at one that it loses.
func TestNodePortAddressesMove(t *testing.T) {
	n := network(t)
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, m.needs...)
			p := newProgram(t, m.name)
			p.args = append(p.args, "--nodeport-addresses", "192.0.2.64/26,2001:db8::64:0/112")
			p.write(service(0, nodePort(30080)), slice(0, "web", "pod-a"), service(1, named("six", family(1).cluster(1)), nodePort(30080)), slice(1, "six", "pod-a"))
			p.start()
			n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: "pod-a kept"})
			n.eventually(t, 1, packet{from: "client", to: "cluster-1:80", want: "pod-a kept"})
			for _, address := range []string{"192.0.2.70/24", "2001:db8::64:70/64"} {
				at := netip.AddrPortFrom(netip.MustParsePrefix(address).Addr(), 30080)
				for range 2 {
					if err := n.addr("node", "eth0", address); err != nil {
						t.Fatal(err)
					}
					n.until(t, at, func(r reached) bool { return hostAt(r.server.Addr()) == "pod-a" })
					if err := n.dropAddr("node", "eth0", address); err != nil {
						t.Fatal(err)
					}
					n.until(t, at, func(r reached) bool { return !r.server.IsValid() })
				}
			}
			if got, err := n.send(hostOf("outside"), family(0).address("node:30080"), model.TCP, 0); err != nil || !got.rejected {
				t.Errorf("at an address out of the range: %+v, %v", got, err)
			}
		})
	}
}

// until sends from outside until what becomes of a packet is what it should be.
func (n *topology) until(t *testing.T, to netip.AddrPort, want func(reached) bool) {
	t.Helper()
	for end := time.Now().Add(kernel.Patient(20 * time.Second)); ; {
		got, err := n.send(hostOf("outside"), to, model.TCP, 0)
		if err == nil && want(got) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("to %v: %+v, %v", to, got, err)
		}
	}
}
