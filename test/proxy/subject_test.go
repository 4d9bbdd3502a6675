package proxy

import (
	"bytes"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/test/cluster"
)

// subject is a proxy that follows an API server: ours, or the real one.
type subject struct {
	name   string
	server *kubetest.Server
	cmd    *exec.Cmd
	log    *bytes.Buffer
}

// The subjects.
const (
	ours  = "orlop-proxy"
	peers = "kube-proxy"
)

// kubeProxyConfig is what both read.
func kubeProxyConfig(mode, kubeconfig string, n model.Network) map[string]any {
	config := map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": mode, "hostnameOverride": "here",
		"bindAddress": "0.0.0.0", "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
		"clientConnection": map[string]any{"kubeconfig": kubeconfig}, "oomScoreAdj": 0,
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
	bit := 0
	for ; 1<<bit != n.MasqueradeMark; bit++ {
	}
	rules := map[string]any{"masqueradeAll": n.MasqueradeAll, "masqueradeBit": bit}
	config["iptables"], config["nftables"] = rules, rules
	switch {
	case n.Local.Bridge != "":
		config["detectLocalMode"], config["detectLocal"] = "BridgeInterface", map[string]any{"bridgeInterface": n.Local.Bridge}
	case n.Local.InterfacePrefix != "":
		config["detectLocalMode"], config["detectLocal"] = "InterfaceNamePrefix", map[string]any{"interfaceNamePrefix": n.Local.InterfacePrefix}
	case len(n.Local.Prefixes) > 0:
		config["clusterCIDR"] = cidrs(n.Local.Prefixes)
	}
	if !n.AllNodePorts {
		var ranges []string
		for _, a := range n.NodePorts {
			ranges = append(ranges, netip.PrefixFrom(a, a.BitLen()).String())
		}
		config["nodePortAddresses"] = ranges
	} else {
		config["nodePortAddresses"] = []string{"0.0.0.0/0", "::/0"}
	}
	return config
}

func cidrs(prefixes []netip.Prefix) string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return strings.Join(out, ",")
}

// start runs a subject until the test ends, or stop.
func start(t testing.TB, name, mode string, server *kubetest.Server, n model.Network) *subject {
	t.Helper()
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	write(t, kubeconfig, map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": server.URL}}},
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "c"}}},
	})
	config := filepath.Join(dir, "config.yaml")
	write(t, config, kubeProxyConfig(mode, kubeconfig, n))
	path, err := programOf(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &subject{name: name, server: server, cmd: exec.Command(path, "--config", config), log: &bytes.Buffer{}}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stop()
		if out, err := exec.Command(path, "--cleanup").CombinedOutput(); err != nil {
			t.Errorf("--cleanup: %v: %s", err, out)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", name, tail(s.log.String()))
		}
	})
	return s
}

func tail(s string) string {
	return s[max(0, len(s)-4000):]
}

func (s *subject) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func programOf(name string) (string, error) {
	if name == ours {
		return built()
	}
	bin, err := cluster.Build()
	return bin.KubeProxy, err
}

func write(t testing.TB, path string, value any) {
	t.Helper()
	data, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ready waits until the subject has set its first rules.
func (s *subject) ready(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		r, err := http.Get("http://127.0.0.1:10249/healthz")
		if err == nil {
			r.Body.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not come up: %v\n%s", s.name, err, tail(s.log.String()))
		}
	}
}

// pssMB is the memory that the subject has, its share of its program's file among it.
func (s *subject) pssMB(t testing.TB) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kB, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kB / 1024
		}
	}
	t.Fatal("no Pss")
	return 0
}

// cpu is the time that the subject and the programs that it ran and waited for have spent on a processor.
func (s *subject) cpu(t testing.TB) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime: proc_pid_stat(5)
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
