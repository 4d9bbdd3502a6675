package criclient

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Entry is one line of a CRI log file.
type Entry struct {
	Time    time.Time
	Stream  string // "stdout" or "stderr"
	Partial bool   // the line goes on in the stream's next entry
	Text    string
}

// ParseLog reads a log in the format of the kubelet's design proposal "CRI: Log management": a time in RFC 3339 with
// nanoseconds, the stream, the tags ("P" or "F"), the text; divided by single spaces, ended by a line feed. It is
// strict: a line that is torn or has another form is an error that shows it.
func ParseLog(r io.Reader) ([]Entry, error) {
	var entries []Entry
	in := bufio.NewReaderSize(r, 1<<20)
	for n := 1; ; n++ {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			return entries, nil
		}
		if err != nil {
			return entries, fmt.Errorf("line %d: %w: %.100q", n, err, line)
		}
		e, err := parseEntry(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return entries, fmt.Errorf("line %d: %w: %.100q", n, err, line)
		}
		entries = append(entries, e)
	}
}

func parseEntry(line string) (Entry, error) {
	stamp, rest, ok1 := strings.Cut(line, " ")
	stream, rest, ok2 := strings.Cut(rest, " ")
	tags, text, ok3 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || !ok3 {
		return Entry{}, errors.New("fewer than four fields")
	}
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		return Entry{}, err
	}
	if stream != "stdout" && stream != "stderr" {
		return Entry{}, fmt.Errorf("stream %q", stream)
	}
	first, _, _ := strings.Cut(tags, ":")
	if first != "P" && first != "F" {
		return Entry{}, fmt.Errorf("tag %q", tags)
	}
	return Entry{Time: at, Stream: stream, Partial: first == "P", Text: text}, nil
}

// Lines joins partial entries of one stream ("" for both, each joined by itself) to whole lines. An unfinished last
// line is left out.
func Lines(entries []Entry, stream string) []string {
	var lines []string
	open := map[string]*strings.Builder{}
	for _, e := range entries {
		if stream != "" && e.Stream != stream {
			continue
		}
		b := open[e.Stream]
		if b == nil {
			b = &strings.Builder{}
			open[e.Stream] = b
		}
		b.WriteString(e.Text)
		if !e.Partial {
			lines = append(lines, b.String())
			b.Reset()
		}
	}
	return lines
}

// verbosePid looks for a "pid" in the JSON values of a verbose status.
func verbosePid(info map[string]string) (int, error) {
	for _, value := range info {
		var v struct {
			Pid int `json:"pid"`
		}
		if json.Unmarshal([]byte(value), &v) == nil && v.Pid > 0 {
			return v.Pid, nil
		}
	}
	if _, err := fmt.Sscan(info["pid"], new(int)); err == nil {
		var pid int
		_, err := fmt.Sscan(info["pid"], &pid)
		return pid, err
	}
	return 0, fmt.Errorf("no pid in the verbose status: %v", info)
}
