package csi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// policy is what the cluster knows of a driver: its CSIDriver object, or what holds without one.
type policy struct {
	attach          bool // volumes are attached to the node by the control plane
	podInfo         bool // the driver is told which pod a volume is for
	republish       bool // a published volume is published again and again
	fsGroup         storagev1.FSGroupPolicy
	modes           []storagev1.VolumeLifecycleMode
	tokens          []storagev1.TokenRequest
	tokensInSecrets bool
	limitPeriod     time.Duration // after which the driver's limit of volumes may be another one; 0 if it stays
}

func (m *Manager) policy(ctx context.Context, driver string) (policy, error) {
	p := policy{
		attach: m.cfg.Client != nil, fsGroup: storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy,
		modes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent},
	}
	found, err := m.cfg.Objects.CSIDriver(ctx, driver)
	if apierrors.IsNotFound(err) {
		return p, nil
	}
	if err != nil {
		return p, fmt.Errorf("CSIDriver %s: %w", driver, err)
	}
	s := found.Spec
	p.attach = p.attach && or(s.AttachRequired, true)
	p.podInfo, p.republish = or(s.PodInfoOnMount, false), or(s.RequiresRepublish, false)
	p.tokens, p.tokensInSecrets = s.TokenRequests, or(s.ServiceAccountTokenInSecrets, false)
	p.fsGroup = or(s.FSGroupPolicy, p.fsGroup)
	p.limitPeriod = time.Duration(or(s.NodeAllocatableUpdatePeriodSeconds, 0)) * time.Second
	if len(s.VolumeLifecycleModes) > 0 {
		p.modes = s.VolumeLifecycleModes
	}
	return p, nil
}

func or[T any](p *T, fallback T) T {
	if p == nil {
		return fallback
	}
	return *p
}

// Volume is one that a pod wants to have.
type Volume struct {
	Pod      *v1.Pod
	Name     string               // of its directory: the PersistentVolume's, or of an inline volume the pod's name for it
	PV       *v1.PersistentVolume // nil for an inline volume
	Claim    string               // the PersistentVolumeClaim's name; "" for an inline volume
	Inline   *v1.CSIVolumeSource  // nil for a PersistentVolume
	ReadOnly bool
	// SetGroup gives what is in a directory to the pod's fsGroup.
	SetGroup func(dir string) error
}

// request is a volume with all that its driver is to be told.
type request struct {
	Volume
	volumeID
	policy
	lifecycle     storagev1.VolumeLifecycleMode
	fsType        string
	attributes    map[string]string
	options       []string // of the mount
	modes         []v1.PersistentVolumeAccessMode
	stageSecret   *v1.SecretReference
	publishSecret *v1.SecretReference
	expandSecret  *v1.SecretReference
	block         bool // it is a device, not a file system
}

func (r *request) place() place { return place{r.Pod.UID, r.Name} }

// request describes a volume, and refuses one that its driver does not have.
func (m *Manager) request(ctx context.Context, v Volume) (*request, error) {
	r := &request{Volume: v}
	if v.Inline != nil {
		r.ofInline(v.Inline)
	} else {
		r.ofPV(v.PV)
	}
	if err := checkName("driver", r.driver); err != nil {
		return nil, err
	}
	if err := checkName("volume", r.Name); err != nil {
		return nil, err
	}
	var err error
	if r.policy, err = m.policy(ctx, r.driver); err != nil {
		return nil, err
	}
	if r.lifecycle == storagev1.VolumeLifecycleEphemeral && !slices.Contains(r.policy.modes, r.lifecycle) {
		return nil, fmt.Errorf("driver %s has no inline volumes: its CSIDriver object's volumeLifecycleModes are %q", r.driver, r.policy.modes)
	}
	return r, nil
}

func (r *request) ofInline(s *v1.CSIVolumeSource) {
	r.volumeID = volumeID{s.Driver, inlineHandle(r.Pod.UID, r.Name)}
	r.lifecycle = storagev1.VolumeLifecycleEphemeral
	r.fsType, r.attributes, r.ReadOnly = or(s.FSType, ""), s.VolumeAttributes, or(s.ReadOnly, false)
	if s.NodePublishSecretRef != nil {
		r.publishSecret = &v1.SecretReference{Namespace: r.Pod.Namespace, Name: s.NodePublishSecretRef.Name}
	}
}

