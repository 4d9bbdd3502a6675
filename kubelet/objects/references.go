package objects

import (
	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

// Kinds of objects, as the API names them in errors.
const (
	configMapKind = "configmaps"
	secretKind    = "secrets"
	claimKind     = "persistentvolumeclaims"
	volumeKind    = "persistentvolumes"
	serviceKind   = "services"
	driverKind    = "csidrivers"
)

type key struct{ kind, namespace, name string }

// references are the ConfigMaps and Secrets that a pod's spec names.
func references(p *v1.Pod) map[key]bool {
	found := map[key]bool{}
	add := func(kind, name string) {
		if name != "" {
			found[key{kind, p.Namespace, name}] = true
		}
	}
	for _, s := range p.Spec.ImagePullSecrets {
		add(secretKind, s.Name)
	}
	for c := range pod.Containers(p) {
		ofContainer(c, add)
	}
	for i := range p.Spec.Volumes {
		ofVolume(&p.Spec.Volumes[i], add)
	}
	return found
}

func ofContainer(c *v1.Container, add func(kind, name string)) {
	for _, from := range c.EnvFrom {
		if from.ConfigMapRef != nil {
			add(configMapKind, from.ConfigMapRef.Name)
		}
		if from.SecretRef != nil {
			add(secretKind, from.SecretRef.Name)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if ref := e.ValueFrom.ConfigMapKeyRef; ref != nil {
			add(configMapKind, ref.Name)
		}
		if ref := e.ValueFrom.SecretKeyRef; ref != nil {
			add(secretKind, ref.Name)
		}
	}
}

func ofVolume(v *v1.Volume, add func(kind, name string)) {
	switch {
	case v.ConfigMap != nil:
		add(configMapKind, v.ConfigMap.Name)
	case v.Secret != nil:
		add(secretKind, v.Secret.SecretName)
	case v.CSI != nil && v.CSI.NodePublishSecretRef != nil:
		add(secretKind, v.CSI.NodePublishSecretRef.Name)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				add(configMapKind, s.ConfigMap.Name)
			}
			if s.Secret != nil {
				add(secretKind, s.Secret.Name)
			}
		}
	}
}
