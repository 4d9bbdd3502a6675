package plugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	kubeletconfig "k8s.io/kubelet/config/v1"
	"sigs.k8s.io/yaml"
)

// The versions of the configuration and of the protocol, which differ in nothing that is used here.
var (
	configVersions   = []string{"kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"}
	protocolVersions = []string{"credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1", "credentialprovider.kubelet.k8s.io/v1alpha1"}
)

// Load reads a CredentialProviderConfig, or all that are in a directory. The plugins' programs are in binDir.
func Load(path, binDir string) (Providers, error) {
	files, err := list(path)
	if err != nil {
		return nil, err
	}
	var all Providers
	names := map[string]bool{}
	for _, file := range files {
		c, err := read(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, p := range c.Providers {
			if names[p.Name] {
				return nil, fmt.Errorf("%s: providers: %s: is there twice", file, p.Name)
			}
			names[p.Name] = true
			all = append(all, newProvider(p, binDir))
		}
	}
	return all, nil
}

func list(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return []string{path}, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) && !e.IsDir() {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: has no file named *.yaml, *.yml or *.json", path)
	}
	return files, nil
}

func read(file string) (*kubeletconfig.CredentialProviderConfig, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c := &kubeletconfig.CredentialProviderConfig{}
	if err := yaml.UnmarshalStrict(data, c); err != nil {
		return nil, err
	}
	if c.Kind != "CredentialProviderConfig" || !slices.Contains(configVersions, c.APIVersion) {
		return nil, fmt.Errorf("is %s %s; write apiVersion: %s and kind: CredentialProviderConfig", c.APIVersion, c.Kind, configVersions[0])
	}
	var errs []error
	for _, p := range c.Providers {
		for _, problem := range check(p) {
			errs = append(errs, fmt.Errorf("providers: %s: %s", p.Name, problem))
		}
	}
	return c, errors.Join(errs...)
}

// check finds all mistakes in a plugin's configuration.
func check(p kubeletconfig.CredentialProvider) (problems []string) {
	for _, c := range []struct {
		wrong   bool
		problem string
	}{
		{p.Name == "" || p.Name == "." || p.Name == ".." || strings.ContainsAny(p.Name, "/ "), "name: must be that of a program in the directory of plugins"},
		{!slices.Contains(protocolVersions, p.APIVersion), fmt.Sprintf("apiVersion %q: write %s", p.APIVersion, protocolVersions[0])},
		{len(p.MatchImages) == 0, "matchImages: name at least one registry"},
		{p.DefaultCacheDuration == nil || p.DefaultCacheDuration.Duration < 0, "defaultCacheDuration: must be there, and not negative"},
		{p.TokenAttributes != nil, "tokenAttributes: plugins get no tokens of service accounts here"},
	} {
		if c.wrong {
			problems = append(problems, c.problem)
		}
	}
	return problems
}
