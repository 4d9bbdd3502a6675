package server

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

func TestRunPodSandboxRefusesWhatCanNeverWork(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	options := func(c *cri.PodSandboxConfig) *cri.NamespaceOption {
		o := &cri.NamespaceOption{}
		c.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{NamespaceOptions: o}
		return o
	}
	for want, spoil := range map[string]func(*cri.PodSandboxConfig){
		"config.metadata.name":                    func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" },
		"leave out control characters":            func(c *cri.PodSandboxConfig) { c.Metadata.Name = "a\nlevel=error" },
		"config.metadata.uid":                     func(c *cri.PodSandboxConfig) { c.Metadata.Uid = strings.Repeat("x", 300) },
		"config.log_directory is \"logs\"":        func(c *cri.PodSandboxConfig) { c.LogDirectory = "logs" },
		"config.linux.cgroup_parent":              func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "relative" },
		"config.hostname":                         func(c *cri.PodSandboxConfig) { c.Hostname = "a b" },
		"config.linux.sysctls is \"vm.overcommit": func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.overcommit_memory": "1"} },
		"config.dns_config.servers":               func(c *cri.PodSandboxConfig) { c.DnsConfig = &cri.DNSConfig{Servers: []string{"1.1.1.1\nsearch evil"}} },
		"config.port_mappings[0].host_port":       func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{{HostPort: 70000}} },
		"config.port_mappings[0].host_ip":         func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{{HostIp: "localhost"}} },
		"config.port_mappings[0].protocol":        func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{{Protocol: 9}} },
		"config.port_mappings[0].container_port":  func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{{HostPort: 80}} },
		"namespace_options.network is \"TARGET\"": func(c *cri.PodSandboxConfig) { options(c).Network = cri.NamespaceMode_TARGET },
		"namespace_options.ipc":                   func(c *cri.PodSandboxConfig) { options(c).Ipc = cri.NamespaceMode_CONTAINER },
		"namespace_options.pid":                   func(c *cri.PodSandboxConfig) { options(c).Pid = cri.NamespaceMode_TARGET },
		"io.kubernetes.cri-o.ShmSize is \"big\"": func(c *cri.PodSandboxConfig) {
			c.Annotations = map[string]string{"io.kubernetes.cri-o.ShmSize": "big"}
		},
		"shm-size.crio.io is \"0\"": func(c *cri.PodSandboxConfig) {
			c.Annotations = map[string]string{"shm-size.crio.io": "0"}
		},
		"shm-size.crio.io is \"100E\"": func(c *cri.PodSandboxConfig) {
			c.Annotations = map[string]string{"shm-size.crio.io": "100E"}
		},
		"userns_options.gids": func(c *cri.PodSandboxConfig) {
			options(c).UsernsOptions = &cri.UserNamespace{Uids: []*cri.IDMapping{{HostId: 1, Length: 1}}}
		},
		"below 2^32": func(c *cri.PodSandboxConfig) {
			options(c).UsernsOptions = &cri.UserNamespace{Uids: []*cri.IDMapping{{HostId: 1<<32 - 1, Length: 2}}}
		},
		"use POD or NODE": func(c *cri.PodSandboxConfig) {
			options(c).UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_CONTAINER}
		},
	} {
		req := runRequest("web")
		spoil(req.Config)
		_, err := s.RunPodSandbox(t.Context(), req)
		if !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v", want, err)
		}
	}
	req := runRequest("web")
	req.RuntimeHandler = "kata"
	if _, err := s.RunPodSandbox(t.Context(), req); !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), `runtime_handler is "kata"`) {
		t.Errorf("unknown handler: %v", err)
	}
	if _, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{}); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("empty request: %v", err)
	}
	w.wantNothingLeft()
}

func TestPlanOfAPodOnTheHostsNamespaces(t *testing.T) {
	plan, err := planPod("0123456789abcdef", &cri.PodSandboxConfig{
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
			Network: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE,
		}}},
		PortMappings: []*cri.PortMapping{{HostPort: 80, ContainerPort: 80}}, // the host's own port: nothing to forward
	})
	if err != nil {
		t.Fatal(err)
	}
	plan.addSysctls(map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "1"})
	want := podPlan{hostNetwork: true, hostIPC: true, hostPID: true, sysctls: map[string]string{}}
	if d := cmp.Diff(want, plan, cmp.AllowUnexported(podPlan{})); d != "" {
		t.Error(d)
	}
}

func TestHostnameAndDefaultSysctls(t *testing.T) {
	plan, err := planPod("0123456789abcdef", &cri.PodSandboxConfig{
		Linux: &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.ipv4.ip_forward": "0"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	plan.addSysctls(map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "1", "vm.swappiness": "1"})
	if d := cmp.Diff(map[string]string{"net.ipv4.ip_forward": "0", "kernel.shmmax": "1"}, plan.sysctls); d != "" {
		t.Error(d)
	}
	if plan.hostname != "0123456789ab" || !plan.sharedPID {
		t.Errorf("plan is %+v", plan)
	}
}

func TestShmSize(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	s.cfg.Container.ShmBytes = 32 << 20
	for _, tt := range []struct {
		annotations map[string]string
		want        int64
	}{
		{nil, 32 << 20},
		{map[string]string{"shm-size.crio.io": "128Mi"}, 128 << 20},
		{map[string]string{"io.kubernetes.cri-o.ShmSize": "1G"}, 1e9},
	} {
		req := runRequest("web")
		req.Config.Annotations = tt.annotations
		rec, plan, err := s.parsePod(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.newPod(rec, plan, nil).files().ShmBytes; got != tt.want {
			t.Errorf("%v: %d bytes, want %d", tt.annotations, got, tt.want)
		}
	}
}

func FuzzCheckText(f *testing.F) {
	f.Add("web")
	f.Add("a\x00b")
	f.Fuzz(func(t *testing.T, value string) {
		if checkName("f", value) == nil && (value == "" || len(value) > maxName || strings.ContainsAny(value, "\n\r\x00\x1b")) {
			t.Errorf("%q is accepted", value)
		}
	})
}
