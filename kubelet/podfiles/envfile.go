package podfiles

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// maxEnvFile limits what is read of a file that a container wrote.
const maxEnvFile = 64 << 10

// EnvFile reads a key of an env file that an init container left in an emptyDir volume of the pod (KEP-3721). The file is
// opened without ever leaving the volume, whatever links are in it. ok is false if there is no such file or key.
func (d Dir) EnvFile(uid types.UID, volume, path, key string) (value string, ok bool, err error) {
	root, err := os.OpenRoot(filepath.Join(d.Pod(uid), "volumes", "kubernetes.io~empty-dir", volume))
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	info, err := root.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxEnvFile) {
		err = fmt.Errorf("not a file of at most %d bytes", maxEnvFile)
	}
	if err != nil {
		return "", false, err
	}
	f, err := root.Open(path)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxEnvFile))
	if err != nil {
		return "", false, err
	}
	vars, err := parseEnv(string(data))
	value, ok = vars[key]
	return value, ok, err
}

// parseEnv reads lines of the form NAME='VALUE'; a value may go over several lines. Blank lines and comments are skipped.
func parseEnv(data string) (map[string]string, error) {
	vars := map[string]string{}
	for number := 1; data != ""; {
		line, rest, _ := strings.Cut(data, "\n")
		if text := strings.TrimSpace(line); text == "" || strings.HasPrefix(text, "#") {
			data, number = rest, number+1
			continue
		}
		name, value, ok := strings.Cut(data, "='")
		if !ok || strings.ContainsAny(name, "\n'") {
			return nil, fmt.Errorf("line %d: must be NAME='VALUE'", number)
		}
		value, after, ok := strings.Cut(value, "'")
		if !ok {
			return nil, fmt.Errorf("line %d: the quote after %s= is not closed", number, name)
		}
		vars[strings.TrimSpace(name)] = value
		number += strings.Count(name+value, "\n")
		data = after
	}
	return vars, nil
}
