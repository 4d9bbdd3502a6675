package stream

import (
	"context"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/kernel"
)

// Neither a descriptor nor a goroutine is left of streams that ended in any way.
func TestNothingIsLeft(t *testing.T) {
	t.Run("first", useEverything) // what the runtime and the libraries make once and keep
	self := kernel.Scope{Pids: []int{os.Getpid()}}
	before, err := kernel.Take(self)
	if err != nil {
		t.Fatal(err)
	}
	goroutines := runtime.NumGoroutine()
	for range 3 {
		t.Run("", useEverything) // a test of its own, which closes what belongs to it
	}
	eventually(t, "no descriptor is left", func() bool {
		after, err := kernel.Take(self)
		if err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(kernel.Compare(before, after), "+")
	})
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// useEverything serves each kind of stream once and closes.
func useEverything(t *testing.T) {
	m := &localMonitor{}
	end := m.startContainer(t, "read line; echo $line", true)
	s, err := New(Config{Address: "127.0.0.1:0"}, m, allRunning{}, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"true"}}); err != nil {
		t.Error(err)
	}
	for name, client := range clients {
		at := execURL(t, s, &cri.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true, Tty: true})
		ctx, cancel := context.WithCancel(t.Context())
		in, typing := io.Pipe()
		go typing.Write([]byte("line\n"))
		if err := client(t, at).StreamWithContext(ctx, remotecommand.StreamOptions{
			Stdin: in, Stdout: &firstWrite{then: cancel}, Tty: true,
		}); err == nil {
			t.Errorf("%s: cat has ended", name)
		}
		in.Close()
		cancel()
		at = execURL(t, s, &cri.ExecRequest{Cmd: []string{"/no/such/program"}, Stdin: true, Stdout: true, Stderr: true})
		if err := client(t, at).StreamWithContext(t.Context(), remotecommand.StreamOptions{
			Stdin: strings.NewReader("x"), Stdout: io.Discard, Stderr: io.Discard,
		}); err == nil {
			t.Errorf("%s: a missing program has run", name)
		}
	}
	at := attachURL(t, s, &cri.AttachRequest{Stdin: true, Stdout: true})
	if err := clients["spdy"](t, at).StreamWithContext(t.Context(), remotecommand.StreamOptions{
		Stdin: strings.NewReader("bye\n"), Stdout: io.Discard,
	}); err != nil {
		t.Error(err)
	}
	end()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
