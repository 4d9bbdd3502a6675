package criclient

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/backoff"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/kernel"
)

// quickly: a daemon that was killed by the test is back in a moment.
var quickly = backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.3, MaxDelay: 200 * time.Millisecond}

// poll is how often a state is read while waiting for it.
const poll = 10 * time.Millisecond

// Container is a container that the test made.
type Container struct {
	ID     string
	Config *cri.ContainerConfig
	Pod    *Pod
	c      *Client
}

// ContainerMod changes the config of a container before it is made.
type ContainerMod func(*cri.ContainerConfig)

// Adopt returns a container of the pod that was made by TryCreate.
func (p *Pod) Adopt(id string, config *cri.ContainerConfig) *Container {
	return &Container{ID: id, Config: config, Pod: p, c: p.c}
}

// Run sets the command, that is, what replaces the image's entry point.
func Run(command ...string) ContainerMod {
	return func(c *cri.ContainerConfig) { c.Command, c.Args = command, nil }
}

// Shell runs a script by the image's /bin/sh.
func Shell(script string) ContainerMod { return Run("/bin/sh", "-c", script) }

// Security changes the security context.
func Security(change func(*cri.LinuxContainerSecurityContext)) ContainerMod {
	return func(c *cri.ContainerConfig) { change(c.Linux.SecurityContext) }
}

// Mount adds a mount.
func Mount(m *cri.Mount) ContainerMod {
	return func(c *cri.ContainerConfig) { c.Mounts = append(c.Mounts, m) }
}

// Resources sets the limits.
func Resources(r *cri.LinuxContainerResources) ContainerMod {
	return func(c *cri.ContainerConfig) { c.Linux.Resources = r }
}

// ContainerConfig is a container of its own name and log file in the pod's namespaces.
func (p *Pod) ContainerConfig(image string, mods ...ContainerMod) *cri.ContainerConfig {
	name := Unique("ctr")
	options := p.Config.Linux.SecurityContext.NamespaceOptions
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: image},
		Labels:   map[string]string{},
		LogPath:  name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: options.Network, Pid: options.Pid, Ipc: options.Ipc},
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}
	if p.Config.LogDirectory == "" {
		config.LogPath = ""
	}
	for _, mod := range mods {
		mod(config)
	}
	return config
}

// Create makes a container of this config.
func (p *Pod) Create(t testing.TB, config *cri.ContainerConfig) *Container {
	t.Helper()
	id, err := p.TryCreate(t.Context(), config)
	if err != nil {
		t.Fatalf("CreateContainer: %v", err)
	}
	return p.Adopt(id, config)
}

// TryCreate is Create for those who expect an error.
func (p *Pod) TryCreate(ctx context.Context, config *cri.ContainerConfig) (string, error) {
	r, err := p.c.Runtime.CreateContainer(ctx,
		&cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	return r.GetContainerId(), err
}

// Container creates and starts a container.
func (p *Pod) Container(t testing.TB, image string, mods ...ContainerMod) *Container {
	t.Helper()
	ctr := p.Create(t, p.ContainerConfig(image, mods...))
	ctr.Start(t)
	return ctr
}

// Output runs a container to its end and returns what it printed on both streams. The exit code must be 0.
func (p *Pod) Output(t testing.TB, image string, mods ...ContainerMod) string {
	t.Helper()
	ctr := p.Container(t, image, mods...)
	st := ctr.WaitExit(t)
	out := ctr.Text(t)
	if st.ExitCode != 0 {
		t.Fatalf("container exited with %d (%s %s); output:\n%s", st.ExitCode, st.Reason, st.Message, out)
	}
	return out
}

// Start the container.
func (ctr *Container) Start(t testing.TB) {
	t.Helper()
	if _, err := ctr.c.Runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: ctr.ID}); err != nil {
		t.Fatalf("StartContainer: %v", err)
	}
}

// Stop the container with this grace, in whole seconds.
func (ctr *Container) Stop(t testing.TB, grace time.Duration) {
	t.Helper()
	_, err := ctr.c.Runtime.StopContainer(t.Context(),
		&cri.StopContainerRequest{ContainerId: ctr.ID, Timeout: int64(grace / time.Second)})
	if err != nil {
		t.Fatalf("StopContainer: %v", err)
	}
}

// Remove the container.
func (ctr *Container) Remove(t testing.TB) {
	t.Helper()
	if _, err := ctr.c.Runtime.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: ctr.ID}); err != nil {
		t.Fatalf("RemoveContainer: %v", err)
	}
}

