package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

// node is a conf directory, a plugin directory and a cache.
type node struct {
	Config
	t testing.TB
}

func newNode(t testing.TB) *node {
	dir := t.TempDir()
	n := &node{t: t, Config: Config{
		ConfDir: filepath.Join(dir, "conf"), BinDirs: []string{filepath.Join(dir, "bin")}, CacheDir: filepath.Join(dir, "cache"),
	}}
	for _, d := range []string{n.ConfDir, n.BinDirs[0]} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func (n *node) open() *Network {
	n.t.Helper()
	network, err := Open(n.Config, slog.New(slog.DiscardHandler))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { network.Close() })
	return network
}

func (n *node) conf(name, text string) {
	n.t.Helper()
	path := filepath.Join(n.ConfDir, name)
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o644), os.Rename(path+".new", path)); err != nil {
		n.t.Fatal(err)
	}
}

// plugin makes a plugin of a shell script. It finds the command in $CNI_COMMAND, and a directory of its own in $DIR.
func (n *node) plugin(name, script string) {
	n.t.Helper()
	text := "#!/bin/sh\nDIR=" + n.dir() + "\n" +
		`[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0; }` + "\n" + script
	if err := os.WriteFile(filepath.Join(n.BinDirs[0], name), []byte(text), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) dir() string { return filepath.Dir(n.ConfDir) }

func (n *node) said(name string) string {
	data, _ := os.ReadFile(filepath.Join(n.dir(), name))
	return string(data)
}

const fakeList = `{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake","capabilities":{"portMappings":true,"bandwidth":true,"dns":true}}]}`

// fakeScript notes what it is asked, and gives an address.
const fakeScript = `cat >> $DIR/stdin; echo >> $DIR/stdin
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME netns=$CNI_NETNS $CNI_ARGS" >> $DIR/calls
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"},{"address":"fd00::3/64"}]}'
exit 0
`

var pod = Pod{
	ID: strings.Repeat("a", 64), Name: "web", Namespace: "default", UID: "uid-1", NetNS: "/run/x/net",
	PortMappings: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: netip.MustParseAddr("127.0.0.1")}, {ContainerPort: 9}},
	Annotations:  map[string]string{ingressBandwidth: "10M"},
	DNSServers:   []string{"10.0.0.10"},
}

func TestAddAndDel(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	n.conf("10-fake.conflist", fakeList)
	network := n.open()
	if err := network.Status(); err != nil {
		t.Fatal(err)
	}
	want := Result{Network: "fake", IPs: []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")}}
	for range 2 { // the second is answered from the cache
		got, err := network.Add(t.Context(), pod)
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
			t.Fatalf("%v\n%s", err, diff)
		}
	}
	if got := n.said("calls"); strings.Count(got, "ADD ") != 1 || !strings.Contains(got, "K8S_POD_NAME=web") || !strings.Contains(got, "netns=/run/x/net") {
		t.Errorf("calls:\n%s", got)
	}
	for _, part := range []string{`"hostPort":8080`, `"hostIP":"127.0.0.1"`, `"ingressRate":10000000`, `"servers":["10.0.0.10"]`} {
		if got := n.said("stdin"); !strings.Contains(got, part) {
			t.Errorf("the plugin was not given %s:\n%s", part, got)
		}
	}
	if ids, err := network.Attached(); err != nil || !slices.Equal(ids, []string{pod.ID}) {
		t.Errorf("%v, %v", ids, err)
	}
	// After a restart, with another configuration and without the namespace: the old one is used.
	network.Close()
	n.conf("10-fake.conflist", strings.ReplaceAll(fakeList, `"fake"`, `"other"`))
	network = n.open()
	gone := pod
	gone.NetNS = ""
	if err := network.Del(t.Context(), gone); err != nil {
		t.Error(err)
	}
	if got := n.said("calls"); !strings.Contains(got, "DEL "+pod.ID+" eth0 netns= ") {
		t.Errorf("calls:\n%s", got)
	}
	if ids, err := network.Attached(); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v", ids, err)
	}
	if err := network.Del(t.Context(), gone); err != nil {
		t.Errorf("a repeat: %v", err)
	}
}

