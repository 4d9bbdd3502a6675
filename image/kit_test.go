package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/storage"
	"github.com/orlop/orlop/storage/storagetest"
)

func TestMain(m *testing.M) {
	if storage.Init() { // the library runs the test binary again, see there
		return
	}
	os.Exit(storagetest.Main(m))
}

// rig is a registry over TLS and a service with a store of its own that trusts it.
type rig struct {
	t       testing.TB
	cfg     Config
	storeAt storage.Config
	store   *storage.Store
	service *Service
	server  *httptest.Server
	host    string
	// hook sees each request first, and answers it by returning true; nil for none.
	hook     atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
	requests atomic.Int64 // of blobs
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	root, run := storagetest.Dirs(t)
	r := &rig{t: t, storeAt: storage.Config{Root: root, RunRoot: run}}
	backend := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/blobs/") && req.Method == http.MethodGet {
			r.requests.Add(1)
		}
		if hook := r.hook.Load(); hook != nil && (*hook)(w, req) {
			return
		}
		backend.ServeHTTP(w, req)
	}))
	t.Cleanup(r.server.Close)
	r.host = strings.TrimPrefix(r.server.URL, "https://")
	dir := t.TempDir()
	r.cfg = Config{
		RegistriesConf:    writeFile(t, dir, "registries.conf", ""),
		RegistriesConfDir: filepath.Join(dir, "registries.conf.d"),
		PolicyPath:        writeFile(t, dir, "policy.json", `{"default":[{"type":"insecureAcceptAnything"}]}`),
		CertsDir:          filepath.Join(dir, "certs.d"),
	}
	r.trust(r.host)
	for _, c := range change {
		c(&r.cfg)
	}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.store, err = storage.Open(r.storeAt); err != nil {
		r.t.Fatal(err)
	}
	if r.service, err = Open(r.cfg, r.store); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) close() {
	r.t.Helper()
	r.service.Close()
	if err := r.store.Close(); err != nil {
		r.t.Errorf("close: %v", err)
	}
}

// trust puts the registry's certificate where the service looks for one of that host.
func (r *rig) trust(host string) {
	r.t.Helper()
	dir := filepath.Join(r.cfg.CertsDir, host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
	writeFile(r.t, dir, "ca.crt", string(cert))
}

func (r *rig) setHook(hook func(w http.ResponseWriter, r *http.Request) bool) { r.hook.Store(&hook) }

// send uploads to the registry behind the hook's back.
func (r *rig) send(method, path, mime string, body []byte) {
	r.t.Helper()
	hook := r.hook.Swap(nil)
	defer r.hook.Store(hook)
	req, err := http.NewRequest(method, r.server.URL+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", mime)
	resp, err := r.server.Client().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(resp.Body)
		r.t.Fatalf("%s %s: %s: %s", method, path, resp.Status, text)
	}
}

func (r *rig) blob(repo string, data []byte) digest.Digest {
	r.t.Helper()
	d := digest.FromBytes(data)
	r.send(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", data)
	return d
}

// layerSpec is a layer of a test image: its archive, and how it is compressed ("", gzip, zstd).
type layerSpec struct {
	tar      []byte
	compress string
}

// testImage is an image to push. Its fields may be made wrong on purpose by edit.
type testImage struct {
	layers []layerSpec
	docker bool // schema 2 media types
	arch   string
	config imgspec.ImageConfig
	edit   func(m *imgspec.Manifest, config *imgspec.Image)
}

// push uploads the image and returns its manifest's descriptor and its ID.
func (r *rig) push(repo, tag string, img testImage) (imgspec.Descriptor, string) {
	r.t.Helper()
	config := imgspec.Image{Config: img.config}
	config.Architecture, config.OS = img.arch, "linux"
	if config.Architecture == "" {
		config.Architecture = "amd64"
	}
	config.RootFS.Type = "layers"
	m := imgspec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest}
	configType, layerType := imgspec.MediaTypeImageConfig, imgspec.MediaTypeImageLayer
	if img.docker {
		m.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
		configType = "application/vnd.docker.container.image.v1+json"
		layerType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	}
	for _, l := range img.layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l.tar))
		data, suffix := squeeze(r.t, l)
		if img.docker {
			suffix = ""
		}
		m.Layers = append(m.Layers, imgspec.Descriptor{
			MediaType: layerType + suffix, Digest: r.blob(repo, data), Size: int64(len(data)),
		})
	}
	if img.edit != nil {
		img.edit(&m, &config)
	}
	configData := marshal(r.t, config)
	m.Config = imgspec.Descriptor{MediaType: configType, Digest: r.blob(repo, configData), Size: int64(len(configData))}
	data := marshal(r.t, m)
	r.send(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, m.MediaType, data)
	return imgspec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		digest.FromBytes(configData).Encoded()
}

func squeeze(t testing.TB, l layerSpec) (data []byte, suffix string) {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch l.compress {
	case "":
		return l.tar, ""
	case "gzip":
		w = gzip.NewWriter(&buf)
	case "zstd":
		zw, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w = zw
	}
	if _, err := w.Write(l.tar); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), "+" + l.compress
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// files makes a layer of small files, name and content in turn.
func files(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i := 0; i < len(pairs); i += 2 {
		hdr := &tar.Header{Name: pairs[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(pairs[i+1]))}
		if err := tw.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(tw, pairs[i+1])
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// realLayers packs real files of this machine, about bytes of them, into n layers of very different sizes.
func realLayers(t testing.TB, bytesWanted int64, n int) []layerSpec {
	t.Helper()
	bufs := make([]bytes.Buffer, n)
	writers := make([]*tar.Writer, n)
	for i := range bufs {
		writers[i] = tar.NewWriter(&bufs[i])
	}
	var total int64
	share := bytesWanted / int64(n*(n+1)/2) // layer i gets i+1 shares
	at := 0
	for _, top := range []string{"/usr/lib", "/usr/share", "/usr/bin", "/usr/local"} {
		filepath.Walk(top, func(name string, info os.FileInfo, err error) error {
			if err != nil || !info.Mode().IsRegular() || info.Size() > 32<<20 || total >= bytesWanted {
				return nil
			}
			for at < n-1 && int64(bufs[at].Len()) > share*int64(at+1) {
				at++
			}
			data, err := os.ReadFile(name)
			if err != nil {
				return nil
			}
			hdr := &tar.Header{Name: name[1:], Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(data)), ModTime: info.ModTime()}
			if writers[at].WriteHeader(hdr) == nil {
				writers[at].Write(data)
				total += int64(len(data))
			}
			return nil
		})
	}
	var layers []layerSpec
	for i := range bufs {
		if err := writers[i].Close(); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layerSpec{bufs[i].Bytes(), "gzip"})
	}
	t.Logf("%d bytes in %d layers", total, n)
	return layers
}

func writeFile(t testing.TB, dir, name, content string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
