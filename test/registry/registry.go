// Package registry runs registries on loopback for tests: the distribution's docker-registry over TLS, with or without
// passwords, and an in-process one that serves what no honest registry would take, and fails on request.
package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/orlop/orlop/test/images"
)

// Registry is one that runs.
type Registry struct {
	// Host is its address as image names begin with: "127.0.0.1:5001".
	Host string
	// Kind says what it is, for the suite to print.
	Kind string
	// User and Password are needed for everything unless they are empty.
	User, Password string

	ca     *identity
	client *http.Client
	stop   func() error
}

// Options of a registry.
type Options struct {
	Dir            string // holds its state; a process that serves it has Dir in its arguments
	User, Password string // "" for a registry that is open
}

// Start runs docker-registry, or an in-process registry where the program is missing. Clients get
// to trust it by WriteCA.
func Start(o Options) (*Registry, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	ca, err := newIdentity()
	if err != nil {
		return nil, err
	}
	if err := ca.write(o.Dir); err != nil {
		return nil, err
	}
	r := &Registry{User: o.User, Password: o.Password, ca: ca, client: ca.client()}
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		return r, r.serveInProcess()
	}
	return r, r.serveBinary(binary, o)
}

// configuration of docker-registry, see https://distribution.github.io/distribution/about/configuration/.
var configuration = template.Must(template.New("").Parse(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: "{{.Dir}}/data"}
  delete: {enabled: true}
  cache: {blobdescriptor: inmemory}
http:
  addr: "{{.Addr}}"
  tls: {certificate: "{{.Dir}}/ca.crt", key: "{{.Dir}}/ca.key"}
{{if .User}}auth:
  htpasswd: {realm: test, path: "{{.Dir}}/htpasswd"}
{{end}}`))

func (r *Registry) serveBinary(binary string, o Options) error {
	addr, err := freeAddress()
	if err != nil {
		return err
	}
	if o.User != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(o.Password), bcrypt.MinCost)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(o.Dir, "htpasswd"), []byte(o.User+":"+string(hash)+"\n"), 0o600); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	if err := configuration.Execute(&text, map[string]string{"Dir": o.Dir, "Addr": addr, "User": o.User}); err != nil {
		return err
	}
	config := filepath.Join(o.Dir, "config.yml")
	if err := os.WriteFile(config, text.Bytes(), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(o.Dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(binary, "serve", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := cmd.Start(); err != nil {
		return err
	}
	r.Host, r.Kind = addr, binary
	r.stop = func() error {
		_ = cmd.Process.Kill() // it has ended if this fails
		_ = cmd.Wait()         // killed
		return nil
	}
	if err := r.waitReady(); err != nil {
		said, _ := os.ReadFile(log.Name())
		return errors.Join(fmt.Errorf("%s: %w; its log:\n%s", binary, err, said), r.stop())
	}
	return nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (r *Registry) waitReady() error {
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := r.do(http.MethodGet, "https://"+r.Host+"/v2/", nil, "")
		if err == nil {
			return resp.Body.Close()
		}
		if time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}

func (r *Registry) serveInProcess() error {
	s, err := startServer(r.ca, Behaviour{User: r.User, Password: r.Password})
	if err != nil {
		return err
	}
	r.Host, r.Kind, r.stop = s.Host, "in-process registry (docker-registry is not installed)", s.Close
	return nil
}

// Close ends it; its directory stays.
func (r *Registry) Close() error { return r.stop() }

// WriteCA lets clients that read certsDir in the manner of containers-certs.d(5) trust it.
func (r *Registry) WriteCA(certsDir string) error { return r.ca.trust(certsDir, r.Host) }

// WriteHosts does the same for containerd, which takes loopback for plain HTTP unless it is told.
func (r *Registry) WriteHosts(certsDir string) error {
	if err := r.WriteCA(certsDir); err != nil {
		return err
	}
	hosts := fmt.Sprintf("server = %[1]q\n[host.%[1]q]\n  ca = \"ca.crt\"\n", "https://"+r.Host)
	return os.WriteFile(filepath.Join(certsDir, r.Host, "hosts.toml"), []byte(hosts), 0o644)
}

// do sends a request; an answer that is no success is an error with its body.
func (r *Registry) do(method, target string, body io.Reader, mediaType string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, target, body)
	if err != nil {
		return nil, err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, */*") // it hides OCI manifests otherwise
	if r.User != "" {
		req.SetBasicAuth(r.User, r.Password)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("%s %s: %s: %s", method, target, resp.Status, said)
	}
	return resp, nil
}

// Push stores an image under name ("app/web") and tag and returns the name to pull it by. See
// https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push.
func (r *Registry) Push(img *images.Image, name, tag string) (string, error) {
	for _, b := range img.Blobs {
		if err := r.pushBlob(name, b); err != nil {
			return "", err
		}
	}
	for _, m := range img.Manifests {
		if err := r.pushManifest(name, m.Digest.String(), m); err != nil {
			return "", err
		}
	}
	return r.Host + "/" + name + ":" + tag, r.pushManifest(name, tag, img.Root)
}

func (r *Registry) pushBlob(name string, b images.Blob) error {
	base := "https://" + r.Host + "/v2/" + name + "/blobs/"
	if resp, err := r.do(http.MethodHead, base+b.Digest.String(), nil, ""); err == nil {
		return resp.Body.Close() // a layer of another image
	}
	resp, err := r.do(http.MethodPost, base+"uploads/", nil, "")
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // it is empty
	at, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil {
		return err
	}
	query := at.Query()
	query.Set("digest", b.Digest.String())
	at.RawQuery = query.Encode()
	content, err := b.Open()
	if err != nil {
		return err
	}
	defer content.Close()
	return r.put(at, content, "application/octet-stream")
}

func (r *Registry) pushManifest(name, ref string, m images.Blob) error {
	content, err := m.Open()
	if err != nil {
		return err
	}
	defer content.Close()
	at, err := url.Parse("https://" + r.Host + "/v2/" + name + "/manifests/" + ref)
	if err != nil {
		return err
	}
	return r.put(at, content, m.MediaType)
}

func (r *Registry) put(at *url.URL, content io.Reader, mediaType string) error {
	resp, err := r.do(http.MethodPut, at.String(), content, mediaType)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
