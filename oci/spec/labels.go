package spec

import (
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// appArmor names the profile, or none: a privileged container is not confined.
func (b *builder) appArmor() error {
	const field = "linux.security_context.apparmor"
	if b.privileged() {
		return nil
	}
	want := b.sec.GetApparmor()
	if want == nil {
		var err error
		// Deprecated in the CRI, and still what older clients send.
		old := b.sec.GetApparmorProfile() //nolint:staticcheck
		if want, err = oldProfile(field+"_profile", old, cri.SecurityProfile_RuntimeDefault); err != nil {
			return err
		}
	}
	switch want.GetProfileType() {
	case cri.SecurityProfile_Unconfined:
	case cri.SecurityProfile_RuntimeDefault:
		if b.in.Host.AppArmor {
			b.spec.Process.ApparmorProfile = b.in.DefaultAppArmor
		}
	case cri.SecurityProfile_Localhost:
		ref := strings.TrimPrefix(want.GetLocalhostRef(), "localhost/")
		switch {
		case ref == "":
			return invalid(field+".localhost_ref", ref, "is empty; name a loaded profile")
		case !b.in.Host.AppArmor:
			return invalid(field+".localhost_ref", ref, "AppArmor is off on this machine; turn it on or use RuntimeDefault")
		}
		b.spec.Process.ApparmorProfile = ref
	default:
		return invalid(field+".profile_type", want.GetProfileType().String(),
			"is not a known type; use RuntimeDefault, Unconfined or Localhost")
	}
	return nil
}

// labels sets what SELinux sees. A privileged process stays in the daemon's domain; its files keep the pod's label, so
// that the pod's other containers can read them.
func (b *builder) labels() error {
	if !b.in.Host.SELinux {
		return nil
	}
	if !b.privileged() {
		b.spec.Process.SelinuxLabel = b.in.ProcessLabel
	}
	b.spec.Linux.MountLabel = b.in.MountLabel
	return nil
}

// Annotations that other OCI runtimes and hooks look at, under the names that are in common use.
const (
	annotationType      = "io.kubernetes.cri.container-type"
	annotationName      = "io.kubernetes.cri.container-name"
	annotationImage     = "io.kubernetes.cri.image-name"
	annotationPodID     = "io.kubernetes.cri.sandbox-id"
	annotationPodName   = "io.kubernetes.cri.sandbox-name"
	annotationNamespace = "io.kubernetes.cri.sandbox-namespace"
	annotationPodUID    = "io.kubernetes.cri.sandbox-uid"
)

// annotations says whose container this is. The config's own annotations stay out: an OCI runtime acts on some names
// (org.systemd.property.*), and the CRI says that annotations must not change what a runtime does.
func (b *builder) annotations() error {
	image := b.cfg.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = b.cfg.GetImage().GetImage()
	}
	pod := b.in.Sandbox.GetMetadata()
	b.spec.Annotations = map[string]string{annotationType: "container"}
	for key, value := range map[string]string{
		annotationName:      b.cfg.GetMetadata().GetName(),
		annotationImage:     image,
		annotationPodID:     b.in.SandboxID,
		annotationPodName:   pod.GetName(),
		annotationNamespace: pod.GetNamespace(),
		annotationPodUID:    pod.GetUid(),
	} {
		if value != "" {
			b.spec.Annotations[key] = value
		}
	}
	return nil
}
