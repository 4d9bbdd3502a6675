package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/store"
)

func (w *world) running(s *Server, name string) (pod, ctr string) {
	w.t.Helper()
	pod = w.runPod(s, name)
	ctr = w.create(s, pod, "c")
	w.start(s, ctr)
	return pod, ctr
}

func stopFor(t *testing.T, s *Server, id string, seconds int64) {
	t.Helper()
	if _, err := s.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: id, Timeout: seconds}); err != nil {
		t.Error(err)
	}
}

func TestStopSendsTheSignalThenKills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server()
		_, ctr := w.running(s, "web")
		w.deaf[ctr] = true
		began := time.Now()
		stopFor(t, s, ctr, 30)
		if took := time.Since(began); took < 30*time.Second || took > 31*time.Second {
			t.Errorf("killed after %v", took)
		}
		if want := []int{int(unix.SIGINT), int(unix.SIGKILL)}; !slices.Equal(w.sent, want) {
			t.Errorf("sent %v, want %v", w.sent, want)
		}
		if st := w.status(s, ctr); st.ExitCode != 137 || st.Reason != "Error" {
			t.Errorf("status is %v", st)
		}
		stopFor(t, s, ctr, 30) // again, and unknown
		stopFor(t, s, "unknown", 1)
		w.stop(s)
	})
}

func TestStopReturnsAsSoonAsTheProcessEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server()
		_, ctr := w.running(s, "web")
		began := time.Now()
		stopFor(t, s, ctr, 30)
		if took := time.Since(began); took != 0 { // nothing on the way waits for a clock
			t.Errorf("took %v", took)
		}
		w.stop(s)
	})
}

func TestASecondStopMayOnlyMakeItSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server()
		_, ctr := w.running(s, "web")
		w.deaf[ctr] = true
		var all sync.WaitGroup
		began := time.Now()
		for _, seconds := range []int64{600, 5, 3600} {
			all.Go(func() { stopFor(t, s, ctr, seconds) })
		}
		all.Wait()
		if took := time.Since(began); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("killed after %v, want 5s", took)
		}
		w.stop(s)
	})
}

func TestAStuckContainerKeepsNobodyElseWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server()
		_, ctr := w.running(s, "stuck")
		w.stuck[ctr], w.deaf[ctr] = true, true
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := s.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: ctr})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "sent SIGKILL and its process has not ended") {
			t.Errorf("error is %v", err)
		}
		began := time.Now()
		if _, err := s.ListContainers(t.Context(), nil); err != nil {
			t.Error(err)
		}
		w.status(s, ctr)
		pod, _ := w.running(s, "other")
		w.removePod(s, pod)
		if took := time.Since(began); took != 0 {
			t.Errorf("others waited %v", took)
		}
		w.mu.Lock()
		w.stuck[ctr] = false
		w.mu.Unlock()
		w.ended(s, ctr) // SIGKILL is sent again
		w.stop(s)
	})
}

func TestWhatCanNotBeUndoneIsRetriedAndShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server()
		pod, _ := w.running(s, "web")
		w.fail("network.del before", errFault)
		w.fail("rootfs.delete before", errFault)
		w.removePod(s, pod) // its processes are gone: that is what the kubelet needs to know
		if list, _ := s.ListPodSandbox(t.Context(), nil); len(list.Items) > 0 {
			t.Error("a removed pod is listed")
		}
		if got := pending(t, s); len(got) != 2 || !strings.Contains(got[0].Err+got[1].Err, "injected fault") {
			t.Errorf("pending: %+v", got)
		}
		if again := w.runPod(s, "web"); again == pod { // its name is free
			t.Error("the removed pod was joined")
		} else {
			w.fail("network.del before", nil)
			w.removePod(s, again)
		}
		w.stop(s)
		s = w.server() // and not forgotten by a restart
		synctest.Wait()
		if got := pending(t, s); len(got) == 0 {
			t.Error("nothing is pending after a restart")
		}
		w.heal()
		time.Sleep(5 * time.Minute) // of the bubble's clock
		synctest.Wait()
		w.wantNothingLeft()
		if got := pending(t, s); len(got) > 0 {
			t.Errorf("still pending: %+v", got)
		}
		w.stop(s)
	})
}

