package server

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/label"
	"github.com/orlop/orlop/server/store"
)

// bootIDPath changes with every boot, see random(4).
const bootIDPath = "/proc/sys/kernel/random/boot_id"

const bootKey = "boot"

// takeOver compares what is on record with what there is: it adopts what lives, records what has died, goes on with
// what was being undone, and removes what nothing owns. What takes long goes on after it has returned.
func (s *Server) takeOver(ctx context.Context) error {
	loaded, err := s.records.Load()
	if err != nil {
		return err
	}
	for _, bad := range loaded.Unreadable {
		s.log.Error("record is unreadable and put aside", "err", bad)
	}
	if s.monitor, err = s.Connect(ctx, s.onExit, s.onResync); err != nil {
		return err
	}
	list, err := s.monitor.List(ctx)
	if err != nil {
		return err
	}
	known := byID(list)
	boot, booted, err := s.boot()
	if err != nil {
		return err
	}
	for _, rec := range loaded.Pods {
		s.adoptPod(rec)
	}
	for _, rec := range loaded.Containers {
		s.adoptContainer(rec)
	}
	for _, p := range s.pods.all() {
		if err := s.checkPod(p, known, booted); err != nil {
			return err
		}
	}
	for _, c := range s.containers.all() {
		if err := s.checkContainer(c, known); err != nil {
			return err
		}
	}
	if err := s.removeOrphans(list); err != nil {
		return err
	}
	// Last: whoever ends before has the next one find out again what the boot has ended.
	if err := s.records.PutMeta(bootKey, boot); err != nil {
		return err
	}
	close(s.taken)
	s.goOn()
	return nil
}

func byID(list []conmon.Container) map[string]conmon.Container {
	m := make(map[string]conmon.Container, len(list))
	for _, c := range list {
		m[c.ID] = c
	}
	return m
}

// boot is the ID of this boot, and whether it began after the records were last in use.
func (s *Server) boot() (id string, booted bool, err error) {
	b, err := os.ReadFile(bootIDPath)
	if err != nil {
		return "", false, err
	}
	id = strings.TrimSpace(string(b))
	last, err := s.records.Meta(bootKey)
	return id, last != id, err
}

func (s *Server) adoptPod(rec *store.Pod) {
	want, err := planPod(rec.ID, rec.Config)
	if err != nil { // a version that allowed more wrote it: what can be read of it is enough to undo it
		s.log.Warn("config on record is not valid", "pod", rec.ID, "err", err)
	}
	label.Reserve(rec.ProcessLabel)
	p := s.newPod(rec, want, landed())
	if !p.visible() {
		s.pods.add(p.id, p)
		return
	}
	if other, ok := s.pods.claim(p.id, p.name, p); !ok {
		s.log.Warn("two pods have one name", "pod", p.id, "other", other.id)
		s.pods.add(p.id, p)
	}
}

func (s *Server) adoptContainer(rec *store.Container) {
	p, _ := s.pods.get(rec.Pod)
	c := s.newContainer(rec, p, landed())
	if !c.visible() {
		s.containers.add(c.id, c)
		return
	}
	if _, ok := s.containers.claim(c.id, c.name, c); !ok {
		s.containers.add(c.id, c)
	}
}

// checkPod finds out whether a pod that was ready still is. One that is not is stopped, by goOn.
func (s *Server) checkPod(p *pod, known map[string]conmon.Container, booted bool) error {
	if p.state() != store.PodReady {
		return nil
	}
	if booted || !s.podLives(p, known) {
		s.log.Warn("pod is gone, as after a reboot", "pod", p.id, "name", podTitle(p.rec.Load()))
		return p.move(store.PodStopping, nil)
	}
	p.initPid.Store(int32(known[string(p.id)].Pid))
	return nil
}

func (s *Server) podLives(p *pod, known map[string]conmon.Container) bool {
	if _, err := os.Stat(p.dir); err != nil {
		return false
	}
	for _, path := range p.namespacePaths() {
		if !s.Namespaces.Alive(path) {
			return false
		}
	}
	return !p.want.sharedPID || known[string(p.id)].Pid != 0
}

// checkContainer brings a record up to what the monitor knows. A container that the monitor does not know is gone:
// nobody else could have kept it.
func (s *Server) checkContainer(c *container, known map[string]conmon.Container) error {
	if !c.alive() {
		return nil
	}
	m, ok := known[string(c.id)]
	if !ok {
		return s.setExited(c, exitOf(conmon.UnknownExit()))
	}
	if !m.StartedAt.IsZero() && c.rec.Load().StartedAt.IsZero() {
		if err := c.setRunning(m.StartedAt); err != nil {
			return err
		}
	}
	if m.Exit != nil {
		return s.setExited(c, exitOf(*m.Exit))
	}
	return nil
}

// goOn takes up what was under way when the last daemon ended. A create that was cut short is undone: its caller has
// not got an answer, and asks again.
func (s *Server) goOn() {
	for _, p := range s.pods.all() {
		s.goOnWithPod(p)
	}
	for _, c := range s.containers.all() {
		if !c.visible() || c.pod == nil {
			s.removeContainer(c)
		}
	}
}

// onResync is told by the monitor's client after each connection. Exits of the time between are found by comparing.
func (s *Server) onResync() {
	s.begin(func(ctx context.Context) {
		select {
		case <-s.taken:
		case <-ctx.Done():
			return
		}
		if err := s.lookAgain(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("containers are not compared with the monitor", "err", err)
			s.later(firstPause, s.onResync)
		}
	})
}

// lookAgain compares all that may live with what the monitor knows. It takes its list first: what is created after
// that could be missing in the monitor's.
func (s *Server) lookAgain(ctx context.Context) error {
	var living []*container
	for _, c := range s.containers.all() {
		if c.alive() {
			living = append(living, c)
		}
	}
	var inits []*pod
	for _, p := range s.pods.all() {
		if p.state() == store.PodReady && p.initPid.Load() != 0 {
			inits = append(inits, p)
		}
	}
	list, err := retry(ctx, func() ([]conmon.Container, error) { return s.monitor.List(ctx) })
	if err != nil {
		return err
	}
	known := byID(list)
	for _, c := range living {
		if err := s.checkContainer(c, known); err != nil {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
	}
	for _, p := range inits {
		if m := known[string(p.id)]; m.Pid == 0 {
			s.initEnded(p, conmon.UnknownExit())
		}
	}
	return nil
}
