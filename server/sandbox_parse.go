package server

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/store"
)

// handlerName is the runtime handler that "" means.
const handlerName = "orlop"

// podPlan is what a pod's config asks for, parsed.
type podPlan struct {
	hostNetwork, hostIPC, hostPID bool
	sharedPID                     bool // the containers share a PID namespace, whose init is ours
	hostname                      string
	sysctls                       map[string]string
	uids, gids                    []ns.IDMap // of the pod's user namespace; empty without
	ports                         []cni.PortMapping
	shmBytes                      int64 // of /dev/shm, 0 for the default
}

// parsePod is all validation of a RunPodSandbox request. The record that it returns is in no table yet.
func (s *Server) parsePod(req *cri.RunPodSandboxRequest) (*store.Pod, podPlan, error) {
	config := req.GetConfig()
	if config == nil {
		return nil, podPlan{}, invalid("config", "", "set it")
	}
	if h := req.GetRuntimeHandler(); h != "" && h != handlerName {
		return nil, podPlan{}, invalid("runtime_handler", h, fmt.Sprintf("this node has \"\" and %q", handlerName))
	}
	rec := &store.Pod{
		ID: store.PodID(newID()), State: store.PodCreating, Config: config,
		Handler: req.GetRuntimeHandler(), CreatedAt: time.Now(),
		CgroupParent: config.GetLinux().GetCgroupParent(),
	}
	if err := checkPodMetadata(config.GetMetadata()); err != nil {
		return nil, podPlan{}, err
	}
	if dir := config.GetLogDirectory(); dir != "" && (!filepath.IsAbs(dir) || filepath.Clean(dir) == "/") {
		return nil, podPlan{}, invalid("config.log_directory", dir, "use an absolute path")
	}
	if rec.CgroupParent == "" {
		rec.CgroupParent = s.defaultParent(rec.ID)
	}
	if _, err := s.Cgroups.ContainerPath(rec.CgroupParent, string(rec.ID)); err != nil {
		return nil, podPlan{}, fmt.Errorf("%w: config.linux.cgroup_parent: %w", store.ErrInvalid, err)
	}
	plan, err := planPod(rec.ID, config)
	if err != nil {
		return nil, podPlan{}, err
	}
	plan.addSysctls(s.cfg.Container.Sysctls)
	plan.shmBytes = cmp.Or(plan.shmBytes, s.cfg.Container.ShmBytes)
	return rec, plan, nil
}

func checkPodMetadata(m *cri.PodSandboxMetadata) error {
	if err := checkName("config.metadata.name", m.GetName()); err != nil {
		return err
	}
	if err := checkText("config.metadata.namespace", m.GetNamespace(), maxName); err != nil {
		return err
	}
	return checkText("config.metadata.uid", m.GetUid(), maxName)
}

// defaultParent gives a pod that names no cgroup one of its own, so that it can be counted and killed as a whole.
func (s *Server) defaultParent(id store.PodID) string {
	if s.cfg.SystemdCgroup {
		return strings.TrimSuffix(s.cfg.CgroupParent, ".slice") + "-pod" + string(id) + ".slice"
	}
	return filepath.Join(s.cfg.CgroupParent, "pod-"+string(id))
}

// planPod reads a config, in a request or on record.
func planPod(id store.PodID, config *cri.PodSandboxConfig) (podPlan, error) {
	var plan podPlan
	options := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if err := plan.setNamespaces(options); err != nil {
		return plan, err
	}
	if err := plan.setUser(options.GetUsernsOptions()); err != nil {
		return plan, err
	}
	if err := plan.setHostname(id, config.GetHostname()); err != nil {
		return plan, err
	}
	if err := plan.setSysctls(config.GetLinux().GetSysctls()); err != nil {
		return plan, err
	}
	if err := plan.setShm(config.GetAnnotations()); err != nil {
		return plan, err
	}
	if err := checkDNS(config.GetDnsConfig()); err != nil {
		return plan, err
	}
	return plan, plan.setPorts(config.GetPortMappings())
}

const optionsField = "config.linux.security_context.namespace_options"

func (plan *podPlan) setNamespaces(o *cri.NamespaceOption) error {
	for _, n := range []struct {
		field string
		mode  cri.NamespaceMode
		host  *bool
	}{{"network", o.GetNetwork(), &plan.hostNetwork}, {"ipc", o.GetIpc(), &plan.hostIPC}} {
		switch n.mode {
		case cri.NamespaceMode_POD:
		case cri.NamespaceMode_NODE:
			*n.host = true
		default:
			return invalid(optionsField+"."+n.field, n.mode.String(), "use POD or NODE")
		}
	}
	switch o.GetPid() {
	case cri.NamespaceMode_POD:
		plan.sharedPID = true
	case cri.NamespaceMode_CONTAINER:
	case cri.NamespaceMode_NODE:
		plan.hostPID = true
	default:
		return invalid(optionsField+".pid", o.GetPid().String(), "use POD, CONTAINER or NODE; TARGET is a container's")
	}
	return nil
}

func (plan *podPlan) setUser(u *cri.UserNamespace) (err error) {
	const field = optionsField + ".userns_options"
	switch u.GetMode() {
	case cri.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return invalid(field+".mode", "NODE", "leave out uids and gids, or use POD")
		}
		return nil
	case cri.NamespaceMode_POD:
		if u == nil || len(u.GetUids())+len(u.GetGids()) == 0 {
			return nil // a client that knows no user namespaces
		}
	default:
		return invalid(field+".mode", u.GetMode().String(), "use POD or NODE")
	}
	if plan.uids, err = idMaps(field+".uids", u.GetUids()); err != nil {
		return err
	}
	plan.gids, err = idMaps(field+".gids", u.GetGids())
	return err
}

