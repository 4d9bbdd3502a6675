// Package cluster runs a real Kubernetes control plane for tests: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler, built from their Go modules, in the network namespace of the caller. Real kubelets join it too, so that a
// test can be run on both.
package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/orlop/orlop/test/process"
)

// Where things are. An API server and a node may not have a loopback address, so this one is put on lo.
const (
	IP           = "172.31.99.1"
	ServiceCIDR  = "10.96.0.0/16"
	ServiceIP    = "10.96.0.1"
	Domain       = "cluster.local"
	apiServer    = "https://" + IP + ":6443"
	startTime    = 2 * time.Minute
	etcdEndpoint = "http://127.0.0.1:2379"
)

// Cluster is a control plane that runs.
type Cluster struct {
	*process.Group // etcd, kube-apiserver, kube-controller-manager, kube-scheduler and what others run; Dir is of all its state
	Bin            Binaries
	Client         kubernetes.Interface // as administrator
	pki            *pki
}

// Start starts a control plane below dir and waits until it serves. It builds what is missing of the binaries, which takes
// many minutes the first time.
func Start(ctx context.Context, dir string) (_ *Cluster, err error) {
	bin, err := Build()
	if err != nil {
		return nil, err
	}
	if err := addAddress(); err != nil {
		return nil, err
	}
	c := &Cluster{Bin: bin}
	if c.Group, err = process.New(dir); err != nil {
		return nil, err
	}
	if c.pki, err = newPKI(filepath.Join(dir, "pki")); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	for _, start := range []func(context.Context) error{c.startEtcd, c.startAPIServer, c.startControllers, c.ready} {
		if err := start(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func addAddress() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(IP + "/32")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("address of the API server: %w", err)
	}
	return nil
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	err := c.Run("etcd", nil, c.Bin.Etcd, "--name", "test", "--data-dir", filepath.Join(c.Dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", etcdEndpoint, "--advertise-client-urls", etcdEndpoint,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "test=http://127.0.0.1:2380", "--log-level", "warn")
	if err != nil {
		return err
	}
	return c.waitHTTP(ctx, "etcd", etcdEndpoint+"/health", nil)
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	p := c.pki.path
	err := c.Run("kube-apiserver", nil, c.Bin.APIServer,
		"--bind-address="+IP, "--advertise-address="+IP, "--secure-port=6443", "--etcd-servers="+etcdEndpoint,
		"--service-cluster-ip-range="+ServiceCIDR, "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth=true",
		"--client-ca-file="+p("ca.crt"), "--tls-cert-file="+p("apiserver.crt"), "--tls-private-key-file="+p("apiserver.key"),
		"--kubelet-client-certificate="+p("apiserver-kubelet-client.crt"), "--kubelet-client-key="+p("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority="+p("ca.crt"), "--kubelet-preferred-address-types=InternalIP,Hostname",
		"--service-account-issuer=https://kubernetes.default.svc."+Domain,
		"--service-account-key-file="+p("sa.pub"), "--service-account-signing-key-file="+p("sa.key"),
		"--requestheader-client-ca-file="+p("front-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+p("front-proxy-client.crt"), "--proxy-client-key-file="+p("front-proxy-client.key"))
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig("admin"))
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 500, 1000
	if c.Client == nil {
		if c.Client, err = kubernetes.NewForConfig(config); err != nil {
			return err
		}
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return err
	}
	return c.waitHTTP(ctx, "kube-apiserver", apiServer+"/readyz", transport)
}

func (c *Cluster) startControllers(ctx context.Context) error {
	p := c.pki.path
	manager := c.Kubeconfig("controller-manager")
	err := c.Run("kube-controller-manager", nil, c.Bin.ControllerManager, "--bind-address=127.0.0.1", "--leader-elect=false",
		"--kubeconfig="+manager, "--authentication-kubeconfig="+manager, "--authorization-kubeconfig="+manager,
		"--allocate-node-cidrs=false", "--service-cluster-ip-range="+ServiceCIDR,
		"--cluster-signing-cert-file="+p("ca.crt"), "--cluster-signing-key-file="+p("ca.key"), "--root-ca-file="+p("ca.crt"),
		"--service-account-private-key-file="+p("sa.key"), "--use-service-account-credentials=true")
	if err != nil {
		return err
	}
	scheduler := c.Kubeconfig("scheduler")
	err = c.Run("kube-scheduler", nil, c.Bin.Scheduler, "--bind-address=127.0.0.1", "--leader-elect=false",
		"--kubeconfig="+scheduler, "--authentication-kubeconfig="+scheduler, "--authorization-kubeconfig="+scheduler)
	if err != nil {
		return err
	}
	insecure := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return errors.Join(
		c.waitHTTP(ctx, "kube-controller-manager", "https://127.0.0.1:10257/healthz", insecure),
		c.waitHTTP(ctx, "kube-scheduler", "https://127.0.0.1:10259/healthz", insecure))
}

// ready waits for what pods need: without its service account none is admitted.
func (c *Cluster) ready(ctx context.Context) error {
	return poll(ctx, "the service account default", func() error {
		_, err := c.Client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// StartAPIServer starts the API server anew, after it was killed, on the same data.
func (c *Cluster) StartAPIServer(ctx context.Context) error { return c.startAPIServer(ctx) }

func (c *Cluster) waitHTTP(ctx context.Context, name, url string, transport http.RoundTripper) error {
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	err := poll(ctx, url, func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, c.Tail(name, 2000))
	}
	return nil
}

// poll asks until there is no error.
func poll(ctx context.Context, what string, ask func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-tick.C:
		}
	}
}
