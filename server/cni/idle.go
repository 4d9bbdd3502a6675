package cni

import (
	"encoding/json"
	"slices"
)

// chained is what tells whether a plugin of a list has something to do for a pod.
type chained struct {
	Type          string
	RuntimeConfig struct {
		PortMappings []json.RawMessage
		Bandwidth    json.RawMessage
	}
	IngressRate, EgressRate uint64 // limits for all pods, in the configuration of bandwidth itself
	PrevResult              json.RawMessage
}

// idle answers for two of the standard plugins where they would do nothing: portmap for a pod without host ports and
// bandwidth for one without limits, which is most pods. They then repeat the result that they were given for ADD, and
// do nothing for DEL (plugins v1.9.1: meta/portmap and meta/bandwidth, cmdAdd and cmdDel). To start them for it would
// cost a pod some milliseconds each, and portmap runs iptables twice to choose its backend.
func idle(stdin []byte, environ []string) (stdout []byte, ok bool) {
	add, del := slices.Contains(environ, "CNI_COMMAND=ADD"), slices.Contains(environ, "CNI_COMMAND=DEL")
	if !add && !del {
		return nil, false
	}
	var c chained
	if json.Unmarshal(stdin, &c) != nil {
		return nil, false
	}
	if add && len(c.PrevResult) == 0 {
		return nil, false // it is not chained to another: its own error tells better
	}
	switch c.Type {
	case "portmap":
		ok = len(c.RuntimeConfig.PortMappings) == 0
	case "bandwidth":
		ok = len(c.RuntimeConfig.Bandwidth) == 0 && c.IngressRate == 0 && c.EgressRate == 0
	}
	if !ok || del {
		return nil, ok
	}
	return c.PrevResult, true
}