func idMaps(field string, maps []*cri.IDMapping) ([]ns.IDMap, error) {
	if len(maps) == 0 {
		return nil, invalid(field, "", "uids and gids must both be set")
	}
	var out []ns.IDMap
	for _, m := range maps {
		end := uint64(max(m.GetHostId(), m.GetContainerId())) + uint64(m.GetLength())
		if m.GetLength() == 0 || end > math.MaxUint32 {
			return nil, invalid(field, m.String(), "use a length from 1 on that stays below 2^32")
		}
		out = append(out, ns.IDMap{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out, nil
}

// hostnames are those of RFC 1123, as Kubernetes has them; the kernel takes up to 64 bytes.
var hostnames = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$`)

const (
	maxHostname = 64
	idAsHost    = 12 // digits of the pod's ID, where the client gives no host name
)

func (plan *podPlan) setHostname(id store.PodID, name string) error {
	if plan.hostNetwork {
		return nil // the host's: both belong to the node then
	}
	plan.hostname = name
	if name == "" {
		plan.hostname = string(id[:min(len(id), idAsHost)])
		return nil
	}
	if len(name) > maxHostname || !hostnames.MatchString(name) {
		return invalid("config.hostname", name, "use at most 64 letters, digits, '-' and '.'")
	}
	return nil
}

func (plan *podPlan) setSysctls(sysctls map[string]string) error {
	plan.sysctls = map[string]string{}
	for name, value := range sysctls {
		if plan.namespaceOf(name) == "" {
			return invalid("config.linux.sysctls", name, "a pod may set only sysctls of namespaces that it has of its own")
		}
		if strings.ContainsAny(value, "\n\x00") {
			return invalid("config.linux.sysctls."+name, value, "use one line")
		}
		plan.sysctls[name] = value
	}
	return nil
}

// addSysctls adds the node's defaults where the pod has the namespace and says nothing itself.
func (plan *podPlan) addSysctls(defaults map[string]string) {
	for name, value := range defaults {
		if _, set := plan.sysctls[name]; !set && plan.namespaceOf(name) != "" {
			plan.sysctls[name] = value
		}
	}
}

// namespaceOf returns the pod's own namespace that a sysctl belongs to, or "".
func (plan *podPlan) namespaceOf(sysctl string) string {
	switch kind := ns.Namespaced(sysctl); kind {
	case "net", "uts":
		if !plan.hostNetwork {
			return kind
		}
	case "ipc":
		if !plan.hostIPC {
			return kind
		}
	}
	return ""
}

// shmAnnotations are the names under which a pod may ask for a size of /dev/shm: CRI-O's, since the API has no field.
var shmAnnotations = []string{"shm-size.crio.io", "io.kubernetes.cri-o.ShmSize"}

func (plan *podPlan) setShm(annotations map[string]string) error {
	for _, name := range shmAnnotations {
		text, set := annotations[name]
		if !set {
			continue
		}
		size, err := resource.ParseQuantity(text)
		if err != nil || size.Value() <= 0 || size.Value() == math.MaxInt64 { // the last is what a larger one becomes
			return invalid("config.annotations."+name, text, `use a size such as "128Mi"`)
		}
		plan.shmBytes = size.Value()
		return nil
	}
	return nil
}

func checkDNS(d *cri.DNSConfig) error {
	for field, values := range map[string][]string{
		"servers": d.GetServers(), "searches": d.GetSearches(), "options": d.GetOptions(),
	} {
		for _, v := range values {
			// Anything else could add lines to resolv.conf that the client did not mean.
			if v == "" || strings.ContainsAny(v, " \t\r\n\x00") {
				return invalid("config.dns_config."+field, v, "use one word for each entry")
			}
		}
	}
	return nil
}

func (plan *podPlan) setPorts(ports []*cri.PortMapping) error {
	for i, m := range ports {
		field := fmt.Sprintf("config.port_mappings[%d]", i)
		for name, port := range map[string]int32{"container_port": m.GetContainerPort(), "host_port": m.GetHostPort()} {
			if port < 0 || port > math.MaxUint16 {
				return invalid(field+"."+name, fmt.Sprint(port), "use 0 to 65535")
			}
		}
		out := cni.PortMapping{
			HostPort: uint16(m.GetHostPort()), ContainerPort: uint16(m.GetContainerPort()),
			Protocol: strings.ToLower(m.GetProtocol().String()),
		}
		if _, known := cri.Protocol_name[int32(m.GetProtocol())]; !known {
			return invalid(field+".protocol", m.GetProtocol().String(), "use TCP, UDP or SCTP")
		}
		if ip := m.GetHostIp(); ip != "" {
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				return invalid(field+".host_ip", ip, "use an IP address")
			}
			out.HostIP = addr
		}
		if out.HostPort == 0 || plan.hostNetwork {
			continue // nothing to forward: a port that is only declared, or one of the host itself
		}
		if out.ContainerPort == 0 {
			return invalid(field+".container_port", "0", "set it where host_port is set")
		}
		plan.ports = append(plan.ports, out)
	}
	return nil
}
