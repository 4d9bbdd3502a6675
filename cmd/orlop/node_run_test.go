package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script makes a program that notes each of its lives, and how it was told to end.
func script(t *testing.T, dir, name, text string) part {
	t.Helper()
	path := filepath.Join(dir, name)
	head := "#!/bin/sh\necho began >>" + path + ".log\ntrap 'echo ended >>" + path + ".log; exit 0' TERM\n"
	if err := os.WriteFile(path, []byte(head+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return part{path, []string{name}}
}

func lives(t *testing.T, p part) string {
	t.Helper()
	data, err := os.ReadFile(p.path + ".log")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(data)), " ")
}

func awaitLives(t *testing.T, p part, want string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); lives(t, p) != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %q, want %q", p.args[0], lives(t, p), want)
		}
	}
}

const stays = "while :; do sleep 0.05; done\n"

// What ends is started again, and all are told to end when the node is.
func TestNodeKeeps(t *testing.T) {
	dir := t.TempDir()
	parts := []part{
		script(t, dir, "serve", stays),
		script(t, dir, "kubelet", "[ $(wc -l <$0.log) -gt 1 ] || { sleep 5.2; exit 3; }\n"+stays),
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- keepAll(ctx, parts, slog.New(slog.DiscardHandler)) }()
	awaitLives(t, parts[1], "began began")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := lives(t, parts[0]); got != "began ended" {
		t.Errorf("serve: %q", got)
	}
	if got := lives(t, parts[1]); got != "began began ended" {
		t.Errorf("kubelet: %q", got)
	}
}

// A program that does not come up at all is told of at once, and the others end.
func TestNodeGivesUp(t *testing.T) {
	dir := t.TempDir()
	parts := []part{script(t, dir, "serve", stays), script(t, dir, "proxy", "sleep 0.5; exit 4\n")}
	err := keepAll(t.Context(), parts, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "proxy ended after") || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("%v", err)
	}
	if got := lives(t, parts[0]); got != "began ended" {
		t.Errorf("serve: %q", got)
	}
}

func TestNodeParts(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, p := range programs {
		if err := os.WriteFile(filepath.Join(os.Getenv("PATH"), p.name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f := nodeFlags{kubeletConfig: "k.yaml", proxyConfig: "p.yaml", services: "/s", kubeletArgs: []string{"--v=2"}, proxyArgs: []string{"--v=3"}}
	for _, tt := range []struct{ kubeconfig, want string }{
		{"", "orlop serve --config o.toml; orlop-kubelet --config k.yaml --v=2; " +
			"orlop-proxy --config p.yaml --services-dir /s --kubelet-url http://127.0.0.1:10250 --v=3"},
		{"/k.conf", "orlop serve --config o.toml; orlop-kubelet --config k.yaml --kubeconfig /k.conf --v=2; orlop-proxy --config p.yaml --v=3"},
	} {
		f.kubeconfig = tt.kubeconfig
		parts, err := f.parts(&configFlags{file: "o.toml"})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range parts {
			got = append(got, strings.Join(p.args, " "))
		}
		if all := strings.Join(got, "; "); all != tt.want {
			t.Errorf("got  %s\nwant %s", all, tt.want)
		}
	}
}
