// Package cluster has the clients of what a kubelet reads and writes at an API server. It knows these types and no others:
// see internal/kube.
package cluster

import (
	"context"
	"errors"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/orlop/orlop/internal/kube"
)

// Client is all that a kubelet uses.
type Client struct {
	Pods           *kube.Resource[*v1.Pod, *v1.PodList]
	Nodes          *kube.Resource[*v1.Node, *v1.NodeList]
	Services       *kube.Resource[*v1.Service, *v1.ServiceList]
	ConfigMaps     *kube.Resource[*v1.ConfigMap, *v1.ConfigMapList]
	Secrets        *kube.Resource[*v1.Secret, *v1.SecretList]
	Claims         *kube.Resource[*v1.PersistentVolumeClaim, *v1.PersistentVolumeClaimList]
	Volumes        *kube.Resource[*v1.PersistentVolume, *v1.PersistentVolumeList]
	CSIDrivers     *kube.Resource[*storagev1.CSIDriver, *storagev1.CSIDriverList]
	CSINodes       *kube.Resource[*storagev1.CSINode, *storagev1.CSINodeList]
	Attachments    *kube.Resource[*storagev1.VolumeAttachment, *storagev1.VolumeAttachmentList]
	RuntimeClasses *kube.Resource[*nodev1.RuntimeClass, *nodev1.RuntimeClassList]
	Leases         *kube.Resource[*coordinationv1.Lease, *coordinationv1.LeaseList]
	Events         *kube.Resource[*v1.Event, *v1.EventList]
	TokenReviews   *kube.Resource[*authenticationv1.TokenReview, *metav1.List]
	AccessReviews  *kube.Resource[*authorizationv1.SubjectAccessReview, *metav1.List]

	tokens *kube.Resource[*authenticationv1.TokenRequest, *metav1.List]
}

// New makes the clients.
func New(k *kube.Client) (*Client, error) {
	core, authentication := v1.SchemeGroupVersion, authenticationv1.SchemeGroupVersion
	tokens := kube.TypeOf(authentication, "serviceaccounts", &authenticationv1.TokenRequest{}, &metav1.List{})
	tokens.Served = core
	c := &Client{}
	err := errors.Join(
		set(&c.Pods, k, kube.TypeOf(core, "pods", &v1.Pod{}, &v1.PodList{})),
		set(&c.Nodes, k, kube.TypeOf(core, "nodes", &v1.Node{}, &v1.NodeList{})),
		set(&c.Services, k, kube.TypeOf(core, "services", &v1.Service{}, &v1.ServiceList{})),
		set(&c.ConfigMaps, k, kube.TypeOf(core, "configmaps", &v1.ConfigMap{}, &v1.ConfigMapList{})),
		set(&c.Secrets, k, kube.TypeOf(core, "secrets", &v1.Secret{}, &v1.SecretList{})),
		set(&c.Claims, k, kube.TypeOf(core, "persistentvolumeclaims", &v1.PersistentVolumeClaim{}, &v1.PersistentVolumeClaimList{})),
		set(&c.Volumes, k, kube.TypeOf(core, "persistentvolumes", &v1.PersistentVolume{}, &v1.PersistentVolumeList{})),
		set(&c.CSIDrivers, k, kube.TypeOf(storagev1.SchemeGroupVersion, "csidrivers", &storagev1.CSIDriver{}, &storagev1.CSIDriverList{})),
		set(&c.CSINodes, k, kube.TypeOf(storagev1.SchemeGroupVersion, "csinodes", &storagev1.CSINode{}, &storagev1.CSINodeList{})),
		set(&c.Attachments, k, kube.TypeOf(storagev1.SchemeGroupVersion, "volumeattachments", &storagev1.VolumeAttachment{}, &storagev1.VolumeAttachmentList{})),
		set(&c.Events, k, kube.TypeOf(core, "events", &v1.Event{}, &v1.EventList{})),
		set(&c.RuntimeClasses, k, kube.TypeOf(nodev1.SchemeGroupVersion, "runtimeclasses", &nodev1.RuntimeClass{}, &nodev1.RuntimeClassList{})),
		set(&c.Leases, k, kube.TypeOf(coordinationv1.SchemeGroupVersion, "leases", &coordinationv1.Lease{}, &coordinationv1.LeaseList{})),
		set(&c.TokenReviews, k, kube.TypeOf(authentication, "tokenreviews", &authenticationv1.TokenReview{}, &metav1.List{})),
		set(&c.AccessReviews, k, kube.TypeOf(authorizationv1.SchemeGroupVersion, "subjectaccessreviews", &authorizationv1.SubjectAccessReview{}, &metav1.List{})),
		set(&c.tokens, k, tokens),
	)
	return c, err
}

// set makes one client.
func set[T, L runtime.Object](to **kube.Resource[T, L], k *kube.Client, t kube.Type[T, L]) (err error) {
	*to, err = kube.NewResource(k, t)
	return err
}

// ServiceAccountToken asks for a token of a service account (KEP-1205).
func (c *Client) ServiceAccountToken(ctx context.Context, namespace, account string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return c.tokens.In(namespace).CreateFor(ctx, account, "token", request)
}
