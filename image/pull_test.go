package image

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/storage"
)

// TestPullForms pulls each kind of manifest and compression, and reads a file of each layer in a container's root.
func TestPullForms(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		name     string
		docker   bool
		compress string
	}{
		{"oci-gzip", false, "gzip"}, {"oci-zstd", false, "zstd"}, {"oci-plain", false, ""}, {"docker-gzip", true, "gzip"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			desc, want := r.push(tt.name, "v1", testImage{
				docker: tt.docker,
				layers: []layerSpec{
					{files(t, "low", "from low", "both", "old"), tt.compress},
					{files(t, "high", tt.name, "both", "new"), tt.compress},
				},
				config: imgspec.ImageConfig{Cmd: []string{"/bin/" + tt.name}},
			})
			name := r.host + "/" + tt.name + ":v1"
			id, err := r.service.Pull(t.Context(), name, nil)
			if err != nil || id != want {
				t.Fatalf("Pull = %s, %v; want %s", id, err, want)
			}
			img, err := r.service.Resolve(name)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{name}, img.RepoTags); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{r.host + "/" + tt.name + "@" + desc.Digest.String()}, img.RepoDigests); diff != "" {
				t.Error(diff)
			}
			if img.Config.Cmd[0] != "/bin/"+tt.name || img.Architecture != "amd64" || len(img.Layers) != 2 || img.SizeBytes == 0 {
				t.Errorf("facts are wrong: %+v", img)
			}
			root, err := r.store.CreateRootfs(t.Context(), storage.RootfsOptions{ID: "c-" + tt.name, ImageID: id})
			if err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string]string{"low": "from low", "high": tt.name, "both": "new"} {
				if got, err := os.ReadFile(filepath.Join(root, file)); string(got) != want {
					t.Errorf("%s = %q, %v; want %q", file, got, err, want)
				}
			}
			if err := r.store.DeleteRootfs(t.Context(), "c-"+tt.name); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestIndex pulls by the tag and by the digest of an index of several platforms.
func TestIndex(t *testing.T) {
	r := newRig(t)
	ours, want := r.push("app", "amd64", testImage{arch: runtime.GOARCH, layers: small(t).layers})
	other, _ := r.push("app", "other", testImage{arch: "riscv64", layers: []layerSpec{{files(t, "other", "x"), "gzip"}}})
	ours.Platform = &imgspec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	other.Platform = &imgspec.Platform{OS: "linux", Architecture: "riscv64"}
	pushIndex := func(tag string, of ...imgspec.Descriptor) digest.Digest {
		data := marshal(t, imgspec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageIndex, Manifests: of})
		r.send(http.MethodPut, "/v2/app/manifests/"+tag, imgspec.MediaTypeImageIndex, data)
		return digest.FromBytes(data)
	}
	top := pushIndex("multi", other, ours)
	for _, name := range []string{":multi", "@" + top.String(), "@" + ours.Digest.String()} {
		if id, err := r.service.Pull(t.Context(), r.host+"/app"+name, nil); id != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", name, id, err, want)
		}
	}
	img, err := r.service.Resolve(r.host + "/app@" + top.String())
	if err != nil {
		t.Fatal(err)
	}
	wantDigests := []string{r.host + "/app@" + top.String(), r.host + "/app@" + ours.Digest.String()}
	slices.Sort(wantDigests)
	if diff := cmp.Diff(wantDigests, slices.Sorted(slices.Values(img.RepoDigests))); diff != "" {
		t.Error(diff)
	}
	pushIndex("foreign", other)
	r.wantPull("no image for this platform", r.host+"/app:foreign", nil, ErrNotFound)
}

// TestTagMoves pulls a tag before and after it means another image; then a restart must know the same.
func TestTagMoves(t *testing.T) {
	r := newRig(t, func(c *Config) { c.PinnedImages = []string{"*/app:v1"} })
	name := r.host + "/app:v1"
	var ids []string
	for _, content := range []string{"old", "new"} {
		r.push("app", "v1", testImage{layers: []layerSpec{{files(t, "f", content), "gzip"}}})
		r.wantPull(content, name, nil, nil)
		img, err := r.service.Resolve(name)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, img.ID)
	}
	check := func() {
		t.Helper()
		for i, wantTags := range []int{0, 1} {
			img, err := r.service.Resolve(ids[i][:12])
			if err != nil {
				t.Fatal(err)
			}
			if len(img.RepoTags) != wantTags || len(img.RepoDigests) != 1 || img.Pinned != (wantTags == 1) {
				t.Errorf("image %d: %v %v pinned %v", i, img.RepoTags, img.RepoDigests, img.Pinned)
			}
		}
	}
	check()
	before, _ := r.service.List("")
	r.close()
	r.open()
	check()
	after, _ := r.service.List("")
	if diff := cmp.Diff(before, after, cmpopts.EquateApproxTime(time.Second), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the restart changed what is known:\n%s", diff)
	}
}

