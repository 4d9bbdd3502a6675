package spec

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/orlop/orlop/kubelet/resource"
)

var update = flag.Bool("update", false, "write the golden files")

var node = Node{
	Node:    resource.Node{Memory: 4 << 30, CgroupV2: true},
	LogsDir: "/var/log/pods", SeccompDir: "/var/lib/kubelet/seccomp", CPUs: 1,
	DNS: DNS{Node: &cri.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"example.com"}, Options: []string{"rotate"}}, Servers: []string{"10.96.0.10"}, Domain: "cluster.local"},
}

// TestGolden makes the CRI configs of the pods in testdata: NAME.pod.yaml becomes NAME.cri.json.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.pod.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := &v1.Pod{}
			if err := yaml.UnmarshalStrict(data, p); err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(configs(t, p), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".pod.yaml") + ".cri.json"
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// configs are those of the sandbox and of each container.
func configs(t *testing.T, p *v1.Pod) map[string]any {
	t.Helper()
	out := map[string]any{}
	sandbox, err := node.Sandbox(Sandbox{Pod: p, Attempt: 1, CgroupParent: "/kubepods/pod" + string(p.UID)})
	if err != nil {
		t.Fatal(err)
	}
	out["sandbox"] = sandbox
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		config, err := node.Container(Container{
			Pod: p, Container: c, Attempt: 2, Image: &cri.ImageSpec{Image: "id"}, ImageUser: &cri.Image{Username: "sailor"},
			Env: []*cri.KeyValue{{Key: "NAME", Value: []byte("value")}},
		})
		if err != nil {
			t.Fatal(err)
		}
		out["container "+c.Name] = config
	}
	return out
}

func TestNonRoot(t *testing.T) {
	yes, zero, thousand := true, int64(0), int64(1000)
	uid := func(n int64) *cri.Image { return &cri.Image{Uid: &cri.Int64Value{Value: n}} }
	for _, tt := range []struct {
		name  string
		user  *int64
		image *cri.Image
		want  string
	}{
		{"asked for", &thousand, uid(0), ""},
		{"asked for root", &zero, uid(1000), "breaks non-root policy"},
		{"image's", nil, uid(1000), ""},
		{"image's root", nil, uid(0), "image will run as root"},
		{"image's name", nil, &cri.Image{Username: "sailor"}, "non-numeric user (sailor)"},
		{"image says nothing", nil, &cri.Image{}, "image will run as root"},
	} {
		err := checkNonRoot(&v1.SecurityContext{RunAsNonRoot: &yes, RunAsUser: tt.user}, tt.image)
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestDNS(t *testing.T) {
	five := "5"
	for _, tt := range []struct {
		name   string
		change func(p *v1.Pod)
		want   string // servers|searches|options
	}{
		{"cluster first", func(p *v1.Pod) {}, "10.96.0.10|n.svc.cluster.local svc.cluster.local cluster.local example.com|ndots:5"},
		{"cluster first, host network", func(p *v1.Pod) { p.Spec.HostNetwork = true }, "192.0.2.53|example.com|rotate"},
		{"with host network", func(p *v1.Pod) { p.Spec.HostNetwork, p.Spec.DNSPolicy = true, v1.DNSClusterFirstWithHostNet }, "10.96.0.10|n.svc.cluster.local svc.cluster.local cluster.local example.com|ndots:5"},
		{"default", func(p *v1.Pod) { p.Spec.DNSPolicy = v1.DNSDefault }, "192.0.2.53|example.com|rotate"},
		{"none", func(p *v1.Pod) {
			p.Spec.DNSPolicy = v1.DNSNone
			p.Spec.DNSConfig = &v1.PodDNSConfig{Nameservers: []string{"192.0.2.1"}, Searches: []string{"a.b"}}
		}, "192.0.2.1|a.b|"},
		{"added", func(p *v1.Pod) {
			p.Spec.DNSConfig = &v1.PodDNSConfig{Nameservers: []string{"10.96.0.10", "192.0.2.1"}, Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: &five}, {Name: "edns0"}}}
		}, "10.96.0.10 192.0.2.1|n.svc.cluster.local svc.cluster.local cluster.local example.com|ndots:5 edns0"},
	} {
		p := &v1.Pod{Spec: v1.PodSpec{DNSPolicy: v1.DNSClusterFirst}}
		p.Namespace = "n"
		tt.change(p)
		got, err := node.DNS.Config(p)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		text := strings.Join([]string{strings.Join(got.Servers, " "), strings.Join(got.Searches, " "), strings.Join(got.Options, " ")}, "|")
		if text != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, text, tt.want)
		}
	}
	if _, err := node.DNS.Config(&v1.Pod{Spec: v1.PodSpec{DNSPolicy: "Whatever"}}); err == nil {
		t.Error("an unknown policy was taken")
	}
}

