// Package kube makes clients of an API server that know only the types which their user names.
//
// The clientset of client-go registers every type of the API when a program starts: that is 37 MB of the program's pages
// and of its heap in each process that links it, for types that a node never sees.
package kube

import (
	"context"
	"fmt"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"
)

// Client reaches an API server. All its resources share connections and a rate limit.
type Client struct {
	config *rest.Config
	http   *http.Client
}

// New makes a client. Objects are transferred as protobuf where the configuration does not name a content type.
func New(config *rest.Config) (*Client, error) {
	config = rest.CopyConfig(config)
	if config.ContentType == "" {
		config.ContentType = runtime.ContentTypeProtobuf
		config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	if config.RateLimiter == nil && config.QPS > 0 {
		config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(config.QPS, max(config.Burst, 1))
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", config.Host, err)
	}
	return &Client{config: config, http: client}, nil
}

// Resource is all objects of one type. T is a pointer to such an object and L a pointer to a list of them.
type Resource[T, L runtime.Object] struct {
	client rest.Interface
	plural string
	one    T // empty ones
	list   L
}

// NewResource describes a resource by its group's version and its plural in paths, as "services", and an empty object
// and list of its type.
func NewResource[T, L runtime.Object](c *Client, gv schema.GroupVersion, plural string, one T, list L) (*Resource[T, L], error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(gv, one, list)
	metav1.AddToGroupVersion(scheme, gv)
	config := rest.CopyConfig(c.config)
	config.GroupVersion = &gv
	config.APIPath = "/apis"
	if gv.Group == "" {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme)).WithoutConversion()
	client, err := rest.RESTClientForConfigAndClient(config, c.http)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", plural, err)
	}
	return &Resource[T, L]{client: client, plural: plural, one: one, list: list}, nil
}

// optionsVersion is the version of the API's query parameters.
var optionsVersion = schema.GroupVersion{Version: "v1"}

// Create makes an object, and returns it as the API server keeps it. The namespace is empty for what is in none.
func (r *Resource[T, L]) Create(ctx context.Context, namespace string, object T) (T, error) {
	out := r.one.DeepCopyObject().(T)
	err := r.client.Post().NamespaceIfScoped(namespace, namespace != "").Resource(r.plural).Body(object).Do(ctx).Into(out)
	return out, err
}

// List gets objects of all namespaces.
func (r *Resource[T, L]) List(ctx context.Context, options metav1.ListOptions) (L, error) {
	out := r.list.DeepCopyObject().(L)
	err := r.client.Get().Resource(r.plural).SpecificallyVersionedParams(&options, metav1.ParameterCodec, optionsVersion).
		Timeout(timeoutOf(options)).Do(ctx).Into(out)
	return out, err
}

// Watch follows objects of all namespaces.
func (r *Resource[T, L]) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	return r.client.Get().Resource(r.plural).SpecificallyVersionedParams(&options, metav1.ParameterCodec, optionsVersion).
		Timeout(timeoutOf(options)).Watch(ctx)
}

func timeoutOf(options metav1.ListOptions) time.Duration {
	if options.TimeoutSeconds == nil {
		return 0
	}
	return time.Duration(*options.TimeoutSeconds) * time.Second
}

// Query chooses objects to follow; the zero value is all.
type Query struct {
	Labels, Fields string // selectors
	// Failed is told why objects could not be listed, each time; may be nil.
	Failed func(err error)
}

// Follow keeps a store as the API server has the objects, until ctx ends; what is lost is begun anew with longer and longer
// waits in between. The first objects are streamed where the API server can (KEP-3157), so that no list of all is ever in
// memory; a store that is a cache.TransformingStore sees each as it comes.
func (r *Resource[T, L]) Follow(ctx context.Context, query Query, store cache.ReflectorStore) {
	choose := func(options *metav1.ListOptions) {
		options.LabelSelector, options.FieldSelector = query.Labels, query.Fields
	}
	follow := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			choose(&options)
			list, err := r.List(ctx, options)
			if err != nil && query.Failed != nil {
				query.Failed(err)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			choose(&options)
			return r.Watch(ctx, options)
		},
	}
	cache.NewReflectorWithOptions(follow, r.one, store, cache.ReflectorOptions{Name: r.plural}).RunWithContext(ctx)
}
