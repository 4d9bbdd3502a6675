package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/orlop/orlop/proxy/config"
	"github.com/orlop/orlop/proxy/iptables"
	"github.com/orlop/orlop/proxy/ipvs"
	"github.com/orlop/orlop/proxy/sysctl"
)

// initOnly sets all that takes more than CAP_NET_ADMIN, for a proxy that is started with that alone.
func initOnly(s settings) error {
	p := &parts{settings: s, families: config.Families()}
	if err := p.identify(); err != nil {
		return err
	}
	network, err := p.network(p.node, nil)
	if err != nil {
		return err
	}
	errs := []error{p.setConntrack()}
	switch s.config.Mode {
	case config.IPTables:
		errs = append(errs, iptables.Prepare(&network))
	case config.IPVS:
		errs = append(errs, ipvs.Prepare(ipvsSettings(s.config)))
	}
	return errors.Join(errs...)
}

// prepare sets what of the machine the rules stand on, beside what the mode sets itself. In a container or a virtual machine
// some of it may be denied: that is told, and no reason to leave the node without rules.
func (p *parts) prepare() error {
	if err := p.setConntrack(); err != nil {
		p.log.Warn("settings of the kernel stay as they are", "err", err)
	}
	score := strconv.Itoa(int(*p.config.OOMScoreAdj))
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(score), 0); err != nil {
		p.log.Warn("oomScoreAdj stays as it is", "wanted", score, "err", err)
	}
	return nil
}

func (p *parts) setConntrack() error {
	var errs []error
	for _, s := range conntrackSettings(p.config, cpus()) {
		errs = append(errs, s.Set())
	}
	return errors.Join(errs...)
}

// The largest table of connections that is derived from the number of CPUs, and how many connections share a bucket of it.
const (
	maxScaled = 1 << 20
	perBucket = 4
)

const (
	tracking    = "net/netfilter/nf_conntrack_"
	bucketsFile = "/sys/module/nf_conntrack/parameters/hashsize"
)

func conntrackSettings(c *config.Config, cpus int) []sysctl.Setting {
	var out []sysctl.Setting
	if n := conntrackMax(c, cpus); n > 0 {
		out = append(out, sysctl.Setting{Path: tracking + "max", Value: n, Raise: true}, sysctl.Setting{Path: bucketsFile, Value: n / perBucket, Raise: true})
	}
	for _, t := range []struct {
		name  string
		after time.Duration
	}{
		{"tcp_timeout_established", c.Conntrack.TCPEstablishedTimeout.Duration}, {"tcp_timeout_close_wait", c.Conntrack.TCPCloseWaitTimeout.Duration},
		{"udp_timeout", c.Conntrack.UDPTimeout.Duration}, {"udp_timeout_stream", c.Conntrack.UDPStreamTimeout.Duration},
	} {
		if t.after > 0 {
			out = append(out, sysctl.Setting{Path: tracking + t.name, Value: int(t.after.Seconds())})
		}
	}
	if c.Conntrack.TCPBeLiberal {
		out = append(out, sysctl.Setting{Path: tracking + "tcp_be_liberal", Value: 1})
	}
	return out
}

// conntrackMax is 0 where the limit is to stay as it is.
func conntrackMax(c *config.Config, cpus int) int {
	scaled := int(*c.Conntrack.MaxPerCore) * cpus
	switch {
	case scaled <= 0:
		return 0
	case scaled > maxScaled:
		return maxScaled
	}
	return max(scaled, int(*c.Conntrack.Min))
}

// cpus are the machine's: this process may be kept to some of them, while connections are tracked for all.
func cpus() int {
	data, err := os.ReadFile("/sys/devices/system/cpu/online")
	if n := countCPUs(strings.TrimSpace(string(data))); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// countCPUs counts a list as "0-3,6"; 0 for what is none.
func countCPUs(list string) int {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		first, last := 0, 0
		if _, err := fmt.Sscanf(part, "%d-%d", &first, &last); err != nil {
			if _, err := fmt.Sscanf(part, "%d", &first); err != nil {
				return 0
			}
			last = first
		}
		n += last - first + 1
	}
	return n
}
