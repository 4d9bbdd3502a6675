package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"

func files(t *testing.T, texts ...string) (file, dir string) {
	t.Helper()
	dir = t.TempDir()
	for i, text := range texts {
		name := filepath.Join(dir, string(rune('a'+i))+".conf")
		if i == 0 {
			name = filepath.Join(t.TempDir(), "config.yaml")
			file = name
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return file, dir
}

func TestLoad(t *testing.T) {
	file, dir := files(t,
		head+"maxPods: 50\nclusterDNS: [10.0.0.1]\nauthentication: {anonymous: {enabled: true}}\nevictionHard: {memory.available: 1Gi}\nruntimeRequestTimeout: 30s\n",
		head+"clusterDNS: [10.0.0.2]\nauthentication: {webhook: {enabled: false}}\n")
	c, err := Load(file, dir)
	if err != nil {
		t.Fatal(err)
	}
	c.Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.MaxPods != 50 || c.ClusterDNS[0] != "10.0.0.2" || !*c.Authentication.Anonymous.Enabled || *c.Authentication.Webhook.Enabled ||
		c.RuntimeRequestTimeout.Duration != 30*time.Second || len(c.EvictionHard) != 1 {
		t.Errorf("%+v", c.KubeletConfiguration)
	}
	if c.Port != 10250 || c.SyncFrequency.Duration != time.Minute || *c.FailCgroupV1 || c.NodeLeaseDurationSeconds != 40 {
		t.Errorf("defaults: %+v", c.KubeletConfiguration)
	}
}

func TestRefuses(t *testing.T) {
	for want, text := range map[string]string{
		"unknown field \"maxPodz\"": head + "maxPodz: 1\n",
		"write apiVersion":          "kind: KubeletConfiguration\n",
		"cannot unmarshal":          head + "maxPods: many\n",
	} {
		file, dir := files(t, text)
		if _, err := Load(file, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	c := &Config{}
	c.CgroupDriver, c.ContainerRuntimeEndpoint, c.MaxPods, c.ContainerLogMaxSize = "both", "tcp://x", -1, "big"
	c.Default()
	err := c.Validate()
	for _, want := range []string{"cgroupDriver", "containerRuntimeEndpoint", "maxPods", "containerLogMaxSize"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate does not tell of %s: %v", want, err)
		}
	}
}

// TestShutdownPeriods: one of two ways to say how long pods get, in whole seconds at least.
func TestShutdownPeriods(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n", ""},
		{"shutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 20}]\n", ""},
		{"shutdownGracePeriod: 5s\nshutdownGracePeriodCriticalPods: 10s\n", "must not be above shutdownGracePeriod"},
		{"shutdownGracePeriod: 500ms\n", "shutdownGracePeriod 500ms: must be at least 1s"},
		{"shutdownGracePeriod: -1s\n", "shutdownGracePeriod -1s: must be at least 1s"},
		{"shutdownGracePeriod: 5s\nshutdownGracePeriodCriticalPods: 1ms\n", "shutdownGracePeriodCriticalPods 1ms: must be at least 1s"},
		{"shutdownGracePeriod: 5s\nshutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 20}]\n", "set either"},
		{"shutdownGracePeriodByPodPriority: [{priority: 7, shutdownGracePeriodSeconds: -1}]\n", "priority 7: shutdownGracePeriodSeconds -1"},
	} {
		file, dir := files(t, head+tt.text)
		c, err := Load(file, dir)
		if err != nil {
			t.Fatal(err)
		}
		c.Default()
		if err := c.Validate(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
		if w := c.Warnings(); len(w) > 0 {
			t.Errorf("%q: %q", tt.text, w)
		}
	}
}

// TestWarnings: a field that has no effect is named, and none that is named is unknown to the API.
func TestWarnings(t *testing.T) {
	file, dir := files(t, head+"cpuManagerPolicy: static\nmaxPods: 10\n")
	c, err := Load(file, dir)
	if err != nil {
		t.Fatal(err)
	}
	if w := c.Warnings(); len(w) != 1 || !strings.HasPrefix(w[0], "cpuManagerPolicy ") {
		t.Errorf("%q", w)
	}
	known := map[string]bool{}
	fields := reflect.TypeOf(kubeletconfig.KubeletConfiguration{})
	for i := range fields.NumField() {
		name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		known[name] = true
	}
	for name := range ignored {
		if !known[name] {
			t.Errorf("%s is no field of KubeletConfiguration", name)
		}
	}
}

// TestFlags: kubeadm's flags are understood, and win over the file.
func TestFlags(t *testing.T) {
	f := &Flags{}
	set := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	f.AddTo(set)
	err := set.Parse([]string{
		"--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf", "--kubeconfig=/etc/kubernetes/kubelet.conf", "--config=/var/lib/kubelet/config.yaml",
		"--container-runtime-endpoint=unix:///run/x.sock", "--pod-infra-container-image=pause:3.10", "--hostname-override=n", "--node-ip=192.0.2.1",
		"--node-labels=a=b,c=d", "--register-with-taints=k=v:NoSchedule", "--max-pods=42", "--fail-swap-on=false", "--system-reserved=cpu=100m,memory=1Gi",
		"--eviction-hard=memory.available<200Mi", "--cluster-dns=10.0.0.10", "--v=2",
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &Config{}
	c.MaxPods = 7
	f.Apply(c)
	if c.MaxPods != 42 || c.ContainerRuntimeEndpoint != "unix:///run/x.sock" || *c.FailSwapOn || c.SystemReserved["memory"] != "1Gi" ||
		c.EvictionHard["memory.available"] != "200Mi" || c.ClusterDNS[0] != "10.0.0.10" || c.RegisterWithTaints[0].Key != "k" || f.NodeLabels["c"] != "d" {
		t.Errorf("%+v, %+v", c.KubeletConfiguration, f)
	}
	if err := set.Parse([]string{"--max-pods=many"}); err == nil {
		t.Error("--max-pods=many was taken")
	}
}
