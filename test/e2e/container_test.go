package e2e

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

func TestContainerLifecycle(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	script := criclient.Shell("trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done")
	config := pod.ContainerConfig(probe, script, func(c *cri.ContainerConfig) {
		c.Metadata.Attempt = 2
		c.Annotations = map[string]string{"note": "kept"}
		c.Labels["which"] = "this"
	})
	ctr := pod.Create(t, config)
	st := ctr.Status(t)
	if st.State != cri.ContainerState_CONTAINER_CREATED || st.StartedAt != 0 || st.FinishedAt != 0 {
		t.Errorf("status before the start: %v", st)
	}
	if !proto.Equal(st.Metadata, config.Metadata) || st.Annotations["note"] != "kept" || st.Labels["which"] != "this" {
		t.Errorf("metadata, annotations or labels are not those of the config: %v", st)
	}
	if st.LogPath != ctr.LogPath() {
		t.Errorf("log path %q; want %q", st.LogPath, ctr.LogPath())
	}
	ctr.Start(t)
	st = ctr.Status(t)
	if st.State != cri.ContainerState_CONTAINER_RUNNING || st.StartedAt < st.CreatedAt || st.FinishedAt != 0 {
		t.Errorf("status of a running container: %v", st)
	}
	if st.Image.GetImage() == "" || st.ImageId == "" && own != nil {
		t.Errorf("status names no image: %v", st)
	}
	ctr.WaitLog(t, "ready")
	ctr.Stop(t, 10*time.Second)
	ctr.Stop(t, 0)
	st = ctr.Status(t)
	if st.State != cri.ContainerState_CONTAINER_EXITED || st.ExitCode != 0 || st.Reason != "Completed" || st.FinishedAt < st.StartedAt {
		t.Errorf("status after SIGTERM, at which the program exits with 0: %v", st)
	}
	ctr.Remove(t)
	ctr.Remove(t)
	if own != nil { // others fail here, against the API
		ctr.Stop(t, 0)
	}
	_, err := node.Runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID})
	wantCode(t, "status of a removed container", err, codes.NotFound)
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	for script, want := range map[string]struct {
		code   int32
		reason string
	}{
		"exit 0":                               {0, "Completed"},
		"exit 1":                               {1, "Error"},
		"exit 42":                              {42, "Error"},
		"exit 255":                             {255, "Error"},
		"kill -KILL $$":                        {137, "Error"},
		"/probe trap & kill -KILL $!; wait $!": {137, "Error"},
	} {
		ctr := pod.Container(t, probe, criclient.Shell(script))
		st := ctr.WaitExit(t)
		// As PID 1 of its namespace the shell is immune to its own SIGKILL: then the script just ends.
		if script == "kill -KILL $$" {
			if st.ExitCode != 0 && st.ExitCode != 137 {
				t.Errorf("%q: exit code %d", script, st.ExitCode)
			}
			continue
		}
		if st.ExitCode != want.code || st.Reason != want.reason {
			t.Errorf("%q: exit code %d, %s; want %d, %s", script, st.ExitCode, st.Reason, want.code, want.reason)
		}
	}
}

func TestKilledFromOutside(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	for sig, want := range map[syscall.Signal]int32{syscall.SIGKILL: 137, syscall.SIGSEGV: 139} {
		ctr := sleeper(t, pod)
		if sig != syscall.SIGKILL {
			waitCatches(t, ctr, sig)
		}
		if err := syscall.Kill(ctr.Pid(t), sig); err != nil {
			t.Fatal(err)
		}
		st := ctr.WaitExit(t)
		// A Go program answers SIGSEGV from outside with an exit of its own.
		if st.ExitCode != want && !(sig == syscall.SIGSEGV && st.ExitCode == 2) {
			t.Errorf("%v: exit code %d; want %d", sig, st.ExitCode, want)
		}
	}
}

