package conmon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/child"
	"github.com/orlop/orlop/oci/runtime"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/process"
)

var binary = os.Getenv("ORLOP_CONMON") // orlop-conmon; unless it is given, built once

func TestMain(m *testing.M) {
	if binary != "" {
		os.Exit(kernel.Main(m))
	}
	dir, err := os.MkdirTemp("", "orlop-conmon-test")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "orlop-conmon")
	build := exec.Command("go", "build", "-trimpath", "-tags", "seccomp netgo osusergo runc_nocriu",
		"-ldflags", "-s -w -linkmode external -extldflags -static", "-o", binary, "github.com/orlop/orlop/cmd/orlop-conmon")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build of orlop-conmon: %v\n%s", err, out)
		os.Exit(1)
	}
	code := kernel.Main(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// node is a monitor of its own with a client.
type node struct {
	*conmon.Client
	t      testing.TB
	cfg    conmon.Config
	dir    string
	cgroup string
	exits  sync.Map // ID → conmon.Exit, as events told
	resync atomic.Int32
}

func newNode(t testing.TB) *node { return newNodeOf(t, binary) }

func newNodeOf(t testing.TB, program string) *node {
	kernel.Require(t, kernel.Root)
	dir := t.TempDir()
	n := &node{t: t, dir: dir, cgroup: fmt.Sprintf("/orlop-test-%d-%d", os.Getpid(), rand.Uint32()), cfg: conmon.Config{
		Path: program, RunDir: filepath.Join(dir, "run"), ExitDir: filepath.Join(dir, "exits"),
	}}
	if err := os.MkdirAll(filepath.Join(dir, "root"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.connect()
	t.Cleanup(n.end)
	return n
}

func (n *node) connect() {
	n.t.Helper()
	c, err := conmon.Connect(context.Background(), n.cfg,
		func(e conmon.Event) { n.exits.Store(e.ID, e.Exit) }, func() { n.resync.Add(1) })
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(n.cfg.RunDir, "conmon.log"))
		n.t.Fatalf("connect: %v\n%s", err, log)
	}
	n.Client = c
}

// end deletes all containers and finds nothing left of the monitor.
func (n *node) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if n.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(n.cfg.RunDir, "conmon.log"))
		n.t.Logf("conmon.log:\n%s", log)
	}
	list, err := n.List(ctx)
	if err != nil {
		n.t.Errorf("list: %v", err)
	}
	for _, c := range list {
		if err := n.Delete(ctx, c.ID); err != nil {
			n.t.Errorf("delete: %v", err)
		}
	}
	pids := n.monitors()
	n.Close()
	for _, dir := range []string{"containers", "records"} {
		if left, _ := filepath.Glob(filepath.Join(n.cfg.RunDir, dir, "*")); len(left) > 0 {
			n.t.Errorf("left behind: %v", left)
		}
	}
	for _, pid := range pids { // it would end by itself after a while without a daemon
		_ = unix.Kill(pid, unix.SIGTERM)
	}
	waitFor(n.t, "monitor to end", func() bool { return len(n.monitors()) == 0 })
	hierarchies, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup)
	for _, dir := range hierarchies {
		if err := unix.Rmdir(dir); err != nil {
			n.t.Errorf("cgroup %s: %v", dir, err)
		}
	}
}

