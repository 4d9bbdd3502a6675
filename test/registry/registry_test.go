package registry

import (
	"io"
	"net/http"
	"testing"

	"github.com/orlop/orlop/test/images"
)

func image() *images.Image {
	layer := images.Bytes("application/octet-stream", []byte("a layer"))
	config := images.JSON("application/vnd.oci.image.config.v1+json", map[string]string{})
	root := images.JSON("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config.Descriptor, "layers": []any{layer.Descriptor},
	})
	return &images.Image{Root: root, Blobs: []images.Blob{config, layer}}
}

// What was pushed can be fetched with the password and not without, from whichever registry this machine has and from
// the in-process one.
func TestPushThenFetch(t *testing.T) {
	real, err := Start(Options{Dir: t.TempDir(), User: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer real.Close()
	t.Log("registry:", real.Kind)
	ca, err := newIdentity()
	if err != nil {
		t.Fatal(err)
	}
	own := &Registry{User: "u", Password: "p", ca: ca, client: ca.client()}
	if err := own.serveInProcess(); err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for _, r := range []*Registry{real, own} {
		img := image()
		if _, err := r.Push(img, "some/app", "1"); err != nil {
			t.Fatalf("%s: %v", r.Kind, err)
		}
		base := "https://" + r.Host + "/v2/some/app/"
		for at, want := range map[string]images.Blob{
			base + "manifests/1":                           img.Root,
			base + "manifests/" + img.Root.Digest.String(): img.Root,
			base + "blobs/" + img.Blobs[1].Digest.String(): img.Blobs[1],
		} {
			resp, err := r.do(http.MethodGet, at, nil, "")
			if err != nil {
				t.Errorf("%s: %v", r.Kind, err)
				continue
			}
			got, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if content, _ := want.Read(); string(got) != string(content) {
				t.Errorf("%s: GET %s gave %q; want %q", r.Kind, at, got, content)
			}
		}
		resp, err := r.client.Get(base + "manifests/1")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: without a password: %s; want 401", r.Kind, resp.Status)
		}
	}
}

func TestBearer(t *testing.T) {
	s, err := Serve(Behaviour{User: "u", Password: "p", Bearer: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Add(image(), "app", "1")
	client := s.ca.client()
	for token, want := range map[string]int{"Bearer secret": 200, "Bearer other": 401, "": 401} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.Host+"/v2/app/manifests/1", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", token)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("token %q: %s; want %d", token, resp.Status, want)
		}
	}
}
