package server

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/orlop/orlop/server/store"
)

// table holds all pods or all containers by ID and by the name that their metadata makes. Readers of the list take
// no lock.
type table[K ~string, V comparable] struct {
	mu     sync.RWMutex
	byID   map[K]V
	byName map[string]V
	list   atomic.Pointer[[]V] // in the order of their making; replaced, never changed
}

func newTable[K ~string, V comparable]() *table[K, V] {
	t := &table[K, V]{byID: map[K]V{}, byName: map[string]V{}}
	t.list.Store(new([]V))
	return t
}

// claim adds v unless the name is taken; then it returns who has it, and false.
func (t *table[K, V]) claim(id K, name string, v V) (V, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have, ok := t.byName[name]; ok {
		return have, false
	}
	t.byName[name] = v
	t.addLocked(id, v)
	return v, true
}

// add adds v without a name: it is on its way out.
func (t *table[K, V]) add(id K, v V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addLocked(id, v)
}

func (t *table[K, V]) addLocked(id K, v V) {
	t.byID[id] = v
	list := append(slices.Clone(*t.list.Load()), v)
	t.list.Store(&list)
}

// releaseName lets another take the name of v, which stays to be found by its ID.
func (t *table[K, V]) releaseName(name string, v V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName[name] == v {
		delete(t.byName, name)
	}
}

func (t *table[K, V]) remove(id K, name string, v V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName[name] == v {
		delete(t.byName, name)
	}
	delete(t.byID, id)
	list := slices.DeleteFunc(slices.Clone(*t.list.Load()), func(have V) bool { return have == v })
	t.list.Store(&list)
}

// all must not be changed by the caller.
func (t *table[K, V]) all() []V { return *t.list.Load() }

// get finds by the whole ID.
func (t *table[K, V]) get(id K) (V, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	v, ok := t.byID[id]
	return v, ok
}

// find finds by ID or by the beginning of one if only one begins so. ErrNotFound, ErrInvalid.
func (t *table[K, V]) find(prefix string) (found V, err error) {
	if prefix == "" {
		return found, fmt.Errorf("%w: the ID is empty", store.ErrInvalid)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if v, ok := t.byID[K(prefix)]; ok {
		return v, nil
	}
	matches := 0
	for id, v := range t.byID {
		if strings.HasPrefix(string(id), prefix) {
			found, matches = v, matches+1
		}
	}
	switch matches {
	case 0:
		return found, fmt.Errorf("%q: %w", prefix, store.ErrNotFound)
	case 1:
		return found, nil
	}
	return found, fmt.Errorf("%w: %d IDs begin with %q; give more of it", store.ErrInvalid, matches, prefix)
}
