// Package config reads the kubelet's configuration: KubeletConfiguration files (kubelet.config.k8s.io/v1beta1) with
// drop-ins, and the flags of kubelet, which win over files.
package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
)

// Config is the configuration as files and flags say it, complete with defaults.
type Config struct {
	kubeletconfig.KubeletConfiguration
	// Set are the names of the fields that a file set, and of fields and flags without effect that a flag set, for Warnings.
	Set map[string]bool
}

const (
	apiVersion = "kubelet.config.k8s.io/v1beta1"
	kind       = "KubeletConfiguration"
)

// Load reads file, which may be "", and then each *.conf in and below dir, which may be "", in the order of their names (KEP-3983): a
// field of a later one replaces that of an earlier one, tables are merged, and lists are replaced.
func Load(file, dir string) (*Config, error) {
	files, err := list(file, dir)
	if err != nil {
		return nil, err
	}
	merged := map[string]any{}
	for _, f := range files {
		if err := mergeFile(merged, f); err != nil {
			return nil, fmt.Errorf("config %s: %w", f, err)
		}
	}
	c := &Config{Set: map[string]bool{}}
	data, err := json.Marshal(merged)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &c.KubeletConfiguration); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	for name := range merged {
		c.Set[name] = true
	}
	return c, nil
}

