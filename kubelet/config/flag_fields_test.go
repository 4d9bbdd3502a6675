package config

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

func parse(args ...string) (*Config, error) {
	f, c := &Flags{}, &Config{}
	set := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	f.AddTo(set)
	err := set.Parse(args)
	f.Apply(c)
	return c, err
}

// TestHiddenFlags: flags of units that were made for older kubelets set fields, or are named as without effect.
func TestHiddenFlags(t *testing.T) {
	c, err := parse("--authorization-mode=Webhook", "--anonymous-auth=false", "--rotate-certificates", "--image-gc-high-threshold=70",
		"--node-status-update-frequency=4s", "--pod-max-pids=1000", "--cgroups-per-qos=false", "--event-qps=0", "--tls-cipher-suites=A,B",
		"--feature-gates=A=true", "--protect-kernel-defaults", "--pod-infra-container-image=pause:3.10")
	if err != nil {
		t.Fatal(err)
	}
	if c.Authorization.Mode != kubeletconfig.KubeletAuthorizationModeWebhook || *c.Authentication.Anonymous.Enabled || !c.RotateCertificates ||
		*c.ImageGCHighThresholdPercent != 70 || c.NodeStatusUpdateFrequency.Duration != 4*time.Second || *c.PodPidsLimit != 1000 ||
		*c.CgroupsPerQOS || *c.EventRecordQPS != 0 || len(c.TLSCipherSuites) != 2 {
		t.Errorf("%+v", c.KubeletConfiguration)
	}
	var named []string
	for _, w := range c.Warnings() {
		name, _, _ := strings.Cut(w, " ")
		named = append(named, name)
	}
	if want := []string{"featureGates", "pod-infra-container-image", "protectKernelDefaults"}; !slices.Equal(named, want) {
		t.Errorf("warnings name %q, want %q", named, want)
	}
}

func TestBadFlags(t *testing.T) {
	for _, arg := range []string{
		"--max-pods=10x", "--port=4294967296", "--fail-swap-on=perhaps", "--sync-frequency=1", "--system-reserved=cpu", "--register-with-taints=a=b",
		"--node-labels=node-role.kubernetes.io/control-plane=", "--node-labels=a=b c",
	} {
		if _, err := parse(arg); err == nil {
			t.Errorf("%s was taken", arg)
		}
	}
	for _, arg := range []string{
		"--node-labels=node.kubernetes.io/pool=a,topology.kubernetes.io/zone=z,example.com/x=y,plain=1", "--register-with-taints=key:NoSchedule",
	} {
		if _, err := parse(arg); err != nil {
			t.Errorf("%s: %v", arg, err)
		}
	}
}

