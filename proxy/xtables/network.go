package xtables

import (
	"fmt"
	"regexp"

	"github.com/orlop/orlop/proxy/model"
)

// interfaceName is what may be in a rule's text; the kernel allows more, such as quotes.
var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.:@+-]{1,15}$`)

// CheckNetwork tells what can't be said in rules.
func CheckNetwork(n *model.Network) error {
	for field, name := range map[string]string{"bridge interface": n.Local.Bridge, "interface name prefix": withPlus(n.Local.InterfacePrefix)} {
		if name != "" && !interfaceName.MatchString(name) {
			return fmt.Errorf("%s: %q is no name of an interface; give one of up to 15 letters, digits and _.:@-", field, name)
		}
	}
	if n.MasqueradeMark == 0 || n.MasqueradeMark&(n.MasqueradeMark-1) != 0 {
		return fmt.Errorf("masquerade mark %#x: it must be one bit", n.MasqueradeMark)
	}
	for _, f := range n.Families {
		if names[f] == "" {
			return fmt.Errorf("family %s is not known", f)
		}
	}
	return nil
}

// withPlus is how a rule says that a name begins so.
func withPlus(prefix string) string {
	if prefix == "" {
		return ""
	}
	return prefix + "+"
}

// PodMatches are the ways to tell that a packet is a pod's: any of them.
func PodMatches(f model.Family, local model.LocalDetection) []string {
	switch {
	case local.Bridge != "":
		return []string{"-i " + local.Bridge}
	case local.InterfacePrefix != "":
		return []string{"-i " + withPlus(local.InterfacePrefix)}
	}
	var out []string
	for _, prefix := range local.Of(f) {
		out = append(out, "-s "+prefix.Masked().String())
	}
	return out
}
