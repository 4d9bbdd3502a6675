package stream

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// A tunnel is SPDY in the binary messages of a WebSocket: how newer clients forward ports through proxies that let
// only WebSockets pass. The library serves SPDY on a connection that an HTTP server gives up, so it is given a
// request and a response whose connection is the WebSocket.

// tunnelProtocol is the WebSocket protocol of port-forward tunnels.
const tunnelProtocol = spdy.HeaderSpdy31 + "+" + portforward.ProtocolV1Name

func isTunnel(r *http.Request) bool { return wsstream.IsWebSocketRequestWithTunnelingProtocol(r) }

// serveTunnel calls serve with what is in the tunnel.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter, *http.Request)) {
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			if !slices.Contains(c.Protocol, tunnelProtocol) {
				return fmt.Errorf("protocols %q: only %q is served", c.Protocol, tunnelProtocol)
			}
			c.Protocol = []string{tunnelProtocol}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			serve(tunnelResponse{ws, http.Header{}}, inner)
		},
	}.ServeHTTP(w, r)
}

// tunnelResponse takes an HTTP answer, which nobody in the tunnel waits for, and gives up the tunnel's connection.
type tunnelResponse struct {
	conn   net.Conn
	header http.Header
}

func (t tunnelResponse) Header() http.Header         { return t.header }
func (t tunnelResponse) Write(b []byte) (int, error) { return io.Discard.Write(b) }
func (t tunnelResponse) WriteHeader(int)             {}

func (t tunnelResponse) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
