package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Agent is the version in the User-Agent of requests, "kube-probe/1.37": servers know probes by it and keep them out of
// their logs.
const Agent = "1.37"

// The transports use no proxy of the node, no kept connection, and verify no certificate: a probe asks whether the
// container answers, not who it is.
var (
	transport = newTransport(func(t *http.Transport) {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // see above
		t.ForceAttemptHTTP2 = true
	})
	cleartextHTTP2 = newTransport(func(t *http.Transport) { // the server must speak it: there is nothing to negotiate with
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	})
)

func newTransport(set func(*http.Transport)) *http.Transport {
	t := &http.Transport{
		DisableKeepAlives:   true,
		DisableCompression:  true,
		TLSHandshakeTimeout: 10 * time.Second,
		DialContext:         dialer().DialContext,
	}
	set(t)
	return t
}

func httpGet(ctx context.Context, action *v1.HTTPGetAction, target Target, timeout time.Duration) (Result, string, error) {
	req, err := Request(ctx, action, target, "probe")
	if err != nil {
		return Unknown, "", err
	}
	client := Client(timeout)
	if action.Protocol != nil && *action.Protocol == v1.HTTPProtocolHTTP2 && req.URL.Scheme == "http" {
		client.Transport = cleartextHTTP2
	}
	resp, err := client.Do(req)
	if err != nil {
		return Failure, err.Error(), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutputBytes))
	if err != nil {
		return Failure, "", err
	}
	switch {
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		return Success, string(body), nil
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return Warning, "Probe terminated redirects, Response body: " + string(body), nil
	}
	// Without the body: events are read by more people than may read the pod's answers (kubernetes#99425).
	return Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
}

// Client sends the requests of probes and hooks. A timeout of 0 is none.
func Client(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: transport, CheckRedirect: stayOnHost}
}

// stayOnHost follows redirects on the host that was asked, to any port. One to another host is the answer.
func stayOnHost(req *http.Request, via []*http.Request) error {
	const maxRedirects = 10
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxRedirects {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// Request makes the request that an httpGet action asks for. purpose goes into the User-Agent, "kube-PURPOSE/1.37",
// unless the action has one. An empty Accept header in the action removes the default, "*/*".
func Request(ctx context.Context, action *v1.HTTPGetAction, target Target, purpose string) (*http.Request, error) {
	port, err := containerPort(action.Port, target.Container)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(action.Path)
	if err != nil { // it passed validation, so it is sent as it is
		u = &url.URL{Path: action.Path}
	}
	u.Scheme = strings.ToLower(string(action.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = address(action.Host, target.PodIP, port)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range action.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	setDefaults(req.Header, purpose)
	req.Host = req.Header.Get("Host")
	return req, nil
}

func setDefaults(h http.Header, purpose string) {
	if _, ok := h["User-Agent"]; !ok {
		h.Set("User-Agent", "kube-"+purpose+"/"+Agent)
	}
	if _, ok := h["Accept"]; !ok {
		h.Set("Accept", "*/*")
	} else if h.Get("Accept") == "" {
		h.Del("Accept")
	}
}
