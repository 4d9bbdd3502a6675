// Package nft makes the kernel treat packets to Services as package model says, by nftables.
//
// Two tables, ip and ip6 kube-proxy, hold maps from what a packet is sent to to what becomes of it. There are no chains
// of single Services: frontends that are treated alike share a chain, and an endpoint is an element of a map, so that a
// packet takes a few lookups whatever the number of Services, and a change of endpoints is a change of elements.
//
//	services ─ service-ips: 10.96.0.10 . udp . 53 ─▶ cluster ─ cluster-2: 10.96.0.10 . udp . 53 and
//	cluster-endpoints: 10.96.0.10 . udp . 53 . 1 ─▶ 10.244.0.7 . 53
//
// A Service with session affinity has chains of its own, one for each endpoint, since each endpoint keeps a set of its
// clients.
//
// What the kernel holds is kept in memory, and never listed: a change is a transaction of a few messages. Who else
// changes these tables is noticed at once, see tamper.go.
package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// Backend is a proxy.Backend.
type Backend struct {
	log  *slog.Logger
	conn *nftables.Conn
	// watch tells of changes that are not ours.
	watch   *watch
	network model.Network
	tables  map[model.Family]*table
}

// table is what the kernel holds in one family.
type table struct {
	family  family
	nft     *nftables.Table
	sets    map[string]*nftables.Set
	records map[model.PortKey]record
	shared  shared
	// stale are chains that nothing leads to any more: see dropStale.
	stale map[string]bool
}

// New is a backend in the network namespace of the calling thread. Nothing is changed before Replace.
func New(log *slog.Logger) (*Backend, error) {
	b := &Backend{log: log, tables: map[model.Family]*table{}}
	var err error
	if b.watch, err = newWatch(log); err != nil {
		return nil, fmt.Errorf("nftables: watch: %w", err)
	}
	if err := b.dial(); err != nil {
		return nil, errors.Join(err, b.watch.close())
	}
	return b, nil
}

// A transaction is one message to the kernel, however long, so that the socket must be allowed to hold it. This is a
// bound, not an amount: 44,000 Services take some 40 MB for a moment.
const (
	sendBufferBytes    = 512 << 20
	receiveBufferBytes = 32 << 20
)

// dial opens the socket whose changes are ours.
func (b *Backend) dial() error {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		if err := errors.Join(c.SetWriteBuffer(sendBufferBytes), c.SetReadBuffer(receiveBufferBytes)); err != nil {
			return err
		}
		port, err := portOf(c)
		if err != nil {
			return err
		}
		return b.watch.ignore(port)
	}))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	b.conn = conn
	return nil
}

// redial forgets what a failed transaction left in the socket.
func (b *Backend) redial() error {
	return errors.Join(b.conn.CloseLasting(), b.dial())
}

// commit sends what was collected.
func (b *Backend) commit() error {
	if err := b.conn.Flush(); err != nil {
		return errors.Join(fmt.Errorf("nftables: %w", err), b.redial())
	}
	return nil
}

// Replace is of proxy.Backend.
func (b *Backend) Replace(ctx context.Context, rules model.Rules) error {
	if err := check(&rules.Network); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	there, err := b.existing()
	if err != nil {
		return err
	}
	b.network = rules.Network
	b.tables = map[model.Family]*table{}
	for _, old := range there {
		b.conn.DelTable(old.table)
	}
	batches := map[model.Family]*batch{}
	for _, family := range rules.Network.Families {
		t := &table{
			family: families[family], sets: map[string]*nftables.Set{}, records: map[model.PortKey]record{},
			shared: shared{}, stale: map[string]bool{},
		}
		b.tables[family] = t
		batches[family] = b.begin(t)
	}
	for _, port := range rules.Ports {
		if t := b.tables[port.Key.Family]; t != nil {
			b.put(t, batches[port.Key.Family], nil, port)
		}
	}
	for _, batch := range batches {
		if err := batch.write(); err != nil {
			return errors.Join(fmt.Errorf("nftables: %w", err), b.redial())
		}
	}
	b.restoreClients(there)
	return b.commit()
}

// begin makes a table with what every table has.
func (b *Backend) begin(t *table) *batch {
	t.nft = b.conn.AddTable(&nftables.Table{Family: t.family.table, Name: tableName})
	batch := newBatch(b.conn, t.nft, t.sets)
	batch.fresh = true
	for _, set := range t.family.sets(t.nft) {
		t.sets[set.Name] = set
		batch.newSets = append(batch.newSets, set)
	}
	for _, c := range t.family.fixedChains(&b.network) {
		t.shared.take("chain " + c.name)
		batch.chains[c.name] = c
	}
	policy := nftables.ChainPolicyAccept
	for _, base := range t.family.baseChains() {
		batch.chains[base.name] = chain{name: base.name, rules: func() []exprs { return base.rules }}
		batch.base[base.name] = &nftables.Chain{Name: base.name, Table: t.nft, Type: base.kind, Hooknum: base.hook,
			Priority: nftables.ChainPriorityRef(base.priority), Policy: &policy}
	}
	batch.add[nodePortIPs] = t.family.nodePortElements(&b.network)
	return batch
}

// put changes what is said of a port.
func (b *Backend) put(t *table, batch *batch, old, port *model.Port) {
	var before, after *described
	var key model.PortKey
	var have record
	if old != nil {
		key = old.Key
		have = t.records[key]
		before = describe(t.family, &b.network, have)
	}
	if port != nil {
		key = port.Key
		have = have.next(port)
		after = describe(t.family, &b.network, have)
		t.records[key] = have
	} else {
		delete(t.records, key)
	}
	t.change(batch, before, after)
}

// Apply is of proxy.Backend.
func (b *Backend) Apply(ctx context.Context, changes []model.Change) error {
	b.dropStale()
	batches := map[model.Family]*batch{}
	for _, c := range changes {
		t := b.tables[c.Key().Family]
		if t == nil {
			continue
		}
		if batches[t.family.Family] == nil {
			batches[t.family.Family] = newBatch(b.conn, t.nft, t.sets)
		}
		b.put(t, batches[t.family.Family], c.Old, c.New)
	}
	for _, batch := range batches {
		if err := batch.write(); err != nil {
			return errors.Join(fmt.Errorf("nftables: %w", err), b.redial())
		}
	}
	return b.commit()
}

// dropStale deletes chains that earlier changes left without use. Not in the same transaction, since kernels before 6.2
// count the elements that led to them for a while; a chain that can't go yet goes the next time.
func (b *Backend) dropStale() {
	for _, t := range b.tables {
		for _, name := range slices.Collect(maps.Keys(t.stale)) {
			b.conn.DelChain(&nftables.Chain{Name: name, Table: t.nft})
		}
	}
	err := b.commit()
	if err != nil {
		b.log.Debug("chains without use are still held", "err", err)
		return
	}
	for _, t := range b.tables {
		clear(t.stale)
	}
}

// Tampered is of proxy.Backend.
func (b *Backend) Tampered() <-chan struct{} { return b.watch.tampered }

// Close is of proxy.Backend.
func (b *Backend) Close() error { return errors.Join(b.conn.CloseLasting(), b.watch.close()) }

// Cleanup removes what this backend, or kube-proxy in mode nftables, made.
func Cleanup() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	b := &Backend{conn: conn}
	there, err := b.existing()
	if err != nil {
		return err
	}
	for _, t := range there {
		conn.DelTable(t.table)
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("nftables: delete table %s: %w", tableName, err)
	}
	return nil
}
