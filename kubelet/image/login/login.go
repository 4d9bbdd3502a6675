// Package login knows which logins are for an image: of pull secrets, of docker's configuration file, and of credential
// providers, which all name registries by the same patterns. It is pure.
package login

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"path"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Login is one entry of a docker configuration.
type Login struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"` // base64 of USERNAME:PASSWORD
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Keyring are the logins of one source, by the patterns of registries that they are for.
type Keyring map[string]Login

// ParseConfig reads docker's configuration, as it is in pull secrets of type kubernetes.io/dockerconfigjson.
func ParseConfig(data []byte) (Keyring, error) {
	var file struct {
		Auths Keyring `json:"auths"`
	}
	err := json.Unmarshal(data, &file)
	return file.Auths, err
}

// ParseLegacy reads docker's older configuration, as it is in pull secrets of type kubernetes.io/dockercfg.
func ParseLegacy(data []byte) (Keyring, error) {
	var k Keyring
	err := json.Unmarshal(data, &k)
	return k, err
}

// For are the logins of all keyrings that are for an image, those of the most specific registries first, each once.
func For(image string, keyrings ...Keyring) []*cri.AuthConfig {
	type match struct {
		pattern string
		login   Login
	}
	var found []match
	for _, k := range keyrings {
		for pattern, l := range k {
			if m := (match{pattern, l}); Covers(pattern, image) && !slices.Contains(found, m) {
				found = append(found, m)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b match) int {
		return cmp.Or(cmp.Compare(len(b.pattern), len(a.pattern)), cmp.Compare(a.pattern, b.pattern))
	})
	var out []*cri.AuthConfig
	for _, m := range found {
		out = append(out, m.login.auth())
	}
	return out
}

func (l Login) auth() *cri.AuthConfig {
	auth := &cri.AuthConfig{Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken}
	if auth.Username == "" && l.Auth != "" {
		if plain, err := base64.StdEncoding.DecodeString(l.Auth); err == nil {
			auth.Username, auth.Password, _ = strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		}
	}
	return auth
}

// Covers tells if a pattern's registry is the image's: each part of the host may be a pattern, a port must be the same, and
// a path is a prefix, as the documentation of pull secrets says.
func Covers(pattern, image string) bool {
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

// Repository is an image's name in full, without its tag and digest, and the host of its registry.
func Repository(image string) (repository, host string) {
	host, name := split(image)
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		name = name[:i]
	}
	if host == dockerHub && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	return host + "/" + name, host
}
