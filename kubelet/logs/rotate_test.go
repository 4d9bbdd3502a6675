package logs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
)

// names are the files of a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func touch(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o640); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFilesAndRemove(t *testing.T) {
	dir := t.TempDir()
	touch(t, dir, "1.log", "1.log.20260102-030405.gz", "1.log.20260103-030405", "1.log.20260103-030405.tmp", "11.log", "1.logs")
	path := filepath.Join(dir, "1.log")
	got, err := Files(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{path + ".20260102-030405.gz", path + ".20260103-030405", path + ".20260103-030405.tmp", path}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for range 2 { // the second time nothing is there
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"1.logs", "11.log"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	if err := Remove(filepath.Join(dir, "gone", "1.log")); err != nil {
		t.Errorf("a directory that is gone: %v", err)
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, filepath.Join(dir, "0.log"))
	w.line()
	// What is left of earlier rotations, some of them cut short. 3 is the newest that may stay, with the one made now.
	touch(t, dir, "0.log.20200101-000001.gz", "0.log.20200101-000002", "0.log.20200101-000003", "0.log.20200101-000003.gz",
		"0.log.20200101-000003.tmp", "0.log.other")
	if err := os.Chmod(filepath.Join(dir, "0.log.20200101-000003"), 0o604); err != nil {
		t.Fatal(err)
	}
	rotator(t, w, 3).Check(t.Context())
	w.line()

	got := names(t, dir)
	if len(got) != 4 || !strings.HasPrefix(got[2], "0.log.20") || strings.HasSuffix(got[2], ".gz") {
		t.Fatalf("files %q", got)
	}
	if diff := cmp.Diff([]string{"0.log", "0.log.20200101-000003.gz", got[2], "0.log.other"}, got); diff != "" {
		t.Error(diff)
	}
	packed, err := os.Open(filepath.Join(dir, "0.log.20200101-000003.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	if info, err := packed.Stat(); err != nil || info.Mode().Perm() != 0o604 {
		t.Errorf("mode of a compressed file: %v, %v", info.Mode(), err)
	}
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(z); err != nil || string(text) != "0.log.20200101-000003" {
		t.Errorf("a compressed file holds %q, %v", text, err)
	}
}

func TestRotateOnlyWhatIsLarge(t *testing.T) {
	w := newWriter(t, filepath.Join(t.TempDir(), "0.log"))
	w.line()
	r := rotator(t, w, 5)
	r.cfg.MaxBytes = 1000
	r.Check(t.Context())
	if got := names(t, filepath.Dir(w.path)); len(got) != 1 {
		t.Errorf("files %q", got)
	}
}

func TestReopenFails(t *testing.T) {
	for _, late := range []bool{false, true} {
		w := newWriter(t, filepath.Join(t.TempDir(), "0.log"))
		w.line()
		var out bytes.Buffer
		r := rotator(t, w, 5)
		r.cfg.Log = slog.New(slog.NewTextHandler(&out, nil))
		r.cfg.Reopen = func(context.Context, string) error {
			if late { // it was done, and only the answer was lost
				if err := w.reopen(); err != nil {
					return err
				}
			}
			return errors.New("no answer")
		}
		r.Check(t.Context())
		w.line()
		want := map[bool]int{false: 1, true: 2}[late]
		if got := names(t, filepath.Dir(w.path)); len(got) != want {
			t.Errorf("late=%v: files %q", late, got)
		}
		if !strings.Contains(out.String(), "no answer") {
			t.Errorf("late=%v: log %q", late, out.String())
		}
		text, err := os.ReadFile(w.path)
		if lines := strings.Count(string(text), "\n"); err != nil || lines != 3-want {
			t.Errorf("late=%v: %d lines in the current file, %v", late, lines, err)
		}
	}
}

// TestMissingFile: a rotation was cut short between the rename and the runtime.
func TestMissingFile(t *testing.T) {
	w := newWriter(t, filepath.Join(t.TempDir(), "0.log"))
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	rotator(t, w, 5).Check(t.Context())
	if _, err := os.Stat(w.path); err != nil {
		t.Error(err)
	}
}

func TestMoveAsideNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	touch(t, dir, "0.log", "0.log.20260102-020405.gz", "0.log.20260102-020406")
	name, err := moveAside(filepath.Join(dir, "0.log"), now)
	if err != nil || filepath.Base(name) != "0.log.20260102-020407" {
		t.Errorf("%s, %v", name, err)
	}
	if got := names(t, dir); len(got) != 3 {
		t.Errorf("files %q", got)
	}
}

func TestRotatorRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checks := 0
		cfg := RotatorConfig{MaxBytes: 1, MaxFiles: 2, Period: 10 * time.Second, Log: slog.New(slog.DiscardHandler),
			Running: func(context.Context) ([]Container, error) { checks++; return nil, nil }}
		for _, maxBytes := range []int64{1, -1} {
			cfg.MaxBytes = maxBytes
			r, err := NewRotator(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 35*time.Second)
			r.Run(ctx)
			cancel()
			if checks != 3 {
				t.Errorf("MaxBytes %d: %d checks in all", maxBytes, checks)
			}
		}
	})
	for _, cfg := range []RotatorConfig{{MaxFiles: 1, Period: 1}, {MaxFiles: 2}} {
		if _, err := NewRotator(cfg); err == nil {
			t.Errorf("%+v is no configuration", cfg)
		}
	}
}
