package iptables

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/xtables"
)

// portRules is a chain of a single port, in table nat. Rules are without the chain: "-s 10.0.0.1/32 -j KUBE-MARK-MASQ".
type portRules struct {
	name  string
	rules []string
}

// part is what a port, or what all ports together, have in a chain of many. Ports may have the same part.
type part struct {
	table, chain string
	// rank orders the parts of a chain; those of the same rank are in the order of their rules, since order doesn't matter.
	rank int
	// rules are joined by newlines.
	rules string
}

// described is what the kernel is to hold for one port.
type described struct {
	family  *family
	network *model.Network
	port    *model.Port

	chains []portRules
	parts  []part
}

// describe fails for a port whose frontends' routes have no form in rules yet.
func describe(f *family, network *model.Network, port *model.Port) (*described, error) {
	d := &described{family: f, network: network, port: port}
	var errs []error
	for _, frontend := range port.Frontends {
		errs = append(errs, d.frontend(frontend))
	}
	if port.HealthCheckNodePort != 0 {
		d.healthCheck()
	}
	errs = append(errs, d.external(), d.sources())
	for _, set := range []model.Set{model.Cluster, model.Local} {
		errs = append(errs, d.balance(set))
	}
	d.endpoints()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%s %s port %s: %w", f.program, port.Key.Protocol, port.Key, err)
	}
	return d, nil
}

func (d *described) share(table, chain string, rules ...string) {
	p := part{table: table, chain: chain, rules: strings.Join(rules, "\n")}
	if !slices.Contains(d.parts, p) {
		d.parts = append(d.parts, p)
	}
}

// own adds a chain of the port, unless it would have no rules.
func (d *described) own(name string, rules []string) {
	if len(rules) > 0 {
		d.chains = append(d.chains, portRules{name: name, rules: rules})
	}
}

// join makes a rule of its parts, leaving out those that are empty.
func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

// toFrontend matches packets that are sent to a frontend.
func (d *described) toFrontend(f model.Frontend, text string) string {
	protocol := d.port.Key.Protocol.String()
	dest := ""
	if f.Kind != model.NodePort {
		dest = "-d " + host(f.Addr)
	}
	return join(dest, "-p", protocol, comment(d.port.Key.String()+" "+text), "-m", protocol, fmt.Sprint("--dport ", f.Port))
}

var kindText = map[model.Kind]string{
	model.ClusterIP: "cluster IP", model.LoadBalancer: "loadbalancer IP", model.ExternalIP: "external IP", model.NodePort: "node port",
}

// frontend leads packets from the chains of all Services to those of the port, and refuses those that come back.
func (d *described) frontend(f model.Frontend) error {
	if target, some := d.entry(f); some {
		leaf := ""
		if f.Kind == model.NodePort {
			leaf = d.nodePortLeaf(xtables.NAT, xtables.NodePorts, f.Port)
		} else {
			leaf = d.branches(xtables.NAT, xtables.Services, f.Addr)
		}
		d.share(xtables.NAT, leaf, join(d.toFrontend(f, kindText[f.Kind]), "-j", target))
	}
	action, err := refusal(f)
	if err != nil {
		return err
	}
	if len(f.Sources) > 0 {
		d.fence(f, action)
	}
	return d.refuse(f, action)
}

// entry is the chain that packets to a frontend go to, if any of them is balanced.
func (d *described) entry(f model.Frontend) (string, bool) {
	at := slices.IndexFunc(f.Routes[:], func(r model.Route) bool { return r.Action == model.Balance })
	switch {
	case at < 0:
		return "", false
	case f.Kind == model.ClusterIP:
		return setChain(f.Routes[at].Set, d.port.Key), true
	case len(f.Sources) > 0:
		return portChain(sourcesPrefix, d.port.Key), true
	}
	return portChain(externalPrefix, d.port.Key), true
}

// refusal is what befalls packets to a frontend that no route led to an endpoint, or Balance if there are none. Table
// filter meets them with the address that they were sent to, and no longer knows which route they took.
func refusal(f model.Frontend) (model.Action, error) {
	out := model.Balance
	for _, r := range f.Routes {
		if r.Action == model.Balance {
			continue
		}
		if out != model.Balance && out != r.Action {
			return out, fmt.Errorf("%s: some packets are to be rejected and others dropped, which this backend can't tell apart", f.Kind)
		}
		out = r.Action
	}
	return out, nil
}

