package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/containers/image/v5/docker"
	containersimage "github.com/containers/image/v5/image"
	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	"github.com/distribution/reference"
)

// source is where an image comes from. Layers that another pull joined may need it longer than the pull that opened
// it, so it is counted.
type source struct {
	types.ImageSource
	refs atomic.Int32
}

func newSource(src types.ImageSource) *source {
	s := &source{ImageSource: src}
	s.refs.Store(1)
	return s
}

func (s *source) retain() *source {
	s.refs.Add(1)
	return s
}

func (s *source) release() error {
	if s.refs.Add(-1) > 0 {
		return nil
	}
	return s.Close()
}

const (
	userAgent = "orlop"
	// noAuthFile does not exist. Without a file of our own, containers/image would take root's personal logins.
	noAuthFile = "/nonexistent/auth.json"
	// systemPolicy is the system's policy file, see containers-policy.json(5).
	systemPolicy = "/etc/containers/policy.json"
)

// systemContext is our configuration in the words of containers/image.
func (s *Service) systemContext(c credentials) *types.SystemContext {
	sys := &types.SystemContext{
		SystemRegistriesConfPath:    s.cfg.RegistriesConf,
		SystemRegistriesConfDirPath: s.cfg.RegistriesConfDir,
		SignaturePolicyPath:         s.cfg.PolicyPath,
		AuthFilePath:                s.cfg.AuthFile,
		DockerPerHostCertDirPath:    s.cfg.CertsDir,
		DockerRegistryUserAgent:     userAgent,
		BigFilesTemporaryDir:        s.store.TempDir(),
		OSChoice:                    "linux",
	}
	if sys.AuthFilePath == "" {
		sys.AuthFilePath = noAuthFile
	}
	if !c.empty() {
		// Set also when there is only a token: containers/image drops both together for a mirror on another host.
		sys.DockerAuthConfig = &c.login
		sys.DockerBearerRegistryToken = c.registryToken
	}
	return sys
}

// openRegistry finds the registry or mirror that has the image, and reads the manifest there.
func (s *Service) openRegistry(ctx context.Context, named reference.Named, sys *types.SystemContext) (*source, error) {
	sysregistriesv2.InvalidateCache() // the files are small, and changes to them count at once
	registry, err := sysregistriesv2.FindRegistry(sys, named.Name())
	if err != nil {
		return nil, fmt.Errorf("registries.conf: %w", err)
	}
	if registry != nil && registry.Blocked {
		return nil, fmt.Errorf("%w: registries.conf blocks %s", ErrDenied, registry.Prefix)
	}
	ref, err := docker.NewReference(named)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidName, err)
	}
	src, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return nil, err
	}
	return newSource(src), nil
}

// allowed asks the signature policy whether an image may run.
func (s *Service) allowed(ctx context.Context, sys *types.SystemContext, img *containersimage.UnparsedImage) error {
	policy, err := s.policy(sys)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	pc, err := signature.NewPolicyContext(policy)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	defer pc.Destroy() // it only marks the value as used up
	if ok, err := pc.IsRunningImageAllowed(ctx, img); !ok {
		return fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return nil
}

// policy reads the policy file anew for each pull, so changes to it count at once.
func (s *Service) policy(sys *types.SystemContext) (*signature.Policy, error) {
	if sys.SignaturePolicyPath != "" {
		return signature.NewPolicyFromFile(sys.SignaturePolicyPath)
	}
	if _, err := os.Stat(systemPolicy); errors.Is(err, fs.ErrNotExist) {
		return &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}, nil
	}
	return signature.NewPolicyFromFile(systemPolicy)
}
