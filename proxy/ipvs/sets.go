package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// temporary is the set that a new one is built in before it takes the old one's place.
const temporary = "KUBE-NEXT"

// replaceSets makes the sets those that are described, each at once.
func (b *Backend) replaceSets(all *described) error {
	bySet := map[model.Family]map[string][]entry{model.IPv4: {}, model.IPv6: {}}
	for _, e := range all.entries {
		family := model.FamilyOf(e.addr)
		bySet[family][e.set] = append(bySet[family][e.set], e)
	}
	for _, family := range b.network.Families {
		for set, kind := range setTypes {
			if err := replaceSet(family, set, kind, bySet[family][set]); err != nil {
				return fmt.Errorf("ipset %s: %w", setName(family, set), err)
			}
		}
	}
	return nil
}

// kubeProxySets are those of a kube-proxy's that we have none of.
var kubeProxySets = []string{
	"NODE-PORT-TCP", "NODE-PORT-UDP", "NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-TCP", "NODE-PORT-LOCAL-UDP",
	"NODE-PORT-LOCAL-SCTP-HASH", "LOAD-BALANCER-SOURCE-IP",
}

// dropSets removes the sets of which no rule is left: all but ours of some families.
func dropSets(but []model.Family) error {
	var errs []error
	for _, family := range []model.Family{model.IPv4, model.IPv6} {
		gone := slices.Clone(kubeProxySets)
		if !slices.Contains(but, family) {
			gone = slices.AppendSeq(gone, maps.Keys(setTypes))
		}
		for _, set := range gone {
			if err := netlink.IpsetDestroy(setName(family, set)); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("ipset %s: %w", setName(family, set), err))
			}
		}
	}
	return errors.Join(errs...)
}

// maxEntries is how many a set may hold.
const maxEntries = 1 << 20

func replaceSet(family model.Family, set, kind string, entries []entry) error {
	options := netlink.IpsetCreateOptions{Family: unix.AF_INET, MaxElements: maxEntries}
	if family == model.IPv6 {
		options.Family = unix.AF_INET6
	}
	if kind == bitmapPort {
		options = netlink.IpsetCreateOptions{PortTo: 1<<16 - 1}
	}
	if err := netlink.IpsetDestroy(temporary); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := netlink.IpsetCreate(temporary, kind, options); err != nil {
		return err
	}
	for _, e := range entries {
		if err := e.add(temporary); err != nil {
			return err
		}
	}
	// A kube-proxy's set is of the same kind and of another size, which is no matter when sets are swapped.
	if err := netlink.IpsetCreate(setName(family, set), kind, options); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := netlink.IpsetSwap(temporary, setName(family, set)); err != nil {
		return err
	}
	return netlink.IpsetDestroy(temporary)
}

// netlink is the entry as the library takes it.
func (e entry) netlink() *netlink.IPSetEntry {
	out := &netlink.IPSetEntry{IP: e.addr.AsSlice()}
	if e.set != ipvsIPs {
		protocol, port := uint8(e.protocol), e.port
		out.Protocol, out.Port = &protocol, &port
	}
	if e.other.IsValid() {
		out.IP2 = e.other.Addr().AsSlice()
		if setTypes[e.set] == "hash:ip,port,net" {
			out.CIDR2 = uint8(e.other.Bits())
		}
	}
	return out
}

func (e entry) name(in string) string {
	if in != "" {
		return in
	}
	return setName(model.FamilyOf(e.addr), e.set)
}

// add puts the entry in its set, or in another of the same kind.
func (e entry) add(in string) error { return e.change(nl.IPSET_CMD_ADD, e.name(in)) }

func (e entry) del() error { return e.change(nl.IPSET_CMD_DEL, e.name("")) }

// change is no error if the set has the entry already, or no longer.
func (e entry) change(command int, set string) error {
	var err error
	switch {
	case setTypes[e.set] == bitmapPort:
		err = changePort(command, set, e.port)
	case command == nl.IPSET_CMD_ADD:
		err = netlink.IpsetAdd(set, e.netlink())
	default:
		err = netlink.IpsetDel(set, e.netlink())
	}
	if err != nil && !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) {
		return fmt.Errorf("ipset %s: %s port %d: %w", set, e.addr, e.port, err)
	}
	return nil
}

// changePort is of a set of ports, which the library can't change: the kernel takes no protocol there.
func changePort(command int, set string, port uint16) error {
	req := nl.NewNetlinkRequest(command|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(command))
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(set)))
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	data.AddRtAttr(int(nl.IPSET_ATTR_PORT|nl.NLA_F_NET_BYTEORDER), binary.BigEndian.AppendUint16(nil, port))
	req.AddData(data)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errno := syscall.Errno(0); errors.As(err, &errno) && errno >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	return err
}
