package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// elsewhere is an address for documentation in each family (RFC 5737, RFC 3849): to reach it takes the default route.
var elsewhere = map[string]string{"udp4": "192.0.2.200:9", "udp6": "[2001:db8:ffff::200]:9"}

// ownAddresses are those that this machine has as a source for packets to others, in each family in which it knows a way.
// Nothing is sent: the kernel chooses the address when a socket is connected.
func ownAddresses() []netip.Addr {
	var out []netip.Addr
	for _, network := range []string{"udp4", "udp6"} {
		conn, err := net.Dial(network, elsewhere[network])
		if err != nil {
			continue // there is no way
		}
		if local, ok := conn.LocalAddr().(*net.UDPAddr); ok {
			out = append(out, local.AddrPort().Addr().Unmap())
		}
		conn.Close()
	}
	return out
}

// addresses hears of each address that an interface gets or loses, so that NodePorts that are served at a range of addresses
// are served at a new one at once.
type addresses struct {
	updates chan netlink.AddrUpdate
	stop    chan struct{}
}

// followAddresses begins to hear of them. What was there before is not told.
func followAddresses() (*addresses, error) {
	a := &addresses{}
	return a, a.subscribe()
}

func (a *addresses) subscribe() error {
	a.updates, a.stop = make(chan netlink.AddrUpdate), make(chan struct{})
	if err := netlink.AddrSubscribe(a.updates, a.stop); err != nil {
		return fmt.Errorf("follow addresses of interfaces: %w", err)
	}
	return nil
}

// run calls changed after each change until ctx ends. Changes that came faster than they could be told end the
// subscription, so that it begins anew, and all is looked at.
func (a *addresses) run(ctx context.Context, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			close(a.stop)
			for range a.updates { // until who waits to tell something has told it, and sees that the socket is closed
			}
			return nil
		case _, ok := <-a.updates:
			if !ok {
				close(a.stop)
				if err := a.subscribe(); err != nil {
					return err
				}
			}
			changed()
		}
	}
}
