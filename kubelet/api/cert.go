package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// files are read anew when one of them changes, since certificates are replaced while we run.
type files[T any] struct {
	paths []string
	parse func(texts [][]byte) (T, error)

	mu    sync.Mutex
	known []stamp // of each path; nil before the first read
	v     T
}

type stamp struct {
	at   time.Time
	size int64
}

// get is what the files hold now. While they are being replaced and do not fit each other, it is what they held before.
func (f *files[T]) get() (v T, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := make([]stamp, len(f.paths))
	texts := make([][]byte, len(f.paths))
	changed := f.known == nil
	for i, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			return v, err
		}
		now[i] = stamp{info.ModTime(), info.Size()}
		changed = changed || now[i] != f.known[i]
	}
	if !changed {
		return f.v, nil
	}
	for i, path := range f.paths {
		if texts[i], err = os.ReadFile(path); err != nil {
			return v, err
		}
	}
	v, err = f.parse(texts)
	switch {
	case err == nil:
		f.v, f.known = v, now
	case f.known == nil:
		return v, fmt.Errorf("%v: %w", f.paths, err)
	}
	return f.v, nil
}

// clientCA is a file of CAs.
func clientCA(path string) *files[*x509.CertPool] {
	return &files[*x509.CertPool]{paths: []string{path}, parse: func(texts [][]byte) (*x509.CertPool, error) {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(texts[0]) {
			return nil, errors.New("no certificate in it; a client CA file must have at least one in PEM")
		}
		return pool, nil
	}}
}

// CertFiles serves a certificate from its files, for TLSOptions. They must be there.
func CertFiles(certFile, keyFile string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	f := &files[*tls.Certificate]{paths: []string{certFile, keyFile}, parse: func(texts [][]byte) (*tls.Certificate, error) {
		c, err := tls.X509KeyPair(texts[0], texts[1])
		return &c, err
	}}
	if _, err := f.get(); err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.get() }, nil
}

// selfSignedTime is how long a certificate that nobody issued is good for, as with kubelet.
const selfSignedTime = 365 * 24 * time.Hour

// SelfSigned makes kubelet.crt and kubelet.key in dir for a node that was given no certificate, unless they are there
// and will be good for a day, and returns their paths.
func SelfSigned(dir, node string, ips []net.IP) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, "kubelet.crt"), filepath.Join(dir, "kubelet.key")
	if c, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil && time.Until(c.Leaf.NotAfter) > 24*time.Hour {
		return certFile, keyFile, nil
	}
	cert, key, err := selfSign(node, ips)
	if err != nil {
		return "", "", fmt.Errorf("self-signed certificate: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return "", "", err
	}
	return certFile, keyFile, os.WriteFile(certFile, cert, 0o644)
}

func selfSign(node string, ips []net.IP) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: fmt.Sprintf("%s@%d", node, now.Unix())},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfSignedTime), // clocks differ
		DNSNames: []string{node}, IPAddresses: ips,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	rawCert, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rawCert})
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey}), nil
}
