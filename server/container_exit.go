package server

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/store"
)

// onExit is told by the monitor that a container, or the init of a pod, has ended. It must not block.
func (s *Server) onExit(e conmon.Event) {
	s.begin(func(ctx context.Context) {
		select {
		case <-s.taken: // before that, what it means may not have been read yet
		case <-ctx.Done():
			return
		}
		if c, ok := s.containers.get(store.ContainerID(e.ID)); ok {
			s.endRecorded(ctx, c, e.Exit)
		} else if p, ok := s.pods.get(store.PodID(e.ID)); ok {
			s.initEnded(p, e.Exit)
		}
	})
}

// endRecorded puts a container's end on record. If the disk does not take it, the monitor still has it, and is asked
// again later.
func (s *Server) endRecorded(ctx context.Context, c *container, e conmon.Exit) {
	select {
	case <-c.made.done: // it may have died before its create was on record
	case <-ctx.Done():
		return
	}
	if err := c.turn.take(ctx); err != nil { // a start that is under way is on record and told of first
		return
	}
	err := s.setExited(c, exitOf(e))
	c.turn.give()
	if err != nil {
		s.log.Error("exit is not on record", "container", c.id, "code", e.Code, "err", err)
		s.later(firstPause, func() { s.endRecorded(s.ctx, c, e) })
	}
}

// setExited is the only way into the state exited. The first exit counts.
func (s *Server) setExited(c *container, exit *store.Exit) error {
	c.mu.Lock()
	if !c.alive() {
		c.mu.Unlock()
		return nil
	}
	err := c.moveLocked(store.ContainerExited, func(rec *store.Container) { rec.Exit = exit })
	c.mu.Unlock()
	if err != nil {
		return err
	}
	s.log.Info("container exited", "container", c.id, "code", exit.Code, "reason", exit.Reason)
	s.tell(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, c)
	return nil
}

// exitOf says what the monitor saw in the words that the kubelet and kubectl show.
func exitOf(e conmon.Exit) *store.Exit {
	exit := &store.Exit{Code: e.Code, FinishedAt: e.FinishedAt}
	switch {
	case e.Unknown:
		exit.Reason = "ContainerStatusUnknown"
		exit.Message = "The container's process is gone and nobody saw it end, as after a reboot"
	case e.OOMKilled:
		exit.Reason, exit.Message = "OOMKilled", "A process of the container was killed for lack of memory"
	case e.Code == 0:
		exit.Reason = "Completed"
	default:
		exit.Reason = "Error"
		if e.Signal != 0 {
			exit.Message = fmt.Sprintf("Killed by %s", signalName(e.Signal))
		}
	}
	return exit
}

// initEnded stops a pod whose shared PID namespace is gone: all processes in it have been killed by the kernel.
func (s *Server) initEnded(p *pod, e conmon.Exit) {
	<-p.made.done
	if p.state() == store.PodReady && p.initPid.Swap(0) != 0 {
		s.log.Warn("init of the pod ended", "pod", p.id, "code", e.Code)
		s.stopPod(p)
	}
}
