package podfiles

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/runtime"
)

func pod() *v1.Pod {
	p := &v1.Pod{}
	p.Name, p.UID = "p", "u"
	return p
}

func TestMounts(t *testing.T) {
	d := Dir(t.TempDir())
	if err := d.Make("u"); err != nil {
		t.Fatal(err)
	}
	c := &v1.Container{Name: "c", TerminationMessagePath: "/dev/termination-log"}
	mounts, err := d.Mounts(pod(), c, "127.0.0.1 localhost\n")
	if err != nil || len(mounts) != 2 || mounts[0].ContainerPath != "/etc/hosts" || mounts[1].ContainerPath != "/dev/termination-log" {
		t.Fatalf("%v, %v", mounts, err)
	}
	if data, err := os.ReadFile(mounts[0].HostPath); err != nil || string(data) != "127.0.0.1 localhost\n" {
		t.Errorf("%q, %v", data, err)
	}
	if info, err := os.Stat(mounts[1].HostPath); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("last words: %v, %v", info, err)
	}
	c.VolumeMounts = []v1.VolumeMount{{MountPath: "/etc/hosts/"}}
	if mounts, err := d.Mounts(pod(), c, ""); err != nil || len(mounts) != 1 {
		t.Errorf("with a mount of its own on /etc/hosts: %v, %v", mounts, err)
	}
}

// ended is a container that ended with a code, and left text in its file and log.
func ended(t *testing.T, code int32, policy, text, log string) *runtime.Container {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"words": text, "log": log} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &runtime.Container{ContainerStatus: &cri.ContainerStatus{
		ExitCode: code, LogPath: filepath.Join(dir, "log"), Message: "of the runtime",
		Mounts:      []*cri.Mount{{ContainerPath: "/words", HostPath: filepath.Join(dir, "words")}},
		Annotations: map[string]string{runtime.MessagePathAnnotation: "/words", runtime.MessagePolicyAnnotation: policy},
	}}
}

func TestMessage(t *testing.T) {
	var long strings.Builder
	for i := range 200 {
		fmt.Fprintf(&long, "2026-11-23T10:00:00.000000000Z stdout F line %d\n", i)
	}
	d := Dir(t.TempDir())
	fallback := string(v1.TerminationMessageFallbackToLogsOnError)
	for _, tt := range []struct {
		name string
		c    *runtime.Container
		want func(message string) bool
	}{
		{"words", ended(t, 1, fallback, "bye", "x"), func(m string) bool { return m == "bye" }},
		{"too many words", ended(t, 0, "", strings.Repeat("x", 5000), ""), func(m string) bool { return len(m) == maxMessage }},
		{"none, and no fallback", ended(t, 1, "File", "", long.String()), func(m string) bool { return m == "of the runtime" }},
		{"none, and success", ended(t, 0, fallback, "", long.String()), func(m string) bool { return m == "of the runtime" }},
		{"the log's end", ended(t, 1, fallback, "", long.String()), func(m string) bool {
			return strings.HasSuffix(m, "line 198\nline 199\n") && strings.Count(m, "\n") == maxFallbackRows
		}},
	} {
		if got := d.Message(tt.c); !tt.want(got) {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
	trap := ended(t, 0, "", "", "")
	file := trap.Mounts[0].HostPath
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", file); err != nil {
		t.Fatal(err)
	}
	if got := d.Message(trap); got != "of the runtime" {
		t.Errorf("a link was followed: %q", got)
	}
}

func TestEnvFile(t *testing.T) {
	d := Dir(t.TempDir())
	dir := filepath.Join(d.Pod("u"), "volumes", "kubernetes.io~empty-dir", "v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte("# comment\n\nA='1'\nB='two\nlines'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, key, want string
		ok, fails       bool
	}{
		{"env", "A", "1", true, false},
		{"env", "B", "two\nlines", true, false},
		{"env", "C", "", false, false},
		{"absent", "A", "", false, false},
		{"link", "A", "", false, true},
		{"../../x", "A", "", false, true},
	} {
		got, ok, err := d.EnvFile("u", "v", tt.path, tt.key)
		if got != tt.want || ok != tt.ok || (err != nil) != tt.fails {
			t.Errorf("%s %s: %q, %v, %v", tt.path, tt.key, got, ok, err)
		}
	}
}

// FuzzParseEnv: what is read of a file can be written and read again.
func FuzzParseEnv(f *testing.F) {
	f.Add("A='1'\n#x\nB='2'")
	f.Fuzz(func(t *testing.T, data string) {
		vars, err := parseEnv(data)
		if err != nil {
			return
		}
		var b strings.Builder
		for name, value := range vars {
			if name == "" || strings.HasPrefix(name, "#") {
				return
			}
			fmt.Fprintf(&b, "%s='%s'\n", name, value)
		}
		again, err := parseEnv(b.String())
		if err != nil || len(again) != len(vars) {
			t.Errorf("%q is %v, and written anew %v, %v", data, vars, again, err)
		}
	})
}

// TestUserIDs: two pods get two ranges, which hold over a restart, and are given again once they are free.
func TestUserIDs(t *testing.T) {
	d, no := Dir(t.TempDir()), false
	u, err := NewUserIDs(d, 110)
	if err != nil {
		t.Fatal(err)
	}
	of := func(u *UserIDs, uid string) uint32 {
		t.Helper()
		p := &v1.Pod{Spec: v1.PodSpec{HostUsers: &no}}
		p.UID = types.UID(uid)
		if err := d.Make(p.UID); err != nil {
			t.Fatal(err)
		}
		got, err := u.Of(p)
		if err != nil || got.Mode != cri.NamespaceMode_POD || got.Uids[0].Length != rangeLength {
			t.Fatalf("%v, %v", got, err)
		}
		return got.Uids[0].HostId
	}
	a, b := of(u, "a"), of(u, "b")
	if a == b || a < rangeLength {
		t.Errorf("a has %d and b %d", a, b)
	}
	again, err := NewUserIDs(d, 110)
	if err != nil || of(again, "a") != a || of(again, "c") == b {
		t.Errorf("after a restart: %v", err)
	}
	if err := again.Release("a"); err != nil {
		t.Fatal(err)
	}
	if got := of(again, "d"); got != a {
		t.Errorf("what a had is free, and d got %d", got)
	}
	if got, err := again.Of(&v1.Pod{}); got != nil || err != nil {
		t.Errorf("a pod on the node's user namespace: %v, %v", got, err)
	}
}
