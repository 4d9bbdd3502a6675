package proxy

import "github.com/orlop/orlop/proxy/model"

// Explain tells why the ports of a Service are as they are, by what the kernel has been told last, and in which network.
// It is empty for a Service that isn't there.
func (p *Proxy) Explain(name model.Name) ([]model.Explanation, model.Network) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Explain(name), p.network
}