// Status of the container.
func (ctr *Container) Status(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	st, _ := ctr.Verbose(t)
	return st
}

// Verbose is the status with its verbose facts.
func (ctr *Container) Verbose(t testing.TB) (*cri.ContainerStatus, map[string]string) {
	t.Helper()
	r, err := ctr.c.Runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID, Verbose: true})
	if err != nil {
		t.Fatalf("ContainerStatus: %v", err)
	}
	return r.Status, r.Info
}

// WaitExit waits until the container has exited.
func (ctr *Container) WaitExit(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	return ctr.WaitState(t, cri.ContainerState_CONTAINER_EXITED, time.Minute)
}

// WaitState waits for a state, and for calls to succeed that fail because the daemon is away.
func (ctr *Container) WaitState(t testing.TB, want cri.ContainerState, limit time.Duration) *cri.ContainerStatus {
	t.Helper()
	var last *cri.ContainerStatus
	var lastErr error
	err := Wait(t.Context(), limit, func() bool {
		r, err := ctr.c.Runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID})
		last, lastErr = r.GetStatus(), err
		return err == nil && last.State == want
	})
	if err != nil {
		t.Fatalf("container %s: waiting for %v: %v; last: %v, %v", ctr.ID, want, err, last, lastErr)
	}
	return last
}

// Wait calls done now and then until it is true. The limit is for a machine of usual speed.
func Wait(ctx context.Context, limit time.Duration, done func() bool) error {
	limit = kernel.Patient(limit)
	deadline := time.After(limit)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("not within %v", limit)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Eventually fails the test unless done is true within limit.
func Eventually(t testing.TB, limit time.Duration, what string, done func() bool) {
	t.Helper()
	if err := Wait(t.Context(), limit, done); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// TryExec runs a command by ExecSync.
func (ctr *Container) TryExec(ctx context.Context, timeout time.Duration, args ...string) (*cri.ExecSyncResponse, error) {
	return ctr.c.Runtime.ExecSync(ctx,
		&cri.ExecSyncRequest{ContainerId: ctr.ID, Cmd: args, Timeout: int64(timeout / time.Second)})
}

// Exec runs a command that must exit with 0 and returns what it printed on standard output.
func (ctr *Container) Exec(t testing.TB, args ...string) string {
	t.Helper()
	r, err := ctr.TryExec(t.Context(), time.Minute, args...)
	if err != nil {
		t.Fatalf("ExecSync %q: %v", args, err)
	}
	if r.ExitCode != 0 {
		t.Fatalf("ExecSync %q: exit code %d\nstdout: %s\nstderr: %s", args, r.ExitCode, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// Sh runs a script by the container's shell; see Exec.
func (ctr *Container) Sh(t testing.TB, script string) string {
	t.Helper()
	return ctr.Exec(t, "/bin/sh", "-c", script)
}

// LogPath is the host's path of the log.
func (ctr *Container) LogPath() string {
	return filepath.Join(ctr.Pod.Config.LogDirectory, ctr.Config.LogPath)
}

// Log reads the log; it fails the test if a line of it does not have CRI's format.
func (ctr *Container) Log(t testing.TB) []Entry {
	t.Helper()
	f, err := os.Open(ctr.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries, err := ParseLog(f)
	if err != nil {
		t.Fatalf("log %s: %v", ctr.LogPath(), err)
	}
	return entries
}

// Text is what the container printed so far, on both streams.
func (ctr *Container) Text(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, e := range ctr.Log(t) {
		b.WriteString(e.Text)
		if !e.Partial {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// WaitLog waits until the container has printed something that contains text.
func (ctr *Container) WaitLog(t testing.TB, text string) {
	t.Helper()
	err := Wait(t.Context(), 30*time.Second, func() bool {
		raw, err := os.ReadFile(ctr.LogPath())
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.Contains(string(raw), text)
	})
	if err != nil {
		t.Fatalf("log: waiting for %q: %v; so far:\n%s", text, err, ctr.Text(t))
	}
}

// Pid of the container's first process on the host, from the verbose status (key "pid" of its JSON, as other runtimes
// have it).
func (ctr *Container) Pid(t testing.TB) int {
	t.Helper()
	_, info := ctr.Verbose(t)
	pid, err := verbosePid(info)
	if err != nil {
		t.Fatalf("container %s: %v", ctr.ID, err)
	}
	return pid
}
