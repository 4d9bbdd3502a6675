package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/xtables"
)

// How the names of the chains of a single port begin, in the order in which they lead to one another.
const (
	sourcesPrefix  = "KUBE-FW-"
	externalPrefix = "KUBE-EXT-"
	clusterPrefix  = "KUBE-SVC-"
	localPrefix    = "KUBE-SVL-"
	endpointPrefix = "KUBE-SEP-"
)

// hashBytes is how much of a hash fits in a name, which has 28 bytes at most.
const hashBytes = 16

func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "")))
	return base32.StdEncoding.EncodeToString(sum[:])[:hashBytes]
}

// portChain names a chain as kube-proxy does, so that a change from one to the other replaces the chain.
func portChain(prefix string, key model.PortKey) string {
	return prefix + hash(key.String(), key.Protocol.String())
}

func setChain(set model.Set, key model.PortKey) string {
	if set == model.Local {
		return portChain(localPrefix, key)
	}
	return portChain(clusterPrefix, key)
}

func endpointChain(key model.PortKey, endpoint netip.AddrPort) string {
	return endpointPrefix + hash(key.String(), key.Protocol.String(), endpoint.String())
}

// Chains of many Services are trees, so that neither a packet nor a change has to do with all of them: those for
// addresses branch by the last byte of the address, those for node ports by ranges of ports.
//
//	KUBE-SERVICES ─ -d 0.0.0.32/0.0.0.240 ─▶ KUBE-SERVICES-2 ─ -d 0.0.0.42/0.0.0.255 ─▶ KUBE-SERVICES-2A ─▶ KUBE-SVC-…
//	KUBE-NODEPORTS ─ -p tcp --dport 30016:30079 ─▶ KUBE-NODEPORTS-TCP-30016 ─▶ KUBE-EXT-…
//
// In table filter, where KUBE-NODEPORTS lets health checks pass as kube-proxy has it, the root for node ports that are refused
// is KUBE-NODEPORTS-DENY.

// branches adds what leads from a chain to the leaf for an address, and tells that leaf.
func (d *described) branches(table, root string, addr netip.Addr) (leaf string) {
	last := addr.AsSlice()[addr.BitLen()/8-1]
	middle := fmt.Sprintf("%s-%X", root, last>>4)
	leaf = fmt.Sprintf("%s-%02X", root, last)
	d.share(table, root, fmt.Sprintf("-d %s/%s -j %s", d.family.lastByte(last&0xf0), d.family.lastByte(0xf0), middle))
	d.share(table, middle, fmt.Sprintf("-d %s/%s -j %s", d.family.lastByte(last), d.family.lastByte(0xff), leaf))
	return leaf
}

// portsInLeaf is so that the 2768 node ports that clusters have by default take few steps in both levels.
const portsInLeaf = 64

func (d *described) nodePortLeaf(table, root string, port uint16) string {
	first := int(port) / portsInLeaf * portsInLeaf
	protocol := d.port.Key.Protocol.String()
	leaf := fmt.Sprintf("%s-%s-%d", xtables.NodePorts, strings.ToUpper(protocol), first)
	d.share(table, root, fmt.Sprintf("-p %s -m %s --dport %d:%d -j %s", protocol, protocol, first, first+portsInLeaf-1, leaf))
	return leaf
}

// comment is safe in a rule's text whatever an object's name holds, and no longer than the kernel allows.
func comment(text string) string {
	const maxBytes = 255
	safe := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' || r == '`' || r == '\'' {
			return '?'
		}
		return r
	}, text)
	return `-m comment --comment "` + safe[:min(len(safe), maxBytes)] + `"`
}
