// Package source finds the pods that shall run on this node: in a directory of manifests, at a URL, and at an API server.
package source

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Sink is told what the sources say. Its methods must not block.
type Sink interface {
	// Set tells of a pod that is new or was changed.
	Set(p *v1.Pod)
	// Delete tells that a source no longer has a pod.
	Delete(p *v1.Pod)
	// Ready tells that a source has been read once: what it has not told of, it does not have.
	Ready(source string)
}

// list turns the whole of what a source has, read again and again, into what changed.
type list struct {
	name  string // of the source
	sink  Sink
	known map[types.UID]*v1.Pod
	ready bool
}

func newList(name string, sink Sink) *list {
	return &list{name: name, sink: sink, known: map[types.UID]*v1.Pod{}}
}

// set takes all pods of the source. A static pod's UID is made of its content, so a changed one is another pod, and the
// old one goes first.
func (l *list) set(pods []*v1.Pod) {
	now := map[types.UID]*v1.Pod{}
	for _, p := range pods {
		now[p.UID] = p
	}
	for uid, p := range l.known {
		if now[uid] == nil {
			l.sink.Delete(p)
		}
	}
	for uid, p := range now {
		if l.known[uid] == nil {
			l.sink.Set(p)
		}
	}
	l.known = now
	if !l.ready {
		l.ready = true
		l.sink.Ready(l.name)
	}
}