func TestRemove(t *testing.T) {
	r := newRig(t)
	img := small(t)
	r.push("app", "v1", img)
	r.push("app", "v2", img) // the same image
	more := testImage{layers: append(img.layers, layerSpec{files(t, "more", "x"), "gzip"})}
	r.push("app", "v3", more) // on the same layer
	for _, tag := range []string{"v1", "v2", "v3"} {
		r.wantPull(tag, r.host+"/app:"+tag, nil, nil)
	}
	if images, _ := r.service.List(""); len(images) != 2 {
		t.Fatalf("%d images, want 2", len(images))
	}
	one, err := r.service.Resolve(r.host + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	used := func(id string) bool { return id == one.ID }
	if err := r.service.Remove(t.Context(), r.host+"/app:v1", used); !errors.Is(err, ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	for range 2 {
		if err := r.service.Remove(t.Context(), r.host+"/app:v1", nil); err != nil {
			t.Error(err)
		}
	}
	if images, _ := r.service.List(r.host + "/app:v2"); len(images) != 0 {
		t.Error("v2 names the same image, and must be gone")
	}
	if _, err := r.store.CreateRootfs(t.Context(), storage.RootfsOptions{ID: "c", ImageID: r.resolve(":v3")}); err != nil {
		t.Errorf("the layer that v3 needs is gone: %v", err)
	}
	if err := r.service.Remove(t.Context(), r.host+"/app:v3", nil); !errors.Is(err, ErrInUse) {
		t.Errorf("the store knows of a container: %v, want ErrInUse", err)
	}
	if err := r.store.DeleteRootfs(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if err := r.service.Remove(t.Context(), r.resolve(":v3")[:10], nil); err != nil {
		t.Error(err)
	}
	r.wantNothing()
	if err := r.service.Remove(t.Context(), "Not A Name", nil); !errors.Is(err, ErrInvalidName) {
		t.Errorf("no name: %v", err)
	}
}

func (r *rig) resolve(tag string) string {
	r.t.Helper()
	img, err := r.service.Resolve(r.host + "/app" + tag)
	if err != nil {
		r.t.Fatal(err)
	}
	return img.ID
}

func TestResolve(t *testing.T) {
	a, b := &Image{ID: strings.Repeat("a", 64)}, &Image{ID: "aaab" + strings.Repeat("c", 60), RepoTags: []string{"docker.io/library/aaaa:latest"}}
	s := &Service{}
	s.index.Store(newIndex(map[string]*Image{a.ID: a, b.ID: b}))
	for name, want := range map[string]*Image{
		a.ID: a, "sha256:" + a.ID: a, "aaab": b, "aaaaa": a,
		"aaaa":        b, // a name goes before an abbreviated ID
		"aaa":         nil,
		"ffff":        nil,
		"no/such:tag": nil,
	} {
		got, err := s.Resolve(name)
		if got != want || (want == nil) != errors.Is(err, ErrNotFound) {
			t.Errorf("Resolve(%s) = %v, %v", name, got, err)
		}
	}
	if _, err := s.Resolve("sha256:aaa"); !errors.Is(err, ErrNotFound) {
		t.Errorf("ambiguous: %v", err)
	}
	if _, err := s.Resolve("Not A Name"); !errors.Is(err, ErrInvalidName) {
		t.Errorf("no name: %v", err)
	}
}

func BenchmarkPull200MB(b *testing.B) {
	r := newRig(b)
	_, _ = r.push("big", "v1", testImage{layers: realLayers(b, 200<<20, 5)})
	name := r.host + "/big:v1"
	b.ResetTimer()
	for b.Loop() {
		if _, err := r.service.Pull(b.Context(), name, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.service.Remove(b.Context(), name, nil); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
