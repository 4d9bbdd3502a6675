package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// becomes has this test's process become a program.
const becomes = "ORLOP_TEST_BECOMES"

// `orlop proxy` and `orlop kubelet` become programs of their own, with all arguments as they are.
func TestPrograms(t *testing.T) {
	if line := os.Getenv(becomes); line != "" {
		root := newRootCommand()
		root.SetArgs(strings.Fields(line))
		t.Fatalf("came back: %v", root.Execute())
	}
	dir := t.TempDir()
	for _, p := range programs {
		script := "#!/bin/sh\necho \"${0##*/} $* as $$\"\n"
		if err := os.WriteFile(filepath.Join(dir, p.name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for line, want := range map[string]string{
		"proxy --help --cluster-cidr=10.0.0.0/8": "orlop-proxy --help --cluster-cidr=10.0.0.0/8", "proxy explain web:80 -o json": "orlop-proxy explain web:80 -o json",
		"kubelet --config x": "orlop-kubelet --config x",
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPrograms$")
		cmd.Env = append(os.Environ(), becomes+"="+line, "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		got, pid, _ := strings.Cut(strings.TrimSpace(string(out)), " as ")
		if err != nil || got != want || pid == "" {
			t.Errorf("orlop %s: %q, %v; want %s", line, out, err, want)
		}
	}
}
