package model

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// State holds the Services and EndpointSlices of the cluster and what follows from them. It is for one goroutine.
//
// What follows does not depend on the order in which objects came: a State that lived through any changes equals one
// that was told only the outcome.
type State struct {
	node     Node
	senders  map[Family]senders
	services map[Name]*entry
	// claims are, for each address and port, the ports of Services that would like to have it. The first has it.
	claims map[claimKey][]claimant
	dirty  map[Name]bool
	// checked are the health checks of the Services that ask for one, and checks are the same, as they were told last; nil
	// after a change.
	checked map[Name]HealthCheck
	checks  []HealthCheck
}

// entry is a Service's objects, which may come in any order, and its ports as Commit told them last.
type entry struct {
	service *Service
	slices  []*Slice
	ports   []*Port
	// wants are the ports as they would be if nobody else claimed their frontends.
	wants []*Port
}

// claimKey is where packets are sent to; a NodePort has no address, but a family.
type claimKey struct {
	family   Family
	addr     netip.Addr
	protocol Protocol
	port     uint16
}

type claimant struct {
	created int64
	key     PortKey
}

func (c claimant) compare(o claimant) int {
	return cmp.Or(cmp.Compare(c.created, o.created), c.key.Compare(o.key))
}

// NewState is of a cluster without Services, seen from a node. Ports are of the network's families only.
func NewState(node Node, network Network) *State {
	s := &State{node: node, services: map[Name]*entry{}, claims: map[claimKey][]claimant{}, dirty: map[Name]bool{}, checked: map[Name]HealthCheck{}}
	s.SetNetwork(network)
	return s
}

// SetNetwork tells that the network is another.
func (s *State) SetNetwork(network Network) {
	s.senders = map[Family]senders{}
	for _, family := range network.Families {
		s.senders[family] = senders{podsKnown: network.Local.Detects(family), masqueradeAll: network.MasqueradeAll, nodeIPs: network.NodeIPs}
	}
	s.touchAll()
}

func (s *State) touchAll() {
	for name := range s.services {
		s.dirty[name] = true
	}
}

// SetNode tells that the node's name or zone is another.
func (s *State) SetNode(node Node) {
	if node == s.node {
		return
	}
	s.node = node
	s.touchAll()
}

func (s *State) touch(name Name) *entry {
	e := s.services[name]
	if e == nil {
		e = &entry{}
		s.services[name] = e
	}
	s.dirty[name] = true
	return e
}

// SetService adds or replaces a Service.
func (s *State) SetService(service *Service) {
	s.touch(service.Name).service = service
}

// DeleteService forgets a Service; its slices may outlive it for a while.
func (s *State) DeleteService(name Name) {
	if s.services[name] != nil {
		s.touch(name).service = nil
	}
}

// SetSlice adds or replaces a slice. Whoever tells of a slice that changed its Service deletes the old one first.
func (s *State) SetSlice(slice *Slice) {
	s.DeleteSlice(slice.Service, slice.Name)
	e := s.touch(slice.Service)
	e.slices = append(slices.Clip(e.slices), slice)
}

// DeleteSlice forgets the slice of this name.
func (s *State) DeleteSlice(service, slice Name) {
	if s.services[service] != nil {
		e := s.touch(service)
		e.slices = slices.DeleteFunc(e.slices, func(have *Slice) bool { return have.Name == slice })
	}
}

// Commit computes what the objects that were told since the last time change, in the order of keys.
func (s *State) Commit() []Change {
	// A Service that gives or takes an address changes what another one has, but not what any other wants.
	dirty := s.dirty
	s.dirty = map[Name]bool{} // not cleared: that costs as much as it held at most
	affected := maps.Clone(dirty)
	for name := range dirty {
		s.reclaim(name, affected)
	}
	var out []Change
	for name := range affected {
		out = append(out, s.settle(name)...)
	}
	slices.SortFunc(out, func(a, b Change) int { return a.Key().Compare(b.Key()) })
	return out
}

