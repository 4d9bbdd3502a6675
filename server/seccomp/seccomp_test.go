package seccomp

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[]}`)
	if data, err := Load(good); err != nil || !strings.Contains(string(data), "SCMP_ACT_ALLOW") {
		t.Errorf("%s, %v", data, err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "good", dir + "/../" + filepath.Base(dir) + "/good", filepath.Join(dir, "missing"), dir, fifo, "/dev/zero",
		file("broken", "{"), file("empty", "{}"), file("large", strings.Repeat(" ", maxBytes+1)),
	} {
		if _, err := Load(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
