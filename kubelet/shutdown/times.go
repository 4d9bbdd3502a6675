package shutdown

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"
)

// StateFile is the name of the file, in kubelet's root directory, that keeps when the last shutdown was. It and its format are
// kubelet's.
const StateFile = "graceful_node_shutdown_state"

// times are those of a shutdown; End is zero if it has not come to the end of the pods.
type times struct {
	Start time.Time `json:"startTime"`
	End   time.Time `json:"endTime"`
}

// readTimes is zero without a file.
func readTimes(file string) (t times, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	return t, err
}

// write replaces the file as a whole, and durably: the machine goes off soon.
func (t times) write(file string) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	stage := file + ".new"
	f, err := os.OpenFile(stage, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(stage, file)
}
