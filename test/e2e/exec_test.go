package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

func TestExecSync(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod, func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "MINE", Value: []byte("yes")}}
		c.WorkingDir = "/data"
	})
	r, err := ctr.TryExec(t.Context(), time.Minute, "sh", "-c", "echo out; echo err >&2; exit 5")
	if err != nil || r.ExitCode != 5 || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" {
		t.Errorf("exec: %v, %v; want code 5, out and err apart", r, err)
	}
	if got := ctr.Sh(t, "echo $MINE $FROM_IMAGE; pwd"); got != "yes yes\n/data\n" {
		t.Errorf("environment and directory of an exec: %q; want those of the container", got)
	}
	r, err = ctr.TryExec(t.Context(), time.Minute, "sh", "-c", "kill -KILL $$")
	if err != nil || r.ExitCode != 137 {
		t.Errorf("exec that is killed: %v, %v; want code 137", r, err)
	}
	r, err = ctr.TryExec(t.Context(), time.Minute, "/no/such/program")
	if err == nil && r.ExitCode == 0 {
		t.Errorf("exec of a program that is not there: %v", r)
	}
	if text := ctr.Text(t); text != "" {
		t.Errorf("output of execs is in the container's log: %q", text)
	}
}

// Execs are what the container is: same user, capabilities and limits.
func TestExecIsConfined(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod, criclient.Security(func(s *cri.LinuxContainerSecurityContext) {
		s.RunAsUser = &cri.Int64Value{Value: 1000}
		s.RunAsGroup = &cri.Int64Value{Value: 1000}
		s.SupplementalGroups = []int64{4321}
		s.NoNewPrivs = true
		s.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
	}))
	f := parseFacts(t, ctr.Exec(t, "/probe", "facts"))
	if f.UID != 1000 || f.GID != 1000 || !f.NoNewPrivs || f.Seccomp != 2 || f.Caps["Eff"] != 0 || f.Caps["Bnd"] != 0 {
		t.Errorf("an exec in a container of user 1000 without capabilities is: %+v", f)
	}
}

// CRI says that a timeout is an error with DeadlineExceeded. The command's children die with it, and the call returns
// although one of them held its output.
func TestExecTimeout(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	command := []string{"/probe", "fork", "3"}
	if own == nil {
		command = []string{"/probe", "trap"} // others wait for the children, some for ever
	}
	begin := time.Now()
	_, err := ctr.TryExec(t.Context(), time.Second, command...)
	took := time.Since(begin)
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("exec that times out: %v; want DeadlineExceeded", err)
	}
	if took < 900*time.Millisecond || took > kernel.Patient(5*time.Second) {
		t.Errorf("exec with a timeout of 1 s took %v", took)
	}
	if own == nil {
		return
	}
	criclient.Eventually(t, 5*time.Second, "the end of the command and its children", func() bool {
		return !strings.Contains(ctr.Exec(t, "ps"), "/probe fork") && !strings.Contains(ctr.Exec(t, "ps"), "/proc/self/exe")
	})
}

// A command that leaves a process behind which holds its output has ended all the same.
func TestExecLeavesProcess(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	begin := time.Now()
	r, err := ctr.TryExec(t.Context(), 20*time.Second, "sh", "-c", "sleep 30 & echo started; exit 3")
	if err != nil || r.ExitCode != 3 || string(r.Stdout) != "started\n" {
		t.Errorf("exec: %v, %v; want code 3 and what it printed", r, err)
	}
	if took := time.Since(begin); took > kernel.Patient(10*time.Second) {
		t.Errorf("it took %v, although the command ended at once", took)
	}
}

func TestExecBigOutput(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	const lines, size = 50_000, 100
	r, err := ctr.TryExec(t.Context(), time.Minute, "/probe", "spam", fmt.Sprint(lines), fmt.Sprint(size))
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("exec: %v, %v", r.GetExitCode(), err)
	}
	sequence(t, strings.Split(strings.TrimSuffix(string(r.Stdout), "\n"), "\n"), lines, size, 0)
	if own == nil {
		return
	}
	// More than a reply can hold is cut or refused, but breaks nothing.
	r, err = ctr.TryExec(t.Context(), time.Minute, "/probe", "spam", "1000000", "100")
	if err == nil && len(r.Stdout) > criclient.MaxMessage {
		t.Errorf("a reply of %d bytes", len(r.Stdout))
	}
	if got := ctr.Exec(t, "echo", "alive"); got != "alive\n" {
		t.Errorf("exec after it printed %q", got)
	}
}

func TestExecParallel(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			want := fmt.Sprintf("number %d\n", i)
			r, err := ctr.TryExec(context.Background(), time.Minute, "sh", "-c", fmt.Sprintf("echo number %d; exit %d", i, i))
			if err != nil || int(r.ExitCode) != i || string(r.Stdout) != want {
				t.Errorf("exec %d: %v, %v", i, r, err)
			}
		})
	}
	wg.Wait()
}

func TestExecInWhatDoesNotRun(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	created := pod.Create(t, pod.ContainerConfig(probe))
	if _, err := created.TryExec(t.Context(), time.Second, "true"); err == nil {
		t.Error("exec in a container that was not started succeeded")
	}
	exited := pod.Container(t, probe, criclient.Shell("true"))
	exited.WaitExit(t)
	if _, err := exited.TryExec(t.Context(), time.Second, "true"); err == nil {
		t.Error("exec in a container that has exited succeeded")
	}
	_, err := node.Runtime.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "0123456789", Cmd: []string{"true"}})
	wantCode(t, "exec in no container", err, codes.NotFound)
	_, err = created.TryExec(t.Context(), time.Second)
	if err == nil {
		t.Error("exec of no command succeeded")
	}
}

// An exec leaves no process, cgroup or descriptor: a hundred make no difference.
func TestExecsLeaveNothing(t *testing.T) {
	ours(t)
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	warm := func(n int) {
		for range n {
			ctr.Exec(t, "true")
		}
	}
	warm(5)
	before, err := kernel.Take(own.Scope())
	if err != nil {
		t.Fatal(err)
	}
	warm(100)
	diff := ""
	err = criclient.Wait(t.Context(), 10*time.Second, func() bool {
		after, err := kernel.Take(own.Scope())
		if err != nil {
			t.Fatal(err)
		}
		diff = kernel.Compare(before, after)
		return !strings.Contains(diff, ": +") // less than before is the end of something earlier
	})
	if err != nil {
		t.Errorf("after a hundred execs: %v\n%s", err, diff)
	}
}
