package logfile

import (
	"bytes"
	"time"
)

// Stream is where a line came from.
type Stream int

// The streams of the CRI log format.
const (
	Stdout Stream = iota
	Stderr
)

var streamNames = [...]string{"stdout", "stderr"}

// maxLine is the longest content of one entry; a longer line becomes several with the tag P. It is containerd's limit,
// so log collectors are used to it.
const maxLine = 16 << 10

// format appends data to out as log entries ("TIME STREAM TAG CONTENT\n", the CRI logging design) and returns how
// many bytes of data it used. It is a pure function: after a kill, the next worker gets the same bytes from the same
// input. An unfinished line is left unless it is too long or flush is set, and then becomes an entry with the tag P.
func format(out, data []byte, s Stream, at time.Time, flush bool) (_ []byte, used int, partial bool) {
	var prefix [64]byte
	head := at.UTC().AppendFormat(prefix[:0], "2006-01-02T15:04:05.000000000Z")
	head = append(append(append(head, ' '), streamNames[s]...), " F "...)
	tag := len(head) - 2
	for len(data) > 0 {
		line, end := data, bytes.IndexByte(data, '\n')
		head[tag] = 'F'
		next := end + 1
		switch {
		case end >= 0 && end <= maxLine:
			line = data[:end]
		case end > maxLine || len(data) > maxLine:
			line, next, head[tag] = data[:maxLine], maxLine, 'P'
		case flush:
			next, head[tag] = len(data), 'P'
		default:
			return out, used, partial
		}
		out = append(append(append(out, head...), line...), '\n')
		partial = head[tag] == 'P'
		used += next
		data = data[next:]
	}
	return out, used, partial
}
