// Package cert gets and renews the certificates of a node: the one by which the API server knows the kubelet, asked for with
// a bootstrap token at first (TLS bootstrap), and the one that the kubelet API shows.
package cert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	certificates "k8s.io/api/certificates/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/connrotation"
)

// Client is how the API server is reached.
type Client struct {
	Node       string
	Kubeconfig string
	Bootstrap  string // kubeconfig with which a certificate may be asked for; "" without
	Dir        string // of certificates
	Rotate     bool   // rotateCertificates: renew the certificate before it expires
	Log        *slog.Logger
}

// Config reads the kubeconfig. If that does not exist, or its certificate has expired, a certificate is asked for with the bootstrap kubeconfig, which may
// wait for somebody to approve the request, and the kubeconfig is written. A certificate that is renewed later is used for
// all connections from then on. ctx limits all of this, renewals too.
func (c Client) Config(ctx context.Context) (*rest.Config, error) {
	if c.Bootstrap != "" && !c.usable() {
		return c.bootstrap(ctx)
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	if !c.Rotate || config.CertFile == "" && len(config.CertData) == 0 {
		return config, nil
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	first, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	k, err := c.keeper(ctx, config, &first)
	if err != nil {
		return nil, err
	}
	return c.follow(ctx, rest.AnonymousClientConfig(config), k)
}

// usable tells whether the kubeconfig can be read and none of its certificates has expired: a node that was off for a year
// joins anew.
func (c Client) usable() bool {
	if _, err := os.Stat(c.Kubeconfig); errors.Is(err, fs.ErrNotExist) {
		return false
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err == nil {
		err = rest.LoadTLSFiles(config)
	}
	if err != nil {
		c.Log.Warn("kubeconfig is not used, its node joins anew", "file", c.Kubeconfig, "err", err)
		return false
	}
	if len(config.CertData) == 0 {
		return true // a token, or a program that gives credentials
	}
	chain, err := certutil.ParseCertsPEM(config.CertData)
	if err != nil {
		c.Log.Warn("kubeconfig is not used, its node joins anew", "file", c.Kubeconfig, "err", err)
		return false
	}
	for _, certificate := range chain {
		if time.Now().After(certificate.NotAfter) {
			c.Log.Warn("client certificate has expired, its node joins anew", "file", c.Kubeconfig, "end", certificate.NotAfter)
			return false
		}
	}
	return true
}

// bootstrap asks for the first certificate.
func (c Client) bootstrap(ctx context.Context) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Bootstrap)
	if err != nil {
		return nil, fmt.Errorf("--bootstrap-kubeconfig: %w", err)
	}
	k, err := c.keeper(ctx, config, nil)
	if err != nil {
		return nil, err
	}
	c.Log.Info("asking for a client certificate; somebody may have to approve the request", "node", c.Node)
	if err := waitFor(ctx, k); err != nil {
		return nil, err
	}
	plain := rest.AnonymousClientConfig(config)
	if err := writeKubeconfig(c.Kubeconfig, plain, k.files.current()); err != nil {
		return nil, err
	}
	return c.follow(ctx, plain, k)
}

// waitFor waits until there is a certificate.
func waitFor(ctx context.Context, k *keeper) error {
	for k.current() == nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("no certificate was given: %w", ctx.Err())
		case <-k.renewed:
		}
	}
	return nil
}

// keeper asks for client certificates: with base's credentials for the first one, and with each for the next. first is the
// one that base has; nil for none.
func (c Client) keeper(ctx context.Context, base *rest.Config, first *tls.Certificate) (*keeper, error) {
	k := &keeper{
		files: files{dir: c.Dir, prefix: "kubelet-client"}, signer: certificates.KubeAPIServerClientKubeletSignerName,
		template: x509.CertificateRequest{Subject: subject(c.Node)}, log: c.Log,
		usages: []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageClientAuth},
		config: func(current *tls.Certificate) (*rest.Config, error) {
			if current == nil {
				return base, nil
			}
			config, _, err := withCertificate(rest.AnonymousClientConfig(base), func() *tls.Certificate { return current })
			return config, err
		},
	}
	return k, k.start(ctx, first)
}

func subject(node string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
}

// follow makes a config whose connections use the keeper's certificate. When that is renewed, connections with the old one
// are closed, since they would go on with it.
func (c Client) follow(ctx context.Context, plain *rest.Config, k *keeper) (*rest.Config, error) {
	config, dialer, err := withCertificate(plain, k.current)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-k.renewed:
				c.Log.Info("client certificate renewed")
				dialer.CloseAll()
			}
		}
	}()
	return config, nil
}

// withCertificate lets connections of a config without credentials show a certificate.
func withCertificate(plain *rest.Config, current func() *tls.Certificate) (*rest.Config, *connrotation.Dialer, error) {
	tlsConfig, err := rest.TLSConfigFor(plain)
	if err != nil {
		return nil, nil, err
	}
	if tlsConfig == nil {
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if c := current(); c != nil {
			return c, nil
		}
		return &tls.Certificate{}, nil
	}
	dialer := connrotation.NewDialer((&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext)
	config := rest.CopyConfig(plain)
	config.Transport = utilnet.SetTransportDefaults(&http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, TLSClientConfig: tlsConfig,
		MaxIdleConnsPerHost: 25, DialContext: dialer.DialContext,
	})
	config.TLSClientConfig = rest.TLSClientConfig{} // it is in the transport
	return config, dialer, nil
}

// writeKubeconfig writes what reaches the API server with the certificate in a file, for this program when it starts again
// and for people.
func writeKubeconfig(path string, plain *rest.Config, certFile string) error {
	const name = "default"
	c := clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server: plain.Host, InsecureSkipTLSVerify: plain.Insecure, CertificateAuthority: plain.CAFile, CertificateAuthorityData: plain.CAData,
		}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {ClientCertificate: certFile, ClientKey: certFile}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	if err := clientcmd.WriteToFile(c, path); err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	return nil
}

// Serving is the certificate of the kubelet API, asked for at the API server (serverTLSBootstrap).
type Serving struct {
	Node   string
	IPs    []net.IP
	Dir    string
	Config *rest.Config // how the API server is reached
	Log    *slog.Logger
}

// Get asks for the certificate, which somebody must approve, and renews it until ctx ends. Until there is one, handshakes
// fail.
func (s Serving) Get(ctx context.Context) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	k := &keeper{
		files: files{dir: s.Dir, prefix: "kubelet-server"}, signer: certificates.KubeletServingSignerName, log: s.Log,
		template: x509.CertificateRequest{Subject: subject(s.Node), DNSNames: []string{s.Node}, IPAddresses: s.IPs},
		usages:   []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageServerAuth},
		config:   func(*tls.Certificate) (*rest.Config, error) { return s.Config, nil },
	}
	if err := k.start(ctx, nil); err != nil {
		return nil, err
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if c := k.current(); c != nil {
			return c, nil
		}
		return nil, errors.New("no serving certificate yet; approve the node's request, see `kubectl get csr`")
	}, nil
}
