package logs

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"time"
)

// outFormat has all nine digits, so that lines stand below each other.
const outFormat = "2006-01-02T15:04:05.000000000Z07:00"

// output writes the content of those lines that are wanted.
type output struct {
	o       Options
	bytes   int64 // left of LimitBytes
	lines   int64 // left of TailLines
	midLine bool  // what was written last has no newline
	buf     []byte
}

func newOutput(o Options) *output {
	out := &output{o: o, bytes: math.MaxInt64, lines: math.MaxInt64}
	if o.LimitBytes != nil {
		out.bytes = *o.LimitBytes
	}
	return out
}

// write writes one line of a log file. A line that is none is left out: a full disk may have cut it.
func (out *output) write(line []byte) error {
	rec, err := parse(line)
	if err != nil {
		return nil
	}
	if err := out.record(rec); err != nil && !errors.Is(err, errFormat) {
		return err
	}
	if out.lines--; out.lines <= 0 {
		return errEnough
	}
	return nil
}

func (out *output) record(rec record) error {
	w := out.o.Stdout
	if rec.stderr {
		w = out.o.Stderr
	}
	if w == nil {
		return nil
	}
	text := rec.content
	if out.o.Timestamps || !out.o.Since.IsZero() {
		t, err := rec.when()
		if err != nil {
			return err
		}
		if t.Before(out.o.Since) {
			return nil
		}
		if out.o.Timestamps && !out.midLine {
			text = out.stamped(t, text)
		}
	}
	if int64(len(text)) > out.bytes {
		text = text[:out.bytes]
	}
	n, err := w.Write(text)
	out.bytes -= int64(n)
	out.midLine = !bytes.HasSuffix(rec.content, []byte("\n")) && len(rec.content) > 0
	switch {
	case err != nil:
		return err
	case out.bytes <= 0:
		return errEnough
	}
	return nil
}

func (out *output) stamped(t time.Time, text []byte) []byte {
	out.buf = t.AppendFormat(out.buf[:0], outFormat)
	out.buf = append(out.buf, ' ')
	out.buf = append(out.buf, text...)
	return out.buf
}

const blockBytes = 64 << 10

// tailStart is where the last n lines of a file begin. A line without an end counts as one.
func tailStart(f *os.File, n int64) (int64, error) {
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil || n <= 0 {
		return at, err
	}
	end := at
	block := make([]byte, min(blockBytes, end))
	for at > 0 {
		from := max(at-blockBytes, 0)
		b := block[:at-from]
		if _, err := f.ReadAt(b, from); err != nil {
			return 0, err
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] != '\n' || from+int64(i) == end-1 {
				continue // the newline at the very end ends a line and begins none
			}
			if n--; n == 0 {
				return from + int64(i) + 1, nil
			}
		}
		at = from
	}
	return 0, nil
}
