package server

import (
	"fmt"
	"testing"
)

// BenchmarkPodLife is what the daemon itself adds to a pod's life: records on disk and their steps. All else is of
// memory here.
func BenchmarkPodLife(b *testing.B) {
	w := newWorld(b)
	s := w.server()
	i := 0
	for b.Loop() {
		i++
		pod, ctr := w.running(s, fmt.Sprint(i))
		_ = ctr
		w.removePod(s, pod)
	}
}

func BenchmarkRunPodSandbox(b *testing.B) {
	w := newWorld(b)
	s := w.server()
	i := 0
	for b.Loop() {
		i++
		w.runPod(s, fmt.Sprint(i))
	}
}
