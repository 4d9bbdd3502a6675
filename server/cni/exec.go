package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	// maxOutputBytes bounds what a plugin may say.
	maxOutputBytes = 1 << 20
	// pluginTime bounds one run of a plugin where the caller sets no limit: DEL, and what is undone.
	pluginTime = 2 * time.Minute
	// drainTime is how long the output of a plugin that has ended, and whose children hold it open, is waited for.
	drainTime = time.Second
)

// runner executes plugins. Other than the library's own, it bounds what a plugin says and how long it takes, and ends
// it together with its children: a plugin that hangs must not hold up the end of its pod.
type runner struct{ version.PluginDecoder }

func (*runner) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

func (*runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if stdout, ok := idle(stdin, environ); ok {
		return stdout, nil
	}
	// A plugin ends with us: the DEL that follows a restart must find nobody at work. The kernel takes the end of this
	// thread for ours, so the thread is kept.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(ctx, pluginTime)
	defer cancel()
	var stdout, stderr bounded
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = oneProcessor(environ), bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = drainTime
	err := cmd.Run()
	switch {
	case stdout.full || stderr.full:
		return nil, fmt.Errorf("plugin %s: output is longer than %d bytes", path, maxOutputBytes)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("plugin %s: killed: %w", path, ctx.Err())
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return stdout.kept, checkOutput(path, stdout.kept)
	}
	return nil, pluginError(path, err, stdout.kept, stderr.kept)
}

// oneProcessor has plugins, which are Go programs but for a few, run on one processor unless the daemon's environment
// says otherwise: they do one thing after the other. It saves an ADD and DEL of bridge and host-local 4 ms of 29 ms of
// processor time.
func oneProcessor(environ []string) []string {
	if slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, "GOMAXPROCS=") }) {
		return environ
	}
	return append(slices.Clip(environ), "GOMAXPROCS=1")
}

// checkOutput refuses what the library would trip over: it takes for granted that no element of a list is null (seen
// with v1.3.1, whose conversions between versions panic). What is not JSON it finds out itself.
func checkOutput(path string, stdout []byte) error {
	var said any
	if json.Unmarshal(stdout, &said) == nil && hasNullElement(said) {
		return fmt.Errorf("plugin %s: result: an element of a list is null", path)
	}
	return nil
}

func hasNullElement(value any) bool {
	switch v := value.(type) {
	case []any:
		return slices.Contains(v, nil) || slices.ContainsFunc(v, hasNullElement)
	case map[string]any:
		for _, field := range v {
			if hasNullElement(field) {
				return true
			}
		}
	}
	return false
}

// maxWords bounds how much of what a plugin says about a failure is repeated, in bytes.
const maxWords = 1000

// pluginError is what a plugin that failed said: a JSON error on standard output if it keeps to the specification.
func pluginError(path string, err error, stdout, stderr []byte) error {
	said := &types.Error{}
	if json.Unmarshal(stdout, said) == nil && said.Msg != "" {
		said.Msg, said.Details = cut(said.Msg), cut(said.Details)
		return said
	}
	words := fmt.Sprintf("%q", bytes.TrimSpace(append(stdout, stderr...)))
	return &types.Error{Msg: fmt.Sprintf("%s: %v: %s", path, err, cut(words))}
}

func cut(text string) string {
	if len(text) <= maxWords {
		return text
	}
	return strings.ToValidUTF8(text[:maxWords], "") + "…"
}

// bounded keeps the first bytes of an output, and ends the writer that goes on. Its error reaches a plugin as SIGPIPE.
type bounded struct {
	kept []byte // not a bytes.Buffer in disguise: io.Copy would go around Write, by its ReadFrom
	full bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.kept)+len(p) > maxOutputBytes {
		b.full = true
		return 0, io.ErrShortWrite
	}
	b.kept = append(b.kept, p...)
	return len(p), nil
}
