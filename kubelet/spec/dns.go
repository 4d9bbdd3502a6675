package spec

import (
	"fmt"

	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits of resolv.conf, see resolv.conf(5) and the API's validation.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// DNS is how names are resolved on the node and in its cluster.
type DNS struct {
	Node    *cri.DNSConfig // the node's own, from resolvConf
	Servers []string       // clusterDNS
	Domain  string         // clusterDomain
}

// ParseResolvConf reads a resolv.conf, see resolv.conf(5). Of several search lines the last one counts.
func ParseResolvConf(data string) *cri.DNSConfig {
	dns := &cri.DNSConfig{}
	for line := range strings.Lines(data) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Servers = append(dns.Servers, fields[1])
		case "search", "domain":
			dns.Searches = nil
			for _, s := range fields[1:] {
				if s != "." { // says to search nothing
					s = strings.TrimSuffix(s, ".")
				}
				dns.Searches = append(dns.Searches, s)
			}
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns
}

// Config is a pod's resolv.conf: by its DNS policy, and then what its dnsConfig adds.
func (d DNS) Config(p *v1.Pod) (*cri.DNSConfig, error) {
	policy := p.Spec.DNSPolicy
	if policy == v1.DNSClusterFirst && p.Spec.HostNetwork {
		policy = v1.DNSDefault
	}
	if (policy == v1.DNSClusterFirst || policy == v1.DNSClusterFirstWithHostNet) && len(d.Servers) == 0 {
		policy = v1.DNSDefault // there is no cluster DNS; the pod gets the node's, as with kubelet
	}
	out := &cri.DNSConfig{}
	switch policy {
	case v1.DNSNone:
	case v1.DNSClusterFirst, v1.DNSClusterFirstWithHostNet:
		out = d.cluster(p)
	case v1.DNSDefault, "":
		out = &cri.DNSConfig{Servers: slices.Clone(d.Node.GetServers()), Searches: slices.Clone(d.Node.GetSearches()), Options: slices.Clone(d.Node.GetOptions())}
	default:
		return nil, fmt.Errorf("spec.dnsPolicy %q: unknown; write ClusterFirst, ClusterFirstWithHostNet, Default or None", policy)
	}
	d.add(out, p.Spec.DNSConfig)
	out.Servers = out.Servers[:min(len(out.Servers), maxNameservers)]
	out.Searches = fit(out.Searches)
	return out, nil
}

func (d DNS) cluster(p *v1.Pod) *cri.DNSConfig {
	out := &cri.DNSConfig{Servers: slices.Clone(d.Servers), Options: []string{"ndots:5"}}
	if d.Domain != "" {
		out.Searches = []string{p.Namespace + ".svc." + d.Domain, "svc." + d.Domain, d.Domain}
	}
	out.Searches = append(out.Searches, d.Node.GetSearches()...)
	return out
}

// add appends what the pod asks for; an option of the pod replaces one of the same name.
func (d DNS) add(to *cri.DNSConfig, more *v1.PodDNSConfig) {
	if more == nil {
		return
	}
	to.Servers = unique(append(to.Servers, more.Nameservers...))
	to.Searches = unique(append(to.Searches, more.Searches...))
	for _, o := range more.Options {
		name, _, _ := strings.Cut(o.Name, ":")
		to.Options = slices.DeleteFunc(to.Options, func(have string) bool {
			haveName, _, _ := strings.Cut(have, ":")
			return haveName == name
		})
		if o.Value != nil {
			name += ":" + *o.Value
		}
		to.Options = append(to.Options, name)
	}
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// fit cuts the search list to what resolvers take.
func fit(searches []string) []string {
	searches = unique(searches)
	searches = searches[:min(len(searches), maxSearches)]
	for len(strings.Join(searches, " ")) > maxSearchChars {
		searches = searches[:len(searches)-1]
	}
	return searches
}

// Hosts is a pod's /etc/hosts. nodeHosts is the node's own, which only a pod on the host network sees.
func Hosts(p *v1.Pod, ips []string, names Names, nodeHosts string) string {
	var b strings.Builder
	if p.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n" + nodeHosts)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		for _, ip := range ips {
			if names.Domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, names.Host, names.Domain, names.Host)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, names.Host)
			}
		}
	}
	if len(p.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, alias := range p.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
		}
	}
	return b.String()
}
