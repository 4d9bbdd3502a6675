package main

import (
	"context"
	"crypto/tls"

	"github.com/orlop/orlop/kubelet/api"
	"github.com/orlop/orlop/kubelet/cert"
)

// servingCertificate is that of the kubelet API: the files of the configuration, or one that the API server is asked for, or
// one that this node signs for itself.
func (p *parts) servingCertificate(ctx context.Context) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	certificate, key := p.config.TLSCertFile, p.config.TLSPrivateKeyFile
	if certificate == "" && p.config.ServerTLSBootstrap {
		return cert.Serving{Node: p.name, IPs: p.ips, Dir: p.flags.CertDir, Config: p.api, Log: p.log}.Get(ctx)
	}
	if certificate == "" {
		var err error
		if certificate, key, err = api.SelfSigned(p.flags.CertDir, p.name, p.ips); err != nil {
			return nil, err
		}
	}
	return api.CertFiles(certificate, key)
}
