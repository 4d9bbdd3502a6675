package api

import (
	"crypto/tls"
	"fmt"
	"strings"
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