// monitors are the processes of this node's monitor, the keeper first.
func (n *node) monitors() []int {
	var keepers, workers []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !bytes.Contains(cmdline, []byte("\x00"+n.cfg.RunDir+"\x00")) {
			continue
		}
		switch {
		case bytes.Contains(cmdline, []byte("\x00keeper\x00")):
			keepers = append(keepers, pid)
		case bytes.Contains(cmdline, []byte("\x00worker\x00")):
			workers = append(workers, pid)
		}
	}
	return append(keepers, workers...)
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(kernel.Patient(20 * time.Second)); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// request is a container of the host's own programs.
func (n *node) request(id string, script string) conmon.CreateRequest {
	bind := func(path string) rspec.Mount {
		return rspec.Mount{Destination: path, Source: path, Type: "bind", Options: []string{"rbind", "ro"}}
	}
	spec := &rspec.Spec{
		Version: rspec.Version,
		Root:    &rspec.Root{Path: filepath.Join(n.dir, "root")},
		Process: &rspec.Process{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"},
			Capabilities: &rspec.LinuxCapabilities{},
		},
		Mounts: []rspec.Mount{
			bind("/usr"), bind("/bin"), bind("/lib"), bind("/lib64"), bind("/etc"),
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &rspec.Linux{
			CgroupsPath: n.cgroup + "/" + id,
			Namespaces: []rspec.LinuxNamespace{
				{Type: rspec.PIDNamespace}, {Type: rspec.MountNamespace}, {Type: rspec.IPCNamespace}, {Type: rspec.UTSNamespace},
			},
		},
	}
	return conmon.CreateRequest{ID: id, Spec: spec, LogPath: n.logPath(id)}
}

func (n *node) logPath(id string) string { return filepath.Join(n.dir, id+".log") }

func (n *node) run(r conmon.CreateRequest) {
	n.t.Helper()
	ctx := context.Background()
	if _, err := n.Create(ctx, r); err != nil {
		n.t.Fatalf("create: %v", err)
	}
	if _, err := n.Start(ctx, r.ID); err != nil {
		n.t.Fatalf("start: %v", err)
	}
}

func (n *node) exited(id string) conmon.Exit {
	n.t.Helper()
	var exit conmon.Exit
	waitFor(n.t, id+" to exit", func() bool {
		v, ok := n.exits.Load(id)
		if ok {
			exit = v.(conmon.Exit)
		}
		return ok
	})
	return exit
}

// lines are the messages of a log, whose format is checked.
func (n *node) lines(id, stream string) []string {
	n.t.Helper()
	data, err := os.ReadFile(n.logPath(id))
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 || !strings.HasSuffix(line, "\n") {
			n.t.Fatalf("torn line %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			n.t.Fatal(err)
		}
		if f[1] == stream {
			out = append(out, f[3])
		}
	}
	return out
}

func TestRun(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "echo out; echo err >&2; exit 3"))
	exit := n.exited("one")
	if exit.Code != 3 || exit.Signal != 0 || exit.OOMKilled || time.Since(exit.FinishedAt) > time.Minute {
		t.Errorf("exit %+v", exit)
	}
	if got := n.lines("one", "stdout"); len(got) != 1 || got[0] != "out" {
		t.Errorf("stdout %q", got)
	}
	if got := n.lines("one", "stderr"); len(got) != 1 || got[0] != "err" {
		t.Errorf("stderr %q", got)
	}
	list, err := n.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Exit == nil || list[0].Exit.Code != 3 || list[0].StartedAt.IsZero() {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := n.Signal(t.Context(), "one", 15); !errors.Is(err, conmon.ErrNotRunning) {
		t.Errorf("signal after exit: %v", err)
	}
	for range 2 {
		if err := n.Delete(t.Context(), "one"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if list, err := n.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("list %+v, %v", list, err)
	}
	if _, err := n.Start(t.Context(), "one"); !errors.Is(err, conmon.ErrNotFound) {
		t.Errorf("start after delete: %v", err)
	}
}

func TestCreateIsIdempotent(t *testing.T) {
	n := newNode(t)
	r := n.request("one", "sleep 100")
	first, err := n.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	second, err := n.Create(t.Context(), r)
	if err != nil || second.Pid != first.Pid {
		t.Errorf("second create: %+v, %v; first %+v", second, err, first)
	}
	a, err := n.Start(t.Context(), "one")
	b, err2 := n.Start(t.Context(), "one")
	if err != nil || err2 != nil || !a.Equal(b) {
		t.Errorf("starts: %v %v, %v %v", a, err, b, err2)
	}
}

func TestCreateFails(t *testing.T) {
	n := newNode(t)
	for name, broken := range map[string]func(*conmon.CreateRequest){
		"rootfs":  func(r *conmon.CreateRequest) { r.Spec.Root.Path = "/nowhere" },
		"mount":   func(r *conmon.CreateRequest) { r.Spec.Mounts[0].Source = "/nowhere" },
		"log":     func(r *conmon.CreateRequest) { r.LogPath = "/nowhere/log" },
		"ID":      func(r *conmon.CreateRequest) { r.ID = "../x" },
		"process": func(r *conmon.CreateRequest) { r.Spec.Process = nil },
		"rlimit":  func(r *conmon.CreateRequest) { r.Spec.Process.Rlimits = []rspec.POSIXRlimit{{Type: "RLIMIT_X"}} },
	} {
		r := n.request("bad-"+name, "true")
		broken(&r)
		if _, err := n.Create(t.Context(), r); err == nil {
			t.Errorf("%s: created", name)
		}
	}
	if list, err := n.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("list %+v, %v", list, err)
	}
	r := n.request("missing", "true")
	r.Spec.Process.Args = []string{"/nowhere"}
	_, err := n.Create(t.Context(), r)
	if err == nil {
		_, err = n.Start(t.Context(), r.ID)
	}
	if err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("missing program: %v", err)
	}
}

