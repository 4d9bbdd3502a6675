package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// Servers answer with their own address and port and the client's, so that a client knows where it ended and how it
// looked there. Each pod serves these ports, with TCP and UDP; for SCTP, which this kernel may lack, raw sockets see what
// arrives and answer.
var servedPorts = []uint16{8080, 8081}

const sctp = 132

// serve has all pods serve until the test ends. Connections to them are kept open until the client closes.
func (n *topology) serve(t testing.TB) {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for _, h := range hosts {
		if h.namespace == "node" || h.namespace == "outside" {
			continue
		}
		err := n.namespaces[h.namespace].in(func() error {
			for _, addr := range h.addrs {
				for _, port := range servedPorts {
					if err := listen(t, &wg, netip.AddrPortFrom(addr, port)); err != nil {
						return err
					}
				}
				if err := listenSCTP(t, &wg, addr); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%s: %v", h.name, err)
		}
	}
}

func listen(t testing.TB, wg *sync.WaitGroup, at netip.AddrPort) error {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	t.Cleanup(func() { l.Close(); u.Close() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	})
	wg.Go(func() {
		buf := make([]byte, 64)
		for {
			_, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort(fmt.Appendf(nil, "%v %v\n", at, unmapped(from)), from)
		}
	})
	return nil
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// answer says who is talking for each line that it reads.
func answer(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 64)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
		if _, err := fmt.Fprintf(c, "%v %v\n", c.LocalAddr(), c.RemoteAddr()); err != nil {
			return
		}
	}
}

// reached is where a packet ended, or why it didn't.
type reached struct {
	server, client netip.AddrPort
	rejected       bool // refused by who was asked, or by a rule
	dropped        bool
	unreachable    bool // nobody knows the way
}

// patience is how long a client waits before it takes its packet for dropped. An answer takes a millisecond, but Linux
// heeds an ICMPv6 error to a TCP connection only when it sends the packet again, after a second.
const patience = 1500 * time.Millisecond

// send sends a packet from a host to an address and tells where it ended.
func (n *topology) send(from host, to netip.AddrPort, protocol model.Protocol, localPort uint16) (reached, error) {
	family := 0
	if to.Addr().Is6() {
		family = 1
	}
	local := netip.AddrPortFrom(from.addrs[family], localPort)
	if protocol == sctp {
		return n.sendSCTP(from, local.Addr(), to)
	}
	network := protocol.String()
	var conn net.Conn
	err := n.namespaces[from.namespace].in(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		d := net.Dialer{FallbackDelay: -1}
		if network == "tcp" {
			d.LocalAddr = net.TCPAddrFromAddrPort(local)
		} else {
			d.LocalAddr = net.UDPAddrFromAddrPort(local)
		}
		conn, err = d.DialContext(ctx, network, to.String())
		return err
	})
	if err != nil {
		return outcomeOf(err)
	}
	defer conn.Close()
	return ask(conn)
}

// ask has a server say where a connection ends.
func ask(conn net.Conn) (reached, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return reached{}, err
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return outcomeOf(err)
	}
	buf := make([]byte, 256)
	got, err := conn.Read(buf)
	if err != nil {
		return outcomeOf(err)
	}
	server, client, _ := strings.Cut(strings.TrimSpace(string(buf[:got])), " ")
	out := reached{}
	if out.server, err = netip.ParseAddrPort(server); err != nil {
		return reached{}, err
	}
	out.client, err = netip.ParseAddrPort(client)
	return out, err
}

func outcomeOf(err error) (reached, error) {
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPERM): // the latter to who sends from the node itself
		return reached{rejected: true}, nil
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return reached{dropped: true}, nil
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return reached{unreachable: true}, nil
	}
	return reached{}, err
}

// An SCTP packet is a header of ports, a tag and a checksum, and chunks: see RFC 9260. INIT asks for an association.
const (
	sctpInit    = 1
	sctpInitAck = 2
)

func sctpPacket(from, to uint16, tag uint32, chunk byte) []byte {
	p := make([]byte, 12+20)
	binary.BigEndian.PutUint16(p, from)
	binary.BigEndian.PutUint16(p[2:], to)
	binary.BigEndian.PutUint32(p[4:], tag)
	p[12] = chunk
	binary.BigEndian.PutUint16(p[14:], 20)
	binary.BigEndian.PutUint32(p[16:], 7) // the tag that the other side is to use
	binary.BigEndian.PutUint32(p[20:], 65535)
	binary.BigEndian.PutUint16(p[24:], 1)
	binary.BigEndian.PutUint16(p[26:], 1)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

func rawSCTP(addr netip.Addr) (*net.IPConn, error) {
	return net.ListenIP("ip:132", &net.IPAddr{IP: addr.AsSlice()})
}

// listenSCTP answers each INIT; the answer carries nothing, so that what was seen is kept in sctpSeen.
func listenSCTP(t testing.TB, wg *sync.WaitGroup, addr netip.Addr) error {
	c, err := rawSCTP(addr)
	if err != nil {
		return err
	}
	t.Cleanup(func() { c.Close() })
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFromIP(buf)
			if err != nil {
				return
			}
			if n < 16 || buf[12] != sctpInit {
				continue
			}
			source, _ := netip.AddrFromSlice(from.IP)
			client := netip.AddrPortFrom(source.Unmap(), binary.BigEndian.Uint16(buf))
			server := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(buf[2:]))
			sctpSeen.mu.Lock()
			sctpSeen.last = reached{server: server, client: client}
			sctpSeen.mu.Unlock()
			_, _ = c.WriteToIP(sctpPacket(server.Port(), client.Port(), 7, sctpInitAck), from)
		}
	})
	return nil
}

var sctpSeen struct {
	mu   sync.Mutex
	last reached
}

// sendSCTP sends an INIT and waits for its answer. One at a time.
func (n *topology) sendSCTP(from host, local netip.Addr, to netip.AddrPort) (reached, error) {
	var c *net.IPConn
	err := n.namespaces[from.namespace].in(func() (err error) {
		c, err = rawSCTP(local)
		return err
	})
	if err != nil {
		return reached{}, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return reached{}, err
	}
	// Without it, a raw socket is not told of ICMP errors.
	if err := raw.Control(func(fd uintptr) {
		if local.Is4() {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		}
	}); err != nil {
		return reached{}, err
	}
	nextSCTPPort++
	if _, err := c.WriteToIP(sctpPacket(nextSCTPPort, to.Port(), 0, sctpInit), &net.IPAddr{IP: to.Addr().AsSlice()}); err != nil {
		return outcomeOf(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return reached{}, err
	}
	buf := make([]byte, 1500)
	for {
		got, _, err := c.ReadFromIP(buf)
		if err != nil {
			return outcomeOf(err)
		}
		if got >= 16 && buf[12] == sctpInitAck && binary.BigEndian.Uint16(buf[2:]) == nextSCTPPort {
			sctpSeen.mu.Lock()
			defer sctpSeen.mu.Unlock()
			return sctpSeen.last, nil
		}
	}
}

var nextSCTPPort uint16 = 20000
