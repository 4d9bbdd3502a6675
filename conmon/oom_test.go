package conmon

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOOMKilled(t *testing.T) {
	events := func(kills string) string { return "low 0\nmax 12\noom 1\noom_kill " + kills + "\noom_group_kill 0\n" }
	killed, failed := Exit{Code: 137, Signal: 9}, Exit{Code: 1}
	for _, tt := range []struct {
		name           string
		before         string // what the pod has counted first
		own, pod       string // what both say in the end; "" if the cgroup is gone
		exit           Exit
		want           bool
		withoutParents bool
	}{
		{"counted", "0", "1", "1", killed, true, false},
		{"counted, of a child", "0", "1", "1", failed, true, false},
		{"counted, and succeeded", "0", "1", "1", Exit{}, false, false},
		{"not counted", "0", "0", "7", killed, false, false},
		{"gone, and the pod counted", "0", "", "1", killed, true, false},
		{"gone, and the pod counted again", "3", "", "4", killed, true, false},
		{"gone, and the pod counted only before", "3", "", "3", killed, false, false},
		{"gone, and failed by itself", "0", "", "1", failed, false, false},
		{"gone with the pod", "0", "", "", killed, false, false},
		{"gone, on v1", "0", "", "1", killed, false, true},
	} {
		pod := t.TempDir()
		own := filepath.Join(pod, "scope")
		write := func(dir, kills string) {
			t.Helper()
			if kills == "" {
				if err := os.RemoveAll(filepath.Join(dir, "memory.events")); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(events(kills)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write(own, "0")
		write(pod, tt.before)
		o := WatchOOM(own)
		if tt.withoutParents {
			o.Parent = ""
		}
		write(own, tt.own)
		write(pod, tt.pod)
		if got := o.killed(tt.exit); got != tt.want {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
	if (OOM{}).killed(killed) {
		t.Error("without a count, a kill is taken for lack of memory")
	}
}
