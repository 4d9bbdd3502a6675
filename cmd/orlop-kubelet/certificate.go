package main

import (
	"crypto/tls"

	"github.com/orlop/orlop/kubelet/api"
)

// servingCertificate is that of the kubelet API: the files of the configuration, or one that this node signs for itself.
func (p *parts) servingCertificate() (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	certificate, key := p.config.TLSCertFile, p.config.TLSPrivateKeyFile
	if certificate == "" {
		var err error
		if certificate, key, err = api.SelfSigned(p.flags.CertDir, p.name, p.ips); err != nil {
			return nil, err
		}
	}
	return api.CertFiles(certificate, key)
}
