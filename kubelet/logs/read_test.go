package logs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const sample = `2026-01-02T03:04:05.1Z stdout F one
2026-01-02T03:04:06.12Z stderr F two
2026-01-02T03:04:07.123456789Z stdout P three,
2026-01-02T03:04:07.2+00:00 stdout F  continued
not a line at all
2026-01-02T03:04:08Z stdout F:later tags four
2026-01-02T03:04:09Z stderr F 
`

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, tt := range []struct {
		name    string
		file    string
		o       Options
		without string // a stream that is not wanted
		want    string
	}{
		{name: "all", file: sample, want: "one\ntwo\nthree, continued\ntags four\n\n"},
		{name: "empty", file: ""},
		{name: "stdout", file: sample, without: "stderr", want: "one\nthree, continued\ntags four\n"},
		{name: "stderr", file: sample, without: "stdout", want: "two\n\n"},
		{name: "since", file: sample, o: Options{Since: at("2026-01-02T03:04:08Z")}, want: "tags four\n\n"},
		{name: "timestamps, one for a line in parts", file: sample, o: Options{Timestamps: true}, want: "" +
			"2026-01-02T03:04:05.100000000Z one\n2026-01-02T03:04:06.120000000Z two\n2026-01-02T03:04:07.123456789Z three, continued\n" +
			"2026-01-02T03:04:08.000000000Z tags four\n2026-01-02T03:04:09.000000000Z \n"},
		{name: "limit", file: sample, o: Options{LimitBytes: new(int64(6))}, want: "one\ntw"},
		{name: "limit counts only what is wanted", file: sample, o: Options{LimitBytes: new(int64(6))}, without: "stdout", want: "two\n\n"},
		{name: "tail", file: sample, o: Options{TailLines: new(int64(2))}, want: "tags four\n\n"},
		{name: "tail of nothing", file: sample, o: Options{TailLines: new(int64(0))}},
		{name: "tail of more than there is", file: sample, o: Options{TailLines: new(int64(100))}, want: "one\ntwo\nthree, continued\ntags four\n\n"},
		{name: "a line without its end", file: "2026-01-02T03:04:05Z stdout F a\n2026-01-02T03:04:05Z stdout F b", want: "a\nb"},
		{name: "half a header", file: "2026-01-02T03:04:05Z stdout F a\n2026-01-02T03:04:05Z std", want: "a\n"},
		{name: "a bad time with timestamps", file: "yesterday stdout F a\n2026-01-02T03:04:05Z stdout F b\n",
			o: Options{Timestamps: true}, want: "2026-01-02T03:04:05.000000000Z b\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got bytes.Buffer
			if tt.without != "stdout" {
				tt.o.Stdout = &got
			}
			if tt.without != "stderr" {
				tt.o.Stderr = &got
			}
			if err := Read(t.Context(), write(t, tt.file), tt.o); err != nil {
				t.Fatal(err)
			}
			if got.String() != tt.want {
				t.Errorf("got  %q\nwant %q", got.String(), tt.want)
			}
			if strings.HasSuffix(tt.file, "\n") { // the same, followed after the container's end
				got.Reset()
				tt.o.Follow, tt.o.Ended = true, func() bool { return true }
				if err := Read(t.Context(), write(t, tt.file), tt.o); err != nil || got.String() != tt.want {
					t.Errorf("followed: %v, %q\nwant %q", err, got.String(), tt.want)
				}
			}
		})
	}
}

func TestReadMissing(t *testing.T) {
	if err := Read(t.Context(), filepath.Join(t.TempDir(), "0.log"), Options{}); !os.IsNotExist(err) {
		t.Errorf("a log that is not there: %v", err)
	}
}

func TestReadLongLines(t *testing.T) {
	long := strings.Repeat("x", 3*readBytes)
	var got bytes.Buffer
	text := "2026-01-02T03:04:05Z stdout F " + long + "\n"
	if err := Read(t.Context(), write(t, text+text), Options{Stdout: &got}); err != nil || got.String() != long+"\n"+long+"\n" {
		t.Errorf("%v, %d bytes", err, got.Len())
	}
}

func FuzzTailStart(f *testing.F) {
	f.Add([]byte("a\nb\nc"), int64(2))
	f.Add(bytes.Repeat([]byte("line\n"), blockBytes/2), int64(blockBytes/5))
	f.Fuzz(func(t *testing.T, text []byte, n int64) {
		if n < 0 || n > 1<<20 {
			return
		}
		file, err := os.Open(write(t, string(text)))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		at, err := tailStart(file, n)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.SplitAfter(text, []byte("\n"))
		if len(lines[len(lines)-1]) == 0 {
			lines = lines[:len(lines)-1]
		}
		want := bytes.Join(lines[max(0, len(lines)-int(n)):], nil)
		if !bytes.Equal(text[at:], want) {
			t.Errorf("the last %d lines of %q begin at %d", n, text, at)
		}
	})
}

func FuzzParse(f *testing.F) {
	for line := range strings.Lines(sample) {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parse(line)
		if err == nil && !bytes.Contains(line, r.content) {
			t.Errorf("%q has the content %q", line, r.content)
		}
	})
}

// writer writes numbered lines as a runtime does, and reopens its file when told.
type writer struct {
	t    *testing.T
	path string
	mu   sync.Mutex
	f    *os.File
	n    int
}

func newWriter(t *testing.T, path string) *writer {
	w := &writer{t: t, path: path}
	if err := w.reopen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.f.Close() })
	return w
}