func TestResolvConf(t *testing.T) {
	got := ParseResolvConf("# comment\nnameserver 192.0.2.1\nnameserver 192.0.2.2 # x\ndomain a.\nsearch b c.\noptions ndots:2 rotate\n; nameserver 192.0.2.3\n")
	if strings.Join(got.Servers, " ") != "192.0.2.1 192.0.2.2" || strings.Join(got.Searches, " ") != "b c" || strings.Join(got.Options, " ") != "ndots:2 rotate" {
		t.Errorf("%v", got)
	}
}

func TestHostname(t *testing.T) {
	yes, override := true, "over.ride"
	long := strings.Repeat("x", 62) + "-yz"
	for _, tt := range []struct {
		name   string
		change func(p *v1.Pod)
		want   string
		domain string
	}{
		{"pod's name", func(p *v1.Pod) {}, "p", ""},
		{"own", func(p *v1.Pod) { p.Spec.Hostname = "h" }, "h", ""},
		{"too long", func(p *v1.Pod) { p.Name = long }, strings.Repeat("x", 62), ""},
		{"subdomain", func(p *v1.Pod) { p.Spec.Subdomain = "s" }, "p", "s.n.svc.cluster.local"},
		{"full", func(p *v1.Pod) { p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "s", &yes }, "p.s.n.svc.cluster.local", "s.n.svc.cluster.local"},
		{"override", func(p *v1.Pod) { p.Spec.HostnameOverride = &override }, "over.ride", ""},
	} {
		p := &v1.Pod{}
		p.Name, p.Namespace = "p", "n"
		tt.change(p)
		names, err := Hostname(p, "cluster.local")
		if err != nil || names.Hostname() != tt.want || names.Domain != tt.domain {
			t.Errorf("%s: %q, %q, %v; want %q, %q", tt.name, names.Hostname(), names.Domain, err, tt.want, tt.domain)
		}
	}
	for _, bad := range []string{"UPPER", "a.b", "-a"} {
		p := &v1.Pod{Spec: v1.PodSpec{Hostname: bad}}
		if _, err := Hostname(p, ""); err == nil {
			t.Errorf("hostname %q was taken", bad)
		}
	}
}

func TestSeccomp(t *testing.T) {
	path, up := "profiles/a.json", "../a.json"
	for _, tt := range []struct {
		profile *v1.SeccompProfile
		want    string // type and path; "" for an error
	}{
		{nil, "Unconfined "},
		{&v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault}, "RuntimeDefault "},
		{&v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: &path}, "Localhost /var/lib/kubelet/seccomp/profiles/a.json"},
		{&v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: &up}, ""},
		{&v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost}, ""},
		{&v1.SeccompProfile{Type: "Whatever"}, ""},
	} {
		got, err := node.seccomp(tt.profile)
		text := ""
		if err == nil {
			text = got.ProfileType.String() + " " + got.LocalhostRef
		}
		if text != tt.want {
			t.Errorf("%+v: %q, %v; want %q", tt.profile, text, err, tt.want)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, name := range []v1.Signal{"SIGTERM", "SIGRTMIN+1", "SIGRTMAX-1", "SIGUSR2"} {
		got := stopSignal(&v1.Container{Lifecycle: &v1.Lifecycle{StopSignal: &name}})
		if got == cri.Signal_SIGNAL_RUNTIME_DEFAULT || SignalName(got) != name {
			t.Errorf("%s is %s to CRI, which is %s", name, got, SignalName(got))
		}
	}
}
