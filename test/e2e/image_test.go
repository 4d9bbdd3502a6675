package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/images"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/registry"
)

func imageStatus(t testing.TB, c *criclient.Client, name string) *cri.Image {
	t.Helper()
	r, err := c.Image.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	if err != nil {
		t.Fatalf("ImageStatus %s: %v", name, err)
	}
	return r.Image
}

func getImage(t testing.TB, name string) *images.Image {
	t.Helper()
	img, err := images.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Each kind of image is pulled by tag, runs, has one ID everywhere, and goes away.
func TestImageKinds(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"probe-docker", "probe-zstd", "probe-index"} {
		t.Run(kind, func(t *testing.T) {
			// The probe image itself has the same config, and so the same ID.
			img, err := getImage(t, kind).Reconfigure(func(c *imgspec.ImageConfig) { c.Labels = map[string]string{"kind": kind} })
			if err != nil {
				t.Fatal(err)
			}
			unique, err := img.ConfigID()
			if err != nil {
				t.Fatal(err)
			}
			name, err := open.Push(img, criclient.Unique("kinds/"+kind), "v1")
			if err != nil {
				t.Fatal(err)
			}
			ref := pullFor(t, node, name)
			st := imageStatus(t, node, name)
			if st == nil {
				t.Fatal("no status after the pull")
			}
			digest := strings.TrimSuffix(name, ":v1") + "@" + img.Root.Digest.String()
			if !slices.Contains(st.RepoTags, name) || !slices.Contains(st.RepoDigests, digest) {
				t.Errorf("tags %v, digests %v; want %s and %s among them", st.RepoTags, st.RepoDigests, name, digest)
			}
			if !strings.Contains(st.Id, unique) || st.Size == 0 || !strings.Contains(ref, st.Id) {
				t.Errorf("ID %s, size %d, reference of the pull %s; want the ID of config %s", st.Id, st.Size, ref, unique)
			}
			pod := node.Pod(t, criclient.HostNetwork)
			if got := pod.Output(t, name, criclient.Run("/bin/cat", "/data/in-image")); got != "from the image\n" {
				t.Errorf("a container of it printed %q", got)
			}
		})
	}
}

func TestPullByDigestAndRemove(t *testing.T) {
	t.Parallel()
	img, err := image.Reconfigure(func(c *imgspec.ImageConfig) { c.Labels = map[string]string{"for": t.Name()} })
	if err != nil {
		t.Fatal(err)
	}
	repo := criclient.Unique("test/digest")
	if _, err := open.Push(img, repo, "v1"); err != nil {
		t.Fatal(err)
	}
	name := open.Host + "/" + repo + "@" + img.Root.Digest.String()
	node.Pull(t, name)
	st := imageStatus(t, node, name)
	if st == nil || len(st.RepoTags) != 0 || !slices.Contains(st.RepoDigests, name) {
		t.Errorf("pulled by digest: %v", st)
	}
	list, err := node.Image.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: name}}})
	if own != nil && (err != nil || len(list.Images) != 1 || list.Images[0].Id != st.GetId()) {
		t.Errorf("list of this image: %v, %v", list, err)
	}
	removeImage(t, node, st.GetId())
	removeImage(t, node, name) // succeeds although it is gone
	if st := imageStatus(t, node, name); st != nil {
		t.Errorf("status of a removed image: %v; want none, and no error", st)
	}
}

func TestVerboseImage(t *testing.T) {
	t.Parallel()
	r, err := node.Image.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: probe}, Verbose: true})
	if err != nil || len(r.Info) == 0 || !strings.Contains(fmt.Sprint(r.Info), "FROM_IMAGE=yes") {
		t.Errorf("verbose status lacks the image's config: %v, %v", r.GetInfo(), err)
	}
}

func TestImageFsInfo(t *testing.T) {
	t.Parallel()
	r, err := node.Image.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{})
	if err != nil || len(r.ImageFilesystems) == 0 {
		t.Fatalf("ImageFsInfo: %v, %v", r, err)
	}
	fs := r.ImageFilesystems[0]
	if _, err := os.Stat(fs.FsId.GetMountpoint()); err != nil || fs.UsedBytes.GetValue() == 0 || fs.InodesUsed.GetValue() == 0 || fs.Timestamp == 0 {
		t.Errorf("image file system: %v, %v", fs, err)
	}
}

func TestRemoveImageInUse(t *testing.T) {
	t.Parallel()
	ours(t)
	img := variant(t, node, func(c *imgspec.ImageConfig) { c.Labels = map[string]string{"for": t.Name()} })
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := pod.Container(t, img, criclient.Run("/probe", "sleep"))
	_, err := node.Image.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: img}})
	if err == nil {
		t.Error("an image that a container uses was removed")
	}
	if got := ctr.Exec(t, "cat", "/data/in-image"); got != "from the image\n" {
		t.Errorf("the container's files after the attempt: %q", got)
	}
}

