package storage

import (
	"sync"

	cs "github.com/containers/storage"
)

// library is containers/storage with its readers one at a time. Its file locks let readers in side by side, and each
// of them writes the same flag without a lock (pkg/lockfile, LockFile.locked), which is a data race by the letter.
// Writers are alone anyway, and what they do at length, deleting files, they do without a lock; so they are as they
// were. Each of these calls is short: nothing waits here for anything but the library's own locks.
type library struct {
	cs.Store
	reads sync.Mutex
}

func (l *library) Container(id string) (*cs.Container, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Container(id)
}

func (l *library) Containers() ([]cs.Container, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Containers()
}

func (l *library) Image(id string) (*cs.Image, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Image(id)
}

func (l *library) Images() ([]cs.Image, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Images()
}

func (l *library) ImageBigData(id, key string) ([]byte, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.ImageBigData(id, key)
}

// CreateImage reads the layers.
func (l *library) CreateImage(id string, names []string, layer, metadata string, o *cs.ImageOptions) (*cs.Image, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.CreateImage(id, names, layer, metadata, o)
}

func (l *library) Layer(id string) (*cs.Layer, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Layer(id)
}

func (l *library) Layers() ([]cs.Layer, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Layers()
}

func (l *library) Mounted(id string) (int, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Mounted(id)
}

// Mount and Unmount read whose layer it is.
func (l *library) Mount(id, mountLabel string) (string, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Mount(id, mountLabel)
}

func (l *library) Unmount(id string, force bool) (bool, error) {
	l.reads.Lock()
	defer l.reads.Unlock()
	return l.Store.Unmount(id, force)
}
