package kube

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// Query chooses objects to follow; the zero value is all.
type Query struct {
	Labels, Fields string // selectors
	// Failed is told why objects could not be listed, each time; may be nil.
	Failed func(err error)
}

// Named chooses the one object of a name.
func Named(name string) Query {
	return Query{Fields: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()}
}

// Source is where a reflector or an informer has objects from. They stream the first ones where the API server can
// (KEP-3157), so that no list of all is ever in memory.
func (s Scope[T, L]) Source(query Query) *cache.ListWatch {
	choose := func(options *metav1.ListOptions) {
		options.LabelSelector, options.FieldSelector = query.Labels, query.Fields
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			choose(&options)
			list, err := s.List(ctx, options)
			if err != nil && query.Failed != nil {
				query.Failed(err)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			choose(&options)
			return s.Watch(ctx, options)
		},
	}
}

// Follow keeps a store as the API server has the objects, until ctx ends; what is lost is begun anew with longer and longer
// waits in between. A store that is a cache.TransformingStore sees each object of the first ones as it comes.
func (s Scope[T, L]) Follow(ctx context.Context, query Query, store cache.ReflectorStore) {
	options := cache.ReflectorOptions{Name: s.of.Plural}
	cache.NewReflectorWithOptions(s.Source(query), s.of.One, store, options).RunWithContext(ctx)
}
