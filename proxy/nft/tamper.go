package nft

import (
	"encoding/binary"
	"errors"
	"log/slog"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// watch hears of every change of nftables in this network namespace, and tells of those that somebody else made to our
// tables: `nft flush ruleset`, a firewall that restarts, a person. Without it, that would be noticed by listing tables
// now and then, which takes seconds where there are many Services, or never.
type watch struct {
	log      *slog.Logger
	conn     *netlink.Conn
	tampered chan struct{}
	done     chan struct{}
}

func newWatch(log *slog.Logger) (*watch, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	w := &watch{log: log, conn: conn, tampered: make(chan struct{}, 1), done: make(chan struct{})}
	if err := errors.Join(conn.SetReadBuffer(receiveBufferBytes), conn.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go w.run()
	return w, nil
}

// portAt is where a message's header has the port of the socket that caused it: see netlink(7).
const portAt = 12

// ignore has the kernel drop what the socket with this port causes, before it takes room or wakes anybody. Filters load
// words in network byte order, while headers are in that of the machine.
func (w *watch) ignore(port uint32) error {
	var order [4]byte
	binary.NativeEndian.PutUint32(order[:], port)
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: portAt, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(order[:]), SkipFalse: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1<<31 - 1},
	})
	if err != nil {
		return err
	}
	return w.conn.SetBPF(filter)
}

func (w *watch) run() {
	defer close(w.done)
	for {
		messages, err := w.conn.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS): // we missed some
			w.tell("too many changes at once to follow")
		case err != nil:
			return // closed
		}
		for _, m := range messages {
			if isOurs(m.Data) {
				w.tell("a table of ours was changed by another program")
				break
			}
		}
	}
}

func (w *watch) tell(why string) {
	select {
	case w.tampered <- struct{}{}:
		w.log.Warn("nftables rules are to be restored", "why", why)
	default:
	}
}

// isOurs reads the table's name, which is the first attribute of every message of nf_tables that has one. A new
// generation has a number there.
func isOurs(data []byte) bool {
	const headerBytes = 4 // nfgenmsg
	if len(data) < headerBytes {
		return false
	}
	attributes, err := netlink.NewAttributeDecoder(data[headerBytes:])
	if err != nil {
		return false
	}
	for attributes.Next() {
		if attributes.Type() == unix.NFTA_TABLE_NAME {
			return attributes.String() == tableName
		}
	}
	return false
}

func (w *watch) close() error {
	err := w.conn.Close()
	<-w.done
	return err
}

// portOf is the address that the kernel gave to a socket.
func portOf(c *netlink.Conn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var port uint32
	var failed error
	err = raw.Control(func(fd uintptr) {
		addr, err := unix.Getsockname(int(fd))
		if nl, ok := addr.(*unix.SockaddrNetlink); ok {
			port = nl.Pid
		}
		failed = err
	})
	return port, errors.Join(err, failed)
}
