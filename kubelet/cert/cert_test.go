package cert

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/orlop/orlop/internal/kube/kubetest"
)

// authority signs what is asked for, as an API server whose controllers approve everything.
type authority struct {
	key      *ecdsa.PrivateKey
	cert     *x509.Certificate
	lifetime time.Duration // of what it signs, which began two hours ago
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, parsed, time.Hour}
}

func (a *authority) sign(request []byte) ([]byte, error) {
	block, _ := pem.Decode(request)
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return a.issue(r.Subject, r.PublicKey, &x509.Certificate{DNSNames: r.DNSNames, IPAddresses: r.IPAddresses}, time.Now().Add(a.lifetime))
}

func (a *authority) issue(subject pkix.Name, key any, names *x509.Certificate, end time.Time) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: subject, DNSNames: names.DNSNames, IPAddresses: names.IPAddresses,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature,
	}, a.cert, key, a.key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// approve signs a request as soon as it is made.
func (a *authority) approve(t *testing.T, o kubetest.Object) *certificates.CertificateSigningRequest {
	r, ok := o.(*certificates.CertificateSigningRequest)
	if !ok {
		t.Errorf("somebody made a %T", o)
		return nil
	}
	signed, err := a.sign(r.Spec.Request)
	if err != nil {
		t.Error(err)
	}
	r.Status.Certificate = signed
	r.Status.Conditions = []certificates.CertificateSigningRequestCondition{{Type: certificates.CertificateApproved, Status: v1.ConditionTrue}}
	return r
}

// TestServing: a certificate for the node's names is asked for, kept in a file, and shown.
func TestServing(t *testing.T) {
	a := newAuthority(t)
	server := kubetest.New(t)
	asked := make(chan *certificates.CertificateSigningRequest, 10)
	server.Break(kubetest.Faults{OnCreate: func(o kubetest.Object) { asked <- a.approve(t, o) }})
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	serving := Serving{
		Node: "n", IPs: []net.IP{net.IPv4(192, 0, 2, 1)}, Dir: dir, Config: &rest.Config{Host: server.URL}, Log: slog.New(slog.DiscardHandler),
	}
	get, err := serving.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := <-asked
	if r.Spec.SignerName != certificates.KubeletServingSignerName {
		t.Errorf("signer %s", r.Spec.SignerName)
	}
	deadline, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	c, err := get(nil)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; err != nil && deadline.Err() == nil; c, err = get(nil) {
		<-tick.C
	}
	if err != nil {
		t.Fatal(err)
	}
	if c.Leaf.Subject.CommonName != "system:node:n" || c.Leaf.DNSNames[0] != "n" || !c.Leaf.IPAddresses[0].Equal(net.IPv4(192, 0, 2, 1)) {
		t.Errorf("%+v", c.Leaf)
	}
	if _, err := os.Stat(filepath.Join(dir, "kubelet-server-current.pem")); err != nil {
		t.Error(err)
	}
}

// TestUsable: a kubeconfig that can't serve any more makes the node join anew.
func TestUsable(t *testing.T) {
	a := newAuthority(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(end time.Time) string {
		signed, err := a.issue(subject("n"), &key.PublicKey, &x509.Certificate{}, end)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "pair.pem")
		both := append(signed, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...)
		if err := os.WriteFile(file, both, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	const with = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n" +
		"contexts: [{name: c, context: {cluster: c, user: c}}]\nusers: [{name: c, user: {%s}}]\n"
	byFile := func(file string) string {
		return fmt.Sprintf(with, fmt.Sprintf("client-certificate: %s, client-key: %s", file, file))
	}
	for name, tt := range map[string]struct {
		text string
		want bool
	}{
		"absent":                  {"", false},
		"a good certificate":      {byFile(pair(time.Now().Add(time.Hour))), true},
		"an expired certificate":  {byFile(pair(time.Now().Add(-time.Hour))), false},
		"a certificate that went": {byFile("/nonexistent.pem"), false},
		"a token":                 {fmt.Sprintf(with, "token: abc"), true},
		"no kubeconfig":           {"{", false},
	} {
		file := filepath.Join(t.TempDir(), "kubeconfig")
		if tt.text != "" {
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := Client{Kubeconfig: file, Log: slog.New(slog.DiscardHandler)}
		if got := c.usable(); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}

// TestWriteKubeconfig: what is written leads to the API server with the certificate, and without the bootstrap token.
func TestWriteKubeconfig(t *testing.T) {
	source := filepath.Join(t.TempDir(), "bootstrap")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1', insecure-skip-tls-verify: true}}]\n" +
		"contexts: [{name: c, context: {cluster: c, user: c}}]\nusers: [{name: c, user: {token: secret}}]\n"
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", source)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "sub", "kubeconfig")
	if err := writeKubeconfig(file, rest.AnonymousClientConfig(config), "/pki/current.pem"); err != nil {
		t.Fatal(err)
	}
	got, err := clientcmd.LoadFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	use := got.Contexts[got.CurrentContext]
	cluster, user := got.Clusters[use.Cluster], got.AuthInfos[use.AuthInfo]
	if cluster.Server != "https://127.0.0.1:1" || !cluster.InsecureSkipTLSVerify {
		t.Errorf("cluster %+v", cluster)
	}
	if user.ClientCertificate != "/pki/current.pem" || user.ClientKey != "/pki/current.pem" || user.Token != "" {
		t.Errorf("user %+v", user)
	}
}
