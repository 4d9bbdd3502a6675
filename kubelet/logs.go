package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/spec"
)

// linksDir has a link to each container's log, in whose name a collector of logs finds the pod. Kubelet makes them too.
const linksDir = "/var/log/containers"

func (s *starting) linkLog(id string) {
	name := filepath.Join(linksDir, fmt.Sprintf("%s_%s_%s-%s.log", s.pod.Name, s.pod.Namespace, s.Container.Name, id))
	target := filepath.Join(s.config.LogDirectory, spec.LogFile(s.Container.Name, s.Attempt))
	if err := errors.Join(os.MkdirAll(linksDir, 0o755), os.Symlink(target, name)); err != nil {
		s.log.Warn("log not linked", "file", name, "err", err)
	}
}

func (w *worker) unlinkLog(c *runtime.Container) {
	name := fmt.Sprintf("%s_%s_%s-%s.log", c.Labels[runtime.PodNameLabel], c.Labels[runtime.PodNamespaceLabel], c.GetMetadata().GetName(), c.Id)
	if err := os.Remove(filepath.Join(linksDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("link to log not removed", "file", name, "err", err)
	}
}

// removeLog removes an old container's log, with what was rotated away from it.
func (w *worker) removeLog(c *runtime.Container) {
	w.unlinkLog(c)
	files, err := filepath.Glob(c.LogPath + "*")
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("log not removed", "file", c.LogPath, "err", err)
	}
}

// removeLogs removes the directory of a pod's logs, and the links to what was in it: the runtime may have forgotten the
// containers that they are named after.
func removeLogs(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	links, err := os.ReadDir(linksDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove links to logs: %w", err)
	}
	for _, l := range links {
		name := filepath.Join(linksDir, l.Name())
		target, err := os.Readlink(name)
		if err != nil || !strings.HasPrefix(target, dir+"/") {
			continue // not a link, or another pod's
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove link to log: %w", err)
		}
	}
	return nil
}

// logDirs are the directories of pods' logs that are there, by pod. Other names than kubelet's are others' directories.
func (k *Kubelet) logDirs() (map[types.UID]string, error) {
	entries, err := os.ReadDir(k.cfg.Spec.LogsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("logs: %w", err)
	}
	dirs := map[types.UID]string{}
	for _, e := range entries {
		if parts := strings.Split(e.Name(), "_"); len(parts) == 3 && e.IsDir() {
			dirs[types.UID(parts[2])] = filepath.Join(k.cfg.Spec.LogsDir, e.Name())
		}
	}
	return dirs, nil
}
