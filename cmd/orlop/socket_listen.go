package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// listen takes the socket that systemd made for us, if it did, else makes its own.
func listen(path string) (net.Listener, error) {
	given, err := activation.Listeners()
	switch {
	case err != nil:
		return nil, fmt.Errorf("socket from systemd: %w", err)
	case len(given) > 1:
		return nil, fmt.Errorf("%d sockets from systemd; name one ListenStream= in the socket unit", len(given))
	case len(given) == 0:
		return listenUnix(path)
	}
	l, ok := given[0].(*net.UnixListener)
	if !ok {
		return nil, errors.New("the socket from systemd is not a stream socket in the file system")
	}
	l.SetUnlinkOnClose(false) // it is systemd's
	return l, nil
}

// listenUnix makes the socket at path with mode 0660. The socket of a daemon that was killed is replaced, one that
// somebody answers on is not. Closing the listener removes it.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := removeStaleSocket(path); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	// A chmod after bind would leave a moment in which anyone can connect. The umask is the whole process's, but
	// serve comes here before it starts anything that makes files.
	old := syscall.Umask(0o117)
	defer syscall.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

func removeStaleSocket(path string) error {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return errors.New("is in the way and no socket; remove it, or set another socket in orlop.toml")
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return errors.New("another process serves it; stop it, or set another socket in orlop.toml")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
