package csi

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzRecord: a file that is understood says the same when it is written again, and one that is not has no volume.
func FuzzRecord(f *testing.F) {
	for _, text := range []string{
		`{"specVolID":"pv","volumeHandle":"v","driverName":"d","nodeName":"n","attachmentID":"csi-1","volumeLifecycleMode":"Persistent"}`,
		`{"volumeHandle":"v","driverName":"d","seLinuxMountContext":"c","state":"done","attach":"no"}`, `{"driverName":"d"}`, `{"volumeHandle":`, "",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, recordName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := load(dir)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) { // nothing is mounted here
				t.Errorf("%q: %v", data, err)
			}
			return
		}
		if r.Driver == "" || r.Handle == "" {
			t.Errorf("%q is the record of no volume: %+v", data, r)
		}
		if err := r.save(dir); err != nil {
			t.Fatal(err)
		}
		if again, err := load(dir); err != nil || !cmp.Equal(again, r) {
			t.Errorf("%q: %+v, and then %+v, %v", data, r, again, err)
		}
		if err := drop(dir); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	})
}
