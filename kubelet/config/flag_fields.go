package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

// setter defines flags that set what a file may also say.
type setter struct {
	f  *Flags
	fs *pflag.FlagSet
}

// value defines one. A value is tried when it is read, so that a mistake is told with the flag's name, and set once the file
// was read.
func (s setter) value(name, usage string, set func(c *Config, value string) error) {
	s.fs.Func(name, usage+" (replaces the field of the file)", func(value string) error {
		if err := set(&Config{}, value); err != nil {
			return err
		}
		s.f.overrides = append(s.f.overrides, func(c *Config) { _ = set(c, value) }) // it was tried above
		return nil
	})
}

func (s setter) text(name, usage string, field func(c *Config) *string) {
	s.value(name, usage, func(c *Config, value string) error { *field(c) = value; return nil })
}

func (s setter) list(name, usage string, field func(c *Config) *[]string) {
	s.value(name, usage, func(c *Config, value string) error { *field(c) = strings.Split(value, ","); return nil })
}

func (s setter) table(name, usage, separator string, field func(c *Config) *map[string]string) {
	s.value(name, usage, func(c *Config, value string) error {
		m, err := parseMap(value, separator)
		*field(c) = m
		return err
	})
}

func (s setter) duration(name, usage string, field func(c *Config) *metav1.Duration) {
	s.value(name, usage, func(c *Config, value string) (err error) {
		field(c).Duration, err = time.ParseDuration(value)
		return err
	})
}

func (s setter) flag(name, usage string, field func(c *Config) *bool) {
	s.value(name, usage, func(c *Config, value string) (err error) {
		*field(c), err = strconv.ParseBool(value)
		return err
	})
	s.fs.Lookup(name).NoOptDefVal = "true"
}

func (s setter) optionalFlag(name, usage string, field func(c *Config) **bool) {
	s.flag(name, usage, func(c *Config) *bool {
		*field(c) = new(bool)
		return *field(c)
	})
}

func number[T ~int32 | ~int64](s setter, name, usage string, field func(c *Config) *T) {
	s.value(name, usage, func(c *Config, value string) error {
		n, err := strconv.ParseInt(value, 10, 64)
		if err == nil && int64(T(n)) != n {
			return fmt.Errorf("%d is too large", n)
		}
		*field(c) = T(n)
		return err
	})
}

func optionalNumber[T ~int32 | ~int64](s setter, name, usage string, field func(c *Config) **T) {
	number(s, name, usage, func(c *Config) *T {
		*field(c) = new(T)
		return *field(c)
	})
}

func (s setter) serverFields() {
	s.text("address", "address to listen on", func(c *Config) *string { return &c.Address })
	number(s, "port", "port of the kubelet API", func(c *Config) *int32 { return &c.Port })
	number(s, "read-only-port", "port of the kubelet API without authentication; 0 for none", func(c *Config) *int32 { return &c.ReadOnlyPort })
	s.text("tls-cert-file", "certificate of the kubelet API", func(c *Config) *string { return &c.TLSCertFile })
	s.text("tls-private-key-file", "key of the kubelet API", func(c *Config) *string { return &c.TLSPrivateKeyFile })
	s.text("client-ca-file", "who signs certificates of clients", func(c *Config) *string { return &c.Authentication.X509.ClientCAFile })
}

func (s setter) podFields() {
	s.text("container-runtime-endpoint", "the CRI runtime's socket", func(c *Config) *string { return &c.ContainerRuntimeEndpoint })
	s.text("image-service-endpoint", "the CRI image service's socket", func(c *Config) *string { return &c.ImageServiceEndpoint })
	s.text("pod-manifest-path", "directory of static pods", func(c *Config) *string { return &c.StaticPodPath })
	s.text("manifest-url", "URL of static pods", func(c *Config) *string { return &c.StaticPodURL })
	s.text("cgroup-driver", "cgroupfs or systemd", func(c *Config) *string { return &c.CgroupDriver })
	s.text("cgroup-root", "the cgroup below which pods are", func(c *Config) *string { return &c.CgroupRoot })
	s.text("cluster-domain", "the cluster's DNS domain", func(c *Config) *string { return &c.ClusterDomain })
	s.list("cluster-dns", "addresses of the cluster's DNS", func(c *Config) *[]string { return &c.ClusterDNS })
	s.value("resolv-conf", "the node's resolv.conf", func(c *Config, value string) error { c.ResolverConfig = &value; return nil })
	s.list("allowed-unsafe-sysctls", "sysctls that pods may set beside the safe ones", func(c *Config) *[]string { return &c.AllowedUnsafeSysctls })
}

