package kubelet

import (
	"errors"
	"log/slog"
	"testing"
)

// What fails is tried again after its delay, and not at once because something was done.
func TestMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
	}{{"success", nil}, {"failure", errors.New("no network")}} {
		w := &worker{pokes: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler)}
		if err := w.meanwhile(t.Context(), view{}, func() error { return tt.err }); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if len(w.pokes) > 0 {
			t.Errorf("%s, and it looks again at once", tt.name)
		}
	}
}
