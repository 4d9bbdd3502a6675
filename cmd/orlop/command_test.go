package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/testing/protocmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/internal/config"
)

// execute runs a command line and returns what it printed.
func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(io.Discard)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestConfigPrintsWhatCheckTakes(t *testing.T) {
	text, err := execute(t, "config")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "orlop.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := execute(t, "config", "check", file)
	if err != nil || out != "" {
		t.Errorf("config check of the default file: %q, %v; want nothing changed", out, err)
	}
}

func TestConfigCheckNamesFileLineKeyRemedy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "orlop.toml")
	if err := os.WriteFile(file, []byte("log_level = \"loud\"\n[image]\npined = []\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := execute(t, "config", "check", file)
	if err == nil {
		t.Fatal("a file with mistakes is taken")
	}
	for _, want := range []string{file + ":1", "log_level", `"debug"`, file + ":3", "image.pined", "did you mean image.pinned?"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

func TestCommandsSayThatNoDaemonAnswers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "orlop.toml")
	socket := filepath.Join(t.TempDir(), "none.sock")
	if err := os.WriteFile(file, []byte("socket = \""+socket+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"status"}, {"logs", "x"}, {"exec", "x", "--", "true"}, {"pod", "rm", "--all"}, {"image", "load", ".", "y"}} {
		_, err := execute(t, append(args, "--config", file)...)
		if args[0] == "exec" {
			_, err = execute(t, "--config", file, "exec", "x", "--", "true")
		}
		if err == nil || !strings.Contains(err.Error(), "no daemon answers on "+socket) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestExamplesAreRead(t *testing.T) {
	pod, container := new(cri.PodSandboxConfig), new(cri.ContainerConfig)
	if err := readMessage("../../examples/pod.yaml", pod); err != nil {
		t.Error(err)
	}
	if err := readMessage("../../examples/container.yaml", container); err != nil {
		t.Error(err)
	}
	if pod.GetMetadata().GetName() == "" || container.GetImage().GetImage() == "" {
		t.Errorf("examples: pod %v, container %v", pod, container)
	}
}

func TestReadMessage(t *testing.T) {
	want := &cri.PodSandboxConfig{
		LogDirectory: "/logs",
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	for _, text := range []string{
		`{"log_directory": "/logs", "linux": {"security_context": {"namespace_options": {"network": 2}}}}`,
		"logDirectory: /logs\nlinux: {securityContext: {namespaceOptions: {network: NODE}}}\n",
	} {
		file := filepath.Join(t.TempDir(), "pod")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got := new(cri.PodSandboxConfig)
		if err := readMessage(file, got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	file := filepath.Join(t.TempDir(), "pod")
	if err := os.WriteFile(file, []byte("log_dir: /logs\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := readMessage(file, new(cri.PodSandboxConfig)); err == nil || !strings.Contains(err.Error(), "log_dir") {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestPrintLog(t *testing.T) {
	const log = "2026-01-01T00:00:00Z stdout F one\n" +
		"2026-01-01T00:00:00Z stdout P a long \n" +
		"2026-01-01T00:00:00Z stderr F oops\n" +
		"2026-01-01T00:00:00Z stdout F line with  spaces\n" +
		"2026-01-01T00:00:00Z stdout F \n" +
		"2026-01-01T00:00:00Z stdout F being writ"
	var stdout, stderr bytes.Buffer
	if err := printLog(strings.NewReader(log), &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	if got, want := stdout.String(), "one\na long line with  spaces\n\n"; got != want {
		t.Errorf("standard output %q, want %q", got, want)
	}
	if got, want := stderr.String(), "oops\n"; got != want {
		t.Errorf("standard error %q, want %q", got, want)
	}
	if err := printLog(strings.NewReader("no log\n"), io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a file that is no log: %v", err)
	}
}

func TestFindPod(t *testing.T) {
	pods := []*cri.PodSandbox{
		{Id: "abc1", Metadata: &cri.PodSandboxMetadata{Namespace: "demo", Name: "web"}},
		{Id: "abd2", Metadata: &cri.PodSandboxMetadata{Namespace: "demo", Name: "db"}},
	}
	for _, tt := range []struct{ name, want string }{
		{"abc", "abc1"}, {"demo/db", "abd2"}, {"ab", ""}, {"web", ""}, {"x", ""},
	} {
		if got, err := findPod(pods, tt.name); got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("findPod(%q) = %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestInstanceLock(t *testing.T) {
	c := config.Config{Root: filepath.Join(t.TempDir(), "root"), RunRoot: filepath.Join(t.TempDir(), "run")}
	in, err := lockInstance(c)
	if err != nil {
		t.Fatal(err)
	}
	other := c
	other.RunRoot = filepath.Join(t.TempDir(), "run")
	if _, err := lockInstance(other); !errors.Is(err, errRuns) {
		t.Errorf("a second daemon on the same root: %v", err)
	}
	in.release()
	again, err := lockInstance(c)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	again.release()
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "s.sock")
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o660 {
		t.Errorf("mode %o, want 660", got)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("a socket in use: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
	l.Close()
	l, err = listenUnix(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
}

// TestServeClosesWhatItOpened has a part that can't be opened.
func TestServeClosesWhatItOpened(t *testing.T) {
	c := config.Defaults()
	c.Root, c.RunRoot, c.Monitor.Path = t.TempDir(), t.TempDir(), "/bin/true"
	c.Socket = filepath.Join(c.RunRoot, "s.sock")
	if err := os.WriteFile(filepath.Join(c.Root, "storage"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	err := serve(t.Context(), c, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), filepath.Join(c.Root, "storage")) {
		t.Errorf("a file in the way of the storage: %v", err)
	}
	if _, err := os.Stat(c.Socket); err == nil {
		t.Error("its socket is still there")
	}
	in, err := lockInstance(c)
	if err != nil {
		t.Fatalf("its lock is still held: %v", err)
	}
	in.release()
}

func TestContainerDefaults(t *testing.T) {
	d, err := containerDefaults(config.Container{
		Ulimits: []string{"nofile=1024:-1"}, Sysctls: []string{"net.ipv4.ping_group_range=0 1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]rspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: ^uint64(0)}}, d.Ulimits); diff != "" {
		t.Errorf("ulimits (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"net.ipv4.ping_group_range": "0 1"}, d.Sysctls); diff != "" {
		t.Errorf("sysctls (-want +got):\n%s", diff)
	}
}

func TestPodParent(t *testing.T) {
	for _, tt := range []struct {
		configured string
		systemd    bool
		want       string
	}{
		{"", false, "/orlop"},
		{"", true, "orlop.slice"},
		{"/pods", false, "/pods"},
		{"pods.slice", true, "pods.slice"},
		{"pods.slice", false, ""},
		{"/pods", true, ""},
	} {
		if got, err := podParent(tt.configured, tt.systemd); got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("podParent(%q, systemd %v) = %q, %v; want %q", tt.configured, tt.systemd, got, err, tt.want)
		}
	}
}

func TestLoggerTakesLibraryLines(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(config.Config{LogLevel: "warn", LogFormat: "json"}, &out)
	log.Info("not shown")
	log.Warn("shown", "pod", "x")
	if got := out.String(); strings.Contains(got, "not shown") || !strings.Contains(got, `"pod":"x"`) {
		t.Errorf("log %q", got)
	}
	if log.Enabled(t.Context(), slog.LevelInfo) {
		t.Error("info is enabled at level warn")
	}
}

func TestAge(t *testing.T) {
	for _, tt := range []struct {
		d    time.Duration
		want string
	}{
		{5*time.Second + time.Millisecond, "5s"}, {62 * time.Second, "1m2s"}, {3*time.Hour + 4*time.Minute, "3h4m"}, {72 * time.Hour, "3d"},
	} {
		if got := age(time.Now().Add(-tt.d)); got != tt.want {
			t.Errorf("age of %v = %q, want %q", tt.d, got, tt.want)
		}
	}
}