// TestFlagTables: flags without effect belong to fields without effect.
func TestFlagTables(t *testing.T) {
	for _, table := range []map[string]string{fieldFlags, booleanFields} {
		for flag, field := range table {
			if ignored[field] == "" {
				t.Errorf("--%s is taken without effect, but %s is not among the fields without effect", flag, field)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	for want, change := range map[string]func(c *Config){
		"address":                  func(c *Config) { c.Address = "here" },
		"port":                     func(c *Config) { c.Port = 65536 },
		"authorization.mode":       func(c *Config) { c.Authorization.Mode = "Maybe" },
		"tlsCertFile":              func(c *Config) { c.TLSCertFile = "a" },
		"clusterDNS":               func(c *Config) { c.ClusterDNS = []string{"dns"} },
		"registerWithTaints":       func(c *Config) { c.RegisterWithTaints, _ = parseTaints("a=b:Never") },
		"kubeReserved: cpu":        func(c *Config) { c.KubeReserved = map[string]string{"cpu": "-1"} },
		"systemReserved: memory":   func(c *Config) { c.SystemReserved = map[string]string{"memory": "1Go"} },
		"evictionSoft":             func(c *Config) { c.EvictionSoft = map[string]string{"memory.available": "1Gi"} },
		"imageGCLowThreshold":      func(c *Config) { *c.ImageGCLowThresholdPercent = 85 },
		"podPidsLimit":             func(c *Config) { *c.PodPidsLimit = 0 },
		"maxParallelImagePulls":    func(c *Config) { n := int32(5); c.MaxParallelImagePulls = &n },
		"memorySwap.swapBehavior":  func(c *Config) { c.MemorySwap.SwapBehavior = "Some" },
		"nodeLeaseDurationSeconds": func(c *Config) { c.NodeLeaseDurationSeconds = -1 },
	} {
		c := &Config{}
		c.Default()
		change(c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", want, err)
		}
	}
	c := &Config{}
	c.Default()
	if err := c.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

// TestDropInDirectory: drop-ins lie at any depth, other files are left alone, and a directory that was named must be there.
func TestDropInDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "10-pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"00.conf": "maxPods: 1\nport: 1\n", "10-pods/a.conf": "maxPods: 2\n", "README": "maxPods: 3\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(head+text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := Load("", dir); err != nil || c.MaxPods != 2 || c.Port != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := Load("", filepath.Join(dir, "absent")); err == nil {
		t.Error("a directory that is not there was read")
	}
}

func TestEviction(t *testing.T) {
	yes := true
	for _, tt := range []struct {
		hard  map[string]string
		merge *bool
		want  map[string]string
	}{
		{nil, nil, defaultEviction},
		{map[string]string{"memory.available": "1Gi"}, nil, map[string]string{"memory.available": "1Gi"}},
		{map[string]string{}, nil, map[string]string{}},
		{map[string]string{"memory.available": "1Gi"}, &yes, map[string]string{
			"memory.available": "1Gi", "nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%", "imagefs.inodesFree": "5%",
		}},
	} {
		c := &Config{}
		c.EvictionHard, c.MergeDefaultEvictionSettings = tt.hard, tt.merge
		c.Default()
		if !maps.Equal(c.EvictionHard, tt.want) {
			t.Errorf("%v: %v, want %v", tt.hard, c.EvictionHard, tt.want)
		}
	}
}

// honoured are the fields that have an effect. A field of a new release of the API is in neither table until somebody has
// looked at it.
var honoured = strings.Fields(`
	enableServer staticPodPath podLogsDir syncFrequency fileCheckFrequency httpCheckFrequency staticPodURL staticPodURLHeader address port
	readOnlyPort tlsCertFile tlsPrivateKeyFile tlsCipherSuites tlsMinVersion rotateCertificates serverTLSBootstrap authentication
	authorization eventRecordQPS eventBurst enableDebuggingHandlers healthzPort healthzBindAddress oomScoreAdj clusterDomain clusterDNS
	nodeStatusUpdateFrequency nodeStatusReportFrequency nodeLeaseDurationSeconds imageMinimumGCAge imageMaximumGCAge
	imageGCHighThresholdPercent imageGCLowThresholdPercent cgroupRoot cgroupsPerQOS cgroupDriver runtimeRequestTimeout maxPods
	podPidsLimit resolvConf cpuCFSQuota nodeStatusMaxImages kubeAPIQPS kubeAPIBurst serializeImagePulls maxParallelImagePulls
	evictionHard evictionSoft evictionSoftGracePeriod evictionPressureTransitionPeriod evictionMaxPodGracePeriod
	evictionMinimumReclaim mergeDefaultEvictionSettings podsPerCore failSwapOn memorySwap containerLogMaxSize containerLogMaxFiles
	containerLogMaxWorkers containerLogMonitorInterval systemReserved kubeReserved enforceNodeAllocatable allowedUnsafeSysctls
	providerID enableSystemLogHandler enableProfilingHandler seccompDefault registerWithTaints registerNode
	localStorageCapacityIsolation containerRuntimeEndpoint imageServiceEndpoint failCgroupV1 crashLoopBackOff shutdownGracePeriod
	shutdownGracePeriodCriticalPods shutdownGracePeriodByPodPriority`)

func TestEveryField(t *testing.T) {
	fields := reflect.TypeFor[kubeletconfig.KubeletConfiguration]()
	for i := range fields.NumField() {
		name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		if name == "" { // kind and apiVersion
			continue
		}
		if slices.Contains(honoured, name) == (ignored[name] != "") {
			t.Errorf("%s must be either among the fields with an effect or among those without", name)
		}
	}
}
