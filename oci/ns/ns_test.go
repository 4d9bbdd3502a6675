package ns

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/test/kernel"
)

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// in runs f on a thread in the pinned namespaces.
func in(t *testing.T, dir string, f func() error) {
	t.Helper()
	err := onThread(func() error {
		for _, k := range kinds[1:] {
			n, err := os.Open(filepath.Join(dir, k.name))
			if err != nil {
				return err
			}
			defer n.Close()
			if err := unix.Setns(int(n.Fd()), k.flag); err != nil {
				return err
			}
		}
		return f()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCreate(t *testing.T) {
	kernel.Require(t, kernel.Root)
	for name, user := range map[string]bool{"plain": false, "user namespace": true} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ns")
			o := Options{
				Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "web-0", User: user,
				Sysctls: map[string]string{
					"net.ipv4.ip_unprivileged_port_start": "1024", "kernel.shm_rmid_forced": "1", "kernel/msgmax": "4096",
					"net.ipv4.conf.lo.forwarding": "1",
				},
			}
			if user {
				o.UIDs = []IDMap{{0, 200000, 65536}}
				o.GIDs = o.UIDs
			}
			if err := Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = Delete(t.Context(), dir) })
			check(t, dir)
			checkQueues(t, dir, rootOf(o.UIDs))
			before := inode(t, filepath.Join(dir, "net"))
			if err := Create(t.Context(), o); err != nil || inode(t, filepath.Join(dir, "net")) != before {
				t.Errorf("a repeat made others: %v", err)
			}
			if own := inode(t, "/proc/self/ns/net"); own == before {
				t.Error("it is the host's network")
			}
			for range 2 {
				if err := Delete(t.Context(), dir); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", dir, err)
			}
		})
	}
}

func check(t *testing.T, dir string) {
	t.Helper()
	in(t, dir, func() error {
		if name, err := os.Hostname(); name != "web-0" || err != nil {
			t.Errorf("host name %q, %v", name, err)
		}
		for file, want := range map[string]string{
			"net/ipv4/ip_unprivileged_port_start": "1024", "kernel/shm_rmid_forced": "1", "kernel/msgmax": "4096",
			"net/ipv4/conf/lo/forwarding": "1",
		} {
			if data, err := os.ReadFile("/proc/sys/" + file); strings.TrimSpace(string(data)) != want || err != nil {
				t.Errorf("%s: %q, %v", file, data, err)
			}
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Errorf("loopback: %v", err)
			return nil
		}
		return c.Close()
	})
}

// checkQueues looks at the directory of message queues, as the root of the namespace may change its label.
func checkQueues(t *testing.T, dir string, owner uint32) {
	t.Helper()
	in(t, dir, func() error {
		fd, err := queues()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Uid != owner || st.Gid != owner {
			t.Errorf("message queues belong to %d:%d; want %d", st.Uid, st.Gid, owner)
		}
		return nil
	})
}

func TestCreateFails(t *testing.T) {
	kernel.Require(t, kernel.Root)
	for name, o := range map[string]Options{
		"node's sysctl":     {Net: true, Sysctls: map[string]string{"vm.swappiness": "1"}},
		"climbing sysctl":   {Net: true, Sysctls: map[string]string{"net/../kernel/panic": "1"}},
		"host's network":    {UTS: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
		"unknown sysctl":    {Net: true, Sysctls: map[string]string{"net.no_such_thing": "1"}},
		"bad value":         {Net: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "many"}},
		"two lines":         {Net: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1\n1"}},
		"user without maps": {User: true},
		"user without root": {User: true, UIDs: []IDMap{{1, 200000, 10}}, GIDs: []IDMap{{0, 200000, 10}}},
		"overlapping maps":  {User: true, UIDs: []IDMap{{0, 200000, 10}, {5, 300000, 10}}, GIDs: []IDMap{{0, 200000, 10}}},
		"long host name":    {UTS: true, Hostname: strings.Repeat("x", 65)},
	} {
		o.Dir = filepath.Join(t.TempDir(), "ns")
		if err := Create(t.Context(), o); err == nil {
			t.Errorf("%s: created", name)
		}
		if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left %v", name, err)
		}
	}
}

// A create that was killed half-way is begun anew.
func TestCreateAfterCrash(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := filepath.Join(t.TempDir(), "ns")
	o := Options{Dir: dir, Net: true, UTS: true}
	if err := Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Delete(t.Context(), dir) })
	if err := unix.Unmount(filepath.Join(dir, "net"), 0); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), o); err != nil || !Pinned(filepath.Join(dir, "net")) || !Pinned(filepath.Join(dir, "uts")) {
		t.Errorf("%v", err)
	}
}

