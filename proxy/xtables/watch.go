package xtables

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// watch notices that somebody else changed our chains or the hooks to them: `iptables -F`, a firewall that restarts.
//
// With iptables-nft the kernel tells of each change. Of legacy tables it only tells their size when asked, which costs
// nothing; it is asked every few seconds, and only if it is another than after our last change are rules looked at:
// others, as network plugins, have rules in these tables, too.
type watch struct {
	log      *slog.Logger
	hooks    []Hook
	pace     Pace
	tampered chan struct{}
	conn     *netlink.Conn // nil if no program makes rules of nftables
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu sync.Mutex
	// busy is true while we change something.
	busy   bool
	legacy map[*Program][]tableSize
	// last is when it was told last, later is set if it is to be told again.
	last  time.Time
	later *time.Timer
}

// Pace is how often a watch looks and tells.
type Pace struct {
	// Poll is how long a change of legacy tables may go unnoticed.
	Poll time.Duration
	// Gap is at least between two tellings, if somebody keeps on changing our rules: replacing them takes time.
	Gap time.Duration
}

// UsualPace is for nodes; tests can't wait so long.
var UsualPace = Pace{Poll: 5 * time.Second, Gap: 10 * time.Second}

func newWatch(log *slog.Logger, programs map[model.Family]*Program, hooks []Hook, pace Pace) (*watch, error) {
	w := &watch{log: log, hooks: hooks, pace: pace, tampered: make(chan struct{}, 1), legacy: map[*Program][]tableSize{}}
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
	w.running.Go(func() { w.poll(ctx) })
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
		w.legacy[p] = sizes
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

func (w *watch) poll(ctx context.Context) {
	tick := time.NewTicker(w.pace.Poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, p := range w.grown() {
			if !p.intact(ctx, len(w.hooks)) && ctx.Err() == nil {
				w.tell("another program changed legacy rules")
			}
		}
	}
}

// grown are the programs whose tables have another size than before; that is then the one that is known.
func (w *watch) grown() []*Program {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*Program
	for p, before := range w.legacy {
		now, err := tableSizes(p.Family)
		if w.busy || err != nil {
			continue
		}
		for i := range now {
			if now[i] != before[i] {
				out = append(out, p)
				break
			}
		}
		w.legacy[p] = now
	}
	return out
}

// intact tells whether all hooks are there, and the chains that go when somebody removes all.
func (p *Program) intact(ctx context.Context, hooks int) bool {
	have, err := p.Existing(ctx)
	if err != nil || len(have.Hooks) < hooks {
		return false
	}
	for _, table := range Tables {
		if !have.Chains[ChainID{table, Canary}] {
			return false
		}
	}
	for _, table := range []string{Filter, NAT} { // the hooks may be there, and lead to chains that were flushed
		lines, err := p.List(ctx, table, map[string]string{Filter: Forward, NAT: Postrouting}[table])
		if err != nil || len(lines) < 3 {
			return false
		}
	}
	return true
}

func (w *watch) tell(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.later != nil {
		return
	}
	w.log.Warn("iptables rules are to be restored", "why", why)
	w.later = time.AfterFunc(max(0, w.pace.Gap-time.Since(w.last)), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.later, w.last = nil, time.Now()
		select {
		case w.tampered <- struct{}{}:
		default:
		}
	})
}

func (w *watch) close() error {
	w.stop()
	var err error
	if w.conn != nil {
		err = w.conn.Close()
	}
	w.running.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.later != nil {
		w.later.Stop()
	}
	return err
}

// tableSize is what the kernel tells of a legacy table: struct ipt_getinfo, which is that of IPv6, too.
type tableSize struct {
	name                [32]byte
	validHooks          uint32
	entries, underflows [5]uint32
	count, bytes        uint32
}

// optGetInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const optGetInfo = 64

func tableSizes(f model.Family) ([]tableSize, error) {
	domain, level := unix.AF_INET, unix.SOL_IP
	if f == model.IPv6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	out := make([]tableSize, len(Tables))
	for i, table := range Tables {
		copy(out[i].name[:], table)
		size := uint32(unsafe.Sizeof(out[i]))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), optGetInfo,
			uintptr(unsafe.Pointer(&out[i])), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 && errno != unix.ENOENT { // nobody has made this table
			return nil, errors.Join(errno, unix.Close(fd))
		}
	}
	return out, unix.Close(fd)
}
