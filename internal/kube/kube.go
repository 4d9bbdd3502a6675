// Package kube makes clients of an API server that know only the types which their user names.
//
// The clientset of client-go registers every type of the API when a program starts: that is 37 MB of the program's pages
// and of its heap in each process that links it, for types that a node never sees.
package kube

import (
	"fmt"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
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
	}
	if config.AcceptContentTypes == "" && config.ContentType != runtime.ContentTypeJSON {
		config.AcceptContentTypes = config.ContentType + "," + runtime.ContentTypeJSON
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

// Type is a type of objects and where they are. T is a pointer to such an object and L a pointer to a list of them;
// metav1.List for what can only be created.
type Type[T, L runtime.Object] struct {
	Version schema.GroupVersion
	Plural  string // as in paths: "services"
	One     T      // empty ones
	List    L
	// Served is the group and version whose paths lead there, if that is another.
	Served schema.GroupVersion
}

// TypeOf is a type by its version, its plural in paths, and an empty object and list of it.
func TypeOf[T, L runtime.Object](version schema.GroupVersion, plural string, one T, list L) Type[T, L] {
	return Type[T, L]{Version: version, Plural: plural, One: one, List: list}
}

// Resource is all objects of one type.
type Resource[T, L runtime.Object] struct {
	Type[T, L]
	client rest.Interface
}

// NewResource makes a client for one type.
func NewResource[T, L runtime.Object](c *Client, t Type[T, L]) (*Resource[T, L], error) {
	if t.Served.Empty() {
		t.Served = t.Version
	}
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(t.Version, t.One, t.List)
	metav1.AddToGroupVersion(scheme, t.Version)
	config := rest.CopyConfig(c.config)
	config.GroupVersion = &t.Served
	config.APIPath = "/apis"
	if t.Served.Group == "" {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme)).WithoutConversion()
	client, err := rest.RESTClientForConfigAndClient(config, c.http)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", t.Plural, err)
	}
	return &Resource[T, L]{Type: t, client: client}, nil
}