func (d *described) refuse(f model.Frontend, action model.Action) error {
	text, target := "has no endpoints", "-j REJECT --reject-with "+d.family.unreachable
	switch action {
	case model.Balance:
		return nil
	case model.Drop:
		text, target = "has no local endpoints", "-j DROP"
	}
	leaf := ""
	switch f.Kind {
	case model.ClusterIP:
		leaf = d.branches(xtables.Filter, xtables.Services, f.Addr)
	case model.NodePort:
		leaf = d.nodePortLeaf(xtables.Filter, xtables.NodePortsDeny, f.Port)
	case model.LoadBalancer, model.ExternalIP:
		leaf = d.branches(xtables.Filter, xtables.External, f.Addr)
	default:
		return fmt.Errorf("a frontend of kind %d is not known", f.Kind)
	}
	d.share(xtables.Filter, leaf, join(d.toFrontend(f, text), target))
	return nil
}

// healthCheck lets load balancers ask this node, whatever rules there are that would refuse it. All ports of a Service have
// this rule in common.
func (d *described) healthCheck() {
	d.share(xtables.Filter, xtables.NodePorts, join("-p tcp", comment(d.port.Key.Service.String()+" health check node port"),
		fmt.Sprintf("-m tcp --dport %d -j ACCEPT", d.port.HealthCheckNodePort)))
}

// fence drops what KUBE-FW-… didn't let through to an endpoint. Where there is none the sources that may come are told
// so by a later chain.
func (d *described) fence(f model.Frontend, action model.Action) {
	leaf := d.branches(xtables.Filter, xtables.Firewall, f.Addr)
	to := d.toFrontend(f, "traffic not accepted by "+portChain(sourcesPrefix, d.port.Key))
	var rules []string
	if action == model.Reject {
		for _, source := range f.Sources {
			rules = append(rules, join("-s", source.Masked().String(), to, "-j RETURN"))
		}
	}
	d.share(xtables.Filter, leaf, append(rules, join(to, "-j DROP"))...)
}

// external is the chain of all frontends but the ClusterIP, which have the same routes.
func (d *described) external() error {
	var routes *model.Routes
	for i, f := range d.port.Frontends {
		switch {
		case f.Kind == model.ClusterIP:
		case routes == nil:
			routes = &d.port.Frontends[i].Routes
		case *routes != f.Routes:
			return fmt.Errorf("%s: its routes are not those of other external frontends, which have a chain in common", f.Kind)
		}
	}
	if routes != nil && slices.ContainsFunc(routes[:], func(r model.Route) bool { return r.Action == model.Balance }) {
		d.own(portChain(externalPrefix, d.port.Key), d.routeRules(*routes))
	}
	return nil
}

// routeRules has rules for each source in the order of model.Source. What is not balanced returns as it is.
func (d *described) routeRules(routes model.Routes) []string {
	var out []string
	add := func(match string, route model.Route) {
		if route.Action != model.Balance {
			if match != "" {
				out = append(out, match+" -j RETURN")
			}
			return
		}
		if route.Masquerade {
			out = append(out, join(match, comment("masquerade traffic for "+d.port.Key.String()+" external destinations"), "-j", xtables.MarkMasquerade))
		}
		out = append(out, join(match, comment("route traffic for "+d.port.Key.String()+" external destinations"), "-j", setChain(route.Set, d.port.Key)))
	}
	pod, node, outside := routes[model.FromPod], routes[model.FromNode], routes[model.FromOutside]
	if pod != node || pod != outside {
		for _, match := range xtables.PodMatches(d.family.Family, d.network.Local) {
			add(match, pod)
		}
	}
	if node != outside {
		add("-m addrtype --src-type LOCAL", node)
	}
	add("", outside)
	return out
}

// sources is the chain that lets only some clients on to the external chain.
func (d *described) sources() error {
	var fenced *model.Frontend
	for i, f := range d.port.Frontends {
		switch {
		case len(f.Sources) == 0:
		case f.Kind != model.LoadBalancer:
			return fmt.Errorf("%s: only load balancers' addresses can be kept to some sources", f.Kind)
		case fenced == nil:
			fenced = &d.port.Frontends[i]
		case !slices.Equal(fenced.Sources, f.Sources):
			return fmt.Errorf("%s: its sources are not those of other load balancers' addresses, which have a chain in common", f.Kind)
		}
	}
	if fenced == nil {
		return nil
	}
	if _, some := d.entry(*fenced); !some {
		return nil
	}
	var rules []string
	for _, source := range fenced.Sources {
		rules = append(rules, join("-s", source.Masked().String(), comment(d.port.Key.String()+" loadbalancer IP"), "-j", portChain(externalPrefix, d.port.Key)))
	}
	d.own(portChain(sourcesPrefix, d.port.Key), rules)
	return nil
}
