package image

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"github.com/containers/image/v5/types"
	"github.com/distribution/reference"
)

// Auth is the CRI AuthConfig: user and password, or the base64 of "user:password", or a token.
type Auth struct {
	Username, Password, Auth, ServerAddress, IdentityToken, RegistryToken string
}

// credentials is what an Auth means for one registry.
type credentials struct {
	login         types.DockerAuthConfig
	registryToken string
}

func (c credentials) empty() bool { return c == credentials{} }

// credentialsFor reads an Auth. Credentials that name another server are not used: they must not be shown to this
// one. The first form that is set counts, in the order of the API's comments: user name, base64, tokens.
func (a *Auth) credentialsFor(named reference.Named) (credentials, error) {
	if a == nil || !a.isFor(reference.Domain(named)) {
		return credentials{}, nil
	}
	c := credentials{registryToken: a.RegistryToken}
	switch {
	case a.Username != "" || a.Password != "":
		c.login.Username, c.login.Password = a.Username, a.Password
	case a.Auth != "":
		user, password, err := decodeAuth(a.Auth)
		if err != nil {
			return credentials{}, err
		}
		c.login.Username, c.login.Password = user, password
	}
	c.login.IdentityToken = a.IdentityToken
	return c, nil
}

// decodeAuth reads base64 of "user:password". Some tools pad what they encode with NUL bytes.
func decodeAuth(text string) (user, password string, err error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return "", "", fmt.Errorf("%w: the field auth of the credentials is not base64", ErrDenied)
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", fmt.Errorf("%w: the field auth of the credentials is not base64 of user:password", ErrDenied)
	}
	return user, strings.TrimRight(password, "\x00"), nil
}

// dockerHub is the address that stands for docker.io in files that `docker login` writes.
const dockerHub = "index.docker.io"

// isFor says whether the credentials are for a registry. Server addresses come as host, host/path or URL.
func (a *Auth) isFor(domain string) bool {
	address := strings.TrimSpace(a.ServerAddress)
	if address == "" {
		return true
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	host := strings.ToLower(u.Host)
	if domain == "docker.io" && (host == dockerHub || host == "registry-1.docker.io") {
		return true
	}
	return host == strings.ToLower(domain)
}

// key tells pulls with different credentials apart, without keeping the secrets.
func (a *Auth) key() string {
	if a == nil {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", *a))
	return hex.EncodeToString(sum[:])
}
