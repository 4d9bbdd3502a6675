package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeDaemon is a node in memory, on which pods and containers begin and end as they are told.
type fakeDaemon struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	pods       map[string]*cri.PodSandbox
	containers map[string]*cri.Container
	loaded     map[string]string // image name: path
	failStart  error
	monitorErr error
	entered    chan struct{} // if set, ExecSync says that it is under way, and waits for release
	release    chan struct{}
}

func newFakeDaemon() *fakeDaemon {
	return &fakeDaemon{pods: map[string]*cri.PodSandbox{}, containers: map[string]*cri.Container{}, loaded: map[string]string{}}
}

func (d *fakeDaemon) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "orlop", RuntimeVersion: "1.2.3"}, nil
}

func (d *fakeDaemon) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			{Type: cri.RuntimeReady, Status: true}, {Type: cri.NetworkReady, Message: "no network configuration"},
		}},
		Info: map[string]string{"pending": `[{"pod":"p9","state":"stopping","err":"busy","since":"2026-01-01T00:00:00Z","tries":3}]`},
	}, nil
}

func (d *fakeDaemon) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	id := fmt.Sprintf("pod%d", len(d.pods))
	d.pods[id] = &cri.PodSandbox{Id: id, Metadata: r.Config.Metadata, CreatedAt: time.Now().UnixNano()}
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (d *fakeDaemon) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	answer := new(cri.ListPodSandboxResponse)
	for _, p := range d.pods {
		answer.Items = append(answer.Items, p)
	}
	return answer, nil
}

func (d *fakeDaemon) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Id: r.PodSandboxId, Network: &cri.PodSandboxNetworkStatus{Ip: "10.0.0.2", AdditionalIps: []*cri.PodIP{{Ip: "fd00::2"}}},
	}}, nil
}

func (d *fakeDaemon) StopPodSandbox(context.Context, *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return new(cri.StopPodSandboxResponse), nil
}

func (d *fakeDaemon) RemovePodSandbox(_ context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	delete(d.pods, r.PodSandboxId)
	for id, c := range d.containers {
		if c.PodSandboxId == r.PodSandboxId {
			delete(d.containers, id)
		}
	}
	return new(cri.RemovePodSandboxResponse), nil
}

func (d *fakeDaemon) CreateContainer(_ context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	id := fmt.Sprintf("ctr%d", len(d.containers))
	d.containers[id] = &cri.Container{
		Id: id, PodSandboxId: r.PodSandboxId, Metadata: r.Config.Metadata, Image: r.Config.Image, CreatedAt: time.Now().UnixNano(),
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (d *fakeDaemon) StartContainer(_ context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	d.containers[r.ContainerId].State = cri.ContainerState_CONTAINER_RUNNING
	return new(cri.StartContainerResponse), d.failStart
}

func (d *fakeDaemon) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	answer := new(cri.ListContainersResponse)
	for _, c := range d.containers {
		answer.Containers = append(answer.Containers, c)
	}
	return answer, nil
}

func (d *fakeDaemon) ExecSync(_ context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	if d.entered != nil {
		close(d.entered)
		<-d.release
	}
	return &cri.ExecSyncResponse{Stdout: []byte(strings.Join(r.Cmd, " ") + "\n"), ExitCode: 3}, nil
}

func (d *fakeDaemon) ImageStatus(context.Context, *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	return new(cri.ImageStatusResponse), nil
}

func (d *fakeDaemon) PullImage(_ context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	d.loaded[r.Image.Image] = "pulled"
	return &cri.PullImageResponse{ImageRef: "id"}, nil
}

func (d *fakeDaemon) loadImage(_ context.Context, req *structpb.Struct) (*wrapperspb.StringValue, error) {
	d.loaded[req.Fields["name"].GetStringValue()] = req.Fields["path"].GetStringValue()
	return wrapperspb.String("cafe"), nil
}

func (d *fakeDaemon) monitorStatus(context.Context, *emptypb.Empty) (*structpb.Struct, error) {
	if d.monitorErr != nil {
		return nil, d.monitorErr
	}
	return structpb.NewStruct(map[string]any{"answeredMillis": 0.5, "containers": 2, "running": 1})
}

// serveFake serves until the test ends, or end is called, which returns what serveUntil did. The arguments are the
// flags that lead a command to it.
func serveFake(t *testing.T, d *fakeDaemon) (args []string, end func() error) {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "s.sock")
	file := filepath.Join(dir, "orlop.toml")
	if err := os.WriteFile(file, []byte("socket = \""+socket+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, d)
	cri.RegisterImageServiceServer(g, d)
	g.RegisterService(&adminService, d)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serveUntil(ctx, g, l, func() {}) }()
	stopped := false
	end = func() error {
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		if !stopped {
			if err := end(); err != nil {
				t.Errorf("serve: %v", err)
			}
		}
		cancel()
	})
	return []string{"--config", file}, end
}