func TestOOMKilled(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := pod.Container(t, probe, criclient.Run("/probe", "eat", "200"),
		criclient.Resources(&cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}))
	st := ctr.WaitExit(t)
	if st.ExitCode != 137 || st.Reason != "OOMKilled" {
		t.Errorf("exit code %d, reason %s; want 137, OOMKilled", st.ExitCode, st.Reason)
	}
}

func TestStopGraceAndKill(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := pod.Container(t, probe, criclient.Run("/probe", "trap"))
	ctr.WaitLog(t, "ready")
	begin := time.Now()
	ctr.Stop(t, 2*time.Second)
	if took := time.Since(begin); took < 1900*time.Millisecond || took > kernel.Patient(8*time.Second) {
		t.Errorf("stop with a grace of 2 s took %v", took)
	}
	if st := ctr.Status(t); st.ExitCode != 137 {
		t.Errorf("exit code %d; want 137, it ignores SIGTERM", st.ExitCode)
	}
	if text := ctr.Text(t); !strings.Contains(text, "SIGTERM") {
		t.Errorf("it got no SIGTERM before SIGKILL: %q", text)
	}
	quick := pod.Container(t, probe, criclient.Run("/probe", "trap"))
	quick.WaitLog(t, "ready")
	begin = time.Now()
	quick.Stop(t, 0)
	if took := time.Since(begin); took > kernel.Patient(2*time.Second) {
		t.Errorf("stop without grace took %v", took)
	}
}

// A second Stop with less grace shortens the first.
func TestStopAgainWithLessGrace(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := pod.Container(t, probe, criclient.Run("/probe", "trap"))
	ctr.WaitLog(t, "ready")
	first := make(chan error, 1)
	go func() {
		_, err := node.Runtime.StopContainer(context.Background(), &cri.StopContainerRequest{ContainerId: ctr.ID, Timeout: 60})
		first <- err
	}()
	ctr.WaitLog(t, "SIGTERM")
	begin := time.Now()
	ctr.Stop(t, 0)
	if err := <-first; err != nil {
		t.Errorf("the first stop: %v", err)
	}
	if took := time.Since(begin); took > kernel.Patient(10*time.Second) {
		t.Errorf("stop without grace during one of 60 s took %v", took)
	}
}

func TestStopSignal(t *testing.T) {
	t.Parallel()
	quit := variant(t, node, func(c *imgspec.ImageConfig) { c.StopSignal = "SIGUSR2" })
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := pod.Container(t, quit, criclient.Run("/probe", "trap"))
	ctr.WaitLog(t, "ready")
	ctr.Stop(t, 20*time.Second)
	if st := ctr.Status(t); st.ExitCode != 0 || !strings.Contains(ctr.Text(t), "SIGUSR2") {
		t.Errorf("image's stop signal SIGUSR2: exit code %d, it got %q", st.ExitCode, ctr.Text(t))
	}
	if own == nil {
		return // older runtimes do not know the field
	}
	ctr = pod.Container(t, probe, criclient.Run("/probe", "trap"), func(c *cri.ContainerConfig) { c.StopSignal = cri.Signal_SIGNAL_SIGUSR2 })
	ctr.WaitLog(t, "ready")
	if st := ctr.Status(t); st.StopSignal != cri.Signal_SIGNAL_SIGUSR2 {
		t.Errorf("status says stop signal %v", st.StopSignal)
	}
	ctr.Stop(t, 20*time.Second)
	if st := ctr.Status(t); st.ExitCode != 0 {
		t.Errorf("config's stop signal SIGUSR2: exit code %d, it got %q", st.ExitCode, ctr.Text(t))
	}
}

func TestStartOfNothing(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	config := pod.ContainerConfig(probe, criclient.Run("/no/such/program"))
	id, err := pod.TryCreate(t.Context(), config)
	if err == nil {
		_, err = node.Runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
		st, _ := node.Runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id})
		if st.GetStatus().GetState() != cri.ContainerState_CONTAINER_EXITED || st.GetStatus().GetExitCode() == 0 {
			t.Errorf("container whose program is not there: %v", st)
		}
	}
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("create and start of /no/such/program: %v; want an error that names it", err)
	}
}

