package kubelet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/orlop/orlop/test/criclient"
)

// The benchmarks tell how fast a kubelet is and what it costs, the shim or with ORLOP_KUBELET=real the real one:
//
//	go test ./test/kubelet -run '^$' -bench . -benchtime 1x

// bench is a namespace for benchmarks.
func bench(b *testing.B) string {
	b.Helper()
	name := criclient.Unique("b")
	ns := &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := control.Client.CoreV1().Namespaces().Create(b.Context(), ns, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = control.Client.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	err := criclient.Wait(b.Context(), patience, func() bool {
		_, err := control.Client.CoreV1().ServiceAccounts(name).Get(b.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return name
}

// probed is a pod with an exec and an HTTP probe, as pods commonly have them.
func probed(name string) *v1.Pod {
	one := int64(1)
	page := v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}
	command := v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"true"}}}
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1.PodSpec{
			TerminationGracePeriodSeconds: &one,
			Containers: []v1.Container{{
				Name: "main", Image: image,
				Command:        []string{"sh", "-c", "trap exit TERM; mkdir -p /www; echo hi > /www/index.html; busybox httpd -p 8080 -h /www; sleep 100000 & wait"},
				ReadinessProbe: &v1.Probe{ProbeHandler: page, PeriodSeconds: 10},
				LivenessProbe:  &v1.Probe{ProbeHandler: command, PeriodSeconds: 10},
			}},
		},
	}
}

// plain is a pod that is ready as soon as it runs.
func plain(name string) *v1.Pod {
	p := probed(name)
	p.Spec.Containers[0].ReadinessProbe, p.Spec.Containers[0].LivenessProbe = nil, nil
	return p
}

// times are how long pods took, from their creation to Ready, and from their deletion to gone.
type times struct{ ready, gone []time.Duration }

// cycle creates count pods at once, waits until all are ready, deletes them, and waits until all are gone.
func cycle(b *testing.B, space string, count int, make func(string) *v1.Pod) times {
	b.Helper()
	pods := control.Client.CoreV1().Pods(space)
	w, err := pods.Watch(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Stop()
	var t times
	t.ready = each(b, count, w, func(name string) error {
		_, err := pods.Create(b.Context(), make(name), metav1.CreateOptions{})
		return err
	}, func(e watch.Event, p *v1.Pod) bool { return ready(p) })
	zero := metav1.DeleteOptions{}
	t.gone = each(b, count, w, func(name string) error { return pods.Delete(b.Context(), name, zero) },
		func(e watch.Event, p *v1.Pod) bool { return e.Type == watch.Deleted })
	return t
}

// each does something to all pods at once and measures for each how long it takes until a watch shows the effect.
func each(b *testing.B, count int, w watch.Interface, do func(name string) error, seen func(watch.Event, *v1.Pod) bool) []time.Duration {
	b.Helper()
	var mu sync.Mutex
	began, took := map[string]time.Time{}, map[string]time.Duration{}
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			name := "p" + strconv.Itoa(i)
			mu.Lock()
			began[name] = time.Now()
			mu.Unlock()
			if err := do(name); err != nil && !apierrors.IsNotFound(err) {
				b.Error(err)
			}
		})
	}
	limit := time.After(3 * time.Minute)
	for len(took) < count {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				b.Fatalf("watch ended after %d of %d pods", len(took), count)
			}
			if p, ok := e.Object.(*v1.Pod); ok && seen(e, p) && took[p.Name] == 0 {
				mu.Lock()
				took[p.Name] = time.Since(began[p.Name])
				mu.Unlock()
			}
		case <-limit:
			out, _ := exec.Command(control.Bin.Kubectl, "--kubeconfig", control.Kubeconfig("admin"), "get", "pods", "-A", "-o", "wide").CombinedOutput()
			b.Fatalf("%d of %d pods within 3 minutes\n%s", len(took), count, out)
		}
	}
	all.Wait()
	var out []time.Duration
	for _, d := range took {
		out = append(out, d)
	}
	return out
}

func report(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds(), "s/"+name+"-p50")
	b.ReportMetric(took[len(took)*99/100].Seconds(), "s/"+name+"-p99")
}

// BenchmarkOnePod creates and deletes 20 pods, one after the other.
func BenchmarkOnePod(b *testing.B) {
	for name, kind := range map[string]func(string) *v1.Pod{"plain": plain, "probed": probed} {
		b.Run(name, func(b *testing.B) {
			space := bench(b)
			cycle(b, space, 1, kind) // warm
			for b.Loop() {
				var all times
				for range 20 {
					t := cycle(b, space, 1, kind)
					all.ready, all.gone = append(all.ready, t.ready...), append(all.gone, t.gone...)
				}
				report(b, "ready", all.ready)
				report(b, "gone", all.gone)
			}
		})
	}
}

// BenchmarkThirtyPods creates 30 pods at once.
func BenchmarkThirtyPods(b *testing.B) {
	space := bench(b)
	for b.Loop() {
		t := cycle(b, space, 30, probed)
		report(b, "ready", t.ready)
		report(b, "gone", t.gone)
	}
}

// BenchmarkIdle measures memory and processor time over a minute, with no pods and with 50 that have an exec and an HTTP
// probe each.
func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		idle(b, 0)
		space := bench(b)
		pods := control.Client.CoreV1().Pods(space)
		w, err := pods.Watch(b.Context(), metav1.ListOptions{})
		if err != nil {
			b.Fatal(err)
		}
		each(b, 50, w, func(name string) error {
			_, err := pods.Create(b.Context(), probed(name), metav1.CreateOptions{})
			return err
		}, func(_ watch.Event, p *v1.Pod) bool { return ready(p) })
		w.Stop()
		idle(b, 50)
	}
}

func idle(b *testing.B, pods int) {
	b.Helper()
	time.Sleep(10 * time.Second) // until what starting caused is over
	pid := control.PID(logName)
	before := cpu(b, pid)
	time.Sleep(time.Minute)
	b.ReportMetric(cpu(b, pid)-before, fmt.Sprintf("cpu-s/min-%d-pods", pods))
	b.ReportMetric(pss(b, pid), fmt.Sprintf("MB-pss-%d-pods", pods))
}

// cpu is the processor time of a process in seconds, see proc_pid_stat(5).
func cpu(b *testing.B, pid int) float64 {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	ticks := 0.0
	for _, f := range fields[11:13] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return ticks / 100
}

// pss is a process's proportional share of memory in MB, see proc_pid_smaps(5).
func pss(b *testing.B, pid int) float64 {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			kilobytes, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kilobytes / 1024
		}
	}
	b.Fatal("no Pss in smaps_rollup")
	return 0
}
