// Package store keeps the records of pods and containers in one bbolt file, and knows which state may follow which.
//
// A change is on disk when the call that makes it returns. Changes that arrive while another is being written go to
// the disk together: under load many pods share an fsync, and a lone one waits for nobody.
package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// ErrClosed is a change after Close.
var ErrClosed = errors.New("store is closed")

// lockTime bounds the wait for another process that has the file open.
const lockTime = 5 * time.Second

var (
	podBucket        = []byte("pods")
	containerBucket  = []byte("containers")
	unreadableBucket = []byte("unreadable") // records that could not be decoded, kept for people
	metaBucket       = []byte("meta")
)

// Store is safe for concurrent use.
type Store struct {
	db      *bolt.DB
	changes chan change
	stopped chan struct{} // closed when the writer has ended

	mu     sync.RWMutex // held for reading while a change is handed over
	closed bool
}

// change is one put or, with a nil value, delete.
type change struct {
	bucket, key, value []byte
	done               chan error
}

// Open opens or makes the file at path.
func Open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:        lockTime,
		NoFreelistSync: true, // found again at start by a scan of a small file
		FreelistType:   bolt.FreelistMapType,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("records %s: another process has it open; stop that process", path)
	}
	if err != nil {
		// An empty store in its place would make every running container a leftover to be killed.
		return nil, fmt.Errorf("records %s: %w; restore the file, or move it away after stopping all pods", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{podBucket, containerBucket, unreadableBucket, metaBucket} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("records %s: %w", path, err), db.Close())
	}
	s := &Store{db: db, changes: make(chan change, 64), stopped: make(chan struct{})}
	go s.write()
	return s, nil
}

// Close writes what is under way and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.changes)
	s.mu.Unlock()
	<-s.stopped
	return s.db.Close()
}

// PutPod writes a pod's record.
func (s *Store) PutPod(p *Pod) error {
	b, err := encode(p, p.Config)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return s.apply(podBucket, string(p.ID), b)
}

// DeletePod deletes a pod's record. It succeeds if there is none.
func (s *Store) DeletePod(id PodID) error { return s.apply(podBucket, string(id), nil) }

// PutContainer writes a container's record.
func (s *Store) PutContainer(c *Container) error {
	b, err := encode(c, c.Config)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return s.apply(containerBucket, string(c.ID), b)
}

// DeleteContainer deletes a container's record. It succeeds if there is none.
func (s *Store) DeleteContainer(id ContainerID) error {
	return s.apply(containerBucket, string(id), nil)
}

// PutMeta writes a fact about the whole store.
func (s *Store) PutMeta(key, value string) error { return s.apply(metaBucket, key, []byte(value)) }

// Meta reads a fact about the whole store, "" if it was never put.
func (s *Store) Meta(key string) (value string, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		value = string(tx.Bucket(metaBucket).Get([]byte(key)))
		return nil
	})
	return value, err
}

func (s *Store) apply(bucket []byte, key string, value []byte) error {
	ch := change{bucket, []byte(key), value, make(chan error, 1)}
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return fmt.Errorf("record: %w", ErrClosed)
	}
	s.changes <- ch
	s.mu.RUnlock()
	if err := <-ch.done; err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// write is the only writer. It takes all that has gathered while it wrote the last.
func (s *Store) write() {
	defer close(s.stopped)
	for first := range s.changes {
		group := []change{first}
		for more := true; more; {
			select {
			case ch, ok := <-s.changes:
				if more = ok; ok {
					group = append(group, ch)
				}
			default:
				more = false
			}
		}
		err := s.commit(group)
		for _, ch := range group {
			ch.done <- err
		}
	}
}

func (s *Store) commit(group []change) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, ch := range group {
			b := tx.Bucket(ch.bucket)
			var err error
			if ch.value == nil {
				err = b.Delete(ch.key)
			} else {
				err = b.Put(ch.key, ch.value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
