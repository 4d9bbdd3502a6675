package stream

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Version 5 of the WebSocket protocol is version 4 and a signal that ends one stream, so that a client can say that
// its standard input is over and still see the output. Newer kubelets, crictl and client-go speak no other; the
// library that serves the rest has all but a handler for it.

func isV5(r *http.Request) bool { return wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) }

// serveV5 runs f with the client's streams, and tells the client how it ended.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, want remotecommand.Options, f func(context.Context, streams) error) {
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels(want)},
	})
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	_, ends, err := conn.Open(w, r)
	if err != nil {
		s.log.Debug("websocket was not opened", "err", err)
		return
	}
	defer conn.Close()
	// An empty message, for clients that wait for one to know that they are connected.
	if _, err := ends[firstOutput(want)].Write(nil); err != nil {
		return
	}
	sizes := make(chan remotecommand.TerminalSize)
	s.spawn(func() { readSizes(r.Context(), ends[remotecommand.StreamResize], sizes) })
	st := command{want: want}.streams(ends[remotecommand.StreamStdIn], ends[remotecommand.StreamStdOut],
		ends[remotecommand.StreamStdErr], sizes)
	if err := json.NewEncoder(ends[remotecommand.StreamErr]).Encode(statusOf(f(r.Context(), st))); err != nil {
		s.log.Debug("client does not know how its stream ended", "err", err)
	}
}

func channels(want remotecommand.Options) []wsstream.ChannelType {
	pick := func(wanted bool, t wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return t
		}
		return wsstream.IgnoreChannel
	}
	return []wsstream.ChannelType{
		remotecommand.StreamStdIn:  pick(want.Stdin, wsstream.ReadChannel),
		remotecommand.StreamStdOut: pick(want.Stdout, wsstream.WriteChannel),
		remotecommand.StreamStdErr: pick(want.Stderr, wsstream.WriteChannel),
		remotecommand.StreamErr:    wsstream.WriteChannel,
		remotecommand.StreamResize: wsstream.ReadChannel,
	}
}

func firstOutput(want remotecommand.Options) int {
	switch {
	case want.Stdout:
		return remotecommand.StreamStdOut
	case want.Stderr:
		return remotecommand.StreamStdErr
	}
	return remotecommand.StreamErr
}

// readSizes reads terminal sizes, one JSON object after the other.
func readSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	d := json.NewDecoder(from)
	for {
		var size remotecommand.TerminalSize
		if d.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// result is how a stream ended: the part of a Kubernetes Status object (meta/v1) that clients of version 4 and later
// look at.
type result struct {
	Status  string         `json:"status"` // Success or Failure
	Message string         `json:"message,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Details *resultDetails `json:"details,omitempty"`
	Code    int            `json:"code,omitempty"`
}

type resultDetails struct {
	Causes []resultCause `json:"causes"`
}

type resultCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(err error) result {
	var exit exitError
	switch {
	case err == nil:
		return result{Status: "Success"}
	case errors.As(err, &exit):
		return result{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: "command terminated with " + exit.Error(),
			Details: &resultDetails{[]resultCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(int(exit))}}},
		}
	}
	return result{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
}
