package explain

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

var whom = map[string]string{"pod": "from pods", "node": "from this node", "outside": "from outside"}

// Write says it in a few lines.
func Write(w io.Writer, reports []Report) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i, r := range reports {
		if i > 0 {
			fmt.Fprintln(t)
		}
		r.write(t)
	}
	return t.Flush()
}

func (r Report) write(w io.Writer) {
	name := r.Service
	if r.Port != "" {
		name += ":" + r.Port
	}
	fmt.Fprintf(w, "%s, %s over %s\n", name, strings.ToUpper(r.Protocol), r.Family)
	for _, f := range r.Frontends {
		f.write(w)
	}
	if r.Affinity != "" {
		fmt.Fprintf(w, "  A client keeps its endpoint for %s (sessionAffinity).\n", r.Affinity)
	}
	if r.Topology != "" {
		fmt.Fprintf(w, "  Endpoints are chosen by their hints (%s).\n", r.Topology)
	}
	if len(r.Endpoints) == 0 {
		fmt.Fprintln(w, "  No endpoints: no pod matches, or none has an address.")
	}
	for _, e := range r.Endpoints {
		use := "used"
		if !e.Used {
			use = "not used: " + e.Why
		}
		if e.Local {
			use += " (serves for policy Local)"
		}
		fmt.Fprintf(w, "    %s\t%s\t%s\t%s\n", e.Address, orDash(e.Pod), orDash(e.Node), use)
	}
	switch {
	case len(r.Differences) > 0:
		fmt.Fprintln(w, "  THE KERNEL'S RULES ARE OTHERS:")
		for _, d := range r.Differences {
			fmt.Fprintln(w, "    "+d)
		}
	case r.Kernel != "":
		fmt.Fprintln(w, "  The kernel's rules say the same.")
	default:
		fmt.Fprintln(w, "  The kernel's rules are not read back in this mode.")
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (f Frontend) write(w io.Writer) {
	fmt.Fprintf(w, "  %s %s\n", f.Kind, f.Address)
	if f.Owner != "" {
		fmt.Fprintf(w, "    is %s's, which is older\n", f.Owner)
	}
	if len(f.Sources) > 0 {
		fmt.Fprintf(w, "    only for %s (loadBalancerSourceRanges); others are dropped\n", strings.Join(f.Sources, ", "))
	}
	for i, route := range f.Routes {
		text := route.text()
		if i > 0 && slices.Equal(f.Routes[i-1].Endpoints, route.Endpoints) && route.Action == "balance" {
			text = "the same" + route.masqueraded()
		}
		fmt.Fprintf(w, "    %-14s  %s\n", whom[route.From], text)
	}
}

func (r Route) masqueraded() string {
	if r.Masquerade {
		return ", masqueraded"
	}
	return ""
}

func (r Route) text() string {
	switch r.Action {
	case "reject":
		return "rejected: " + r.Why
	case "drop":
		return "dropped: " + r.Why
	}
	const some = 8
	shown := strings.Join(r.Endpoints[:min(some, len(r.Endpoints))], ", ")
	if more := len(r.Endpoints) - some; more > 0 {
		shown += fmt.Sprintf(" and %d more", more)
	}
	if len(r.Endpoints) > 1 {
		shown = "one of " + shown
	}
	return shown + " (policy " + r.Policy + ")" + r.masqueraded()
}
