package stream

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/store"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) {
	LogLibrary(slog.New(slog.DiscardHandler)) // the clients log there, too
	os.Exit(kernel.Main(m))
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestExecSync(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	for _, tt := range []struct {
		name, script string
		code         int32
		out, err     string
	}{
		{"both outputs", "echo to out; echo to err >&2", 0, "to out\n", "to err\n"},
		{"exit code", "exit 7", 7, "", ""},
		{"no input", "cat; echo end", 0, "end\n", ""},
		{"binary", `printf 'a\000b\377'`, 0, "a\x00b\xff", ""},
		// What the process wrote is all there, what a grandchild may still write is not waited for.
		{"grandchild holds the pipes", "echo mine; sleep 1000 & echo $! >&2", 0, "mine\n", "*"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			got, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"sh", "-c", tt.script}})
			if err != nil {
				t.Fatal(err)
			}
			if got.ExitCode != tt.code || string(got.Stdout) != tt.out || tt.err != "*" && string(got.Stderr) != tt.err {
				t.Errorf("%d, %q, %q", got.ExitCode, got.Stdout, got.Stderr)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			if tt.err == "*" {
				killGroupOf(t, strings.TrimSpace(string(got.Stderr)))
			}
		})
	}
}

func TestExecSyncTimeout(t *testing.T) {
	m := &localMonitor{}
	s := newServer(t, m, allRunning{})
	_, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"sleep", "1000"}, Timeout: 1})
	if !errors.Is(err, conmon.ErrTimeout) || !strings.Contains(err.Error(), "killed after 1s") {
		t.Errorf("%v", err)
	}
	if n := m.execs(); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

// CRI: beyond 16 MB the output is discarded and the command goes on with no error.
func TestExecSyncBoundsOutput(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	got, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{
		ContainerId: "c", Cmd: []string{"sh", "-c", "head -c 20000000 /dev/zero; echo problem >&2; exit 3"},
	})
	if err != nil || got.ExitCode != 3 || string(got.Stderr) != "problem\n" {
		t.Fatalf("%d, %q, %v", got.GetExitCode(), got.GetStderr(), err)
	}
	if n := len(got.Stdout) + len(got.Stderr); n != maxAnswerBytes {
		t.Errorf("%d bytes of output, want %d", n, maxAnswerBytes)
	}
}

// A grandchild that never stops writing does not keep the answer back.
func TestExecSyncBesideFlood(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	got, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{
		ContainerId: "c", Cmd: []string{"sh", "-c", "yes & echo $! >&2; exit 2"},
	})
	if err != nil || got.ExitCode != 2 {
		t.Fatalf("%d, %v", got.GetExitCode(), err)
	}
	eventually(t, "it ends by itself, as nobody reads it any more", func() bool {
		_, err := os.Stat("/proc/" + strings.TrimSpace(string(got.Stderr)))
		return err != nil
	})
}

func TestFit(t *testing.T) {
	const half = maxAnswerBytes / 2
	for _, tt := range []struct{ a, b, wantA, wantB int }{
		{1, 2, 1, 2},
		{maxAnswerBytes, 0, maxAnswerBytes, 0},
		{maxAnswerBytes, 10, maxAnswerBytes - 10, 10},
		{10, maxAnswerBytes, 10, maxAnswerBytes - 10},
		{maxAnswerBytes, maxAnswerBytes, half, half},
	} {
		a, b := fit(bytes.Repeat([]byte{1}, tt.a), bytes.Repeat([]byte{2}, tt.b))
		if len(a) != tt.wantA || len(b) != tt.wantB {
			t.Errorf("%d and %d: %d and %d, want %d and %d", tt.a, tt.b, len(a), len(b), tt.wantA, tt.wantB)
		}
	}
}

func TestRequestsAreChecked(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	for name, call := range map[string]func() error{
		"sync without command": func() error {
			_, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c"})
			return err
		},
		"sync with negative timeout": func() error {
			_, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"true"}, Timeout: -1})
			return err
		},
		"sync without container": func() error {
			_, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{Cmd: []string{"true"}})
			return err
		},
		"exec without command": func() error {
			_, err := s.Exec(t.Context(), &cri.ExecRequest{ContainerId: "c", Stdout: true})
			return err
		},
		"exec without stream": func() error {
			_, err := s.Exec(t.Context(), &cri.ExecRequest{ContainerId: "c", Cmd: []string{"true"}})
			return err
		},
		"exec with tty and stderr": func() error {
			_, err := s.Exec(t.Context(), &cri.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true, Stderr: true, Tty: true})
			return err
		},
		"attach without stream": func() error {
			_, err := s.Attach(t.Context(), &cri.AttachRequest{ContainerId: "c"})
			return err
		},
		"attach with tty and stderr": func() error {
			_, err := s.Attach(t.Context(), &cri.AttachRequest{ContainerId: "c", Stderr: true, Tty: true})
			return err
		},
		"port zero": func() error {
			_, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{0}})
			return err
		},
		"port too large": func() error {
			_, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{65536}})
			return err
		},
	} {
		if err := call(); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: "gone"}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("pod that is gone: %v", err)
	}
}

// instantMonitor has run everything already: what is left is the cost of this package.
type instantMonitor struct{ *localMonitor }

func (instantMonitor) Exec(context.Context, conmon.ExecRequest, conmon.Stdio) (conmon.ExecResult, error) {
	return conmon.ExecResult{}, nil
}

func BenchmarkExecSync(b *testing.B) {
	s := newServer(b, instantMonitor{}, allRunning{})
	req := &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"/bin/true"}}
	for b.Loop() {
		if _, err := s.ExecSync(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}
