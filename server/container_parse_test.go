package server

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/server/store"
)

func TestCreateContainerRefusesWhatCanNotWork(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	p, _ := s.pods.get(store.PodID(pod))
	p.note(func(rec *store.Pod) { rec.Config.LogDirectory = "/var/log/pods/a" })
	before := w.left()
	for _, tt := range []struct {
		want  string
		is    error
		spoil func(*cri.CreateContainerRequest)
	}{
		{"config is", store.ErrInvalid, func(r *cri.CreateContainerRequest) { r.Config = nil }},
		{"config.metadata.name", store.ErrInvalid, func(r *cri.CreateContainerRequest) { r.Config.Metadata = nil }},
		{`pod: "none"`, store.ErrNotFound, func(r *cri.CreateContainerRequest) { r.PodSandboxId = "none" }},
		{"the ID is empty", store.ErrInvalid, func(r *cri.CreateContainerRequest) { r.PodSandboxId = "" }},
		{"config.log_path", store.ErrInvalid, func(r *cri.CreateContainerRequest) { r.Config.LogPath = "../b/0.log" }},
		{"config.log_path", store.ErrInvalid, func(r *cri.CreateContainerRequest) { r.Config.LogPath = "/etc/passwd" }},
		{"config.image.image", store.ErrInvalid, func(r *cri.CreateContainerRequest) { r.Config.Image = nil }},
		{`image "missing"`, image.ErrNotFound, func(r *cri.CreateContainerRequest) { r.Config.Image.Image = "missing" }},
		{"config.CDI_devices", store.ErrInvalid, func(r *cri.CreateContainerRequest) {
			r.Config.CDIDevices = []*cri.CDIDevice{{Name: "vendor.test/gpu=0"}}
		}},
		{"target_id", store.ErrInvalid, func(r *cri.CreateContainerRequest) {
			r.Config.Linux = &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "none"},
			}}
		}},
	} {
		req := createRequest(pod, "c")
		tt.spoil(req)
		_, err := s.CreateContainer(t.Context(), req)
		if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v", tt.want, err)
		}
	}
	if now := w.left(); strings.Join(now, " ") != strings.Join(before, " ") {
		t.Errorf("left behind: %q", now)
	}
	req := createRequest(pod, "c")
	req.Config.LogPath = "c/0.log"
	rec, _, err := s.parseContainer(req)
	if err != nil || rec.LogPath != "/var/log/pods/a/c/0.log" {
		t.Errorf("log path is %v, %v", rec, err)
	}
}

func TestATargetContainersNamespaceIsJoined(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod, target := w.running(s, "web")
	req := createRequest(pod, "debug")
	req.Config.Linux = &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: target},
	}}
	resp, err := s.CreateContainer(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := s.containers.get(store.ContainerID(resp.ContainerId))
	paths, joins, err := s.namespacesFor(c)
	tc, _ := s.containers.get(store.ContainerID(target))
	if want := "/proc/" + strconv.Itoa(tc.rec.Load().Pid) + "/ns/pid"; err != nil || paths["pid"] != want || joins != target {
		t.Errorf("joins %v of %s, %v; want %s of %s", paths, joins, err, want, target)
	}
}

func TestImageName(t *testing.T) {
	tagged := &image.Image{ID: "abcdef", RepoTags: []string{"r.test/a:1"}, RepoDigests: []string{"r.test/a@sha256:9"}}
	bare := &image.Image{ID: "abcdef", RepoDigests: []string{"r.test/a@sha256:9"}}
	for _, tt := range []struct {
		asked *cri.ImageSpec
		image *image.Image
		want  string
	}{
		{&cri.ImageSpec{Image: "a:1"}, tagged, "a:1"},
		{&cri.ImageSpec{Image: "abcdef"}, tagged, "r.test/a:1"},
		{&cri.ImageSpec{Image: "sha256:abcdef"}, bare, "r.test/a@sha256:9"},
		{&cri.ImageSpec{Image: "abcdef", UserSpecifiedImage: "a"}, tagged, "a"},
		{&cri.ImageSpec{Image: "abcdef"}, &image.Image{ID: "abcdef"}, "abcdef"},
	} {
		if got := imageName(tt.asked, tt.image); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.asked, got, tt.want)
		}
	}
}

func TestStdinOnceWithoutStdinMeansNothing(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	req := createRequest(w.runPod(s, "web"), "c")
	req.Config.StdinOnce = true
	resp, err := s.CreateContainer(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if r := w.created[resp.ContainerId]; r.Stdin || r.StdinOnce {
		t.Errorf("the monitor is asked for stdin: %+v", r)
	}
}