func (w *writer) reopen() error {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	w.line() // after the new file is there, and before it is used: the reader must not have left the old one
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f != nil {
		w.f.Close()
	}
	w.f = f
	return nil
}

func (w *writer) line() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return
	}
	fmt.Fprintf(w.f, "2026-01-02T03:04:05Z stdout F line %d\n", w.n)
	w.n++
}

// collector checks that lines come complete, once each and in order.
type collector struct {
	t    *testing.T
	next atomic.Int64
	rest []byte
	hold func()
}

func (c *collector) Write(p []byte) (int, error) {
	if c.hold != nil {
		c.hold()
	}
	c.rest = append(c.rest, p...)
	for {
		line, rest, ok := bytes.Cut(c.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if want := fmt.Sprintf("line %d", c.next.Load()); string(line) != want {
			c.t.Errorf("got %q, want %q", line, want)
			return 0, io.ErrShortWrite
		}
		c.next.Add(1)
		c.rest = bytes.Clone(rest)
	}
}

func rotator(t *testing.T, w *writer, files int) *Rotator {
	t.Helper()
	r, err := NewRotator(RotatorConfig{
		MaxBytes: 1, MaxFiles: files, Period: time.Second,
		Running: func(context.Context) ([]Container, error) { return []Container{{"id", w.path}}, nil },
		Reopen:  func(context.Context, string) error { return w.reopen() },
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFollow rotates a log that is being written again and again, with a reader that keeps up and one that is so slow
// that several rotations happen while it reads one file.
func TestFollow(t *testing.T) {
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprintf("slow=%v", slow), func(t *testing.T) {
			w := newWriter(t, filepath.Join(t.TempDir(), "0.log"))
			r := rotator(t, w, 1000)
			var ended atomic.Bool
			got := &collector{t: t}
			begun, release := make(chan struct{}), make(chan struct{})
			got.hold = sync.OnceFunc(func() {
				close(begun)
				if slow {
					<-release
				}
			})
			done := make(chan error, 1)
			w.line()
			go func() {
				done <- Read(t.Context(), w.path, Options{Stdout: got, Follow: true, Ended: ended.Load})
			}()
			<-begun
			for range 12 {
				for range 500 {
					w.line()
				}
				r.Check(t.Context())
			}
			close(release)
			w.line()
			ended.Store(true)
			if err := <-done; err != nil {
				t.Error(err)
			}
			if got.next.Load() != int64(w.n) {
				t.Errorf("got %d of %d lines", got.next.Load(), w.n)
			}
			if files, _ := Files(w.path); len(files) != 13 {
				t.Errorf("%d files: %q", len(files), files)
			}
		})
	}
}

// TestFollowWakes: lines come when they are written, not with the next check.
func TestFollowWakes(t *testing.T) {
	w := newWriter(t, filepath.Join(t.TempDir(), "0.log"))
	got := &collector{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	flushed := make(chan struct{}, 1000)
	done := make(chan error, 1)
	go func() {
		done <- Read(ctx, w.path, Options{Stdout: got, Follow: true, Ended: func() bool { return false }, Flush: func() { flushed <- struct{}{} }})
	}()
	begin := time.Now()
	for n := int64(1); n <= 5; n++ {
		w.line()
		for got.next.Load() < n {
			<-flushed
		}
	}
	if took := time.Since(begin); took > checkPeriod {
		t.Errorf("five lines took %s", took)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("a reader that went away: %v", err)
	}
}

// TestFollowTornLine: a line that is split over two files is read as one.
func TestFollowTornLine(t *testing.T) {
	path := write(t, "2026-01-02T03:04:05Z stdout F line 0\n2026-01-02T03:04:05Z stdout F li")
	if err := os.Rename(path, path+".20260102-030405"); err != nil {
		t.Fatal(err)
	}
	f, err := openPlain(path + ".20260102-030405")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("ne 1\n2026-01-02T03:04:05Z stdout F line 2\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	got := &collector{t: t}
	o := Options{Stdout: got, Follow: true, Ended: func() bool { return true }}
	r := &reader{path: path, o: o, out: newOutput(o), cur: f}
	defer r.close()
	if err := r.follow(t.Context()); err != nil || got.next.Load() != 3 {
		t.Errorf("%v, %d lines", err, got.next.Load())
	}
}

func TestFollowTruncated(t *testing.T) {
	w := newWriter(t, filepath.Join(t.TempDir(), "0.log"))
	got := &collector{t: t}
	seen := make(chan struct{}, 1000)
	var ended atomic.Bool
	done := make(chan error, 1)
	w.line()
	go func() {
		done <- Read(t.Context(), w.path, Options{Stdout: got, Follow: true, Ended: ended.Load, Flush: func() { seen <- struct{}{} }})
	}()
	for got.next.Load() < 1 {
		<-seen
	}
	if err := os.Truncate(w.path, 0); err != nil {
		t.Fatal(err)
	}
	for len(seen) > 0 {
		<-seen
	}
	for range 2 { // the first may have begun before; by the second it has seen that
		<-seen
	}
	w.line()
	ended.Store(true)
	if err := <-done; err != nil || got.next.Load() != 2 {
		t.Errorf("%v, %d lines", err, got.next.Load())
	}
}

func BenchmarkRead(b *testing.B) {
	line := "2026-01-02T03:04:05.123456789Z stdout F " + strings.Repeat("x", 100) + "\n"
	path := filepath.Join(b.TempDir(), "0.log")
	text := strings.Repeat(line, 10<<20/len(line))
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Read(b.Context(), path, Options{Stdout: io.Discard, Stderr: io.Discard}); err != nil {
			b.Fatal(err)
		}
	}
}
