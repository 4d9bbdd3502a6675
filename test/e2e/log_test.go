package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
)

func TestLogStreamsAndTimes(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	begin := time.Now()
	ctr := pod.Container(t, probe, criclient.Shell("echo one; echo two >&2; echo; echo '  three  '; printf unfinished"))
	ctr.WaitExit(t)
	log := ctr.Log(t)
	if out := criclient.Lines(log, "stdout"); !slices.Equal(out, []string{"one", "", "  three  "}) && !slices.Equal(out, []string{"one", "", "  three  ", "unfinished"}) {
		t.Errorf("standard output in the log: %q", out)
	}
	if errs := criclient.Lines(log, "stderr"); !slices.Equal(errs, []string{"two"}) {
		t.Errorf("standard error in the log: %q", errs)
	}
	if !strings.Contains(ctr.Text(t), "unfinished") {
		t.Error("the text without a line feed at the end is lost")
	}
	for _, e := range log {
		if e.Time.Before(begin.Add(-time.Second)) || e.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("time %v of entry %q; the container ran at %v", e.Time, e.Text, begin)
		}
	}
}

func TestLogLongLines(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := pod.Container(t, probe, criclient.Run("/probe", "spam", "3", "100000"))
	ctr.WaitExit(t)
	partial := 0
	for _, e := range ctr.Log(t) {
		if e.Partial {
			partial++
		}
		if len(e.Text) > 64<<10 {
			t.Errorf("an entry of %d bytes", len(e.Text))
		}
	}
	if partial < 3 {
		t.Errorf("%d partial entries for three lines of 100000 bytes", partial)
	}
	lines := criclient.Lines(ctr.Log(t), "stdout")
	if len(lines) != 3 {
		t.Fatalf("%d lines; want 3", len(lines))
	}
	for i, line := range lines {
		if want := fmt.Sprintf("%09d ", i) + strings.Repeat("x", 99989); line != want {
			t.Errorf("line %d: %d bytes; want %d", i, len(line), len(want))
		}
	}
}

func TestLogOfQuickExitIsWhole(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	for range 5 {
		ctr := pod.Container(t, probe, criclient.Run("/probe", "spam", "2000", "50"))
		ctr.WaitExit(t)
		if n := len(criclient.Lines(ctr.Log(t), "stdout")); n != 2000 {
			t.Fatalf("the log has %d lines when the container is seen as exited; it printed 2000", n)
		}
	}
}

// sequence checks that lines of the spam command are all there, in order and whole. A line may be there twice, next
// to each other, as often as repeats allows.
func sequence(t testing.TB, lines []string, total, size, repeats int) {
	t.Helper()
	next, twice := 0, 0
	for _, line := range lines {
		var n int
		if _, err := fmt.Sscanf(line, "%d ", &n); err != nil || len(line) != size-1 {
			t.Fatalf("torn line after %d: %d bytes, %.40q", next, len(line), line)
		}
		switch {
		case n == next:
			next++
		case n < next && next-n <= repeats:
			twice++
			next = n + 1
		default:
			t.Fatalf("line %d after line %d", n, next-1)
		}
	}
	if next != total {
		t.Fatalf("the last line is %d; want %d", next-1, total-1)
	}
	if twice > repeats {
		t.Errorf("%d lines are there twice; at most %d may be", twice, repeats)
	}
}

// The kubelet rotates a log by renaming it and asking for a new one, while the container writes as fast as it can.
func TestLogRotationUnderLoad(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	const total, size = 400_000, 100
	ctr := pod.Container(t, probe, criclient.Shell(fmt.Sprintf("sleep 0.2; exec /probe spam %d %d", total, size)))
	var files []string
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ctr.Status(t).State == cri.ContainerState_CONTAINER_RUNNING; i++ {
		<-tick.C
		rotated := fmt.Sprintf("%s.%04d", ctr.LogPath(), i)
		if err := os.Rename(ctr.LogPath(), rotated); err != nil {
			t.Fatal(err)
		}
		files = append(files, rotated)
		_, err := node.Runtime.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: ctr.ID})
		if err != nil {
			// It ended meanwhile; then the old file is the log.
			criclient.Eventually(t, time.Second, "end of the container after "+err.Error(), func() bool {
				return ctr.Status(t).State == cri.ContainerState_CONTAINER_EXITED
			})
			break
		}
		if _, err := os.Stat(ctr.LogPath()); err != nil {
			t.Fatalf("after ReopenContainerLog: %v", err)
		}
	}
	var all []criclient.Entry
	for _, name := range append(files, ctr.LogPath()) {
		f, err := os.Open(name)
		if err != nil {
			if name == ctr.LogPath() && os.IsNotExist(err) {
				continue
			}
			t.Fatal(err)
		}
		entries, err := criclient.ParseLog(f)
		f.Close()
		if err != nil {
			t.Fatalf("%s: %v", filepath.Base(name), err)
		}
		all = append(all, entries...)
	}
	if len(files) < 3 {
		t.Errorf("only %d rotations while it wrote; the load was too small", len(files))
	}
	sequence(t, criclient.Lines(all, "stdout"), total, size, 0)
}

func TestReopenLogOfExited(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := pod.Container(t, probe, criclient.Shell("true"))
	ctr.WaitExit(t)
	if _, err := node.Runtime.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: ctr.ID}); err == nil {
		t.Error("the log of a container that has exited was reopened; the API says that it must fail")
	}
	_, err := node.Runtime.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: "0123456789"})
	wantCode(t, "log of no container", err, codes.NotFound)
}

func TestNoLogPath(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork, func(p *cri.PodSandboxConfig) { p.LogDirectory = "" })
	ctr := pod.Container(t, probe, criclient.Run("/probe", "spam", "10000", "100"))
	if st := ctr.WaitExit(t); st.ExitCode != 0 {
		t.Errorf("exit code %d of a container whose output nobody keeps; want 0", st.ExitCode)
	}
}
