package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

// NamespaceOption says whose namespaces a container has: its own, the pod's or the node's.
func TestNamespaceModes(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	one, two := sleeper(t, pod).Pid(t), sleeper(t, pod).Pid(t)
	for name, shared := range map[string]bool{"net": true, "ipc": true, "uts": true, "pid": false, "mnt": false} {
		a, b := namespaceOf(t, one, name), namespaceOf(t, two, name)
		if (a == b) != shared {
			t.Errorf("%s namespaces of two containers: %s and %s; want shared: %v", name, a, b, shared)
		}
		if a == namespaceOf(t, os.Getpid(), name) {
			t.Errorf("the %s namespace of a container is the node's", name)
		}
	}
	host := node.Pod(t, criclient.HostNetwork, podSecurity(func(s *cri.LinuxSandboxSecurityContext) {
		s.NamespaceOptions.Pid, s.NamespaceOptions.Ipc = cri.NamespaceMode_NODE, cri.NamespaceMode_NODE
	}))
	ctr := sleeper(t, host)
	serverPid := os.Getpid()
	if own != nil {
		serverPid = own.Pid("serve")
	}
	for _, name := range []string{"net", "ipc", "pid"} {
		if got, want := namespaceOf(t, ctr.Pid(t), name), namespaceOf(t, serverPid, name); got != want {
			t.Errorf("%s namespace in mode NODE: %s; want the node's, %s", name, got, want)
		}
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, sharedPID)
	one, two := sleeper(t, pod), pod.Container(t, probe, criclient.Run("/probe", "trap"))
	if ps := one.Exec(t, "ps"); !strings.Contains(ps, "/probe trap") {
		t.Errorf("a container does not see the other's process:\n%s", ps)
	}
	two.WaitLog(t, "ready")
	// Who loses its parent is adopted and reaped by the pod's init.
	one.Sh(t, "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done")
	time.Sleep(300 * time.Millisecond) // they need that long to end
	criclient.Eventually(t, 5*time.Second, "the end of all zombies", func() bool {
		ps := one.Exec(t, "ps", "-o", "stat,args")
		return !strings.Contains(ps, "Z ") && !strings.Contains(ps, "sleep 0.1")
	})
	// The end of one container ends no other.
	two.Stop(t, 0)
	if got := one.Exec(t, "echo", "alive"); got != "alive\n" {
		t.Errorf("after the other's end: %q", got)
	}
}

// Without a shared PID namespace there is no process but the containers'.
func TestNoPauseProcess(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t)
	ctr := sleeper(t, pod)
	pidns := namespaceOf(t, ctr.Pid(t), "net")
	all, err := kernel.AllProcesses()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range all {
		if link, err := os.Readlink("/proc/" + itoa(p.Pid) + "/ns/net"); err == nil && link == pidns {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d processes are in the pod's network namespace; want the container's alone", n)
	}
}

// An ephemeral container joins the PID namespace of the container that it debugs.
func TestTargetPIDNamespace(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	target := sleeper(t, pod)
	debug := sleeper(t, pod, criclient.Security(func(s *cri.LinuxContainerSecurityContext) {
		s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, target.ID
	}))
	if a, b := namespaceOf(t, target.Pid(t), "pid"), namespaceOf(t, debug.Pid(t), "pid"); a != b {
		t.Errorf("PID namespaces: target %s, debugger %s", a, b)
	}
	if ps := debug.Exec(t, "ps"); strings.Count(ps, "/probe sleep") != 2 {
		t.Errorf("the debugger does not see the target:\n%s", ps)
	}
	_, err := pod.TryCreate(context.Background(), pod.ContainerConfig(probe, criclient.Security(func(s *cri.LinuxContainerSecurityContext) {
		s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, "0123456789abcdef"
	})))
	if err == nil {
		t.Error("a container whose target does not exist was created")
	}
}

// User namespaces need id-mapped mounts of the file system that layers are on.
func TestUserNamespace(t *testing.T) {
	t.Parallel()
	ours(t)
	kernel.Require(t, kernel.Version(6, 3))
	ids := []*cri.IDMapping{{HostId: 200_000, ContainerId: 0, Length: 65536}}
	user := &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	pod := node.Pod(t, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.UsernsOptions = user }))
	ctr := sleeper(t, pod, criclient.Security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.UsernsOptions = user }))
	if got := strings.Fields(ctr.Exec(t, "cat", "/proc/self/uid_map")); len(got) != 3 || got[1] != "200000" {
		t.Errorf("uid_map %v; want 0 200000 65536", got)
	}
	st, err := os.Stat("/proc/" + itoa(ctr.Pid(t)))
	if err != nil {
		t.Fatal(err)
	}
	if uid := ownerOf(st); uid != 200_000 {
		t.Errorf("root of the container is user %d of the node; want 200000", uid)
	}
	if got := ctr.Sh(t, "touch /tmp/f && stat -c %u:%g /tmp/f /data/in-image /dev/mqueue"); got != strings.Repeat("0:0\n", 3) {
		t.Errorf("owners of files, seen from inside: %q; want 0:0 of all", got)
	}
}
