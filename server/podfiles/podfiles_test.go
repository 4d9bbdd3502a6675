package podfiles

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/kernel"
)

func TestResolvConf(t *testing.T) {
	for _, tt := range []struct {
		dns  *cri.DNSConfig
		want string
		bad  bool
	}{
		{
			dns:  &cri.DNSConfig{Servers: []string{"10.0.0.10", "fd00::1"}, Searches: []string{"ns.svc", "svc"}, Options: []string{"ndots:5"}},
			want: "search ns.svc svc\nnameserver 10.0.0.10\nnameserver fd00::1\noptions ndots:5\n",
		},
		{dns: &cri.DNSConfig{Servers: []string{"10.0.0.10\nnameserver 6.6.6.6"}}, bad: true},
		{dns: &cri.DNSConfig{Searches: []string{""}}, bad: true},
		{dns: &cri.DNSConfig{Options: []string{"a b"}}, bad: true},
	} {
		got, err := resolvConf(tt.dns)
		if got != tt.want || errors.Is(err, ErrInvalid) != tt.bad {
			t.Errorf("%v: %q, %v", tt.dns, got, err)
		}
	}
}

func TestResolvConfOfTheNode(t *testing.T) {
	hostResolv = t.TempDir() + "/resolv.conf"
	defer func() { hostResolv = "/etc/resolv.conf" }()
	if got, err := resolvConf(nil); got != "" || err != nil {
		t.Errorf("none: %q, %v", got, err)
	}
	if err := os.WriteFile(hostResolv, []byte("nameserver 9.9.9.9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dns := range []*cri.DNSConfig{nil, {}} {
		if got, err := resolvConf(dns); got != "nameserver 9.9.9.9\n" || err != nil {
			t.Errorf("%v: %q, %v", dns, got, err)
		}
	}
}

func TestHosts(t *testing.T) {
	hostHosts = t.TempDir() + "/hosts"
	defer func() { hostHosts = "/etc/hosts" }()
	if err := os.WriteFile(hostHosts, []byte("10.1.2.3 node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for onHost, want := range map[bool]string{false: podHosts, true: "10.1.2.3 node\n"} {
		if got, err := (Files{Hostname: "node", HostNetwork: onHost}).hosts(); got != want || err != nil {
			t.Errorf("host network %v: %q, %v", onHost, got, err)
		}
	}
}

// FuzzResolvConf finds no value that adds a line, or a word to its line.
func FuzzResolvConf(f *testing.F) {
	f.Add("10.0.0.10", "svc.cluster.local", "ndots:5")
	f.Add("a\nnameserver b", "c d", "e\r")
	f.Fuzz(func(t *testing.T, server, search, option string) {
		got, err := resolvConf(&cri.DNSConfig{Servers: []string{server}, Searches: []string{search}, Options: []string{option}})
		if err != nil {
			return
		}
		lines := strings.Split(got, "\n")
		if len(lines) != 4 || lines[3] != "" {
			t.Errorf("%q", got)
		}
		for _, line := range lines[:3] {
			if len(strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })) != 2 {
				t.Errorf("%q", line)
			}
		}
	})
}

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

func TestMakeAndRemove(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := t.TempDir()
	f := Files{Dir: dir, DNS: &cri.DNSConfig{}, Hostname: "web-0", ShmBytes: 8 << 20}
	for range 2 { // a repeat mounts nothing twice
		if err := Make(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(Shm(dir), &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != 8<<20 {
		t.Errorf("shm: %+v, %v", st, err)
	}
	if info, err := os.Stat(Shm(dir)); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("shm: %v, %v", info.Mode(), err)
	}
	if name, err := os.ReadFile(Hostname(dir)); string(name) != "web-0\n" || err != nil {
		t.Errorf("hostname %q, %v", name, err)
	}
	held, err := os.Create(Shm(dir) + "/held") // in use
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for range 2 {
		if err := Remove(t.Context(), dir); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
		t.Errorf("left %v, %v", left, err)
	}
}
