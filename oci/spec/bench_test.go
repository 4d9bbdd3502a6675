package spec

import (
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkContainer is what each CreateContainer pays: a container as the kubelet describes it.
func BenchmarkContainer(b *testing.B) {
	for _, bb := range []struct{ name, profile string }{{"unconfined", ""}, {"seccomp", "runtime/default"}} {
		b.Run(bb.name, func(b *testing.B) {
			in := kubeletInput()
			in.Container.Linux.SecurityContext.SeccompProfilePath = bb.profile
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Container(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPodInit(b *testing.B) {
	in := baseInput()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := PodInit(in); err != nil {
			b.Fatal(err)
		}
	}
}

// kubeletInput has the mounts and variables that a small pod in a cluster with a few Services has.
func kubeletInput() Input {
	in := baseInput()
	for _, name := range []string{"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_PORT", "A", "B", "C", "D", "E", "F", "G"} {
		in.Container.Envs = append(in.Container.Envs, &cri.KeyValue{Key: name, Value: []byte("10.0.0.1")})
	}
	for _, dest := range []string{"/var/run/secrets/kubernetes.io/serviceaccount", "/etc/hosts", "/dev/termination-log", "/data", "/config"} {
		in.Mounts = append(in.Mounts, Mount{Source: "/var/lib/kubelet/pods/4f1c" + dest, CRI: &cri.Mount{ContainerPath: dest}})
	}
	sc := in.Container.Linux.SecurityContext
	sc.MaskedPaths, sc.ReadonlyPaths = defaultMasked, defaultReadonly
	in.Container.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000,
		MemoryLimitInBytes: 1 << 28, MemorySwapLimitInBytes: 1 << 28, OomScoreAdj: 900}
	return in
}
