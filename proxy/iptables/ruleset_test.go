package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/orlop/orlop/proxy/xtables"
)

// ruleset is what a kernel would hold after it was told texts for iptables-restore: table, chain, rules.
type ruleset map[string]map[string][]string

func newRuleset() ruleset {
	out := ruleset{xtables.Mangle: {}}
	for table, chains := range xtables.Builtin {
		out[table] = map[string][]string{}
		for _, chain := range chains {
			out[table][chain] = nil
		}
	}
	return out
}

// restore does what iptables-restore --noflush does, and fails where it does.
func (r ruleset) restore(text string) error {
	table := ""
	for n, line := range strings.Split(strings.TrimSpace(text), "\n") {
		var err error
		word, rest, _ := strings.Cut(line, " ")
		chain, rule, _ := strings.Cut(rest, " ")
		_, known := r[table][chain]
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			r[table][word[1:]] = nil
		case line == "COMMIT":
			err = r.linked(table)
		case !known:
			err = errors.New("no such chain")
		case word == "-A":
			r[table][chain] = append(r[table][chain], rule)
		case word == "-I":
			r[table][chain] = slices.Insert(r[table][chain], 0, rule)
		case word == "-D":
			at := slices.Index(r[table][chain], rule)
			if at < 0 {
				return fmt.Errorf("line %d: no such rule: %s", n+1, line)
			}
			r[table][chain] = slices.Delete(r[table][chain], at, at+1)
		case word == "-X" && len(r[table][chain]) == 0:
			delete(r[table], chain)
		default:
			err = errors.New("not understood")
		}
		if err != nil {
			return fmt.Errorf("line %d: %s: %w", n+1, line, err)
		}
	}
	return nil
}

// linked fails if a rule leads to a chain that is not there.
func (r ruleset) linked(table string) error {
	for chain, rules := range r[table] {
		for _, rule := range rules {
			words := xtables.SplitRule(rule)
			target := words[slices.Index(words, "-j")+1] // the first word where there is none, which is no chain
			if _, known := r[table][target]; !known && !slices.Contains(xtables.Verdicts, target) {
				return fmt.Errorf("chain %s leads to %q, which is not there", chain, target)
			}
		}
	}
	return nil
}

// tracer follows packets through the ruleset as it is now.
func (r ruleset) tracer() *xtables.Rules {
	return &xtables.Rules{List: func(_ context.Context, table, chain string) ([]string, error) {
		rules, known := r[table][chain]
		if !known {
			return nil, fmt.Errorf("no chain %s", chain)
		}
		return rules, nil
	}}
}
