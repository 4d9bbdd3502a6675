package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/orlop/orlop/server/label"
)

// initRoot returns the root filesystem of the inits of all pods: it holds our binary and mount points, and is only
// ever mounted read-only. It is made by the first pod that needs it, and gets that pod's SELinux label without the
// categories, which keep pods apart.
func (s *Server) initRoot(mountLabel string) (string, error) {
	root := filepath.Join(s.cfg.Root, "init")
	s.initOnce.Do(func() {
		s.initErr = makeInitRoot(root, s.cfg.InitPath)
		if s.initErr == nil {
			s.initErr = label.Relabel(root, mountLabel, true)
		}
	})
	return root, s.initErr
}

// makeInitRoot copies the binary: a bind mount would be one more thing to outlive the daemon, and a copy is shared
// by all pods in the page cache just as well. Pods that run keep the file that they have.
func makeInitRoot(root, binary string) error {
	for _, dir := range []string{"proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return fmt.Errorf("root of pod inits: %w", err)
		}
	}
	if err := copyProgram(filepath.Join(root, "init"), binary); err != nil {
		return fmt.Errorf("root of pod inits: %w", err)
	}
	return nil
}

// copyProgram replaces to by a copy of from, unless it has been copied before: the copy has the original's time.
func copyProgram(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if have, err := os.Stat(to); err == nil && have.Size() == st.Size() && have.ModTime().Equal(st.ModTime()) {
		return nil
	}
	out, err := os.CreateTemp(filepath.Dir(to), ".init-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // in vain once it has been renamed
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Chmod(0o755), out.Close()); err != nil {
		return err
	}
	if err := os.Chtimes(out.Name(), st.ModTime(), st.ModTime()); err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}