// Something may be mounted on the directory itself, and on a pin more than once.
func TestDeleteNestedMounts(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := filepath.Join(t.TempDir(), "ns")
	if err := Create(t.Context(), Options{Dir: dir, UTS: true}); err != nil {
		t.Fatal(err)
	}
	for _, m := range [][2]string{{"/proc/self/ns/uts", dir + "/uts"}, {dir, dir}, {"/proc/self/ns/uts", dir + "/uts"}} {
		if err := unix.Mount(m[0], m[1], "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Delete(t.Context(), dir); err != nil {
			t.Error(err)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts are left: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A copy of the mounts that somebody made meanwhile holds no namespace longer than the pod.
func TestDeleteReachesCopies(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := filepath.Join(t.TempDir(), "ns")
	if err := Create(t.Context(), Options{Dir: dir, UTS: true}); err != nil {
		t.Fatal(err)
	}
	err := onThread(func() error { // the thread's mounts are a copy that gets no more news of ours
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			return err
		}
		if mounts, err := os.ReadFile("/proc/thread-self/mountinfo"); err != nil || !strings.Contains(string(mounts), dir) {
			t.Errorf("the copy has no pin: %v", err)
		}
		deleted := make(chan error)
		go func() { deleted <- Delete(t.Context(), dir) }()
		if err := <-deleted; err != nil {
			return err
		}
		if mounts, err := os.ReadFile("/proc/thread-self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
			t.Errorf("the copy still has the pin: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A panic in a namespace is its caller's, who may guard against it.
func TestDoPanics(t *testing.T) {
	defer func() {
		if got := recover(); got != "as asked" {
			t.Errorf("%v", got)
		}
	}()
	_ = Do("/proc/self/ns/net", func() error { panic("as asked") })
	t.Error("no panic")
}

// Threads that were in a namespace come home, or end.
func TestDoLeavesNoThreadBehind(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := filepath.Join(t.TempDir(), "ns")
	if err := Create(t.Context(), Options{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Delete(t.Context(), dir) })
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if err := Do(filepath.Join(dir, "net"), func() error { _, err := net.Interfaces(); return err }); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	away := inode(t, filepath.Join(dir, "net"))
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatal(err)
	}
	for _, thread := range threads {
		var st unix.Stat_t
		if err := unix.Stat(thread, &st); err == nil && st.Ino == away {
			t.Errorf("%s is still there", thread)
		}
	}
}

func TestDo(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := filepath.Join(t.TempDir(), "ns")
	if err := Create(t.Context(), Options{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Delete(t.Context(), dir) })
	bad := errors.New("as asked")
	if err := Do(filepath.Join(dir, "net"), func() error {
		links, err := net.Interfaces()
		if err != nil || len(links) == 0 || links[0].Name != "lo" {
			t.Errorf("%v, %v", links, err)
		}
		return bad
	}); !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
	if err := Do(filepath.Join(dir, "none"), func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestNamespaced(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward": "net", "net/ipv4/ip_forward": "net", "net/ipv4/conf/eth0.1/forwarding": "net",
		"kernel.shmmax": "ipc", "kernel.sem": "ipc", "fs.mqueue.msg_max": "ipc", "kernel.msgmnb": "ipc",
		"kernel.domainname": "uts", "kernel.panic": "", "vm.swappiness": "", "": "", "net": "", "net..x": "",
		"net./../x": "", "net/../../kernel/panic": "", "kernel.semantics": "", "fs.mqueue": "",
	} {
		if got := Namespaced(name); got != want {
			t.Errorf("Namespaced(%q) = %q, want %q", name, got, want)
		}
	}
}

// FuzzNamespaced finds no name whose file is outside /proc/sys.
func FuzzNamespaced(f *testing.F) {
	f.Add("net.ipv4.conf.eth0/1.forwarding")
	f.Add("net/../../x")
	f.Fuzz(func(t *testing.T, name string) {
		if Namespaced(name) == "" {
			return
		}
		key, _ := dotted(name)
		if at := path(key); at != filepath.Clean(at) || !strings.HasPrefix(at, "/proc/sys/") {
			t.Errorf("%q is at %q", name, at)
		}
	})
}

func BenchmarkCreate(b *testing.B) {
	kernel.Require(b, kernel.Root)
	for name, user := range map[string]bool{"plain": false, "user": true} {
		b.Run(name, func(b *testing.B) {
			o := Options{Dir: filepath.Join(b.TempDir(), "ns"), Net: true, IPC: true, UTS: true, Hostname: "web-0", User: user}
			if user {
				o.UIDs = []IDMap{{0, 200000, 65536}}
				o.GIDs = o.UIDs
			}
			for b.Loop() {
				if err := Create(b.Context(), o); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := Delete(b.Context(), o.Dir); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkDo(b *testing.B) {
	kernel.Require(b, kernel.Root)
	dir := filepath.Join(b.TempDir(), "ns")
	if err := Create(b.Context(), Options{Dir: dir, Net: true}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = Delete(b.Context(), dir) })
	for b.Loop() {
		if err := Do(filepath.Join(dir, "net"), func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
