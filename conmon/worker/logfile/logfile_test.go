package logfile

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFormat(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	long := strings.Repeat("x", maxLine)
	const out, err = "2026-01-02T03:04:05.000000006Z stdout ", "2026-01-02T03:04:05.000000006Z stderr "
	for name, tt := range map[string]struct {
		data    string
		stream  Stream
		flush   bool
		want    string
		used    int
		partial bool
	}{
		"a line":              {"a\n", Stdout, false, out + "F a\n", 2, false},
		"two and a half":      {"a\n\nb", Stderr, false, err + "F a\n" + err + "F \n", 3, false},
		"half, flushed":       {"b", Stdout, true, out + "P b\n", 1, true},
		"longest":             {long + "\n", Stdout, false, out + "F " + long + "\n", maxLine + 1, false},
		"longer":              {long + "yz\n", Stdout, false, out + "P " + long + "\n" + out + "F yz\n", maxLine + 3, false},
		"longer, no end yet":  {long + "y", Stdout, false, out + "P " + long + "\n", maxLine, true},
		"longest, no end yet": {long, Stdout, false, "", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, used, partial := format(nil, []byte(tt.data), tt.stream, at, tt.flush)
			if string(got) != tt.want || used != tt.used || partial != tt.partial {
				t.Errorf("got %.80q…, %d, %v; want %.80q…, %d, %v", got, used, partial, tt.want, tt.used, tt.partial)
			}
		})
	}
}

type rig struct {
	path    string
	journal *Journal
	slot    int
	log     *Log
	r, w    *os.File
	spool   *os.File
	copier  *Copier
}

func newRig(t *testing.T) *rig {
	t.Helper()
	g := &rig{path: filepath.Join(t.TempDir(), "log")}
	var err error
	check := func() {
		if err != nil {
			t.Fatal(err)
		}
	}
	g.journal, err = NewJournal()
	check()
	g.slot, err = g.journal.Take()
	check()
	var fds [2]int
	err = unix.Pipe2(fds[:], unix.O_CLOEXEC)
	check()
	err = unix.SetNonblock(fds[0], true)
	check()
	g.r, g.w = os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	g.spool, err = NewSpool()
	check()
	g.attach(t)
	t.Cleanup(func() { g.r.Close(); g.w.Close(); g.spool.Close(); g.log.Close(); g.journal.File().Close() })
	return g
}

// attach is what a new worker does with what the keeper held.
func (g *rig) attach(t *testing.T) {
	t.Helper()
	f, err := Open(g.path)
	if err != nil {
		t.Fatal(err)
	}
	g.log = New(f, g.journal, g.slot)
	if g.copier, err = NewCopier(g.log, Stdout, g.r, g.spool, noTap{}, slog.New(slog.NewTextHandler(io.Discard, nil))); err != nil {
		t.Fatal(err)
	}
}

func (g *rig) content(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(g.path)
	if err != nil {
		t.Fatal(err)
	}
	var s strings.Builder
	for line := range strings.Lines(string(b)) {
		s.WriteString(strings.Join(strings.SplitN(line, " ", 4)[2:], " "))
	}
	return s.String()
}

func TestCopyUntilTheLastWriterIsGone(t *testing.T) {
	g := newRig(t)
	done := make(chan struct{})
	go func() { g.copier.Run(); close(done) }()
	var want strings.Builder
	for i := range 20000 {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%200))
		want.WriteString("F " + line)
		if _, err := io.WriteString(g.w, line); err != nil {
			t.Fatal(err)
		}
	}
	io.WriteString(g.w, "no end")
	g.w.Close()
	<-done
	if got := g.content(t); got != want.String()+"P no end\n" {
		t.Errorf("log has %d bytes, want %d", len(got), want.Len())
	}
}

// A line that comes a byte at a time is one entry, unless its pieces fill the spool's slots.
func TestManyPiecesLoseNothing(t *testing.T) {
	g := newRig(t)
	want := strings.Repeat("abcdefgh", 40)
	for i := range want {
		g.w.WriteString(want[i : i+1])
		_, full, err := g.copier.fetch()
		if err != nil {
			t.Fatal(err)
		}
		g.copier.work(full)
	}
	g.w.WriteString("\n")
	g.copier.Drain()
	var got strings.Builder
	for line := range strings.Lines(g.content(t)) {
		got.WriteString(strings.TrimSuffix(line[2:], "\n"))
	}
	if got.String() != want {
		t.Errorf("got %q", got.String())
	}
}

