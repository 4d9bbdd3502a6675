package lone

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/process"
	"github.com/orlop/orlop/test/shim"
)

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 10.203.7.1
clusterCIDR: 10.203.7.0/24
hostnameOverride: lone
oomScoreAdj: 0
conntrack: {maxPerCore: 0}
healthzBindAddress: 127.0.0.1:10297
metricsBindAddress: 127.0.0.1:10298
`

// TestNode: one command is a whole node, which keeps each of its programs, and which pods outlive.
func TestNode(t *testing.T) {
	n := newNode(t)
	n.start()
	p := n.begin(t)
	p.write("a.yaml", strings.ReplaceAll(server, "NAME", "a"))
	p.waitPod("a", "ready", ready)
	service := strings.NewReplacer("10.96.77.1", "10.97.77.1", "30777", "30778").Replace(helloService)
	if err := os.WriteFile(filepath.Join(n.services(), "hello.yaml"), []byte(p.fill(service)), 0o644); err != nil {
		t.Fatal(err)
	}
	p.answers("http://10.203.7.1:30778/", "a")
	before := p.containers()
	programs := []string{"orlop serve", "orlop-kubelet", "orlop-proxy"}
	for _, program := range programs {
		was := n.pid(program)
		if err := unix.Kill(was, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.eventually(program+" to be started again", func() error {
			if now := n.pid(program); now == was || now == 0 {
				return fmt.Errorf("%d was killed, and now there is %d", was, now)
			}
			return nil
		})
	}
	p.answers("http://10.203.7.1:30778/", "a")
	p.waitPod("a", "ready again", ready)
	var pids []int
	for _, program := range programs {
		pids = append(pids, n.pid(program))
	}
	if err := n.group.End("node"); err != nil {
		t.Fatal(err)
	}
	for i, pid := range pids {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s outlives its node as %d: %v", programs[i], pid, err)
		}
	}
	n.start()
	p.waitPod("a", "ready once more", ready)
	if after := p.containers(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("containers %v, before %v", after, before)
	}
}

// node is `orlop node`, with all that it needs.
type node struct {
	*stand
	t     *testing.T
	bins  daemon.Binaries
	d     *daemon.Daemon
	group *process.Group
}

func newNode(t *testing.T) *node {
	t.Helper()
	bins, err := daemon.Build()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, bins: bins}
	if n.d, err = daemon.New(daemon.Options{Dir: filepath.Join(base, "dn"), Subnet: 7}); err != nil {
		t.Fatal(err)
	}
	s, err := shim.New(shim.Options{Dir: filepath.Join(base, "kn"), Socket: n.d.Socket(), Port: 10290, Systemd: daemon.Systemd(), Settings: gentle})
	if err != nil {
		t.Fatal(err)
	}
	n.stand = &stand{engine: &engine{name: "orlop", socket: n.d.Socket(), client: n.d.Client, scope: n.d.Scope}, shim: s}
	if n.group, err = process.New(filepath.Join(base, "pn")); err != nil {
		t.Fatal(err)
	}
	err = errors.Join(open.WriteCA(n.d.CertsDir), os.Mkdir(n.services(), 0o755),
		os.WriteFile(filepath.Join(n.group.Dir, "proxy.yaml"), []byte(proxyConfig), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.end)
	return n
}

func (n *node) services() string { return filepath.Join(n.group.Dir, "services") }

func (n *node) start() {
	n.t.Helper()
	err := n.group.Run("node", nil, n.bins.Orlop, "node", "--config", filepath.Join(n.d.Dir, "orlop.toml"),
		"--kubelet-config", filepath.Join(n.shim.Dir, "config.yaml"), "--proxy-config", filepath.Join(n.group.Dir, "proxy.yaml"),
		"--services", n.services(), "--kubelet-arg=--root-dir="+n.shim.Root(), "--kubelet-arg=--hostname-override="+shim.NodeName,
		"--kubelet-arg=--node-ip=127.0.0.1", "--proxy-arg=--kubelet-url="+n.shim.API().Host)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	if err := criclient.Wait(ctx, patience, func() bool { _, err := n.shim.Pods(); return err == nil }); err != nil {
		n.t.Fatalf("%v; the end of the log:\n%s", err, n.group.Tail("node", 8000))
	}
}

// pid is that of one of the node's programs.
func (n *node) pid(program string) int {
	n.t.Helper()
	found, err := kernel.AllProcesses()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range found {
		if p.Parent == n.group.PID("node") && strings.HasPrefix(strings.Join(p.Args, " "), program) {
			return p.Pid
		}
	}
	return 0
}

func (n *node) end() {
	if n.t.Failed() {
		n.t.Logf("the end of the node's log:\n%s", n.group.Tail("node", 8000))
	}
	err := errors.Join(n.group.Stop(), n.shim.Close(), n.d.Close())
	if out, cleanupErr := exec.Command(n.bins.Proxy, "--cleanup").CombinedOutput(); cleanupErr != nil {
		err = errors.Join(err, fmt.Errorf("--cleanup: %w: %s", cleanupErr, out))
	}
	if err != nil {
		n.t.Error(err)
	}
}
