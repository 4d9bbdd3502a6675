package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/images/probe/facts"
	"github.com/orlop/orlop/test/kernel"
)

// factsOf runs the probe in a container of the pod and returns what it tells.
func factsOf(t testing.TB, pod *criclient.Pod, mods ...criclient.ContainerMod) facts.Facts {
	t.Helper()
	return parseFacts(t, pod.Output(t, probe, append(mods, criclient.Run("/probe", "facts"))...))
}

func parseFacts(t testing.TB, out string) facts.Facts {
	t.Helper()
	var f facts.Facts
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		t.Fatalf("the probe printed %q: %v", out, err)
	}
	return f
}

// try has the probe make a system call and returns its outcome: "ok" or the error's name.
func try(t testing.TB, pod *criclient.Pod, call string, mods ...criclient.ContainerMod) string {
	t.Helper()
	return strings.TrimSpace(pod.Output(t, probe, append(mods, criclient.Run("/probe", "try", call))...))
}

// sleeper is a container that runs until it is stopped, at once.
func sleeper(t testing.TB, pod *criclient.Pod, mods ...criclient.ContainerMod) *criclient.Container {
	t.Helper()
	ctr := pod.Container(t, probe, append([]criclient.ContainerMod{criclient.Run("/probe", "sleep")}, mods...)...)
	waitCatches(t, ctr, syscall.SIGTERM)
	return ctr
}

// waitCatches waits until the probe that a container runs has a handler for sig: without one, the first process of a
// PID namespace is immune to it. The process that is about to execute the probe is another one, and has handlers, too.
func waitCatches(t testing.TB, ctr *criclient.Container, sig syscall.Signal) {
	t.Helper()
	proc := "/proc/" + itoa(ctr.Pid(t))
	criclient.Eventually(t, 10*time.Second, "a handler for "+sig.String(), func() bool {
		if cmdline, _ := os.ReadFile(proc + "/cmdline"); !strings.HasPrefix(string(cmdline), "/probe\x00") {
			return false
		}
		raw, _ := os.ReadFile(proc + "/status")
		_, mask, _ := strings.Cut(string(raw), "SigCgt:\t")
		mask, _, _ = strings.Cut(mask, "\n")
		caught, _ := strconv.ParseUint(mask, 16, 64)
		return caught&(1<<(sig-1)) != 0
	})
}

// variant pushes and pulls an image that differs from the probe image in its config only.
func variant(t testing.TB, c *criclient.Client, change func(*imgspec.ImageConfig)) string {
	t.Helper()
	img, err := image.Reconfigure(change)
	if err != nil {
		t.Fatal(err)
	}
	name, err := open.Push(img, criclient.Unique("test/variant"), "1")
	if err != nil {
		t.Fatal(err)
	}
	pullFor(t, c, name)
	return name
}

// pullFor pulls an image for the time of the test.
func pullFor(t testing.TB, c *criclient.Client, name string) string {
	t.Helper()
	ref := c.Pull(t, name)
	t.Cleanup(func() { removeImage(t, c, name) })
	return ref
}

func removeImage(t testing.TB, c *criclient.Client, name string) {
	t.Helper()
	_, err := c.Image.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
	if err != nil {
		t.Errorf("RemoveImage %s: %v", name, err)
	}
}

// wantCode fails the test unless err has the code and its text all of the words.
func wantCode(t testing.TB, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: %v; want code %v", what, err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: error %q does not name %q", what, err, w)
		}
	}
}

// cgroupFile reads a file of the container's cgroup, whose name depends on the version, from the inside. v1 has the
// controller in front: "memory/memory.limit_in_bytes".
func cgroupFile(t testing.TB, ctr *criclient.Container, v1, v2 string) string {
	t.Helper()
	name := v1
	if kernel.Has(kernel.CgroupV2) {
		name = v2
	}
	return strings.TrimSpace(ctr.Exec(t, "cat", "/sys/fs/cgroup/"+name))
}

// namespaceOf is the identity of a process's namespace: "net:[4026531840]".
func namespaceOf(t testing.TB, pid int, name string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// podSecurity changes the pod's security context.
func podSecurity(change func(*cri.LinuxSandboxSecurityContext)) criclient.PodMod {
	return func(p *cri.PodSandboxConfig) { change(p.Linux.SecurityContext) }
}

// sharedPID has one PID namespace for all containers of the pod.
func sharedPID(p *cri.PodSandboxConfig) {
	p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
}

func itoa(n int) string { return strconv.Itoa(n) }

func ownerOf(st os.FileInfo) uint32 { return st.Sys().(*syscall.Stat_t).Uid }
