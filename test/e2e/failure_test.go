package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/kernel"
)

// plugin writes a CNI plugin that runs a script, and a network of the bridge followed by it.
func plugin(t testing.TB, d *daemon.Daemon, script string) {
	t.Helper()
	path := filepath.Join(d.CNIBin, "broken")
	const version = `if [ "$CNI_COMMAND" = VERSION ]; then echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit; fi`
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+version+"\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(d.CNIDir, "10-pods.conflist")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var conf map[string]any
	if err := json.Unmarshal(raw, &conf); err != nil {
		t.Fatal(err)
	}
	conf["plugins"] = append(conf["plugins"].([]any), map[string]any{"type": "broken"})
	if raw, err = json.Marshal(conf); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// left says what of pods is there; the bridge and chains of the firewall stay by design of the plugins.
func left(t testing.TB, d *daemon.Daemon) string {
	t.Helper()
	scope := d.Scope()
	scope.Network, scope.Pids = false, nil
	snap, err := kernel.Take(scope)
	if err != nil {
		t.Fatal(err)
	}
	delete(snap, kernel.Layers)
	delete(snap, kernel.Processes)
	mounts := snap[kernel.Mounts][:0]
	for _, m := range snap[kernel.Mounts] {
		if !strings.HasSuffix(strings.Split(m, " ")[0], "/overlay") { // the driver's own
			mounts = append(mounts, m)
		}
	}
	snap[kernel.Mounts] = mounts
	return kernel.Compare(kernel.Snapshot{}, snap)
}

// answer is what a plugin says on success: what it was given.
const answer = `if [ "$CNI_COMMAND" = ADD ]; then sed 's/.*"prevResult"://; s/,"type":"broken"}$//' ; fi`

// A plugin that fails ADD fails the pod, and leaves neither address nor namespace.
func TestNetworkAddFails(t *testing.T) {
	t.Parallel()
	d := another(t, nil, func(d *daemon.Daemon) {
		plugin(t, d, `if [ "$CNI_COMMAND" = ADD ]; then echo '{"cniVersion":"1.0.0","code":999,"msg":"the cable is cut"}'; exit 1; fi`)
	})
	config := d.Client.PodConfig(t)
	for range 3 {
		_, err := d.Client.Runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
		if err == nil || !strings.Contains(err.Error(), "the cable is cut") || !strings.Contains(err.Error(), "broken") {
			t.Fatalf("RunPodSandbox: %v; want the plugin's name and message", err)
		}
	}
	criclient.Eventually(t, 10*time.Second, "nothing of the pod:\n"+left(t, d), func() bool { return left(t, d) == "" })
	r, err := d.Client.Runtime.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Items {
		if p.State == cri.PodSandboxState_SANDBOX_READY {
			t.Errorf("a pod without a network is ready: %v", p)
		}
	}
}

// A caller that gives up during a slow ADD finds the same pod when it asks again.
func TestNetworkAddIsSlow(t *testing.T) {
	t.Parallel()
	d := another(t, nil, func(d *daemon.Daemon) {
		plugin(t, d, fmt.Sprintf(`[ "$CNI_COMMAND" = ADD ] && sleep %d; `, int(kernel.Patient(2*time.Second).Seconds()))+answer)
	})
	config := d.Client.PodConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), kernel.Patient(500*time.Millisecond))
	_, err := d.Client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	cancel()
	wantCode(t, "RunPodSandbox with 0.5 s to do it", err, codes.DeadlineExceeded)
	criclient.Eventually(t, 5*time.Second, "the stage in the daemon's log", func() bool {
		return strings.Contains(d.LogTail(), "step network")
	})
	pod := d.Client.RunPod(t, config, "")
	r, err := d.Client.Runtime.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
	if err != nil || len(r.Items) != 1 || r.Items[0].Id != pod.ID {
		t.Errorf("pods after the repeat: %v, %v; want %s alone", r.GetItems(), err, pod.ID)
	}
	// Other pods do not wait for it.
	begin := time.Now()
	d.Client.Pod(t, criclient.HostNetwork)
	if took := time.Since(begin); took > kernel.Patient(1500*time.Millisecond) {
		t.Errorf("a pod on the host network took %v", took)
	}
}

// A failing DEL keeps Remove from succeeding or is retried in the background, and is never forgotten.
func TestNetworkDelFails(t *testing.T) {
	t.Parallel()
	var flag string
	d := another(t, nil, func(d *daemon.Daemon) {
		flag = filepath.Join(d.Dir, "fail-del")
		plugin(t, d, `if [ "$CNI_COMMAND" = DEL ] && [ -e `+flag+` ]; then echo '{"cniVersion":"1.0.0","code":999,"msg":"not now"}'; exit 1; fi; `+answer)
		if err := os.WriteFile(flag, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	})
	config := d.Client.PodConfig(t)
	r, err := d.Client.Runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	_, stopErr := d.Client.Runtime.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: r.PodSandboxId})
	_, removeErr := d.Client.Runtime.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId})
	t.Logf("with a DEL that fails: stop: %v; remove: %v", stopErr, removeErr)
	if err := d.Restart(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	criclient.Eventually(t, 60*time.Second, "the address to be freed", func() bool {
		_, _ = d.Client.Runtime.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: r.PodSandboxId})
		_, _ = d.Client.Runtime.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId})
		return left(t, d) == ""
	})
}

