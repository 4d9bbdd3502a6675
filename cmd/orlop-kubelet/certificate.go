package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/util/cert"
)

// servingCertificate is that of the kubelet API: the files of the configuration, read anew when they change, or one that
// this node signs for itself.
func (p *parts) servingCertificate() (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	f := &certificateFiles{cert: p.config.TLSCertFile, key: p.config.TLSPrivateKeyFile}
	if f.cert == "" {
		f.cert, f.key = filepath.Join(p.flags.CertDir, "kubelet.crt"), filepath.Join(p.flags.CertDir, "kubelet.key")
		if err := makeSelfSigned(f, p.name, p.ips); err != nil {
			return nil, err
		}
	}
	if _, err := f.get(nil); err != nil {
		return nil, err
	}
	return f.get, nil
}

func makeSelfSigned(f *certificateFiles, name string, ips []net.IP) error {
	if _, err := os.Stat(f.cert); err == nil {
		return nil
	}
	certificate, key, err := cert.GenerateSelfSignedCertKey(name, ips, nil)
	if err != nil {
		return fmt.Errorf("self-signed certificate: %w", err)
	}
	if err := cert.WriteCert(f.cert, certificate); err != nil {
		return fmt.Errorf("self-signed certificate: %w", err)
	}
	if err := os.WriteFile(f.key, key, 0o600); err != nil {
		return fmt.Errorf("self-signed certificate: %w", err)
	}
	return nil
}

// certificateFiles are read again when they change, as whoever renews certificates replaces files.
type certificateFiles struct {
	cert, key string

	mu      sync.Mutex
	current *tls.Certificate
	modTime time.Time
}

func (f *certificateFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.cert)
	if err != nil {
		return nil, fmt.Errorf("certificate of the kubelet API: %w", err)
	}
	if f.current != nil && info.ModTime().Equal(f.modTime) {
		return f.current, nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the kubelet API: %w", err)
	}
	f.current, f.modTime = &pair, info.ModTime()
	return f.current, nil
}
