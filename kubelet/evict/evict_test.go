package evict

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/status"
)

// node is a fake one: its levels are set by the test.
type node struct {
	memory uint64 // bytes available of 1000 Mi
	disk   uint64 // bytes available of 1000 Mi
	pods   []*v1.Pod
	usage  map[string]uint64 // memory by pod
	ended  []string
	freed  uint64 // bytes that removing images gives, once
	held   int64  // bytes in every emptyDir
	ending bool   // who was told to end does not
	grace  []int64
}

const mi = 1 << 20

func (n *node) Levels(context.Context) (*stats.NodeStats, error) {
	total := uint64(1000 * mi)
	return &stats.NodeStats{
		Memory: &stats.MemoryStats{AvailableBytes: &n.memory, WorkingSetBytes: new(total - n.memory)},
		Fs:     &stats.FsStats{AvailableBytes: &n.disk, CapacityBytes: &total},
	}, nil
}

func (n *node) Summary(context.Context) (*stats.Summary, error) {
	s := &stats.Summary{}
	for _, p := range n.pods {
		used := n.usage[p.Name]
		s.Pods = append(s.Pods, stats.PodStats{
			PodRef: stats.PodReference{Name: p.Name, UID: string(p.UID)}, Memory: &stats.MemoryStats{WorkingSetBytes: &used},
			Containers: []stats.ContainerStats{{Name: "main", Memory: &stats.MemoryStats{WorkingSetBytes: &used}, Rootfs: &stats.FsStats{UsedBytes: &used}}},
		})
	}
	return s, nil
}

// add adds a pod that asks for and uses so many Mi.
func (n *node) add(name string, priority int32, request, used int64) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{Priority: &priority, Containers: []v1.Container{{Name: "main"}}}}
	p.Name, p.Namespace, p.UID = name, "n", types.UID(name)
	if request > 0 {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceMemory: *resource.NewQuantity(request*mi, resource.BinarySI)}
	}
	n.pods = append(n.pods, p)
	n.usage[name] = uint64(used * mi)
	return p
}

func (n *node) manager(t *testing.T, hard, soft, graces map[string]string) *Manager {
	t.Helper()
	h, err := Parse(hard, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(soft, graces, nil)
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{
		Hard: h, Soft: s, Transition: 5 * time.Minute, SoftGrace: 7, IsolateDisk: true, Stats: n, Pods: func() []*v1.Pod { return n.pods },
		End: func(p *v1.Pod, final status.Final, grace *int64) {
			n.ended, n.grace = append(n.ended, p.Name), append(n.grace, *grace)
			if final.Reason != "Evicted" || final.Message == "" || final.Condition.Reason != v1.PodReasonTerminationByKubelet {
				t.Errorf("%s ended with %+v", p.Name, final)
			}
		},
		FreeDisk: func(context.Context) (uint64, error) {
			freed := n.freed
			n.disk += freed
			n.freed = 0
			return freed, nil
		},
		Ending:  func(*v1.Pod) bool { return n.ending },
		Used:    func(*v1.Pod, string) (int64, error) { return n.held, nil },
		Changed: func() {}, Log: slog.New(slog.DiscardHandler),
	})
}

func newNode() *node { return &node{memory: 500 * mi, disk: 500 * mi, usage: map[string]uint64{}} }

// TestOrder: who uses more than it asked for goes first, then the lower priority, then the larger excess.
func TestOrder(t *testing.T) {
	n := newNode()
	n.add("modest", 0, 100, 50)
	n.add("greedy", 0, 100, 150)
	n.add("greedier", 0, 100, 300)
	n.add("important", 1000, 0, 400)
	n.add("critical", 2_000_001_000, 0, 900)
	summary, _ := n.Summary(t.Context())
	var got []string
	for _, r := range rank(n.pods, summary, Memory) {
		got = append(got, r.pod.Name)
	}
	if want := "greedier greedy important modest"; strings.Join(got, " ") != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestHardThreshold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.add("a", 0, 0, 10)
		n.add("b", 0, 0, 90)
		m := n.manager(t, map[string]string{"memory.available": "100Mi"}, nil, nil)
		look := func() {
			t.Helper()
			if err := m.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		look()
		if len(n.ended) != 0 || m.Pressure().Memory {
			t.Fatalf("with 500 Mi: ended %v, pressure %+v", n.ended, m.Pressure())
		}
		n.memory = 99 * mi
		look()
		if strings.Join(n.ended, " ") != "b" || !m.Pressure().Memory || m.Pressure().Disk {
			t.Fatalf("with 99 Mi: ended %v, pressure %+v", n.ended, m.Pressure())
		}
		n.memory = 500 * mi
		time.Sleep(4 * time.Minute)
		look()
		if !m.Pressure().Memory {
			t.Error("the pressure was told for less than its transition period")
		}
		time.Sleep(2 * time.Minute)
		look()
		if m.Pressure().Memory {
			t.Error("the pressure is still told")
		}
	})
}

