package spec

import (
	"encoding/json"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const seccompField = "linux.security_context.seccomp"

// seccomp sets the system call filter. It comes after the capabilities, for the default profile allows what they are
// for.
func (b *builder) seccomp() error {
	if b.privileged() {
		return nil
	}
	want, err := b.seccompProfile()
	if err != nil {
		return err
	}
	switch want.GetProfileType() {
	case cri.SecurityProfile_Unconfined:
		return nil
	case cri.SecurityProfile_RuntimeDefault:
		if !b.in.Host.Seccomp {
			b.note("default seccomp profile left out: the kernel has no seccomp")
			return nil
		}
		b.spec.Linux.Seccomp = b.evaluateSeccomp(seccomp.DefaultProfile())
		if b.in.Host.NoX32 {
			b.spec.Linux.Seccomp.Architectures = slices.DeleteFunc(b.spec.Linux.Seccomp.Architectures,
				func(a rspec.Arch) bool { return a == rspec.ArchX32 })
		}
		return nil
	case cri.SecurityProfile_Localhost:
		return b.localhostSeccomp(want.GetLocalhostRef())
	default:
		return invalid(seccompField+".profile_type", want.GetProfileType().String(),
			"is not a known type; use RuntimeDefault, Unconfined or Localhost")
	}
}

// seccompProfile is what the config asks for, in its new field or, without that, in the deprecated one.
func (b *builder) seccompProfile() (*cri.SecurityProfile, error) {
	if p := b.sec.GetSeccomp(); p != nil {
		return p, nil
	}
	// Deprecated in the CRI, and still what older clients send.
	old := b.sec.GetSeccompProfilePath() //nolint:staticcheck
	return oldProfile("linux.security_context.seccomp_profile_path", old, cri.SecurityProfile_Unconfined)
}

// oldProfile reads the deprecated form of a profile; empty is what "" stands for, which the CRI defines differently
// for seccomp and AppArmor.
func oldProfile(field, s string, empty cri.SecurityProfile_ProfileType) (*cri.SecurityProfile, error) {
	ref, local := strings.CutPrefix(s, "localhost/")
	switch {
	case s == "":
		return &cri.SecurityProfile{ProfileType: empty}, nil
	case s == "runtime/default", s == "docker/default":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case s == "unconfined":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	case local && ref != "":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: ref}, nil
	}
	return nil, invalid(field, s, "is not a profile; use runtime/default, unconfined or localhost/PROFILE")
}

func (b *builder) localhostSeccomp(ref string) error {
	const field = seccompField + ".localhost_ref"
	switch {
	case !path.IsAbs(ref):
		return invalid(field, ref, "is not an absolute path; the CRI asks for one")
	case !b.in.Host.Seccomp:
		return invalid(field, ref, "the kernel has no seccomp; run the container Unconfined or elsewhere")
	case b.in.LocalhostSeccomp == nil:
		return invalid(field, ref, "the profile was not read; put it there")
	}
	var profile seccomp.Seccomp
	if err := json.Unmarshal(b.in.LocalhostSeccomp, &profile); err != nil {
		return invalid(field, ref, "the profile is not one: "+err.Error())
	}
	if problem := profileProblem(&profile); problem != "" {
		return invalid(field, ref, problem)
	}
	b.spec.Linux.Seccomp = b.evaluateSeccomp(&profile)
	return nil
}

// profileProblem finds what would turn a profile off, or be ambiguous, without anyone noticing.
func profileProblem(p *seccomp.Seccomp) string {
	if p.DefaultAction == "" {
		return "the profile has no defaultAction; add one, SCMP_ACT_ERRNO for example"
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return "the profile has architectures and archMap; keep one of them"
	}
	for _, call := range p.Syscalls {
		if call == nil || (call.Name == "") == (len(call.Names) == 0) {
			return "the profile has a rule without exactly one of name and names; correct it"
		}
	}
	return ""
}

// seccompArch is how profiles name an architecture: in conditions, and in the list of those filtered.
type seccompArch struct {
	condition string
	arch      rspec.Arch
}

var seccompArchs = map[string]seccompArch{ // by GOARCH
	"386":      {"x86", rspec.ArchX86},
	"amd64":    {"amd64", rspec.ArchX86_64},
	"arm":      {"arm", rspec.ArchARM},
	"arm64":    {"arm64", rspec.ArchAARCH64},
	"loong64":  {"loongarch64", rspec.ArchLOONGARCH64},
	"mips":     {"mips", rspec.ArchMIPS},
	"mips64":   {"mips64", rspec.ArchMIPS64},
	"mips64le": {"mipsel64", rspec.ArchMIPSEL64},
	"mipsle":   {"mipsel", rspec.ArchMIPSEL},
	"ppc64":    {"ppc64", rspec.ArchPPC64},
	"ppc64le":  {"ppc64le", rspec.ArchPPC64LE},
	"riscv64":  {"riscv64", rspec.ArchRISCV64},
	"s390x":    {"s390x", rspec.ArchS390X},
}

// evaluateSeccomp resolves a profile's conditions for this container and machine. The profile's own library does so
// too, but asks the running kernel for its version, and this package is pure.
func (b *builder) evaluateSeccomp(p *seccomp.Seccomp) *rspec.LinuxSeccomp {
	host := b.in.Host
	if host.Arch == "" {
		host.Arch = runtime.GOARCH
	}
	native := seccompArchs[host.Arch]
	out := p.LinuxSeccomp
	out.Syscalls = nil
	for _, a := range p.ArchMap {
		if a.Arch == native.arch {
			out.Architectures = append(append(out.Architectures, a.Arch), a.SubArches...)
			break
		}
	}
	c := conditions{arch: native.condition, caps: b.spec.Process.Capabilities.Bounding, host: host}
	for _, call := range p.Syscalls {
		if !c.all(call.Includes) || c.any(call.Excludes) {
			continue
		}
		rule := call.LinuxSyscall
		if call.Name != "" {
			rule.Names = []string{call.Name}
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return &out
}

// conditions are what the rules of a profile may depend on.
type conditions struct {
	arch string
	caps []string
	host Host
}

// all tells whether a rule's includes hold. None hold always.
func (c conditions) all(f *seccomp.Filter) bool {
	if f == nil {
		return true
	}
	for _, needed := range f.Caps {
		if !slices.Contains(c.caps, needed) {
			return false
		}
	}
	return (len(f.Arches) == 0 || slices.Contains(f.Arches, c.arch)) && (f.MinKernel == nil || c.kernelFrom(*f.MinKernel))
}

// any tells whether one of a rule's excludes holds.
func (c conditions) any(f *seccomp.Filter) bool {
	if f == nil {
		return false
	}
	for _, barred := range f.Caps {
		if slices.Contains(c.caps, barred) {
			return true
		}
	}
	return slices.Contains(f.Arches, c.arch) || f.MinKernel != nil && c.kernelFrom(*f.MinKernel)
}

func (c conditions) kernelFrom(v seccomp.KernelVersion) bool {
	major, minor := uint64(max(c.host.KernelMajor, 0)), uint64(max(c.host.KernelMinor, 0))
	return major > v.Kernel || major == v.Kernel && minor >= v.Major
}
