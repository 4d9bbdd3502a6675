package main

import (
	"bytes"
	"fmt"
	"os"
)

// logFile bounds the monitor's log, which the keeper and the worker share: it lies in memory (/run), and the monitor may
// run for years. What is no file is left as it is.
type logFile struct{ *os.File }

// logMost is how large it gets before its older half goes.
const logMost = 1 << 20

func (l logFile) Write(p []byte) (int, error) {
	if info, err := l.Stat(); err == nil && info.Mode().IsRegular() && info.Size() > logMost {
		l.halve()
	}
	return l.File.Write(p)
}

// halve may lose a line that the other process writes at this moment, and drops everything if the log can't be read.
func (l logFile) halve() {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", l.Fd()))
	if l.Truncate(0) != nil {
		return
	}
	_, newer, _ := bytes.Cut(data[len(data)/2:], []byte("\n"))
	_, _ = l.File.Write(newer)
}