func TestSoftThreshold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.add("a", 0, 0, 10)
		m := n.manager(t, nil, map[string]string{"memory.available": "20%"}, map[string]string{"memory.available": "1m"})
		n.memory = 150 * mi
		_ = m.look(t.Context())
		time.Sleep(30 * time.Second)
		_ = m.look(t.Context())
		if len(n.ended) != 0 || !m.Pressure().Memory {
			t.Errorf("after 30 s: ended %v, pressure %+v", n.ended, m.Pressure())
		}
		time.Sleep(31 * time.Second)
		_ = m.look(t.Context())
		if len(n.ended) != 1 {
			t.Errorf("after 61 s: ended %v", n.ended)
		}
	})
}

// TestBothThresholds: when the soft threshold was reached, the hard one is not; who was given time at the one gets none at the
// other, and nobody else ends meanwhile.
func TestBothThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.add("a", 0, 0, 10)
		n.add("b", 0, 0, 90)
		m := n.manager(t, map[string]string{"memory.available": "100Mi"}, map[string]string{"memory.available": "200Mi"}, map[string]string{"memory.available": "1m"})
		m.cfg.Hard[0].Reclaim = 150 * mi
		for _, step := range []struct {
			wait   time.Duration
			memory uint64
			ending bool
			want   string
		}{
			{0, 190 * mi, false, ""},
			{50 * time.Second, 190 * mi, false, ""},
			{11 * time.Second, 190 * mi, false, "b"},
			{10 * time.Second, 180 * mi, true, "b"},
			{10 * time.Second, 90 * mi, true, "b b"},
			{10 * time.Second, 90 * mi, true, "b b"},
		} {
			time.Sleep(step.wait)
			n.memory, n.ending = step.memory, step.ending
			if err := m.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(n.ended, " "); got != step.want {
				t.Fatalf("with %d Mi: ended %q, want %q", step.memory/mi, got, step.want)
			}
		}
		if n.grace[0] != 7 || n.grace[1] != 0 {
			t.Errorf("graces %v, want 7 and 0", n.grace)
		}
	})
}

// TestDiskIsFreedFirst: images go before pods do.
func TestDiskIsFreedFirst(t *testing.T) {
	n := newNode()
	n.add("a", 0, 0, 10)
	m := n.manager(t, map[string]string{"nodefs.available": "10%"}, nil, nil)
	n.disk, n.freed = 50*mi, 100*mi
	_ = m.look(t.Context())
	if len(n.ended) != 0 || !m.Pressure().Disk {
		t.Errorf("images were enough, and it ended %v; pressure %+v", n.ended, m.Pressure())
	}
	n.disk = 50 * mi
	_ = m.look(t.Context())
	if len(n.ended) != 1 {
		t.Errorf("no image is left, and it ended %v", n.ended)
	}
}

func TestDiskLimits(t *testing.T) {
	n := newNode()
	limited := n.add("limited", 0, 0, 20)
	limited.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("10Mi")}
	roomy := n.add("roomy", 0, 0, 20)
	roomy.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("1Gi")}
	small := resource.MustParse("1Mi")
	volume := n.add("volume", 0, 0, 0)
	volume.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &small}}}}
	m := n.manager(t, nil, nil, nil)
	n.held = mi
	_ = m.look(t.Context())
	if strings.Join(n.ended, " ") != "limited" {
		t.Errorf("ended %v", n.ended)
	}
	n.ended, n.held = nil, 2*mi
	_ = m.look(t.Context())
	if !strings.Contains(strings.Join(n.ended, " "), "volume") {
		t.Errorf("ended %v", n.ended)
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []map[string]string{{"memory.free": "1Mi"}, {"memory.available": "much"}, {"nodefs.available": "x%"}} {
		if got, err := Parse(bad, nil, nil); err == nil {
			t.Errorf("%v: %v", bad, got)
		}
	}
	part, err := Parse(map[string]string{"nodefs.available": "10%"}, nil, map[string]string{"nodefs.available": "5%"})
	if err != nil || !part[0].met(Level{Available: 14, Capacity: 100}, true) || part[0].met(Level{Available: 14, Capacity: 100}, false) || part[0].met(Level{Available: 16, Capacity: 100}, true) {
		t.Errorf("%+v, %v", part, err)
	}
	got, err := Parse(map[string]string{"memory.available": "100Mi", "nodefs.available": "0%"}, nil, map[string]string{"memory.available": "50Mi"})
	if err != nil || len(got) != 1 || got[0].Value != 100*mi || got[0].Reclaim != 50*mi {
		t.Errorf("%+v, %v", got, err)
	}
}
