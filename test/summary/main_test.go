package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const lines = `{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:7: got 1\n"}
{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestC","Output":"    require.go:9: needs cgroup v2\n"}
{"Action":"output","Package":"p","Test":"TestC","Output":"--- SKIP: TestC (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestC"}
{"Action":"fail","Package":"p","Elapsed":1.5}
{"ImportPath":"q","Action":"build-output","Output":"q.go:1: bad\n"}
{"ImportPath":"q","Action":"build-fail"}
go: a line of the go command
`

func TestRead(t *testing.T) {
	var shown strings.Builder
	s, err := read(strings.NewReader(lines), &shown)
	if err != nil {
		t.Fatal(err)
	}
	var end strings.Builder
	s.print(&end)
	wantEnd := "\n1 passed, 3 failed, 1 skipped\n  skipped 1: needs cgroup v2\n  FAILED p TestB\n  FAILED p\n  FAILED q (build)\n"
	if diff := cmp.Diff(wantEnd, end.String()); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	for _, want := range []string{"got 1", "q.go:1: bad", "go: a line", "3 tests  p"} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("%q is not shown:\n%s", want, shown.String())
		}
	}
	if strings.Contains(shown.String(), "noise") {
		t.Error("what a passed test printed is shown")
	}
}
