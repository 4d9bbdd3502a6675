package image

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/image/login"
)

// Secrets gets pull secrets.
type Secrets interface {
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
}

// credentials are what there is for an image: those of the pod's pull secrets, and then the node's. An error tells of those that
// can't be used; the others are there all the same.
func (p *Puller) credentials(ctx context.Context, of *v1.Pod, image string) ([]*cri.AuthConfig, error) {
	secrets, err := p.ofPod(ctx, of)
	all := login.For(image, secrets...)
	for _, source := range p.cfg.Node {
		keyrings, nodeErr := source(ctx, image)
		all, err = append(all, login.For(image, keyrings...)...), errors.Join(err, nodeErr)
	}
	return all, err
}

// ofPod are the logins of a pod's pull secrets.
func (p *Puller) ofPod(ctx context.Context, of *v1.Pod) (keyrings []login.Keyring, err error) {
	for _, ref := range of.Spec.ImagePullSecrets {
		s, e := p.cfg.Secrets.Secret(ctx, of.Namespace, ref.Name)
		var k login.Keyring
		if e == nil {
			k, e = read(s)
		}
		if e != nil {
			err = errors.Join(err, fmt.Errorf("imagePullSecrets: %s: %w", ref.Name, e))
		}
		keyrings = append(keyrings, k)
	}
	return keyrings, err
}

// read knows both forms of a pull secret.
func read(s *v1.Secret) (login.Keyring, error) {
	for key, parse := range map[string]func([]byte) (login.Keyring, error){
		v1.DockerConfigJsonKey: login.ParseConfig, v1.DockerConfigKey: login.ParseLegacy,
	} {
		if data, has := s.Data[key]; has {
			k, err := parse(data)
			if err != nil {
				return nil, fmt.Errorf("key %s: %w", key, err)
			}
			return k, nil
		}
	}
	return nil, fmt.Errorf("has neither the key %s nor %s", v1.DockerConfigJsonKey, v1.DockerConfigKey)
}