func TestCommandEnvAndDirectory(t *testing.T) {
	t.Parallel()
	img := variant(t, node, func(c *imgspec.ImageConfig) {
		c.Entrypoint, c.Cmd = []string{"/probe"}, []string{"facts", "of-image"}
		c.WorkingDir = "/data"
		c.Env = append(c.Env, "BOTH=image")
	})
	pod := node.Pod(t, criclient.HostNetwork)
	for name, tt := range map[string]struct {
		mod  criclient.ContainerMod
		args []string
		cwd  string
		env  []string
	}{
		"image's": {func(*cri.ContainerConfig) {}, []string{"/probe", "facts", "of-image"}, "/data", []string{"FROM_IMAGE=yes", "BOTH=image"}},
		"args": {func(c *cri.ContainerConfig) { c.Args = []string{"facts", "mine"} },
			[]string{"/probe", "facts", "mine"}, "/data", []string{"FROM_IMAGE=yes"}},
		"command":   {func(c *cri.ContainerConfig) { c.Command = []string{"/probe", "facts"} }, []string{"/probe", "facts"}, "/data", nil},
		"directory": {func(c *cri.ContainerConfig) { c.WorkingDir = "/made/here" }, []string{"/probe", "facts", "of-image"}, "/made/here", nil},
		"environment": {func(c *cri.ContainerConfig) {
			c.Envs = []*cri.KeyValue{{Key: "BOTH", Value: []byte("mine")}, {Key: "EMPTY"}, {Key: "EQ", Value: []byte("a=b c")}}
		}, []string{"/probe", "facts", "of-image"}, "/data", []string{"BOTH=mine", "EMPTY=", "EQ=a=b c", "FROM_IMAGE=yes"}},
	} {
		f := parseFacts(t, pod.Output(t, img, tt.mod))
		if !slices.Equal(f.Args, tt.args) || f.Cwd != tt.cwd {
			t.Errorf("%s: ran %q in %s; want %q in %s", name, f.Args, f.Cwd, tt.args, tt.cwd)
		}
		for _, want := range tt.env {
			if !slices.Contains(f.Env, want) {
				t.Errorf("%s: environment lacks %q: %q", name, want, f.Env)
			}
		}
	}
}

func TestContainerFilters(t *testing.T) {
	t.Parallel()
	pod, other := node.Pod(t, criclient.HostNetwork), node.Pod(t, criclient.HostNetwork)
	label := criclient.Unique("label")
	with := func(c *cri.ContainerConfig) { c.Labels["which"] = label }
	running := sleeper(t, pod, with)
	created := pod.Create(t, pod.ContainerConfig(probe, with))
	exited := other.Container(t, probe, criclient.Shell("true"), with)
	exited.WaitExit(t)
	selector := map[string]string{"which": label}
	state := func(s cri.ContainerState) *cri.ContainerStateValue { return &cri.ContainerStateValue{State: s} }
	for name, tt := range map[string]struct {
		filter *cri.ContainerFilter
		want   []*criclient.Container
	}{
		"label":           {&cri.ContainerFilter{LabelSelector: selector}, []*criclient.Container{running, created, exited}},
		"pod":             {&cri.ContainerFilter{PodSandboxId: pod.ID}, []*criclient.Container{running, created}},
		"beginning of ID": {&cri.ContainerFilter{Id: exited.ID[:16]}, []*criclient.Container{exited}},
		"running":         {&cri.ContainerFilter{LabelSelector: selector, State: state(cri.ContainerState_CONTAINER_RUNNING)}, []*criclient.Container{running}},
		"created":         {&cri.ContainerFilter{LabelSelector: selector, State: state(cri.ContainerState_CONTAINER_CREATED)}, []*criclient.Container{created}},
		"exited":          {&cri.ContainerFilter{LabelSelector: selector, State: state(cri.ContainerState_CONTAINER_EXITED)}, []*criclient.Container{exited}},
		"ID of other pod": {&cri.ContainerFilter{Id: running.ID, PodSandboxId: other.ID}, nil},
		"unknown ID":      {&cri.ContainerFilter{Id: "0123456789abcdef"}, nil},
	} {
		r, err := node.Runtime.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: tt.filter})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got, want []string
		for _, c := range r.Containers {
			got = append(got, c.Id)
		}
		for _, c := range tt.want {
			want = append(want, c.ID)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v; want %v", name, got, want)
		}
	}
}