// reclaim computes what a Service wants, and adds to affected who else's frontends may be others for it.
func (s *State) reclaim(name Name, affected map[Name]bool) {
	e := s.services[name]
	s.recheck(name, e)
	for _, port := range e.wants {
		s.release(port, affected)
	}
	if e.wants = s.want(e); len(e.wants) == 0 {
		return
	}
	for _, port := range e.wants {
		s.claim(claimant{created: e.service.Created, key: port.Key}, port, affected)
	}
}

// want is each port of a Service, in each of its families.
func (s *State) want(e *entry) []*Port {
	if e.service == nil {
		return nil
	}
	var out []*Port
	for _, addr := range e.service.ClusterIPs {
		from, ours := s.senders[FamilyOf(addr)]
		if !ours {
			continue
		}
		for _, p := range e.service.Ports {
			key := PortKey{Service: e.service.Name, Port: p.Name, Protocol: p.Protocol, Family: FamilyOf(addr)}
			c := choose(portEndpoints(e.slices, key), s.node)
			out = append(out, makePort(e.service, p, key, c, from))
		}
	}
	return out
}

func keyOf(port *Port, f Frontend) claimKey {
	return claimKey{family: port.Key.Family, addr: f.Addr, protocol: port.Key.Protocol, port: f.Port}
}

func (s *State) release(port *Port, affected map[Name]bool) {
	for _, f := range port.Frontends {
		key := keyOf(port, f)
		left := slices.DeleteFunc(s.claims[key], func(c claimant) bool { return c.key == port.Key })
		if len(left) == 0 {
			delete(s.claims, key)
			continue
		}
		s.claims[key] = left
		affected[left[0].key.Service] = true
	}
}

func (s *State) claim(c claimant, port *Port, affected map[Name]bool) {
	for _, f := range port.Frontends {
		key := keyOf(port, f)
		have := s.claims[key]
		if len(have) > 0 {
			affected[have[0].key.Service] = true
		}
		i, _ := slices.BinarySearchFunc(have, c, claimant.compare)
		s.claims[key] = slices.Insert(have, i, c)
	}
}

// settle gives a Service's ports the frontends that are theirs, and tells how they differ from those of the last time.
func (s *State) settle(name Name) []Change {
	e := s.services[name]
	var ports []*Port
	for _, port := range e.wants {
		if port = s.owned(port); len(port.Frontends) > 0 {
			ports = append(ports, port)
		}
	}
	out := compare(e.ports, ports)
	if e.ports = ports; e.service == nil && len(e.slices) == 0 {
		delete(s.services, name)
	}
	return out
}

// owned is the port without the frontends that another one has.
func (s *State) owned(port *Port) *Port {
	lost := func(f Frontend) bool { return s.claims[keyOf(port, f)][0].key != port.Key }
	if !slices.ContainsFunc(port.Frontends, lost) {
		return port
	}
	out := *port
	out.Frontends = slices.DeleteFunc(slices.Clone(port.Frontends), lost)
	return &out
}

// compare keeps the old port, in now, where nothing changed, so that whoever holds on to it holds the same.
func compare(before, now []*Port) []Change {
	var out []Change
	for i, port := range now {
		at := slices.IndexFunc(before, func(old *Port) bool { return old.Key == port.Key })
		switch {
		case at < 0:
			out = append(out, Change{New: port})
		case before[at].Equal(port):
			now[i] = before[at]
		default:
			out = append(out, Change{Old: before[at], New: port})
		}
	}
	for _, old := range before {
		if !slices.ContainsFunc(now, func(port *Port) bool { return port.Key == old.Key }) {
			out = append(out, Change{Old: old})
		}
	}
	return out
}

// Ports is every port, as the last Commit left it.
func (s *State) Ports() iter.Seq[*Port] {
	return func(yield func(*Port) bool) {
		for _, e := range s.services {
			for _, port := range e.ports {
				if !yield(port) {
					return
				}
			}
		}
	}
}