// examplePod is the example with a log directory that anybody may make.
func examplePod(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../examples/pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pod.yaml")
	text = bytes.ReplaceAll(text, []byte("/var/log/pods/"), []byte(t.TempDir()+"/"))
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPodRunStatusRemove(t *testing.T) {
	d := newFakeDaemon()
	args, _ := serveFake(t, d)
	out, err := execute(t, append(args, "pod", "run", examplePod(t), "../../examples/container.yaml")...)
	if err != nil {
		t.Fatal(err)
	}
	want := "pod pod0 demo/web\ncontainer ctr0 nginx\naddress 10.0.0.2\naddress fd00::2\n"
	if out != want {
		t.Errorf("pod run printed %q, want %q", out, want)
	}
	if d.loaded["localhost/orlop-demo/nginx:1"] != "pulled" {
		t.Errorf("the image that was missing was not pulled: %v", d.loaded)
	}
	out, err = execute(t, append(args, "status")...)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"orlop 1.2.3", "runtime  ready", "network  not ready: no network configuration", "answers in 0.5 ms, 1 running, 1 ended",
		"pod0", "demo/web", "10.0.0.2, fd00::2", "ctr0", "running", "localhost/orlop-demo/nginx:1", "pod p9", "stopping", "busy",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("status does not show %q:\n%s", part, out)
		}
	}
	if _, err := execute(t, append(args, "pod", "rm", "demo/web")...); err != nil || len(d.pods) != 0 {
		t.Errorf("pod rm: %v; %d pods are left", err, len(d.pods))
	}
}

func TestPodRunRemovesWhatFailed(t *testing.T) {
	d := newFakeDaemon()
	d.failStart = status.Error(codes.InvalidArgument, "no such program")
	args, _ := serveFake(t, d)
	_, err := execute(t, append(args, "pod", "run", examplePod(t), "../../examples/container.yaml")...)
	if err == nil || err.Error() != "container nginx: no such program" {
		t.Errorf("error %q, want the daemon's words", err)
	}
	if len(d.pods) != 0 {
		t.Errorf("%d pods are left", len(d.pods))
	}
}

func TestStatusJSON(t *testing.T) {
	d := newFakeDaemon()
	d.monitorErr = status.Error(codes.Unavailable, "monitor restarted")
	args, _ := serveFake(t, d)
	out, err := execute(t, append(args, "status", "-o", "json")...)
	if err != nil {
		t.Fatal(err)
	}
	var r statusReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Monitor.Err != "monitor restarted" || len(r.Pending) != 1 || r.Pending[0].Tries != 3 || r.Pods == nil {
		t.Errorf("report %+v", r)
	}
	if _, err := execute(t, append(args, "status", "-o", "xml")...); err == nil || !strings.Contains(err.Error(), "table or json") {
		t.Errorf("an unknown format: %v", err)
	}
}

func TestImageLoadSendsAnAbsolutePath(t *testing.T) {
	d := newFakeDaemon()
	args, _ := serveFake(t, d)
	t.Chdir(t.TempDir())
	if err := os.Mkdir("layout", 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := execute(t, append(args, "image", "load", "layout", "localhost/x:1")...)
	if err != nil || out != "cafe\n" {
		t.Errorf("image load: %q, %v", out, err)
	}
	if got := d.loaded["localhost/x:1"]; !filepath.IsAbs(got) || filepath.Base(got) != "layout" {
		t.Errorf("the daemon was given the path %q", got)
	}
}

func TestExecEndsWithTheCommandsCode(t *testing.T) {
	d := newFakeDaemon()
	d.containers["abc"] = &cri.Container{Id: "abc", Metadata: &cri.ContainerMetadata{Name: "web"}, State: cri.ContainerState_CONTAINER_EXITED}
	d.containers["abd"] = &cri.Container{Id: "abd", Metadata: &cri.ContainerMetadata{Name: "web"}, State: cri.ContainerState_CONTAINER_RUNNING}
	args, _ := serveFake(t, d)
	out, err := execute(t, append(args, "exec", "web", "--", "echo", "hi")...)
	var code exitCode
	if !errors.As(err, &code) || code != 3 || out != "echo hi\n" {
		t.Errorf("exec: %q, %v", out, err)
	}
}

// TestServeAnswersBeforeItEnds has a call under way when the daemon is told to end.
func TestServeAnswersBeforeItEnds(t *testing.T) {
	d := newFakeDaemon()
	d.entered, d.release = make(chan struct{}), make(chan struct{})
	d.containers["abd"] = &cri.Container{Id: "abd", State: cri.ContainerState_CONTAINER_RUNNING}
	args, end := serveFake(t, d)
	answered := make(chan string, 1)
	go func() {
		out, _ := execute(t, append(args, "exec", "abd", "--", "slow")...) // its code is 3
		answered <- out
	}()
	<-d.entered
	ended := make(chan error, 1)
	go func() { ended <- end() }()
	select {
	case err := <-ended:
		t.Fatalf("it ended with a call under way: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(d.release)
	if got := <-answered; got != "slow\n" {
		t.Errorf("the call got %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}
