// Package objects gets what pods refer to by name: ConfigMaps, Secrets, Services and the like, from an API server or, on a
// lone machine, from a directory of manifests.
package objects

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/kubelet/cluster"
)

// firstRead is how long a read waits for the first answer about an object.
const firstRead = 10 * time.Second

// API gets objects from an API server. ConfigMaps and Secrets are watched one by one for as long as a pod refers to them:
// a node may read no others.
type API struct {
	client   *cluster.Client
	changed  func(uid types.UID)
	services cache.SharedIndexInformer
	drivers  cache.SharedInformer // CSIDrivers

	mu      sync.Mutex
	watched map[key]*watched
	pods    map[types.UID]map[key]bool // what each pod refers to
}

// watched is one object that is followed.
type watched struct {
	informer cache.SharedInformer
	stop     context.CancelFunc
	users    map[types.UID]bool // pods; guarded by API.mu
}

// FromAPI reads through client. changed, which must not block, is called for each pod that refers to an object that
// changed. Run must be called.
func FromAPI(client *cluster.Client, changed func(uid types.UID)) *API {
	byNamespace := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
	services := cache.NewSharedIndexInformer(client.Services.All().Source(kube.Query{}), &v1.Service{}, 0, byNamespace)
	_ = services.SetTransform(trim) // it fails only for an informer that runs
	drivers := cache.NewSharedInformer(client.CSIDrivers.All().Source(kube.Query{}), &storagev1.CSIDriver{}, 0)
	return &API{client: client, changed: changed, services: services, drivers: drivers, watched: map[key]*watched{}, pods: map[types.UID]map[key]bool{}}
}

// trim keeps of a service what environments are made of: a cluster may have thousands.
func trim(o any) (any, error) {
	if s, ok := o.(*v1.Service); ok {
		return &v1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: s.Name, Namespace: s.Namespace, UID: s.UID, ResourceVersion: s.ResourceVersion},
			Spec:       v1.ServiceSpec{ClusterIP: s.Spec.ClusterIP, Ports: s.Spec.Ports},
		}, nil
	}
	return o, nil
}

// Run follows objects until ctx ends.
func (a *API) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { a.services.RunWithContext(ctx) })
	all.Go(func() { a.drivers.RunWithContext(ctx) })
	all.Wait()
	a.mu.Lock()
	for _, w := range a.watched {
		w.stop()
	}
	a.mu.Unlock()
}

// Register says that a pod may ask for the ConfigMaps and Secrets that its spec names.
func (a *API) Register(p *v1.Pod) {
	want := references(p)
	a.mu.Lock()
	defer a.mu.Unlock()
	have := a.pods[p.UID]
	for k := range want {
		if !have[k] {
			a.followLocked(k).users[p.UID] = true
		}
	}
	for k := range have {
		if !want[k] {
			a.leaveLocked(k, p.UID)
		}
	}
	a.pods[p.UID] = want
}

// Unregister says that a pod asks for nothing any more.
func (a *API) Unregister(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for k := range a.pods[uid] {
		a.leaveLocked(k, uid)
	}
	delete(a.pods, uid)
}

func (a *API) leaveLocked(k key, uid types.UID) {
	w := a.watched[k]
	if w == nil {
		return
	}
	delete(w.users, uid)
	if len(w.users) == 0 {
		w.stop()
		delete(a.watched, k)
	}
}

// followLocked watches one object.
func (a *API) followLocked(k key) *watched {
	if w := a.watched[k]; w != nil {
		return w
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{informer: a.informer(k), stop: cancel, users: map[types.UID]bool{}}
	_, _ = w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{ // it fails only for an informer that was stopped
		AddFunc:    func(any) { a.tell(w) },
		UpdateFunc: func(before, after any) { a.update(w, before, after) },
		DeleteFunc: func(any) { a.tell(w) },
	})
	go w.informer.RunWithContext(ctx)
	a.watched[k] = w
	return w
}

// informer follows one object.
func (a *API) informer(k key) cache.SharedInformer {
	one := kube.Named(k.name)
	if k.kind == secretKind {
		return cache.NewSharedInformer(a.client.Secrets.In(k.namespace).Source(one), &v1.Secret{}, 0)
	}
	return cache.NewSharedInformer(a.client.ConfigMaps.In(k.namespace).Source(one), &v1.ConfigMap{}, 0)
}

