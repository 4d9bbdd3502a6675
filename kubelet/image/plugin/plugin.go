// Package plugin gets logins from credential provider plugins: programs of the node that know how to log in to a cloud's
// registries (KEP-2133). One is run for an image that its configuration names, and what it answers is kept for as long as it
// says.
package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	kubeletconfig "k8s.io/kubelet/config/v1"
	api "k8s.io/kubelet/pkg/apis/credentialprovider/v1"

	"github.com/orlop/orlop/kubelet/image/login"
)

// Limits of one run of a plugin; kubelet has the same time.
const (
	runTime       = time.Minute
	maxErrorBytes = 1 << 10
)

// Providers are the plugins of a node.
type Providers []*provider

// provider is one plugin.
type provider struct {
	kubeletconfig.CredentialProvider
	program string
	turn    chan struct{} // holds one token: what one run finds out may spare the next
	cache   map[string]answer
}

// answer is what a plugin said, for images of one key.
type answer struct {
	keyring login.Keyring
	until   time.Time
}

func newProvider(c kubeletconfig.CredentialProvider, binDir string) *provider {
	p := &provider{CredentialProvider: c, program: filepath.Join(binDir, c.Name), turn: make(chan struct{}, 1), cache: map[string]answer{}}
	p.turn <- struct{}{}
	return p
}

// Logins asks all plugins that know the image's registry. An error tells of those that did not answer.
func (all Providers) Logins(ctx context.Context, image string) (keyrings []login.Keyring, err error) {
	for _, p := range all {
		if !slices.ContainsFunc(p.MatchImages, func(pattern string) bool { return login.Covers(pattern, image) }) {
			continue
		}
		k, e := p.logins(ctx, image)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("credential provider %s: %w", p.Name, e))
		}
		keyrings = append(keyrings, k)
	}
	return keyrings, err
}

func (p *provider) logins(ctx context.Context, image string) (login.Keyring, error) {
	select {
	case <-p.turn:
		defer func() { p.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	repository, host := login.Repository(image)
	now := time.Now()
	for key, a := range p.cache {
		if !now.Before(a.until) {
			delete(p.cache, key)
		}
	}
	for _, key := range []string{repository, host, everything} {
		if a, has := p.cache[key]; has {
			return a.keyring, nil
		}
	}
	reply, err := p.ask(ctx, repository)
	if err != nil {
		return nil, err
	}
	keyring := login.Keyring{}
	for pattern, auth := range reply.Auth {
		keyring[pattern] = login.Login{Username: auth.Username, Password: auth.Password}
	}
	return keyring, p.keep(reply, repository, host, keyring)
}

// everything is the key of an answer that is for all images. No repository and no host is named like it.
const everything = "*"

// keep remembers an answer for the images that it is for.
func (p *provider) keep(reply *api.CredentialProviderResponse, repository, host string, k login.Keyring) error {
	keys := map[api.PluginCacheKeyType]string{
		api.ImagePluginCacheKeyType: repository, api.RegistryPluginCacheKeyType: host, api.GlobalPluginCacheKeyType: everything,
	}
	key, known := keys[reply.CacheKeyType]
	if !known {
		return fmt.Errorf("cacheKeyType %q: must be Image, Registry or Global", reply.CacheKeyType)
	}
	last := p.DefaultCacheDuration.Duration
	if reply.CacheDuration != nil {
		last = reply.CacheDuration.Duration
	}
	if last > 0 {
		p.cache[key] = answer{k, time.Now().Add(last)}
	}
	return nil
}

// ask runs the plugin.
func (p *provider) ask(ctx context.Context, repository string) (*api.CredentialProviderResponse, error) {
	request := &api.CredentialProviderRequest{Image: repository}
	request.APIVersion, request.Kind = p.APIVersion, "CredentialProviderRequest"
	question, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	var out, words bytes.Buffer
	cmd := exec.CommandContext(limited, p.program, p.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(question), &out, &words
	cmd.WaitDelay = time.Second // for what it started and left behind
	cmd.Env = os.Environ()
	for _, e := range p.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", errors.Join(limited.Err(), err), head(words.String()))
	}
	return p.parse(out.Bytes())
}

func (p *provider) parse(data []byte) (*api.CredentialProviderResponse, error) {
	reply := &api.CredentialProviderResponse{}
	if err := json.Unmarshal(data, reply); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if reply.Kind != "CredentialProviderResponse" || reply.APIVersion != p.APIVersion {
		return nil, fmt.Errorf("answer: is %s %s; must be %s CredentialProviderResponse", reply.APIVersion, reply.Kind, p.APIVersion)
	}
	return reply, nil
}

// head is the beginning of what a plugin complained about.
func head(s string) string { return strings.TrimSpace(s[:min(len(s), maxErrorBytes)]) }
