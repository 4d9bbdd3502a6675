package kube

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// Scope is the objects of a type in one namespace; in all of them, or of a type that is in none, if the namespace is empty.
// Its methods have the form of client-go's, and return errors that apierrors knows.
type Scope[T, L runtime.Object] struct {
	of        *Resource[T, L]
	namespace string
}

// In is the objects of a namespace.
func (r *Resource[T, L]) In(namespace string) Scope[T, L] {
	return Scope[T, L]{of: r, namespace: namespace}
}

// All is all objects.
func (r *Resource[T, L]) All() Scope[T, L] { return r.In("") }

// optionsVersion is the version of the API's query parameters.
var optionsVersion = schema.GroupVersion{Version: "v1"}

// to leads a request to the objects.
func (s Scope[T, L]) to(request *rest.Request) *rest.Request {
	return request.NamespaceIfScoped(s.namespace, s.namespace != "").Resource(s.of.Plural)
}

// with leads a request to the objects with options in its query.
func (s Scope[T, L]) with(options runtime.Object, request *rest.Request) *rest.Request {
	return s.to(request).SpecificallyVersionedParams(options, metav1.ParameterCodec, optionsVersion)
}

func (s Scope[T, L]) one(ctx context.Context, request *rest.Request) (T, error) {
	out := s.of.One.DeepCopyObject().(T)
	err := request.Do(ctx).Into(out)
	return out, err
}

// Get reads an object.
func (s Scope[T, L]) Get(ctx context.Context, name string, options metav1.GetOptions) (T, error) {
	return s.one(ctx, s.with(&options, s.of.client.Get()).Name(name))
}

// Create makes an object, and returns it as the API server keeps it.
func (s Scope[T, L]) Create(ctx context.Context, object T, options metav1.CreateOptions) (T, error) {
	return s.one(ctx, s.with(&options, s.of.client.Post()).Body(object))
}

// CreateFor makes a subresource of an object, such as a token of a service account.
func (s Scope[T, L]) CreateFor(ctx context.Context, name, subresource string, object T) (T, error) {
	return s.one(ctx, s.to(s.of.client.Post()).Name(name).SubResource(subresource).Body(object))
}

// named is an object with a name.
type named interface{ GetName() string }

// Update replaces an object.
func (s Scope[T, L]) Update(ctx context.Context, object T, options metav1.UpdateOptions) (T, error) {
	name := any(object).(named).GetName()
	return s.one(ctx, s.with(&options, s.of.client.Put()).Name(name).Body(object))
}

// Patch changes an object, or a subresource of it.
func (s Scope[T, L]) Patch(ctx context.Context, name string, kind types.PatchType, patch []byte, options metav1.PatchOptions, subresources ...string) (T, error) {
	return s.one(ctx, s.with(&options, s.of.client.Patch(kind)).Name(name).SubResource(subresources...).Body(patch))
}

// Delete begins to delete an object.
func (s Scope[T, L]) Delete(ctx context.Context, name string, options metav1.DeleteOptions) error {
	return s.to(s.of.client.Delete()).Name(name).Body(&options).Do(ctx).Error()
}

// List gets the objects that options choose.
func (s Scope[T, L]) List(ctx context.Context, options metav1.ListOptions) (L, error) {
	out := s.of.List.DeepCopyObject().(L)
	err := s.with(&options, s.of.client.Get()).Timeout(timeoutOf(options)).Do(ctx).Into(out)
	return out, err
}

// Watch follows the objects that options choose.
func (s Scope[T, L]) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	return s.with(&options, s.of.client.Get()).Timeout(timeoutOf(options)).Watch(ctx)
}

func timeoutOf(options metav1.ListOptions) time.Duration {
	if options.TimeoutSeconds == nil {
		return 0
	}
	return time.Duration(*options.TimeoutSeconds) * time.Second
}
