// Package shim runs the kubelet shim on a lone machine, without an API server, over any runtime, with all of its state below
// one directory.
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/process"
)

// NodeName is the name of the machine, which ends the names of its pods.
const NodeName = "lone"

// program is the shim's name among the processes.
const program = "kubelet"

// Options of a shim.
type Options struct {
	Dir      string // short, for the paths of sockets
	Socket   string // of the runtime
	Port     int    // of the kubelet API on loopback; the next one is of its health
	Systemd  bool   // who makes the cgroups
	Settings string // more lines of KubeletConfiguration
	Env      []string
}

// Shim is one that runs, or is between two runs.
type Shim struct {
	Options
	binary string
	group  *process.Group
}

// New prepares the directory. It builds what is missing of the binaries.
func New(o Options) (*Shim, error) {
	bins, err := daemon.Build()
	if err != nil {
		return nil, err
	}
	s := &Shim{Options: o, binary: bins.Kubelet}
	if s.group, err = process.New(o.Dir); err != nil {
		return nil, err
	}
	err = errors.Join(os.MkdirAll(s.Manifests(), 0o755), os.WriteFile(s.configFile(), []byte(s.config()), 0o644))
	if err == nil && !s.Systemd {
		err = kernel.MakeCgroup(s.Cgroup())
	}
	return s, err
}

// Manifests is the directory that the shim reads.
func (s *Shim) Manifests() string { return filepath.Join(s.Dir, "manifests") }

// Root is the directory of the shim's files.
func (s *Shim) Root() string { return filepath.Join(s.Dir, "root") }

// Logs is the directory of the pods' logs.
func (s *Shim) Logs() string { return filepath.Join(s.Dir, "pods") }

func (s *Shim) configFile() string { return filepath.Join(s.Dir, "config.yaml") }

// Cgroup is what all pods are below.
func (s *Shim) Cgroup() string {
	if s.Systemd {
		return "/kubepods.slice"
	}
	return "/orlop_test" + strings.ReplaceAll(s.Dir, "/", "_")
}

func (s *Shim) config() string {
	driver, root := "cgroupfs", s.Cgroup()
	if s.Systemd {
		driver, root = "systemd", "/"
	}
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
port: %d
healthzPort: %d
containerRuntimeEndpoint: unix://%s
cgroupDriver: %s
cgroupRoot: %s
failSwapOn: false
serializeImagePulls: false
staticPodPath: %s
podLogsDir: %s
imageGCHighThresholdPercent: 100
%s`, s.Port, s.Port+1, s.Socket, driver, root, s.Manifests(), s.Logs(), s.Settings)
}

// Start starts the shim and waits until it serves.
func (s *Shim) Start(ctx context.Context) error {
	err := s.group.Run(program, s.Env, s.binary, "--config="+s.configFile(), "--root-dir="+s.Root(), "--hostname-override="+NodeName,
		"--node-ip=127.0.0.1", "--log-level=debug")
	if err != nil {
		return err
	}
	var last error
	err = criclient.Wait(ctx, 30*time.Second, func() bool {
		_, last = s.Pods()
		return last == nil
	})
	if err != nil {
		return fmt.Errorf("kubelet: %w: %w; the end of its log:\n%s", err, last, s.LogTail())
	}
	return nil
}

// Kill ends the shim without warning.
func (s *Shim) Kill() error { return s.group.Kill(program) }

// End asks the shim to end, which leaves pods as they are.
func (s *Shim) End() error { return s.group.End(program) }

// PID is 0 between two runs.
func (s *Shim) PID() int { return s.group.PID(program) }

// Log is all that the shim has written.
func (s *Shim) Log() string {
	data, err := os.ReadFile(s.group.Log(program))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// LogTail is the end of that.
func (s *Shim) LogTail() string { return s.group.Tail(program, 8000) }

// API is how clients reach the kubelet API.
func (s *Shim) API() *rest.Config {
	return &rest.Config{Host: fmt.Sprintf("http://127.0.0.1:%d", s.Port)}
}

// Pods are those that the shim has, with their statuses.
func (s *Shim) Pods() ([]v1.Pod, error) {
	resp, err := http.Get(s.API().Host + "/pods")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/pods: %s", resp.Status)
	}
	var list v1.PodList
	err = json.NewDecoder(resp.Body).Decode(&list)
	return list.Items, err
}

// Scope is all that the shim and its pods could leave behind.
func (s *Shim) Scope() kernel.Scope {
	return kernel.Scope{
		Dirs: []string{s.Dir}, Cgroups: []string{s.Cgroup()},
		Files: []string{s.Root(), s.Logs(), s.Manifests()}, Links: []string{"/var/log/containers"},
	}
}

// Close ends the shim and removes its cgroups. Its pods must be gone.
func (s *Shim) Close() error {
	err := s.group.Stop()
	if !s.Systemd {
		err = errors.Join(err, kernel.RemoveCgroup(s.Cgroup()))
	}
	return errors.Join(err, kernel.UnmountBelow(s.Dir))
}