func TestSignals(t *testing.T) {
	n := newNode(t)
	n.run(n.request("term", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"))
	n.run(n.request("kill", "sleep 100"))
	waitFor(t, "trap", func() bool { return len(n.lines("term", "stdout")) == 1 })
	if err := n.Signal(t.Context(), "term", int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if exit := n.exited("term"); exit.Code != 7 {
		t.Errorf("exit %+v", exit)
	}
	if err := n.Signal(t.Context(), "kill", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if exit := n.exited("kill"); exit.Code != 137 || exit.Signal != 9 {
		t.Errorf("exit %+v", exit)
	}
}

func TestOutOfMemory(t *testing.T) {
	n := newNode(t)
	r := n.request("oom", "exec tail /dev/zero")
	limit := int64(20 << 20)
	r.Spec.Linux.Resources = &rspec.LinuxResources{Memory: &rspec.LinuxMemory{Limit: &limit}}
	n.run(r)
	if exit := n.exited("oom"); !exit.OOMKilled || exit.Code != 137 {
		t.Errorf("exit %+v", exit)
	}
}

// A PID namespace is that of a container, whatever the pid in the spec is by now.
func TestJoinPIDs(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "sleep 50"))
	join := func(id, whose string) conmon.CreateRequest {
		r := n.request(id, "sleep 51")
		r.JoinPIDs = whose
		r.Spec.Linux.Namespaces[0].Path = "/proc/self/ns/pid"
		return r
	}
	n.run(join("two", "one"))
	if now := n.processes("two"); !strings.Contains(now, "sleep 50") || !strings.Contains(now, "sleep 51") {
		t.Errorf("processes %q", now)
	}
	if err := n.Signal(t.Context(), "one", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	n.exited("one")
	if _, err := n.Create(t.Context(), join("three", "one")); !errors.Is(err, conmon.ErrNotRunning) {
		t.Errorf("a namespace whose container has ended: %v", err)
	}
	if _, err := n.Create(t.Context(), join("four", "none")); !errors.Is(err, conmon.ErrNotFound) {
		t.Errorf("a namespace of no container: %v", err)
	}
}

// execOut runs a command and returns its standard output.
func (n *node) execOut(r conmon.ExecRequest) (string, conmon.ExecResult, error) {
	n.t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		n.t.Fatal(err)
	}
	defer read.Close()
	result, err := n.Exec(context.Background(), r, conmon.Stdio{Stdout: write})
	write.Close()
	_ = read.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // somebody else may hold it
	out, _ := io.ReadAll(read)
	return string(out), result, err
}

func TestExec(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "sleep 100"))
	out, result, err := n.execOut(conmon.ExecRequest{ID: "one", Args: []string{"/bin/sh", "-c", "echo hello; exit 5"}})
	if out != "hello\n" || result.Code != 5 || err != nil {
		t.Errorf("%q, %+v, %v", out, result, err)
	}
	if _, _, err := n.execOut(conmon.ExecRequest{ID: "one", Args: []string{"/nowhere"}}); err == nil {
		t.Error("a missing program ran")
	}
	if _, _, err := n.execOut(conmon.ExecRequest{ID: "two", Args: []string{"true"}}); !errors.Is(err, conmon.ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
	// A time limit ends grandchildren too, also those that left the session; the pipe that they hold holds nobody.
	began := time.Now()
	_, result, err = n.execOut(conmon.ExecRequest{ID: "one", Timeout: 300 * time.Millisecond,
		Args: []string{"/bin/sh", "-c", "setsid sh -c 'sleep 43; sleep 42' & wait"}})
	if !result.TimedOut || err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("%+v, %v after %v", result, err, time.Since(began))
	}
	// A child that outlives its exec does not hold it up.
	began = time.Now()
	out, result, err = n.execOut(conmon.ExecRequest{ID: "one", Args: []string{"/bin/sh", "-c", "setsid sleep 41 & echo gone"}})
	if out != "gone\n" || result.Code != 0 || err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("%q, %+v, %v after %v", out, result, err, time.Since(began))
	}
	out, _, _ = n.execOut(conmon.ExecRequest{ID: "one", Args: []string{"/bin/sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"}})
	if strings.Contains(out, "sleep 43") || strings.Contains(out, "sleep 42") || !strings.Contains(out, "sleep 41") {
		t.Errorf("processes %q", out)
	}
}

// A request that names something long fails by itself, and other calls go on.
func TestExecLongName(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "sleep 100"))
	slow := make(chan error, 1)
	go func() {
		_, err := n.Exec(context.Background(), conmon.ExecRequest{ID: "one", Args: []string{"sleep", "0.5"}}, conmon.Stdio{})
		slow <- err
	}()
	_, _, err := n.execOut(conmon.ExecRequest{ID: "one", Args: []string{"/" + strings.Repeat("x", 100<<10)}})
	if err == nil || errors.Is(err, conmon.ErrUnavailable) {
		t.Errorf("long name: %.100v", err)
	}
	r := n.request("two", "true")
	r.Spec.Process.Env = append(r.Spec.Process.Env, "LONG="+strings.Repeat("x", 33<<20))
	if _, err := n.Create(t.Context(), r); err == nil || errors.Is(err, conmon.ErrUnavailable) {
		t.Errorf("create with a long environment: %.100v", err)
	}
	if err := <-slow; err != nil {
		t.Errorf("exec beside them: %v", err)
	}
	if got := n.resync.Load(); got != 0 {
		t.Errorf("the connection was lost %d times", got)
	}
}

