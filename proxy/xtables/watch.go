package xtables

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// watch notices that somebody else changed our chains or the hooks to them: `iptables -F`, a firewall that restarts.
//
// With iptables-nft the kernel tells of each change. Legacy tables must be asked for, see legacy.go. Their size costs
// nothing, and if it is another than after our last change, or after some time anyway, our rules are compared with what they
// were then: others, as network plugins, have rules in these tables, too.
type watch struct {
	log      *slog.Logger
	hooks    []Hook
	tampered chan struct{}
	conn     *netlink.Conn // nil if no program makes rules of nftables
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu sync.Mutex
	// busy is true while we change something.
	busy   bool
	legacy map[*Program]*legacy
}

// UsualPoll is how long a change of legacy tables may go unnoticed on a node; tests can't wait so long. One that leaves
// their size as it was takes [pollsPerLook] times as long.
const UsualPoll = 5 * time.Second

const pollsPerLook = 12

func newWatch(log *slog.Logger, programs map[model.Family]*Program, hooks []Hook, poll time.Duration) (*watch, error) {
	w := &watch{log: log, hooks: hooks, tampered: make(chan struct{}, 1), legacy: map[*Program]*legacy{}}
	nft := false
	for _, p := range programs {
		p.began = w.ignore
		nft = nft || p.NFT
	}
	if nft {
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(conn.SetReadBuffer(receiveBytes), conn.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		w.conn = conn
		w.running.Go(w.follow)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	w.running.Go(func() { w.poll(ctx, poll) })
	return w, nil
}

// ignore is told of a process that is about to change rules for us. Its netlink socket has its process ID for a port, as
// each process's first one does: see netlink(7).
func (w *watch) ignore(pid int) error {
	w.mu.Lock()
	w.busy = true
	w.mu.Unlock()
	if w.conn == nil {
		return nil
	}
	return ignore(w.conn, uint32(pid))
}

// settled is called when all our changes are done.
func (w *watch) settled(programs map[model.Family]*Program) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy = false
	for _, p := range programs {
		if p.NFT {
			continue
		}
		sizes, err := tableSizes(p.Family)
		if err != nil {
			return err
		}
		w.legacy[p] = &legacy{sizes: sizes}
	}
	return nil
}

func (w *watch) follow() {
	for {
		messages, err := w.conn.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS): // we missed some
			w.tell("too many changes at once to follow")
		case err != nil:
			return // closed
		}
		for _, m := range messages {
			if e, ok := parseEvent(m); ok && e.harms(w.hooks) {
				w.tell("another program changed chain " + e.chain + " of table " + e.table)
			}
		}
	}
}

// harms is true for changes of our chains, and for hooks of ours that go.
func (e event) harms(hooks []Hook) bool {
	if IsOurs(e.chain) {
		return true
	}
	if e.message != unix.NFT_MSG_DELRULE {
		return false
	}
	for _, h := range hooks {
		at := bytes.LastIndexByte([]byte(h.Rule), ' ')
		if h.Table == e.table && h.Chain == e.chain && bytes.Contains(e.data, append([]byte(h.Rule[at+1:]), 0)) {
			return true
		}
	}
	return false
}

func (w *watch) poll(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.look(n%pollsPerLook == 0)
		}
	}
}

// look compares legacy tables with what they were after our last change, if they have another size or thoroughly is true.
// What is there is then what is known, so that each change is told once.
func (w *watch) look(thoroughly bool) {
	w.mu.Lock()
	known := maps.Clone(w.legacy)
	w.mu.Unlock()
	for p, before := range known {
		sizes, err := tableSizes(p.Family)
		if err != nil || !thoroughly && before.summed && slices.Equal(sizes, before.sizes) {
			continue
		}
		now, err := readLegacy(p.Family)
		if err != nil {
			w.log.Warn("legacy tables can't be read", "program", p.Name, "err", err)
			continue
		}
		w.compare(p, before, now)
	}
}

// compare does not heed what was read while we changed something. To read takes so long, a tenth of a second with 10,000
// Services, that it is not done after each change but when it is looked for the first time; of who changed something in
// between only the size tells, and not whose rules.
func (w *watch) compare(p *Program, before, now *legacy) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy || w.legacy[p] != before {
		return
	}
	w.legacy[p] = now
	if before.summed && now.ours != before.ours || !before.summed && !slices.Equal(now.sizes, before.sizes) {
		w.tell("another program changed legacy rules")
	}
}

// tell does not wait: one who comes to restore everything restores all of it.
func (w *watch) tell(why string) {
	select {
	case w.tampered <- struct{}{}:
		w.log.Warn("iptables rules are to be restored", "why", why)
	default:
	}
}

func (w *watch) close() error {
	w.stop()
	var err error
	if w.conn != nil {
		err = w.conn.Close()
	}
	w.running.Wait()
	return err
}
