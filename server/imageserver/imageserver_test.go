package imageserver

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/server/store"
	"github.com/orlop/orlop/storage"
)

// shelf is an image service in memory.
type shelf struct {
	images map[string]*image.Image
	auth   *image.Auth
}

func (s *shelf) Pull(_ context.Context, name string, auth *image.Auth) (string, error) {
	s.auth = auth
	img := &image.Image{ID: "id-of-" + name, RepoTags: []string{name}, Config: imgspec.ImageConfig{User: "web:staff"}}
	s.images[name] = img
	return img.ID, nil
}

func (s *shelf) List(name string) ([]*image.Image, error) {
	var out []*image.Image
	for n, img := range s.images {
		if name == "" || n == name {
			out = append(out, img)
		}
	}
	return out, nil
}

func (s *shelf) Resolve(name string) (*image.Image, error) {
	if img := s.images[name]; img != nil {
		return img, nil
	}
	return nil, image.ErrNotFound
}

func (s *shelf) Remove(_ context.Context, name string, inUse func(string) bool) error {
	if img := s.images[name]; img != nil && inUse(img.ID) {
		return image.ErrInUse
	}
	delete(s.images, name)
	return nil
}

func (s *shelf) FilesystemUsage(context.Context) (string, storage.Usage, error) {
	return "/layers", storage.Usage{Bytes: 5, Inodes: 6}, nil
}

func TestImages(t *testing.T) {
	ctx := t.Context()
	fake := &shelf{images: map[string]*image.Image{}}
	used := ""
	s := New(fake, fake, func(id string) bool { return id == used })
	spec := &cri.ImageSpec{Image: "nginx"}

	pulled, err := s.PullImage(ctx, &cri.PullImageRequest{Image: spec, Auth: &cri.AuthConfig{Username: "u", RegistryToken: "t"}})
	if err != nil || pulled.ImageRef != "id-of-nginx" || fake.auth.Username != "u" || fake.auth.RegistryToken != "t" {
		t.Errorf("%v, %v, %+v", pulled, err, fake.auth)
	}
	list, err := s.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil || len(list.Images) != 1 || list.Images[0].Id != pulled.ImageRef || list.Images[0].Username != "web" || list.Images[0].Size == 0 {
		t.Errorf("%v, %v", list, err)
	}
	status, err := s.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec, Verbose: true})
	if err != nil || status.Image.GetId() != pulled.ImageRef || !json.Valid([]byte(status.Info["info"])) {
		t.Errorf("%v, %v", status, err)
	}
	used = pulled.ImageRef
	if _, err := s.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); !errors.Is(err, image.ErrInUse) {
		t.Errorf("remove of an image in use: %v", err)
	}
	used = ""
	for range 2 {
		if _, err := s.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
			t.Error(err)
		}
	}
	if status, err := s.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec}); err != nil || status.Image != nil {
		t.Errorf("%v, %v", status, err)
	}
	if _, err := s.PullImage(ctx, &cri.PullImageRequest{}); !errors.Is(err, image.ErrInvalidName) {
		t.Errorf("no name: %v", err)
	}
	for handler, want := range map[string]error{"orlop": nil, "kata": store.ErrInvalid} {
		_, err := s.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "nginx", RuntimeHandler: handler}})
		if !errors.Is(err, want) {
			t.Errorf("handler %s: %v", handler, err)
		}
	}
	fs, err := s.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil || fs.ImageFilesystems[0].UsedBytes.Value != 5 || fs.ImageFilesystems[0].FsId.Mountpoint != "/layers" {
		t.Errorf("%v, %v", fs, err)
	}
}

func TestUserOf(t *testing.T) {
	for _, tt := range []struct {
		in   string
		uid  int64
		name string
	}{{"", 0, ""}, {"0", 0, ""}, {"33:34", 33, ""}, {"web", -1, "web"}, {"web:staff", -1, "web"}} {
		uid, name := userOf(tt.in)
		if name != tt.name || (uid == nil) != (tt.uid < 0) || uid != nil && uid.Value != tt.uid {
			t.Errorf("%q: %v %q", tt.in, uid, name)
		}
	}
}
