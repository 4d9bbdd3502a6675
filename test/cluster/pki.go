package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki holds the cluster's certificates, each as NAME.crt and NAME.key in one directory.
type pki struct {
	dir    string
	ca     *authority
	serial int64
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (p *pki) path(file string) string { return filepath.Join(p.dir, file) }

func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	p := &pki{dir: dir}
	var err error
	if p.ca, err = p.authority("ca"); err != nil {
		return nil, err
	}
	front, err := p.authority("front-ca")
	if err != nil {
		return nil, err
	}
	if err := p.serviceAccountKey(); err != nil {
		return nil, err
	}
	hosts := []string{"127.0.0.1", IP, ServiceIP, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + Domain}
	for _, c := range []struct {
		name string
		who  pkix.Name
		by   *authority
		host []string // of a server
	}{
		{"apiserver", pkix.Name{CommonName: "kube-apiserver"}, p.ca, hosts},
		{"apiserver-kubelet-client", pkix.Name{Organization: []string{"system:masters"}, CommonName: "apiserver-kubelet-client"}, p.ca, nil},
		{"front-proxy-client", pkix.Name{CommonName: "front-proxy-client"}, front, nil},
		{"admin", pkix.Name{Organization: []string{"system:masters"}, CommonName: "admin"}, p.ca, nil},
		{"controller-manager", pkix.Name{CommonName: "system:kube-controller-manager"}, p.ca, nil},
		{"scheduler", pkix.Name{CommonName: "system:kube-scheduler"}, p.ca, nil},
	} {
		if err := p.certificate(c.name, c.who, c.by, c.host); err != nil {
			return nil, err
		}
		if err := p.kubeconfig(c.name); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *pki) template(who pkix.Name) *x509.Certificate {
	p.serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(p.serial), Subject: who, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func (p *pki) authority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := p.template(pkix.Name{CommonName: "test-" + name})
	t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	a := &authority{cert: t, key: key}
	return a, p.sign(name, t, key, a)
}

func (p *pki) certificate(name string, who pkix.Name, by *authority, hosts []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := p.template(who)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if hosts != nil {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, host)
		}
	}
	return p.sign(name, t, key, by)
}

func (p *pki) sign(name string, t *x509.Certificate, key *ecdsa.PrivateKey, by *authority) error {
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, &key.PublicKey, by.key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := p.write(name+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return p.write(name+".key", "EC PRIVATE KEY", private)
}

func (p *pki) serviceAccountKey() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	if err := p.write("sa.pub", "PUBLIC KEY", public); err != nil {
		return err
	}
	return p.write("sa.key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

func (p *pki) write(file, kind string, der []byte) error {
	return os.WriteFile(p.path(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (p *pki) kubeconfig(name string) error {
	return p.config(name, fmt.Sprintf("client-certificate: %s, client-key: %s", p.path(name+".crt"), p.path(name+".key")))
}

func (p *pki) config(name, user string) error {
	return os.WriteFile(p.path(name+".kubeconfig"), fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster: {server: %q, certificate-authority: %s}
contexts:
- name: test
  context: {cluster: test, user: test}
users:
- name: test
  user: {%s}
`, apiServer, p.path("ca.crt"), user), 0o600)
}

// Kubeconfig is the file by which NAME reaches the API server: admin, controller-manager, scheduler, or a node's user.
func (c *Cluster) Kubeconfig(name string) string { return c.pki.path(name + ".kubeconfig") }

// File is a file of the cluster's certificates, such as ca.crt.
func (c *Cluster) File(name string) string { return c.pki.path(name) }

// AddNode makes what a kubelet needs: NODE.kubeconfig for its client, and NODE-server.crt and .key for its server.
func (c *Cluster) AddNode(node string) error {
	who := pkix.Name{Organization: []string{"system:nodes"}, CommonName: "system:node:" + node}
	if err := c.pki.certificate(node, who, c.pki.ca, nil); err != nil {
		return err
	}
	if err := c.pki.certificate(node+"-server", who, c.pki.ca, []string{"127.0.0.1", IP, node, "localhost"}); err != nil {
		return err
	}
	return c.pki.kubeconfig(node)
}

// AddToken makes NAME.kubeconfig that authenticates by a bearer token, as a bootstrap kubeconfig does.
func (c *Cluster) AddToken(name, token string) error { return c.pki.config(name, "token: "+token) }