// Every call that gives up is followed by the same call, until one succeeds: there is one container.
func TestCreateRepeatedAfterTimeout(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t, criclient.HostNetwork)
	config := pod.ContainerConfig(probe)
	id, gaveUp := "", 0
	for limit := time.Millisecond; id == ""; limit = limit * 3 / 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		got, err := pod.TryCreate(ctx, config)
		cancel()
		switch {
		case err == nil:
			id = got
		case status.Code(err) == codes.DeadlineExceeded || status.Code(err) == codes.Canceled:
			gaveUp++
		default:
			t.Fatalf("create with %v to do it: %v", limit, err)
		}
	}
	if gaveUp == 0 {
		t.Error("the first call had 1 ms and succeeded; nothing was tested")
	}
	if again, err := pod.TryCreate(t.Context(), config); err != nil || again != id {
		t.Errorf("the same request after success: %q, %v; want %s", again, err, id)
	}
	r, err := node.Runtime.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod.ID}})
	if err != nil || len(r.Containers) != 1 {
		t.Errorf("the pod has containers %v, %v; want one", r.GetContainers(), err)
	}
}

func TestParallelCreates(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	const n = 16
	type made struct {
		id  string
		err error
	}
	results := make(chan made, n)
	for range n {
		config := pod.ContainerConfig(probe)
		go func() {
			id, err := pod.TryCreate(context.Background(), config)
			if err == nil {
				_, err = node.Runtime.StartContainer(context.Background(), &cri.StartContainerRequest{ContainerId: id})
			}
			results <- made{id, err}
		}()
	}
	ids := map[string]bool{}
	for range n {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
		}
		ids[r.id] = true
	}
	if len(ids) != n {
		t.Errorf("%d creates at a time gave %d IDs", n, len(ids))
	}
}

func TestExitWhileDaemonIsDown(t *testing.T) {
	d := another(t, nil)
	pod := d.Client.Pod(t, criclient.HostNetwork)
	ctr := pod.Container(t, probe, criclient.Shell("while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 7"))
	pid := ctr.Pid(t)
	ctr.Exec(t, "touch", "/tmp/armed")
	stays := sleeper(t, pod)
	ctr.Exec(t, "sh", "-c", "(sleep 1; touch /tmp/go) >/dev/null 2>&1 </dev/null &")
	if err := d.Kill("serve"); err != nil {
		t.Fatal(err)
	}
	criclient.Eventually(t, 20*time.Second, "the end of the container", func() bool { return syscall.Kill(pid, 0) != nil })
	ended := time.Now()
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	st := ctr.WaitExit(t)
	if st.ExitCode != 7 || st.Reason != "Error" {
		t.Errorf("exit code %d, %s; want 7, Error", st.ExitCode, st.Reason)
	}
	if at := time.Unix(0, st.FinishedAt); at.After(ended.Add(time.Second)) || at.Before(ended.Add(-5*time.Second)) {
		t.Errorf("finished at %v; it ended at %v", at, ended)
	}
	if got := stays.Exec(t, "echo", "still here"); got != "still here\n" {
		t.Errorf("exec in a container from before the restart printed %q", got)
	}
}

func TestVerboseContainer(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	if pid := ctr.Pid(t); !kernel.Has(kernel.Root) || syscall.Kill(pid, 0) != nil {
		t.Errorf("verbose status names process %d, which is not there", pid)
	}
}
