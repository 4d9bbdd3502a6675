package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/orlop/orlop/kubelet/image"
	"github.com/orlop/orlop/kubelet/image/plugin"
)

// logins of the node are those of plugins, and those in docker's configuration, which lies where kubelet looks for it too.
func (p *parts) logins() (sources []image.Source, err error) {
	f := p.flags
	if (f.ProviderConfig == "") != (f.ProviderDir == "") {
		return nil, fmt.Errorf("--image-credential-provider-config, --image-credential-provider-bin-dir: set both or none")
	}
	if f.ProviderConfig != "" {
		providers, err := plugin.Load(f.ProviderConfig, f.ProviderDir)
		if err != nil {
			return nil, fmt.Errorf("--image-credential-provider-config: %w", err)
		}
		sources = append(sources, providers.Logins)
	}
	files := []string{filepath.Join(f.RootDir, "config.json")}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".docker", "config.json"))
	}
	return append(sources, image.ConfigFiles(files...)), nil
}
