package image

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Secrets gets pull secrets.
type Secrets interface {
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
}

// login is one entry of a docker configuration.
type login struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"` // base64 of USERNAME:PASSWORD
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentials are what a pod's pull secrets hold for an image, the most specific registry first. An error tells of secrets
// that could not be used; the credentials of the others are there all the same.
func credentials(ctx context.Context, secrets Secrets, p *v1.Pod, image string) ([]*cri.AuthConfig, error) {
	var errs []error
	logins := map[string]login{}
	for _, ref := range p.Spec.ImagePullSecrets {
		s, err := secrets.Secret(ctx, p.Namespace, ref.Name)
		if err == nil {
			err = read(s, logins)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("imagePullSecrets: %s: %w", ref.Name, err))
		}
	}
	patterns := slices.SortedFunc(maps.Keys(logins), func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	var out []*cri.AuthConfig
	for _, pattern := range patterns {
		if covers(pattern, image) {
			out = append(out, authOf(logins[pattern]))
		}
	}
	return out, errors.Join(errs...)
}

// read adds a secret's logins, of either of its two forms.
func read(s *v1.Secret, into map[string]login) error {
	var found map[string]login
	switch {
	case s.Data[v1.DockerConfigJsonKey] != nil:
		var file struct {
			Auths map[string]login `json:"auths"`
		}
		if err := json.Unmarshal(s.Data[v1.DockerConfigJsonKey], &file); err != nil {
			return fmt.Errorf("key %s: %w", v1.DockerConfigJsonKey, err)
		}
		found = file.Auths
	case s.Data[v1.DockerConfigKey] != nil:
		if err := json.Unmarshal(s.Data[v1.DockerConfigKey], &found); err != nil {
			return fmt.Errorf("key %s: %w", v1.DockerConfigKey, err)
		}
	default:
		return fmt.Errorf("has neither the key %s nor %s", v1.DockerConfigJsonKey, v1.DockerConfigKey)
	}
	maps.Copy(into, found)
	return nil
}

func authOf(l login) *cri.AuthConfig {
	auth := &cri.AuthConfig{Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken}
	if auth.Username == "" && l.Auth != "" {
		if plain, err := base64.StdEncoding.DecodeString(l.Auth); err == nil {
			auth.Username, auth.Password, _ = strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		}
	}
	return auth
}

// covers tells if a login's registry is the image's: each part of the host may be a pattern, a port must be the same, and
// a path is a prefix, as the documentation of pull secrets says.
func covers(pattern, image string) bool {
	if !strings.Contains(pattern, "://") {
		pattern = "https://" + pattern
	}
	want, err := url.Parse(pattern)
	if err != nil {
		return false
	}
	host, repository := split(image)
	wantHost := canonical(want.Host)
	wantName, wantPort, _ := strings.Cut(wantHost, ":")
	name, port, _ := strings.Cut(host, ":")
	if wantPort != port || !sameHost(wantName, name) {
		return false
	}
	prefix := strings.Trim(want.Path, "/")
	if wantHost == dockerHub && (prefix == "v1" || prefix == "v2") { // docker writes its own name this way
		prefix = ""
	}
	return prefix == "" || strings.HasPrefix(repository, prefix)
}

func sameHost(pattern, host string) bool {
	patterns, parts := strings.Split(pattern, "."), strings.Split(host, ".")
	if len(patterns) != len(parts) {
		return false
	}
	for i := range parts {
		if ok, err := path.Match(patterns[i], parts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

const dockerHub = "docker.io"

// canonical: the registry of images without a host has several names.
func canonical(host string) string {
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		return dockerHub
	}
	return host
}

// split parts an image's name into its registry's host and the rest.
func split(image string) (host, repository string) {
	first, rest, found := strings.Cut(image, "/")
	if !found || (!strings.ContainsAny(first, ".:") && first != "localhost") {
		return dockerHub, image
	}
	return canonical(first), rest
}