// Output that is no JSON, and too much of it, is an error of that pod alone.
func TestNetworkPluginIsHostile(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"no JSON": `echo hello`,
		"flood":   `[ "$CNI_COMMAND" = ADD ] && head -c 100000000 /dev/zero; true`,
		"null":    `echo null`,
		"bad IP":  `echo '{"cniVersion":"1.0.0","ips":[{"address":"999.1.1.1/24"}]}'`,
	} {
		t.Run(name, func(t *testing.T) {
			d := another(t, nil, func(d *daemon.Daemon) { plugin(t, d, script) })
			r, err := d.Client.Runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: d.Client.PodConfig(t)})
			if err == nil {
				t.Errorf("RunPodSandbox succeeded: %v", r)
			}
			d.Client.Pod(t, criclient.HostNetwork)
			if d.Pid("serve") == 0 {
				t.Error("the daemon died")
			}
		})
	}
}

// NetworkReady follows the configuration directory without a restart.
func TestNetworkConfigurationIsWatched(t *testing.T) {
	t.Parallel()
	d := another(t, nil)
	ready := func() bool {
		r, err := d.Client.Runtime.Status(t.Context(), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.Status.Conditions {
			if c.Type == cri.NetworkReady {
				return c.Status
			}
		}
		t.Fatal("no condition NetworkReady")
		return false
	}
	criclient.Eventually(t, 5*time.Second, "the network to be ready", ready)
	file := filepath.Join(d.CNIDir, "10-pods.conflist")
	if err := os.Rename(file, file+".off"); err != nil {
		t.Fatal(err)
	}
	criclient.Eventually(t, 5*time.Second, "the network not to be ready", func() bool { return !ready() })
	if err := os.Rename(file+".off", file); err != nil {
		t.Fatal(err)
	}
	criclient.Eventually(t, 5*time.Second, "the network to be ready again", ready)
}

func TestBadPods(t *testing.T) {
	t.Parallel()
	ours(t)
	for name, change := range map[string]func(*cri.PodSandboxConfig){
		"no metadata":   func(p *cri.PodSandboxConfig) { p.Metadata = nil },
		"no name":       func(p *cri.PodSandboxConfig) { p.Metadata.Name = "" },
		"hostname":      func(p *cri.PodSandboxConfig) { p.Hostname = strings.Repeat("x", 300) },
		"sysctl":        func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{"kernel.panic": "1"} },
		"sysctl path":   func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{"../../x": "1"} },
		"log directory": func(p *cri.PodSandboxConfig) { p.LogDirectory = "relative/path" },
		"port": func(p *cri.PodSandboxConfig) {
			p.PortMappings = []*cri.PortMapping{{HostPort: 99999, ContainerPort: 80}}
		},
		"host IP": func(p *cri.PodSandboxConfig) {
			p.PortMappings = []*cri.PortMapping{{HostPort: 80, ContainerPort: 80, HostIp: "x"}}
		},
		"cgroup parent":    func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = "/../../x" },
		"namespace mode":   func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.Pid = 77 },
		"TARGET for a pod": func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_TARGET },
	} {
		config := node.PodConfig(t, change)
		r, err := node.Runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
		if code := status.Code(err); code != codes.InvalidArgument && code != codes.PermissionDenied {
			t.Errorf("%s: %v; want InvalidArgument", name, err)
		}
		if err == nil {
			_, _ = node.Runtime.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId})
		}
	}
	for name, req := range map[string]*cri.RunPodSandboxRequest{
		"nothing":         {},
		"unknown handler": {Config: node.PodConfig(t), RuntimeHandler: "no-such"},
	} {
		if _, err := node.Runtime.RunPodSandbox(t.Context(), req); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v; want InvalidArgument or NotFound", name, err)
		}
	}
}

