package api

import (
	"sync"
	"time"
)

// cache remembers answers of the API server for some time.
type cache[V any] struct {
	mu  sync.Mutex
	all map[string]cached[V]
}

type cached[V any] struct {
	v     V
	until time.Time
}

// maxCached answers are kept, so that made-up tokens do not fill the memory.
const maxCached = 4096

func newCache[V any]() *cache[V] { return &cache[V]{all: map[string]cached[V]{}} }

func (c *cache[V]) get(key string) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.all[key]
	if !ok || !time.Now().Before(e.until) {
		return v, false
	}
	return e.v, true
}

func (c *cache[V]) put(key string, v V, ttl time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if len(c.all) >= maxCached {
		for k, e := range c.all {
			if !now.Before(e.until) {
				delete(c.all, k)
			}
		}
	}
	if len(c.all) >= maxCached { // all of them are fresh: that is no ordinary traffic
		clear(c.all)
	}
	c.all[key] = cached[V]{v, now.Add(ttl)}
}