func (s setter) nodeFields() {
	number(s, "max-pods", "how many pods the node takes", func(c *Config) *int32 { return &c.MaxPods })
	s.table("system-reserved", "what the system needs, cpu=100m,memory=1Gi,…", "=", func(c *Config) *map[string]string { return &c.SystemReserved })
	s.table("kube-reserved", "what Kubernetes' own programs need", "=", func(c *Config) *map[string]string { return &c.KubeReserved })
	s.table("eviction-hard", "when to evict at once, memory.available<100Mi,…", "<", func(c *Config) *map[string]string { return &c.EvictionHard })
	s.optionalFlag("register-node", "register the node with the API server", func(c *Config) **bool { return &c.RegisterNode })
	s.optionalFlag("fail-swap-on", "refuse to start on a node with swap", func(c *Config) **bool { return &c.FailSwapOn })
	s.value("register-with-taints", "taints of the node when it registers, key=value:effect,…", func(c *Config, value string) error {
		taints, err := parseTaints(value)
		c.RegisterWithTaints = taints
		return err
	})
}

// hiddenFields are kubelet's other flags that a file replaces. Units that were made for kubelet pass them; help does not name
// them, since the file is the place.
func (s setter) hiddenFields() {
	shown := map[string]bool{}
	s.fs.VisitAll(func(f *pflag.Flag) { shown[f.Name] = true })
	s.hiddenServerFields()
	s.hiddenPodFields()
	s.hiddenCareFields()
	s.fs.VisitAll(func(f *pflag.Flag) { f.Hidden = f.Hidden || !shown[f.Name] })
}

func (s setter) hiddenServerFields() {
	s.optionalFlag("enable-server", "serve the kubelet API", func(c *Config) **bool { return &c.EnableServer })
	s.optionalFlag("enable-debugging-handlers", "serve logs, exec and the like", func(c *Config) **bool { return &c.EnableDebuggingHandlers })
	s.optionalFlag("anonymous-auth", "let in who shows no credentials", func(c *Config) **bool { return &c.Authentication.Anonymous.Enabled })
	s.optionalFlag("authentication-token-webhook", "check tokens with TokenReview", func(c *Config) **bool { return &c.Authentication.Webhook.Enabled })
	s.duration("authentication-token-webhook-cache-ttl", "how long an answer of it counts", func(c *Config) *metav1.Duration { return &c.Authentication.Webhook.CacheTTL })
	s.value("authorization-mode", "Webhook or AlwaysAllow", func(c *Config, value string) error {
		c.Authorization.Mode = kubeletconfig.KubeletAuthorizationMode(value)
		return nil
	})
	s.duration("authorization-webhook-cache-authorized-ttl", "how long a yes counts", func(c *Config) *metav1.Duration { return &c.Authorization.Webhook.CacheAuthorizedTTL })
	s.duration("authorization-webhook-cache-unauthorized-ttl", "how long a no counts", func(c *Config) *metav1.Duration { return &c.Authorization.Webhook.CacheUnauthorizedTTL })
	s.list("tls-cipher-suites", "cipher suites of the kubelet API", func(c *Config) *[]string { return &c.TLSCipherSuites })
	s.text("tls-min-version", "TLS version that clients must have", func(c *Config) *string { return &c.TLSMinVersion })
	s.flag("rotate-certificates", "renew the client certificate", func(c *Config) *bool { return &c.RotateCertificates })
	s.flag("rotate-server-certificates", "ask the API server for a serving certificate", func(c *Config) *bool { return &c.ServerTLSBootstrap })
	s.text("healthz-bind-address", "address of healthz", func(c *Config) *string { return &c.HealthzBindAddress })
	optionalNumber(s, "healthz-port", "port of healthz; 0 for none", func(c *Config) **int32 { return &c.HealthzPort })
	optionalNumber(s, "kube-api-qps", "requests to the API server in a second", func(c *Config) **int32 { return &c.KubeAPIQPS })
	number(s, "kube-api-burst", "requests to the API server at once", func(c *Config) *int32 { return &c.KubeAPIBurst })
	optionalNumber(s, "event-qps", "events in a second", func(c *Config) **int32 { return &c.EventRecordQPS })
	number(s, "event-burst", "events at once", func(c *Config) *int32 { return &c.EventBurst })
}