// The worker is killed at each point of a turn; the next one neither loses nor repeats a byte.
func TestRecover(t *testing.T) {
	const data = "one\ntwo\nthree\ntai"
	for _, cut := range []struct {
		name     string
		write    int // bytes of the turn's output that reached the log
		consumed int // bytes of the spool that were consumed
		announce bool
	}{
		{"before the announcement", 0, 0, false},
		{"before the write", 0, 0, true},
		{"in the middle of the write", 50, 0, true},
		{"before consuming", -1, 0, true},
		{"in the middle of consuming", -1, 5, true},
		{"before clearing", -1, -1, true},
	} {
		t.Run(cut.name, func(t *testing.T) {
			g := newRig(t)
			g.w.WriteString("first\n")
			g.copier.Drain()
			g.w.WriteString(data)
			if _, _, err := g.copier.fetch(); err != nil {
				t.Fatal(err)
			}
			at := time.Now()
			out, used, _ := format(nil, []byte(data), Stdout, at, false)
			if cut.announce {
				g.log.slot.announce(turn{Stdout, g.log.sizeLocked(), int64(len(data)), int64(used), int64(len(out)), at.UnixNano(), false})
			}
			if cut.write < 0 {
				cut.write = len(out)
			}
			g.log.appendLocked(out[:cut.write])
			if cut.consumed < 0 {
				cut.consumed = used
			}
			io.ReadFull(g.spool, make([]byte, cut.consumed))

			g.attach(t)
			g.log.Recover(g.copier)
			g.w.WriteString("l\n")
			g.copier.Drain()
			if got, want := g.content(t), "F first\nF one\nF two\nF three\nF tail\n"; got != want {
				t.Errorf("log is %q, want %q", got, want)
			}
		})
	}
}

// Rotation under load: every line is whole and in exactly one file.
func TestReopenUnderLoad(t *testing.T) {
	g := newRig(t)
	const lines = 200000
	done := make(chan struct{})
	go func() { g.copier.Run(); close(done) }()
	go func() {
		var b bytes.Buffer
		for i := range lines {
			fmt.Fprintf(&b, "%d %s\n", i, strings.Repeat("y", i%90))
			if b.Len() > 3000 {
				b.WriteTo(g.w)
			}
		}
		b.WriteTo(g.w)
		g.w.Close()
	}()
	rotated := 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
			if err := os.Rename(g.path, fmt.Sprintf("%s.%d", g.path, rotated)); err != nil {
				t.Fatal(err)
			}
			rotated++
			f, err := Open(g.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := g.log.Reopen(f, func() error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := 0
	for i := range rotated + 1 {
		path := fmt.Sprintf("%s.%d", g.path, i)
		if i == rotated {
			path = g.path
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.SplitN(line, " ", 4)
			if want := fmt.Sprintf("%d %s\n", n, strings.Repeat("y", n%90)); len(f) != 4 || f[2] != "F" || f[3] != want {
				t.Fatalf("file %d: line %d is %q", i, n, line)
			}
			n++
		}
	}
	if n != lines || rotated < 10 {
		t.Errorf("%d of %d lines in %d files", n, lines, rotated)
	}
}

func BenchmarkCopy(b *testing.B) {
	path := filepath.Join(b.TempDir(), "log")
	j, err := NewJournal()
	if err != nil {
		b.Fatal(err)
	}
	slot, _ := j.Take()
	f, err := Open(path)
	if err != nil {
		b.Fatal(err)
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		b.Fatal(err)
	}
	unix.SetNonblock(fds[0], true)
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	spool, err := NewSpool()
	if err != nil {
		b.Fatal(err)
	}
	c, err := NewCopier(New(f, j, slot), Stdout, r, spool, noTap{}, slog.Default())
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() { c.Run(); close(done) }()
	chunk := bytes.Repeat([]byte(strings.Repeat("z", 99)+"\n"), 600)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := w.Write(chunk); err != nil {
			b.Fatal(err)
		}
		f.Truncate(0)
	}
	w.Close()
	<-done
}

type noTap struct{}

func (noTap) Open() bool   { return false }
func (noTap) Write([]byte) {}
