package xtables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/orlop/orlop/proxy/model"
)

// ClientMasks are how much of an address tells clients apart: all.
var ClientMasks = map[model.Family]string{model.IPv4: "255.255.255.255", model.IPv6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}

// optionsOf are the options of each match, with how many words follow.
var optionsOf = map[string]map[string]int{
	"":          {"-d": 1, "-s": 1, "-p": 1, "-i": 1, "-m": 1},
	"tcp":       {"--dport": 1},
	"udp":       {"--dport": 1},
	"sctp":      {"--dport": 1},
	"comment":   {"--comment": 1},
	"addrtype":  {"--src-type": 1, "--dst-type": 1},
	"conntrack": {"--ctstate": 1},
	"mark":      {"--mark": 1},
	"statistic": {"--mode": 1, "--probability": 1},
	"set":       {"--match-set": 2},
	"recent":    {"--rcheck": 0, "--set": 0, "--reap": 0, "--rsource": 0, "--seconds": 1, "--name": 1, "--mask": 1},
}

// matches reads a rule up to its target, which is returned, and tells whether it applies. As the kernel does, it looks no
// further after the first thing that does not.
func (w *way) matches(words []string) (bool, []string, error) {
	loaded := ""
	recent := map[string]string{}
	for i := 0; i < len(words); {
		if words[i] == "-j" {
			ok, err := w.recent(recent)
			return ok, words[i+1:], err
		}
		not := words[i] == "!"
		if not {
			i++
		}
		option := words[i]
		n, known := optionsOf[""][option]
		if !known {
			n, known = optionsOf[loaded][option]
		}
		if !known || i+n >= len(words) {
			return false, nil, fmt.Errorf("option %q of match %q is not understood", option, loaded)
		}
		value := strings.Join(words[i+1:i+n+1], " ")
		i += n + 1
		switch {
		case option == "-m":
			if loaded = value; optionsOf[value] == nil {
				return false, nil, fmt.Errorf("match %q is not known", value)
			}
		case loaded == "recent" && strings.HasPrefix(option, "--"):
			recent[option] = value
		default:
			ok, err := w.match(option, value)
			if err != nil || ok == not {
				return false, nil, err
			}
		}
	}
	return false, nil, fmt.Errorf("no target")
}

func (w *way) match(option, value string) (bool, error) {
	p := w.packet
	switch option {
	case "--comment":
		return true, nil
	case "-d":
		return inMask(w.now.Addr(), value)
	case "-s":
		return inMask(p.From.Addr(), value)
	case "-p":
		return value == p.Protocol.String(), nil
	case "-i":
		if prefix, ok := strings.CutSuffix(value, "+"); ok {
			return strings.HasPrefix(p.In, prefix), nil
		}
		return p.In == value, nil
	case "--dport":
		low, high, isRange := strings.Cut(value, ":")
		if !isRange {
			high = low
		}
		return between(w.now.Port(), low, high)
	case "--src-type", "--dst-type":
		addr := p.From.Addr()
		if option == "--dst-type" {
			addr = w.now.Addr()
		}
		if value != "LOCAL" {
			return false, fmt.Errorf("type %s is not understood", value)
		}
		return p.Local(addr), nil
	case "--ctstate":
		return w.inState(strings.Split(value, ","))
	case "--mark":
		var bits, mask uint64
		_, err := fmt.Sscanf(value, "%v/%v", &bits, &mask)
		return w.mark&mask == bits, err
	case "--match-set":
		if w.rules.InSet == nil {
			return false, fmt.Errorf("nobody knows what is in set %s", value)
		}
		set, directions, _ := strings.Cut(value, " ")
		if p.To = w.now; len(w.served) > 0 {
			p.To = w.served[0]
		}
		return w.rules.InSet(set, directions, p)
	case "--mode":
		return true, nil
	case "--probability":
		return w.byChance(value)
	}
	return false, fmt.Errorf("option %q is not understood", option)
}

// inMask is for masks of any bits.
func inMask(addr netip.Addr, text string) (bool, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix.Contains(addr), nil
	}
	value, mask, _ := strings.Cut(text, "/")
	v, err := netip.ParseAddr(value)
	if err != nil {
		return false, err
	}
	m, err := netip.ParseAddr(mask)
	if err != nil || m.BitLen() != v.BitLen() {
		return false, fmt.Errorf("mask %s: %w", text, err)
	}
	if addr.BitLen() != v.BitLen() {
		return false, fmt.Errorf("%s and %s are of different families", addr, text)
	}
	a, vs := addr.AsSlice(), v.AsSlice()
	for i, bits := range m.AsSlice() {
		if a[i]&bits != vs[i] {
			return false, nil
		}
	}
	return true, nil
}

func between(port uint16, low, high string) (bool, error) {
	l, err := strconv.ParseUint(low, 10, 16)
	if err != nil {
		return false, err
	}
	h, err := strconv.ParseUint(high, 10, 16)
	return uint64(port) >= l && uint64(port) <= h, err
}

// inState is of a first packet; DNAT is a state for iptables.
func (w *way) inState(states []string) (bool, error) {
	for _, s := range states {
		if !slices.Contains([]string{"NEW", "INVALID", "RELATED", "ESTABLISHED", "DNAT"}, s) {
			return false, fmt.Errorf("state %s is not understood", s)
		}
	}
	return slices.Contains(states, "NEW") || slices.Contains(states, "DNAT") && w.now != w.packet.To, nil
}

func (w *way) byChance(probability string) (bool, error) {
	p, err := strconv.ParseFloat(probability, 64)
	if w.at == len(w.decisions) {
		w.decisions = append(w.decisions, true)
	}
	yes := w.decisions[w.at]
	if w.at++; yes {
		w.weight *= p
	} else {
		w.weight *= 1 - p
	}
	return yes, err
}

// recent is a match that remembers clients.
func (w *way) recent(options map[string]string) (bool, error) {
	if len(options) == 0 {
		return true, nil
	}
	_, check := options["--rcheck"]
	_, set := options["--set"]
	_, bySource := options["--rsource"]
	switch {
	case check == set || !bySource || options["--name"] == "" || options["--mask"] != ClientMasks[model.FamilyOf(w.packet.To.Addr())]:
		return false, fmt.Errorf("match recent with %v is not understood", options)
	case set:
		return true, nil
	}
	if _, reap := options["--reap"]; !reap || options["--seconds"] == "" {
		return false, fmt.Errorf("clients are never forgotten: %v", options)
	}
	return w.rules.Known[options["--name"]], nil
}
