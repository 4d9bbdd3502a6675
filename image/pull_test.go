package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
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
