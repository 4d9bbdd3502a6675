// Command summary reads what `go test -json` writes, shows each package as it ends and all that a failed test printed,
// and at the end counts the tests, and those that were skipped by their reasons. It fails if a test failed, if a
// package could not be built, or if there were no tests at all.
//
//	go test -json ./... | go run ./test/summary
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	s, err := read(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	s.print(os.Stdout)
	if s.failed > 0 || s.passed == 0 {
		os.Exit(1)
	}
}

// event is one line; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Elapsed    float64
	Output     string
}

type summary struct {
	passed, failed int
	failures       []string
	skips          map[string][]string // reason: tests
}

// state is what is known of the tests and packages that have not ended.
type state struct {
	summary
	output map[string]*strings.Builder // by package and test
	live   map[string]int              // tests of a package that have run
}

func read(r io.Reader, w io.Writer) (*summary, error) {
	st := &state{summary: summary{skips: map[string][]string{}}, output: map[string]*strings.Builder{}, live: map[string]int{}}
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprint(w, string(line)) // the go command's own words
			} else {
				st.take(e, w)
			}
		}
		if err == io.EOF {
			return &st.summary, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (s *state) take(e event, w io.Writer) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(w, e.Output)
	case "build-fail":
		s.failed++
		s.failures = append(s.failures, e.ImportPath+" (build)")
	case "output":
		if s.output[key] == nil {
			s.output[key] = new(strings.Builder)
		}
		s.output[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(e, w)
		} else {
			s.endTest(e, key, w)
		}
		delete(s.output, key)
	}
}

func (s *state) endTest(e event, key string, w io.Writer) {
	s.live[e.Package]++
	text := ""
	if b := s.output[key]; b != nil {
		text = b.String()
	}
	switch e.Action {
	case "pass":
		s.passed++
	case "fail":
		s.failed++
		s.failures = append(s.failures, key)
		fmt.Fprint(w, text)
	case "skip":
		reason := skipReason(text)
		s.skips[reason] = append(s.skips[reason], key)
	}
}

func (s *state) endPackage(e event, w io.Writer) {
	tests := s.live[e.Package]
	switch {
	case e.Action == "fail":
		// A package may fail without a test: a leak that TestMain found, a crash, a time limit.
		s.failed++
		s.failures = append(s.failures, e.Package)
		if b := s.output[e.Package+" "]; b != nil {
			fmt.Fprint(w, b.String())
		}
	case tests == 0:
		return // no test files
	}
	fmt.Fprintf(w, "%-4s %6.1f s %4d tests  %s\n", e.Action, e.Elapsed, tests, e.Package)
}

var skipLine = regexp.MustCompile(`(?m)^\s+\S+\.go:\d+: (.*)$`)

// skipReason is what the test said last; t.Skip is the last thing that it calls.
func skipReason(text string) string {
	found := skipLine.FindAllStringSubmatch(text, -1)
	if len(found) == 0 {
		return "no reason given"
	}
	return found[len(found)-1][1]
}

func (s *summary) print(w io.Writer) {
	skipped := 0
	for _, tests := range s.skips {
		skipped += len(tests)
	}
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", s.passed, s.failed, skipped)
	for _, reason := range slices.Sorted(maps.Keys(s.skips)) {
		fmt.Fprintf(w, "  skipped %d: %s\n", len(s.skips[reason]), reason)
	}
	for _, name := range s.failures {
		fmt.Fprintf(w, "  FAILED %s\n", name)
	}
}
