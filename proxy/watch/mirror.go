package watch

import (
	"fmt"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/orlop/orlop/proxy/model"
)

// mirror is what a reflector fills. It keeps of each object only what was told of it, which whoever was told keeps as
// well, so that it knows what vanished while nobody watched, and tells of nothing twice.
//
// Its methods are called by the reflector's goroutine alone.
type mirror[T any] struct {
	// parse is nil, with or without an error, for an object that is of no use.
	parse func(object metav1.Object) (*T, error)
	// tell is called for each difference.
	tell func(d difference[T])
	// complain is called once for each version of an object that parse complains of.
	complain func(object metav1.Object, err error)
	// synced is called after each Replace.
	synced func()

	known   map[model.Name]*T     // nil values for what is of no use
	refused map[model.Name]string // the versions of what was complained of
}

func newMirror[T any](m mirror[T]) *mirror[T] {
	m.known, m.refused = map[model.Name]*T{}, map[model.Name]string{}
	return &m
}

// difference is what happened to an object: old is nil for what is new, now for what is gone.
type difference[T any] struct {
	old, now *T
	// object is what now is made of, where a watch told of this very change.
	object metav1.Object
}

// reduced is an object on its way through the reflector's own store, which finds names in ObjectMeta.
type reduced[T any] struct {
	name  model.Name
	value *T
}

func (r *reduced[T]) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: r.name.Namespace, Name: r.name.Name}
}

// Transformer reduces the objects of a stream as they come: see cache.TransformingStore.
func (m *mirror[T]) Transformer() cache.TransformFunc {
	return func(in any) (any, error) { return m.reduce(in) }
}

func (m *mirror[T]) reduce(in any) (*reduced[T], error) {
	if done, ok := in.(*reduced[T]); ok {
		return done, nil
	}
	object, ok := in.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("%T is no object of the API", in)
	}
	name := model.Name{Namespace: object.GetNamespace(), Name: object.GetName()}
	value, err := m.parse(object)
	switch {
	case err == nil:
		delete(m.refused, name)
	case m.refused[name] != object.GetResourceVersion():
		m.refused[name] = object.GetResourceVersion()
		m.complain(object, err)
	}
	return &reduced[T]{name: name, value: value}, nil
}

// Add is that of cache.ReflectorStore, as are the following.
func (m *mirror[T]) Add(in any) error {
	r, err := m.reduce(in)
	if err != nil {
		return err
	}
	object, _ := in.(metav1.Object)
	m.set(r, object)
	return nil
}

// Update is as Add.
func (m *mirror[T]) Update(in any) error { return m.Add(in) }

// Delete forgets an object.
func (m *mirror[T]) Delete(in any) error {
	object, ok := in.(metav1.Object)
	if !ok {
		return fmt.Errorf("%T is no object of the API", in)
	}
	m.forget(model.Name{Namespace: object.GetNamespace(), Name: object.GetName()})
	return nil
}

// Replace tells what differs from before, what is gone first: its address may be another's now.
func (m *mirror[T]) Replace(in []any, _ string) error {
	now := make(map[model.Name]bool, len(in))
	all := make([]*reduced[T], 0, len(in))
	for _, object := range in {
		r, err := m.reduce(object)
		if err != nil {
			return err
		}
		now[r.name] = true
		all = append(all, r)
	}
	for name := range m.known {
		if !now[name] {
			m.forget(name)
		}
	}
	slices.SortFunc(all, func(a, b *reduced[T]) int { return a.name.Compare(b.name) })
	for _, r := range all {
		m.set(r, nil)
	}
	m.synced()
	return nil
}

// Resync does nothing: what is told is kept.
func (m *mirror[T]) Resync() error { return nil }

// set tells of an object if it is not as it was: most changes are of what is of no use here.
func (m *mirror[T]) set(r *reduced[T], object metav1.Object) {
	old := m.known[r.name]
	if old != nil && r.value != nil && reflect.DeepEqual(old, r.value) {
		return
	}
	m.known[r.name] = r.value
	if old != nil || r.value != nil {
		m.tell(difference[T]{old: old, now: r.value, object: object})
	}
}

func (m *mirror[T]) forget(name model.Name) {
	old := m.known[name]
	delete(m.known, name)
	delete(m.refused, name)
	if old != nil {
		m.tell(difference[T]{old: old})
	}
}
