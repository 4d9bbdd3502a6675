package server

import (
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/spec"
)

func TestTheNodesSeccompProfileIsForThoseWhoAskForTheDefault(t *testing.T) {
	own := []byte(`{"defaultAction":"SCMP_ACT_ERRNO"}`)
	for _, tt := range []struct {
		security *cri.LinuxContainerSecurityContext
		own      bool
		path     string
	}{
		{&cri.LinuxContainerSecurityContext{Seccomp: &cri.SecurityProfile{}}, true, "/runtime/default"},
		{&cri.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default"}, true, "/runtime/default"},
		{&cri.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//p.json"}, false, "/p.json"},
		{&cri.LinuxContainerSecurityContext{Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}}, false, ""},
		{&cri.LinuxContainerSecurityContext{Seccomp: &cri.SecurityProfile{
			ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p.json"}}, false, "/p.json"},
		{nil, false, ""},
	} {
		config := &cri.ContainerConfig{Linux: &cri.LinuxContainerConfig{SecurityContext: tt.security}}
		before := config.String()
		in := &spec.Input{Container: config}
		useDefaultSeccomp(in, own)
		if (in.LocalhostSeccomp != nil) != tt.own || localhostSeccomp(in.Container) != tt.path {
			t.Errorf("%v: profile %q at %q", tt.security, in.LocalhostSeccomp, localhostSeccomp(in.Container))
		}
		if config.String() != before {
			t.Errorf("%v: the client's config was changed", tt.security)
		}
	}
}
