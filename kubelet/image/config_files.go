package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/orlop/orlop/kubelet/image/login"
)

// ConfigFiles are logins of the node's own in docker's configuration files, those that are there. They are read for each pull,
// so that a change counts at once.
func ConfigFiles(files ...string) Source {
	return func(context.Context, string) (keyrings []login.Keyring, err error) {
		for _, file := range files {
			data, e := os.ReadFile(file)
			if errors.Is(e, fs.ErrNotExist) {
				continue
			}
			var k login.Keyring
			if e == nil {
				k, e = login.ParseConfig(data)
			}
			if e != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", file, e))
			}
			keyrings = append(keyrings, k)
		}
		return keyrings, err
	}
}
