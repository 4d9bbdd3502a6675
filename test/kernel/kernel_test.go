package kernel

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// Everything that a snapshot counts is made, seen, undone and no longer seen.
func TestCompareSeesEachKind(t *testing.T) {
	Require(t, Root)
	dir := t.TempDir()
	for _, sub := range []string{"mnt", "leases", "storage/overlay/l", "files/old", "links"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nsFile := filepath.Join(dir, "net")
	if err := os.WriteFile(nsFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cg := fmt.Sprintf("/orlop-test-kernel-%d", os.Getpid())
	scope := Scope{
		Dirs: []string{dir}, Cgroups: []string{cg}, Leases: []string{filepath.Join(dir, "leases")},
		Storage: []string{filepath.Join(dir, "storage")}, Files: []string{filepath.Join(dir, "files")},
		Links: []string{filepath.Join(dir, "links")}, Pids: []int{os.Getpid()},
	}
	for _, tt := range []struct {
		kind string
		want string
		make func(t *testing.T) (undo func())
	}{
		{Mounts, "mnt (tmpfs)", func(t *testing.T) func() {
			must(t, unix.Mount("tmpfs", filepath.Join(dir, "mnt"), "tmpfs", 0, ""))
			return func() { must(t, unix.Unmount(filepath.Join(dir, "mnt"), 0)) }
		}},
		{Namespaces, "net (nsfs)", func(t *testing.T) func() {
			must(t, unix.Mount("/proc/self/ns/net", nsFile, "", unix.MS_BIND, ""))
			return func() { must(t, unix.Unmount(nsFile, 0)) }
		}},
		{Cgroups, cg, func(t *testing.T) func() {
			roots, err := CgroupRoots()
			must(t, err)
			path := filepath.Join(roots[len(roots)-1], cg)
			must(t, os.Mkdir(path, 0o755))
			return func() { must(t, os.Remove(path)) }
		}},
		{Leases, "10.1.2.3", func(t *testing.T) func() {
			path := filepath.Join(dir, "leases", "10.1.2.3")
			must(t, os.WriteFile(path, nil, 0o600))
			return func() { must(t, os.Remove(path)) }
		}},
		{Layers, "overlay/abc", func(t *testing.T) func() {
			path := filepath.Join(dir, "storage/overlay/abc")
			must(t, os.Mkdir(path, 0o755))
			return func() { must(t, os.Remove(path)) }
		}},
		{Files, "files/old/new", func(t *testing.T) func() {
			path := filepath.Join(dir, "files/old/new")
			must(t, os.Symlink("nowhere", path))
			return func() { must(t, os.Remove(path)) }
		}},
		{Files, "links/new", func(t *testing.T) func() {
			path, other := filepath.Join(dir, "links/new"), filepath.Join(dir, "links/other")
			must(t, os.Symlink(filepath.Join(dir, "nowhere"), path))
			must(t, os.Symlink("/others", other))
			return func() { must(t, os.Remove(path)); must(t, os.Remove(other)) }
		}},
		{Descriptors, "socket:[*]", func(t *testing.T) func() {
			// Not through package net: its poller's descriptor would stay open.
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			must(t, err)
			return func() { must(t, unix.Close(fd)) }
		}},
		{Processes, "sleep 1000", func(t *testing.T) func() {
			cmd := exec.Command("sleep", "1000")
			cmd.Env = []string{"STATE=" + dir}
			must(t, cmd.Start())
			return func() { must(t, cmd.Process.Kill()); _ = cmd.Wait() }
		}},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			// The first child process of a program opens descriptors that stay; have them open before.
			must(t, exec.Command("true").Run())
			before, err := Take(scope)
			must(t, err)
			undo := tt.make(t)
			during, err := Take(scope)
			must(t, err)
			diff := Compare(before, during)
			if !strings.Contains(diff, tt.kind+": +1 ") || !strings.Contains(diff, tt.want) {
				t.Errorf("made one of %s, but the difference is:\n%s", tt.kind, diff)
			}
			if back := Compare(during, before); !strings.Contains(back, tt.kind+": -1 ") {
				t.Errorf("the other way round the difference is:\n%s", back)
			}
			undo()
			after, err := Take(scope)
			must(t, err)
			if diff := Compare(before, after); diff != "" {
				t.Errorf("undone, but the difference is:\n%s", diff)
			}
		})
	}
}

func TestOwnNetwork(t *testing.T) {
	Require(t, Root)
	if InOwnNetwork() {
		must(t, LoopbackUp())
		links, err := net.Interfaces()
		must(t, err)
		if len(links) != 1 || links[0].Flags&net.FlagUp == 0 {
			t.Errorf("links of the new namespace: %+v; want only lo, up", links)
		}
		return
	}
	args := os.Args
	os.Args = []string{args[0], "-test.run=^TestOwnNetwork$"}
	defer func() { os.Args = args }()
	code, err := OwnNetwork()
	if code != 0 || err != nil {
		t.Errorf("inner run: exit code %d, %v", code, err)
	}
}

func TestVersion(t *testing.T) {
	if !Has(Version(3, 0)) || !Has(Version(5, 4)) {
		t.Error("this kernel is not older than 5.4, but Version says so")
	}
	if Has(Version(999, 0)) {
		t.Error("Version(999, 0) is met")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
