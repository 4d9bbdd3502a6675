package server

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/server/store"
)

// containerPlan is what a CreateContainer request asks for, parsed and with its image found.
type containerPlan struct {
	pod   *pod
	image *image.Image
}

// parseContainer is the validation of a CreateContainer request, but for what the OCI spec's maker checks itself. The
// record that it returns is in no table yet.
func (s *Server) parseContainer(req *cri.CreateContainerRequest) (*store.Container, containerPlan, error) {
	var plan containerPlan
	config := req.GetConfig()
	if config == nil {
		return nil, plan, invalid("config", "", "set it")
	}
	if err := checkName("config.metadata.name", config.GetMetadata().GetName()); err != nil {
		return nil, plan, err
	}
	p, err := s.pods.find(req.GetPodSandboxId())
	if err != nil {
		return nil, plan, fmt.Errorf("pod: %w", err)
	}
	if !p.visible() {
		return nil, plan, fmt.Errorf("pod %q: %w", req.GetPodSandboxId(), store.ErrNotFound)
	}
	plan.pod = p
	if len(config.GetCDIDevices()) > 0 {
		return nil, plan, invalid("config.CDI_devices", config.GetCDIDevices()[0].GetName(), "leave it out: this runtime has no CDI devices yet")
	}
	rec := &store.Container{
		ID: store.ContainerID(newID()), Pod: p.id, State: store.ContainerCreating, Config: config, CreatedAt: time.Now(),
	}
	if rec.LogPath, err = logPath(p.rec.Load().Config.GetLogDirectory(), config.GetLogPath()); err != nil {
		return nil, plan, err
	}
	if plan.image, err = s.findImage(config.GetImage()); err != nil {
		return nil, plan, err
	}
	rec.ImageName = imageName(config.GetImage(), plan.image)
	rec.ImageID, rec.ImageRef = plan.image.ID, plan.image.ID
	if len(plan.image.RepoDigests) > 0 {
		rec.ImageRef = plan.image.RepoDigests[0]
	}
	rec.StopSignal, err = stopSignal(config.GetStopSignal(), plan.image.Config.StopSignal)
	return rec, plan, err
}

// logPath joins what the pod and the container say. "" means that there is no log.
func logPath(dir, name string) (string, error) {
	if dir == "" || name == "" {
		return "", nil
	}
	if !filepath.IsLocal(name) || strings.HasSuffix(name, "/") {
		return "", invalid("config.log_path", name, "use a path of a file below the pod's log_directory")
	}
	return filepath.Join(dir, name), nil
}

// findImage finds the image of a container or mount: the kubelet names it by what PullImage answered.
func (s *Server) findImage(spec *cri.ImageSpec) (*image.Image, error) {
	name := spec.GetImage()
	if name == "" {
		return nil, invalid("config.image.image", "", "set it")
	}
	img, err := s.Images.Resolve(name)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	return img, nil
}

// imageName is for people: the kubelet names the image of a container by its ID, which says nothing to them.
func imageName(asked *cri.ImageSpec, img *image.Image) string {
	name := strings.TrimPrefix(asked.GetImage(), "sha256:")
	switch {
	case asked.GetUserSpecifiedImage() != "":
		return asked.GetUserSpecifiedImage()
	case name == "" || !strings.HasPrefix(img.ID, name):
		return asked.GetImage()
	case len(img.RepoTags) > 0:
		return img.RepoTags[0]
	case len(img.RepoDigests) > 0:
		return img.RepoDigests[0]
	}
	return asked.GetImage()
}