func TestExecIsCancelled(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "sleep 100"))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := n.Exec(ctx, conmon.ExecRequest{ID: "one", Args: []string{"sleep", "44"}}, conmon.Stdio{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	waitFor(t, "the process to be killed", func() bool {
		out, _, _ := n.execOut(conmon.ExecRequest{ID: "one", Args: []string{"/bin/sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"}})
		return !strings.Contains(out, "sleep 44")
	})
}

// freeze stops a container, as people do with its cgroup, or lets it go on.
func (n *node) freeze(id string, frozen bool) {
	n.t.Helper()
	for _, f := range []struct{ path, frozen, thawed string }{
		{"/sys/fs/cgroup/freezer" + n.cgroup + "/" + id + "/freezer.state", "FROZEN", "THAWED"},
		{"/sys/fs/cgroup" + n.cgroup + "/" + id + "/cgroup.freeze", "1", "0"},
	} {
		state := f.thawed
		if frozen {
			state = f.frozen
		}
		if _, err := os.Stat(f.path); err != nil {
			continue
		}
		if err := os.WriteFile(f.path, []byte(state), 0); err != nil {
			n.t.Fatal(err)
		}
		return
	}
	n.t.Fatal("no freezer")
}

// leaves are the cgroups of a container's execs.
func (n *node) leaves(id string) []string {
	n.t.Helper()
	var all []string
	for _, base := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		some, err := filepath.Glob(base + n.cgroup + "/" + id + "/exec-*")
		if err != nil {
			n.t.Fatal(err)
		}
		all = append(all, some...)
	}
	return all
}

