package e2e

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
)

func TestPodLifecycle(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	pod := node.Pod(t, func(p *cri.PodSandboxConfig) {
		p.Annotations["note"] = "kept as it is"
		p.Metadata.Attempt = 3
	})
	st := pod.Status(t)
	if st.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("state of a pod that runs: %v", st.State)
	}
	if !proto.Equal(st.Metadata, pod.Config.Metadata) || st.Labels["test"] != "TestPodLifecycle" || st.Annotations["note"] != "kept as it is" {
		t.Errorf("status has other metadata, labels or annotations than the config: %v", st)
	}
	if at := time.Unix(0, st.CreatedAt); at.Before(begin.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
		t.Errorf("created at %v, the call was at %v", at, begin)
	}
	ip, err := netip.ParseAddr(st.Network.GetIp())
	if err != nil || !ip.Is4() {
		t.Errorf("IP %q: %v; want an IPv4 address", st.Network.GetIp(), err)
	}
	if own != nil && (len(st.Network.AdditionalIps) != 1 || !strings.HasPrefix(st.Network.AdditionalIps[0].Ip, "fd00:203:1:")) {
		t.Errorf("additional IPs %v; the network gives one IPv6 address", st.Network.AdditionalIps)
	}
	pod.Stop(t)
	pod.Stop(t)
	if st := pod.Status(t); st.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("state of a stopped pod: %v", st.State)
	}
	pod.Remove(t)
	pod.Remove(t)
	if own != nil { // others fail here, against the API
		pod.Stop(t)
	}
	_, err = node.Runtime.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: pod.ID})
	wantCode(t, "status of a removed pod", err, codes.NotFound)
}

// The kubelet repeats a request whose answer it did not get.
func TestRunPodSandboxTwice(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t)
	r, err := node.Runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: pod.Config})
	if err != nil || r.PodSandboxId != pod.ID {
		t.Errorf("the same request again: %v, %v; want the pod %s", r, err, pod.ID)
	}
}

func TestRemovePodRemovesContainers(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	running := sleeper(t, pod)
	created := pod.Create(t, pod.ContainerConfig(probe))
	pod.Stop(t)
	if st := running.Status(t); st.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("container of a stopped pod is %v", st.State)
	}
	pod.Remove(t)
	for _, ctr := range []*criclient.Container{running, created} {
		_, err := node.Runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID})
		wantCode(t, "container of a removed pod", err, codes.NotFound)
	}
}

func TestRemovePodThatRuns(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	sleeper(t, pod)
	pod.Remove(t) // "should be forcibly terminated", says the API
}

func TestPodVerbose(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	r, err := node.Runtime.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil || len(r.Info) == 0 {
		t.Errorf("verbose status: %v, %v; want info", r, err)
	}
	r, err = node.Runtime.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: pod.ID})
	if err != nil || len(r.Info) != 0 {
		t.Errorf("status that is not verbose has info: %v, %v", r, err)
	}
}

func TestPodFilters(t *testing.T) {
	t.Parallel()
	label := criclient.Unique("label")
	with := func(p *cri.PodSandboxConfig) { p.Labels["which"] = label }
	ready, stopped := node.Pod(t, with), node.Pod(t, with, criclient.HostNetwork)
	stopped.Stop(t)
	selector := map[string]string{"which": label}
	for name, tt := range map[string]struct {
		filter *cri.PodSandboxFilter
		want   []string
	}{
		"label":              {&cri.PodSandboxFilter{LabelSelector: selector}, []string{ready.ID, stopped.ID}},
		"two labels":         {&cri.PodSandboxFilter{LabelSelector: map[string]string{"which": label, "test": "other"}}, nil},
		"ID":                 {&cri.PodSandboxFilter{Id: ready.ID}, []string{ready.ID}},
		"beginning of ID":    {&cri.PodSandboxFilter{Id: ready.ID[:16]}, []string{ready.ID}},
		"unknown ID":         {&cri.PodSandboxFilter{Id: "0000000000000000"}, nil},
		"ready":              {&cri.PodSandboxFilter{LabelSelector: selector, State: podState(cri.PodSandboxState_SANDBOX_READY)}, []string{ready.ID}},
		"not ready":          {&cri.PodSandboxFilter{LabelSelector: selector, State: podState(cri.PodSandboxState_SANDBOX_NOTREADY)}, []string{stopped.ID}},
		"ID and wrong state": {&cri.PodSandboxFilter{Id: ready.ID, State: podState(cri.PodSandboxState_SANDBOX_NOTREADY)}, nil},
	} {
		r, err := node.Runtime.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: tt.filter})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := map[string]bool{}
		for _, p := range r.Items {
			got[p.Id] = true
		}
		if len(got) != len(tt.want) {
			t.Errorf("%s: got %v; want %v", name, got, tt.want)
		}
		for _, id := range tt.want {
			if !got[id] {
				t.Errorf("%s: %s is missing", name, id)
			}
		}
	}
}

func podState(s cri.PodSandboxState) *cri.PodSandboxStateValue {
	return &cri.PodSandboxStateValue{State: s}
}

