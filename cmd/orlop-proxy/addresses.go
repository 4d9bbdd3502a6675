package main

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
)

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
