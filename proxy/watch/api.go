package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/proxy/model"
)

// API follows an API server.
type API struct {
	Client *kube.Client
	Node   string // this node's name
	// NeedPodCIDRs waits with Synced(Nodes) until the node has ranges for its pods, however long that takes.
	NeedPodCIDRs bool
	// WantServiceCIDRs follows ServiceCIDRs; without, none are told.
	WantServiceCIDRs bool
	// Events tells users of Services that have values which can't be used; may be nil.
	Events *kube.Recorder
	Log    *slog.Logger
}

// nodePatience is how long a node may be unknown or without an address before the rules are made without one: kube-proxy
// waits as long.
const nodePatience = 30 * time.Second

// What is followed. Other proxies have their own Services, and headless ones are DNS's.
const (
	ourServices = "!service.kubernetes.io/service-proxy-name"
	withIP      = "spec.clusterIP!=" + corev1.ClusterIPNone
	ourSlices   = "!" + corev1.IsHeadlessService
)

// Run follows until ctx ends. Watches that are lost are begun anew, with longer and longer waits in between.
func (a *API) Run(ctx context.Context, sink Sink) error {
	r, err := newResources(a.Client)
	if err != nil {
		return err
	}
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(a.Log.Handler()))
	f := &followed{API: a, out: newOrdered(sink), began: time.Now()}
	var all sync.WaitGroup
	all.Go(func() { r.services.All().Follow(ctx, kube.Query{Labels: ourServices, Fields: withIP}, f.services()) })
	all.Go(func() { r.slices.All().Follow(ctx, kube.Query{Labels: ourSlices}, f.slices()) })
	all.Go(func() { r.nodes.All().Follow(ctx, kube.Named(a.Node), f.nodes()) })
	all.Go(func() { f.awaitNode(ctx) })
	if a.WantServiceCIDRs {
		all.Go(func() { r.cidrs.All().Follow(ctx, kube.Query{Failed: f.noServiceCIDRs}, f.serviceCIDRs()) })
	} else {
		f.out.synced(ServiceCIDRs)
	}
	all.Wait()
	return nil
}

// resources are what is followed.
type resources struct {
	services *kube.Resource[*corev1.Service, *corev1.ServiceList]
	slices   *kube.Resource[*discoveryv1.EndpointSlice, *discoveryv1.EndpointSliceList]
	nodes    *kube.Resource[*corev1.Node, *corev1.NodeList]
	cidrs    *kube.Resource[*networkingv1.ServiceCIDR, *networkingv1.ServiceCIDRList]
}

func newResources(c *kube.Client) (r resources, err error) {
	core, discovery, networking := corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion
	var errs [4]error
	r.services, errs[0] = kube.NewResource(c, kube.TypeOf(core, "services", &corev1.Service{}, &corev1.ServiceList{}))
	r.slices, errs[1] = kube.NewResource(c, kube.TypeOf(discovery, "endpointslices", &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{}))
	r.nodes, errs[2] = kube.NewResource(c, kube.TypeOf(core, "nodes", &corev1.Node{}, &corev1.NodeList{}))
	r.cidrs, errs[3] = kube.NewResource(c, kube.TypeOf(networking, "servicecidrs", &networkingv1.ServiceCIDR{}, &networkingv1.ServiceCIDRList{}))
	return r, errors.Join(errs[:]...)
}

// followed is what an API server says, on its way to a sink.
type followed struct {
	*API
	out   *ordered
	began time.Time
}

// complain tells of an object that has values which can't be used.
func (f *followed) complain(_ metav1.Object, err error) {
	f.Log.Warn("an object has values that can't be used", "err", err)
}

func (f *followed) services() *mirror[model.Service] {
	return newMirror(mirror[model.Service]{
		parse:    parseService,
		complain: f.complainService,
		tell:     func(d difference[model.Service]) { f.out.service(d.old, d.now) },
		synced:   func() { f.out.synced(Services) },
	})
}

func parseService(object metav1.Object) (*model.Service, error) {
	service, ok := object.(*corev1.Service)
	if !ok {
		return nil, fmt.Errorf("%T is no Service", object)
	}
	return model.ParseService(service)
}

// complainService tells the Service's users too: nobody else reads what its author wrote.
func (f *followed) complainService(object metav1.Object, err error) {
	f.complain(object, err)
	f.Events.Send(kube.Event{
		About: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Service", Namespace: object.GetNamespace(), Name: object.GetName(),
			UID: object.GetUID(), ResourceVersion: object.GetResourceVersion(),
		},
		Warning: true, Reason: "InvalidServiceValue", Action: "Proxy", Note: err.Error(),
	})
}