func TestHostnameAndDNS(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, func(p *cri.PodSandboxConfig) {
		p.Hostname = "given-name"
		p.DnsConfig = &cri.DNSConfig{Servers: []string{"10.1.2.3", "fd00::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5"}}
	})
	ctr := sleeper(t, pod)
	if got := strings.TrimSpace(ctr.Exec(t, "hostname")); got != "given-name" {
		t.Errorf("hostname %q; want given-name", got)
	}
	if got := strings.TrimSpace(ctr.Exec(t, "cat", "/etc/hostname")); got != "given-name" {
		t.Errorf("/etc/hostname has %q; want given-name", got)
	}
	resolv := ctr.Exec(t, "cat", "/etc/resolv.conf")
	for _, want := range []string{"nameserver 10.1.2.3\n", "nameserver fd00::1\n", "search a.example b.example\n", "options ndots:5\n"} {
		if !strings.Contains(resolv, want) {
			t.Errorf("/etc/resolv.conf lacks %q:\n%s", want, resolv)
		}
	}
}

// The probe image has no hosts file.
func TestHostsFile(t *testing.T) {
	t.Parallel()
	ours(t)
	if got := node.Pod(t).Output(t, probe, criclient.Run("cat", "/etc/hosts")); !strings.Contains(got, "127.0.0.1\tlocalhost\n") {
		t.Errorf("/etc/hosts has %q; want localhost", got)
	}
	nodes, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	if got := node.Pod(t, criclient.HostNetwork).Output(t, probe, criclient.Run("cat", "/etc/hosts")); got != string(nodes) {
		t.Errorf("on the host's network: /etc/hosts has %q; want the node's %q", got, nodes)
	}
}

func TestSysctls(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, func(p *cri.PodSandboxConfig) {
		p.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 20100", "kernel.shm_rmid_forced": "1"}
	})
	ctr := sleeper(t, pod)
	if got := strings.Fields(ctr.Exec(t, "cat", "/proc/sys/net/ipv4/ip_local_port_range")); len(got) != 2 || got[0] != "20000" {
		t.Errorf("net.ipv4.ip_local_port_range = %v; want 20000 20100", got)
	}
	if got := strings.TrimSpace(ctr.Exec(t, "cat", "/proc/sys/kernel/shm_rmid_forced")); got != "1" {
		t.Errorf("kernel.shm_rmid_forced = %s; want 1", got)
	}
}

func TestSharedMemorySize(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t, func(p *cri.PodSandboxConfig) { p.Annotations["io.kubernetes.cri-o.ShmSize"] = "16Mi" })
	if got := pod.Output(t, probe, criclient.Shell("df -k /dev/shm | tail -n 1")); len(strings.Fields(got)) < 2 || strings.Fields(got)[1] != "16384" {
		t.Errorf("/dev/shm: %q; want 16384 KiB", got)
	}
}

func TestSharedMemoryIsThePods(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	one, two := sleeper(t, pod), sleeper(t, pod)
	one.Sh(t, "echo shared > /dev/shm/file")
	if got := two.Exec(t, "cat", "/dev/shm/file"); got != "shared\n" {
		t.Errorf("the other container reads %q in /dev/shm", got)
	}
	if size := strings.Fields(one.Sh(t, "df -k /dev/shm | tail -1"))[1]; size != "65536" {
		t.Errorf("/dev/shm has %s KiB; want 65536", size)
	}
}

func TestPodsReachEachOther(t *testing.T) {
	t.Parallel()
	server, client := node.Pod(t), node.Pod(t)
	listening := server.Container(t, probe, criclient.Run("/probe", "serve", "8080"))
	listening.WaitLog(t, "listening")
	ip := server.Status(t).Network.Ip
	if got := client.Output(t, probe, criclient.Run("/probe", "ask", ip+":8080", "hello")); strings.TrimSpace(got) != "hello" {
		t.Errorf("the other pod answered %q", got)
	}
	if own == nil {
		return
	}
	for _, more := range server.Status(t).Network.AdditionalIps { // the network of the suite is dual stack
		if got := client.Output(t, probe, criclient.Run("/probe", "ask", net.JoinHostPort(more.Ip, "8080"), "hello")); strings.TrimSpace(got) != "hello" {
			t.Errorf("a pod that asks another at %s gets %q", more.Ip, got)
		}
	}
	// Loopback of a pod is up.
	if got := sleeper(t, server).Exec(t, "/probe", "ask", "127.0.0.1:8080", "me"); got != "me" {
		t.Errorf("the pod's own server answered %q on loopback", got)
	}
}

func TestPortMapping(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, func(p *cri.PodSandboxConfig) {
		p.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, HostPort: 18080, ContainerPort: 8080}}
	})
	pod.Container(t, probe, criclient.Run("/probe", "serve", "8080")).WaitLog(t, "listening")
	host := node.Pod(t, criclient.HostNetwork)
	addr := "10.204.1.1:18080" // of the bridge: any address of the node will do
	if own != nil {
		addr = "10.203.1.1:18080"
	}
	if got := host.Output(t, probe, criclient.Run("/probe", "ask", addr, "mapped")); strings.TrimSpace(got) != "mapped" {
		t.Errorf("the mapped port answered %q", got)
	}
}
