package server

import (
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStopSignal(t *testing.T) {
	for _, tt := range []struct {
		asked  cri.Signal
		image  string
		want   string
		number int
		shown  cri.Signal
	}{
		{0, "", "SIGTERM", 15, cri.Signal_SIGNAL_SIGTERM},
		{0, "quit", "SIGQUIT", 3, cri.Signal_SIGNAL_SIGQUIT},
		{0, "9", "SIGKILL", 9, cri.Signal_SIGNAL_SIGKILL},
		{0, "37", "SIGRTMIN+3", 37, cri.Signal_SIGNAL_SIGRTMINPLUS3},
		{0, "RTMIN+3", "SIGRTMIN+3", 37, cri.Signal_SIGNAL_SIGRTMINPLUS3},
		{0, "SIGRTMAX-1", "SIGRTMAX-1", 63, cri.Signal_SIGNAL_SIGRTMAXMINUS1},
		{0, "SIGRTMAX", "SIGRTMAX", 64, cri.Signal_SIGNAL_SIGRTMAX},
		{0, "SIGRTMAX+1", "SIGTERM", 15, cri.Signal_SIGNAL_SIGTERM}, // an image's mistake
		{0, "65", "SIGTERM", 15, cri.Signal_SIGNAL_SIGTERM},
		{0, "no such", "SIGTERM", 15, cri.Signal_SIGNAL_SIGTERM},
		{cri.Signal_SIGNAL_SIGUSR1, "SIGQUIT", "SIGUSR1", 10, cri.Signal_SIGNAL_SIGUSR1}, // the request wins
		{cri.Signal_SIGNAL_SIGRTMIN, "", "SIGRTMIN", 34, cri.Signal_SIGNAL_SIGRTMIN},
	} {
		got, err := stopSignal(tt.asked, tt.image)
		if err != nil || got != tt.want || signalNumber(got) != tt.number || criSignal(got) != tt.shown {
			t.Errorf("stopSignal(%v, %q) = %q, %v (number %d, shown %v)", tt.asked, tt.image, got, err, signalNumber(got), criSignal(got))
		}
	}
	if _, err := stopSignal(cri.Signal(1000), ""); err == nil {
		t.Error("an unknown signal is accepted")
	}
}

func TestEverySignalOfCRIHasANumber(t *testing.T) {
	for n, name := range cri.Signal_name {
		if n == 0 {
			continue
		}
		got, err := stopSignal(cri.Signal(n), "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if back := criSignal(got); back == 0 {
			t.Errorf("%s is shown as the default", name)
		}
	}
}
