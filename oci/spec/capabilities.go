package spec

import (
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// everyCapability is all that Linux knows ("CAP_CHOWN"), in the kernel's order.
var everyCapability = sync.OnceValue(func() []string {
	var names []string
	for _, c := range capability.ListKnown() {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names
})

// allCapabilities stands for every capability in the lists of a config.
const allCapabilities = "ALL"

// capNames normalizes names: with or without CAP_, in any case. all tells whether ALL is among them.
func capNames(field string, in []string) (names []string, all bool, err error) {
	for _, name := range in {
		up := strings.ToUpper(name)
		if up == allCapabilities {
			all = true
			continue
		}
		if !strings.HasPrefix(up, "CAP_") {
			up = "CAP_" + up
		}
		if !slices.Contains(everyCapability(), up) {
			return nil, false, invalid(field, name, "is not a capability; see capabilities(7) for their names")
		}
		names = append(names, up)
	}
	return names, all, nil
}

// capSets are a config's wishes, normalized.
type capSets struct {
	add, drop, ambient          []string
	addAll, dropAll, ambientAll bool
}

func (b *builder) capSets() (s capSets, err error) {
	const field = "linux.security_context.capabilities."
	caps := b.sec.GetCapabilities()
	if s.add, s.addAll, err = capNames(field+"add_capabilities", caps.GetAddCapabilities()); err != nil {
		return s, err
	}
	if s.drop, s.dropAll, err = capNames(field+"drop_capabilities", caps.GetDropCapabilities()); err != nil {
		return s, err
	}
	s.ambient, s.ambientAll, err = capNames(field+"add_ambient_capabilities", caps.GetAddAmbientCapabilities())
	return s, err
}

// capabilities: ALL is taken first, so that "drop ALL, add NET_BIND_SERVICE" and "add ALL, drop SYS_ADMIN" mean what
// they say; of one that is both added and dropped by name, drop wins.
//
// Nothing is inheritable but what is ambient: with more, a file capability in the image would raise an unprivileged
// user (CVE-2022-24769).
func (b *builder) capabilities() error {
	sets, err := b.capSets()
	if err != nil {
		return err
	}
	wanted, ambient := b.wantedCapabilities(sets)
	bounding, err := b.onlyThere(wanted)
	if err != nil {
		return err
	}
	ambient = inOrder(func(c string) bool { return slices.Contains(ambient, c) && slices.Contains(bounding, c) })
	b.spec.Process.Capabilities = &rspec.LinuxCapabilities{
		Bounding:    bounding,
		Effective:   slices.Clone(bounding),
		Permitted:   slices.Clone(bounding),
		Inheritable: ambient,
		Ambient:     slices.Clone(ambient),
	}
	return nil
}

func (b *builder) wantedCapabilities(s capSets) (wanted, ambient []string) {
	if b.privileged() {
		return everyCapability(), nil
	}
	switch {
	case s.dropAll:
	case s.addAll:
		wanted = everyCapability()
	default:
		wanted = b.in.DefaultCapabilities
	}
	if s.ambientAll {
		s.ambient = everyCapability()
	}
	// An ambient capability must be permitted too, so asking for it asks for both.
	wanted = slices.Concat(wanted, s.add, s.ambient)
	wanted = slices.DeleteFunc(wanted, func(c string) bool { return slices.Contains(s.drop, c) })
	return wanted, s.ambient
}

// onlyThere keeps what the daemon has to give and notes the rest. In a user namespace all are there: the kernel gives
// its first process the full set, whatever its maker had.
func (b *builder) onlyThere(wanted []string) ([]string, error) {
	var missing []string
	there := inOrder(func(c string) bool {
		if !slices.Contains(wanted, c) {
			return false
		}
		if b.inUserNamespace() || slices.Contains(b.in.Host.Capabilities, c) {
			return true
		}
		missing = append(missing, c)
		return false
	})
	for _, c := range wanted {
		if !slices.Contains(everyCapability(), c) { // only the daemon's defaults can have it
			return nil, invalid("default capabilities", c, "is not a capability; correct the daemon's config")
		}
	}
	if len(missing) > 0 {
		b.note("capabilities %s left out: the daemon does not have them", strings.Join(missing, ", "))
	}
	return there, nil
}

// inOrder are the capabilities that keep holds for, in the kernel's order.
func inOrder(keep func(string) bool) []string {
	var out []string
	for _, c := range everyCapability() {
		if keep(c) {
			out = append(out, c)
		}
	}
	return out
}