func (r *request) ofPV(pv *v1.PersistentVolume) {
	s := pv.Spec.CSI
	r.volumeID = volumeID{s.Driver, s.VolumeHandle}
	r.lifecycle = storagev1.VolumeLifecyclePersistent
	r.fsType, r.attributes, r.options, r.modes = s.FSType, s.VolumeAttributes, pv.Spec.MountOptions, pv.Spec.AccessModes
	r.stageSecret, r.publishSecret, r.expandSecret = s.NodeStageSecretRef, s.NodePublishSecretRef, s.NodeExpandSecretRef
	r.block = or(pv.Spec.VolumeMode, v1.PersistentVolumeFilesystem) == v1.PersistentVolumeBlock
}

// fsGroup is the pod's, if the volume should be given to it at all.
func (r *request) group() *int64 {
	if r.Pod.Spec.SecurityContext == nil || r.block {
		return nil
	}
	return r.Pod.Spec.SecurityContext.FSGroup
}

// ownsFiles tells whether the files are the kubelet's to give to the pod's group, by CSIDriver.spec.fsGroupPolicy.
func (r *request) ownsFiles() bool {
	if r.group() == nil || r.ReadOnly {
		return false
	}
	switch r.policy.fsGroup {
	case storagev1.NoneFSGroupPolicy:
		return false
	case storagev1.FileFSGroupPolicy:
		return true
	}
	one := func(mode v1.PersistentVolumeAccessMode) bool {
		return mode == v1.ReadWriteOnce || mode == v1.ReadWriteOncePod
	}
	return r.fsType != "" && (r.Inline != nil || slices.ContainsFunc(r.modes, one))
}

// secret is what a reference names; nil for none.
func (m *Manager) secret(ctx context.Context, ref *v1.SecretReference) (map[string]string, error) {
	if ref == nil {
		return nil, nil
	}
	found, err := m.cfg.Objects.Secret(ctx, ref.Namespace, ref.Name)
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	out := map[string]string{}
	for key, value := range found.Data {
		out[key] = string(value)
	}
	return out, nil
}

// publishWith are the attributes and secrets of a volume for one pod.
func (m *Manager) publishWith(ctx context.Context, r *request) (attributes, secrets map[string]string, err error) {
	if secrets, err = m.secret(ctx, r.publishSecret); err != nil {
		return nil, nil, err
	}
	attributes = maps.Clone(r.attributes)
	tokens, err := m.tokens(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	add := func(to *map[string]string, more map[string]string) {
		if *to == nil {
			*to = map[string]string{}
		}
		maps.Copy(*to, more)
	}
	if r.podInfo {
		add(&attributes, map[string]string{
			"csi.storage.k8s.io/pod.name":            r.Pod.Name,
			"csi.storage.k8s.io/pod.namespace":       r.Pod.Namespace,
			"csi.storage.k8s.io/pod.uid":             string(r.Pod.UID),
			"csi.storage.k8s.io/serviceAccount.name": r.Pod.Spec.ServiceAccountName,
			"csi.storage.k8s.io/ephemeral":           strconv.FormatBool(r.lifecycle == storagev1.VolumeLifecycleEphemeral),
		})
	}
	if r.tokensInSecrets {
		add(&secrets, tokens)
	} else {
		add(&attributes, tokens)
	}
	return attributes, secrets, nil
}

// tokens are those of the pod's service account that the driver has asked for (KEP-2047).
func (m *Manager) tokens(ctx context.Context, r *request) (map[string]string, error) {
	if len(r.policy.tokens) == 0 {
		return nil, nil
	}
	all := map[string]authenticationv1.TokenRequestStatus{}
	for _, want := range r.policy.tokens {
		ask := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: want.ExpirationSeconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: r.Pod.Name, UID: r.Pod.UID},
		}}
		if want.Audience != "" {
			ask.Spec.Audiences = []string{want.Audience}
		}
		answer, err := m.cfg.Objects.ServiceAccountToken(ctx, r.Pod.Namespace, r.Pod.Spec.ServiceAccountName, ask)
		if err != nil {
			return nil, fmt.Errorf("token of service account %s for the driver: %w", r.Pod.Spec.ServiceAccountName, err)
		}
		all[want.Audience] = answer.Status
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return map[string]string{"csi.storage.k8s.io/serviceAccount.tokens": string(text)}, nil
}
