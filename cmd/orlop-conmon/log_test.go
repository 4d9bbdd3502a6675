package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The log has a bound, keeps whole lines, and the last ones.
func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log := logFile{f}
	const last = 50000
	for i := range last + 1 {
		if _, err := fmt.Fprintf(log, "line %d %s\n", i, strings.Repeat("x", 80)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil || len(data) > logMost+100 || len(data) < logMost/3 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("line %d ", last+1-len(lines)+i); !strings.HasPrefix(line, want) {
			t.Fatalf("%q instead of %q", line, want)
		}
	}
}