func list(file, dir string) ([]string, error) {
	var files []string
	if file != "" {
		files = append(files, file)
	}
	if dir == "" {
		return files, nil
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && filepath.Ext(path) == ".conf" {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("config directory: %w", err)
	}
	return files, nil
}

func mergeFile(into map[string]any, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var strict kubeletconfig.KubeletConfiguration
	if err := yaml.UnmarshalStrict(data, &strict); err != nil {
		return err
	}
	if strict.APIVersion != apiVersion || strict.Kind != kind {
		return fmt.Errorf("is %s %s; write apiVersion: %s and kind: %s", strict.APIVersion, strict.Kind, apiVersion, kind)
	}
	var raw map[string]any
	if err := yaml.Unmarshal(data, &raw); err != nil {
		return err
	}
	merge(into, raw)
	return nil
}

func merge(into, from map[string]any) {
	for name, value := range from {
		below, isTable := value.(map[string]any)
		have, isThere := into[name].(map[string]any)
		if isTable && isThere {
			merge(have, below)
		} else {
			into[name] = value
		}
	}
}

// Default fills in what nothing has set. The values are those of the API's documentation, but for failCgroupV1, which is
// false here: cgroup v1 is supported.
func (c *Config) Default() {
	fillAll(&c.KubeletConfiguration)
	if c.EvictionHard == nil {
		c.EvictionHard = maps.Clone(defaultEviction)
	} else if c.MergeDefaultEvictionSettings != nil && *c.MergeDefaultEvictionSettings {
		merged := maps.Clone(defaultEviction)
		maps.Copy(merged, c.EvictionHard)
		c.EvictionHard = merged
	}
}

var defaultEviction = map[string]string{
	"memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%", "imagefs.inodesFree": "5%",
}

func fill[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

func fillPointer[T any](to **T, value T) {
	if *to == nil {
		*to = &value
	}
}

func fillTime(to *metav1.Duration, value time.Duration) { fill(&to.Duration, value) }

// fillAll sets the defaults of the fields that are honoured.
func fillAll(c *kubeletconfig.KubeletConfiguration) {
	fillPointer(&c.EnableServer, true)
	fill(&c.PodLogsDir, "/var/log/pods")
	fillTime(&c.SyncFrequency, time.Minute)
	fillTime(&c.FileCheckFrequency, 20*time.Second)
	fillTime(&c.HTTPCheckFrequency, 20*time.Second)
	fill(&c.Address, "0.0.0.0")
	fill(&c.Port, 10250)
	fillPointer(&c.Authentication.Anonymous.Enabled, false)
	fillPointer(&c.Authentication.Webhook.Enabled, true)
	fillTime(&c.Authentication.Webhook.CacheTTL, 2*time.Minute)
	fill(&c.Authorization.Mode, kubeletconfig.KubeletAuthorizationModeWebhook)
	fillTime(&c.Authorization.Webhook.CacheAuthorizedTTL, 5*time.Minute)
	fillTime(&c.Authorization.Webhook.CacheUnauthorizedTTL, 30*time.Second)
	fillPointer(&c.EventRecordQPS, 50)
	fill(&c.EventBurst, 100)
	fillPointer(&c.EnableDebuggingHandlers, true)
	fillPointer(&c.HealthzPort, 10248)
	fill(&c.HealthzBindAddress, "127.0.0.1")
	fillPointer(&c.OOMScoreAdj, -999)
	fillTime(&c.StreamingConnectionIdleTimeout, 4*time.Hour)
	fillTime(&c.NodeStatusReportFrequency, cmp.Or(c.NodeStatusUpdateFrequency.Duration, 5*time.Minute))
	fillTime(&c.NodeStatusUpdateFrequency, 10*time.Second)
	fill(&c.NodeLeaseDurationSeconds, 40)
	fillTime(&c.ImageMinimumGCAge, 2*time.Minute)
	fillPointer(&c.ImageGCHighThresholdPercent, 85)
	fillPointer(&c.ImageGCLowThresholdPercent, 80)
	fillTime(&c.VolumeStatsAggPeriod, time.Minute)
	fillPointer(&c.CgroupsPerQOS, true)
	fill(&c.CgroupDriver, "cgroupfs")
	fillTime(&c.RuntimeRequestTimeout, 2*time.Minute)
	fill(&c.MaxPods, 110)
	fillPointer(&c.PodPidsLimit, -1)
	fillPointer(&c.ResolverConfig, "/etc/resolv.conf")
	fillPointer(&c.CPUCFSQuota, true)
	fillPointer(&c.NodeStatusMaxImages, 50)
	fill(&c.ContentType, "application/vnd.kubernetes.protobuf")
	fillPointer(&c.KubeAPIQPS, 50)
	fill(&c.KubeAPIBurst, 100)
	fillPointer(&c.SerializeImagePulls, true)
	fillTime(&c.EvictionPressureTransitionPeriod, 5*time.Minute)
	fillPointer(&c.EnableControllerAttachDetach, true)
	fillPointer(&c.FailSwapOn, true)
	fill(&c.ContainerLogMaxSize, "10Mi")
	fillPointer(&c.ContainerLogMaxFiles, 5)
	fillPointer(&c.ContainerLogMaxWorkers, 1)
	fillPointer(&c.ContainerLogMonitorInterval, metav1.Duration{Duration: 10 * time.Second})
	fillPointer(&c.EnableSystemLogHandler, true)
	fillPointer(&c.EnableProfilingHandler, true)
	fillPointer(&c.SeccompDefault, false)
	fillPointer(&c.RegisterNode, true)
	fillPointer(&c.LocalStorageCapacityIsolation, true)
	fill(&c.ContainerRuntimeEndpoint, "unix:///run/orlop/orlop.sock")
	fillPointer(&c.FailCgroupV1, false)
	fillPointer(&c.CrashLoopBackOff.MaxContainerRestartPeriod, metav1.Duration{Duration: 5 * time.Minute})
	if c.EnforceNodeAllocatable == nil {
		c.EnforceNodeAllocatable = []string{"pods"}
	}
}

// Warnings names the fields and flags that were set and are not honoured here, sorted.
func (c *Config) Warnings() []string {
	var out []string
	for name := range c.Set {
		if why := cmp.Or(ignored[name], ignoredFlags[name]); why != "" {
			out = append(out, fmt.Sprintf("%s is set and has no effect here: %s", name, why))
		}
	}
	slices.Sort(out)
	return out
}

// ignored are the fields that are not honoured, and why. Every other field is.
var ignored = map[string]string{
	"registryPullQPS":                           "pulls are limited by maxParallelImagePulls",
	"registryBurst":                             "pulls are limited by maxParallelImagePulls",
	"imagePullCredentialsVerificationPolicy":    "who pulled an image is not recorded",
	"preloadedImagesVerificationAllowlist":      "who pulled an image is not recorded",
	"enableContentionProfiling":                 "locks are not profiled",
	"kubeletCgroups":                            "the service manager places this process",
	"systemCgroups":                             "the service manager places processes",
	"cpuManagerPolicy":                          "CPUs are shared by all pods",
	"cpuManagerPolicyOptions":                   "CPUs are shared by all pods",
	"cpuManagerReconcilePeriod":                 "CPUs are shared by all pods",
	"memoryManagerPolicy":                       "memory is not bound to NUMA nodes",
	"reservedMemory":                            "memory is not bound to NUMA nodes",
	"topologyManagerPolicy":                     "topology is not managed",
	"topologyManagerScope":                      "topology is not managed",
	"topologyManagerPolicyOptions":              "topology is not managed",
	"qosReserved":                               "memory is not reserved for classes",
	"hairpinMode":                               "the network plugin decides",
	"runOnce":                                   "it runs until it is stopped",
	"cpuCFSQuotaPeriod":                         "the period is 100ms",
	"maxOpenFiles":                              "the service manager limits this process",
	"protectKernelDefaults":                     "kernel settings are not changed",
	"makeIPTablesUtilChains":                    "no firewall rules are made",
	"iptablesMasqueradeBit":                     "no firewall rules are made",
	"iptablesDropBit":                           "no firewall rules are made",
	"featureGates":                              "features are on or absent",
	"configMapAndSecretChangeDetectionStrategy": "objects are watched",
	"reservedSystemCPUs":                        "CPUs are shared by all pods",
	"showHiddenMetricsForVersion":               "no metrics are hidden",
	"systemReservedCgroup":                      "the service manager places processes",
	"kubeReservedCgroup":                        "the service manager places this process",
	"defaultPodSysctls":                         "sysctls are those that a pod asks for",
	"volumePluginDir":                           "flexVolume is not supported",
	"kernelMemcgNotification":                   "memory pressure is polled",
	"enableSystemLogQuery":                      "logs of services are read by journalctl",
	"enableControllerAttachDetach":              "the control plane attaches volumes",
	"enableDebugFlagsHandler":                   "flags are not changed at run time",
	"memoryThrottlingFactor":                    "memory.high is not set",
	"memoryReservationPolicy":                   "memory.min is not set",
	"tracing":                                   "nothing is traced",
	"tlsCurvePreferences":                       "the curves are Go's",
	"logging":                                   "logs are text on standard error",
	"userNamespaces":                            "each pod gets 65536 user IDs",
	"singleProcessOOMKill":                      "an OOM kill ends the whole container on cgroup v2",
	"streamingConnectionIdleTimeout":            "the runtime ends idle connections",
	"volumeStatsAggPeriod":                      "usage is computed when it is asked for",
	"podCIDR":                                   "the API server gives pod CIDRs, or the CNI configuration",
	"contentType":                               "the client chooses",
}
