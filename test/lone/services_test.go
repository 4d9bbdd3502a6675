package lone

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/process"
	"github.com/orlop/orlop/test/shim"
)

// server is a pod that says its name.
const server = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: SPACE, labels: {app: hello}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "mkdir -p /www; echo NAME > /www/index.html; exec busybox httpd -f -p 8080 -h /www"]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /index.html, port: http}, periodSeconds: 1}
`

const helloService = `
apiVersion: v1
kind: Service
metadata: {name: hello, namespace: SPACE}
spec:
  clusterIP: 10.96.77.1
  type: NodePort
  selector: {app: hello}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30777}]
`

// TestServices: the three layers of a lone machine together. The proxy has Services from a directory and their endpoints from
// the shim, whose pods it reaches by their addresses in Orlop's network; they come and go with their manifests, and stay while
// the shim is away.
func TestServices(t *testing.T) {
	p := first.begin(t)
	proxy := p.startProxy()
	p.write("a.yaml", strings.ReplaceAll(server, "NAME", "a"))
	p.write("b.yaml", strings.ReplaceAll(server, "NAME", "b"))
	p.waitPod("a", "ready", ready)
	p.routeServices()
	p.answers("http://10.96.77.1/", "a b")
	p.answers("http://"+bindAddress+":30777/", "a b")
	out, err := p.exec("a", "main", "busybox", "wget", "-q", "-O", "-", "http://10.96.77.1/")
	if name := strings.TrimSpace(out); err != nil || name != "a" && name != "b" {
		t.Errorf("from a pod: %q, %v", out, err)
	}
	if err := p.shim.Kill(); err != nil {
		t.Fatal(err)
	}
	p.answers("http://10.96.77.1/", "a b") // as long as nobody says otherwise
	if err := proxy.Kill("proxy"); err != nil {
		t.Fatal(err)
	}
	p.answers("http://10.96.77.1/", "a b") // rules stay
	if err := p.shim.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.run(proxy)
	p.remove("a.yaml")
	p.gone("a")
	p.answers("http://10.96.77.1/", "b")
	p.write("a.yaml", strings.ReplaceAll(server, "NAME", "c"))
	p.answers("http://10.96.77.1/", "b c")
}

// bindAddress is the node's own in these tests: nobody is outside.
const bindAddress = "10.203.1.1"

// routeServices has the machine know a way to Services, as it would by its default route; it has none.
func (p *play) routeServices() {
	p.Helper()
	link, err := netlink.LinkByName("orlop1")
	if err != nil {
		p.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(10, 96, 0, 0), Mask: net.CIDRMask(16, 32)}}
	if err := netlink.RouteReplace(route); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() {
		if err := netlink.RouteDel(route); err != nil {
			p.Error(err)
		}
	})
}

// startProxy runs a proxy until the test ends, which removes its rules.
func (p *play) startProxy() *process.Group {
	p.Helper()
	group, err := process.New(filepath.Join(base, "p"))
	if err != nil {
		p.Fatal(err)
	}
	services := filepath.Join(group.Dir, "services")
	if err := errors.Join(os.MkdirAll(services, 0o755), os.WriteFile(filepath.Join(services, "hello.yaml"), []byte(p.fill(helloService)), 0o644)); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() {
		if p.Failed() {
			p.Logf("the end of the proxy's log:\n%s", group.Tail("proxy", 4000))
		}
		err := group.Stop()
		if out, cleanupErr := exec.Command(p.proxyProgram(), "--cleanup").CombinedOutput(); cleanupErr != nil {
			err = errors.Join(err, fmt.Errorf("--cleanup: %w: %s", cleanupErr, out))
		}
		if err != nil {
			p.Error(err)
		}
	})
	p.run(group)
	return group
}

func (p *play) proxyProgram() string {
	p.Helper()
	bins, err := daemon.Build()
	if err != nil {
		p.Fatal(err)
	}
	return bins.Proxy
}

func (p *play) run(group *process.Group) {
	p.Helper()
	err := group.Run("proxy", nil, p.proxyProgram(), "--services-dir", filepath.Join(group.Dir, "services"), "--kubelet-url", p.shim.API().Host,
		"--hostname-override", shim.NodeName, "--cluster-cidr", "10.203.1.0/24", "--bind-address", bindAddress, "--conntrack-max-per-core", "0",
		"--oom-score-adj", "0", "--log-level", "debug")
	if err != nil {
		p.Fatal(err)
	}
}

// answers waits until these, and only these, answer at a URL.
func (p *play) answers(url, names string) {
	p.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	p.eventually(fmt.Sprintf("%s to answer at %s", names, url), func() error {
		seen := map[string]bool{}
		for range 40 {
			r, err := client.Get(url)
			if err != nil {
				return err
			}
			body, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err != nil {
				return err
			}
			seen[strings.TrimSpace(string(body))] = true
		}
		for name := range strings.FieldsSeq(names) {
			if !seen[name] {
				return fmt.Errorf("%s never answers, of %v", name, seen)
			}
			delete(seen, name)
		}
		if len(seen) > 0 {
			return fmt.Errorf("%v answer too", seen)
		}
		return nil
	})
}
