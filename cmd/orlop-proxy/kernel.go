package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// sysctl is a setting of the kernel below /proc/sys.
type sysctl struct {
	path  string
	value int
	// raise leaves a larger value alone.
	raise bool
}

// prepare sets what of the machine the rules stand on. In a container or a virtual machine some of it may be denied: that
// is told, and no reason to leave the node without rules.
func (p *parts) prepare() error {
	for _, s := range p.sysctls() {
		if err := s.set(); err != nil {
			p.log.Warn("a setting of the kernel stays as it is", "err", err)
		}
	}
	score := strconv.Itoa(int(*p.config.OOMScoreAdj))
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(score), 0); err != nil {
		p.log.Warn("oomScoreAdj stays as it is", "wanted", score, "err", err)
	}
	return nil
}

func (p *parts) sysctls() []sysctl {
	c := p.config.Conntrack
	var out []sysctl
	if *c.MaxPerCore > 0 {
		out = append(out, sysctl{"net/netfilter/nf_conntrack_max", max(int(*c.Min), int(*c.MaxPerCore)*runtime.NumCPU()), true})
	}
	for path, d := range map[string]time.Duration{
		"net/netfilter/nf_conntrack_tcp_timeout_established": c.TCPEstablishedTimeout.Duration,
		"net/netfilter/nf_conntrack_tcp_timeout_close_wait":  c.TCPCloseWaitTimeout.Duration,
		"net/netfilter/nf_conntrack_udp_timeout":             c.UDPTimeout.Duration,
		"net/netfilter/nf_conntrack_udp_timeout_stream":      c.UDPStreamTimeout.Duration,
	} {
		if d > 0 {
			out = append(out, sysctl{path: path, value: int(d.Seconds())})
		}
	}
	if c.TCPBeLiberal {
		out = append(out, sysctl{path: "net/netfilter/nf_conntrack_tcp_be_liberal", value: 1})
	}
	return out
}

func (s sysctl) set() error {
	path := "/proc/sys/" + s.path
	data, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: this kernel has none", s.path)
		}
		return err
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err == nil && (have == s.value || s.raise && have > s.value) {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(s.value)), 0); err != nil {
		return fmt.Errorf("%s = %d: %w", s.path, s.value, err)
	}
	return nil
}
