package xtables

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// Tables of iptables-nft are tables of nftables, which the kernel tells of by netlink: see nf_tables.h for messages and
// attributes.
const (
	nfgenmsgBytes  = 4
	tableAttr      = 1 // in messages of tables, chains and rules
	ruleChainAttr  = 2
	chainNameAttr  = 3
	messageMask    = 0xff
	receiveBytes   = 8 << 20
	portAt         = 12 // where a message's header has the port of the socket that caused it: see netlink(7)
	subsystemShift = 8
)

func nfFamily(f model.Family) uint8 {
	if f == model.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// chainNames are all chains of iptables-nft in a family.
func chainNames(f model.Family) ([]ChainID, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<subsystemShift | unix.NFT_MSG_GETCHAIN),
			Flags: netlink.Request | netlink.Dump,
		},
		Data: []byte{nfFamily(f), 0, 0, 0},
	})
	if err = errors.Join(err, conn.Close()); err != nil {
		return nil, fmt.Errorf("nftables: list chains: %w", err)
	}
	var out []ChainID
	for _, m := range messages {
		if e, ok := parseEvent(m); ok {
			out = append(out, ChainID{e.table, e.chain})
		}
	}
	return out, nil
}

// event is what changed.
type event struct {
	message      int // NFT_MSG_…
	table, chain string
	data         []byte
}

// parseEvent is false for what is not of tables, chains or rules of iptables.
func parseEvent(m netlink.Message) (event, bool) {
	e := event{message: int(m.Header.Type) & messageMask, data: m.Data}
	chainAttr := uint16(0)
	switch e.message {
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chainAttr = chainNameAttr
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chainAttr = ruleChainAttr
	default:
		return e, false
	}
	if len(m.Data) < nfgenmsgBytes || m.Data[0] != unix.NFPROTO_IPV4 && m.Data[0] != unix.NFPROTO_IPV6 {
		return e, false
	}
	attributes, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgBytes:])
	if err != nil {
		return e, false
	}
	for attributes.Next() {
		switch attributes.Type() {
		case tableAttr:
			e.table = attributes.String()
		case chainAttr:
			e.chain = attributes.String()
		}
	}
	_, known := Builtin[e.table]
	return e, known && e.chain != "" && attributes.Err() == nil
}

// ignore has the kernel drop what the socket with this port causes, before it takes room or wakes anybody. Filters load
// words in network byte order, while headers are in that of the machine.
func ignore(conn *netlink.Conn, port uint32) error {
	var order [4]byte
	binary.NativeEndian.PutUint32(order[:], port)
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: portAt, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(order[:]), SkipFalse: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1<<31 - 1},
	})
	if err != nil {
		return err
	}
	return conn.SetBPF(program)
}
