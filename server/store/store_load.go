package store

import (
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Loaded is all that is on record.
type Loaded struct {
	Pods       []*Pod
	Containers []*Container
	// Unreadable says for each record that could not be decoded why. It has been moved out of the way, so that it
	// is reported once and the daemon starts; what it stood for is then removed as owned by nobody.
	Unreadable []error
}

// Load reads all records, for the start of the daemon.
func (s *Store) Load() (Loaded, error) {
	var l Loaded
	err := s.db.Update(func(tx *bolt.Tx) error {
		pods, err := loadBucket(tx, podBucket, decodePod)
		if err != nil {
			return err
		}
		containers, err := loadBucket(tx, containerBucket, decodeContainer)
		if err != nil {
			return err
		}
		l = Loaded{pods.good, containers.good, append(pods.bad, containers.bad...)}
		return nil
	})
	if err != nil {
		return Loaded{}, fmt.Errorf("records: %w", err)
	}
	return l, nil
}

type loadedBucket[T any] struct {
	good []T
	bad  []error
}

func loadBucket[T any](tx *bolt.Tx, name []byte, decode func([]byte) (T, error)) (loadedBucket[T], error) {
	var l loadedBucket[T]
	b := tx.Bucket(name)
	unreadable := map[string][]byte{}
	err := b.ForEach(func(k, v []byte) error {
		record, err := decode(v)
		if err != nil {
			l.bad = append(l.bad, fmt.Errorf("record %s/%s: %w", name, k, err))
			unreadable[string(k)] = append([]byte(nil), v...)
			return nil
		}
		l.good = append(l.good, record)
		return nil
	})
	for k, v := range unreadable { // not inside ForEach: a bucket must not change under its walk
		if err == nil {
			err = tx.Bucket(unreadableBucket).Put([]byte(string(name)+"/"+k), v)
		}
		if err == nil {
			err = b.Delete([]byte(k))
		}
	}
	return l, err
}
