package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/kernel"
)

// number is an environment variable that changes how hard a test tries.
func number(name string, fallback uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return fallback
}

// storm is containers that write, and containers that come and go, while processes are killed.
type storm struct {
	t     *testing.T
	d     *daemon.Daemon
	pod   *criclient.Pod
	rest  *criclient.Container // that only sleeps
	rng   *rand.Rand
	kills int

	mu    sync.Mutex
	ended []short
}

// short is a container that ends by itself with a code that is known.
type short struct {
	ctr  *criclient.Container
	code int32
}

// Any of the three processes may be killed at any moment, and no container notices: none stops, no log line is lost or
// torn (one may be there twice for each kill), no exit code is lost. ORLOP_E2E_KILLS and ORLOP_E2E_SEED repeat a run.
func TestKillsUnderLoad(t *testing.T) {
	d := another(t, nil)
	seed := number("ORLOP_E2E_SEED", rand.Uint64())
	s := &storm{t: t, d: d, rng: rand.New(rand.NewPCG(seed, 1)), kills: int(number("ORLOP_E2E_KILLS", 12))}
	t.Logf("ORLOP_E2E_SEED=%d ORLOP_E2E_KILLS=%d", seed, s.kills)
	s.pod = d.Client.Pod(t)
	steady := sleeper(t, s.pod)
	s.rest = steady
	pid := steady.Pid(t)
	const total, size = 8000, 120
	var writers []*criclient.Container
	for range 4 {
		writers = append(writers, s.pod.Container(t, probe, criclient.Run("/probe", "spam", fmt.Sprint(total), fmt.Sprint(size), "1ms")))
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait() // also if a kill ends the test
	defer stop()
	for range 2 {
		seed := s.rng.Uint64()
		wg.Go(func() { s.churn(ctx, rand.New(rand.NewPCG(seed, 2))) })
	}
	for i := range s.kills {
		s.kill(daemon.Roles[i%len(daemon.Roles)])
	}
	stop()
	wg.Wait()
	if got := steady.Pid(t); got != pid {
		t.Errorf("the first process of a container was %d and is %d", pid, got)
	}
	if got := steady.Exec(t, "echo", "alive"); got != "alive\n" {
		t.Errorf("exec after all kills printed %q", got)
	}
	for _, w := range writers {
		st := w.WaitExit(t)
		if st.ExitCode != 0 {
			t.Errorf("writer: exit code %d, %s", st.ExitCode, st.Reason)
		}
		sequence(t, criclient.Lines(w.Log(t), "stdout"), total, size, s.kills)
	}
	if len(s.ended) < 3 {
		t.Errorf("only %d containers came and went; the load was too small", len(s.ended))
	}
	for _, e := range s.ended {
		if st := e.ctr.WaitExit(t); st.ExitCode != e.code || st.FinishedAt == 0 {
			t.Errorf("container %s: exit code %d, finished at %d; want %d", e.ctr.ID, st.ExitCode, st.FinishedAt, e.code)
		}
	}
	t.Logf("%d containers came and went", len(s.ended))
}

// kill waits a random moment, kills, and starts the daemon again if it was that.
func (s *storm) kill(role daemon.Role) {
	s.t.Helper()
	pause := time.NewTimer(kernel.Patient(time.Duration(s.rng.IntN(600)) * time.Millisecond))
	<-pause.C
	// One at a time: while one half of the monitor takes over from the other, it is alone. A command that runs says that
	// both are at work.
	criclient.Eventually(s.t, 20*time.Second, "a keeper and a worker", func() bool {
		_, err := s.rest.TryExec(s.t.Context(), kernel.Patient(5*time.Second), "true")
		return err == nil && s.d.Pid(daemon.Keeper) != 0 && s.d.Pid(daemon.Worker) != 0
	})
	if err := s.d.Kill(role); err != nil {
		s.t.Fatalf("kill %s: %v", role, err)
	}
	if role == daemon.Serve {
		if err := s.d.Start(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
	}
}

// churn makes containers that exit with a code of their own. Calls that a kill breaks off are repeated, as the kubelet
// does.
func (s *storm) churn(ctx context.Context, rng *rand.Rand) {
	for ctx.Err() == nil {
		code := int32(rng.IntN(100) + 1)
		config := s.pod.ContainerConfig(probe, criclient.Shell(fmt.Sprintf("sleep 0.%d; exit %d", rng.IntN(5), code)))
		var id string
		if err := s.again(func(ctx context.Context) (err error) { id, err = s.pod.TryCreate(ctx, config); return err }); err != nil {
			s.t.Errorf("create: %v", err)
			return
		}
		err := s.again(func(ctx context.Context) error {
			_, err := s.d.Client.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			if err != nil && s.started(ctx, id) {
				return nil // the call that was broken off did it
			}
			return err
		})
		if err != nil {
			s.t.Errorf("start: %v", err)
			return
		}
		s.mu.Lock()
		s.ended = append(s.ended, short{s.pod.Adopt(id, config), code})
		s.mu.Unlock()
	}
}

func (s *storm) started(ctx context.Context, id string) bool {
	r, err := s.d.Client.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	return err == nil && r.Status.State != cri.ContainerState_CONTAINER_CREATED
}

// again repeats a call while the answer is that someone was away.
func (s *storm) again(call func(context.Context) error) (err error) {
	for range 200 {
		ctx, cancel := context.WithTimeout(s.t.Context(), kernel.Patient(20*time.Second))
		err = call(ctx)
		cancel()
		if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
			return err
		}
		pause := time.NewTimer(50 * time.Millisecond)
		<-pause.C
	}
	return err
}

// After a reboot pods are NotReady and containers Exited, never missing, and all can be removed.
func TestReboot(t *testing.T) {
	t.Parallel()
	d := another(t, nil)
	pod := d.Client.Pod(t)
	running := sleeper(t, pod)
	exited := pod.Container(t, probe, criclient.Shell("exit 5"))
	exited.WaitExit(t)
	created := pod.Create(t, pod.ContainerConfig(probe))
	if err := d.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := pod.Status(t); st.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", st.State)
	}
	if st := exited.Status(t); st.ExitCode != 5 || st.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("the container that had exited with 5: %v", st)
	}
	for name, ctr := range map[string]*criclient.Container{"running": running, "created": created} {
		if st := ctr.Status(t); st.State != cri.ContainerState_CONTAINER_EXITED || st.ExitCode == 0 {
			t.Errorf("the container that was %s: %v, code %d", name, st.State, st.ExitCode)
		}
	}
	pod.Remove(t)
	if diff := left(t, d); diff != "" {
		t.Errorf("after the pod's removal:\n%s", diff)
	}
	// The node works again, with the images it had.
	if got := d.Client.Pod(t).Output(t, probe, criclient.Run("echo", "back")); got != "back\n" {
		t.Errorf("a new container printed %q", got)
	}
}

// A daemon that is killed while it makes things leaves none of them half-made.
func TestKillDuringCreates(t *testing.T) {
	d := another(t, nil)
	seed := number("ORLOP_E2E_SEED", rand.Uint64())
	rng := rand.New(rand.NewPCG(seed, 3))
	t.Logf("ORLOP_E2E_SEED=%d", seed)
	for range 5 {
		var wg sync.WaitGroup
		for range 6 {
			config := d.Client.PodConfig(t)
			wg.Go(func() {
				// It may succeed, or be broken off.
				_, _ = d.Client.Runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
			})
		}
		pause := time.NewTimer(kernel.Patient(time.Duration(rng.IntN(250)) * time.Millisecond))
		<-pause.C
		if err := d.Kill(daemon.Serve); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if err := d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pods, err := d.Client.Runtime.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if _, err := d.Client.Runtime.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			t.Errorf("stop %s: %v", p.Id, err)
		}
		if _, err := d.Client.Runtime.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			t.Errorf("remove %s: %v", p.Id, err)
		}
	}
	diff := ""
	if err := criclient.Wait(t.Context(), 30*time.Second, func() bool { diff = left(t, d); return diff == "" }); err != nil {
		t.Errorf("after all pods were removed:\n%s", diff)
	}
}
