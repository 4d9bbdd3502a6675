package cgroup

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// reader has the memory for reading one file after the other. What read returns is valid until the next read.
type reader struct{ buf [16 << 10]byte }

var readers = sync.Pool{New: func() any { return new(reader) }}

func (r *reader) open(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

func (r *reader) close(fd int) { unix.Close(fd) }

// read returns nil for a file that is missing or can't be read: the kernel or controller does not offer it.
func (r *reader) read(dir int, name string) []byte {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	n := 0
	for n < len(r.buf) {
		got, err := unix.Read(fd, r.buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil
		}
		if got == 0 {
			break
		}
		n += got
	}
	return r.buf[:n]
}

// number is a file of one number; not ok if it is missing or "max".
func number(data []byte) (uint64, bool) {
	return digits(bytes.TrimSpace(data))
}

// digits reads a decimal number without making a string of it.
func digits(b []byte) (n uint64, ok bool) {
	for _, c := range b {
		digit := uint64(c - '0')
		if c < '0' || c > '9' || n > (math.MaxUint64-digit)/10 {
			return 0, false
		}
		n = n*10 + digit
	}
	return n, len(b) > 0
}

// value is the number in a line "key number"; 0 if there is none.
func value(data []byte, key string) uint64 {
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte{'\n'})
		if len(line) > len(key) && line[len(key)] == ' ' && string(line[:len(key)]) == key {
			n, _ := digits(line[len(key)+1:])
			return n
		}
		data = rest
	}
	return 0
}

// parsePSI reads a pressure file: "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", and the same for full.
func parsePSI(data []byte) *PSI {
	if len(data) == 0 {
		return nil
	}
	p := &PSI{}
	for line := range bytes.Lines(data) {
		kind, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		switch string(kind) {
		case "some":
			p.Some = parsePSILine(rest)
		case "full":
			p.Full = parsePSILine(rest)
		}
	}
	return p
}

func parsePSILine(line []byte) (l PSILine) {
	for field := range bytes.FieldsSeq(line) {
		key, text, _ := bytes.Cut(field, []byte{'='})
		if string(key) == "total" {
			l.TotalMicros, _ = digits(text)
			continue
		}
		share, err := strconv.ParseFloat(string(text), 64)
		if err != nil {
			continue
		}
		switch string(key) {
		case "avg10":
			l.Avg10 = share
		case "avg60":
			l.Avg60 = share
		case "avg300":
			l.Avg300 = share
		}
	}
	return l
}
