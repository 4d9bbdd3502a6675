package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/cluster"
	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/images"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/registry"
)

const shop = `
apiVersion: v1
kind: Pod
metadata: {name: shop, labels: {app: shop}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: IMAGE, command: [httpd, -f, -p, "8080", -h, /data]}]
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  selector: {app: shop}
  ports: [{port: 80, targetPort: 8080}]
`

// The proxy runs as the DaemonSet in contrib says, and kubectl finds it as it finds kube-proxy; when it is deleted the rules
// stay, and --cleanup leaves nothing of them.
func TestProxyDaemonSet(t *testing.T) {
	kernel.Require(t, kernel.Command("nft"))
	s := alone(t)
	removeTraces(t)
	t.Cleanup(func() { // also of a test that failed
		if out, err := exec.Command(proxyBinary(t), "--cleanup").CombinedOutput(); err != nil {
			t.Errorf("--cleanup: %v: %s", err, out)
		}
	})
	routeServices(t)
	proxy := pushProxy(t)
	s.apply(shop)
	s.waitPod("shop", "ready", ready)
	address := s.kubectl("get", "service", "shop", "-o", "jsonpath={.spec.clusterIP}")
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			s := &space{t, s.name}
			chains, tables := firewall(t)
			manifest := daemonSet(t, proxy, mode)
			if _, err := s.tryKubectl(manifest, "-n", "kube-system", "apply", "-f", "-"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.removeDaemonSet(manifest) })
			s.eventually("the Service", func() error { return page("http://" + address + "/in-image") })
			s.eventually("the proxy's log", func() error {
				out, err := s.tryKubectl("", "logs", "-n", "kube-system", "-l", "k8s-app=kube-proxy")
				if err == nil && !strings.Contains(out, "all rules are set") {
					err = fmt.Errorf("it says %q", out)
				}
				return err
			})
			s.removeDaemonSet(manifest)
			if err := page("http://" + address + "/in-image"); err != nil {
				t.Errorf("without the proxy its rules are gone: %v", err)
			}
			if out, err := exec.Command(proxyBinary(t), "--cleanup").CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("--cleanup: %v: %s", err, out)
			}
			nowChains, nowTables := firewall(t)
			for table := range tables {
				delete(nowTables, table)
			}
			for _, table := range []string{"ip mangle", "ip6 mangle", "ip filter", "ip6 filter", "ip nat", "ip6 nat"} {
				delete(nowTables, table) // iptables makes them once, and they stay, empty
			}
			maps.DeleteFunc(nowChains, func(chain, _ string) bool { return chains[chain] != "" || builtin.MatchString(chain) })
			if len(nowTables) > 0 || len(nowChains) > 0 {
				t.Errorf("left: tables %v, chains %v", nowTables, nowChains)
			}
		})
	}
}

// routeServices is what a default route does on other nodes: without a route to it, nobody sends to a Service.
func routeServices(t *testing.T) {
	t.Helper()
	link, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	_, services, err := net.ParseCIDR(cluster.ServiceCIDR)
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{Dst: services, LinkIndex: link.Attrs().Index, Src: net.ParseIP(cluster.IP)}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.RouteDel(route); err != nil {
			t.Error(err)
		}
	})
}

// builtin are the chains of iptables' own tables, and the one that is a kubelet's, too.
var builtin = regexp.MustCompile(`^ip6? (mangle|nat|filter) (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING|KUBE-FIREWALL)$`)

func proxyBinary(t *testing.T) string {
	t.Helper()
	bins, err := daemon.Build()
	if err != nil {
		t.Fatal(err)
	}
	return bins.Proxy
}

// pushProxy makes an image as the Containerfile in contrib does, and has the runtime pull it.
func pushProxy(t *testing.T) string {
	t.Helper()
	base, err := images.Get(t.Context(), "iptables")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(proxyBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	img, err := base.WithFile("usr/local/bin/orlop-proxy", 0o755, program)
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Start(registry.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.WriteCA(runtime.CertsDir); err != nil {
		t.Fatal(err)
	}
	name, err := r.Push(img, "test/proxy", "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := pull(t.Context(), runtime.Client, name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := runtime.Client.Image.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
		if err := errors.Join(err, os.RemoveAll(filepath.Join(runtime.CertsDir, r.Host))); err != nil {
			t.Error(err)
		}
	})
	return name
}

// daemonSet is the manifest in contrib, with what is marked there as this cluster has it.
func daemonSet(t *testing.T, image, mode string) string {
	t.Helper()
	data, err := os.ReadFile("../../contrib/kubernetes/orlop-proxy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for old, now := range map[string]string{
		"mode: nftables": "mode: " + mode, "10.244.0.0/16": "10.203.2.0/24", "https://control-plane.example:6443": "https://" + cluster.IP + ":6443",
		"localhost/orlop-proxy:latest": image, "path: /lib/modules": "path: " + t.TempDir(), // the machine may have none
	} {
		if strings.Count(text, old) != 1 {
			t.Fatalf("the manifest has %q %d times", old, strings.Count(text, old))
		}
		text = strings.Replace(text, old, now, 1)
	}
	return text
}

// removeDaemonSet waits until the node has nothing of it.
func (s *space) removeDaemonSet(manifest string) {
	s.Helper()
	cmd := s.command(context.Background(), "-n", "kube-system", "delete", "--ignore-not-found", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Errorf("kubectl delete: %v: %s", err, out)
	}
	var pods []v1.Pod
	err := criclient.Wait(context.Background(), patience, func() bool {
		list, err := control.Client.CoreV1().Pods("kube-system").List(context.Background(), metav1.ListOptions{LabelSelector: "k8s-app=kube-proxy"})
		pods = list.Items
		return err == nil && len(pods) == 0
	})
	if err != nil {
		s.Errorf("the proxy's pods do not go: %v", pods)
	}
}

// page is an error unless a server has the file.
func page(url string) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && string(body) != "from the image\n" {
		err = fmt.Errorf("%s: %q", r.Status, body)
	}
	return err
}