func (f *followed) slices() *mirror[model.Slice] {
	return newMirror(mirror[model.Slice]{
		parse:    parseSlice,
		complain: f.complain,
		tell: func(d difference[model.Slice]) {
			if at := triggered(d.object); at.After(f.began) {
				f.out.triggered(at)
			}
			f.out.slice(d.old, d.now)
		},
		synced: func() { f.out.synced(Slices) },
	})
}

func parseSlice(object metav1.Object) (*model.Slice, error) {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, fmt.Errorf("%T is no EndpointSlice", object)
	}
	return model.ParseSlice(slice)
}

// triggered is when that happened which an object follows from, or zero.
func triggered(object metav1.Object) time.Time {
	if object == nil {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, object.GetAnnotations()[corev1.EndpointsLastChangeTriggerTime])
	if err != nil {
		return time.Time{}
	}
	return at
}

// nodes has this node alone.
func (f *followed) nodes() *mirror[Node] {
	return newMirror(mirror[Node]{
		parse: func(object metav1.Object) (*Node, error) {
			node, ok := object.(*corev1.Node)
			if !ok {
				return nil, fmt.Errorf("%T is no Node", object)
			}
			parsed, err := ParseNode(node)
			return &parsed, err
		},
		complain: f.complain,
		tell:     func(d difference[Node]) { f.node(d) },
		synced:   func() {}, // it may not be there yet: see node
	})
}

// node goes on with what was known of a node that is gone: its pods still run, and it may come back.
func (f *followed) node(d difference[Node]) {
	if d.now == nil {
		f.Log.Warn("this node is gone from the API server; Services are served as before", "node", f.Node)
		gone := *d.old
		gone.Leaving = true
		f.out.node(gone)
		return
	}
	if d.old != nil && len(d.old.Addresses) > 0 && !slices.Equal(d.old.Addresses, d.now.Addresses) {
		f.Log.Info("this node's addresses changed", "node", f.Node, "before", d.old.Addresses, "now", d.now.Addresses)
	}
	f.out.node(*d.now)
	if len(d.now.Addresses) > 0 && (len(d.now.PodCIDRs) > 0 || !f.NeedPodCIDRs) {
		f.out.synced(Nodes)
	}
}

// awaitNode goes on without a node that does not appear, unless the rules depend on it.
func (f *followed) awaitNode(ctx context.Context) {
	timer := time.NewTimer(nodePatience)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
	}
	switch {
	case f.out.isSynced(Nodes):
	case f.NeedPodCIDRs:
		f.Log.Error("still waiting for this node's spec.podCIDRs, which detectLocalMode NodeCIDR needs: have the controller manager allocate them, or use another mode", "node", f.Node)
	default:
		f.Log.Error("this node has no address at the API server; going on without: check that hostnameOverride is the node's name, or set bindAddress", "node", f.Node)
		f.out.synced(Nodes)
	}
}

// serviceCIDR is what is needed of a ServiceCIDR: its ranges.
type serviceCIDR []netip.Prefix

func (f *followed) serviceCIDRs() *mirror[serviceCIDR] {
	m := newMirror(mirror[serviceCIDR]{
		parse:    parseServiceCIDR,
		complain: f.complain,
		synced:   func() { f.out.synced(ServiceCIDRs) },
	})
	m.tell = func(difference[serviceCIDR]) { f.out.serviceCIDRs(union(m.known)) }
	return m
}

func parseServiceCIDR(object metav1.Object) (*serviceCIDR, error) {
	cidr, ok := object.(*networkingv1.ServiceCIDR)
	if !ok {
		return nil, fmt.Errorf("%T is no ServiceCIDR", object)
	}
	var out serviceCIDR
	var errs []error
	for _, s := range cidr.Spec.CIDRs {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("service CIDR %s: spec.cidrs: %q is not a CIDR; it is left out", cidr.Name, s))
			continue
		}
		out = append(out, prefix.Masked())
	}
	return &out, errors.Join(errs...)
}

// union is all ranges, in order and each once.
func union(known map[model.Name]*serviceCIDR) []netip.Prefix {
	var out []netip.Prefix
	for _, prefixes := range known {
		out = append(out, *prefixes...)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// noServiceCIDRs goes on without them where the API server does not have them yet (before Kubernetes 1.33), or does not
// show them.
func (f *followed) noServiceCIDRs(err error) {
	if f.out.isSynced(ServiceCIDRs) || !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return
	}
	f.Log.Info("going on without ServiceCIDRs: packets to unused ClusterIPs are not dropped", "err", err)
	f.out.synced(ServiceCIDRs)
}