func TestBadContainers(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t, criclient.HostNetwork)
	number := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	for name, change := range map[string]func(*cri.ContainerConfig){
		"no metadata":   func(c *cri.ContainerConfig) { c.Metadata = nil },
		"no name":       func(c *cri.ContainerConfig) { c.Metadata.Name = "" },
		"no image":      func(c *cri.ContainerConfig) { c.Image = nil },
		"unknown image": func(c *cri.ContainerConfig) { c.Image.Image = "sha256:" + strings.Repeat("0", 64) },
		"log path":      func(c *cri.ContainerConfig) { c.LogPath = "../../../../tmp/orlop-test-log" },
		"mount path":    func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{HostPath: "/tmp"}} },
		"mount source":  func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{HostPath: "relative", ContainerPath: "/x"}} },
		"capability": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"FLY"}}
		},
		"negative user":      func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = number(-5) },
		"huge user":          func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = number(1 << 40) },
		"unknown user name":  func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "nobody-knows" },
		"group without user": func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup = number(5) },
		"working directory":  func(c *cri.ContainerConfig) { c.WorkingDir = "relative" },
		"device permissions": func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rwx"}}
		},
		"environment": func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A=B", Value: []byte("x")}} },
		"negative memory": func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: -100}
		},
		"seccomp profile": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such"}
		},
		"stop signal":         func(c *cri.ContainerConfig) { c.StopSignal = 999 },
		"target that is none": func(c *cri.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_TARGET },
	} {
		id, err := pod.TryCreate(t.Context(), pod.ContainerConfig(probe, change))
		code := status.Code(err)
		if code != codes.InvalidArgument && code != codes.NotFound && code != codes.PermissionDenied {
			t.Errorf("%s: %q, %v; want InvalidArgument", name, id, err)
		}
	}
	_, err := node.Runtime.CreateContainer(t.Context(), &cri.CreateContainerRequest{})
	wantCode(t, "create of nothing", err, codes.InvalidArgument)
	_, err = node.Runtime.CreateContainer(t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: strings.Repeat("0", 64), Config: pod.ContainerConfig(probe), SandboxConfig: pod.Config,
	})
	wantCode(t, "create in no pod", err, codes.NotFound)
	if r, err := node.Runtime.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod.ID}}); err != nil || len(r.Containers) != 0 {
		t.Errorf("what was refused left containers: %v, %v", r.GetContainers(), err)
	}
}

func TestUnknownIDs(t *testing.T) {
	t.Parallel()
	ours(t)
	ctx, none := t.Context(), strings.Repeat("0", 64)
	for name, call := range map[string]func() error{
		"StartContainer": func() error {
			_, err := node.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: none})
			return err
		},
		"ContainerStatus": func() error {
			_, err := node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: none})
			return err
		},
		"ContainerStats": func() error {
			_, err := node.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: none})
			return err
		},
		"PodSandboxStats": func() error {
			_, err := node.Runtime.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: none})
			return err
		},
		"UpdateContainerResources": func() error {
			_, err := node.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: none})
			return err
		},
		"Exec": func() error {
			_, err := node.Runtime.Exec(ctx, &cri.ExecRequest{ContainerId: none, Cmd: []string{"x"}, Stdout: true})
			return err
		},
		"Attach": func() error {
			_, err := node.Runtime.Attach(ctx, &cri.AttachRequest{ContainerId: none, Stdout: true})
			return err
		},
		"PortForward": func() error {
			_, err := node.Runtime.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: none, Port: []int32{80}})
			return err
		},
	} {
		wantCode(t, name+" of an unknown ID", call(), codes.NotFound)
	}
	for name, call := range map[string]func() error{
		"StopContainer": func() error {
			_, err := node.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: none})
			return err
		},
		"RemoveContainer": func() error {
			_, err := node.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: none})
			return err
		},
		"StopPodSandbox": func() error {
			_, err := node.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: none})
			return err
		},
		"RemovePodSandbox": func() error {
			_, err := node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: none})
			return err
		},
		"RemoveImage": func() error {
			_, err := node.Image.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: none}})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s of an unknown ID: %v; it must succeed", name, err)
		}
	}
	// Not there yet: an honest answer.
	_, err := node.Runtime.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{ContainerId: none})
	wantCode(t, "CheckpointContainer", err, codes.Unimplemented)
}

func TestStatusAndVersion(t *testing.T) {
	t.Parallel()
	v, err := node.Runtime.Version(t.Context(), &cri.VersionRequest{})
	if err != nil || v.RuntimeApiVersion != "v1" || v.RuntimeName == "" || v.RuntimeVersion == "" {
		t.Errorf("Version: %v, %v", v, err)
	}
	r, err := node.Runtime.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if err != nil || len(r.Info) == 0 {
		t.Fatalf("verbose Status: %v, %v", r, err)
	}
	for _, c := range r.Status.Conditions {
		if (c.Type == cri.RuntimeReady || c.Type == cri.NetworkReady) && !c.Status {
			t.Errorf("condition %v", c)
		}
	}
	if own == nil {
		return
	}
	c, err := node.Runtime.RuntimeConfig(t.Context(), &cri.RuntimeConfigRequest{})
	want := cri.CgroupDriver_CGROUPFS
	if daemon.Systemd() {
		want = cri.CgroupDriver_SYSTEMD
	}
	if err != nil || c.Linux.GetCgroupDriver() != want {
		t.Errorf("RuntimeConfig: %v, %v; want driver %v", c, err, want)
	}
	if _, err := node.Runtime.UpdateRuntimeConfig(t.Context(), &cri.UpdateRuntimeConfigRequest{
		RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "not a network"}},
	}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("UpdateRuntimeConfig with a bad CIDR: %v; want InvalidArgument", err)
	}
}