// processes are the command lines in a container.
func (n *node) processes(id string) string {
	n.t.Helper()
	out, _, err := n.execOut(conmon.ExecRequest{ID: id, Args: []string{"/bin/sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"}})
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// Execs that can't start are answered when their time is over, keep nobody waiting, and leave nothing.
func TestExecFrozen(t *testing.T) {
	n := newNode(t)
	n.run(n.request("frozen", "sleep 100"))
	n.run(n.request("other", "sleep 100"))
	n.freeze("frozen", true)
	var stuck sync.WaitGroup
	for range 20 { // more than may start at a time
		stuck.Go(func() {
			began := time.Now()
			result, err := n.Exec(context.Background(), conmon.ExecRequest{
				ID: "frozen", Args: []string{"sleep", "45"}, Timeout: 300 * time.Millisecond,
			}, conmon.Stdio{})
			if took := time.Since(began); err != nil || !result.TimedOut || took > 3*time.Second {
				t.Errorf("%+v, %v after %v", result, err, took)
			}
		})
	}
	stuck.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := n.Exec(ctx, conmon.ExecRequest{ID: "other", Args: []string{"true"}}, conmon.Stdio{}); err != nil {
		t.Errorf("another container's exec: %v", err)
	}
	waits := make(chan error, 1)
	go func() {
		_, err := n.Exec(context.Background(), conmon.ExecRequest{ID: "frozen", Args: []string{"true"}}, conmon.Stdio{})
		waits <- err
	}()
	n.freeze("frozen", false)
	if err := <-waits; err != nil {
		t.Errorf("exec that waited: %v", err)
	}
	waitFor(t, "all of them to end", func() bool { return len(n.leaves("frozen")) == 0 })
	waitFor(t, "nothing to be left", func() bool { return !strings.Contains(n.processes("frozen"), "sleep 45") })
	if left := zombies(t, n.monitors()[1]); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Creates that are stuck keep others waiting for a moment only.
func TestCreateStuck(t *testing.T) {
	n := newNode(t)
	fifo := filepath.Join(n.dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var stuck sync.WaitGroup
	for i := range 16 {
		stuck.Go(func() {
			r := n.request("stuck"+strconv.Itoa(i), "sleep 100")
			r.LogPath = fifo // nobody reads it: the worker waits
			if _, err := n.Create(context.Background(), r); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, "all to begin", func() bool { return n.waiting() >= 16 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := n.Create(ctx, n.request("other", "sleep 100")); err != nil {
		t.Errorf("another container: %v", err)
	}
	reader, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	stuck.Wait()
}

// waiting counts the worker's threads that open a pipe without a reader.
func (n *node) waiting() (count int) {
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", n.monitors()[1]))
	for _, path := range paths {
		if where, _ := os.ReadFile(path); string(where) == "wait_for_partner" || string(where) == "fifo_open" {
			count++
		}
	}
	return count
}

// Execs end with their worker, also those that have a process in the background; what earlier ones left in the container
// goes on.
func TestExecsEndWithWorker(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "sleep 100"))
	ctx := context.Background()
	if _, err := n.Exec(ctx, conmon.ExecRequest{ID: "one", Args: []string{"/bin/sh", "-c", "setsid sleep 46 & setsid sleep 47 &"}}, conmon.Stdio{}); err != nil {
		t.Fatal(err)
	}
	if left := n.leaves("one"); len(left) > 0 {
		t.Errorf("an exec's cgroup stays: %v", left)
	}
	for i, index := range []int{1, 0} {
		failed := make(chan error, 1)
		go func() {
			_, err := n.Exec(ctx, conmon.ExecRequest{ID: "one", Timeout: time.Hour, Args: []string{"/bin/sh", "-c", "setsid sleep 48 & sleep 49"}}, conmon.Stdio{})
			failed <- err
		}()
		waitFor(t, "it to run", func() bool { return strings.Contains(n.processes("one"), "sleep 49") })
		n.kill(index)
		if err := <-failed; !errors.Is(err, conmon.ErrUnavailable) {
			t.Errorf("%d: %v", i, err)
		}
		waitFor(t, "it to end", func() bool {
			now := n.processes("one")
			return !strings.Contains(now, "sleep 48") && !strings.Contains(now, "sleep 49")
		})
		if now := n.processes("one"); !strings.Contains(now, "sleep 46") || !strings.Contains(now, "sleep 47") {
			t.Errorf("%d: processes %q", i, now)
		}
		waitFor(t, "its cgroup to go", func() bool { return len(n.leaves("one")) == 0 })
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	r := n.request("tty", "read line; echo got $line; stty size; exit 4")
	r.Spec.Process.Terminal = true
	n.run(r)
	a, err := n.Attach(t.Context(), "tty")
	if err != nil || !a.Terminal || a.Stderr != nil || a.Stdin == nil {
		t.Fatalf("%+v, %v", a, err)
	}
	defer a.Stdin.Close()
	defer a.Stdout.Close()
	if err := n.Resize(t.Context(), "tty", 91, 33); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Stdin.WriteString("words\n"); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(a.Stdout)
	if err != nil || !strings.Contains(string(out), "got words\r\n33 91") {
		t.Errorf("%q, %v", out, err)
	}
	if exit := n.exited("tty"); exit.Code != 4 {
		t.Errorf("exit %+v", exit)
	}
	if got := n.lines("tty", "stdout"); len(got) != 3 || strings.TrimSpace(got[1]) != "got words" {
		t.Errorf("log %q", got)
	}
}

func TestExecTerminal(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "sleep 100"))
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	defer ours.Close()
	done := make(chan conmon.ExecResult, 1)
	go func() {
		result, err := n.Exec(context.Background(), conmon.ExecRequest{ID: "one", Terminal: true,
			Args: []string{"/bin/sh", "-c", "tty; echo $TERM; exit 6"}}, conmon.Stdio{Console: theirs})
		if err != nil {
			t.Error(err)
		}
		theirs.Close()
		done <- result
	}()
	master, err := runtime.ReceiveConsole(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	out, _ := io.ReadAll(master) // ends with EIO
	if !strings.Contains(string(out), "/dev/pts/") || !strings.Contains(string(out), "xterm") {
		t.Errorf("%q", out)
	}
	if result := <-done; result.Code != 6 {
		t.Errorf("%+v", result)
	}
}

func TestStdin(t *testing.T) {
	n := newNode(t)
	r := n.request("cat", "cat; echo end")
	r.Stdin, r.StdinOnce = true, true
	n.run(r)
	a, err := n.Attach(t.Context(), "cat")
	if err != nil || a.Stdin == nil || !a.StdinOnce {
		t.Fatalf("%+v, %v", a, err)
	}
	defer a.Stdout.Close()
	defer a.Stderr.Close()
	if _, err := a.Stdin.WriteString("words\n"); err != nil {
		t.Fatal(err)
	}
	a.Stdin.Close()
	if err := n.CloseStdin(t.Context(), "cat"); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(a.Stdout); string(out) != "words\nend\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	n.exited("cat")
}

func TestUpdate(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "sleep 100"))
	limit := int64(64 << 20)
	if err := n.Update(t.Context(), "one", &rspec.LinuxResources{Memory: &rspec.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/sys/fs/cgroup/memory" + n.cgroup + "/one/memory.limit_in_bytes", "/sys/fs/cgroup" + n.cgroup + "/one/memory.max"} {
		if data, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(data)) != strconv.FormatInt(limit, 10) {
			t.Errorf("%s: %s", path, data)
		}
	}
}

// A container that ends while there is no daemon is listed with its true exit.
func TestExitWithoutDaemon(t *testing.T) {
	n := newNode(t)
	n.run(n.request("one", "sleep 0.3; exit 9"))
	n.Close()
	waitFor(t, "exit record", func() bool {
		exit, err := conmon.ReadExit(n.cfg.ExitDir, "one")
		return err == nil && exit != nil
	})
	n.connect()
	waitFor(t, "exit in the list", func() bool {
		list, err := n.List(t.Context())
		return err == nil && len(list) == 1 && list[0].Exit != nil && list[0].Exit.Code == 9
	})
}

// kill ends one of the monitor's processes (0 is the keeper) and waits until another pair works.
func (n *node) kill(index int) {
	n.t.Helper()
	pids := n.monitors()
	if err := unix.Kill(pids[index], unix.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	waitFor(n.t, "another pair", func() bool {
		now := n.monitors()
		_, err := n.List(context.Background())
		return err == nil && len(now) == 2 && !slices.Equal(now, pids) && slices.Equal(now, n.monitors())
	})
}

// An exit that can't be written down is told when it can be: nobody else may know it by then.
func TestExitIsRecordedLater(t *testing.T) {
	for _, owner := range []string{"worker", "keeper", "keeper, and another worker"} {
		t.Run(owner, func(t *testing.T) {
			n := newNode(t)
			n.run(n.request("one", "mkfifo /tmp/end; read x </tmp/end; exit 7"))
			if owner != "worker" {
				n.kill(1)
			}
			// Nothing can be written here until it is unmounted.
			if err := unix.Mount("none", n.cfg.ExitDir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			full := true
			free := func() {
				if full {
					full = false
					if err := unix.Unmount(n.cfg.ExitDir, unix.MNT_DETACH); err != nil {
						t.Error(err)
					}
				}
			}
			defer free()
			n.endsWith("one")
			logged := func() bool {
				log, _ := os.ReadFile(filepath.Join(n.cfg.RunDir, "conmon.log"))
				return strings.Contains(string(log), "exit is not recorded")
			}
			waitFor(t, "the write to fail", logged)
			if owner == "keeper, and another worker" {
				n.kill(1)
			}
			if list, err := n.List(t.Context()); err != nil || len(list) != 1 || list[0].Exit != nil {
				t.Errorf("told before it was recorded: %+v, %v", list, err)
			}
			free()
			if exit := n.exited("one"); exit.Code != 7 || exit.Unknown {
				t.Errorf("exit %+v", exit)
			}
			if err := n.Delete(t.Context(), "one"); err != nil {
				t.Error(err)
			}
			for _, pid := range n.monitors() {
				if left := zombies(t, pid); len(left) > 0 {
					t.Errorf("children of %d that nobody reaps: %v", pid, left)
				}
			}
		})
	}
}

// A container that has filled the disk can be stopped, and its exit is written: there is room for it from the beginning.
func TestExitOnFullDisk(t *testing.T) {
	for _, owner := range []string{"worker", "keeper"} {
		t.Run(owner, func(t *testing.T) {
			n := newNode(t)
			if err := unix.Mount("none", n.cfg.ExitDir, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if left, _ := os.ReadDir(n.cfg.ExitDir); len(left) > 1 {
					t.Errorf("left behind: %v", left)
				}
				if err := unix.Unmount(n.cfg.ExitDir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			n.run(n.request("one", "mkfifo /tmp/end; read x </tmp/end; exit 7"))
			if owner == "keeper" {
				n.kill(1)
			}
			if err := os.WriteFile(filepath.Join(n.cfg.ExitDir, "junk.new"), make([]byte, 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("the disk is not full: %v", err)
			}
			n.endsWith("one")
			if exit := n.exited("one"); exit.Code != 7 || exit.Unknown {
				t.Errorf("exit %+v", exit)
			}
			if _, err := n.Create(t.Context(), n.request("two", "true")); err == nil {
				t.Error("a container was made whose exit there is no room for")
				_ = n.Delete(t.Context(), "two")
			}
			if err := n.Delete(t.Context(), "one"); err != nil {
				t.Error(err)
			}
		})
	}
}

// endsWith lets a container go on that reads from /tmp/end.
func (n *node) endsWith(id string) {
	n.t.Helper()
	if _, err := n.Exec(context.Background(), conmon.ExecRequest{ID: id, Args: []string{"/bin/sh", "-c", "echo >/tmp/end"}}, conmon.Stdio{}); err != nil {
		n.t.Fatal(err)
	}
}

func zombies(t *testing.T, parent int) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, path := range stats {
		data, _ := os.ReadFile(path)
		if strings.Contains(string(data), ") Z "+strconv.Itoa(parent)+" ") {
			left = append(left, string(data))
		}
	}
	return left
}

// Containers whose keeper and worker are killed both go on, and can be stopped.
func TestKillBoth(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"ends", "stays", "again"} {
		n.run(n.request(id, "mkfifo /tmp/end; read x </tmp/end; exit 7"))
	}
	n.killBoth()
	n.endsWith("ends")
	if exit := n.exited("ends"); exit.Code != 7 && child.KeepsExit() {
		t.Errorf("exit %+v", exit)
	}
	if err := n.Signal(t.Context(), "stays", int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	n.exited("stays")
	n.kill(1) // the keeper watches for the next worker, too
	n.endsWith("again")
	n.exited("again")
	for _, id := range []string{"ends", "stays", "again"} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := n.Delete(ctx, id); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

// killBoth ends the keeper and the worker at once; the client starts another monitor.
func (n *node) killBoth() {
	n.t.Helper()
	pids := n.monitors()
	for _, signal := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} { // so that none can replace the other
		for _, pid := range pids {
			if err := unix.Kill(pid, signal); err != nil {
				n.t.Fatal(err)
			}
		}
	}
	waitFor(n.t, "another monitor", func() bool {
		now := n.monitors()
		_, err := n.List(context.Background())
		return err == nil && len(now) == 2 && now[0] != pids[0]
	})
}

// Either half of the monitor is killed again and again while containers write, end, and are made.
func TestKillMonitor(t *testing.T) {
	for _, who := range []struct {
		name  string
		index int
	}{{"keeper", 0}, {"worker", 1}} {
		t.Run(who.name, func(t *testing.T) {
			n := newNode(t)
			n.rounds(func() {
				if pids := n.monitors(); len(pids) == 2 {
					if err := unix.Kill(pids[who.index], unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// The monitor's program is replaced again and again meanwhile; both of its processes go on as the new one.
func TestUpgrade(t *testing.T) {
	program := filepath.Join(t.TempDir(), "orlop-conmon")
	process.Install(t, binary, program)
	n := newNodeOf(t, program)
	if done, err := n.Upgrade(t.Context()); err != nil || done {
		t.Errorf("%v, %v, and there is nothing newer", done, err)
	}
	keeper := n.monitors()[0]
	n.rounds(func() {
		process.Install(t, binary, program)
		if done, err := n.Upgrade(t.Context()); err != nil || !done {
			t.Fatalf("%v, %v", done, err)
		}
		now := n.monitors()
		if len(now) != 2 || now[0] != keeper {
			t.Fatalf("monitors %v, and the keeper was %d", now, keeper)
		}
		for _, pid := range now {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe != program {
				t.Fatalf("%d is %s, %v", pid, exe, err)
			}
		}
	})
}

// A program that does not run, or can't read what this one leaves, is not taken: the monitor and its containers stay.
func TestUpgradeRefused(t *testing.T) {
	program := filepath.Join(t.TempDir(), "orlop-conmon")
	process.Install(t, binary, program)
	n := newNodeOf(t, program)
	n.run(n.request("c", "while :; do echo alive; sleep 0.01; done"))
	before := n.monitors()
	for _, tt := range []struct{ script, want string }{
		{"#!/bin/sh\nexit 3\n", "exit status 3"},
		{"#!/bin/sh\necho two\n", "is no number"},
		{"#!/bin/sh\necho 1000\n", "has version 1000"},
		{"#!/nowhere\n", "no such file"},
	} {
		if err := os.WriteFile(program+".bad", []byte(tt.script), 0o755); err != nil {
			t.Fatal(err)
		}
		process.Install(t, program+".bad", program)
		if done, err := n.Upgrade(t.Context()); err == nil || done || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, %v; want %q", tt.script, done, err, tt.want)
		}
	}
	if now := n.monitors(); !slices.Equal(now, before) {
		t.Errorf("monitors %v, before %v", now, before)
	}
	// One that seems to be right, and whose file is gone when it is executed: the worker ended for nothing.
	vanishing := fmt.Sprintf("#!/bin/sh\necho %d\nrm $0\n", conmon.Version)
	if err := os.WriteFile(program+".bad", []byte(vanishing), 0o755); err != nil {
		t.Fatal(err)
	}
	process.Install(t, program+".bad", program)
	if done, err := n.Upgrade(t.Context()); err == nil || done || !strings.Contains(err.Error(), "could not become") {
		t.Errorf("%v, %v", done, err)
	}
	if now := n.monitors(); len(now) != 2 || now[0] != before[0] {
		t.Errorf("monitors %v, before %v", now, before)
	}
	if out, _, err := n.execOut(conmon.ExecRequest{ID: "c", Args: []string{"echo", "alive"}}); err != nil || out != "alive\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// Both halves are killed in turn, each as soon as the other is back.
func TestKillInTurn(t *testing.T) {
	n := newNode(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	n.run(n.request("writer", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.002; done"))
	defer n.churn()()
	for round := range 2 * killedRounds {
		var pids []int
		waitFor(t, "an answer", func() bool {
			pids = n.monitors()
			list, err := n.List(t.Context())
			if err == nil && !slices.ContainsFunc(list, func(c conmon.Container) bool { return c.ID == "writer" && c.Exit == nil }) {
				t.Fatalf("round %d: %+v", round, list)
			}
			// The answer must be of these two: a worker that is about to become the keeper answers too.
			return err == nil && len(pids) == 2 && slices.Equal(pids, n.monitors())
		})
		time.Sleep(time.Duration(random.IntN(50)) * time.Millisecond)
		if err := unix.Kill(pids[round%2], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "another pair", func() bool { return !slices.Equal(n.monitors(), pids) })
	}
}

const killedRounds = 12

// rounds has containers write, end, and be made, while something is done to the monitor again and again.
func (n *node) rounds(disturb func()) {
	n.t.Helper()
	t := n.t
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const spam = `i=0; while [ $i -lt 4000 ]; do i=$((i+1)); echo line $i; done; exit 11`
	slow := `i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; echo err $i >&2; sleep 0.005; done; exit 12`
	n.run(n.request("slow", slow))
	n.run(n.request("long", "sleep 1000"))
	stop := n.churn()
	for round := range killedRounds {
		id := "spam" + strconv.Itoa(round)
		n.insist(n.request(id, spam))
		time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
		disturb()
		waitFor(t, "exec to work again", func() bool {
			out, _, err := n.execOut(conmon.ExecRequest{ID: "long", Args: []string{"echo", "alive"}})
			return err == nil && out == "alive\n"
		})
		n.checkSpam(id, 4000, 11)
	}
	stop()
	n.checkSpam("slow", 400, 12)
	list, err := n.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.ID == "long" && (c.Exit != nil || c.Pid == 0) {
			t.Errorf("long was stopped: %+v", c)
		}
	}
}

// insist does what the daemon does: it repeats a request whose answer was lost.
func (n *node) insist(r conmon.CreateRequest) {
	n.t.Helper()
	ctx := context.Background()
	waitFor(n.t, "create of "+r.ID, func() bool {
		_, err := n.Create(ctx, r)
		if err != nil && !errors.Is(err, conmon.ErrUnavailable) {
			n.t.Fatalf("create: %v", err)
		}
		return err == nil
	})
	waitFor(n.t, "start of "+r.ID, func() bool {
		_, err := n.Start(ctx, r.ID)
		if errors.Is(err, conmon.ErrNotFound) { // it was being made when the worker was killed
			_, _ = n.Create(ctx, r)
			return false
		}
		return err == nil || errors.Is(err, conmon.ErrNotRunning) // it has ended already
	})
}

// churn makes and deletes containers until it is stopped, and checks the exit of each.
func (n *node) churn() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			id := "churn" + strconv.Itoa(i)
			n.insist(n.request(id, "echo line 1; exit 13"))
			n.checkSpam(id, 1, 13)
			waitFor(n.t, "delete of "+id, func() bool { return n.Delete(context.Background(), id) == nil })
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// checkSpam waits for the end of a container that counts lines, and finds each line once, or one of them twice.
func (n *node) checkSpam(id string, count, code int) {
	n.t.Helper()
	var exit *conmon.Exit
	waitFor(n.t, id+" to exit", func() bool {
		list, err := n.List(context.Background())
		if err != nil {
			return false
		}
		for _, c := range list {
			if c.ID == id {
				exit = c.Exit
			}
		}
		return exit != nil
	})
	if exit.Code != code {
		n.t.Errorf("%s: exit %+v", id, exit)
	}
	lines, next := n.lines(id, "stdout"), 1
	for _, line := range lines {
		switch line {
		case "line " + strconv.Itoa(next):
			next++
		case "line " + strconv.Itoa(next-1): // repeated
		default:
			n.t.Fatalf("%s: got %q where line %d belongs, of %d lines", id, line, next, len(lines))
		}
	}
	if next != count+1 || len(lines) > count+1 {
		n.t.Errorf("%s: %d lines up to line %d, want %d", id, len(lines), next-1, count)
	}
}

func BenchmarkContainer(b *testing.B) {
	n := newNode(b)
	ctx := context.Background()
	b.Run("create", func(b *testing.B) {
		var lib time.Duration
		i := 0
		for b.Loop() {
			i++
			id := fmt.Sprintf("c%d-%d", b.N, i)
			made, err := n.Create(ctx, n.request(id, "sleep 100"))
			if err != nil {
				b.Fatal(err)
			}
			lib += made.Steps["libcontainer"]
			b.StopTimer()
			if err := n.Delete(ctx, id); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(lib.Microseconds())/float64(i), "libcontainer-µs/op")
	})
	n.run(n.request("exec", "sleep 1000"))
	b.Run("exec", func(b *testing.B) {
		for b.Loop() {
			if _, err := n.Exec(ctx, conmon.ExecRequest{ID: "exec", Args: []string{"/bin/true"}}, conmon.Stdio{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkMemory reports what the monitor's two processes take with 50 containers.
func BenchmarkMemory(b *testing.B) {
	n := newNode(b)
	for i := range 50 {
		n.run(n.request("c"+strconv.Itoa(i), "sleep 1000"))
	}
	for b.Loop() {
		for i, pid := range n.monitors() {
			name := []string{"keeper", "worker"}[i]
			b.ReportMetric(smaps(b, pid, "Pss:"), name+"-PSS-kB")
			b.ReportMetric(smaps(b, pid, "Pss_Anon:"), name+"-anon-kB")
		}
	}
}

func smaps(t testing.TB, pid int, field string) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			kb, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb
		}
	}
	t.Fatalf("smaps_rollup has no %s", field)
	return 0
}
