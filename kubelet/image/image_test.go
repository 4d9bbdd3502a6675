package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type secrets map[string]*v1.Secret

func (s secrets) Secret(_ context.Context, _, name string) (*v1.Secret, error) {
	if found := s[name]; found != nil {
		return found, nil
	}
	return nil, errors.New("not there")
}

func TestCredentials(t *testing.T) {
	p := &v1.Pod{Spec: v1.PodSpec{ImagePullSecrets: []v1.LocalObjectReference{{Name: "new"}, {Name: "old"}, {Name: "absent"}}}}
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(`{"auths":{"example.com":{"username":"node"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	puller := New(Config{Node: []Source{ConfigFiles(file, file+".absent")}, Secrets: secrets{
		"new": {Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{"auths":{"example.com":{"auth":"dXNlcjpwYTpzcw=="},"example.com/team":{"username":"t","password":"p"},"other":{"username":"x"}}}`)}},
		"old": {Data: map[string][]byte{v1.DockerConfigKey: []byte(`{"*.com":{"username":"wild","password":"w"},"example.com":{"username":"second"}}`)}},
	}})
	found, err := puller.credentials(t.Context(), p, "example.com/team/app:1")
	if err == nil {
		t.Error("a secret that is not there was not told")
	}
	var names []string
	for _, auth := range found {
		names = append(names, auth.Username)
	}
	if want := []string{"t", "user", "second", "wild", "node"}; !slices.Equal(names, want) || found[1].Password != "pa:ss" {
		t.Errorf("%v, want %v", found, want)
	}
}

// service is a fake image service.
type service struct {
	cri.ImageServiceClient
	present map[string]bool
	fail    error
	pulls   []*cri.AuthConfig
}

func (s *service) ImageStatus(_ context.Context, r *cri.ImageStatusRequest, _ ...grpc.CallOption) (*cri.ImageStatusResponse, error) {
	if !s.present[r.Image.Image] {
		return &cri.ImageStatusResponse{}, nil
	}
	return &cri.ImageStatusResponse{Image: &cri.Image{Id: "id of " + r.Image.Image}}, nil
}

func (s *service) PullImage(_ context.Context, r *cri.PullImageRequest, _ ...grpc.CallOption) (*cri.PullImageResponse, error) {
	s.pulls = append(s.pulls, r.Auth)
	if s.fail != nil {
		return nil, s.fail
	}
	s.present[r.Image.Image] = true
	return &cri.PullImageResponse{}, nil
}

func TestEnsure(t *testing.T) {
	s := &service{present: map[string]bool{}}
	p := New(Config{Images: s, Secrets: secrets{}, Events: record.NewFakeRecorder(100)})
	pod := &v1.Pod{}
	pod.UID = "u"
	get := func(policy v1.PullPolicy) (string, string) {
		found, err := p.Ensure(t.Context(), Request{Pod: pod, About: pod, Name: "example.com/a", Policy: policy})
		var problem *Problem
		if errors.As(err, &problem) {
			return "", problem.Reason
		}
		return found.GetId(), ""
	}
	if _, reason := get(v1.PullNever); reason != "ErrImageNeverPull" {
		t.Errorf("Never: %s", reason)
	}
	s.fail = status.Error(codes.Unknown, "no such tag")
	if _, reason := get(v1.PullIfNotPresent); reason != "ErrImagePull" {
		t.Errorf("a pull that fails: %s", reason)
	}
	s.fail = nil
	if _, reason := get(v1.PullIfNotPresent); reason != "ErrImagePull" || len(s.pulls) != 1 {
		t.Errorf("at once again: %s after %d pulls", reason, len(s.pulls))
	}
	p.Forget("u")
	if id, reason := get(v1.PullIfNotPresent); id != "id of example.com/a:latest" {
		t.Errorf("a pull: %q, %s", id, reason)
	}
	get(v1.PullIfNotPresent)
	if len(s.pulls) != 2 {
		t.Errorf("IfNotPresent pulled what is there: %d pulls", len(s.pulls))
	}
	get(v1.PullAlways)
	if len(s.pulls) != 3 {
		t.Errorf("Always did not pull: %d pulls", len(s.pulls))
	}
	p.Forget("u")
	s.fail = status.Error(codes.Unavailable, "RegistryUnavailable: connection refused")
	if _, reason := get(v1.PullAlways); reason != "RegistryUnavailable" {
		t.Errorf("a registry that is away: %s", reason)
	}
}

// A failed pull is told for a moment, then that the next one is waited for, and why.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{present: map[string]bool{}, fail: status.Error(codes.Unknown, "no such tag")}
		p := New(Config{Images: s, Secrets: secrets{}, Events: record.NewFakeRecorder(100)})
		pod := &v1.Pod{}
		pod.UID = "u"
		for _, tt := range []struct {
			sleep           time.Duration
			reason, message string
			retryIn         time.Duration
			pulls           int
		}{
			{0, "ErrImagePull", "no such tag", 5 * time.Second, 1},
			{2 * time.Second, "ErrImagePull", "no such tag", 3 * time.Second, 1},
			{3 * time.Second, "ImagePullBackOff", `Back-off pulling image "a": ErrImagePull: no such tag`, 5 * time.Second, 1},
			{5 * time.Second, "ErrImagePull", "no such tag", 5 * time.Second, 2},
			{5 * time.Second, "ImagePullBackOff", `Back-off pulling image "a": ErrImagePull: no such tag`, 15 * time.Second, 2},
		} {
			time.Sleep(tt.sleep)
			_, err := p.Ensure(t.Context(), Request{Pod: pod, About: pod, Name: "a", Policy: v1.PullAlways})
			want := &Problem{Reason: tt.reason, Message: tt.message, RetryIn: tt.retryIn}
			if diff := cmp.Diff(error(want), err); diff != "" || len(s.pulls) != tt.pulls {
				t.Errorf("%d pulls, want %d; the problem (-want +got):\n%s", len(s.pulls), tt.pulls, diff)
			}
		}
	})
}
