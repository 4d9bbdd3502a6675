package server

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The realtime signals as a C program sees them: glibc keeps the first two for itself. signal(7)
const (
	realtimeMin = 34
	realtimeMax = 64
)

// otherNames are second names of signals, which unix.SignalNum does not know.
var otherNames = map[string]unix.Signal{"SIGCLD": unix.SIGCHLD, "SIGIOT": unix.SIGABRT, "SIGPOLL": unix.SIGIO}

const defaultStopSignal = "SIGTERM"

// criSignalPrefix begins the names of CRI's signals: SIGNAL_SIGTERM, SIGNAL_SIGRTMINPLUS1.
const criSignalPrefix = "SIGNAL_"

// stopSignal returns the name of the signal that ends a container, in the form of kill -l: the request's, else the
// image's, else SIGTERM.
func stopSignal(asked cri.Signal, image string) (string, error) {
	if asked != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		name := strings.TrimPrefix(asked.String(), criSignalPrefix)
		name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
		if signalNumber(name) == 0 {
			return "", invalid("config.stop_signal", asked.String(), "use a signal of this machine")
		}
		return name, nil
	}
	if signalNumber(image) == 0 {
		return defaultStopSignal, nil // an image's mistake must not keep its container from being stopped
	}
	name := strings.ToUpper(image)
	if n, err := strconv.Atoi(image); err == nil {
		return signalName(n), nil
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	return name, nil
}

// signalNumber reads a signal as an image's config has it: "SIGTERM", "TERM", "15", "SIGRTMIN+3". 0 if it is none.
func signalNumber(name string) int {
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > realtimeMax {
			return 0
		}
		return n
	}
	name = "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	for prefix, base := range map[string]int{"SIGRTMIN": realtimeMin, "SIGRTMAX": realtimeMax} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			n := 0
			if rest != "" {
				var err error
				if n, err = strconv.Atoi(rest); err != nil {
					return 0
				}
			}
			if n += base; n < realtimeMin || n > realtimeMax {
				return 0
			}
			return n
		}
	}
	if n, ok := otherNames[name]; ok {
		return int(n)
	}
	return int(unix.SignalNum(name))
}

func signalName(n int) string {
	switch {
	case n == realtimeMin:
		return "SIGRTMIN"
	case n > realtimeMin:
		return "SIGRTMIN+" + strconv.Itoa(n-realtimeMin)
	}
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return name
	}
	return strconv.Itoa(n)
}

// criSignal is the signal as ContainerStatus shows it, the default if CRI has no name for it.
func criSignal(name string) cri.Signal {
	n := signalNumber(name)
	if n >= realtimeMin {
		name = "SIGRTMIN"
		if n > realtimeMin {
			name += "PLUS" + strconv.Itoa(n-realtimeMin)
		}
		if n > realtimeMin+15 { // CRI counts the upper half from the other end
			name = "SIGRTMAX"
			if n < realtimeMax {
				name += "MINUS" + strconv.Itoa(realtimeMax-n)
			}
		}
	}
	return cri.Signal(cri.Signal_value[criSignalPrefix+name])
}
