// Package logs reads, rotates and removes the log files that a CRI runtime writes for containers, in the format of
// https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md:
//
//	2016-10-06T00:17:09.669794202Z stdout P the first part of a long line,
//	2016-10-06T00:17:09.669794203Z stdout F and its end
//
// A log is rotated by renaming PATH to PATH.YYYYMMDD-HHMMSS and asking the runtime to open PATH anew; at the next
// rotation it becomes PATH.YYYYMMDD-HHMMSS.gz. Readers that follow a log hold it by its descriptor, and go through its
// successors in the order of their names, so that no line is lost however often it is rotated meanwhile.
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	stampFormat = "20060102-150405"
	gzipSuffix  = ".gz"
	tempSuffix  = ".tmp" // of a file that is being compressed
)

// Files are the log files of a container whose log is at path, oldest first, with what a cut-short compression left.
func Files(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var found []string
	for _, e := range entries { // sorted by name
		if base := filepath.Base(path); e.Name() == base || strings.HasPrefix(e.Name(), base+".") {
			found = append(found, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	if len(found) > 0 && found[0] == path { // the shortest name, and the newest file
		found = append(found[1:], path)
	}
	return found, nil
}

// Remove removes all of Files.
func Remove(path string) error {
	files, err := Files(path)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// stampOf is YYYYMMDD-HHMMSS of the name of a rotated file of path; "" for another file.
func stampOf(path, name string) string {
	rest, ok := strings.CutPrefix(name, path+".")
	if !ok {
		return ""
	}
	stamp := strings.TrimSuffix(rest, gzipSuffix)
	if _, err := time.Parse(stampFormat, stamp); err != nil {
		return ""
	}
	return stamp
}

// rotated are the rotated files of path, oldest first. A file that was compressed and not yet removed stands only for
// itself, not for its copy.
func rotated(path string) ([]string, error) {
	files, err := Files(path)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(files, func(f string) bool {
		plain, isCopy := strings.CutSuffix(f, gzipSuffix)
		return stampOf(path, f) == "" || (isCopy && slices.Contains(files, plain))
	}), nil
}

// record is one line of a log file.
type record struct {
	time    []byte // RFC 3339 with up to nine digits of a second
	stderr  bool
	partial bool   // the line goes on in the next record of its stream
	content []byte // with its newline, unless partial
}

var errFormat = errors.New("not a line of a CRI log")

func parse(line []byte) (record, error) {
	stamp, rest, ok1 := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tags, content, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || !ok3 || (string(stream) != "stdout" && string(stream) != "stderr") {
		return record{}, errFormat
	}
	tag, _, _ := bytes.Cut(tags, []byte(":")) // more may follow in later versions of the format
	r := record{time: stamp, stderr: string(stream) == "stderr", partial: string(tag) == "P", content: content}
	if r.partial {
		r.content = bytes.TrimSuffix(content, []byte("\n"))
	}
	return r, nil
}

func (r record) when() (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, string(r.time))
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", errFormat, err)
	}
	return t, nil
}
