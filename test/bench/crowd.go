package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crowd measures what many idle pods cost.
func (b *bench) crowd(ctx context.Context) (err error) {
	before := b.memory()
	var pods []string
	defer func() {
		for _, pod := range pods {
			_, rerr := b.Runtime.RemovePodSandbox(context.WithoutCancel(ctx), &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			if err == nil {
				err = rerr
			}
		}
	}()
	for range b.pods {
		pod, err := b.runIdle(ctx)
		if pod != "" {
			pods = append(pods, pod)
		}
		if err != nil {
			return err
		}
	}
	if err := b.lists(ctx); err != nil {
		return err
	}
	began, used := time.Now(), b.processorTime()
	select {
	case <-time.After(b.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	b.report.IdlePercent = 100 * (b.processorTime() - used).Seconds() / time.Since(began).Seconds()
	b.report.Before, b.report.With, b.report.Pods = before, b.memory(), b.pods
	return nil
}

func (b *bench) runIdle(ctx context.Context) (pod string, err error) {
	p := b.newPod(cri.NamespaceMode_NODE)
	made, err := b.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p})
	if err != nil {
		return "", err
	}
	created, err := b.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: made.PodSandboxId, SandboxConfig: p, Config: b.container("exec sleep 100000"),
	})
	if err == nil {
		_, err = b.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId})
	}
	return made.PodSandboxId, err
}

func (b *bench) lists(ctx context.Context) error {
	calls := newSeries(fmt.Sprintf("%d pods", b.pods))
	for range 4 * b.runs {
		began := time.Now()
		if _, err := b.Runtime.ListContainers(ctx, &cri.ListContainersRequest{}); err != nil {
			return err
		}
		calls.add("ListContainers", began)
		began = time.Now()
		if _, err := b.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); err != nil {
			return err
		}
		calls.add("ListPodSandbox", began)
		began = time.Now()
		if _, err := b.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{}); err != nil {
			return err
		}
		calls.add("ListContainerStats", began)
	}
	b.report.Calls = append(b.report.Calls, calls.rows()...)
	return nil
}

// memory of the runtime's own processes, in kB.
type memory struct {
	Processes int     `json:"processes"`
	PSS       float64 `json:"pss_kb"`
	Anonymous float64 `json:"anonymous_kb"`
}

func (b *bench) memory() (m memory) {
	for _, pid := range b.pids() {
		data, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
		if err != nil {
			continue
		}
		m.Processes++
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			kb, _ := strconv.ParseFloat(f[1], 64)
			switch f[0] {
			case "Pss:":
				m.PSS += kb
			case "Anonymous:":
				m.Anonymous += kb
			}
		}
	}
	return m
}

// pids are the processes whose program has one of the names.
func (b *bench) pids() []string {
	var out []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err == nil && slices.Contains(b.processes, strings.TrimSuffix(filepath.Base(exe), " (deleted)")) {
			out = append(out, e.Name())
		}
	}
	return out
}

// processorTime is that of the runtime's own processes, to the kernel's tick of 10 ms (proc_pid_stat(5)).
func (b *bench) processorTime() (sum time.Duration) {
	const tick = 10 * time.Millisecond
	for _, pid := range b.pids() {
		data, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
		if err != nil {
			continue
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		for _, field := range []int{11, 12} { // utime, stime
			n, _ := strconv.Atoi(f[field])
			sum += time.Duration(n) * tick
		}
	}
	return sum
}