func TestPullAuthentication(t *testing.T) {
	t.Parallel()
	ours(t)
	basic, err := registry.Start(registry.Options{Dir: t.TempDir(), User: "sailor", Password: "p:w d"})
	if err != nil {
		t.Fatal(err)
	}
	defer basic.Close()
	token, err := registry.Serve(registry.Behaviour{User: "sailor", Password: "p:w d", Bearer: "bear", RefreshToken: "refresh"})
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	for _, err := range []error{basic.WriteCA(own.CertsDir), token.WriteCA(own.CertsDir)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	img, err := image.Reconfigure(func(c *imgspec.ImageConfig) { c.Labels = map[string]string{"for": t.Name()} })
	if err != nil {
		t.Fatal(err)
	}
	name, err := basic.Push(img, "private/app", "1")
	if err != nil {
		t.Fatal(err)
	}
	tokenName := token.Add(img, "private/app", "1")
	joined := base64.StdEncoding.EncodeToString([]byte("sailor:p:w d"))
	for what, tt := range map[string]struct {
		name string
		auth *cri.AuthConfig
		ok   bool
	}{
		"user and password":          {name, &cri.AuthConfig{Username: "sailor", Password: "p:w d"}, true},
		"base64 of both":             {name, &cri.AuthConfig{Auth: joined}, true},
		"none":                       {name, nil, false},
		"wrong password":             {name, &cri.AuthConfig{Username: "sailor", Password: "other"}, false},
		"broken base64":              {name, &cri.AuthConfig{Auth: "%%%"}, false},
		"for another server":         {name, &cri.AuthConfig{Username: "sailor", Password: "p:w d", ServerAddress: "https://other.example"}, false},
		"token by user and password": {tokenName, &cri.AuthConfig{Username: "sailor", Password: "p:w d"}, true},
		"token by identity token":    {tokenName, &cri.AuthConfig{IdentityToken: "refresh"}, true},
		"token itself":               {tokenName, &cri.AuthConfig{RegistryToken: "bear"}, true},
		"wrong token":                {tokenName, &cri.AuthConfig{RegistryToken: "fox"}, false},
		"token server, none":         {tokenName, nil, false},
	} {
		_, err := node.Image.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: tt.name}, Auth: tt.auth})
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v; want success: %v", what, err, tt.ok)
		}
		if err == nil {
			removeImage(t, node, tt.name)
		} else if strings.Contains(err.Error(), "p:w d") || strings.Contains(err.Error(), joined) {
			t.Errorf("%s: the error shows the password: %v", what, err)
		}
	}
}

func TestPullOfNothing(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		code codes.Code
		word string
	}{
		open.Host + "/test/none:1": {codes.NotFound, ""},
		// The kubelet knows this cause by the word, see k8s.io/cri-api/pkg/errors.
		"127.0.0.1:1/test/none:1":           {codes.Unknown, "RegistryUnavailable"},
		"not a name":                        {codes.InvalidArgument, ""},
		"":                                  {codes.InvalidArgument, ""},
		open.Host + "/UPPER:1":              {codes.InvalidArgument, ""},
		open.Host + "/test/probe@sha256:00": {codes.InvalidArgument, ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), kernel.Patient(30*time.Second))
		_, err := node.Image.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}})
		cancel()
		if err == nil {
			t.Errorf("pull of %q succeeded", name)
		} else if own != nil {
			wantCode(t, "pull of "+name, err, tt.code, tt.word)
		}
	}
}

func TestMirrorsBlockedAndPolicy(t *testing.T) {
	t.Parallel()
	refused := criclient.Unique("refused")
	d := another(t, nil, func(d *daemon.Daemon) {
		conf := fmt.Sprintf(`[[registry]]
prefix = "original.example"
location = "original.example"
[[registry.mirror]]
location = %q
[[registry]]
prefix = "blocked.example"
location = "blocked.example"
blocked = true
`, open.Host+"/mirrored")
		policy := fmt.Sprintf(`{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {%q: [{"type": "reject"}]}}}`,
			open.Host+"/"+refused)
		for name, text := range map[string]string{filepath.Join(d.RegistriesDir, "mirror.conf"): conf, d.Policy: policy} {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	img := getImage(t, "probe-docker")
	for _, repo := range []string{"mirrored/app", refused + "/app"} {
		if _, err := open.Push(img, repo, "1"); err != nil {
			t.Fatal(err)
		}
	}
	d.Client.Pull(t, "original.example/app:1")
	if st := imageStatus(t, d.Client, "original.example/app:1"); st == nil || !slices.Contains(st.RepoTags, "original.example/app:1") {
		t.Errorf("an image from a mirror has other names than the original's: %v", st)
	}
	for name, word := range map[string]string{"blocked.example/app:1": "blocked", open.Host + "/" + refused + "/app:1": "policy"} {
		_, err := d.Client.Image.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}})
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), word) {
			t.Errorf("pull of %s: %v; want an error that says %q", name, err, word)
		}
	}
}