func TestAddFails(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"error of the specification": {`[ "$CNI_COMMAND" = ADD ] && { echo '{"code":11,"msg":"no address left","details":"pool x"}'; exit 1; }; exit 0`, "no address left"},
		"garbage":                    {`[ "$CNI_COMMAND" = ADD ] && { echo garbage; exit 0; }; exit 0`, "invalid character"},
		"words on stderr":            {`[ "$CNI_COMMAND" = ADD ] && { echo "out of luck" >&2; exit 3; }; exit 0`, "out of luck"},
		"nothing":                    {`exit 0`, ""},
		"no address":                 {`[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0"}'; exit 0`, "no plugin gave"},
		"odd address":                {`[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"0.0.0.0/0"}]}'; exit 0`, "not an address"},
		"loopback":                   {`[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"127.0.0.1/8"}]}'; exit 0`, "not an address"},
		"null":                       {`[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[null]}'; exit 0`, "is null"},
		"long-winded":                {`[ "$CNI_COMMAND" = ADD ] && { head -c 100000 /dev/zero | tr '\0' x; exit 1; }; exit 0`, "xxx…"},
		"endless output":             {`[ "$CNI_COMMAND" = ADD ] && exec cat /dev/zero; exit 0`, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.plugin("fake", "cat >/dev/null\necho $CNI_COMMAND >> $DIR/calls\n"+tt.script)
			n.conf("10-fake.conflist", fakeList)
			network := n.open()
			got, err := network.Add(t.Context(), pod)
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 2*maxWords {
				t.Errorf("%+v, %v; want %q", got, err, tt.want)
			}
			if got := n.said("calls"); got != "ADD\nDEL\n" {
				t.Errorf("calls %q", got)
			}
			if ids, err := network.Attached(); err != nil || len(ids) != 0 {
				t.Errorf("left attached: %v, %v", ids, err)
			}
		})
	}
}

// A plugin that hangs is killed with its children when the caller has gone.
func TestAddHangs(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", `[ "$CNI_COMMAND" = ADD ] && { sleep 1000 & echo $! > $DIR/child; wait; }; exit 0`)
	n.conf("10-fake.conflist", fakeList)
	network := n.open()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := network.Add(ctx, pod); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	child := strings.TrimSpace(n.said("child"))
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := os.Stat("/proc/" + child); err != nil {
			return
		}
		if stat, err := os.ReadFile("/proc/" + child + "/stat"); err == nil && strings.Contains(string(stat), ") Z ") {
			return // its new parent has not looked yet
		}
	}
	t.Errorf("child %s lives", child)
}

func TestRefused(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	n.conf("10-fake.conflist", fakeList)
	network := n.open()
	for _, rate := range []string{"fast", "-1", "1", "2P"} {
		p := pod
		p.Annotations = map[string]string{egressBandwidth: rate}
		if _, err := network.Add(t.Context(), p); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", rate, err)
		}
	}
	for _, p := range []Pod{{Name: "a;IP=10.0.0.1"}, {Namespace: "a=b"}, {UID: "a\x00"}} {
		p.ID = pod.ID
		if _, err := network.Add(t.Context(), p); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if got := n.said("calls"); got != "" {
		t.Errorf("calls %q", got)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

func TestWatch(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	network := n.open()
	if err := network.Status(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), n.ConfDir) {
		t.Errorf("%v", err)
	}
	if _, err := network.Add(t.Context(), pod); !errors.Is(err, ErrNotReady) {
		t.Errorf("%v", err)
	}
	n.conf("20-fake.conflist", fakeList)
	waitFor(t, "the network", func() bool { return network.Status() == nil })
	n.conf("10-broken.conflist", "{")
	n.conf("15-missing.conflist", strings.ReplaceAll(fakeList, `"type":"fake"`, `"type":"missing"`))
	waitFor(t, "the missing plugin", func() bool {
		err := network.Status()
		return err != nil && strings.Contains(err.Error(), "missing")
	})
	if err := os.RemoveAll(n.ConfDir); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the directory to be made anew", func() bool { _, err := os.Stat(n.ConfDir); return err == nil })
	waitFor(t, "it to be watched", func() bool {
		n.conf("10-fake.conf", `{"cniVersion":"1.0.0","name":"single","type":"fake"}`)
		return network.Status() == nil
	})
}

func TestDefaultNetwork(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	n.conf("10-a.conflist", strings.ReplaceAll(fakeList, `"name":"fake"`, `"name":"a"`))
	n.conf("20-b.conflist", strings.ReplaceAll(fakeList, `"name":"fake"`, `"name":"b"`))
	n.DefaultNetwork = "b"
	if got, err := n.open().Add(t.Context(), pod); got.Network != "b" || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	n.DefaultNetwork = "c"
	if err := n.open().Status(); err == nil || !strings.Contains(err.Error(), `"c"`) {
		t.Errorf("%v", err)
	}
}

func TestSetPodCIDR(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	n.ConfTemplate = filepath.Join(n.dir(), "template")
	template := `{"cniVersion":"1.0.0","name":"made","plugins":[{"type":"fake","subnet":"{{.PodCIDR}}","routes":[{{range $i, $r := .Routes}}{{if $i}},{{end}}"{{$r}}"{{end}}]}]}`
	if err := os.WriteFile(n.ConfTemplate, []byte(template), 0o644); err != nil {
		t.Fatal(err)
	}
	network := n.open()
	if err := network.SetPodCIDR("10.9.0.0/24,fd09::/64"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(n.ConfDir, generated))
	if err != nil || !strings.Contains(string(data), `"subnet":"10.9.0.0/24","routes":["0.0.0.0/0","::/0"]`) {
		t.Errorf("%s, %v", data, err)
	}
	waitFor(t, "the network", func() bool { return network.Status() == nil })
	if err := network.SetPodCIDR("10.9.0.0"); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// plugins builds the standard plugins once for all tests of the package.
func plugins(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("ORLOP_CNI_BIN"); dir != "" {
		return dir
	}
	dir := filepath.Join(os.TempDir(), "orlop-cni-plugins-1.9.1")
	for _, name := range []string{"main/bridge", "ipam/host-local", "meta/portmap"} {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(name))); err == nil {
			continue
		}
		cmd := exec.Command("go", "install", "github.com/containernetworking/plugins/plugins/"+name+"@v1.9.1")
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "CGO_ENABLED=0")
		cmd.Dir = os.TempDir()
		if out, err := cmd.CombinedOutput(); err != nil {
			kernel.Skip(t, fmt.Sprintf("the plugin %s can't be built: %v: %s", name, err, out))
		}
	}
	return dir
}

