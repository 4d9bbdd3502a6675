package image

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/containers/image/v5/types"
	"github.com/google/go-cmp/cmp"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseName(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"busybox", "docker.io/library/busybox:latest"},
		{"busybox:1.36", "docker.io/library/busybox:1.36"},
		{"user/app", "docker.io/user/app:latest"},
		{"index.docker.io/library/busybox", "docker.io/library/busybox:latest"},
		{"registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"},
		{"localhost/app", "localhost/app:latest"},
		{"localhost:5000/app", "localhost:5000/app:latest"},
		{"[::1]:5000/app:v1", "[::1]:5000/app:v1"},
		{"busybox@" + someDigest, "docker.io/library/busybox@" + someDigest},
		{"busybox:1.36@" + someDigest, "docker.io/library/busybox@" + someDigest}, // the digest says it all
		{"", ""},
		{"Upper/Case", ""},
		{"busybox:", ""},
		{"busybox@sha256:123", ""},
		{"docker://busybox", ""},
		{"../../etc/passwd", ""},
		{strings.Repeat("a", 64), ""}, // looks like an ID
		{strings.Repeat("x", 300), ""},
	} {
		got, err := parseName(tt.in)
		if tt.want == "" {
			if !errors.Is(err, ErrInvalidName) {
				t.Errorf("parseName(%q) = %v, %v; want ErrInvalidName", tt.in, got, err)
			}
			continue
		}
		if err != nil || got.String() != tt.want {
			t.Errorf("parseName(%q) = %v, %v; want %s", tt.in, got, err, tt.want)
		}
	}
}

// FuzzParseName: what a name is read as reads as itself, and has a registry and a tag or digest.
func FuzzParseName(f *testing.F) {
	for _, seed := range []string{"busybox", "a/b:c", "a.b:5/c@" + someDigest, "[::1]/x", "", ":", "@", "a//b", "A"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		named, err := parseName(name)
		if err != nil {
			if !errors.Is(err, ErrInvalidName) {
				t.Fatalf("%q: %v", name, err)
			}
			return
		}
		full := named.String()
		again, err := parseName(full)
		if err != nil || again.String() != full {
			t.Fatalf("%q is read as %q, and that as %v, %v", name, full, again, err)
		}
		if _, path, ok := strings.Cut(full, "/"); !ok || !strings.ContainsAny(path, ":@") {
			t.Fatalf("%q is read as %q: not qualified", name, full)
		}
	})
}

func TestPins(t *testing.T) {
	pins, err := parsePins([]string{"registry.k8s.io/pause", "*/infra/*", "quay.io/x:v*"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"registry.k8s.io/pause:latest": true,
		"registry.k8s.io/pause:3.10":   false, // a name without a glob means one image
		"h/infra/a/b:c":                true,
		"quay.io/x:v1":                 true,
		"quay.io/x:1":                  false,
		"quay+io/x:v1":                 false, // a dot is a dot
	} {
		if got := pinned(pins, []string{name}); got != want {
			t.Errorf("pinned(%s) = %v", name, got)
		}
	}
	for _, bad := range []string{"", "Not A Name"} {
		if _, err := parsePins([]string{bad}); !errors.Is(err, ErrInvalidName) {
			t.Errorf("parsePins(%q): %v", bad, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte("user:pa:ss"))
	padded := base64.StdEncoding.EncodeToString([]byte("user:pa:ss\x00\x00"))
	login := types.DockerAuthConfig{Username: "user", Password: "pa:ss"}
	for name, tt := range map[string]struct {
		image string
		auth  *Auth
		want  credentials
		bad   bool
	}{
		"none":             {"h/a", nil, credentials{}, false},
		"user":             {"h/a", &Auth{Username: "user", Password: "pa:ss"}, credentials{login: login}, false},
		"base64":           {"h.x/a", &Auth{Auth: encoded}, credentials{login: login}, false},
		"base64, padded":   {"h.x/a", &Auth{Auth: padded}, credentials{login: login}, false},
		"not base64":       {"h.x/a", &Auth{Auth: "%%"}, credentials{}, true},
		"no colon":         {"h.x/a", &Auth{Auth: "dXNlcg=="}, credentials{}, true},
		"identity token":   {"h.x/a", &Auth{IdentityToken: "t"}, credentials{login: types.DockerAuthConfig{IdentityToken: "t"}}, false},
		"registry token":   {"h.x/a", &Auth{RegistryToken: "t"}, credentials{registryToken: "t"}, false},
		"for this server":  {"h.x/a", &Auth{Auth: encoded, ServerAddress: "https://H.x/v2/"}, credentials{login: login}, false},
		"for this port":    {"h.x:5/a", &Auth{Auth: encoded, ServerAddress: "h.x:5"}, credentials{login: login}, false},
		"for another port": {"h.x:5/a", &Auth{Auth: encoded, ServerAddress: "h.x"}, credentials{}, false},
		"for another":      {"h.x/a", &Auth{Auth: encoded, ServerAddress: "other.x"}, credentials{}, false},
		"Docker Hub":       {"a", &Auth{Auth: encoded, ServerAddress: "https://index.docker.io/v1/"}, credentials{login: login}, false},
		"address is junk":  {"h.x/a", &Auth{Auth: encoded, ServerAddress: "http://%zz"}, credentials{}, false},
	} {
		named, err := parseName(tt.image)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tt.auth.credentialsFor(named)
		if (err != nil) != tt.bad || (tt.bad && !errors.Is(err, ErrDenied)) {
			t.Errorf("%s: err = %v", name, err)
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(credentials{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	a, b := &Auth{Username: "a", Password: "b"}, &Auth{Username: "a", Password: "c"}
	if a.key() == b.key() || strings.Contains(a.key(), "b:") || (*Auth)(nil).key() != "" {
		t.Error("key must tell credentials apart and not show them")
	}
}
