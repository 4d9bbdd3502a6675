package registry

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/test/images"
)

// Behaviour is what a Server does besides serving.
type Behaviour struct {
	User, Password string // HTTP basic authentication, unless empty
	// Bearer is the token that requests must carry; a client gets it from the server's token endpoint for User and
	// Password, or for RefreshToken by POST. See https://distribution.github.io/distribution/spec/auth/oauth/.
	Bearer, RefreshToken string
	// Intercept, if not nil, is called before each request is served; true means that it has answered.
	Intercept func(http.ResponseWriter, *http.Request) bool
}

// Server is a registry in this process. It checks nothing that it is given.
type Server struct {
	Host string
	Behaviour
	ca   *identity
	http *httptest.Server

	mu        sync.Mutex
	manifests map[string]images.Blob // "name@digest" and "name:tag"
	blobs     map[digest.Digest]images.Blob
}

// Serve starts a server.
func Serve(b Behaviour) (*Server, error) {
	ca, err := newIdentity()
	if err != nil {
		return nil, err
	}
	return startServer(ca, b)
}

func startServer(ca *identity, b Behaviour) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{
		Host: l.Addr().String(), Behaviour: b, ca: ca,
		manifests: map[string]images.Blob{}, blobs: map[digest.Digest]images.Blob{},
	}
	s.http = &httptest.Server{Listener: l, TLS: &tls.Config{Certificates: []tls.Certificate{ca.tls}}, Config: &http.Server{Handler: s}}
	s.http.StartTLS()
	return s, nil
}

// Close ends it, and its connections.
func (s *Server) Close() error {
	s.http.CloseClientConnections()
	s.http.Close()
	return nil
}

// WriteCA lets clients that read certsDir in the manner of containers-certs.d(5) trust it.
func (s *Server) WriteCA(certsDir string) error { return s.ca.trust(certsDir, s.Host) }

// Add serves an image under name and tag and returns the name to pull it by.
func (s *Server) Add(img *images.Image, name, tag string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range img.Blobs {
		s.blobs[b.Digest] = b
	}
	for _, m := range append([]images.Blob{img.Root}, img.Manifests...) {
		s.manifests[name+"@"+m.Digest.String()] = m
	}
	s.manifests[name+":"+tag] = img.Root
	return s.Host + "/" + name + ":" + tag
}

// ServeHTTP implements the part of the distribution specification that pulls and simple pushes use.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Intercept != nil && s.Intercept(w, r) {
		return
	}
	if r.URL.Path == "/token" {
		s.token(w, r)
		return
	}
	if !s.authorized(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	if name, ref, ok := cut(path, "/manifests/"); ok {
		s.manifest(w, r, name, ref)
	} else if name, ref, ok := cut(path, "/blobs/"); ok {
		s.blob(w, r, name, ref)
	} else if path != "" {
		http.NotFound(w, r)
	}
}

// cut divides at the last sep: names may have slashes.
func cut(path, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(path, sep)
	if i < 0 {
		return "", "", false
	}
	return path[:i], path[i+len(sep):], true
}

func (s *Server) authorized(w http.ResponseWriter, r *http.Request) bool {
	want, challenge := "", ""
	switch {
	case s.Bearer != "":
		want = "Bearer " + s.Bearer
		challenge = fmt.Sprintf(`Bearer realm="https://%s/token",service="test"`, s.Host)
	case s.User != "":
		want = s.basic()
		challenge = `Basic realm="test"`
	}
	if want == "" || r.Header.Get("Authorization") == want {
		return true
	}
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	writeJSON(w, map[string]any{"errors": []any{map[string]string{"code": "UNAUTHORIZED", "message": "authentication required"}}})
	return false
}

func (s *Server) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(s.User+":"+s.Password))
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	refresh := r.Method == http.MethodPost && s.RefreshToken != "" && r.FormValue("refresh_token") == s.RefreshToken
	if !refresh && (s.User == "" || r.Header.Get("Authorization") != s.basic()) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, map[string]any{"token": s.Bearer, "access_token": s.Bearer, "expires_in": 300})
}

func writeJSON(w io.Writer, v any) { _ = json.NewEncoder(w).Encode(v) } // the client went away

func (s *Server) manifest(w http.ResponseWriter, r *http.Request, name, ref string) {
	key := name + ":" + ref
	if strings.HasPrefix(ref, "sha256:") {
		key = name + "@" + ref
	}
	s.mu.Lock()
	m, ok := s.manifests[key]
	s.mu.Unlock()
	switch {
	case r.Method == http.MethodPut:
		s.putManifest(w, r, name, key)
	case !ok:
		http.NotFound(w, r)
	default:
		send(w, r, m)
	}
}

func (s *Server) putManifest(w http.ResponseWriter, r *http.Request, name, key string) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client went away
	}
	m := images.Bytes(r.Header.Get("Content-Type"), raw)
	s.mu.Lock()
	s.manifests[key], s.manifests[name+"@"+m.Digest.String()] = m, m
	s.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request, name, ref string) {
	switch r.Method {
	case http.MethodPost:
		w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/x")
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client went away
		}
		b := images.Bytes(imgspec.MediaTypeImageLayer, raw)
		s.mu.Lock()
		s.blobs[digest.Digest(r.URL.Query().Get("digest"))] = b
		s.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
	default:
		s.mu.Lock()
		b, ok := s.blobs[digest.Digest(ref)]
		s.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		send(w, r, b)
	}
}

func send(w http.ResponseWriter, r *http.Request, b images.Blob) {
	w.Header().Set("Content-Type", b.MediaType)
	w.Header().Set("Content-Length", fmt.Sprint(b.Size))
	w.Header().Set("Docker-Content-Digest", b.Digest.String())
	if r.Method == http.MethodHead {
		return
	}
	content, err := b.Open()
	if err != nil {
		panic(errors.Join(http.ErrAbortHandler, err))
	}
	defer content.Close()
	_, _ = io.Copy(w, content) // the client went away
}