func bridgeNode(t testing.TB) (*Network, string) {
	n := newNode(t)
	n.BinDirs = []string{plugins(t)}
	bridge := fmt.Sprintf("orlt%d", os.Getpid()%100000)
	n.conf("10-bridge.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"%s","plugins":[
		{"type":"bridge","bridge":"%s","isGateway":true,"ipMasq":false,"ipam":{"type":"host-local","dataDir":"%s","ranges":[[{"subnet":"10.213.77.0/24"}]]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`, bridge, bridge, n.dir()))
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", bridge).Run() })
	return n.open(), filepath.Join(n.dir(), bridge)
}

func TestStandardPlugins(t *testing.T) {
	kernel.Require(t, kernel.Root, kernel.Command("ip"))
	network, leases := bridgeNode(t)
	if err := network.Status(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "ns")
	if err := ns.Create(t.Context(), ns.Options{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Delete(context.Background(), dir) })
	p := Pod{ID: strings.Repeat("b", 64), Name: "web", Namespace: "default", NetNS: filepath.Join(dir, "net")}
	got, err := network.Add(t.Context(), p)
	if err != nil || len(got.IPs) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	out, err := exec.Command("nsenter", "--net="+p.NetNS, "ip", "-4", "-o", "addr", "show", "eth0").CombinedOutput()
	if err != nil || !strings.Contains(string(out), got.IPs[0].String()) {
		t.Errorf("%s, %v", out, err)
	}
	if err := ns.Delete(t.Context(), dir); err != nil { // as after a reboot
		t.Fatal(err)
	}
	p.NetNS = ""
	if err := network.Del(t.Context(), p); err != nil {
		t.Error(err)
	}
	checkNoLeases(t, leases)
}

func BenchmarkAdd(b *testing.B) {
	kernel.Require(b, kernel.Root, kernel.Command("ip"))
	network, _ := bridgeNode(b)
	dir := filepath.Join(b.TempDir(), "ns")
	p := Pod{ID: strings.Repeat("c", 64), Name: "web", Namespace: "default", NetNS: filepath.Join(dir, "net")}
	for b.Loop() {
		b.StopTimer()
		if err := ns.Create(b.Context(), ns.Options{Dir: dir, Net: true}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := network.Add(b.Context(), p); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := errors.Join(network.Del(b.Context(), p), ns.Delete(b.Context(), dir)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
