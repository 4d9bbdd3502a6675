package api

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
)

// writeLog appends lines to a container's log, each a second after the one before; those with "!" go to stderr.
func writeLog(t *testing.T, r *fakeRuntime, id string, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(r.logs, id+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, line := range lines {
		stream := "stdout"
		if strings.HasPrefix(line, "!") {
			stream = "stderr"
		}
		fmt.Fprintf(f, "%s %s F %s\n", time.Unix(int64(1000+i), 0).UTC().Format(time.RFC3339Nano), stream, line)
	}
}

func TestContainerLogs(t *testing.T) {
	cfg, _, r := config(t)
	writeLog(t, r, "now", "one", "!two", "three")
	writeLog(t, r, "before", "old")
	h := server(t, cfg).Handler()
	for _, tt := range []struct {
		path string
		code int
		body string
	}{
		{"ns/p/c", 200, "one\n!two\nthree"},
		{"ns/p/c?tailLines=1", 200, "three"},
		{"ns/p/c?tailLines=0", 200, ""},
		{"ns/p/c?tail=1", 200, "three"},
		{"ns/p/c?tail=all&tailLines=1", 200, "one\n!two\nthree"},
		{"ns/p/c?previous=true", 200, "old"},
		{"ns/p/c?previous=false", 200, "one\n!two\nthree"},
		{"ns/p/c?limitBytes=5", 200, "one\n!"},
		{"ns/p/c?sinceTime=1970-01-01T00:16:42Z", 200, "three"},
		{"ns/p/c?sinceSeconds=60", 200, ""},
		{"ns/p/c?timestamps=true&tailLines=1", 200, "1970-01-01T00:16:42.000000000Z three"},
		{"ns/p/c?stream=Stdout", 200, "one\nthree"},
		{"ns/p/c?stream=Stderr", 200, "!two"},
		{"ns/p/c?stream=All", 200, "one\n!two\nthree"},
		{"ns/p/c?tailLines=x", 400, `{"message": "Unable to decode query."}`},
		{"ns/p/c?sinceTime=x", 400, `{"message": "Unable to decode query."}`},
		{"ns/p/c?tailLines=-1", 422, ""},
		{"ns/p/c?limitBytes=0", 422, ""},
		{"ns/p/c?sinceSeconds=0", 422, ""},
		{"ns/p/c?sinceSeconds=1&sinceTime=1970-01-01T00:16:42Z", 422, ""},
		{"ns/p/c?stream=stdin", 422, ""},
		{"ns/p/c?stream=Stdout&tailLines=1", 422, ""},
		{"ns/p/w", 400, `container "w" in pod "p" is waiting to start: ContainerCreating`},
		{"ns/p/w?previous=true", 400, `previous terminated container "w" in pod "p" not found`},
		{"ns/p/x", 404, `container "x" not found in pod "p"`},
		{"ns/q/c", 404, `pod "q" does not exist`},
	} {
		t.Run(tt.path, func(t *testing.T) {
			code, body := ask(h, http.MethodGet, "/containerLogs/"+tt.path)
			if code != tt.code || (body != tt.body && (tt.code != 422 || body == "")) {
				t.Errorf("%d %q; want %d %q", code, body, tt.code, tt.body)
			}
		})
	}
}

// TestFollow: lines come when they are written, and the answer ends with the container.
func TestFollow(t *testing.T) {
	cfg, h, r := config(t)
	writeLog(t, r, "now", "one")
	s := httptest.NewServer(server(t, cfg).Handler())
	defer s.Close()
	resp, err := http.Get(s.URL + "/containerLogs/ns/p/c?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for _, want := range []string{"one", "two", "three"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, want %q", lines.Text(), want)
		}
		if want == "one" {
			writeLog(t, r, "now", "two")
		} else if want == "two" {
			writeLog(t, r, "now", "three")
			h.end()
		}
	}
	if lines.Scan() {
		t.Errorf("after the end: %q", lines.Text())
	}
}

func TestLoggedContainer(t *testing.T) {
	terminated := func(id string) v1.ContainerState {
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ContainerID: id}}
	}
	waiting := func(reason string) v1.ContainerState {
		return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}
	}
	for _, tt := range []struct {
		name     string
		cs       v1.ContainerStatus
		previous bool
		id, fail string
	}{
		{name: "running", cs: v1.ContainerStatus{ContainerID: "r://a", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}, id: "a"},
		{name: "terminated", cs: v1.ContainerStatus{State: terminated("r://a"), LastTerminationState: terminated("r://b")}, id: "a"},
		{name: "the next did not start", cs: v1.ContainerStatus{State: terminated(""), LastTerminationState: terminated("r://b")}, id: "b"},
		{name: "none did", cs: v1.ContainerStatus{State: terminated("")}, fail: "is terminated"},
		{name: "crash loop", cs: v1.ContainerStatus{State: waiting("CrashLoopBackOff"), LastTerminationState: terminated("r://b")}, id: "b"},
		{name: "previous", cs: v1.ContainerStatus{State: terminated("r://a"), LastTerminationState: terminated("r://b")}, previous: true, id: "b"},
		{name: "no previous", cs: v1.ContainerStatus{State: terminated("r://a")}, previous: true, fail: `previous terminated container "c" in pod "p" not found`},
		{name: "pulling", cs: v1.ContainerStatus{State: waiting("ErrImagePull")}, fail: "is waiting to start: image can't be pulled"},
		{name: "pulling again", cs: v1.ContainerStatus{State: waiting("ImagePullBackOff")}, fail: "is waiting to start: trying and failing to pull image"},
		{name: "no state", fail: "is waiting to start: no logs yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cs.Name = "c"
			p := &v1.Pod{Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{tt.cs}}}
			p.Name = "p"
			id, err := loggedContainer(p, "c", tt.previous)
			if id != tt.id || (err == nil) != (tt.fail == "") || (err != nil && !strings.Contains(err.Error(), tt.fail)) {
				t.Errorf("%q, %v", id, err)
			}
		})
	}
	if _, err := loggedContainer(&v1.Pod{}, "c", false); err == nil {
		t.Error("a container without a status has a log")
	}
}

func FuzzLogOptions(f *testing.F) {
	f.Add("follow=true&tailLines=1&stream=All")
	f.Add("tail=all&sinceTime=1970-01-01T00:16:42Z&limitBytes=7")
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		o, err := logOptions(q)
		if err != nil {
			return
		}
		again, err := logOptions(q) // the query is as it was, or means the same
		if diff := cmp.Diff(o, again); err != nil || diff != "" {
			t.Errorf("%q: %v %s", query, err, diff)
		}
	})
}
