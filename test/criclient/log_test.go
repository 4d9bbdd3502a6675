package criclient

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseLog(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	const stamp = "2026-01-02T03:04:05.000006Z"
	for _, tt := range []struct {
		name, in string
		want     []Entry
		bad      string
	}{
		{name: "empty"},
		{name: "full", in: stamp + " stdout F hello  world\n", want: []Entry{{at, "stdout", false, "hello  world"}}},
		{name: "empty line", in: stamp + " stderr F \n", want: []Entry{{at, "stderr", false, ""}}},
		{name: "partial", in: stamp + " stdout P a\n" + stamp + " stdout F b\n",
			want: []Entry{{at, "stdout", true, "a"}, {at, "stdout", false, "b"}}},
		{name: "torn end", in: stamp + " stdout F a", bad: "EOF"},
		{name: "torn start", in: "04:05.000006Z stdout F a\n", bad: "parsing time"},
		{name: "no stream", in: stamp + " F a b\n", bad: `stream "F"`},
		{name: "no tag", in: stamp + " stdout X a\n", bad: `tag "X"`},
		{name: "short", in: stamp + " stdout F\n", bad: "four fields"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseLog(strings.NewReader(tt.in))
			if tt.bad != "" {
				if err == nil || !strings.Contains(err.Error(), tt.bad) {
					t.Fatalf("error %v; want one with %q", err, tt.bad)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got)\n%s", err, diff)
			}
		})
	}
}

func TestLinesJoinsEachStream(t *testing.T) {
	entries := []Entry{
		{Stream: "stdout", Partial: true, Text: "a"}, {Stream: "stderr", Text: "x"}, {Stream: "stdout", Text: "b"},
		{Stream: "stdout", Partial: true, Text: "unfinished"},
	}
	if diff := cmp.Diff([]string{"x", "ab"}, Lines(entries, "")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"ab"}, Lines(entries, "stdout")); diff != "" {
		t.Error(diff)
	}
}

func TestVerbosePid(t *testing.T) {
	for _, tt := range []struct {
		info map[string]string
		want int
	}{
		{map[string]string{"info": `{"pid":12,"x":1}`}, 12},
		{map[string]string{"pid": "13"}, 13},
		{map[string]string{"info": `{"pid":0}`}, 0},
		{nil, 0},
	} {
		got, err := verbosePid(tt.info)
		if got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("verbosePid(%v) = %d, %v; want %d", tt.info, got, err, tt.want)
		}
	}
}