func (s setter) hiddenPodFields() {
	s.duration("sync-frequency", "how often each pod is looked at", func(c *Config) *metav1.Duration { return &c.SyncFrequency })
	s.duration("file-check-frequency", "how often manifests are looked at", func(c *Config) *metav1.Duration { return &c.FileCheckFrequency })
	s.duration("http-check-frequency", "how often the URL is looked at", func(c *Config) *metav1.Duration { return &c.HTTPCheckFrequency })
	s.duration("runtime-request-timeout", "patience with the runtime", func(c *Config) *metav1.Duration { return &c.RuntimeRequestTimeout })
	s.optionalFlag("cgroups-per-qos", "a cgroup for each QoS class and pod", func(c *Config) **bool { return &c.CgroupsPerQOS })
	s.optionalFlag("cpu-cfs-quota", "enforce CPU limits", func(c *Config) **bool { return &c.CPUCFSQuota })
	s.optionalFlag("seccomp-default", "RuntimeDefault for pods that name no seccomp profile", func(c *Config) **bool { return &c.SeccompDefault })
	s.optionalFlag("serialize-image-pulls", "pull one image at a time", func(c *Config) **bool { return &c.SerializeImagePulls })
	s.optionalFlag("local-storage-capacity-isolation", "limit ephemeral storage", func(c *Config) **bool { return &c.LocalStorageCapacityIsolation })
	s.list("enforce-node-allocatable", "pods or none", func(c *Config) *[]string { return &c.EnforceNodeAllocatable })
	optionalNumber(s, "pod-max-pids", "processes of a pod; -1 for no limit", func(c *Config) **int64 { return &c.PodPidsLimit })
	number(s, "pods-per-core", "how many pods the node takes for each CPU", func(c *Config) *int32 { return &c.PodsPerCore })
	s.text("container-log-max-size", "size at which a log is rotated", func(c *Config) *string { return &c.ContainerLogMaxSize })
	optionalNumber(s, "container-log-max-files", "logs of a container", func(c *Config) **int32 { return &c.ContainerLogMaxFiles })
}

func (s setter) hiddenCareFields() {
	s.text("provider-id", "the node's ID at its cloud", func(c *Config) *string { return &c.ProviderID })
	s.optionalFlag("fail-cgroupv1", "refuse to start on cgroup v1", func(c *Config) **bool { return &c.FailCgroupV1 })
	optionalNumber(s, "oom-score-adj", "of this process", func(c *Config) **int32 { return &c.OOMScoreAdj })
	s.duration("node-status-update-frequency", "how often the node's status is computed", func(c *Config) *metav1.Duration { return &c.NodeStatusUpdateFrequency })
	optionalNumber(s, "node-status-max-images", "images in the node's status; -1 for all", func(c *Config) **int32 { return &c.NodeStatusMaxImages })
	s.duration("minimum-image-ttl-duration", "age at which an unused image may go", func(c *Config) *metav1.Duration { return &c.ImageMinimumGCAge })
	optionalNumber(s, "image-gc-high-threshold", "percent of the disk above which images go", func(c *Config) **int32 { return &c.ImageGCHighThresholdPercent })
	optionalNumber(s, "image-gc-low-threshold", "percent of the disk to which they go", func(c *Config) **int32 { return &c.ImageGCLowThresholdPercent })
	s.table("eviction-soft", "when to evict after a while", "<", func(c *Config) *map[string]string { return &c.EvictionSoft })
	s.table("eviction-soft-grace-period", "after what while", "=", func(c *Config) *map[string]string { return &c.EvictionSoftGracePeriod })
	s.table("eviction-minimum-reclaim", "how much to free at least", "=", func(c *Config) *map[string]string { return &c.EvictionMinimumReclaim })
	s.duration("eviction-pressure-transition-period", "how long a pressure lasts at least", func(c *Config) *metav1.Duration { return &c.EvictionPressureTransitionPeriod })
	number(s, "eviction-max-pod-grace-period", "seconds that an evicted pod has at most", func(c *Config) *int32 { return &c.EvictionMaxPodGracePeriod })
}