// Pulls of the same image at a time are one: each layer is fetched once.
func TestPullTogether(t *testing.T) {
	t.Parallel()
	ours(t)
	var mu sync.Mutex
	fetched := map[string]int{}
	server, err := registry.Serve(registry.Behaviour{Intercept: func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			mu.Lock()
			fetched[r.URL.Path]++
			mu.Unlock()
		}
		return false
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.WriteCA(own.CertsDir); err != nil {
		t.Fatal(err)
	}
	img := getImage(t, "nginx")
	name := server.Add(img, "app", "1")
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if err := pull(context.Background(), node, name); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Cleanup(func() { removeImage(t, node, name) })
	for path, n := range fetched {
		if n > 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
	pod := node.Pod(t)
	pod.Container(t, name, unconfinedType)
	// nginx from Debian's packages answers.
	client := node.Pod(t)
	ctr := sleeper(t, client)
	criclient.Eventually(t, 20*time.Second, "an answer of nginx", func() bool {
		r, err := ctr.TryExec(t.Context(), kernel.Patient(5*time.Second), "wget", "-q", "-O-", "http://"+pod.Status(t).Network.Ip+"/")
		return err == nil && bytes.Contains(r.Stdout, []byte("nginx in a pod"))
	})
}

// A pull that fails half-way is no image, and the next one succeeds.
func TestPullBrokenOff(t *testing.T) {
	t.Parallel()
	ours(t)
	var mu sync.Mutex
	failures := 3
	server, err := registry.Serve(registry.Behaviour{Intercept: func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(r.URL.Path, "/blobs/") || failures == 0 {
			return false
		}
		failures--
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write([]byte("the beginning"))
		panic(http.ErrAbortHandler) // the connection breaks
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.WriteCA(own.CertsDir); err != nil {
		t.Fatal(err)
	}
	img, err := getImage(t, "probe-docker").Reconfigure(func(c *imgspec.ImageConfig) { c.Labels = map[string]string{"for": t.Name()} })
	if err != nil {
		t.Fatal(err)
	}
	name := server.Add(img, "broken/off", "1")
	for pull(t.Context(), node, name) != nil {
		if st := imageStatus(t, node, name); st != nil {
			t.Errorf("the failed pull left an image: %v", st)
		}
		mu.Lock()
		left := failures
		mu.Unlock()
		if left == 0 {
			break
		}
	}
	pullFor(t, node, name)
}

func TestHostileImages(t *testing.T) {
	t.Parallel()
	const limit = 256 << 20
	d := another(t, map[string]string{"image": fmt.Sprintf("max_unpacked_bytes = %d\n", limit)})
	server, err := registry.Serve(registry.Behaviour{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.WriteCA(d.CertsDir); err != nil {
		t.Fatal(err)
	}
	hostile, err := images.HostileImages(limit)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/tmp/orlop-test-kept", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove("/tmp/orlop-test-kept")
	defer os.Remove(images.Escaped)
	for _, h := range hostile {
		name := server.Add(h.Image, "hostile/"+h.Name, "1")
		ctx, cancel := context.WithTimeout(t.Context(), kernel.Patient(time.Minute))
		err := pull(ctx, d.Client, name)
		cancel()
		if err == nil && !h.Harmless {
			t.Errorf("%s: the pull succeeded", h.Name)
		}
		if code := status.Code(err); code == codes.DeadlineExceeded || code == codes.Unavailable || code == codes.Unknown {
			t.Errorf("%s: %v; want a code that says whose fault it is", h.Name, err)
		}
		if err == nil {
			removeImage(t, d.Client, name)
		}
		if _, err := os.Lstat(images.Escaped); err == nil {
			t.Errorf("%s: wrote to %s on the node", h.Name, images.Escaped)
			_ = os.Remove(images.Escaped)
		}
		if _, err := os.Lstat("/tmp/orlop-test-kept"); err != nil {
			t.Errorf("%s: removed a file of the node", h.Name)
		}
	}
	// The daemon is up, and what it had is whole.
	if got := d.Client.Pod(t, criclient.HostNetwork).Output(t, probe, criclient.Run("cat", "/data/in-image")); got != "from the image\n" {
		t.Errorf("a container after all this printed %q", got)
	}
}
