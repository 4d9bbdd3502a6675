package api

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// TLSOptions are the fields of KubeletConfiguration about TLS.
type TLSOptions struct {
	MinVersion     string   // tlsMinVersion: "VersionTLS12" or "VersionTLS13"; "" is 1.2
	CipherSuites   []string // tlsCipherSuites, by IANA's names; only for TLS 1.2
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// TLS makes the configuration of the server. Clients may show a certificate, which Auth then judges.
func TLS(o TLSOptions) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: o.GetCertificate, ClientAuth: tls.RequestClientCert}
	switch o.MinVersion {
	case "", "VersionTLS12":
	case "VersionTLS13":
		c.MinVersion = tls.VersionTLS13
	case "VersionTLS10", "VersionTLS11":
		return nil, fmt.Errorf("tlsMinVersion %s: no longer safe; set VersionTLS12 or VersionTLS13", o.MinVersion)
	default:
		return nil, fmt.Errorf("tlsMinVersion %q: unknown; set VersionTLS12 or VersionTLS13", o.MinVersion)
	}
	for _, name := range o.CipherSuites {
		id, err := cipherSuite(name)
		if err != nil {
			return nil, err
		}
		c.CipherSuites = append(c.CipherSuites, id)
	}
	return c, nil
}

func cipherSuite(name string) (uint16, error) {
	var names []string
	for _, s := range tls.CipherSuites() {
		if s.Name == name {
			return s.ID, nil
		}
		names = append(names, s.Name)
	}
	return 0, fmt.Errorf("tlsCipherSuites: %q is unknown or not safe; known are %s", name, strings.Join(names, ", "))
}

// caFile is a file of certificates that is read anew when it changes, since CAs are replaced while we run.
type caFile struct {
	path string

	mu      sync.Mutex
	roots   *x509.CertPool
	modTime time.Time
	size    int64
}

func (f *caFile) pool() (*x509.CertPool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("client CA: %w", err)
	}
	if f.roots != nil && info.ModTime().Equal(f.modTime) && info.Size() == f.size {
		return f.roots, nil
	}
	text, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("client CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("client CA %s: no certificate in it; it must have at least one in PEM", f.path)
	}
	f.roots, f.modTime, f.size = roots, info.ModTime(), info.Size()
	return roots, nil
}
