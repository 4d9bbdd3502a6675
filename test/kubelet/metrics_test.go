package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// told are metrics that dashboards and alerts of clusters commonly read of a kubelet, by the pages on which they are.
var told = map[string][]string{
	"/metrics": {
		"go_goroutines", "process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes",
		"kubelet_http_requests_total", "kubelet_node_name", "kubelet_pleg_relist_duration_seconds", "kubelet_pleg_relist_interval_seconds",
		"kubelet_pod_start_duration_seconds", "kubelet_pod_worker_duration_seconds", "kubelet_running_containers", "kubelet_running_pods",
		"kubelet_runtime_operations_duration_seconds", "kubelet_runtime_operations_total",
		"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes", "kubelet_volume_stats_inodes",
		"kubelet_volume_stats_inodes_free", "kubelet_volume_stats_inodes_used", "kubelet_volume_stats_used_bytes",
	},
	"/metrics/cadvisor": {
		"container_cpu_usage_seconds_total", "container_memory_rss", "container_memory_usage_bytes", "container_memory_working_set_bytes",
		"container_start_time_seconds", "machine_cpu_cores", "machine_memory_bytes",
	},
	"/metrics/resource": {
		"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds", "container_swap_usage_bytes",
		"node_cpu_usage_seconds_total", "node_memory_working_set_bytes", "node_swap_usage_bytes", "pod_cpu_usage_seconds_total",
		"pod_memory_working_set_bytes", "pod_swap_usage_bytes", "resource_scrape_error",
	},
	"/metrics/probes": {"prober_probe_total"},
}

const measuredPod = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: SPACE}
spec:
  storageClassName: SPACE
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  local: {path: DIR}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  storageClassName: SPACE
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: measured}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// TestMetricNames: what dashboards and alerts read of a kubelet is there, under its name.
func TestMetricNames(t *testing.T) {
	s := begin(t)
	dir := filepath.Join(node.dir, "measured")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir); s.tryKubectl("", "delete", "pv", s.name) }) //nolint:errcheck // the cluster ends anyhow
	s.apply(strings.NewReplacer("SPACE", s.name, "DIR", dir).Replace(measuredPod))
	s.waitPod("measured", "ready", ready)
	for path, names := range told {
		s.within(2*patience, "the metrics of "+path, func() error { // kubelet measures volumes once in a minute
			there := metricFamilies(s.kubectl("get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy"+path))
			missing := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return there[name] })
			if len(missing) > 0 {
				return fmt.Errorf("there is no %s", strings.Join(missing, ", "))
			}
			return nil
		})
	}
}

// metricFamilies are the names of the metrics of a page.
func metricFamilies(page string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(page) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "#" && f[1] == "TYPE" {
			out[f[2]] = true
		}
	}
	return out
}