func TestEachBrokenUndoIsRetriedUntilNothingIsLeft(t *testing.T) {
	for _, op := range []string{
		"monitor.delete", "network.del", "files.remove", "ns.delete", "cgroup.remove", "rootfs.delete", "volume.unmount",
	} {
		for _, when := range []string{" before", " after"} {
			t.Run(op+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					s := w.server()
					pod, _ := w.running(s, "web")
					w.fail(op+when, errFault)
					w.removePod(s, pod)
					time.Sleep(3 * time.Minute) // of the bubble's clock
					synctest.Wait()
					if got := pending(t, s); len(got) == 0 || got[0].Tries < 3 {
						t.Errorf("pending: %+v", got)
					}
					w.heal()
					time.Sleep(3 * time.Minute)
					synctest.Wait()
					w.wantNothingLeft()
					if got := pending(t, s); len(got) > 0 {
						t.Errorf("still pending: %+v", got)
					}
					w.stop(s)
				})
			})
		}
	}
}

func pending(t *testing.T, s *Server) (items []pendingItem) {
	t.Helper()
	resp, err := s.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(resp.Info["pending"]), &items); err != nil {
		t.Fatal(err)
	}
	return items
}

func TestARestartFindsThingsAsTheyAre(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod, lives := w.running(s, "web")
	dies, oom, waits := w.create(s, pod, "dies"), w.create(s, pod, "oom"), w.create(s, pod, "waits")
	w.start(s, dies)
	w.start(s, oom)
	w.stop(s)
	w.end(dies, conmon.Exit{Code: 7})
	w.end(oom, conmon.Exit{Code: 137, Signal: 9, OOMKilled: true})
	s = w.server()
	if got := w.podState(s, pod); got != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("pod is %v", got)
	}
	for id, want := range map[string]string{
		lives: "CONTAINER_RUNNING 0 ", dies: "CONTAINER_EXITED 7 Error", oom: "CONTAINER_EXITED 137 OOMKilled", waits: "CONTAINER_CREATED 0 ",
	} {
		st := w.status(s, id)
		if got := fmt.Sprintf("%v %d %s", st.State, st.ExitCode, st.Reason); got != want {
			t.Errorf("container is %s, want %s", got, want)
		}
	}
	w.start(s, waits)
	joiner := createRequest(pod, "sees all") // the init was found again
	if _, err := s.CreateContainer(t.Context(), joiner); err != nil {
		t.Fatal(err)
	}
	if p, _ := s.pods.get(store.PodID(pod)); p.initPid.Load() == 0 {
		t.Error("the init of the pod is forgotten")
	}
	stopFor(t, s, lives, 5)
	w.removePod(s, pod)
	w.wantNothingLeft()
}

func TestAStartThatWasNotRecordedIsFoundByComparing(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	ctr := w.create(s, pod, "c")
	w.stop(s)
	if _, err := (fakeMonitor{w}).Start(t.Context(), ctr); err != nil {
		t.Fatal(err)
	}
	s = w.server()
	if st := w.status(s, ctr); st.State != cri.ContainerState_CONTAINER_RUNNING || st.StartedAt == 0 {
		t.Errorf("container is %v", st)
	}
}

func TestAfterARebootNothingIsMissingAndNothingRuns(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod, ctr := w.running(s, "web")
	created := w.create(s, pod, "created")
	w.stop(s)
	w.reboot()
	s = w.server()
	if got := w.podState(s, pod); got != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pod is %v", got)
	}
	for _, id := range []string{ctr, created} {
		if st := w.status(s, id); st.State != cri.ContainerState_CONTAINER_EXITED || st.ExitCode != 255 || st.Reason != "ContainerStatusUnknown" {
			t.Errorf("container is %v", st)
		}
	}
	w.removePod(s, pod)
	w.wantNothingLeft() // the network's addresses, too
}