// ignoredFlags are kubelet's flags that are taken and have no effect, and why.
var ignoredFlags = map[string]string{
	"pod-infra-container-image":             "the runtime keeps its own image",
	"network-plugin":                        "the runtime sets up networks",
	"cni-conf-dir":                          "the runtime sets up networks",
	"cni-bin-dir":                           "the runtime sets up networks",
	"container-runtime":                     "the runtime is that of --container-runtime-endpoint",
	"minimum-container-ttl-duration":        "ended containers go with their pod",
	"maximum-dead-containers":               "ended containers go with their pod",
	"maximum-dead-containers-per-container": "ended containers go with their pod",
	"lock-file":                             "the service manager starts one kubelet",
	"exit-on-lock-contention":               "the service manager starts one kubelet",
	"logging-format":                        "logs are text on standard error",
}

// fieldFlags are the flags of fields that have no effect themselves.
var fieldFlags = map[string]string{
	"feature-gates": "featureGates", "registry-qps": "registryPullQPS", "registry-burst": "registryBurst",
	"contention-profiling": "enableContentionProfiling", "volume-plugin-dir": "volumePluginDir",
	"streaming-connection-idle-timeout": "streamingConnectionIdleTimeout", "volume-stats-agg-period": "volumeStatsAggPeriod",
	"kubelet-cgroups": "kubeletCgroups", "system-cgroups": "systemCgroups", "cpu-manager-policy": "cpuManagerPolicy",
	"cpu-manager-policy-options": "cpuManagerPolicyOptions", "cpu-manager-reconcile-period": "cpuManagerReconcilePeriod",
	"qos-reserved": "qosReserved", "topology-manager-policy": "topologyManagerPolicy", "topology-manager-scope": "topologyManagerScope",
	"topology-manager-policy-options": "topologyManagerPolicyOptions", "hairpin-mode": "hairpinMode", "pod-cidr": "podCIDR",
	"cpu-cfs-quota-period": "cpuCFSQuotaPeriod", "max-open-files": "maxOpenFiles", "kube-api-content-type": "contentType",
	"reserved-cpus": "reservedSystemCPUs", "system-reserved-cgroup": "systemReservedCgroup", "kube-reserved-cgroup": "kubeReservedCgroup",
	"memory-manager-policy": "memoryManagerPolicy", "reserved-memory": "reservedMemory",
}

// booleanFields are like fieldFlags, of flags that may stand without a value.
var booleanFields = map[string]string{
	"runonce": "runOnce", "make-iptables-util-chains": "makeIPTablesUtilChains", "protect-kernel-defaults": "protectKernelDefaults",
	"kernel-memcg-notification": "kernelMemcgNotification", "enable-controller-attach-detach": "enableControllerAttachDetach",
}

// withoutEffect defines these; those that are passed are named in a warning.
func (s setter) withoutEffect() {
	note := func(flag, field string) {
		s.fs.Func(flag, "accepted, without effect", func(string) error {
			s.f.overrides = append(s.f.overrides, func(c *Config) {
				if c.Set == nil {
					c.Set = map[string]bool{}
				}
				c.Set[field] = true
			})
			return nil
		})
		s.fs.Lookup(flag).Hidden = true
	}
	for flag := range ignoredFlags {
		note(flag, flag)
	}
	for flag, field := range fieldFlags {
		note(flag, field)
	}
	for flag, field := range booleanFields {
		note(flag, field)
		s.fs.Lookup(flag).NoOptDefVal = "true"
	}
	s.fs.Lookup("exit-on-lock-contention").NoOptDefVal = "true"
}

func parseMap(text, separator string) (map[string]string, error) {
	out := map[string]string{}
	for _, part := range strings.Split(text, ",") {
		if part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, separator)
		if !ok {
			return nil, fmt.Errorf("%q: write NAME%sVALUE", part, separator)
		}
		out[name] = value
	}
	return out, nil
}

func parseTaints(text string) ([]v1.Taint, error) {
	var taints []v1.Taint
	for _, part := range strings.Split(text, ",") {
		if part == "" {
			continue
		}
		name, effect, ok := strings.Cut(part, ":")
		if !ok {
			return nil, fmt.Errorf("%q: write key=value:effect", part)
		}
		key, value, _ := strings.Cut(name, "=")
		taints = append(taints, v1.Taint{Key: key, Value: value, Effect: v1.TaintEffect(effect)})
	}
	return taints, nil
}
