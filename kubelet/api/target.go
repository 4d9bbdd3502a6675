package api

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

// loggedContainer is the ID of the container whose log is meant, by what the pod's status says: the one that runs, or
// else the one that ran last; with previous the one before. Errors are worded as kubelet's: people and tools know them.
func loggedContainer(p *v1.Pod, container string, previous bool) (string, error) {
	cs := pod.ContainerStatus(&p.Status, container)
	if cs == nil {
		return "", fmt.Errorf("container %q in pod %q is not available", container, p.Name)
	}
	last := ""
	if t := cs.LastTerminationState.Terminated; t != nil {
		last = t.ContainerID
	}
	id, problem := "", ""
	switch state := cs.State; {
	case previous:
		id = last
		if id == "" {
			return "", fmt.Errorf("previous terminated container %q in pod %q not found", container, p.Name)
		}
	case state.Running != nil:
		id = cs.ContainerID
	case state.Terminated != nil:
		id, problem = state.Terminated.ContainerID, "terminated"
		if id == "" { // the one after it could not be started
			id = last
		}
	case last != "":
		id = last
	default:
		problem = "waiting to start: " + waiting(state.Waiting)
	}
	if id == "" {
		return "", fmt.Errorf("container %q in pod %q is %s", container, p.Name, problem)
	}
	return bareID(id), nil
}

func waiting(w *v1.ContainerStateWaiting) string {
	switch {
	case w == nil:
		return "no logs yet"
	case w.Reason == "ErrImagePull":
		return "image can't be pulled"
	case w.Reason == "ImagePullBackOff":
		return "trying and failing to pull image"
	}
	return w.Reason
}

// ended is true if the container will write no more.
func ended(p *v1.Pod, container, id string) bool {
	if p == nil {
		return true
	}
	cs := pod.ContainerStatus(&p.Status, container)
	return cs == nil || cs.State.Running == nil || bareID(cs.ContainerID) != id
}

// runningContainer is the ID of the container that runs under a name; "" if none does.
func runningContainer(p *v1.Pod, container string) string {
	if cs := pod.ContainerStatus(&p.Status, container); cs != nil && cs.State.Running != nil {
		return bareID(cs.ContainerID)
	}
	return ""
}

// bareID is "ID" of "RUNTIME://ID".
func bareID(id string) string {
	if _, bare, ok := strings.Cut(id, "://"); ok {
		return bare
	}
	return id
}