// The boot's ID on record says that its effects are on record.
func TestABootIsNotedWhenItsEffectsAre(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	noted, err := s.records.Meta(bootKey)
	if err != nil || noted == "" {
		t.Fatalf("noted %q, %v", noted, err)
	}
	if err := s.records.PutMeta(bootKey, "before"); err != nil {
		t.Fatal(err)
	}
	w.stop(s)
	w.fail("rootfs.list before", errFault)
	if _, err := w.tryServer(); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	records, err := store.Open(filepath.Join(w.root, "records.db"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := records.Meta(bootKey); got != "before" || err != nil {
		t.Errorf("noted %q, %v by a daemon that did not finish", got, err)
	}
	if err := records.Close(); err != nil {
		t.Fatal(err)
	}
	w.heal()
	if got, err := w.server().records.Meta(bootKey); got != noted || err != nil {
		t.Errorf("noted %q, %v, want %s", got, err, noted)
	}
}

func TestWhatNothingOwnsIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server()
		pod, ctr := w.running(s, "web")
		for _, err := range []error{s.records.DeletePod(store.PodID(pod)), s.records.DeleteContainer(store.ContainerID(ctr))} {
			if err != nil {
				t.Fatal(err)
			}
		}
		w.stop(s)
		w.fail("network.del before", errFault) // also what does not go at once
		s = w.server()
		synctest.Wait()
		w.heal()
		time.Sleep(time.Minute)
		synctest.Wait()
		left := slices.DeleteFunc(w.left(), func(thing string) bool {
			return strings.HasPrefix(thing, "cgroup/") || strings.HasPrefix(thing, "volume/") // known by their records only
		})
		if len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		w.stop(s)
	})
}

func TestAPodWhoseInitEndsIsNotReady(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod, ctr := w.running(s, "web")
	w.end(pod, conmon.Exit{Code: 137})
	w.ended(s, ctr)
	p, _ := s.pods.get(store.PodID(pod))
	if err := s.stopPod(p).wait(t.Context(), &p.progress); err != nil {
		t.Fatal(err)
	}
	if got := w.podState(s, pod); got != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pod is %v", got)
	}
}

func TestAStartThatFailsEndsTheContainer(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	ctr := w.create(s, pod, "c")
	w.fail("monitor.start before", errFault)
	if _, err := s.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: ctr}); !errors.Is(err, errFault) {
		t.Errorf("error is %v", err)
	}
	if st := w.ended(s, ctr); st.ExitCode != 128 || st.Reason != "StartError" || !strings.Contains(st.Message, "injected") {
		t.Errorf("status is %v", st)
	}
	w.heal()
	if _, err := s.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: ctr}); !errors.Is(err, store.ErrState) {
		t.Errorf("start of an exited container: %v", err)
	}
}

func TestACallThatTheWorkerDiedUnderIsRepeated(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	ctr := w.create(s, pod, "c")
	w.fail("monitor.start after", conmon.ErrUnavailable)
	if _, err := s.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: ctr}); !errors.Is(err, conmon.ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
	if n := w.count("monitor.start"); n != 6 { // the init's, and five of these
		t.Errorf("%d starts", n)
	}
	w.heal()
	w.resync() // it did start
	deadline := time.Now().Add(10 * time.Second)
	for w.status(s, ctr).State != cri.ContainerState_CONTAINER_RUNNING {
		if time.Now().After(deadline) {
			t.Fatalf("status is %v", w.status(s, ctr))
		}
		time.Sleep(time.Millisecond)
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	stopReading := make(chan struct{})
	var readers, writers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stopReading:
				return
			default:
			}
			list, _ := s.ListContainers(t.Context(), nil)
			for _, c := range list.Containers {
				_, _ = s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: c.Id}) // may be gone
			}
			_, _ = s.ListPodSandbox(t.Context(), nil)
		}
	})
	for i := range 20 {
		writers.Go(func() {
			pod, ctr := w.running(s, fmt.Sprint("pod", i))
			if i%2 == 0 {
				stopFor(t, s, ctr, 1)
			} else {
				w.end(ctr, conmon.Exit{})
			}
			if i%3 == 0 {
				go func() { // two removals meet
					_, _ = s.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: ctr})
				}()
			}
			w.removePod(s, pod)
		})
	}
	writers.Wait()
	close(stopReading)
	readers.Wait()
	w.wantNothingLeft()
}
