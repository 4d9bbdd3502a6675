package spec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "rewrite testdata/*.spec.json")

// usualCapabilities are what most daemons let a container have.
var usualCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
}

// baseInput is a container on a machine that lacks nothing, in a pod as the kubelet makes it. Cases say how they
// differ from it.
func baseInput() Input {
	controllers := map[string]bool{}
	for _, c := range []string{"cpu", "cpuset", "memory", "hugetlb", "pids", "devices", "io"} {
		controllers[c] = true
	}
	return Input{
		Host: Host{
			CgroupV2: true, Controllers: controllers, SwapLimits: true, Seccomp: true, RecursiveReadOnly: true,
			Capabilities: slices.Clone(everyCapability()), OOMScoreAdj: -999, KernelMajor: 6, KernelMinor: 12, Arch: "amd64",
			Devices: []rspec.LinuxDevice{
				{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
				{Path: "/dev/sda", Type: "b", Major: 8, Minor: 0},
				{Path: "/dev/console", Type: "c", Major: 5, Minor: 1},
			},
		},
		ID:        "c1",
		SandboxID: "p1",
		Sandbox: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "web-0", Namespace: "shop", Uid: "4f1c"},
			Linux:    &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{}},
		},
		Container: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "web"},
			Image:    &cri.ImageSpec{Image: "sha256:ab", UserSpecifiedImage: "registry.example/web:1"},
			Command:  []string{"/bin/web"},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			}},
		},
		Image:  imgspec.ImageConfig{},
		Rootfs: "/var/lib/orlop/rootfs/c1",
		Namespaces: map[rspec.LinuxNamespaceType]string{
			rspec.NetworkNamespace: "/run/orlop/pods/p1/ns/net",
			rspec.IPCNamespace:     "/run/orlop/pods/p1/ns/ipc",
			rspec.UTSNamespace:     "/run/orlop/pods/p1/ns/uts",
		},
		CgroupsPath:         "/kubepods/pod4f1c/orlop-c1",
		Hostname:            "web-0",
		HostnamePath:        "/run/orlop/pods/p1/hostname",
		ResolvConfPath:      "/run/orlop/pods/p1/resolv.conf",
		ShmPath:             "/run/orlop/pods/p1/shm",
		DefaultCapabilities: slices.Clone(usualCapabilities),
	}
}

// goldenCase is the form of testdata/x.in.json.
type goldenCase struct {
	Why     string          // what the case is for
	PodInit bool            // translate with PodInit instead of Container
	Profile json.RawMessage // the localhost seccomp profile, in the clear
	Input   json.RawMessage // laid over baseInput
}

func (g goldenCase) translate() (*Output, error) {
	in := baseInput()
	dec := json.NewDecoder(bytes.NewReader(g.Input))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, err
	}
	in.LocalhostSeccomp = g.Profile
	if g.PodInit {
		return PodInit(in)
	}
	return Container(in)
}

// goldenCases are all cases by name.
func goldenCases(t *testing.T) map[string]goldenCase {
	t.Helper()
	files, err := filepath.Glob("testdata/*.in.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	cases := map[string]goldenCase{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var g goldenCase
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&g); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if g.Why == "" {
			t.Errorf("%s does not say why it is there", file)
		}
		cases[strings.TrimSuffix(filepath.Base(file), ".in.json")] = g
	}
	return cases
}

func TestGolden(t *testing.T) {
	for name, g := range goldenCases(t) {
		t.Run(name, func(t *testing.T) {
			out, err := g.translate()
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(out, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".spec.json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v (run go test -update)", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", g.Why, diff)
			}
		})
	}
}
