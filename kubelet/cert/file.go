package cert

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// files keep a certificate with its key, as PREFIX-TIME.pem, and PREFIX-current.pem that links to the newest: the names
// that kubelet has, so that either goes on with what the other left.
type files struct{ dir, prefix string }

// current is the path of the newest.
func (f files) current() string { return filepath.Join(f.dir, f.prefix+"-current.pem") }

// load reads the newest; nil if there is none yet.
func (f files) load() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.current(), f.current())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", f.current(), err)
	}
	return &pair, nil
}

// save keeps a new one. It is on disk before the link leads to it.
func (f files) save(certificates, key []byte) (*tls.Certificate, error) {
	both := append(append([]byte{}, certificates...), key...)
	pair, err := tls.X509KeyPair(both, both)
	if err != nil {
		return nil, fmt.Errorf("certificate that was given: %w", err)
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of certificates: %w", err)
	}
	path, err := filepath.Abs(filepath.Join(f.dir, fmt.Sprintf("%s-%s.pem", f.prefix, time.Now().Format("2006-01-02-15-04-05"))))
	if err != nil {
		return nil, err
	}
	if err := write(path, both); err != nil {
		return nil, fmt.Errorf("certificate %s: %w", path, err)
	}
	next := filepath.Join(f.dir, f.prefix+"-updated.pem")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &pair, errors.Join(os.Symlink(path, next), os.Rename(next, f.current()))
}

// write makes a file that only we may read.
func write(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Sync(), file.Close())
}
