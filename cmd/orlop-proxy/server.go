package main

import (
	"context"
	"crypto/tls"
	"net/http"

	"github.com/orlop/orlop/proxy"
)

// prepare sets what of the machine the rules stand on.
func (p *parts) prepare() error { return nil }

// servers are what tells of the proxy, and what must run beside it.
func (p *parts) servers() ([]proxy.Observer, []func(context.Context), error) {
	var run []func(context.Context)
	if p.events != nil {
		run = append(run, p.events.Run)
	}
	return nil, run, nil
}

// podsClient reaches the kubelet of this node, which on a lone machine has a certificate of its own making.
func podsClient() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}
