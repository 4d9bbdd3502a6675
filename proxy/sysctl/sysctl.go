// Package sysctl sets settings of the kernel that a proxy's rules stand on.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Setting is a number below /proc/sys, or another file of the kernel's.
type Setting struct {
	Path  string // as net/ipv4/ip_forward, or absolute
	Value int
	// Raise leaves a larger value alone.
	Raise bool
}

// Set does not write what is there already: what was set before with more privileges stands.
func (s Setting) Set() error {
	path := s.Path
	if !strings.HasPrefix(path, "/") {
		path = "/proc/sys/" + path
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: this kernel has none", s.Path)
	}
	if err != nil {
		return err
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err == nil && (have == s.Value || s.Raise && have > s.Value) {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(s.Value)), 0); err != nil {
		return fmt.Errorf("%s = %d: %w", s.Path, s.Value, err)
	}
	return nil
}