func (a *API) update(w *watched, before, after any) {
	x, okX := before.(metav1.Object)
	y, okY := after.(metav1.Object)
	if !okX || !okY || x.GetResourceVersion() != y.GetResourceVersion() {
		a.tell(w)
	}
}

// tell wakes the pods that refer to an object.
func (a *API) tell(w *watched) {
	a.mu.Lock()
	uids := make([]types.UID, 0, len(w.users))
	for uid := range w.users {
		uids = append(uids, uid)
	}
	a.mu.Unlock()
	for _, uid := range uids {
		a.changed(uid)
	}
}

// read gets one object as it was last seen, also while the API server is away. The first read waits for an answer.
func (a *API) read(ctx context.Context, k key, get func() (any, error)) (any, error) {
	a.mu.Lock()
	w := a.watched[k]
	a.mu.Unlock()
	if w == nil { // nobody has registered for it
		return get()
	}
	ctx, cancel := context.WithTimeout(ctx, firstRead)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), w.informer.HasSynced) {
		return nil, fmt.Errorf("%s %s/%s: no answer from the API server yet", k.kind, k.namespace, k.name)
	}
	found, exists, err := w.informer.GetStore().GetByKey(k.namespace + "/" + k.name)
	if err != nil {
		return nil, err
	}
	if !exists {
		return nil, notFound(k)
	}
	return found, nil
}

func notFound(k key) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: k.kind}, k.name)
}

// ConfigMap is one that exists, or an error that apierrors.IsNotFound knows.
func (a *API) ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error) {
	found, err := a.read(ctx, key{configMapKind, namespace, name}, func() (any, error) {
		return a.client.ConfigMaps.In(namespace).Get(ctx, name, metav1.GetOptions{})
	})
	if err != nil {
		return nil, err
	}
	return found.(*v1.ConfigMap), nil
}

// Secret is one that exists, or an error that apierrors.IsNotFound knows.
func (a *API) Secret(ctx context.Context, namespace, name string) (*v1.Secret, error) {
	found, err := a.read(ctx, key{secretKind, namespace, name}, func() (any, error) {
		return a.client.Secrets.In(namespace).Get(ctx, name, metav1.GetOptions{})
	})
	if err != nil {
		return nil, err
	}
	return found.(*v1.Secret), nil
}

// Services are those of a namespace, and the API server's own.
func (a *API) Services(ctx context.Context, namespace string) ([]*v1.Service, error) {
	ctx, cancel := context.WithTimeout(ctx, firstRead)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), a.services.HasSynced) {
		return nil, fmt.Errorf("services have not yet been read at least once, cannot construct envvars")
	}
	services := corelisters.NewServiceLister(a.services.GetIndexer())
	list, err := services.Services(namespace).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	if namespace != metav1.NamespaceDefault {
		if own, err := services.Services(metav1.NamespaceDefault).Get("kubernetes"); err == nil {
			list = append(list, own)
		}
	}
	return list, nil
}

// ServiceAccountToken asks for a token of a service account (KEP-1205).
func (a *API) ServiceAccountToken(ctx context.Context, namespace, name string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return a.client.ServiceAccountToken(ctx, namespace, name, request)
}

// PersistentVolumeClaim is one that exists, or an error that apierrors.IsNotFound knows.
func (a *API) PersistentVolumeClaim(ctx context.Context, namespace, name string) (*v1.PersistentVolumeClaim, error) {
	return a.client.Claims.In(namespace).Get(ctx, name, metav1.GetOptions{})
}

// PersistentVolume is one that exists, or an error that apierrors.IsNotFound knows.
func (a *API) PersistentVolume(ctx context.Context, name string) (*v1.PersistentVolume, error) {
	return a.client.Volumes.All().Get(ctx, name, metav1.GetOptions{})
}

// CSIDriver is what the cluster knows of a storage driver, or an error that apierrors.IsNotFound knows.
func (a *API) CSIDriver(ctx context.Context, name string) (*storagev1.CSIDriver, error) {
	ctx, cancel := context.WithTimeout(ctx, firstRead)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), a.drivers.HasSynced) {
		return nil, fmt.Errorf("%s %s: no answer from the API server yet", driverKind, name)
	}
	found, exists, err := a.drivers.GetStore().GetByKey(name)
	if err != nil {
		return nil, err
	}
	if !exists {
		return nil, notFound(key{kind: driverKind, name: name})
	}
	return found.(*storagev1.CSIDriver), nil
}
