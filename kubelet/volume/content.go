package volume

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/orlop/orlop/kubelet/downward"
)

// file is one of a volume that is made of objects.
type file struct {
	data []byte
	mode int32
}

// content makes a volume out of objects, and brings it up to date later.
func (m *Manager) content(ctx context.Context, p *v1.Pod, v *v1.Volume) (made, error) {
	kind, files, err := m.files(ctx, p, v)
	if err != nil {
		return made{}, err
	}
	dir := m.dir(p.UID, kind, v.Name)
	if err := makeDir(dir, 0o777); err != nil {
		return made{}, err
	}
	if kind != configMapKind { // what is secret never gets to a disk
		if err := mountOnce(dir, "tmpfs", "mode=0777"); err != nil {
			return made{}, err
		}
	}
	if err := writeAtomic(dir, files, ownerFor(p)); err != nil {
		return made{}, err
	}
	return made{kind: kind, path: dir, readOnly: true, relabel: true}, nil
}

func (m *Manager) files(ctx context.Context, p *v1.Pod, v *v1.Volume) (kind string, files map[string]file, err error) {
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		files, err = m.configMap(ctx, p.Namespace, s.Name, selection{s.Items, mode(s.DefaultMode), s.Optional})
		return configMapKind, files, err
	case v.Secret != nil:
		s := v.Secret
		files, err = m.secret(ctx, p.Namespace, s.SecretName, selection{s.Items, mode(s.DefaultMode), s.Optional})
		return secretKind, files, err
	case v.DownwardAPI != nil:
		files, err = m.downward(p, v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode))
		return downwardKind, files, err
	}
	files, err = m.projected(ctx, p, v.Projected)
	return projectedKind, files, err
}

func mode(m *int32) int32 {
	if m == nil {
		return 0o644
	}
	return *m
}

// selection is which keys of an object become files.
type selection struct {
	items       []v1.KeyToPath // nil for all
	defaultMode int32
	optional    *bool
}

func (s selection) isOptional() bool { return s.optional != nil && *s.optional }

// of picks the files out of an object's data. what names the object in errors.
func (s selection) of(data map[string][]byte, what string) (map[string]file, error) {
	files := map[string]file{}
	if s.items == nil {
		for key, value := range data {
			files[key] = file{value, s.defaultMode}
		}
		return files, nil
	}
	for _, item := range s.items {
		value, ok := data[item.Key]
		if !ok {
			if s.isOptional() {
				continue
			}
			return nil, fmt.Errorf("%s references non-existent key: %s", what, item.Key)
		}
		path, err := cleanPath(item.Path)
		if err != nil {
			return nil, err
		}
		files[path] = file{value, or(item.Mode, s.defaultMode)}
	}
	return files, nil
}

func or(m *int32, fallback int32) int32 {
	if m == nil {
		return fallback
	}
	return *m
}

// cleanPath refuses paths that leave the volume, or that meet the writer's own names.
func cleanPath(path string) (string, error) {
	clean := filepath.Clean(path)
	if !filepath.IsLocal(clean) || strings.HasPrefix(clean, "..") {
		return "", fmt.Errorf("path %q: must be relative, and stay in the volume; no part of it may begin with two dots", path)
	}
	return clean, nil
}

func (m *Manager) configMap(ctx context.Context, namespace, name string, s selection) (map[string]file, error) {
	cm, err := m.cfg.Objects.ConfigMap(ctx, namespace, name)
	if apierrors.IsNotFound(err) && s.isOptional() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{}
	for key, value := range cm.Data {
		data[key] = []byte(value)
	}
	for key, value := range cm.BinaryData {
		data[key] = value
	}
	return s.of(data, "configmap")
}

func (m *Manager) secret(ctx context.Context, namespace, name string, s selection) (map[string]file, error) {
	secret, err := m.cfg.Objects.Secret(ctx, namespace, name)
	if apierrors.IsNotFound(err) && s.isOptional() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.of(secret.Data, "secret")
}

func (m *Manager) downward(p *v1.Pod, items []v1.DownwardAPIVolumeFile, defaultMode int32) (map[string]file, error) {
	files := map[string]file{}
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = downward.Field(p, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			value, err = downward.Resource(p, "", item.ResourceFieldRef, m.cfg.Allocatable())
		}
		if err != nil {
			return nil, err
		}
		path, err := cleanPath(item.Path)
		if err != nil {
			return nil, err
		}
		files[path] = file{[]byte(value), or(item.Mode, defaultMode)}
	}
	return files, nil
}

func (m *Manager) projected(ctx context.Context, p *v1.Pod, v *v1.ProjectedVolumeSource) (map[string]file, error) {
	all := map[string]file{}
	for i := range v.Sources {
		files, err := m.source(ctx, p, &v.Sources[i], mode(v.DefaultMode))
		if err != nil {
			return nil, err
		}
		for path, f := range files {
			all[path] = f
		}
	}
	return all, nil
}

func (m *Manager) source(ctx context.Context, p *v1.Pod, s *v1.VolumeProjection, defaultMode int32) (map[string]file, error) {
	switch {
	case s.ConfigMap != nil:
		return m.configMap(ctx, p.Namespace, s.ConfigMap.Name, selection{s.ConfigMap.Items, defaultMode, s.ConfigMap.Optional})
	case s.Secret != nil:
		return m.secret(ctx, p.Namespace, s.Secret.Name, selection{s.Secret.Items, defaultMode, s.Secret.Optional})
	case s.DownwardAPI != nil:
		return m.downward(p, s.DownwardAPI.Items, defaultMode)
	case s.ServiceAccountToken != nil:
		return m.token(ctx, p, s.ServiceAccountToken, defaultMode)
	}
	return nil, &UnsupportedError{"projected", "clusterTrustBundle or podCertificate"}
}
